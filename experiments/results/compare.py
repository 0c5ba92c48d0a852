"""From a plan and its records to a comparison: every cell's published and measured value, gain, verdict and status.

The frame is tidy: one line per (row, method with its variant, metric), in percent and percentage points.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.planning.plan import Cell, Plan, Published
from experiments.records.committed import Predictions
from experiments.records.store import ENDED, FINAL, Record
from experiments.results import judging, stats
from experiments.results.judging import NO_JUDGEMENT, NOT_JUDGED, Judged, Judgement
from experiments.results.sequential import Design
from experiments.results.stats import NOTHING, Estimate, Pooled, RankCorrelation
from experiments.results.verdicts import (
    NOT_APPLICABLE,
    NOT_IN_PROFILE,
    STATUSES,
    VERDICTS,
    Status,
    Verdict,
    verdict,
)
from hkd.errors import UserError

TEXT = ("table", "row", "teacher", "student", "method", "variant", "metric")
NUMBERS = ("published", "measured", "ci_low", "ci_high")
GAINS = ("gain", "gain_ci_low", "gain_ci_high", "judged_gain", "judged_ci_low", "judged_ci_high", "published_gain")
SAID = ("replicated", "judged_by", "verdict", "status", "instead", "source")
COLUMNS = (*TEXT, *NUMBERS, "n_seeds", *GAINS, *SAID)

OF_WHAT_IT_NEEDS = re.compile(r"needs '[^']*', which was refused: ")  # names a seed; the reason is that of all seeds
HERE = "measured here"  # the source of a cell; of committed records it is what `Record.committed` says

Id = tuple[str, str, str]  # row, method, variant


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run: a state (a status of records, waiting or not run) and the reason if not done."""

    state: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One cell with what was measured for it.

    values, gains: by seed, in percent and points. reasons: why seeds are missing. marks: what a reader must know
    (mixed library versions or device types). source: where its records are from, "" without any. `gain` has n = 0 for
    baselines, and the plain t-interval over seeds; `judged` has the one that the verdict stands on.
    """

    cell: Cell
    values: dict[int, float]
    measured: Estimate
    gains: dict[int, float]
    gain: Estimate
    published_gain: float  # nan where the paper's values give none
    verdict: Verdict
    status: Status
    reasons: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    source: str = ""
    judged: Judged = NOT_JUDGED
    doubted: bool = False  # a published value in it could not be confirmed

    @property
    def shown_gain(self) -> Estimate:
        """The gain with the interval that judges it."""
        return self.judged.estimate if self.judged.estimate.n else self.gain

    @property
    def drawn_gain(self) -> Estimate:
        """`shown_gain` as it is printed and drawn: without an interval that does not inform."""
        return self.shown_gain.shown


@dataclass(frozen=True, kw_only=True)
class PooledGain:
    """The gain of a method over its baseline (over = "") or over another method, pooled over rows.

    published: mean published gain over the same rows, nan unless every one has it.
    """

    metric: str
    method: str
    variant: str
    over: str
    pooled: Pooled
    published: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Agreement of the orders of published and measured gains; over the rows of a method, or over all cells."""

    metric: str
    label: str  # of the method as printed; "" where the cells of several methods or variants are ranked together
    correlation: RankCorrelation


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A table compared: the tidy frame, the cells behind it in the same order, and what belongs in its caption."""

    frame: pd.DataFrame
    cells: tuple[CellResult, ...]
    pooled: tuple[PooledGain, ...]
    ranks: tuple[Ranks, ...]
    missing: tuple[str, ...]  # runs that another attempt should do, with the reason
    exit_status: int  # 1 if there are such runs
    judgement: Judgement = NO_JUDGEMENT
    looks: Design | None = None  # taken when seeds were bought; None: a fixed design
    bought: Design | None = None  # beside a fixed design: looks that were taken at this table at another time

    def counts(self, column: str) -> dict[str, int]:
        """How often each value of `verdict` or `status` occurs (no verdict is not counted), in their fixed order."""
        found = Counter(self.frame[column])
        return {name: found[name] for name in (*VERDICTS, *STATUSES) if name and found[name]}

    def absent_rows(self) -> dict[str, str]:
        """Rows that the profile has no model or data for, with their labels: tables that are read leave them out.

        None where the profile has nothing of the whole table: its published values are then all there is to see.
        """
        here = rows_here(self.cells)
        return {r.cell.row: r.cell.pair for r in self.cells if r.cell.row not in here} if here else {}

    def readable(self, metric: str) -> list[CellResult]:
        """The cells of a metric, without `absent_rows`."""
        rows = rows_here(self.cells)
        return [r for r in self.cells if r.cell.metric == metric and (r.cell.row in rows or not rows)]


def rows_here(results: Iterable[CellResult]) -> set[str]:
    """Rows of which the profile has at least one cell."""
    return {result.cell.row for result in results if result.status != NOT_IN_PROFILE}


def compare(
    plan: Plan,
    records: Mapping[str, Record],
    predictions: Mapping[str, Predictions] | None = None,
    looks: Design | None = None,
) -> Comparison:
    """Compare what a plan's runs measured with what the paper published.

    Args:
        plan: the table at a profile.
        records: by key; runs without one count as not run.
        predictions: by key, where they are kept: arrays row, label and correct per test image.
        looks: that were taken at the table, if its seeds were bought until it was decided.

    Raises:
        UserError: the table has the same cell twice, or a cell mixes records of two settings.
    """
    outcomes: dict[str, Outcome] = {}
    for key in plan.runs:
        outcome(key, plan, records, outcomes)
    values = {judging.place(cell): measured_values(cell, plan, records) for cell in plan.cells}
    published = {(cell.id, cell.metric): cell.published for cell in plan.cells}
    runs = {cell.id: cell.runs for cell in plan.cells}
    for cell in plan.cells:
        check_settings(cell, plan, records)
    diverged = {key for key, found in outcomes.items() if found.state == "diverged"}
    lost = {judging.place(cell) for cell in plan.cells if not diverged.isdisjoint(cell.runs)}
    judgement = judging.judge(plan, records, values, lost, looks)
    results, missing = [], {key: found for key, found in outcomes.items() if found.state not in FINAL}
    for cell in plan.cells:
        over = cell.baseline or ("", "", "")
        found = {key: run_outcome(key, cell.metric, records, outcomes) for key in cell.runs}
        missing.update({key: run for key, run in found.items() if run.state not in FINAL})
        results.append(
            result_of(
                cell,
                plan,
                values[cell.id, cell.metric],
                values.get((over, cell.metric), {}),
                published.get((over, cell.metric)),
                [found[key] for key in cell.runs],
                mixtures(records[key] for key in (*cell.runs, *runs.get(over, ())) if key in records),
                sources(records[key] for key in cell.runs if key in records),
                judgement.cells.get(judging.place(cell), NOT_JUDGED),
            )
        )
    return Comparison(
        frame=validated(frame(plan, results)),
        cells=tuple(results),
        pooled=tuple(pool(plan, first_look(results, plan, looks), predictions or {})),
        ranks=tuple(rank(plan, first_look(results, plan, looks))),
        missing=tuple(f"{plan.runs[key].label or key}: {run.reason or run.state}" for key, run in missing.items()),
        exit_status=int(bool(missing)),
        judgement=judgement,
        looks=looks,
    )


def first_look(results: list[CellResult], plan: Plan, looks: Design | None) -> list[CellResult]:
    """Results at the seeds that every row has: of a table with looks those of the first, as rows stopped at others."""
    if looks is None:
        return results
    seeds = set(plan.seeds[: looks.looks[0]])
    held = []
    for result in results:
        values = {seed: value for seed, value in result.values.items() if seed in seeds}
        gains = {seed: value for seed, value in result.gains.items() if seed in seeds}
        gain = stats.mean(list(gains.values())) if gains else NOTHING
        held.append(replace(result, values=values, gains=gains, gain=gain))
    return held


def check_settings(cell: Cell, plan: Plan, records: Mapping[str, Record]) -> None:
    """Refuse a cell whose records are of two settings: their mean would be of nothing.

    Raises:
        UserError: two records of the cell differ in more than the seed.
    """
    first: dict[str, Any] = {}
    for key in cell.runs:
        if key not in records or records[key].status != "done":
            continue
        held = records[key].spec
        spec: dict[str, Any] = {
            name: held[name] for name in ("task", "student", "method", "recipe", "task_options") if name in held
        }
        if (other := differing(first, spec)) is None:
            first = {**spec, **first}
        else:
            place, one, two = other
            raise UserError(
                f"Cell {'/'.join(filter(None, cell.id))} of '{plan.table}' mixes records of two settings "
                f"({place}: {one!r} and {two!r}); delete those of one of them, or run the table again."
            )


def differing(one: Mapping[str, Any], two: Mapping[str, Any], at: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that both specs have with other values: (its place, one, the other)."""
    for name in sorted(one.keys() & two.keys()):
        a, b, place = one[name], two[name], f"{at}.{name}".strip(".")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if (found := differing(a, b, place)) is not None:
                return found
        elif not same(a, b):
            return place, a, b
    return None


