"""docs/results-<paper>.md and the lines of the README that say what came out, from findings and committed records; and
docs/scalekd-recipes.md, from recipes.

A finding stands beside its table (`finding:` in its YAML), counts stand in results/reference/<profile>/tables.json.
Nothing is planned or compared here: a test compares the pages with what they follow from, `hkd docs` writes them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from experiments import places
from experiments.planning import schema, standins
from experiments.planning.schema import Profile, Table
from experiments.records.committed import SUFFIX
from experiments.results import recipe_page
from experiments.results.overview import Summary, committed, pictures
from experiments.results.verdicts import DECIDED, VERDICTS
from hkd.errors import UserError
from hkd.files import atomic_write

PAPERS = {
    "scalekd": "ScaleKD",
    "hcd": "HCD",
    "hgkd": "H-GKD",
    "hybrid": "Hybrid Distill",
    "ofakd": "OFA-KD's pairs, one protocol",
}
HEADLINE = {
    "scalekd": "scalekd_table3",
    "hcd": "hcd_schedule",
    "hgkd": "hgkd_resnet50",
    "hybrid": "hybrid_table3",
    "ofakd": "ofa_cifar100_controlled",
}
PROFILES = ("laptop", "cifar_subset", "cub_subset")  # in this order; the first is the README's
REAL = "real photographs, miniature models"
BEGIN, END = "<!-- what came out: written by `hkd docs` -->", "<!-- end -->"


def documents() -> dict[Path, str]:
    """Every file that follows from findings, counts and recipes, with its content.

    Raises:
        UserError: the README has no place for its lines.
    """
    summaries = {profile: committed(profile) for profile in PROFILES}
    tables = [schema.load_table(name) for name in schema.table_ids()]
    found = {
        places.repository() / "docs" / f"results-{paper}.md": page(
            paper, [table for table in tables if table.paper == paper], summaries
        )
        for paper in PAPERS
    }
    readme = places.repository() / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or END not in text[text.find(BEGIN) :]:
        raise UserError(f"{readme} has no place for what came out: put {BEGIN} and {END} into it, a line each.")
    head, _, rest = text.partition(BEGIN)
    lines = "\n".join(came_out(tables, summaries[PROFILES[0]]))
    found[places.repository() / "docs" / "scalekd-recipes.md"] = recipe_page.page()
    found[readme] = f"{head}{BEGIN}\n{lines}\n{END}{rest.partition(END)[2]}"
    return found


def write() -> list[Path]:
    """Write them; returns those that changed."""
    changed = []
    for path, text in documents().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def counted(summaries: Iterable[Summary]) -> dict[str, int]:
    """Verdicts of several tables, in their fixed order; a comparison that several print counts in the first."""
    counts = Counter[str]()
    for summary in summaries:
        counts.update(summary.verdicts)
        counts.subtract(summary.again)
    return {name: counts[name] for name in VERDICTS if counts[name]}


def words(counts: Mapping[str, int]) -> str:
    """`7 hold, 2 contradicted`."""
    return ", ".join(f"{count} {'hold' if name == 'holds' else name}" for name, count in counts.items())


def came_out(tables: Iterable[Table], summaries: Mapping[str, Summary]) -> Iterator[str]:
    """The README's lines: one for each paper, and one for what they cannot say."""
    by_name = {table.id: table for table in tables}
    for paper, name in PAPERS.items():
        of_paper = [summary for id_, summary in summaries.items() if by_name[id_].paper == paper]
        counts = words(counted(of_paper))
        finding = by_name[HEADLINE[paper]].finding.get(PROFILES[0])
        told = (
            f" ({counts or 'no published direction'}): {finding}"
            if finding
            else ": planned and tested, not run by us yet."
        )
        yield f"- **{name}**{told} [More](docs/results-{paper}.md)."
    every = counted(summaries.values())
    decided, total = sum(every.get(word, 0) for word in DECIDED), sum(every.values())
    yield ""
    yield (
        f"**What this cannot say:** anything about the papers' own numbers. Nothing has run at a paper's scale yet: "
        f"miniature models learn digits here, and {total - decided} of {total} verdicts are open."
    )


def page(paper: str, tables: Iterable[Table], summaries: Mapping[str, Mapping[str, Summary]]) -> str:
    """The page of one paper: how its published directions stand, then a section for each table."""
    tables = list(tables)
    laptops = summaries[PROFILES[0]]
    here = [laptops[table.id] for table in tables if table.id in laptops]
    laptop = schema.load_profile(PROFILES[0])
    lines = [
        f"# {PAPERS[paper]}: what came out",
        "",
        f"Of the paper's published gains, at the `{laptop.name}` profile: {words(counted(here)) or 'none to judge'}. "
        "Verdicts are by direction, from intervals over seeds: [statistics.md](statistics.md).",
        "",
        f"{standins.in_short(laptop)} Every table, cell and run is a page of the report: `./run report`.",
        "The sentences are kept beside each table (`finding:` in `experiments/tables/`); `hkd docs` writes this page.",
    ]
    told = [table for table in tables if table.finding or pictures(table.id)]
    for table in told:
        lines += ["", *section(table, summaries, laptop)]
    rest = [table.id for table in tables if table not in told]
    measured = [name for name in rest if has_records(name)]
    for names, said in (
        (measured, "Without a finding of their own, but with numbers that [claims](claims.md) use"),
        ([name for name in rest if name not in measured], "Planned and tested, not run by us yet"),
    ):
        if names:
            lines += ["", f"{said}: {', '.join(f'`{name}`' for name in names)}."]
    return "\n".join(lines) + "\n"


def section(table: Table, summaries: Mapping[str, Mapping[str, Summary]], laptop: Profile) -> Iterator[str]:
    """A table: its finding by profile, verdicts, cost, and its picture where the docs have one."""
    yield f"## {standins.titled(table.title, laptop)}"
    yield ""
    for profile in PROFILES:
        if profile not in table.finding:
            continue
        kind = "" if profile == PROFILES[0] else f"*{REAL}* (`{profile}`): "
        yield f"{kind}{table.finding[profile]}"
        yield ""
    facts = []
    for profile in PROFILES:
        summary = summaries[profile].get(table.id)
        if summary is not None:
            cost = f", {took} CPU min" if (took := str(summary.spent)) else ""
            verdicts = words(summary.verdicts) or "nothing published to judge"
            facts.append(f"`{profile}`: {verdicts}; {summary.runs} runs{cost}")
    yield f"`./run {table.id}`" + (f" · {'. '.join(facts)}." if facts else "")
    for picture in pictures(table.id):
        yield ""
        yield f"![{standins.titled(table.title, laptop)}](pictures/{picture})"


def has_records(table: str) -> bool:
    """Whether something that was measured for a table is committed, at any of the profiles."""
    folders = [places.references() / profile for profile in PROFILES]
    return any((folder / f"{table}{suffix}").is_file() for folder in folders for suffix in (SUFFIX, ".measures.json"))
