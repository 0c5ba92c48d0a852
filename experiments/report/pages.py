"""From findings to pages: what each template is given."""

import ast
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from scipy import stats as distributions

from experiments.planning import schema, standins
from experiments.planning.plan import Cell
from experiments.records.committed import processor
from experiments.records.store import Record
from experiments.report import svg, words
from experiments.report.checks import checked_claims
from experiments.report.gather import Entry, Findings
from experiments.report.pictures import pictures
from experiments.report.sets import compared_sets
from experiments.report.svg import number
from experiments.results.caption import LOSSES, caption, heading, listed, metric_name
from experiments.results.claims.check import Checked
from experiments.results.claims.documents import Difference, Value
from experiments.results.claims.report import sample
from experiments.results.compare import HERE, CellResult
from experiments.results.render import is_ranked, methods_of, ranking
from experiments.results.stats import LEVEL, Estimate
from experiments.results.verdicts import CANNOT_TELL, SMALLEST_GAIN
from experiments.teachers import how_made
from hkd.methods import METHODS

FOLDER = Path(__file__).parent
METHOD_FILES = FOLDER.parents[1] / "hkd" / "methods"
NAVIGATION = (
    ("index.html", "Overview"),
    ("claims.html", "Claims"),
    ("teachers.html", "Teachers"),
    ("figures.html", "Figures"),
    ("compare.html", "Compare"),
    ("about.html", "How to read this"),
)
EXACT = 4  # digits of numbers that are copied, as in table.csv
MOST_SEEDS = 100  # more than these are not foretold
FARTHEST = 5.0  # times the median gain: the edge of an axis
CHARTS = 2  # series of curves that are drawn


def environment() -> Environment:
    """Jinja with autoescape, the filters that templates use, and the macros under their names."""
    found = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "number": printed,
        "exact": exact,
        "tone": tone,
        "mark": mark,
    }
    for file in ("macros.html", "cells.html"):
        module = found.get_template(file).module
        found.globals |= {name: part for name, part in vars(module).items() if callable(part)}
    return found


def printed(value: float, digits: int = 1, signed: bool = False) -> str:
    """A number as pages print it."""
    return number(value, digits, signed=signed)


def tone(name: str) -> str:
    """The class of a word's colour."""
    return words.word(name).tone


def mark(name: str) -> str:
    """The sign before a word."""
    return words.word(name).mark


def exact(value: float) -> str:
    """A number as it is copied and sorted by: as table.csv has it; "" for nan."""
    return "" if math.isnan(value) else repr(round(float(value), EXACT)).removesuffix(".0")


@dataclass(frozen=True)
class Page:
    """A page to be written: its file below the report's folder, template and what the template is given."""

    file: str
    template: str
    facts: Mapping[str, Any]


