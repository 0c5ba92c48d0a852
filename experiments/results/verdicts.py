"""The words for what became of a cell and what is said of it, and the order in which they are given.

One home: tables, reports and claims take them from here. The order is
1 not run, failed, diverged; 2 not applicable, quoted; 3 cannot tell here; 4 unverified; 5 holds or contradicted (values
compared: reproduced or not); 6 no effect seen; 7 too noisy.
"""

import math
from typing import Literal, get_args

from experiments.planning.plan import Cell
from experiments.results.stats import Estimate

ByValue = Literal["reproduced", "not reproduced"]
ByDirection = Literal["holds", "contradicted", "no effect seen", "too noisy"]
Verdict = Literal[
    "",
    "reproduced",
    "not reproduced",
    "holds",
    "contradicted",
    "no effect seen",
    "too noisy",
    "cannot tell here",
    "unverified",
]
Status = Literal[
    "done",
    "partial",
    "diverged",
    "not applicable",
    "not in this profile",
    "waiting",
    "failed",
    "quoted",
    "not run",
]
REPRODUCED, NOT_REPRODUCED = BY_VALUE = get_args(ByValue)
HOLDS, CONTRADICTED, NO_EFFECT, TOO_NOISY = BY_DIRECTION = get_args(ByDirection)
DECIDED = (*BY_VALUE, HOLDS, CONTRADICTED, NO_EFFECT)  # what the set-up could tell
CANNOT_TELL: Verdict = "cannot tell here"
UNVERIFIED: Verdict = "unverified"
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
STATUSES: tuple[Status, ...] = get_args(Status)
NOT_APPLICABLE: Status = "not applicable"
NOT_IN_PROFILE: Status = "not in this profile"

TOLERANCE = 0.5  # points, by value
SMALLEST_GAIN = 0.2  # points: published gains below it get no verdict


def verdict(
    cell: Cell,
    *,
    by_value: bool,
    measured: Estimate,
    gain: Estimate,
    published_gain: float,
    low_confidence: bool,
    cannot_tell: str,
    margin: float | None,
) -> Verdict:
    """The verdict on a cell, or "" where there is none to give.

    By value: reproduced if measured and published differ by at most 0.5 points or the half-width of the measured
    value's interval, whichever is larger. By direction: holds if the gain's interval lies on the side of the published
    gain, contradicted if on the other, no effect seen if it includes 0 and lies inside ± the margin, too noisy if it
    reaches beyond that or there is none.

    Args:
        cell: that is judged.
        by_value: values are compared, not directions.
        measured: its value.
        gain: its gain with the interval that judges it.
        published_gain: in points; nan where the paper's values give none.
        low_confidence: a published value in it could not be confirmed.
        cannot_tell: why this set-up cannot tell, as results/assay.py says it; "" if it can.
        margin: points within which an effect is none that matters; None: the metric has no such margin.
    """
    if cell.baseline is None or cell.added or cell.quoted or cell.published is None:
        return ""
    if not by_value and math.isnan(published_gain):
        return ""  # no published direction
    if abs(published_gain) < SMALLEST_GAIN or (measured if by_value else gain).n == 0:
        return UNVERIFIED if low_confidence else ""  # the paper's value is doubted, whatever was measured
    if cannot_tell:
        return CANNOT_TELL
    if low_confidence:
        return UNVERIFIED
    if by_value:
        tolerance = TOLERANCE if math.isnan(measured.half_width) else max(TOLERANCE, measured.half_width)
        return REPRODUCED if abs(measured.mean - cell.published.value) <= tolerance else NOT_REPRODUCED
    if gain.sign:
        return HOLDS if gain.sign == math.copysign(1, published_gain) else CONTRADICTED
    return NO_EFFECT if inside(gain, margin) else TOO_NOISY


def inside(gain: Estimate, margin: float | None) -> bool:
    """Whether the interval of a gain lies inside ± a margin: no effect that matters is left in it (Schuirmann 1987)."""
    return margin is not None and -margin < gain.low and gain.high < margin
