"""A compared table on 80 columns: the finding first, then one block for each method with a line for each row."""

import math
from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from experiments.grids import new_table
from experiments.reproduce import Reproduction
from experiments.results.caption import heading, metric_name
from experiments.results.compare import CellResult
from experiments.results.render import on_absent_rows

NAME = 24  # columns of a pair's name at most


def narrow(done: Reproduction, finding: str = "") -> Iterator[Text | Table]:
    """What is printed, in order: title, finding, stand-ins, verdict counts, methods' blocks, and where the rest is."""
    plan, comparison = done.plan, done.comparison
    yield Text(plan.title, style="bold")
    if finding:
        yield Text(finding)
    if plan.here:
        yield Text(plan.here, style="dim")
    counts = ", ".join(f"{count} {name}" for name, count in comparison.counts("verdict").items())
    yield Text(f"Verdicts on {plan.paper}: {counts or 'none'}.")
    groups: dict[tuple[str, str, str], list[CellResult]] = {}
    for result in [each for metric in plan.metrics for each in comparison.readable(metric)]:
        groups.setdefault((result.cell.metric, result.cell.method, result.cell.variant), []).append(result)
    for (metric, *_), results in groups.items():
        yield Text()
        yield block(results, metric)
    for sentence in on_absent_rows(comparison):
        yield Text(f"\n{sentence}")
    yield Text(f"\nIntervals are 95 %. `hkd show {plan.table} > FILE` gives the whole table with its caption.")


def block(results: list[CellResult], metric: str) -> Table:
    """One method on all rows: published gain, gain with its interval and verdict; of a baseline the values."""
    has_gain = any(result.cell.baseline for result in results)
    cell = results[0].cell
    over = ": points over its baseline" if has_gain else ""
    table = new_table(title=f"{heading(cell)}, {metric_name(metric)}{over}")
    table.add_column("pair", max_width=NAME, overflow="fold")
    names = ("published", "gain", "95 %", "verdict") if has_gain else ("published", "measured", "95 %", "")
    for name in names:
        table.add_column(name, justify="left" if name in {"verdict", ""} else "right", no_wrap=name != "verdict")
    for result in results:
        *values, word = texts(result)
        if has_gain and result.cell.baseline is None:
            word = "the baseline's value"
        table.add_row(Text(result.cell.pair), *map(Text, (*values, word)))
    return table


def texts(result: CellResult) -> tuple[str, str, str, str]:
    """Published, measured, its interval, and the verdict or what stands in its place; one decimal."""
    gain = result.cell.baseline is not None
    estimate = result.shown_gain if gain else result.measured
    sign = "+" if gain else ""
    published = result.published_gain if gain else result.cell.published.value if result.cell.published else math.nan
    word = result.verdict or ("" if result.status in {"done", "quoted"} else result.status)
    if estimate.n == 0:
        return number(published, sign), "", "", word or result.status
    low, high = (number(value, sign) for value in (estimate.low, estimate.high))
    interval = estimate.span(1, sign) or (f"[{low}, {high}]" if low else "")
    return number(published, sign), number(estimate.mean, sign), interval, word


def number(value: float, sign: str) -> str:
    """One decimal; "" for no value."""
    return "" if math.isnan(value) else f"{value:{sign}.1f}"