class Site:
    """All pages of the report.

    Args:
        findings: what is shown.
        folder: of the report, into which pictures are written.
        live: seconds after which pages load themselves again; None: never.
    """

    def __init__(self, findings: Findings, folder: Path, live: int | None = None):
        self.findings, self.folder, self.live = findings, folder, live
        self.pictures: list[str] = []  # that the page of figures shows, below the folder
        self.templates = environment()
        self.profiles = {name: profile_facts(name) for name in findings.profiles}

    def text(self, page: Page) -> str:
        """A page as HTML."""
        shared = {
            "root": "../" * page.file.count("/"),
            "current": page.file,
            "navigation": NAVIGATION,
            "live": self.live,
        }
        return self.templates.get_template(page.template).render(**shared, **page.facts)

    def pages(self) -> Iterator[Page]:
        """Every page but that of the comparison of two sets."""
        yield self.index()
        for entry in self.findings.entries:
            yield from self.table_pages(entry)
        yield self.claims()
        yield from (self.method(name) for name in self.methods)
        yield self.teachers()
        yield self.figures()
        yield self.about()

    def table_pages(self, entry: Entry) -> Iterator[Page]:
        """The page of a table and those of its rows."""
        yield self.table(entry)
        for row in entry.rows:
            yield self.row(entry, row)

    # -- the overview --------------------------------------------------------------------------------------------------

    def index(self) -> Page:
        """Papers and tables with their verdicts."""
        main = self.findings.at(self.findings.main)
        papers = list(dict.fromkeys(entry.paper for entry in self.findings.entries))
        lines = [
            self.line(entry)
            for entry in sorted(self.findings.entries, key=lambda e: (papers.index(e.paper), e.kind == "figure"))
        ]
        for before, line in zip([None, *lines], lines, strict=False):
            line["first"] = before is None or before["paper"] != line["paper"]
        keys = dict.fromkeys(entry.paper for entry in main)
        counts: Counter[str] = Counter(result.verdict for result in once(main) if result.verdict)
        columns = {"paper": (0, "paper"), "kind": (2, "kind"), "verdict": (3, "leading"), "profile": (8, "profile")}
        choices = {name: (at, sorted({str(line[of]) for line in lines})) for name, (at, of) in columns.items()}
        return Page(
            "index.html",
            "index.html",
            {
                "sentence": self.sentence(main, counts),
                "counts": words.in_order(counts),
                "profiles": list(self.profiles.values()),
                "astray": self.findings.astray,
                "papers": [self.paper(key, [entry for entry in main if entry.paper == key]) for key in keys],
                "lines": lines,
                "choices": choices,
                "methods": [{"name": name, "about": about(name)} for name in self.methods],
            },
        )

    def sentence(self, entries: Sequence[Entry], counts: Mapping[str, int]) -> str:
        """How much was measured, and how much of it was judged."""
        cells = once(entries)
        measured = sum(1 for result in cells if result.measured.n)
        if not measured:
            return f"Nothing was measured at profile {self.findings.main} yet: the pages show what could be."
        judged = sum(counts.values())
        said = ", ".join(f"{count} {name}" for name, count in words.in_order(dict(counts)).items())
        return (
            f"At profile {self.findings.main}, {measured} of {len(cells)} cells of {len(entries)} tables and figures "
            f"were measured; {judged} could be compared with a paper: {said}. Cells that several tables print are "
            "counted once."
        )

    def paper(self, key: str, entries: Sequence[Entry]) -> dict[str, str]:
        """A paper, and the pooled effect of its method on most pairs."""
        facts: dict[str, Any] = {}
        if key in schema.names("published"):
            facts = schema.load_published(key).paper
        own = [(entry, gain) for entry in entries for gain in self.headline(entry)]
        effect = Markup("no gain is pooled over its pairs")
        told = next((entry for entry in entries if entry.finding), None)
        if told is not None:
            effect = Markup('{} (<a href="t/{}.html">{}</a>)').format(told.finding, told.page, told.title)
        if own:
            entry, gain = max(own, key=lambda each: len(each[1].pooled.rows))
            estimate = gain.pooled.estimate
            effect = Markup('{} over {} pairs, <a href="t/{}.html">{}</a>').format(
                interval_text(estimate, "points"), len(gain.pooled.rows), entry.page, entry.title
            )
        venue = " ".join(str(facts[name]) for name in ("venue", "year") if name in facts)
        return {"title": str(facts.get("title", key)), "venue": venue or key, "effect": effect}

    @staticmethod
    def headline(entry: Entry) -> list[Any]:
        """The pooled gain of the paper's own method over its baseline, in the first metric that has one."""
        if entry.comparison is None:
            return []
        found = [
            gain
            for gain in entry.comparison.pooled
            if (gain.method, gain.variant, gain.over) == (entry.paper, "", "") and gain.pooled.rows
        ]
        return found[:1]

    def line(self, entry: Entry) -> dict[str, Any]:
        """A table on the overview."""
        counts = words.in_order(Counter(result.verdict for result in entry.cells if result.verdict))
        own = self.headline(entry)
        estimate = own[0].pooled.estimate if own else None
        nothing = "not read" if entry.problem else "no published gain to compare with" if entry.measured else "not run"
        minutes = entry.minutes()
        return {
            "paper": entry.paper,
            "kind": entry.kind,
            "profile": entry.profile,
            "page": entry.page,
            "title": entry.title,
            "finding": entry.finding,
            "problem": entry.problem,
            "counts": counts,
            "bar": svg.bar(counts),
            "judged": sum(counts.values()),
            "leading": max(counts, key=lambda name: counts[name]) if counts else nothing,
            "nothing": nothing,
            "estimate": estimate,
            "gain": "" if estimate is None else exact(estimate.mean),
            "runs": len(entry.records),
            "asked": len(entry.plan.runs) if entry.plan else 0,
            "own": len(entry.own),
            "minutes": f"{minutes:.0f}" if minutes >= 1 else "",
        }

    # -- tables --------------------------------------------------------------------------------------------------------

    def table(self, entry: Entry) -> Page:
        """A table: finding, counts, cells by metric, pooled gains, ranks, cost, protocol."""
        facts: dict[str, Any] = {"entry": entry, "profile": self.profiles[entry.profile], "several": False}
        facts |= {"sections": [], "pooled": [], "ranks": [], "cost": [], "protocol": [], "notes": []}
        facts["counts"] = words.in_order(Counter(result.verdict for result in entry.cells if result.verdict))
        facts["here"] = entry.plan.here if entry.plan else ""
        facts["claims"] = [self.claim_line(each) for each in self.claims_on(entry)]
        if entry.plan and entry.comparison:
            plan = entry.plan
            facts["several"] = len(plan.metrics) > 1
            facts["notes"] = [line for line in (models(entry), own_runs(entry), going_on(entry)) if line]
            facts["sections"] = [self.section(entry, metric) for metric in plan.metrics]
            facts |= self.pooled(entry)
            facts |= ranks(entry)
            facts["cost"] = cost_lines(entry)
            facts["protocol"] = caption(plan, entry.records, entry.comparison)
        return Page(f"t/{entry.page}.html", "table.html", facts)

    def section(self, entry: Entry, metric: str) -> dict[str, Any]:
        """The cells of one metric."""
        results = [result for result in entry.cells if result.cell.metric == metric]
        limit = axis(results)
        views, before, several = [], "", len({result.cell.row for result in results}) < len(results)
        for result in results:
            href = f"../c/{entry.page}/{result.cell.row}.html#{anchor(result.cell)}"
            view = cell_view(entry, result, limit, href)
            view.id = f"{result.cell.row}.{anchor(result.cell)}"
            view.place = ("again" if result.cell.row == before else "first") if several else ""
            before = result.cell.row
            views.append(view)
        columns = {"verdict": (6, "word"), "method": (1, "label"), "pair": (0, "pair")}
        choices = {n: (at, list(dict.fromkeys(getattr(view, of) for view in views))) for n, (at, of) in columns.items()}
        unit = "loss" if metric in LOSSES else "percent, gains in points"
        return {
            "metric": metric,
            "name": metric_name(metric),
            "views": views,
            "limit": svg.scale(limit),
            "choices": choices,
            "caption": f"{metric_name(metric).capitalize()}, {unit}: published beside measured",
        }

    def pooled(self, entry: Entry) -> dict[str, Any]:
        """Pooled gains, with one axis for all."""
        assert entry.plan is not None
        assert entry.comparison is not None
        labels = {(result.cell.method, result.cell.variant): heading(result.cell) for result in entry.cells}
        gains = [gain for gain in entry.comparison.pooled if gain.pooled.rows]
        estimates = [gain.pooled.estimate.shown for gain in gains]
        limit = svg.symmetric([*(e.mean for e in estimates), *(gain.published for gain in gains)])
        lines = [
            {
                "method": labels[gain.method, gain.variant],
                "over": labels[gain.over, ""] if gain.over else "baseline",
                "metric": metric_name(gain.metric),
                "estimate": gain.pooled.estimate,
                "strip": svg.strip(
                    estimate.mean,
                    estimate.low,
                    estimate.high,
                    limit=limit,
                    tone="measured",
                    published=gain.published if entry.plan.by_value else math.nan,
                    label=interval_text(estimate, "points"),
                ),
                "pairs": len(gain.pooled.rows),
                "left_out": listed(gain.pooled.left_out),
                "spread": gain.pooled.spread,
                "published": gain.published,
            }
            for gain, estimate in zip(gains, estimates, strict=True)
        ]
        return {"pooled": lines, "pooled_scale": svg.scale(limit)}

    # -- rows: every cell with its runs --------------------------------------------------------------------------------

    def row(self, entry: Entry, row: str) -> Page:
        """The cells of one row, each with its runs."""
        results = entry.rows[row]
        limit = axis(results)
        views = []
        for result in results:
            view = cell_view(entry, result, limit, f"#{anchor(result.cell)}")
            view.several = len({each.cell.metric for each in results}) > 1
            views.append(view)
        groups: dict[tuple[str, str], list[CellResult]] = {}
        for result in results:
            groups.setdefault((result.cell.method, result.cell.variant), []).append(result)
        assert entry.plan is not None
        specs = {which: flat_spec(entry, group[0]) for which, group in groups.items()}
        common = common_part([spec for spec in specs.values() if spec])
        facts = {
            "entry": entry,
            "profile": self.profiles[entry.profile],
            "here": entry.plan.here,
            "pair": pair(results[0].cell, entry),
            "views": views,
            "limit": svg.scale(limit),
            "sections": [row_section(entry, group, specs[which], common) for which, group in groups.items()],
            "common": listing(common),
            "environments": environments(
                entry.records[key] for r in results for key in r.cell.runs if key in entry.records
            ),
        }
        return Page(f"c/{entry.page}/{row}.html", "row.html", facts)

    # -- claims --------------------------------------------------------------------------------------------------------

    @cached_property
    def checked(self) -> tuple[list[Checked], list[str]]:
        """All claims at all profiles that are shown, and why some could not be read."""
        return checked_claims(self.findings)

    def claims_on(self, entry: Entry) -> list[Checked]:
        """Claims on a table or figure at its profile."""
        return [each for each in self.shown_claims(entry.profile) if subject(each.claim) == entry.name]

    def shown_claims(self, profile: str) -> list[Checked]:
        """All claims at the main profile; at another one those that were tested."""
        here = [each for each in self.checked[0] if each.profile == profile]
        return [each for each in here if profile == self.findings.main or each.verdict != "untested"]

    def claim_id(self, each: Checked) -> str:
        """The id of a claim on its page."""
        return each.claim.id + ("" if each.profile == self.findings.main else f"-{each.profile}")

    def claim_line(self, each: Checked) -> dict[str, str]:
        """A claim where another page mentions it."""
        return {"id": self.claim_id(each), "sentence": each.claim.sentence, "verdict": each.verdict}

    def claims(self) -> Page:
        """Every sentence of every paper, with its effect and the rows behind it."""
        parts = []
        for profile, facts in self.profiles.items():
            shown = self.shown_claims(profile)
            papers = [
                {
                    "title": str(schema.load_published(paper).paper.get("title", paper)),
                    "claims": [self.claim(each) for each in shown if each.paper == paper],
                }
                for paper in dict.fromkeys(each.paper for each in shown)
            ]
            if shown:
                counts = words.in_order(Counter(each.verdict for each in shown))
                parts.append({"profile": facts, "counts": counts, "papers": papers})
        return Page("claims.html", "claims.html", {"parts": parts, "problems": self.checked[1]})

    def claim(self, each: Checked) -> dict[str, Any]:
        """One sentence."""
        entry = next((e for e in self.findings.at(each.profile) if e.name == subject(each.claim)), None)
        estimate = each.estimate
        drawn = estimate.n > 0
        shown = estimate.shown
        limit = svg.symmetric([shown.mean, shown.low, shown.high], least=0.01) if drawn else 1.0
        rows = []
        if entry is not None and isinstance(each.claim.statistic, Difference):
            rows = [(row, f"c/{entry.page}/{row}.html") for row in each.rows if row in entry.rows]
        return {
            "id": self.claim_id(each),
            "verdict": each.verdict,
            "sentence": each.claim.sentence,
            "estimate": estimate,
            "digits": 1 if drawn and abs(estimate.mean) >= 10 else 2,
            "expected": each.claim.expect.text,
            "sample": sample(each),
            "reason": each.reason.rstrip("."),
            "source": each.claim.source.rstrip("."),
            "note": (each.claim.note or "").rstrip("."),
            "table": entry.page if entry else "",
            "rows": rows,
            "strip": svg.strip(
                shown.mean,
                shown.low,
                shown.high,
                limit=limit,
                tone="measured",
                label=f"{interval_text(estimate, '', 2)}, on an axis from {number(-limit)} to {number(limit)}; "
                f"expected {each.claim.expect.text}",
            )
            if drawn
            else "",
        }

    # -- methods, teachers, figures, how to read it --------------------------------------------------------------------

    @cached_property
    def methods(self) -> list[str]:
        """Methods that have a cell at the main profile, by name."""
        return sorted({r.cell.method for entry in self.findings.at(self.findings.main) for r in entry.cells})

    def method(self, name: str) -> Page:
        """A method over all tables of the main profile."""
        facts: dict[str, list[Any]] = {"ranks": [], "cost": [], "gains": [], "refused": []}
        for entry in self.findings.at(self.findings.main):
            results = [result for result in entry.cells if result.cell.method == name]
            link = {"page": entry.page, "title": entry.title}
            labels = dict.fromkeys(result.cell.label for result in results)
            ranked = dict(ranks(entry)["ranks"]) if results else {}
            facts["ranks"] += [
                {**link, "label": label, "rank": ranked[label], "of": len(ranked)}
                for label in labels
                if label in ranked
            ]
            for line in cost_lines(entry) if results else ():
                if line["method"] == name and not line["variant"] and name != "supervised":
                    facts["cost"].append({**link, **line})
            measured = [result for result in results if result.gain.n]
            limit = axis(measured)
            for result in measured:
                view = cell_view(
                    entry, result, limit, f"../c/{entry.page}/{result.cell.row}.html#{anchor(result.cell)}"
                )
                view.title, view.verdict = entry.title, result.verdict
                facts["gains"].append(view)
            facts["refused"] += [{**link, **each} for each in refusals(results)]
        facts["cost"] = [line for line in facts["cost"] if not math.isnan(line["step"])]
        shared = {"name": name, "about": about(name), "profile": self.profiles[self.findings.main]}
        return Page(f"m/{name}.html", "method.html", {**shared, **facts})

    def teachers(self) -> Page:
        """Teachers of the profiles that are shown."""
        parts = [{"profile": facts, "teachers": self.teachers_of(name)} for name, facts in self.profiles.items()]
        return Page("teachers.html", "teachers.html", {"parts": [part for part in parts if part["teachers"]]})

    def teachers_of(self, profile: str) -> list[dict[str, Any]]:
        """What is known of each teacher that some table at a profile has."""
        chosen, manifest, names = schema.load_profile(profile), schema.load_manifest().teachers, schema.load_names()
        keys: dict[str, tuple[str, Entry]] = {}
        students: dict[str, dict[str, None]] = {}
        for entry in self.findings.at(profile):
            for at, key in entry.plan.teachers.items() if entry.plan else ():
                name = at if at in chosen.teachers else at.partition("@")[0]
                if name not in keys or key in entry.records:
                    keys[name] = key, entry
            for result in entry.cells:
                for slug in filter(None, result.cell.teacher.split("+")):
                    students.setdefault(slug, {})[names.models.get(result.cell.student, result.cell.student)] = None
        lines = []
        for name, mapping in chosen.teachers.items():
            if name not in keys:
                continue
            slug, (key, entry) = name.partition("@")[0], keys[name]
            assert entry.plan is not None
            spec, record = entry.plan.runs[key].spec, entry.records.get(key)
            known, origin = manifest.get(name), manifest.get(slug)
            values = record.metrics if record is not None and record.status == "done" else {}
            metric = next((each for each in ("top1", *values) if each in values), "")
            identity = known or origin
            weights = [origin.weights, origin.licence] if origin else []
            hashed = identity.sha256 or (origin.sha256 if origin else None) if identity else None
            lines.append(
                {
                    "name": name,
                    "meant": names.models.get(slug, slug),
                    "used": spec.student.name,
                    "parameters": names.parameters.get(spec.student.name, spec.student.params_m or math.nan),
                    "made": how_made(mapping),
                    "published": known.published if known and known.published is not None else math.nan,
                    "source": known.source if known and known.source else "",
                    "value": values.get(metric, math.nan),
                    "metric": f"{metric_name(metric)}{' of a linear probe' if mapping.probe else ''}" if metric else "",
                    "weights": "; ".join(filter(None, [*weights, hashed])) or "made here alone",
                    "students": ", ".join(students.get(slug, {})),
                }
            )
        return lines

    def figures(self) -> Page:
        """Pictures beside the sentences that papers write under theirs."""
        found = []
        for entry in self.findings.entries:
            shown = pictures(entry, self.folder)
            self.pictures += [picture["file"] for picture in shown if picture["file"]]
            if entry.kind == "figure" or shown:
                claims = [
                    self.claim_line(each) for each in self.claims_on(entry) if isinstance(each.claim.statistic, Value)
                ]
                found.append(
                    {"name": entry.name, "page": entry.page, "title": entry.title, "claims": claims, "pictures": shown}
                )
        return Page("figures.html", "figures.html", {"figures": found, "profile": self.profiles[self.findings.main]})

    def comparison(self, against: Path | None) -> Page:
        """Two sets of results; against: as for `compared_sets`."""
        facts = compared_sets(self.findings, against)
        return Page("compare.html", "compare.html", {**facts, "profile": self.profiles[self.findings.main]})

    def about(self) -> Page:
        """The glossary and the statistics."""
        seen: set[str] = {result.verdict for entry in self.findings.entries for result in entry.cells}
        seen |= {result.status for entry in self.findings.entries for result in entry.cells}
        seen |= {each.verdict for each in self.checked[0]}
        seen |= {record.status for entry in self.findings.entries for record in entry.records.values()}
        shown = [(name, word.meaning) for name, word in words.WORDS.items() if name in seen]
        facts = {"profiles": list(self.profiles.values()), "words": shown, "smallest": SMALLEST_GAIN}
        return Page("about.html", "about.html", facts)


