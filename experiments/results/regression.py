"""Regression check: have measured values dropped against those committed in results/reference/<profile>/?

Equal keys, versions and digits pass. A reference whose run keys or data fingerprints are not the plan's is stale: it
was measured with other code, settings or data, and says nothing about these. With equal keys but other digits (another
machine, other library versions) the test of DESIGN.md decides: per-seed means over the rows of a method are compared,
paired where the seeds match, else by Welch; a regression if the 95 % interval of the drop lies wholly beyond 1.0 point.
Digits that moved in a single seed decide nothing: the table is untested.
Single cells count if the same margin is exceeded at 1 % after Holm; so does a cell that was measured and now diverges.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from experiments.planning.plan import Plan
from experiments.records import committed
from experiments.records.store import Record
from experiments.results import stats
from hkd.errors import UserError

MARGIN = 1.0  # points
CELL_LEVEL = 0.01  # family-wise, over all cells
EXIT = {"pass": 0, "untested": 0, "regression": 1, "stale reference": 2}

Method = tuple[str, str, str]  # method, variant, metric


@dataclass(frozen=True, kw_only=True)
class Value:
    """One run's value of a cell, in percent; None where the run diverged, failed or was not run."""

    key: str
    value: float | None
    status: str = "done"


@dataclass(frozen=True, kw_only=True)
class MeasuredCell:
    """One cell by seed."""

    row: str
    method: str
    variant: str
    metric: str
    runs: dict[int, Value]

    @property
    def id(self) -> tuple[str, str, str, str]:
        return self.row, self.method, self.variant, self.metric

    @property
    def name(self) -> str:
        """The cell as people read it."""
        return " ".join((self.row, "/".join(filter(None, (self.method, self.variant))), self.metric))

    def values(self) -> dict[int, float]:
        """Values by seed where there are any."""
        return {seed: run.value for seed, run in self.runs.items() if run.value is not None}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The measured values of a table with what they depend on: the form of both sides of a check.

    data: fingerprints by data set. versions: of libraries, and device types, over all runs. cpus: likewise, if known.
    """

    table: str
    profile: str
    data: dict[str, list[str]]
    versions: dict[str, list[str]]
    cells: tuple[MeasuredCell, ...]
    cpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RegressionReport:
    """status: pass, regression, stale reference, or untested. reasons: sentences, worst first.

    moved: one line per method and per cell whose values differ, largest drop first; few: its interval judges, but is
    of two seeds and not printed.
    """

    table: str
    profile: str
    status: str
    reasons: tuple[str, ...]
    moved: pd.DataFrame

    @property
    def exit_code(self) -> int:
        """0, 1 for a regression, 2 for a stale reference."""
        return EXIT[self.status]

    def markdown(self) -> str:
        """The report as text: the outcome, its reasons, and a table of what moved."""
        lines = [f"{self.table} ({self.profile}): {self.status}", *(f"- {reason}" for reason in self.reasons)]
        if len(self.moved):
            held = self.moved.drop(columns="few")
            held.loc[self.moved["few"].astype(bool), ["low", "high"]] = math.nan  # two seeds judge, and inform nobody
            text = held.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
            lines += ["", text.replace("nan", "").to_markdown(index=False, disable_numparse=True)]
        return "\n".join(lines)


def measured_values(plan: Plan, records: Mapping[str, Record]) -> Reference:
    """What a plan's records hold, in the form of a reference."""
    return reference(
        plan.table,
        plan.profile,
        ((run.spec.data.name, str(run.spec.data.fingerprint)) for run in plan.runs.values()),
        committed.cells_of(plan),
        {key: records[key] for key in plan.runs if key in records},
    )


def load_reference(path: Path) -> Reference:
    """What the committed records of a table hold.

    Raises:
        UserError: there are none, or the file is not what was written.
    """
    file = committed.read(path)
    return reference(
        file.table,
        file.profile,
        ((data.name, data.fingerprint) for data in file.data),
        file.cells,
        {key: record for key in file.by_key if (record := file.record(key)) is not None},
    )


