"""What is said of a whole table: how many of its gains are real once their number is allowed for, and how methods rank
over pairs.

Sources: Holm 1979; Benjamini & Hochberg 1995; Agarwal et al. 2021 (arXiv:2108.13264) for the probability of improvement
and performance profiles. Values are percent, gains points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from experiments.results import stats
from experiments.results.stats import Estimate

LEVEL = 0.05  # of errors over a table
GAINS = (0.0, 1.0, 5.0)  # points, of performance profiles
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Several:
    """Many tests at once: how many there were, how many pass alone, by Holm and by Benjamini-Hochberg, at 5 %."""

    tests: int
    alone: int
    holm: int
    false_discovery: int


def several(p_values: Sequence[float]) -> Several:
    """How many of several two-sided tests stand; nan counts as no test."""
    p = [value for value in p_values if not math.isnan(value)]
    return Several(
        tests=len(p),
        alone=sum(value < LEVEL for value in p),
        holm=sum(value < LEVEL for value in stats.holm(p)),
        false_discovery=sum(value < LEVEL for value in benjamini_hochberg(p)),
    )


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: reject those below the wished-for share of false discoveries."""
    return [float(p) for p in scipy_stats.false_discovery_control(p_values)] if len(p_values) else []


Pairs = Mapping[str, Mapping[int, float]]  # row -> seed -> value


def probability_of_improvement(ours: Pairs, theirs: Pairs) -> Estimate:
    """Probability that a run of one method is above a run of another on a pair drawn at random; ties count half.

    Mean over pairs of the share of (our seed, their seed) in which ours is above: Mann and Whitney's U by its size. The
    interval is a percentile bootstrap over seeds within each pair and method (fixed seed).
    """
    rows = [row for row in ours if ours[row] and theirs.get(row)]
    if not rows:
        return stats.NOTHING
    sides = [(np.array([*ours[row].values()]), np.array([*theirs[row].values()])) for row in rows]
    n = min(len(side) for pair in sides for side in pair)
    mean = float(np.mean([above(a[None], b[None])[0] for a, b in sides]))
    if n < 2:
        return Estimate(mean=mean, n=n, reason="one seed gives no interval")
    rng = np.random.default_rng(0)
    drawn = np.mean(
        [
            above(a[rng.integers(0, len(a), (RESAMPLES, len(a)))], b[rng.integers(0, len(b), (RESAMPLES, len(b)))])
            for a, b in sides
        ],
        axis=0,
    )
    low, high = np.quantile(drawn, [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2])
    return Estimate(mean=mean, low=min(float(low), mean), high=max(float(high), mean), n=n)


def above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of (a, b) with a above b, ties half. a [R, n], b [R, m] -> [R]."""
    difference = a[:, :, None] - b[:, None, :]
    return np.asarray(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(1, 2)))


def performance_profile(gains: Pairs, thresholds: Sequence[float] = GAINS) -> tuple[float, ...]:
    """Share of runs, over pairs (each counts the same) and seeds, whose gain is above each threshold."""
    rows = [np.array([*by_seed.values()]) for by_seed in gains.values() if by_seed]
    return tuple(float(np.mean([(row > tau).mean() for row in rows])) if rows else math.nan for tau in thresholds)