# -- facts that several pages show -------------------------------------------------------------------------------------


def profile_facts(name: str) -> dict[str, Any]:
    """A profile as its banner names it."""
    chosen = schema.load_profile(name)
    standing_in = standins.of_profile(chosen)
    return {"name": name, "title": chosen.title, "by_value": chosen.by_value, "standing_in": standing_in}


def once(entries: Iterable[Entry]) -> list[CellResult]:
    """All cells, those that several tables print once: the same runs, metric and baseline."""
    found: dict[Any, CellResult] = {}
    for entry in entries:
        runs = {result.cell.id: result.cell.runs for result in entry.cells}
        for result in entry.cells:
            cell = result.cell
            base = runs.get(cell.baseline) if cell.baseline else None
            shared = (cell.metric, cell.runs, base) if cell.runs else (entry.page, *cell.id, cell.metric)
            if shared not in found or not found[shared].verdict:
                found[shared] = result
    return list(found.values())


def anchor(cell: Cell) -> str:
    """The id of a cell in its row; after the row's name it is the cell's in its table."""
    return f"{cell.method}.{cell.variant}.{cell.metric}"


def pair(cell: Cell, entry: Entry | None = None) -> str:
    """Teacher and student as printed; with what stands in for them if their table is given."""
    labels = list(cell.row_label)
    if entry is not None and entry.plan is not None:
        for i, slugs in enumerate((cell.teacher.split("+"), [cell.student])):
            for name, mark in (entry.plan.marks[slug] for slug in slugs if slug in entry.plan.marks):
                labels[i] = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"{name} ({mark})", labels[i], count=1)
    return " → ".join(filter(None, labels)) or cell.row


