"""What `hkd watch` shows: the tables that are being made, every run under way with its curves, and what ended last."""

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.execution.progress import clock, time_words
from experiments.grids import new_table
from experiments.records.live import LivePlan, LiveRun, Sight, number, series
from experiments.records.store import Record, Store
from experiments.tracking.sparkline import sparkline
from hkd.errors import UserError

CURVE = 18  # characters of a curve
ACCURACIES = {"val_top1": "val top-1", "train_top1": "train top-1"}  # the first that a run has is shown


def frame(sight: Sight, store: Store, console: Console, most: int) -> RenderableType:
    """One picture of the store, the time left first.

    Args:
        sight: what was read.
        store: for the records of the runs that ended last.
        console: whose width it must fit.
        most: runs that are shown; the others are counted.
    """
    parts: list[RenderableType] = [Text(line, style="bold") for line in headlines(sight, store)]
    for run in sight.runs[:most]:
        parts += [Text(), *run_lines(run, console.width)]
    if more := len(sight.runs) - most:
        parts += [Text(f"\nand {more} more under way")] if more > 0 else []
    if sight.stopped:
        parts += [Text("\nStopped before their end (their process is gone; the same `hkd run` continues them):")]
        parts += [Text(f"  {run.label}: {position(run)}, {clock(run.quiet)} ago") for run in sight.stopped[:most]]
    if ended := list(latest(sight, store)):
        table = new_table("ended last", "status", "metrics", fold=True)
        for record in ended:
            table.add_row(Text(record.label), record.status, Text(outcome(record)))
        parts += [Text(), table]
    return Group(*parts)


def headlines(sight: Sight, store: Store) -> Iterator[str]:
    """A line for each table that is being made, or how many runs are under way without one."""
    for plan in sight.plans:
        yield plan_line(plan)
    if not sight.plans:
        running = f"{len(sight.runs)} run{'' if len(sight.runs) == 1 else 's'} under way"
        yield f"{running}, {sight.records} ended in {store.root}"


def plan_line(plan: LivePlan) -> str:
    """`hcd_cub200 (laptop): 12 of 40 runs done, 2 running, about 12 min to go at the rate of the last 8 min`."""
    done = plan.runs - plan.todo + plan.ended
    text = f"{plan.table} ({plan.profile}): {done} of {plan.runs} runs done, {plan.under_way} running, "
    text += time_words(plan.left)
    return text + (f", at the rate of the last {clock(plan.spent)}" if plan.left is not None else "")


def run_lines(run: LiveRun, width: int) -> Iterator[RenderableType]:
    """A run: its name and place, then loss and accuracy as curves with their first and last values."""
    place = position(run)
    place += f", {time_words(run.left)}" if run.left is not None else ""
    line = Table.grid(padding=(0, 2), expand=False)
    line.add_column(overflow="ellipsis", no_wrap=True, max_width=max(20, width - len(place) - 4))
    line.add_column(no_wrap=True)
    line.add_row(Text(run.label, style="bold"), Text(place))
    yield line
    shown = [("loss", "loss", 3), *((name, label, 1) for name, label in ACCURACIES.items())]
    curves = [(label, values, digits) for name, label, digits in shown if (values := series(run.curves, name))][:2]
    if curves:
        yield Text("  " + "   ".join(curve(*each) for each in curves))
    elif "loss" in run.facts:
        yield Text(f"  loss {run.facts['loss']:.3f}")


def curve(label: str, values: list[float], digits: int) -> str:
    """`loss ▇▅▃▁ 2.310 → 0.841`."""
    ends = f"{values[0]:.{digits}f}" + (f" → {values[-1]:.{digits}f}" if len(values) > 1 else "")
    return f"{label} {sparkline(values, CURVE)} {ends}"


def position(run: LiveRun) -> str:
    """`epoch 12/22`, or for how long it has been starting."""
    if "epoch" in run.facts and "epochs" in run.facts:
        return f"epoch {run.facts['epoch']}/{run.facts['epochs']}"
    spent = number(run.facts.get("at")) + run.quiet - number(run.facts.get("started"))
    return f"starting for {clock(max(0.0, spent))}"


def latest(sight: Sight, store: Store) -> Iterator[Record]:
    """The records of the runs that ended last, as far as they can be read."""
    for key in sight.latest:
        try:
            record = store.load(key)
        except UserError:  # `hkd runs list` says what is wrong with it
            continue
        if record is not None:
            yield record


def outcome(record: Record) -> str:
    """Metrics of a run, or why there are none, and when it ended."""
    said = ", ".join(f"{name} {value:.2f}" for name, value in record.metrics.items()) or record.reason or ""
    return f"{said} ({clock(max(0.0, time.time() - record.finished))} ago)"