def same(a: Any, b: Any) -> bool:
    """Whether two settings would be written alike; whole cells are compared, so that scalars are not written for it."""
    if type(a) is type(b) and isinstance(a, (str, int, float, type(None))):
        return bool(a == b)
    return json.dumps(a, sort_keys=True, default=list) == json.dumps(b, sort_keys=True, default=list)


# -- what became of the runs -----------------------------------------------------------------------------------


def outcome(key: str, plan: Plan, records: Mapping[str, Record], known: dict[str, Outcome]) -> Outcome:
    """The state of a run; without a record it is that of the first run it needs which is not done."""
    if key in known:
        return known[key]
    run = plan.runs[key]
    found = Outcome(state="not run", reason=run.missing)
    if key in records:
        found = Outcome(state=records[key].status, reason=records[key].reason)
    else:
        for need in run.needs:
            above = outcome(need, plan, records, known)
            label = plan.runs[need].label or need
            if above.state in ("diverged", "refused"):
                found = Outcome(state=above.state, reason=f"needs {label}, which {ENDED[above.state]}")
                break
            if above.state in ("failed", "waiting"):
                found = Outcome(state="waiting", reason=above.reason if above.state == "waiting" else f"{label} failed")
                break
            if found.reason is None and above.reason is not None and above.state == "not run":
                found = Outcome(state="not run", reason=above.reason)
    known[key] = found
    return found