def models(entry: Entry) -> str:
    """What stands in for the models of a table."""
    assert entry.plan is not None
    marks = dict.fromkeys(entry.plan.marks.values())
    return f"Models here: {'; '.join(f'{name} → {mark}' for name, mark in marks)}." if marks else ""


def own_runs(entry: Entry) -> str:
    """How many runs are of this machine, where some are."""
    if not entry.own:
        return ""
    return (
        f"{len(entry.own)} of the {len(entry.records)} runs were made on this machine, and take precedence over "
        "committed records."
    )


def going_on(entry: Entry) -> str:
    """How many runs are under way."""
    count = len(entry.under_way)
    return f"{count} run{' has' if count == 1 else 's have'} begun and not ended yet." if count else ""


def axis(results: Sequence[CellResult]) -> float:
    """The half-width of an axis for gains: all intervals, means and published gains lie on it, unless a few are so far
    out that the others could not be told apart; these end at its edge in an arrow."""
    centres = [abs(v) for r in results for v in (r.shown_gain.mean, r.published_gain) if not math.isnan(v)]
    ends = [abs(v) for r in results for v in (r.drawn_gain.low, r.drawn_gain.high) if not math.isnan(v)]
    most = max([*ends, *centres], default=0.0)
    if len(centres) > 3:
        most = min(most, FARTHEST * median(centres))
    return svg.symmetric([most], least=1e-3 if results and results[0].cell.metric in LOSSES else 1.0)