def reference(
    table: str,
    profile: str,
    data: Iterable[tuple[str, str]],
    cells: Iterable[committed.Cell],
    records: Mapping[str, Record],
) -> Reference:
    """Values of cells, from the records of all runs behind them, and (data set, fingerprint) of what these saw."""
    versions: dict[str, set[str]] = {}
    for record in records.values():
        if record.status == "done":
            for name, version in record.environment.get("versions", {}).items():
                versions.setdefault(name, set()).add(str(version))
            versions.setdefault("device", set()).add(str(record.environment.get("device", "unknown")))
    cpus = {str(record.environment["cpu"]) for record in records.values() if record.environment.get("cpu")}
    fingerprints: dict[str, set[str]] = {}
    for name, fingerprint in data:
        fingerprints.setdefault(name, set()).add(fingerprint)
    return Reference(
        table=table,
        profile=profile,
        data={name: sorted(found) for name, found in sorted(fingerprints.items())},
        versions={name: sorted(found) for name, found in sorted(versions.items())},
        cells=tuple(
            MeasuredCell(
                row=cell.row,
                method=cell.method,
                variant=cell.variant,
                metric=cell.metric,
                runs={seed: value_of(key, cell.metric, records) for seed, key in cell.runs.items()},
            )
            for cell in cells
        ),
        cpus=tuple(sorted(cpus)),
    )


def value_of(key: str, metric: str, records: Mapping[str, Record]) -> Value:
    """One run's value and status."""
    record = records.get(key)
    if record is None:
        return Value(key=key, value=None, status="not run")
    if record.status != "done":
        return Value(key=key, value=None, status=record.status)
    return Value(key=key, value=record.metrics.get(metric), status="done" if metric in record.metrics else "failed")


def save_reference(plan: Plan, records: committed.Records, path: Path) -> None:
    """Commit the records of a finished table.

    Raises:
        UserError: the profile is `smoke` (never a reference), or runs are missing.
    """
    if plan.profile == "smoke":
        raise UserError("Profile 'smoke' proves the plumbing only and is never a reference; run 'laptop' or larger.")
    cells = measured_values(plan, records).cells
    missing = [cell.name for cell in cells for run in cell.runs.values() if run.status in ("not run", "failed")]
    if missing or not cells:
        first = f" (first: {missing[0]})" if missing else ""
        raise UserError(
            f"'{plan.table}' at profile '{plan.profile}' lacks {len(missing)} runs{first}; "
            f"finish it with `hkd run {plan.table}` before it can be a reference."
        )
    committed.write(committed.compact(plan, records), path)


# -- the check -----------------------------------------------------------------------------------------------------


def check(measured: Reference, reference: Reference) -> RegressionReport:
    """Compare measured values with a reference of the same table and profile.

    Raises:
        UserError: the reference is of another table or profile.
    """
    if (measured.table, measured.profile) != (reference.table, reference.profile):
        raise UserError(
            f"The reference is of {reference.table} at profile {reference.profile}, "
            f"not of {measured.table} at profile {measured.profile}."
        )
    stale = staleness(measured, reference)
    if stale:
        return report(measured, "stale reference", stale, [])
    now, before = ({cell.id: cell for cell in side.cells} for side in (measured, reference))
    untested = tuple(
        f"untested: {cell.name} has no values yet"
        for cell in measured.cells
        if not cell.values() and before[cell.id].values() and not newly_diverged(cell, before[cell.id])
    )
    if not any(cell.values() for cell in measured.cells):
        return report(measured, "untested", ("nothing measured yet",), [])
    lines = [*method_lines(now, before), *cell_lines(now, before)]
    undecided = undecidable(lines, now, before)
    untested = (*undecided, *untested, *other_digits(measured, reference, lines))
    lost = [
        f"{now[which].name}: seeds {', '.join(map(str, seeds))} diverged, which the reference has values for"
        for which in now
        if (seeds := newly_diverged(now[which], before[which]))
    ]
    dropped = [f"{line['what']} dropped by {line['drop']:.2f} points" for line in lines if line["regression"]]
    if lost or dropped:
        return report(measured, "regression", (*lost, *dropped, *untested), lines)
    reasons: tuple[str, ...] = untested if lines else (*untested, "every measured digit equals the reference")
    if measured.versions != reference.versions:
        reasons = (*reasons, f"library versions or devices differ: {changed(measured.versions, reference.versions)}")
    return report(measured, "untested" if undecided else "pass", reasons, lines)


