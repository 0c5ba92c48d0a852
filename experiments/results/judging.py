"""The interval that judges each gain of a table, and whether its set-up could show one.

A fixed design has one look at all seeds and moderated 95 % intervals. A table whose seeds were bought by `--until
decided` is judged look by look, as it was when they were bought: a cell stops at the first look that decides it, and
its interval is the repeated one of that look.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from experiments.planning.plan import Cell, Plan
from experiments.records.store import Record
from experiments.results import assay, moderated, stats
from experiments.results.assay import Control
from experiments.results.moderated import Spread
from experiments.results.sequential import Design
from experiments.results.stats import LEVEL, NOTHING, Estimate
from experiments.results.verdicts import inside

NO_CELL = ("", "", "")
By = Literal["", "moderated t", "plain t"]
Stop = Literal["", "decided", "no effect", "budget", "open", "cannot tell"]
Id = tuple[tuple[str, str, str], str]  # (row, method, variant), metric
Values = Mapping[Id, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The gain of a cell with the interval that judges it.

    by: whose spread the interval uses; "" without an interval. cannot_tell: why the set-up cannot show an effect; "" if
    it can. p: two-sided, of no gain, nan without an interval or where looks were taken (their levels are not 5 %).
    collapsed: seeds at chance. stopped: in a table with looks, why the cell took no more seeds. level: two-sided error
    of the interval. spread: that the interval uses.
    """

    estimate: Estimate = NOTHING
    by: By = ""
    cannot_tell: str = ""
    p: float = math.nan
    collapsed: tuple[int, ...] = ()
    stopped: Stop = ""
    level: float = 1 - LEVEL
    spread: Spread | None = None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """All cells of a table that have a gain, by (id, metric), and the positive controls that were looked at.

    seeds: of a table with looks, how many each row took.
    """

    cells: dict[Id, Judged] = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    seeds: dict[str, int] = field(default_factory=dict)


NOT_JUDGED, NO_JUDGEMENT = Judged(), Judgement()


def judge(
    plan: Plan, records: Mapping[str, Record], values: Values, lost: Collection[Id], looks: Design | None
) -> Judgement:
    """Judge every gain of a table.

    Args:
        plan: the table at a profile.
        records: by key; of teachers above all.
        values: of cells by seed, in percent.
        lost: cells of which a run diverged.
        looks: that were taken; None: a fixed design.
    """
    if looks is None:
        return look(plan, records, values, lost, 1 - LEVEL, frozenset())
    found: dict[Id, Judged] = {}
    controls: dict[tuple[str, str], list[Control]] = {}
    seeds: dict[str, int] = {}
    for n, level in zip(looks.looks[: looks.taken], looks.levels, strict=False):
        seeds |= dict.fromkeys(going_on(plan, found), n)  # the others stopped, and have no more to be looked at
        held = {
            which: {s: v for s, v in by_seed.items() if s in plan.seeds[: seeds[which[0][0]]]}
            for which, by_seed in values.items()
        }
        shown = frozenset(key for key, group in controls.items() if any(c.decided for c in group))
        now = look(plan, records, held, lost, level, shown)
        for control in now.controls:
            if (control.metric, control.data) not in shown:
                group = [c for c in controls.get((control.metric, control.data), []) if c.label != control.label]
                controls[control.metric, control.data] = [*group, control]
        last = n == looks.looks[-1]
        for which, each in now.cells.items():
            if which not in found or found[which].stopped == "open":
                found[which] = stopped(each, plan.margins.get(which[1]), last=last)
    return Judgement(cells=found, controls=tuple(c for group in controls.values() for c in group), seeds=seeds)


def going_on(plan: Plan, found: Mapping[Id, Judged]) -> set[str]:
    """Rows that take part in the next look: those with an open cell and those that their gains are over."""
    if not found:
        return {cell.row for cell in plan.cells}
    rows = {which[0][0] for which, each in found.items() if each.stopped == "open"}
    while more := {cell.baseline[0] for cell in plan.cells if cell.row in rows and cell.baseline} - rows:
        rows |= more
    return rows


def stopped(each: Judged, margin: float | None, *, last: bool) -> Judged:
    """A cell as it is after a look: decided, without an effect, or open."""
    stop: Stop = "budget" if last else "open"
    if each.cannot_tell:
        # A control may yet be decided; a student at chance stays there.
        stop = stop if each.cannot_tell.startswith(assay.NO_CONTROL) and not last else "cannot tell"
    elif each.estimate.sign:
        stop = "decided"
    elif inside(each.estimate, margin):
        stop = "no effect"
    return replace(each, stopped=stop, p=math.nan)