def run_outcome(key: str, metric: str, records: Mapping[str, Record], outcomes: Mapping[str, Outcome]) -> Outcome:
    """The state of a run as far as one metric goes: a finished run that lacks the metric failed."""
    found = outcomes[key]
    if found.state == "done" and metric not in records[key].metrics:
        return Outcome(state="failed", reason=f"its record has no {metric}")
    return found


def measured_values(cell: Cell, plan: Plan, records: Mapping[str, Record]) -> dict[int, float]:
    """A cell's value by seed, for the seeds that were run."""
    found = {}
    for seed, key in zip(plan.seeds, cell.runs, strict=False):  # no runs at all in refused and quoted cells
        record = records.get(key)
        if record and record.status == "done" and cell.metric in record.metrics:
            found[seed] = record.metrics[cell.metric]
    return found


def mixtures(records: Iterable[Record]) -> tuple[str, ...]:
    """Which library versions or device types differ among the runs that one cell's numbers come from."""
    environments = [record.environment for record in records if record.status == "done"]
    marks = []
    names = sorted({name for environment in environments for name in environment.get("versions", {})})
    for name in names:
        versions = sorted({str(environment.get("versions", {}).get(name, "none")) for environment in environments})
        if len(versions) > 1:
            marks.append(f"mixes {name} {' and '.join(versions)}")
    devices = sorted({str(environment["device"]) for environment in environments if "device" in environment})
    if len(devices) > 1:
        marks.append(f"mixes device types {' and '.join(devices)}")
    return tuple(marks)


