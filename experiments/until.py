"""Buying decisions with seeds: `hkd run TABLE --until decided` and its forecast.

A table is looked at after planned numbers of seeds; more seeds are run only for rows of which something is still open,
and all looks together err in 5 % (results/sequential.py). The design and the number of looks are stored with the table
and stay what they were: a table is never looked at between them.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import places
from experiments.execution.progress import clock
from experiments.planning.asked import planned
from experiments.planning.plan import Plan
from experiments.records.committed import Records
from experiments.records.store import Store
from experiments.reproduce import Reproduction, compared, expected_here, reproduce
from experiments.results import sequential
from experiments.results.compare import Comparison, compare
from experiments.results.judging import Judgement, going_on
from experiments.results.sequential import LOOKS, Design, boundary, design, nominal_levels, stored
from experiments.results.verdicts import inside
from hkd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Bought:
    """A table that was looked at: as it stands, its looks, and why no more were taken (None: everything is settled)."""

    done: Reproduction
    looks: Design
    stopped: str | None = None


def check_asked(until: str | None, seeds: int | None, margin: float | None, max_seeds: int | None) -> None:
    """Refuse what does not go together on a command line.

    Raises:
        UserError: one sentence.
    """
    if until is None:
        if margin is not None or max_seeds is not None:
            name = "--margin" if margin is not None else "--max-seeds"
            raise UserError(f"{name} says when a table is decided; give --until decided with it.")
        return
    if seeds == 1:
        raise UserError("--until decided cannot decide anything of one seed: leave --seeds out, looks begin at five.")
    if seeds is not None:
        raise UserError(
            f"--until decided looks at planned numbers of seeds ({', '.join(map(str, LOOKS))}): "
            "give --max-seeds instead of --seeds."
        )
    if margin is not None and not margin > 0:
        raise UserError(f"--margin is {margin:g} points; an effect inside ± a margin needs one above 0.")


def asked(table: str, profile: str | None, margin: float | None, max_seeds: int | None) -> tuple[Plan, Design]:
    """The whole plan of a table, at its last look, and its design: the stored one, if looks were taken.

    Raises:
        UserError: the table has no gains, or another design than it was looked at with is asked for.
    """
    wanted = design(max_seeds)
    one = planned(table, profile, 1)
    if not any(cell.baseline is not None and cell.runs for cell in one.cells):
        raise UserError(f"Table '{table}' has no gains at profile '{one.profile}', so there is nothing to decide.")
    kept = looks_of(one)
    margins = dict.fromkeys(one.metrics, margin) if margin is not None else one.margins
    if kept is None:
        found = wanted.model_copy(update={"margins": {m: v for m, v in margins.items() if m in one.metrics}})
    else:
        found = kept
        other = [
            *(["--max-seeds"] if max_seeds is not None and wanted.looks != kept.looks else []),
            *(["--margin"] if margin is not None and set(kept.margins.values()) != {margin} else []),
        ]
        if other:
            raise UserError(
                f"Table '{table}' was looked at {kept.taken} times with looks planned at "
                f"{', '.join(map(str, kept.looks))} seeds: {' and '.join(other)} cannot change after the first look."
            )
    return replace(planned(table, profile, found.looks[-1]), margins=found.margins), found


def buy(
    whole: Plan,
    looks: Design,
    store: Store,
    *,
    minutes: float | None = None,
    new_only: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
    watch: Callable[[Plan, str], Any],
    **how: Any,
) -> Bought:
    """Take looks until nothing is open, the last one was taken, or the minutes would not do for another.

    Args:
        whole: the table at its last look.
        looks: its design, with the looks that were taken before.
        store: where records are.
        minutes: from now; the first look is always taken.
        new_only: as for `reproduce`.
        tell: told after every look how many cells are open, and what the next look should take.
        watch: makes a context that listens to a plan's runs, with a note.
        how: as for `reproduce`.
    """
    began, done, stopped = time.monotonic(), None, None
    now = judged(whole, looks, store) if looks.taken else Judgement()
    note = state(now, looks) if looks.taken else "first look"
    while looks.taken < len(looks.looks) and (rows := going_on(whole, now.cells)):
        taking = looks.model_copy(update={"taken": looks.taken + 1})
        plan = narrowed(whole, {**now.seeds, **dict.fromkeys(rows, taking.seeds)})
        expected = expected_here(plan, Records(plan, store, places.references()), new_only=new_only)
        if looks.taken:
            tell(f"{note}; next: {len(rows)} rows at {taking.seeds} seeds" + about(expected))
            left = None if minutes is None else 60 * minutes - (time.monotonic() - began)
            if left is not None and (left <= 0 or (expected or 0) > left):
                stopped = f"{minutes:g} minutes do not reach to {taking.seeds} seeds"
                break
        with watch(plan, f"look {taking.taken} of {len(looks.looks)} at {taking.seeds} seeds; {note}") as listener:
            done = reproduce(plan, store, looks=taking, new_only=new_only, on_event=listener, **how)
        if done.report is not None and done.report.failed:
            stopped = f"{len(done.report.failed)} runs failed, and a look needs all of them"
            break
        looks = taking
        now = done.comparison.judgement
        note = state(now, looks)
    if done is None:
        done = replace(as_bought(whole, looks, store), report=None)
    return Bought(done=done, looks=looks, stopped=stopped)


def as_bought(whole: Plan, looks: Design, store: Store) -> Reproduction:
    """A table as its looks left it, from the records that exist; nothing is run or written."""
    return compared(narrowed(whole, judged(whole, looks, store).seeds), store, looks)


def shown(chosen: Plan, store: Store) -> Reproduction | None:
    """A table as its looks left it, or None if none were taken.

    Args:
        chosen: the table as a fixed design.
        store: where records are.
    """
    looks = looks_of(chosen)
    if looks is None:
        return None
    whole = replace(planned(chosen.table, chosen.profile, looks.seeds, shown_from=store), margins=looks.margins)
    return as_bought(whole, looks, store)


def as_committed(chosen: Plan, store: Store) -> tuple[Plan, Comparison, Records] | None:
    """What the committed looks at a table left, from the committed records; None where there are none.

    Args:
        chosen: the table as a fixed design.
        store: an empty one.
    """
    looks = stored(committed_looks(chosen))
    if looks is None:
        return None
    whole = replace(planned(chosen.table, chosen.profile, looks.seeds, shown_from=store), margins=looks.margins)
    found = as_bought(whole, looks, store)
    return found.plan, found.comparison, found.records


def looks_of(plan: Plan) -> Design | None:
    """The looks that were taken at a table: here, or else where its records were committed."""
    return stored(sequential.path_of(places.tables(plan.profile), plan.table), committed_looks(plan))


def committed_looks(plan: Plan) -> Path:
    """Where the looks at a table are committed, beside its records."""
    return sequential.path_of(places.references() / plan.profile, plan.table)


def commit(chosen: Plan, store: Store) -> Plan:
    """The plan whose records are committed for a table: what was bought, after writing its looks, if there are any.

    Args:
        chosen: the table as a fixed design, which stays where no looks were taken.
        store: where records are.
    """
    looks = looks_of(chosen)
    if looks is None:
        return chosen
    whole = replace(planned(chosen.table, chosen.profile, looks.looks[-1]), margins=looks.margins)
    sequential.store(looks, committed_looks(chosen))
    return narrowed(whole, judged(whole, looks, store).seeds)


def judged(whole: Plan, looks: Design, store: Store) -> Judgement:
    """The looks that were taken, judged again from the records."""
    return compare(whole, Records(whole, store, places.references()), looks=looks).judgement


def narrowed(plan: Plan, seeds: Mapping[str, int]) -> Plan:
    """A plan of which each row has its first so many seeds, and the runs that these need."""
    cells = tuple(replace(cell, runs=cell.runs[: seeds.get(cell.row, 0)]) for cell in plan.cells)
    needed, front = set(), [key for cell in cells for key in cell.runs]
    while front:
        key = front.pop()
        if key not in needed:
            needed.add(key)
            front += plan.runs[key].needs
    return replace(
        plan,
        cells=cells,
        runs={key: run for key, run in plan.runs.items() if key in needed},
        teachers={slug: key for slug, key in plan.teachers.items() if key in needed},
        seeds=plan.seeds[: max(seeds.values(), default=0)],
    )


def state(now: Judgement, looks: Design) -> str:
    """`after 8 seeds: 14 of 22 cells decided, 3 without an effect, 5 open`."""
    stops = Counter(each.stopped for each in now.cells.values())
    words = (("decided", "decided"), ("no effect", "without an effect"), ("cannot tell", "cannot tell here"),
             ("budget", "ended by the budget"), ("open", "open"))  # fmt: skip
    counted = [f"{stops[stop]} {word}" for stop, word in words if stops[stop]]  # type: ignore[index]
    return f"after {looks.seeds} seeds, of {len(now.cells)} cells: {', '.join(counted) or 'none with a gain'}"


def about(seconds: float | None) -> str:
    """`, about 3 min 20 s`, or nothing where no similar run was ever timed."""
    return "" if seconds is None else f", about {clock(seconds)}"


# -- the forecast --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What deciding a table should take, if means and spreads stay what they are.

    seeds: per row, at the look that should settle it. settled: cells of which nothing is open then; never: those that
    the last look would leave open; unknown: those without two seeds. seconds: None if nothing similar was ever run.
    """

    seeds: dict[str, int]
    cells: int
    settled: int
    never: int
    unknown: int
    seconds: float | None


