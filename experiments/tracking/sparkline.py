"""A curve in one line of text."""

import math
from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int, low: float | None = None, high: float | None = None) -> str:
    """`▇▅▃▂▁` of a series: one bar for each value, or for the mean of neighbours where there are more than fit.

    Args:
        values: in order; what is not finite is a gap.
        width: characters at most.
        low, high: ends of the axis; None: the least and the most of the values. A flat series is a low line.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    bottom = min(finite) if low is None else low
    top = max(finite) if high is None else high
    return "".join(bar(value, bottom, top) for value in resampled(values, width))


def bar(value: float, low: float, high: float) -> str:
    """One character of a sparkline."""
    if not math.isfinite(value):
        return " "
    share = (value - low) / (high - low) if high > low else 0.0
    return BARS[min(len(BARS) - 1, max(0, int(share * len(BARS))))]


def resampled(values: Sequence[float], width: int) -> list[float]:
    """The series in at most `width` parts: the mean of the finite values of each, nan without any."""
    if len(values) <= width:
        return list(values)
    edges = [i * len(values) // width for i in range(width + 1)]
    parts = ([v for v in values[a:b] if math.isfinite(v)] for a, b in pairwise(edges))
    return [sum(held) / len(held) if held else math.nan for held in parts]