def look(
    plan: Plan,
    records: Mapping[str, Record],
    values: Values,
    lost: Collection[Id],
    level: float,
    shown: frozenset[tuple[str, str]],
) -> Judgement:
    """One look at the values that are there.

    Args:
        plan, records, values, lost: as for `judge`.
        level: two-sided error of the intervals.
        shown: (metric, data) whose positive controls were decided at an earlier look.
    """
    cells = [cell for cell in plan.cells if cell.baseline is not None and not cell.quoted]
    gains = {place(cell): held for cell in cells if (held := differences(cell, values))}
    cells = [cell for cell in cells if place(cell) in gains]
    baselines: dict[Id, Id] = {place(cell): (cell.baseline or NO_CELL, cell.metric) for cell in cells}
    refused: dict[Id, str] = {}
    collapsed: dict[Id, tuple[int, ...]] = {}
    for cell in cells:
        student = assay.alone(cell, plan.cells)
        alone = list(values.get(place(student), {}).values()) if student else []
        if plan.assay is not None:
            copies = assay.copies_outputs(cell, plan)
            refused[place(cell)] = assay.cannot_tell(
                cell,
                float(np.mean(alone)) if alone else math.nan,
                assay.teacher_value(cell, plan, records) if copies else math.nan,
                plan.assay,
                copies=copies,
            )
            if not refused[place(cell)]:  # of students that are there anyway it says nothing
                collapsed[place(cell)] = assay.collapsed(cell, values[place(cell)], plan.assay)
    spreads: dict[Id, Spread] = {}
    for metric in plan.metrics:
        able = {which: list(g.values()) for which, g in gains.items() if which[1] == metric and not refused.get(which)}
        own = frozenset(c for c in able if collapsed.get(c) or c in lost or baselines[c] in lost)
        spreads |= moderated.spreads(able, own)
    found: dict[Id, Judged] = {}
    for cell in cells:
        which = place(cell)
        plain = judged(list(gains[which].values()), spreads.get(which), level)
        found[which] = replace(plain, cannot_tell=refused.get(which, ""), collapsed=collapsed.get(which, ()))
    controls = controls_of(plan, cells, gains, found, level)
    for cell in cells:
        group = [c for c in controls if (c.metric, c.data) == (cell.metric, cell.instead)]
        reason = assay.no_control(group) if (cell.metric, cell.instead) not in shown else ""
        if reason and not found[place(cell)].cannot_tell:
            found[place(cell)] = replace(found[place(cell)], cannot_tell=reason)
    return Judgement(cells=found, controls=tuple(controls))


def judged(gains: Sequence[float], spread: Spread | None, level: float) -> Judged:
    """A gain with its interval; with the plain one, or none, where no spread was found among its table's."""
    if spread is None:
        plain = moderated.spreads({"": gains})
        if not plain:
            return Judged(estimate=stats.mean(gains), level=level)
        spread = plain[""]
    by: By = "plain t" if spread.own else "moderated t"
    estimate = moderated.interval(gains, spread, 1 - level)
    return Judged(estimate=estimate, by=by, p=moderated.p_value(gains, spread), level=level, spread=spread)


def controls_of(
    plan: Plan,
    cells: Sequence[Cell],
    gains: Mapping[Id, Mapping[int, float]],
    found: Mapping[Id, Judged],
    level: float,
) -> list[Control]:
    """Positive control columns, over the rows of one metric and kind of data that could show a gain."""
    if plan.assay is None:
        return []
    names = plan.assay.controls_of(plan.table)
    columns: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if assay.column_name(cell) in names and not found[place(cell)].cannot_tell:
            columns.setdefault((assay.column_name(cell), cell.metric, cell.instead), []).append(cell)
    controls = []
    for (_, metric, data), column in columns.items():
        first = found[place(column[0])].estimate
        if len(column) > 1:
            pooled = stats.pooled_gain({cell.row: gains[place(cell)] for cell in column})
            first = at_level(pooled.estimate, [gains[place(cell)] for cell in column if cell.row in pooled.rows], level)
        controls.append(Control(label=column[0].label, metric=metric, data=data, gain=first))
    return controls


def at_level(estimate: Estimate, rows: Sequence[Mapping[int, float]], level: float) -> Estimate:
    """A pooled gain with the interval of another level."""
    if level == 1 - LEVEL or estimate.reason or not rows:
        return estimate
    means = [float(np.mean([row[seed] for row in rows])) for seed in rows[0]]
    return judged(means, None, level).estimate


def differences(cell: Cell, values: Values) -> dict[int, float]:
    """Paired gains of a cell by seed, where both sides were measured."""
    ours, theirs = values.get(place(cell), {}), values.get((cell.baseline or NO_CELL, cell.metric), {})
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def place(cell: Cell) -> Id:
    """A cell's place in a table."""
    return cell.id, cell.metric