def digits_of(metric: str) -> int:
    """Decimals in tables: one of percent, three of losses; a page shows one more where it gives details."""
    return 3 if metric in LOSSES else 1


def interval_text(estimate: Estimate, unit: str = "", digits: int = 1, *, signed: bool = True) -> str:
    """`+3.9 points [2.6, 5.1]`."""
    text = f"{number(estimate.mean, digits, signed=signed)} {unit}".rstrip()
    estimate = estimate.shown
    if math.isnan(estimate.low):
        return text + (f" (no interval: {estimate.reason})" if estimate.reason else "")
    return f"{text} [{number(estimate.low, digits, signed=signed)}, {number(estimate.high, digits, signed=signed)}]"


def cell_view(entry: Entry, result: CellResult, limit: float, href: str) -> SimpleNamespace:
    """A cell as the lines of tables show it."""
    cell, digits = result.cell, digits_of(result.cell.metric)
    plain = not result.verdict and result.status == "done"
    baseline = plain and cell.baseline is None
    doubt = cell.published.confidence if cell.published and cell.published.confidence != "high" else ""
    return SimpleNamespace(
        id="",
        place="",
        several=False,
        own=any(key in entry.own for key in cell.runs),
        pair=pair(cell),
        label=cell.label,
        added=cell.added,
        metric=metric_name(cell.metric),
        digits=digits,
        published=cell.published.value if cell.published else math.nan,
        doubt=f"{doubt} confidence" if doubt else "",
        measured=result.measured,
        gain=result.shown_gain,
        href=href,
        tip=tip(result, digits + 1),
        strip=""
        if not result.gain.n
        else svg.strip(
            result.drawn_gain.mean,
            result.drawn_gain.low,
            result.drawn_gain.high,
            limit=limit,
            tone=words.word(result.verdict).tone,
            published=result.published_gain,
            seeds=list(result.gains.values()),
            label=f"gain {interval_text(result.shown_gain, '', digits)}"
            + (
                ""
                if math.isnan(result.published_gain)
                else f", published {number(result.published_gain, 1, signed=True)}"
            ),
        ),
        plain=plain,
        word=result.verdict or ("baseline" if baseline else "not judged" if plain else result.status),
        seeds=result.measured.n,
        asked=len(cell.runs),
    )


