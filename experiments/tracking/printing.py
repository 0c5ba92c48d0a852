"""How two compared runs are printed: metrics first, then what differs, then the curves on one axis."""

import math
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from experiments.grids import new_table
from experiments.results.caption import metric_name
from experiments.results.stats import Estimate
from experiments.tracking.comparing import Metric, Pair, curve_pairs
from experiments.tracking.sparkline import sparkline

CURVE = 40  # characters of a curve


def pair_lines(pair: Pair, console: Console) -> Iterator[RenderableType]:
    """What is printed, in order; fits 80 columns."""
    for letter, record in zip("AB", pair.records, strict=True):
        status = "" if record.status == "done" else f", {record.status}: {record.reason}"
        yield Text(f"{letter}  {record.key}  {record.label}{status}")
    if pair.metrics:
        yield Text()
        yield metrics_table(pair.metrics)
        if any(not math.isnan(each.difference.low) for each in pair.metrics):
            yield Text("Intervals: 95 % over the test images that both runs saw; the difference is paired by image.")
        for each in pair.metrics:
            if each.over_seeds.n > 1:
                yield Text(seeds_line(each, pair))
    yield Text()
    if pair.different:
        yield differences_table("setting that differs", pair.different)
    else:
        yield Text("Their settings are the same.")
    if pair.where:
        yield Text()
        yield differences_table("where they ran", pair.where)
    for label, sides in curve_pairs(pair).items():
        yield Text()
        yield Text(f"{label}, by epoch", style="bold")
        ends = [value for side in sides for value in side]
        for letter, values in zip("AB", sides, strict=True):
            line = sparkline(values, CURVE, min(ends), max(ends))
            said = f"{values[0]:.3g} → {values[-1]:.3g} in {len(values)} epochs" if values else "none kept"
            yield Text(f"{letter}  {line}  {said}")


def metrics_table(metrics: list[Metric]) -> Table:
    """A line for each metric."""
    table = new_table()
    for column in ("metric", "A", "B", "B - A"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for each in metrics:
        texts = (value(each.first), value(each.second), value(each.difference, "+"))
        table.add_row(metric_name(each.name), *map(Text, texts))
    return table


def value(estimate: Estimate, sign: str = "") -> str:
    """`66.40 [62.1, 70.2]`, or without an interval where there is none."""
    text = f"{estimate.mean:{sign}.2f}"
    shown = estimate.shown
    return text if math.isnan(shown.low) else f"{text} [{shown.low:{sign}.1f}, {shown.high:{sign}.1f}]"


def seeds_line(each: Metric, pair: Pair) -> str:
    """The difference over the seeds of both settings."""
    over = each.over_seeds
    interval = over.span(2, "+") or ("no interval: " + over.reason if over.reason else f"± {over.half_width:.2f}")
    return (
        f"Over the {over.n} seeds that the store has of both settings, {metric_name(each.name)}, B - A: "
        f"{over.mean:+.2f} ({interval})."
    )


def differences_table(title: str, lines: list[tuple[str, str, str]]) -> Table:
    """Names with both values."""
    table = new_table(title, "A", "B", fold=True)
    for line in lines:
        table.add_row(*map(Text, line))
    return table