def sources(records: Iterable[Record]) -> str:
    """Where records are from, each place once, this machine first: `measured here; committed 2026-11-22, Xeon`."""
    found = {record.committed for record in records}
    return "; ".join([HERE] * (None in found) + sorted(name for name in found if name is not None))


# -- one cell ----------------------------------------------------------------------------------------------------


def result_of(
    cell: Cell,
    plan: Plan,
    values: dict[int, float],
    baseline: dict[int, float],
    published_baseline: Published | None,
    outcomes: list[Outcome],
    marks: tuple[str, ...],
    source: str,
    judged: Judged,
) -> CellResult:
    """One cell's estimates, status and verdict."""
    measured, gain = stats.mean(list(values.values())), stats.paired_gain(values, baseline)
    published_gain = math.nan
    if cell.published is not None and published_baseline is not None:
        # Rounded, as the difference of two printed numbers has their digits and no more.
        published_gain = round(cell.published.value - published_baseline.value, 6)
    printed = [cell.published] if plan.by_value else [cell.published, published_baseline]
    doubted = cell.baseline is not None and any(value is not None and value.confidence == "low" for value in printed)
    return CellResult(
        cell=cell,
        values=values,
        measured=measured,
        gains={seed: values[seed] - baseline[seed] for seed in values if seed in baseline},
        gain=gain,
        published_gain=published_gain,
        verdict=verdict(
            cell,
            by_value=plan.by_value,
            measured=measured,
            gain=judged.estimate,
            published_gain=published_gain,
            low_confidence=doubted,
            cannot_tell=judged.cannot_tell,
            margin=plan.margins.get(cell.metric),
        ),
        status=status(cell, outcomes),
        reasons=(*reasons(cell, plan, outcomes), *collapses(judged)),
        marks=marks,
        source=source,
        judged=judged,
        doubted=doubted,
    )


def collapses(judged: Judged) -> tuple[str, ...]:
    """Which seeds ended at chance; they stay in the mean."""
    return (f"{seed_names(judged.collapsed)}: collapsed to near chance",) if judged.collapsed else ()


def seed_names(seeds: Sequence[int]) -> str:
    """`seed 1`, `seeds 1, 3`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def status(cell: Cell, outcomes: list[Outcome]) -> Status:
    """A cell's status from the states of its runs: partial if only some are done, else the worst of them."""
    if cell.quoted:
        return "quoted"
    states = [found.state for found in outcomes]
    if cell.refused or not states:
        return NOT_IN_PROFILE
    if "done" in states:
        return "done" if set(states) == {"done"} else "partial"
    order: tuple[tuple[str, Status], ...] = (
        ("failed", "failed"),
        ("waiting", "waiting"),
        ("not run", "not run"),
        ("diverged", "diverged"),
        ("refused", NOT_APPLICABLE),
    )
    return next(word for state, word in order if state in states)


def reasons(cell: Cell, plan: Plan, outcomes: list[Outcome]) -> tuple[str, ...]:
    """Why a cell lacks seeds, equal reasons together: `seeds 1, 3: diverged (the loss is not finite at step 7)`."""
    if cell.refused:
        return (f"{NOT_IN_PROFILE}: {cell.refused}",)
    seeds: dict[str, list[int]] = {}
    for seed, found in zip(plan.seeds, outcomes, strict=False):
        if found.state != "done":
            state = NOT_APPLICABLE if found.state == "refused" else found.state
            reason = found.reason and OF_WHAT_IT_NEEDS.sub("", found.reason.rstrip("."))
            text = state if reason is None else f"{state} ({reason})"
            seeds.setdefault(text, []).append(seed)
    return tuple(
        text if len(which) == len(outcomes) else f"{seed_names(which)}: {text}" for text, which in seeds.items()
    )


# -- the frame ---------------------------------------------------------------------------------------------------


