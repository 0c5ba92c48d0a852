"""Claims: sentences of the papers, each with a statistic of measured values, a test, and a verdict per profile.

Values come from the records of finished runs, else from the committed reference of the profile, and from the numbers
that figures left as measures.json; nothing is executed. An interval is Student's t over seeds, paired by seed; where a
figure's numbers have no second seed it is the one over images. A claim holds if the 95 % interval lies wholly where the
claim says, fails if it lies wholly outside, and is undecided between; without the values it is untested.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from experiments import places, regression, schema, standins, stats
from experiments.regression import MeasuredCell
from experiments.reproduce import load_records, planned
from experiments.schema import Column, Document, Slug, Table
from experiments.stats import Estimate
from experiments.store import Store
from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.registry import nearest

FOLDER = "claims"
MEASURES = "measures.json"  # what a figure's drawing leaves for claims
VERDICTS = ("holds", "fails", "undecided", "untested")
Id = tuple[str, str, str]  # method, variant, metric
T = TypeVar("T")


# -- claims as data ------------------------------------------------------------------------------------------------


class Difference(Document):
    """A column of a table minus another one of the same row, in points, averaged over rows for each seed.

    column, over: `method/variant`, `method`, or a variant's name alone where it is the only one. No column: the only
        one that has the metric. Of several in `over` the test must hold for each, and the difference nearest to not
        holding is shown; none: the value itself.
    rows: None: all rows that have the columns. against: rows whose value (of the difference, where there is one: do
        gains grow?) is subtracted from the mean over `rows`; the test must hold for each, or, if pooled, for their
        mean. against_column: their column, where it is another one.
    metric: None: the table's first.
    """

    kind: Literal["difference"]
    table: Slug
    column: str | None = None
    over: str | tuple[str, ...] = ()
    rows: tuple[Slug, ...] | None = None
    against: tuple[Slug, ...] = ()
    against_column: str | None = None
    pooled: bool = False
    metric: str | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """Columns that are subtracted."""
        return (self.over,) if isinstance(self.over, str) else self.over

    @property
    def comparisons(self) -> list[tuple[str, tuple[str, ...]]]:
        """Every (other column, rows against which) that must hold; an empty one where there is none."""
        groups = [self.against] if self.pooled or not self.against else [(row,) for row in self.against]
        return [(over, group) for over in self.others or ("",) for group in groups]


class Correlation(Document):
    """Spearman's rank correlation, over rows and for each seed, of a column's difference with a number of the row.

    order: row -> the number (a teacher's parameters, say), at least three. column, over, metric: as in `Difference`.
    """

    kind: Literal["correlation"]
    table: Slug
    column: str | None = None
    over: str | None = None
    order: dict[Slug, float]
    metric: str | None = None


class Value(Document):
    """A number that a figure measured, minus another number of it or a constant.

    value, minus: names in the figure's measures.json, such as `distance_spread/MAE/late`.
    """

    kind: Literal["value"]
    figure: Slug
    value: str
    minus: str | float = 0.0


class Expect(Document):
    """Where the statistic must lie: above or below a number, or at most so far from zero. One of them."""

    above: float | None = None
    below: float | None = None
    within: float | None = None

    @model_validator(mode="after")
    def one(self) -> "Expect":
        if sum(value is not None for value in (self.above, self.below, self.within)) != 1:
            raise ValueError("give one of above, below and within.")
        if self.within is not None and self.within <= 0:
            raise ValueError("within must be above 0.")
        return self

    @property
    def text(self) -> str:
        """`> 0`, `< 0` or `± 0.5`."""
        if self.within is not None:
            return f"± {self.within:g}"
        return f"> {self.above:g}" if self.above is not None else f"< {self.below:g}"

    def room(self, low: float, high: float) -> tuple[float, float]:
        """How far inside (positive) or outside an interval's worst and best point lie."""
        if self.within is not None:
            nearest_zero = max(low, -high, 0.0)
            return self.within - max(abs(low), abs(high)), self.within - nearest_zero
        if self.above is not None:
            return low - self.above, high - self.above
        assert self.below is not None
        return self.below - high, self.below - low

    def verdict(self, estimate: Estimate) -> str:
        """The verdict on an estimate."""
        if estimate.n == 0:
            return "untested"
        if math.isnan(estimate.low):
            return "undecided"
        worst, best = self.room(estimate.low, estimate.high)
        return "holds" if worst > 0 else "fails" if best < 0 else "undecided"


class Claim(Document):
    """One sentence of a paper, in our words, and how it is tested."""

    id: Slug
    sentence: str
    source: str
    statistic: Annotated[Difference | Correlation | Value, Field(discriminator="kind")]
    expect: Expect = Expect(above=0.0)
    note: str | None = None


class Claims(Document):
    """All claims of one paper. awaited: tables that claims name and that no file describes yet; they are untested."""

    paper: Slug
    awaited: tuple[Slug, ...] = ()
    claims: tuple[Claim, ...]


def papers() -> list[str]:
    """Papers that have claims."""
    return schema.names(FOLDER)


@cache
def load_claims(paper: str) -> Claims:
    """experiments/claims/<paper>.yaml, with every name in it checked.

    Raises:
        UserError: a mistake, in one sentence with its place and the nearest name that would be right.
    """
    if paper not in papers():
        raise UserError(f"Unknown paper '{paper}'.{nearest(paper, papers())} Known: {', '.join(papers())}.")
    try:
        found = TypeAdapter(Claims).validate_python(schema.plain(schema.document(FOLDER, paper)))
    except ValidationError as error:
        first = error.errors()[0]
        kinds = ("difference", "correlation", "value")  # tags of the union, which are no keys of the file
        loc = tuple(
            part for i, part in enumerate(first["loc"]) if not (part in kinds and first["loc"][i - 1] == "statistic")
        )
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown key '{loc[-1]}'.{nearest(str(loc[-1]), known_keys())}"
        raise schema.complaint(FOLDER, paper, loc, message) from None
    if found.paper != paper:
        raise UserError(f"{schema.where(FOLDER, paper)}: paper is '{found.paper}', but the file is named '{paper}'.")
    ids = [claim.id for claim in found.claims]
    for i, claim in enumerate(found.claims):
        if claim.id in ids[:i]:
            raise schema.complaint(FOLDER, paper, ("claims", i, "id"), f"claim '{claim.id}' appears twice.")
        check_names(found, i, claim)
    return found


def known_keys() -> list[str]:
    """Every key that a claim can have."""
    kinds: tuple[type[Document], ...] = (Claims, Claim, Difference, Correlation, Value, Expect)
    return sorted({field for kind in kinds for field in kind.model_fields})


def check_names(claims: Claims, index: int, claim: Claim) -> None:
    """Refuse tables, rows, columns and metrics that lead nowhere; of numbers in figures only the figure is known."""
    statistic, at = claim.statistic, ("claims", index, "statistic")

    def checked(key: str, kind: str, name: str, known: Iterable[str]) -> None:
        schema.checked(FOLDER, claims.paper, (*at, key), kind, name, list(known))

    if isinstance(statistic, Value):
        checked("figure", "figure", statistic.figure, [*schema.table_ids(), *claims.awaited])
        return
    checked("table", "table", statistic.table, [*schema.table_ids(), *claims.awaited])
    if statistic.table not in schema.table_ids():
        return
    table: Table = schema.read("table", "tables", statistic.table, Table)
    rows = [row.row for row in table.rows]
    metrics = {metric for column in columns_of(table) for metric in column.metrics or ()}
    metric = statistic.metric or table.metrics[0]
    checked("metric", f"metric of '{table.id}'", metric, sorted(metrics))
    uses: list[tuple[str, str | None, Sequence[str | None]]]  # key, column, rows that must have it
    if isinstance(statistic, Correlation):
        ours: Sequence[str | None] = tuple(statistic.order)
        uses = [("column", statistic.column, ours), *([("over", statistic.over, ours)] if statistic.over else [])]
        named: Mapping[str, Sequence[str]] = {"order": tuple(statistic.order)}
        if len(statistic.order) < 3:
            raise schema.complaint(FOLDER, claims.paper, (*at, "order"), "an order takes at least three rows.")
    else:
        ours = statistic.rows or (None,)
        uses = [("column", statistic.column, ours), *(("over", over, ours) for over in statistic.others)]
        if statistic.against_column:
            uses.append(("against_column", statistic.against_column, statistic.against))
        named = {"rows": statistic.rows or (), "against": statistic.against}
    for key, names in named.items():
        for name in names:
            checked(key, f"row of '{table.id}'", name, rows)
    for key, column, needed in uses:
        for row in needed:
            columns = columns_of(table, row)
            if resolve(column, columns, metric) is None:
                known = [column_name(each) for each in columns]
                where = f" in row '{row}'" if row else ""
                what = f"'{column}' names" if column else f"left out, with metric '{metric}', it means"
                raise schema.complaint(
                    FOLDER,
                    claims.paper,
                    (*at, key),
                    f"{what} no column, or several, of '{table.id}'{where}.{nearest(column or '', known)}",
                )


def columns_of(table: Table, row: str | None = None) -> list[Column]:
    """Columns of one row, or of all, each with the metrics that it has there."""
    return [
        column.model_copy(update={"metrics": column.metrics or each.metrics or table.metrics})
        for each in table.rows
        if row in (None, each.row)
        for column in (table.columns if each.columns is None else each.columns)
    ]


def column_name(column: Column) -> str:
    """`method/variant`, or the method alone."""
    return f"{column.method}/{column.variant}".removesuffix("/")


def resolve(name: str | None, columns: Sequence[Column], metric: str) -> tuple[str, str] | None:
    """(method, variant) that a name stands for among columns; no name: the only one with the metric.

    None where there is none, or several.
    """
    ids = dict.fromkeys((each.method, each.variant) for each in columns if name or metric in (each.metrics or ()))
    exact = [each for each in ids if name in (None, "/".join(filter(None, each)))]
    found = exact or [each for each in ids if each[1] == name]
    return found[0] if len(found) == 1 else None


# -- what was measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """Values of a table at a profile: row -> (method, variant, metric) -> seed -> value; and where they were read."""

    rows: Mapping[str, Mapping[Id, Mapping[int, float]]]
    basis: str


class Profile:
    """What exists at one profile; every table and figure is read once.

    Args:
        name: of the profile.
        store: records of runs.
        results, references: folders, as in `places`.
    """

    def __init__(self, name: str, store: Store, results: Path, references: Path):
        schema.load_profile(name)
        self.name, self.store, self.results, self.references = name, store, results, references / name
        self.tables: dict[str, Measured] = {}
        self.figures: dict[str, tuple[dict[str, Any], str]] = {}

    def table(self, name: str) -> Measured:
        """Of the records and the reference what has more values; of equal ones the records."""
        if name not in self.tables:
            found = [Measured({}, "")]
            path = self.references / f"{name}.json"
            if path.is_file():
                found.append(Measured(by_row(regression.load_reference(path).cells), "reference"))
            if self.store.root.is_dir() and name in schema.table_ids():
                plan = planned(name, self.name)
                records = load_records(plan, self.store)
                found.append(Measured(by_row(regression.measured_values(plan, records).cells), "runs"))
            self.tables[name] = max(reversed(found), key=lambda each: count(each.rows))
        return self.tables[name]

    def figure(self, name: str) -> tuple[dict[str, Any], str]:
        """Numbers of a figure and where they were read; a figure that was drawn at another profile does not count."""
        if name not in self.figures:
            self.figures[name] = {}, ""
            drawn, kept = self.results / name / MEASURES, self.references / f"{name}.{MEASURES}"
            for path, basis in ((drawn, "figure"), (kept, "reference")):
                if path.is_file() and (document := read_measures(path))["profile"] == self.name:
                    self.figures[name] = document["values"], basis
                    break
        return self.figures[name]


def read_measures(path: Path) -> dict[str, Any]:
    """A figure's numbers.

    Raises:
        UserError: the file is not what a drawing writes.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        assert isinstance(document["profile"], str)
        for value in document["values"].values():
            assert isinstance(value["value"], float | int | None)
        return document
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError):
        raise UserError(f"{path} is not a figure's numbers; delete it and run its figure again.") from None


def by_row(cells: Iterable[MeasuredCell]) -> dict[str, dict[Id, dict[int, float]]]:
    """Values by row, column and seed."""
    rows: dict[str, dict[Id, dict[int, float]]] = {}
    for cell in cells:
        if values := cell.values():
            rows.setdefault(cell.row, {})[cell.method, cell.variant, cell.metric] = values
    return rows


def count(rows: Mapping[str, Mapping[Id, Mapping[int, float]]]) -> int:
    """How many values there are."""
    return sum(len(values) for columns in rows.values() for values in columns.values())


# -- the check -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A claim at a profile.

    over: what the interval is over, `seeds` or `images`. rows: that entered. basis: `runs`, `reference` (committed
    values) or `figure`. missing: how many other rows the claim is about, without values. reason: why it is untested
    or has no interval.
    """

    paper: str
    claim: Claim
    profile: str
    estimate: Estimate
    verdict: str
    over: str = "seeds"
    rows: tuple[str, ...] = ()
    basis: str = ""
    missing: int = 0
    reason: str = ""


def check(claim: Claim, paper: str, profile: Profile) -> Checked:
    """One claim at one profile, from what exists."""
    statistic = claim.statistic
    if isinstance(statistic, Value):
        return check_value(claim, statistic, paper, profile)
    measured = profile.table(statistic.table)
    reason = f"nothing of {statistic.table} is measured"
    estimates: list[tuple[Estimate, tuple[str, ...]]] = []
    if measured.rows:
        table: Table = schema.read("table", "tables", statistic.table, Table)
        metric = statistic.metric or table.metrics[0]
        if isinstance(statistic, Correlation):
            estimates = [correlation(statistic, table, metric, measured)]
        else:
            pairs = statistic.comparisons
            estimates = [difference(statistic, over, group, table, metric, measured) for over, group in pairs]
        reason = f"{statistic.table} lacks values that this needs"
    empty = next((estimate for estimate, _ in estimates if not estimate.n), None)
    if not estimates or empty:
        return Checked(
            paper=paper, claim=claim, profile=profile.name, estimate=stats.NOTHING, verdict="untested", reason=reason
        )
    verdicts = [claim.expect.verdict(estimate) for estimate, _ in estimates]
    worst = next(v for v in ("fails", "undecided", "holds") if v in verdicts)
    deciding = [each for each, verdict in zip(estimates, verdicts, strict=True) if verdict == worst]
    shown, rows = min(deciding, key=lambda each: claim.expect.room(each[0].mean, each[0].mean)[0])
    missing = 0
    if isinstance(statistic, Difference) and statistic.rows is None:
        missing = unmeasured(statistic, table, metric, rows)
    return Checked(
        paper=paper,
        claim=claim,
        profile=profile.name,
        estimate=shown,
        verdict=worst,
        rows=rows,
        basis=measured.basis,
        missing=missing,
        reason=shown.reason or "",
    )


def unmeasured(statistic: Difference, table: Table, metric: str, rows: Sequence[str]) -> int:
    """How many rows of a table have the columns that are compared and are not in an estimate."""
    overs = [over for over, _ in statistic.comparisons]
    count = 0
    for row in {each.row for each in table.rows} - {*rows}:
        columns = columns_of(table, row)
        wanted = [resolve(name, columns, metric) for name in (statistic.column, *filter(None, overs))]
        count += None not in wanted and len({*wanted}) == len(wanted)
    return count


def by_seed(
    table: Table, measured: Measured, rows: Sequence[str] | None, column: str | None, over: str, metric: str
) -> dict[str, dict[int, float]]:
    """Difference of two columns (or, over nothing, the value of one) by row and seed, where both were measured."""
    found = {}
    for row in [each.row for each in table.rows] if rows is None else rows:
        columns, values = columns_of(table, row), measured.rows.get(row, {})
        first, second = resolve(column, columns, metric), resolve(over, columns, metric) if over else None
        if first is None or (over and second is None) or (over and first == second):
            continue
        a = values.get((*first, metric), {})
        b = dict.fromkeys(a, 0.0) if second is None else values.get((*second, metric), {})
        if differences := {seed: a[seed] - b[seed] for seed in a if seed in b}:
            found[row] = differences
    return found


def difference(
    statistic: Difference, over: str, against: tuple[str, ...], table: Table, metric: str, measured: Measured
) -> tuple[Estimate, tuple[str, ...]]:
    """The estimate of one comparison, and the rows in it."""
    ours = by_seed(table, measured, statistic.rows, statistic.column, over, metric)
    pooled = stats.pooled_gain(ours)
    if statistic.rows is not None and set(pooled.rows) != set(statistic.rows):
        return stats.NOTHING, ()
    if not against:
        return pooled.estimate, pooled.rows
    theirs = by_seed(table, measured, against, statistic.against_column or statistic.column, over, metric)
    if set(theirs) != set(against):
        return stats.NOTHING, ()
    kept = {row: ours[row] for row in pooled.rows}
    return stats.paired_gain(mean_by_seed(kept), mean_by_seed(theirs)), (*pooled.rows, *against)


def mean_by_seed(rows: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Mean over rows, at the seeds that all of them have."""
    seeds = set.intersection(*(set(values) for values in rows.values())) if rows else set()
    return {seed: sum(values[seed] for values in rows.values()) / len(rows) for seed in sorted(seeds)}


def correlation(
    statistic: Correlation, table: Table, metric: str, measured: Measured
) -> tuple[Estimate, tuple[str, ...]]:
    """Mean over seeds of the rank correlation over rows, and the rows."""
    from scipy.stats import spearmanr

    rows = by_seed(table, measured, list(statistic.order), statistic.column, statistic.over or "", metric)
    if set(rows) != set(statistic.order):
        return stats.NOTHING, ()
    numbers = [statistic.order[row] for row in rows]
    seeds = sorted(set.intersection(*(set(values) for values in rows.values())))
    found = []
    for seed in seeds:
        values = [rows[row][seed] for row in rows]
        if max(values) - min(values) > stats.EQUAL:
            found.append(float(spearmanr(numbers, values).statistic))
    return stats.mean(found), tuple(rows)


def check_value(claim: Claim, statistic: Value, paper: str, profile: Profile) -> Checked:
    """A claim about numbers of a figure."""
    values, basis = profile.figure(statistic.figure)
    names = [statistic.value, *([statistic.minus] if isinstance(statistic.minus, str) else [])]
    reason, lacking = "", [name for name in names if values.get(name, {}).get("value") is None]
    estimate, over = stats.NOTHING, ""
    if not values:
        reason = f"{statistic.figure} is not drawn"
    elif lacking:
        reason = f"{statistic.figure} has no number '{lacking[0]}'.{nearest(lacking[0], values)}"
    else:
        first = values[statistic.value]
        second = values[names[1]] if len(names) > 1 else {"value": float(statistic.minus), "half": 0.0}
        estimate, over = apart(first, second)
    return Checked(
        paper=paper,
        claim=claim,
        profile=profile.name,
        estimate=estimate,
        verdict=claim.expect.verdict(estimate),
        over=over,
        basis=basis if estimate.n else "",
        reason=reason or estimate.reason or "",
    )


def apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Estimate, str]:
    """Difference of two numbers of a figure, and what its interval is over.

    Over seeds where at least one of them has two; a number without (a teacher's, a constant) counts as fixed then.
    Else over images, as if the two were measured on different ones: for the same images, on which models tend to agree,
    that interval is too wide rather than too narrow.
    """
    seeds_a, seeds_b = (
        {int(seed): float(value) for seed, value in (entry.get("seeds") or {}).items()} for entry in (a, b)
    )
    if len(seeds_a) > 1 and len(seeds_b) > 1:
        return stats.paired_gain(seeds_a, seeds_b), "seeds"
    if len(seeds_a) > 1:
        return stats.mean([value - b["value"] for value in seeds_a.values()]), "seeds"
    if len(seeds_b) > 1:
        return stats.mean([a["value"] - value for value in seeds_b.values()]), "seeds"
    centre, halves = a["value"] - b["value"], [entry["half"] for entry in (a, b) if entry.get("half") is not None]
    images = int(a.get("images") or b.get("images") or 1)
    if len(halves) < 2:
        return Estimate(mean=centre, n=images, reason="no interval was measured"), "images"
    half = math.hypot(*halves)
    return Estimate(mean=centre, low=centre - half, high=centre + half, n=images), "images"


# -- all of them ---------------------------------------------------------------------------------------------------


def check_all(profiles: Sequence[str], store: Store | None = None) -> list[Checked]:
    """Every claim of every paper at every profile.

    Args:
        profiles: names.
        store: None: the usual one.
    """
    store = store or Store(places.runs())
    levels = [Profile(name, store, places.results(), places.references()) for name in profiles]
    return [check(claim, paper, level) for level in levels for paper in papers() for claim in load_claims(paper).claims]


def everywhere(store: Store | None = None) -> list[Checked]:
    """Every claim at the chosen profile, then at every other one at which at least one was tested."""
    chosen = schema.load_params().profile
    others = [name for name in schema.names("profiles") if name != chosen]
    found = check_all([chosen, *others], store)
    tested = {each.profile for each in found if each.verdict != "untested"} | {chosen}
    return [each for each in found if each.profile in tested]


COLUMNS = ("id", "paper", "profile", "sentence", "effect", "low", "high", "n", "over", "expected", "verdict", "rows",
           "basis", "reason", "source")  # fmt: skip


def lines(found: Iterable[Checked]) -> list[dict[str, Any]]:
    """One line per claim and profile, as claims.csv has them."""

    def number(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.4f}"

    return [
        {
            "id": each.claim.id,
            "paper": each.paper,
            "profile": each.profile,
            "sentence": each.claim.sentence,
            "effect": number(each.estimate.mean),
            "low": number(each.estimate.low),
            "high": number(each.estimate.high),
            "n": each.estimate.n,
            "over": each.over if each.estimate.n else "",
            "expected": each.claim.expect.text,
            "verdict": each.verdict,
            "rows": len(each.rows),
            "basis": each.basis,
            "reason": each.reason,
            "source": each.claim.source,
        }
        for each in found
    ]


def interval(estimate: Estimate) -> str:
    """`+1.2 [0.3, 2.1]`, or what there is of it."""
    if not estimate.n:
        return ""
    digits = 1 if abs(estimate.mean) >= 10 else 2
    text = f"{estimate.mean:+.{digits}f}"
    if not math.isnan(estimate.low):
        text += f" [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"
    return text.replace("-", "−")


def markdown(found: Sequence[Checked]) -> str:
    """The claims as people read them: all of the first profile, of the others those that were tested."""
    blocks = ["# Claims"]
    for i, profile in enumerate(dict.fromkeys(each.profile for each in found)):
        here = [each for each in found if each.profile == profile]
        shown = here if i == 0 else [each for each in here if each.verdict != "untested"]
        blocks.append(f"## Profile {profile}: {summary(here)}")
        if stood_in := standins.of_profile(schema.load_profile(profile)):
            blocks.append(f"Claims are the papers'; the effects were measured here on stand-ins. {stood_in}")
        for paper in dict.fromkeys(each.paper for each in shown):
            rows = [
                "| claim | effect, 95 % interval | over | expected | verdict |\n| --- | --- | --- | --- | --- |",
                *(
                    f"| {each.claim.sentence} | {interval(each.estimate)} | {sample(each)} | {each.claim.expect.text} "
                    f"| {each.verdict}{f' ({each.reason})' if each.reason else ''} |"
                    for each in shown
                    if each.paper == paper
                ),
            ]
            blocks.append(f"### {paper}\n\n" + "\n".join(rows))
    blocks.append(
        "Effects are in points of the metric, or in the unit of the figure's number. No numeric curves are published "
        "for the figures: what the papers say of them in words is compared here. 'reference': committed values."
    )
    return "\n\n".join(blocks) + "\n"


def sample(each: Checked) -> str:
    """`5 seeds, 11 rows, reference`."""
    if not each.estimate.n:
        return ""
    whole = f" of {len(each.rows) + each.missing}" if each.missing else ""
    rows = f", {len(each.rows)}{whole} rows" if len(each.rows) > 1 or whole else ""
    basis = ", reference" if each.basis == "reference" else ""
    return f"{each.estimate.n} {each.over}{rows}{basis}"


def summary(found: Iterable[Checked]) -> str:
    """`holds 12, fails 3, ...`, verdicts that occur, in their order."""
    counted = Counter(each.verdict for each in found)
    return ", ".join(f"{verdict} {counted[verdict]}" for verdict in VERDICTS if counted[verdict])


def write(found: Sequence[Checked], folder: Path) -> None:
    """claims.csv, claims.md and metrics.json."""
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(found))
    metrics: dict[str, dict[str, dict[str, int]]] = {}
    for each in found:
        counts = metrics.setdefault(each.profile, {}).setdefault(each.paper, dict.fromkeys(VERDICTS, 0))
        counts[each.verdict] += 1
    texts = {
        "claims.csv": table.getvalue(),
        "claims.md": markdown(found),
        "metrics.json": json.dumps(metrics, indent=1) + "\n",
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)