def published_gain(result: CellResult) -> str:
    """`, published +3.4`, or nothing."""
    gain = result.published_gain
    return "" if math.isnan(gain) else f", published {number(gain, 1, signed=True)}"


def tip(result: CellResult, digits: int) -> str:
    """What hover and focus show of a cell."""
    parts = []
    if result.measured.n:
        seeds = f"{result.measured.n} seed{'s' if result.measured.n > 1 else ''}"
        parts.append(f"Measured {interval_text(result.measured, '', digits, signed=False)}, {seeds}")
    else:
        parts.append(result.status)
    if result.gain.n:
        parts.append(f"gain {interval_text(result.shown_gain, '', digits)}")
    if not math.isnan(result.published_gain):
        parts.append(f"published gain {number(result.published_gain, 2, signed=True)}")
    if result.cell.published:
        parts.append(f"published value: {result.cell.published.source}")
    return "; ".join([*parts, *result.marks, *filter(None, [result.source])]) + "."


def ranks(entry: Entry) -> dict[str, Any]:
    """Mean ranks of a table's methods, the best first, where there are methods and pairs enough."""
    nothing: dict[str, Any] = {"ranks": [], "rank_pairs": 0, "unranked": ""}
    if entry.plan is None or entry.comparison is None or not is_ranked(entry.plan):
        return nothing
    found = ranking(entry.plan, entry.comparison)
    best_first = sorted(found.ranks.items(), key=lambda item: item[1].mean)
    return {"ranks": best_first, "rank_pairs": len(found.pairs), "unranked": listed(found.left_out, most=20)}


def cost_lines(entry: Entry) -> list[dict[str, Any]]:
    """What each method of a table costs; nothing where no cost was kept."""
    frame = entry.costs
    if frame is None or entry.plan is None or len(methods_of(entry.plan)) < 2 or frame["step_ms"].isna().all():
        return []
    labels = {(result.cell.method, result.cell.variant): heading(result.cell) for result in entry.cells}
    lines = []
    for (method, variant), label in labels.items():
        rows = frame[(frame["method"] == method) & (frame["variant"] == variant)]
        line: dict[str, Any] = {"method": method, "variant": variant, "label": label}
        columns = {"step": "step_ratio", "extra": "extra_params_m", "peak": "peak_memory_mib", "cpu": "cpu_s"}
        line |= {name: float(rows[column].median()) for name, column in columns.items()}
        lines.append({**line, "pairs": int((rows["n_seeds"] > 0).sum())})
    return lines