def forecast(whole: Plan, looks: Design, store: Store) -> Forecast:
    """From the records at hand; before the first look those of the first look's seeds, or fewer."""
    planned_now = looks if looks.taken else None
    held = narrowed(whole, dict.fromkeys({cell.row for cell in whole.cells}, looks.looks[0]))
    now = (
        judged(whole, looks, store)
        if planned_now
        else compare(held, Records(held, store, places.references())).judgement
    )
    gains = {(c.id, c.metric) for c in whole.cells if c.baseline is not None and c.runs and not c.quoted}
    seeds = {**dict.fromkeys((cell.row for cell in whole.cells), looks.looks[0]), **now.seeds}
    settled = never = unknown = 0
    for which in gains:
        each = now.cells.get(which)
        if each is not None and each.stopped not in ("", "open"):
            settled += 1
            continue
        if each is not None and each.cannot_tell:
            settled += 1
            continue
        if each is None or each.spread is None:
            unknown += 1
            continue
        needed = next((n for n in looks.looks[looks.taken :] if would_stop(whole, which, each, looks, n)), None)
        never += needed is None
        settled += needed is not None
        seeds[which[0][0]] = max(seeds[which[0][0]], needed or looks.looks[-1])
    for cell in whole.cells:
        if cell.baseline is not None:
            seeds[cell.baseline[0]] = max(seeds[cell.baseline[0]], seeds[cell.row])
    rest = narrowed(whole, seeds)
    return Forecast(
        seeds=seeds,
        cells=len(gains),
        settled=settled,
        never=never,
        unknown=unknown,
        seconds=expected_here(rest, Records(rest, store, places.references())),
    )


def would_stop(whole: Plan, which: Any, each: Any, looks: Design, n: int) -> bool:
    """Whether a look at n seeds would settle a cell whose mean and spread stay what they are."""
    level = nominal_levels(looks.looks)[looks.looks.index(n)]
    df = each.spread.df + max(0, n - each.estimate.n)
    half = boundary(level, df) * (each.spread.variance / n) ** 0.5
    mean = each.estimate.mean
    there = replace(each.estimate, low=mean - half, high=mean + half)
    return bool(there.sign) or inside(there, whole.margins.get(which[1]))