def frame(plan: Plan, results: list[CellResult]) -> pd.DataFrame:
    """The tidy frame of table.csv."""
    rows = [
        {
            "table": plan.table,
            "row": result.cell.row,
            "teacher": result.cell.teacher,
            "student": result.cell.student,
            "method": result.cell.method,
            "variant": result.cell.variant,
            "metric": result.cell.metric,
            "published": result.cell.published.value if result.cell.published else math.nan,
            "measured": result.measured.mean,
            "ci_low": result.measured.low,
            "ci_high": result.measured.high,
            "n_seeds": result.measured.n,
            "gain": result.gain.mean,
            "gain_ci_low": result.gain.low,
            "gain_ci_high": result.gain.high,
            "judged_gain": result.judged.estimate.mean,
            "judged_ci_low": result.judged.estimate.low,
            "judged_ci_high": result.judged.estimate.high,
            "published_gain": result.published_gain,
            "replicated": replications(result.cell),
            "judged_by": result.judged.by,
            "verdict": result.verdict,
            "status": result.status,
            "instead": result.cell.instead,
            "source": result.source,
        }
        for result in results
    ]
    text = dict.fromkeys((*TEXT, *SAID), "str")
    numbers = dict.fromkeys((*NUMBERS, *GAINS), "float64")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({**text, **numbers, "n_seeds": "int64"})


def replications(cell: Cell) -> str:
    """`67.94 (a user of issue 23); 70.78 (...)`: what third parties measured, "" where nobody did."""
    values = (("not reached" if each.value is None else f"{each.value:.2f}", each.who) for each in cell.replicated)
    return "; ".join(value + (f" ({who})" if who else "") for value, who in values)


def validated(table: pd.DataFrame) -> pd.DataFrame:
    """The frame, checked against its schema.

    Raises:
        UserError: a line occurs twice or holds something it cannot hold.
    """
    import pandera.pandas as pa  # half a second to import

    text, number = pa.Column(str), pa.Column(float, nullable=True)
    ordered = pa.Check(
        lambda f: (
            ~((f["ci_low"] > f["measured"]) | (f["ci_high"] < f["measured"]))
            & ~((f["gain_ci_low"] > f["gain"]) | (f["gain_ci_high"] < f["gain"]))
            & ~((f["judged_ci_low"] > f["judged_gain"]) | (f["judged_ci_high"] < f["judged_gain"]))
        ),
        error="an interval contains its mean",
    )
    schema = pa.DataFrameSchema(
        {
            **dict.fromkeys((*TEXT, *SAID), text),
            **dict.fromkeys((*NUMBERS, *GAINS), number),
            "n_seeds": pa.Column(int, pa.Check.ge(0)),
            "verdict": pa.Column(str, pa.Check.isin(VERDICTS)),
            "status": pa.Column(str, pa.Check.isin(STATUSES)),
        },
        checks=ordered,
        unique=["row", "method", "variant", "metric"],
        strict=True,
    )
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as errors:
        case = errors.failure_cases.iloc[0]
        line = (
            table.loc[case["index"], ["row", "method", "variant", "metric"]].tolist() if pd.notna(case["index"]) else []
        )
        place = f" in line {'/'.join(filter(None, line))}" if line else ""
        raise UserError(
            f"Table '{table['table'].iloc[0]}' is not valid{place}: {case['column'] or 'frame'} fails "
            f"'{case['check']}' with {case['failure_case']!r}; each cell of the table file must stand there once."
        ) from None
    return table


# -- over rows -----------------------------------------------------------------------------------------------------


