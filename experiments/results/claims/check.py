"""Each claim against what was measured.

Values come from own records and committed ones and from the numbers that figures left as measures.json; nothing is
executed. Where seeds were bought the table's fixed design counts: rows then have unequal seeds, and a mean over rows
needs equal ones. An interval is Student's t over seeds, paired by seed, and for the gain of one cell the moderated one
that judges it in its table; where a figure's numbers have no second seed it is the one over images. Rows of other data
than their table's are in no mean over rows. A claim holds if the 95 % interval lies wholly where the claim says, fails
if it lies wholly outside, and is undecided between; without the values it is untested.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, Strict

from experiments import places
from experiments.documents import Document, Finite, read_json
from experiments.planning import schema
from experiments.planning.asked import planned
from experiments.planning.plan import Plan
from experiments.planning.schema import Table, load_params
from experiments.records.committed import Records, path_of
from experiments.records.store import Record, Store
from experiments.results import regression, stats
from experiments.results.claims.documents import (
    Claim,
    Correlation,
    Difference,
    Value,
    columns_of,
    load_claims,
    papers,
    resolve,
)
from experiments.results.regression import MeasuredCell
from experiments.results.stats import Estimate
from hkd.errors import UserError
from hkd.registry import nearest

if TYPE_CHECKING:  # pandas takes a second to import
    from experiments.results.compare import CellResult

MEASURES = "measures.json"  # what a figure's drawing leaves for claims
RUNS, COMMITTED = "runs", "committed"  # what a verdict is based on
Id = tuple[str, str, str]  # method, variant, metric


@dataclass(frozen=True)
class Measured:
    """Values of a table at a profile: row -> (method, variant, metric) -> seed -> value; and where they were read.

    judged: gains over the cell's own baseline in the same row, with the intervals that judge them in the table.
    """

    rows: Mapping[str, Mapping[Id, Mapping[int, float]]]
    basis: str
    apart: frozenset[str] = frozenset()  # rows of other data than the table's, which no mean over rows takes in
    judged: Mapping[tuple[str, Id, Id], Estimate] = field(default_factory=dict)  # gain of a cell: (row, cell, over)


class FigureNumber(Document):
    """A number that a figure measured, as it writes it: null for what is not finite. half: of its interval."""

    value: Finite | None
    half: Annotated[Finite, Field(ge=0)] | None = None
    images: Annotated[int, Strict(), Field(ge=0)] = 0
    seeds: dict[int, Finite] = {}


class FigureNumbers(Document):
    """The file of a figure. images: which ones were measured, as a sentence."""

    profile: str
    images: str = ""
    values: dict[str, FigureNumber]


class Profile:
    """What exists at one profile; every table and figure is read once.

    Args:
        name: of the profile.
        store: records of runs.
        results, references: folders, as in `places`.
    """

    def __init__(self, name: str, store: Store, results: Path, references: Path):
        schema.load_profile(name)
        self.name, self.store, self.results, self.references = name, store, results, references
        self.tables: dict[str, Measured] = {}
        self.figures: dict[str, tuple[dict[str, Any], str]] = {}

    def table(self, name: str) -> Measured:
        """What runs of this machine, or else committed ones, measured of a table."""
        if name not in self.tables:
            self.tables[name] = Measured({}, "")
            somewhere = self.store.root.is_dir() or path_of(self.references, self.name, name).is_file()
            if somewhere and name in schema.table_ids():
                plan = planned(name, self.name, shown_from=self.store)
                records = Records(plan, self.store, self.references)
                self.tables[name] = measured_of(plan, records, records.own.keys())
        return self.tables[name]

    def figure(self, name: str) -> tuple[dict[str, Any], str]:
        """Numbers of a figure and where they were read; a figure that was drawn at another profile does not count."""
        if name not in self.figures:
            self.figures[name] = {}, ""
            drawn, kept = (root / self.name for root in (self.results, self.references))
            for path, basis in ((drawn / name / MEASURES, "figure"), (kept / f"{name}.{MEASURES}", COMMITTED)):
                if path.is_file() and (document := read_measures(path))["profile"] == self.name:
                    self.figures[name] = document["values"], basis
                    break
        return self.figures[name]


def read_measures(path: Path) -> dict[str, Any]:
    """A figure's numbers: profile, and values by name, as `FigureNumber` has them.

    Raises:
        UserError: the file is not what a drawing writes.
    """
    try:
        return FigureNumbers.model_validate(read_json(path)).model_dump()
    except (OSError, ValueError):
        raise UserError(f"{path} is not a figure's numbers; delete it and run its figure again.") from None


def measured_of(
    plan: Plan, records: Mapping[str, Record], own: Collection[str], cells: Sequence["CellResult"] | None = None
) -> Measured:
    """What a plan's records hold, with the intervals that judge single gains.

    Args:
        plan, records: of a table.
        own: keys of the records of this machine; the others are committed.
        cells: as compared already; None compares them.
    """
    from experiments.results.compare import compare  # pandas takes a second to import

    kinds = ((RUNS, own), (COMMITTED, records.keys() - own))
    basis = " and ".join(kind for kind, keys in kinds if keys)
    if cells is None:
        cells = compare(plan, records).cells if records else ()
    judged: dict[tuple[str, Id, Id], Estimate] = {}
    for result in cells:
        cell, estimate = result.cell, result.judged.estimate
        if cell.baseline is not None and cell.baseline[0] == cell.row and estimate.n:
            ours = cell.method, cell.variant, cell.metric
            judged[cell.row, ours, (cell.baseline[1], cell.baseline[2], cell.metric)] = estimate
    apart = frozenset(cell.row for cell in plan.cells if cell.instead)
    return Measured(by_row(regression.measured_values(plan, records).cells), basis, apart, judged)


def by_row(cells: Iterable[MeasuredCell]) -> dict[str, dict[Id, dict[int, float]]]:
    """Values by row, column and seed."""
    rows: dict[str, dict[Id, dict[int, float]]] = {}
    for cell in cells:
        if values := cell.values():
            rows.setdefault(cell.row, {})[cell.method, cell.variant, cell.metric] = values
    return rows


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A claim at a profile.

    over: what the interval is over, `seeds` or `images`. rows: that entered. basis: `runs`, `committed` or `runs and
    committed` (of the table), or `figure`. missing: how many other rows the claim is about, without values. reason: why
    it is untested or has no interval.
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
        missing = unmeasured(statistic, table, metric, rows, measured.apart)
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


def unmeasured(statistic: Difference, table: Table, metric: str, rows: Sequence[str], apart: frozenset[str]) -> int:
    """How many rows of a table have the columns that are compared and are not in an estimate; those apart aside."""
    overs = [over for over, _ in statistic.comparisons]
    count = 0
    for row in {each.row for each in table.rows} - {*rows} - apart:
        columns = columns_of(table, row)
        wanted = [resolve(name, columns, metric) for name in (statistic.column, *filter(None, overs))]
        count += None not in wanted and len({*wanted}) == len(wanted)
    return count


def by_seed(
    table: Table, measured: Measured, rows: Sequence[str] | None, column: str | None, over: str, metric: str
) -> dict[str, dict[int, float]]:
    """Difference of two columns (or, over nothing, the value of one) by row and seed, where both were measured."""
    found = {}
    every = [each.row for each in table.rows if each.row not in measured.apart]
    for row in every if rows is None else rows:
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
        single = judged_gain(statistic, over, pooled.rows, table, metric, measured)
        return single or pooled.estimate, pooled.rows
    theirs = by_seed(table, measured, against, statistic.against_column or statistic.column, over, metric)
    if set(theirs) != set(against):
        return stats.NOTHING, ()
    kept = {row: ours[row] for row in pooled.rows}
    return stats.paired_gain(mean_by_seed(kept), mean_by_seed(theirs)), (*pooled.rows, *against)


def judged_gain(
    statistic: Difference, over: str, rows: Sequence[str], table: Table, metric: str, measured: Measured
) -> Estimate | None:
    """The gain of one cell over its own baseline with the interval that judges it; None where a claim is of more."""
    if len(rows) != 1 or not over:
        return None
    columns = columns_of(table, rows[0])
    ours, theirs = resolve(statistic.column, columns, metric), resolve(over, columns, metric)
    if ours is None or theirs is None:
        return None
    return measured.judged.get((rows[0], (*ours, metric), (*theirs, metric)))


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
    chosen = load_params().profile
    others = [name for name in schema.names("profiles") if name != chosen]
    found = check_all([chosen, *others], store)
    tested = {each.profile for each in found if each.verdict != "untested"} | {chosen}
    return [each for each in found if each.profile in tested]