def refusals(results: Sequence[CellResult]) -> list[dict[str, str]]:
    """Reasons why cells were not run, each with its pairs."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        if not result.measured.n and result.status not in ("done", "quoted", "not run"):
            for reason in result.reasons:
                found.setdefault(reason, {})[pair(result.cell)] = None
    return [{"reason": reason, "pairs": ", ".join(pairs)} for reason, pairs in found.items()]


def about(method: str) -> str:
    """What a method compares: the first sentence of its file."""
    path = METHOD_FILES / f"{method}.py"
    if method not in METHODS or not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def subject(claim: Any) -> str:
    """The table or figure that a claim is about."""
    return claim.statistic.figure if isinstance(claim.statistic, Value) else claim.statistic.table


# -- one cell in words -------------------------------------------------------------------------------------------------


def row_section(
    entry: Entry, group: Sequence[CellResult], spec: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    """A method in a row: its metrics in words and dots, then the runs that they share.

    Args:
        entry: the table.
        group: cells of the method with its variant, one per metric.
        spec: of its first run, flat; empty where it has none.
        common: the part of it that all runs of the page share.
    """
    first, plan = group[0], entry.plan
    assert plan is not None
    base = next((r for r in entry.cells if r.cell.id == first.cell.baseline), None)
    section: dict[str, Any] = {
        "id": ".".join(filter(None, (first.cell.method, first.cell.variant))),
        "label": first.cell.label,
        "added": first.cell.added,
        "metrics": [metric_part(entry, result) for result in group],
        "reasons": [*first.reasons, *first.marks],
        "base": pair_or_label(first, base),
        "runs": [],
        "where": "",
    }
    keys = [key for key in first.cell.runs if key in plan.runs]
    if not keys:
        return section
    shown = list(dict.fromkeys(result.cell.metric for result in group))
    lines = [run_line(entry, seed, key, shown) for seed, key in zip(plan.seeds, keys, strict=False)]
    theirs = flat_spec(entry, base) if base is not None else {}
    return section | {
        "runs": lines,
        "run_metrics": [metric_name(metric) for metric in shown],
        "needs": [needed(entry, key) for key in plan.runs[keys[0]].needs],
        "charts": charts(entry, keys),
        "differences": different(spec, theirs) if theirs else [],
        "where": lines[0]["where"] if len({line["where"] for line in lines}) == 1 else "",
        "costs": any(line["cpu"] for line in lines),
        "commits": any(line["commit"] for line in lines),
        "spec": listing({name: value for name, value in spec.items() if name not in common}),
    }


def pair_or_label(first: CellResult, base: CellResult | None) -> str:
    """The baseline's name: its method, or its row where that is another one."""
    if base is None:
        return ""
    return base.cell.label if base.cell.row == first.cell.row else pair(base.cell)


def metric_part(entry: Entry, result: CellResult) -> dict[str, Any]:
    """A cell in words, and its seeds beside those of its baseline."""
    base = next(
        (r for r in entry.cells if r.cell.id == result.cell.baseline and r.cell.metric == result.cell.metric), None
    )
    dots: Any = ""
    if result.values:
        names = (result.cell.label, pair_or_label(result, base))
        dots = svg.dots(result.values, base.values if base else {}, names, digits_of(result.cell.metric))
    return {
        "id": anchor(result.cell),
        "name": metric_name(result.cell.metric),
        "sentences": in_words(result, base),
        "dots": dots,
    }


def in_words(result: CellResult, base: CellResult | None) -> list[str]:
    """How the cell's value, gain and verdict come about."""
    cell, digits = result.cell, digits_of(result.cell.metric) + 1
    unit = "" if cell.metric in LOSSES else "points"
    found = []
    if cell.published:
        found.append(f"Published: {number(cell.published.value, 2)} ({cell.published.source}).")
    if not result.measured.n:
        return [*found, f"Measured: nothing ({result.status})."]
    seeds = f"{result.measured.n} seed{'s' if result.measured.n > 1 else ''}"
    found.append(f"Measured: {interval_text(result.measured, '', digits, signed=False)}, mean of {seeds}.")
    if result.gain.n and base is not None:
        found.append(
            f"Gain: {cell.label} minus {pair_or_label(result, base)}, seed by seed, then the mean over "
            f"{result.gain.n} seed{'s' if result.gain.n > 1 else ''}: {interval_text(result.shown_gain, unit, digits)}."
        )
        found += by_whom(result, digits)
    if result.judged.cannot_tell and result.verdict != CANNOT_TELL:
        found.append(f"This set-up could not show an effect: {result.judged.cannot_tell.rstrip('.')}.")
    if result.verdict == CANNOT_TELL:
        found.append(f"Cannot tell here: {result.judged.cannot_tell.rstrip('.')}.")
    elif result.verdict:
        meaning = words.word(result.verdict).meaning
        found.append(
            f"{place_of(result)}: {result.verdict}"
            + (f", that is, {meaning}." if meaning else ".")
            + more_seeds(result)
        )
    elif cell.baseline is None:
        found.append("A baseline: it has no gain and no verdict.")
    elif cell.added:
        found.append("Not in the paper, so there is nothing to compare it with.")
    elif math.isnan(result.published_gain):
        found.append("No gain is published for it, so it has no verdict.")
    elif abs(result.published_gain) < SMALLEST_GAIN:
        found.append(f"The published gain is below {SMALLEST_GAIN} points, so its direction is not judged.")
    return found


def by_whom(result: CellResult, digits: int) -> list[str]:
    """Whose spread the interval of a gain uses, beside the plain interval where that is another."""
    if result.judged.by != "moderated t" or math.isnan(result.gain.low):
        return []
    plain = f"[{number(result.gain.low, digits, signed=True)}, {number(result.gain.high, digits, signed=True)}]"
    plain = result.gain.span(digits, "+") or plain
    return [f"Its spread is shared with the table's other gains (moderated); by its own seeds alone: {plain}."]


def place_of(result: CellResult) -> str:
    """Where the gain's interval lies, and where the published gain does."""
    gain = result.shown_gain
    if math.isnan(gain.low):
        text = f"There is no interval ({gain.reason})" if gain.reason else "There is no interval"
    elif gain.few:
        text = f"The interval is not shown: {gain.shown.reason}"
    else:
        where = {1: "lies wholly above 0", -1: "lies wholly below 0", 0: "includes 0"}[gain.sign]
        text = f"The interval [{number(gain.low, signed=True)}, {number(gain.high, signed=True)}] {where}"
    if math.isnan(result.published_gain):
        return text
    return f"{text}; the published gain is {number(result.published_gain, 2, signed=True)}"