def other_digits(measured: Reference, reference: Reference, lines: list[dict]) -> tuple[str, ...]:
    """Where digits of equal keys moved: that another processor did it, if the two sides are not of the same one."""
    if not lines or not measured.cpus or not reference.cpus or measured.cpus == reference.cpus:
        return ()
    here, there = " and ".join(measured.cpus), " and ".join(reference.cpus)
    return (f"same key, other digits: another CPU ({there} -> {here}); compared by its statistics",)


def undecidable(
    lines: list[dict], now: Mapping[tuple, MeasuredCell], before: Mapping[tuple, MeasuredCell]
) -> tuple[str, ...]:
    """Sentences about methods whose digits moved without a test that could call it a drop or not."""
    found = [
        f"untested: {line['what']} moved by {-line['drop']:+.2f} points, and one seed gives no interval"
        for line in lines
        if line["of_method"] and math.isnan(line["low"])
    ]
    for which, cells in by_method(now, before).items():
        apart = not all(row_means([side[cell].values() for cell in cells]) for side in (now, before))
        if apart and any(moved(before[cell].values(), now[cell].values()) for cell in cells):
            found.append(f"untested: {method_name(which)} moved, and its rows share no seed")
    return tuple(found)


def staleness(measured: Reference, reference: Reference) -> tuple[str, ...]:
    """Why a reference does not belong to what is measured; empty if it does.

    Seeds that only one side has are no reason: keys are compared where both have the seed.
    """
    reasons = []
    if measured.data != reference.data:
        reasons.append(f"other data: {changed(measured.data, reference.data)}")
    now, before = ({cell.id: cell for cell in side.cells} for side in (measured, reference))
    for text, these, those in (("is not in the reference", now, before), ("is only in the reference", before, now)):
        names = [cell.name for which, cell in these.items() if which not in those]
        if names:
            more = f" (and {len(names) - 1} more)" if names[1:] else ""
            reasons.append(f"other cells: {names[0]} {text}{more}")
    other = [cell.name for which, cell in now.items() if which in before and rekeyed(cell, before[which])]
    if other:
        reasons.append(
            f"other code or settings: the run keys of {len(other)} of {len(now)} cells changed, among them {other[0]}"
        )
    return tuple(reasons)


def rekeyed(cell: MeasuredCell, before: MeasuredCell) -> bool:
    """Whether a seed that both sides have is another run now."""
    return any(run.key != before.runs[seed].key for seed, run in cell.runs.items() if seed in before.runs)


def changed(now: Mapping[str, list[str]], before: Mapping[str, list[str]]) -> str:
    """`timm 1.0.30 -> 1.0.31` for every name whose values differ."""
    names = sorted(now.keys() | before.keys())
    return ", ".join(
        f"{name} {'/'.join(before.get(name, ['none']))} -> {'/'.join(now.get(name, ['none']))}"
        for name in names
        if now.get(name) != before.get(name)
    )


def newly_diverged(cell: MeasuredCell, before: MeasuredCell) -> list[int]:
    """Seeds that have a value in the reference and diverged now."""
    return [seed for seed, run in cell.runs.items() if run.status == "diverged" and seed in before.values()]


def method_lines(now: Mapping[tuple, MeasuredCell], before: Mapping[tuple, MeasuredCell]) -> list[dict]:
    """One line per method, variant and metric whose mean over rows differs in any seed."""
    lines = []
    for which, cells in by_method(now, before).items():
        new, old = (row_means([side[which].values() for which in cells]) for side in (now, before))
        if new and old and moved(old, new):
            drop = drop_of(old, new)
            lines.append(
                {
                    "what": method_name(which),
                    "reference": float(np.mean(list(old.values()))),
                    "measured": float(np.mean(list(new.values()))),
                    "drop": drop.mean,
                    "low": drop.low,
                    "high": drop.high,
                    "few": drop.few,
                    "p": math.nan,
                    "regression": drop.low > MARGIN,
                    "of_method": True,
                }
            )
    return lines