def pool(plan: Plan, results: list[CellResult], predictions: Mapping[str, Predictions]) -> list[PooledGain]:
    """Pooled gains of every method over its baseline, then of every other method over plain `kd` where both stand.

    Only gains over a baseline of the same row are pooled: where rows are variants, a mean over rows means nothing. Rows
    in which a method is measured against another baseline than in its first one stay out of its mean.
    """

    in_profile = rows_here(results)

    def pooled(pairs: list[tuple[CellResult, CellResult]]) -> Pooled:
        pairs = [(a, b) for a, b in pairs if a.cell.row in in_profile]
        gains = {a.cell.row: {s: a.values[s] - b.values[s] for s in a.values if s in b.values} for a, b in pairs}
        return with_images(stats.pooled_gain(gains), pairs, plan.seeds, predictions)

    found = []
    for metric in plan.metrics:
        here = {result.cell.id: result for result in results if result.cell.metric == metric}
        columns: dict[tuple[str, str], list[CellResult]] = {}
        for result in here.values():
            apart = result.cell.instead  # rows of other data are not averaged with the table's
            if result.cell.baseline and result.cell.baseline[0] == result.cell.row and not apart:
                column = columns.setdefault((result.cell.method, result.cell.variant), [])
                if not column or column[0].cell.baseline[1:] == result.cell.baseline[1:]:  # type: ignore[index]
                    column.append(result)
        for (method, variant), column in columns.items():
            if len(column) > 1:  # of one row, the table itself has the gain
                over_baseline = pooled([(r, here[r.cell.baseline]) for r in column if r.cell.baseline in here])
                published = [r.published_gain for r in column if r.cell.row in over_baseline.rows]
                found.append(
                    PooledGain(
                        metric=metric,
                        method=method,
                        variant=variant,
                        over="",
                        pooled=over_baseline,
                        published=float(np.mean(published)) if published else math.nan,
                    )
                )
        plain = {result.cell.row: result for result in columns.get(("kd", ""), [])}
        for (method, variant), column in columns.items():
            pairs = [(r, plain[r.cell.row]) for r in column if r.cell.row in plain and r is not plain[r.cell.row]]
            if pairs:
                found.append(PooledGain(metric=metric, method=method, variant=variant, over="kd", pooled=pooled(pairs)))
    return found


def with_images(
    pooled: Pooled,
    pairs: list[tuple[CellResult, CellResult]],
    seeds: tuple[int, ...],
    predictions: Mapping[str, Predictions],
) -> Pooled:
    """Add the interval over test images, if every run behind a pooled gain kept predictions of the same images."""
    keys = [
        (dict(zip(seeds, ours.cell.runs, strict=False))[seed], dict(zip(seeds, theirs.cell.runs, strict=False))[seed])
        for ours, theirs in pairs
        if ours.cell.row in pooled.rows
        for seed in ours.values.keys() & theirs.values.keys()
    ]
    if not keys or not all(key in predictions for pair in keys for key in pair):
        return pooled
    first = predictions[keys[0][0]]
    total = np.zeros(len(first["row"]))
    for pair in keys:
        for key, sign in zip(pair, (1.0, -1.0), strict=True):
            arrays = predictions[key]
            if not (np.array_equal(arrays["row"], first["row"]) and np.array_equal(arrays["label"], first["label"])):
                return pooled
            total += sign * arrays["correct"]
    _, sources = np.unique(first["row"], return_inverse=True)  # images rendered from one source are one draw
    per_source = np.bincount(sources, weights=total) / np.bincount(sources)
    return replace(pooled, images=stats.over_images(100 * per_source / len(keys)))


def rank(plan: Plan, results: list[CellResult]) -> list[Ranks]:
    """Whether larger published gains go with larger measured ones: per method, or over all cells of an ablation."""
    found = []
    for metric in plan.metrics:
        usable = [
            r
            for r in results
            if r.cell.metric == metric and not r.cell.added and r.gain.n and not math.isnan(r.published_gain)
            and not r.doubted and not r.cell.instead
        ]  # fmt: skip
        groups: dict[str, list[CellResult]] = {}
        for result in usable:
            groups.setdefault(result.cell.label, []).append(result)
        if not any(len(group) >= 4 for group in groups.values()):
            groups = {"": usable}
        for label, group in groups.items():
            correlation = stats.rank_correlation([r.published_gain for r in group], [r.gain.mean for r in group])
            if correlation:
                found.append(Ranks(metric=metric, label=label, correlation=correlation))
    return found