def more_seeds(result: CellResult) -> str:
    """How many more seeds would put the interval on one side of 0 if mean and spread stayed; "" if it is there."""
    gain, spread = result.shown_gain, result.judged.spread
    if gain.n < 2 or math.isnan(gain.low) or gain.few or gain.sign or not gain.mean or spread is None:
        return ""
    level = (1 + LEVEL) / 2
    for more in range(1, MOST_SEEDS + 1):
        half = distributions.t.ppf(level, spread.df + more) * math.sqrt(spread.variance / (gain.n + more))
        if half < abs(gain.mean):
            return f" With this mean and spread about {more} more seed{'s' if more > 1 else ''} would exclude 0."
    return f" With this mean and spread not even {MOST_SEEDS} more seeds would exclude 0."


def run_line(entry: Entry, seed: int, key: str, metrics: Sequence[str]) -> dict[str, Any]:
    """A run in a line."""
    record = entry.records.get(key)
    if record is None:
        epoch = entry.under_way.get(key)
        status = "not run" if epoch is None else "under way"
        reason = "" if epoch is None else f"epoch {epoch}"
        values = ["" for _ in metrics]
        return {"seed": seed, "key": key, "status": status, "reason": reason, "metrics": values} | dict.fromkeys(
            ("cpu", "commit", "where"), ""
        )
    numbers = (record.metrics.get(metric, math.nan) for metric in metrics)
    dirty = " with changes" if record.environment.get("dirty") else ""
    commit = str(record.environment.get("commit") or "")[:7]
    return {
        "seed": seed,
        "key": key,
        "status": record.status,
        "reason": record.reason or "",
        "metrics": [number(value, digits_of(metric) + 1) for value, metric in zip(numbers, metrics, strict=True)],
        "cpu": number(record.cost.get("cpu_s", math.nan)),
        "commit": commit + dirty if commit else "",
        "where": record.committed or f"{HERE} {ended(record)}",
    }


def ended(record: Record) -> str:
    """The day on which a run of this machine ended."""
    return datetime.fromtimestamp(record.finished, UTC).date().isoformat()


def needed(entry: Entry, key: str) -> str:
    """A run that others need."""
    assert entry.plan is not None
    record = entry.records.get(key)
    label = entry.plan.runs[key].label or key
    if record is None:
        return f"{label} ({key}, not run)"
    values = ", ".join(f"{metric_name(name)} {number(value, 2)}" for name, value in sorted(record.metrics.items())[:3])
    return f"{label} ({key}, {', '.join(filter(None, [record.status, values]))})"


def charts(entry: Entry, keys: Sequence[str]) -> list[Markup]:
    """The curves of a cell's runs, also of those under way: whole losses and accuracies, not the terms of a loss."""
    assert entry.plan is not None
    series: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for seed, key in zip(entry.plan.seeds, keys, strict=False):
        for line in entry.curves.get(key, ()):
            for name, value in line.items():
                if "/" in name or name in ("epoch", "seconds", "lr") or not isinstance(value, int | float):
                    continue
                if math.isfinite(value):
                    series.setdefault(name, {}).setdefault(seed, []).append((float(line["epoch"]), float(value)))
    first = sorted(series, key=lambda name: (name != "loss", name != "val_top1", name))[:CHARTS]
    return [svg.curves(name.replace("_", " "), series[name]) for name in first]


def flat(document: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A document of documents as one of dotted names."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def flow(value: Any) -> str:
    """A document in one line, as YAML writes it but for quotes; names in order."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {flow(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def flat_spec(entry: Entry, result: CellResult) -> dict[str, Any]:
    """The specification of a cell's first run, its seed aside, with dotted names; empty where there is none."""
    assert entry.plan is not None
    key = next((key for key in result.cell.runs if key in entry.plan.runs), None)
    if key is None:
        return {}
    return {name: value for name, value in flat(asdict(entry.plan.runs[key].spec)).items() if name != "seed"}


def common_part(specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several flat specifications have in common; nothing of one alone."""
    if len(specs) < 2:
        return {}
    return {name: v for name, v in specs[0].items() if all(name in spec and spec[name] == v for spec in specs[1:])}


def listing(spec: Mapping[str, Any]) -> str:
    """A flat specification, a line for each group of names that have their beginning in common."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in spec.items():
        group, _, field = name.rpartition(".")
        groups.setdefault(group, {})[field] = value
    return "\n".join(f"{group + ': ' if group else ''}{flow(fields)[1:-1]}" for group, fields in groups.items())


def different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Names whose values differ, with both values; of a teacher that only one has, its name stands for all of it."""

    def shown(document: Mapping[str, Any], name: str) -> str:
        return flow(document[name]) if name in document else "–"

    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    details = re.compile(r"teachers\.[^.]+\.model\.(?!name$)")
    return [(name, shown(ours, name), shown(theirs, name)) for name in names if not details.match(name)]


def environments(records: Iterable[Record]) -> list[str]:
    """Each machine and set of library versions that runs ran with, once."""
    found: dict[str, None] = {}
    for record in records:
        facts = record.environment
        versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.get("versions", {}).items()))
        found[f"{'; '.join(filter(None, [str(facts.get('device', '')), processor(facts), versions]))}."] = None
    return list(found)