def by_method(now: Mapping[tuple, MeasuredCell], before: Mapping[tuple, MeasuredCell]) -> dict[Method, list[tuple]]:
    """The cells of each method, variant and metric that have values on both sides."""
    methods: dict[Method, list[tuple]] = {}
    for which, cell in now.items():
        if cell.values() and before[which].values():
            methods.setdefault(which[1:], []).append(which)
    return methods


def method_name(which: Method) -> str:
    """A method over all rows, as people read it."""
    method, variant, metric = which
    return f"all rows, {'/'.join(filter(None, (method, variant)))} {metric}"


def moved(old: Mapping[int, float], new: Mapping[int, float]) -> bool:
    """Whether any digit differs in the seeds of both, or, where they share none, at all."""
    shared = old.keys() & new.keys()
    return any(old[seed] != new[seed] for seed in shared) if shared else sorted(old.values()) != sorted(new.values())


def row_means(rows: list[dict[int, float]]) -> dict[int, float]:
    """Mean over rows for each seed that every row has."""
    shared = set.intersection(*(set(row) for row in rows))
    return {seed: float(np.mean([row[seed] for row in rows])) for seed in sorted(shared)}


def drop_of(old: Mapping[int, float], new: Mapping[int, float]) -> stats.Estimate:
    """How far values fell, with its 95 % interval: paired over shared seeds, else Welch.

    An equal drop in every seed is no chance: it is its own interval here, though tables print none for it.
    """
    shared = old.keys() & new.keys()
    found = stats.paired_gain(old, new) if shared else stats.welch(list(old.values()), list(new.values()))
    if found.n > 1 and found.reason:
        return stats.Estimate(mean=found.mean, low=found.mean, high=found.mean, n=found.n)
    return found


def cell_lines(now: Mapping[tuple, MeasuredCell], before: Mapping[tuple, MeasuredCell]) -> list[dict]:
    """One line per cell whose values differ in any seed. Holm counts all cells that could be tested, moved or not."""
    tested = [which for which, cell in now.items() if cell.values() and before[which].values()]
    p_values = [drop_p(before[which].values(), now[which].values()) for which in tested]
    usable = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    for i, adjusted in zip(usable, stats.holm([p_values[i] for i in usable]), strict=True):
        p_values[i] = adjusted
    lines = []
    for which, p in zip(tested, p_values, strict=True):
        old, new = before[which].values(), now[which].values()
        if moved(old, new):
            drop = drop_of(old, new)
            lines.append(
                {
                    "what": now[which].name,
                    "reference": float(np.mean(list(old.values()))),
                    "measured": float(np.mean(list(new.values()))),
                    "drop": drop.mean,
                    "low": drop.low,
                    "high": drop.high,
                    "few": drop.few,
                    "p": p,
                    "regression": p < CELL_LEVEL,
                    "of_method": False,
                }
            )
    return lines


def drop_p(old: Mapping[int, float], new: Mapping[int, float]) -> float:
    """One-sided p value of "the drop is at most the margin"; nan from a single seed."""
    shared = sorted(old.keys() & new.keys())
    seeds = (shared, shared) if shared else (sorted(old), sorted(new))
    a, b = ([side[seed] for seed in which] for side, which in zip((old, new), seeds, strict=True))
    if min(len(a), len(b)) < 2:
        return math.nan
    spread = np.ptp(np.subtract(a, b)) if shared else max(np.ptp(a), np.ptp(b))
    if spread < stats.EQUAL:
        return float(np.mean(a) - np.mean(b) <= MARGIN)
    if shared:
        return float(scipy_stats.ttest_1samp(np.subtract(a, b), MARGIN, alternative="greater").pvalue)
    return float(scipy_stats.ttest_ind(np.subtract(a, MARGIN), b, equal_var=False, alternative="greater").pvalue)


def report(measured: Reference, status: str, reasons: tuple[str, ...], lines: list[dict]) -> RegressionReport:
    """The report, with its lines sorted: methods before cells, the largest drop first."""
    columns = ["what", "reference", "measured", "drop", "low", "high", "p", "regression", "few"]
    frame = pd.DataFrame(sorted(lines, key=lambda line: (not math.isnan(line["p"]), -line["drop"])), columns=columns)
    return RegressionReport(table=measured.table, profile=measured.profile, status=status, reasons=reasons, moved=frame)
