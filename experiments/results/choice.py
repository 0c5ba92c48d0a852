"""Which method of one pair is the best, and whether that is decided: all methods compared with each other at once.

Runs of one seed share the student's first weights and the order of the data, so seeds are blocks. Of k methods on n
seeds every pair of means is compared by Tukey's studentized range with the residual spread of the two-way layout, which
has (k - 1)(n - 1) degrees of freedom: the intervals of all differences hold together with 95 %, whichever method turns
out first. The spread is taken to be the same for all methods. Values are percent, differences points.

Source: Tukey 1953; Scheffe 1959, section 4.2 (two-way layout with one observation a cell).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats as scipy_stats

from experiments.results.compare import Comparison
from experiments.results.stats import LEVEL, Estimate, mean_ranks

EQUAL = 1e-9  # points: what differs by less between seeds does not differ


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Methods of one pair in their order, the best first.

    means: percent. ranks: mean rank over seeds with its interval. behind: of every other method, how far it is behind
    the best, in points; the intervals hold together. left_out: methods that were not measured at these seeds.
    """

    means: dict[str, float]
    ranks: dict[str, Estimate]
    behind: dict[str, Estimate]
    seeds: tuple[int, ...]
    left_out: tuple[str, ...] = ()

    @property
    def best(self) -> str:
        """The method with the highest mean."""
        return next(iter(self.means))

    @property
    def rivals(self) -> tuple[str, ...]:
        """Methods that may be as good as the best: the interval of how far they are behind includes 0, or is none."""
        return tuple(name for name, each in self.behind.items() if not each.low > 0)

    @property
    def decided(self) -> bool:
        """Whether the best is above every other."""
        return bool(self.behind) and not self.rivals

    def sentence(self) -> str:
        """Which is best, and whether that is decided."""
        if not self.behind:
            return f"{self.best} has {self.means[self.best]:.1f} %; there is nothing to compare it with."
        nearest = next(iter(self.behind))
        ahead = self.behind[nearest]
        if level := [name for name in self.rivals if f"{self.behind[name].mean:.1f}" == "0.0"]:
            several = f"{', '.join([self.best, *level[:-1]])} and {level[-1]}"
            why = ahead.reason or f"which is better is not decided at {len(self.seeds)} seeds"
            return f"{several} came out first, level at {self.means[self.best]:.1f} %: {why}."
        by = f"{ahead.mean:.1f} points above {nearest}, the next"
        if math.isnan(ahead.low):
            return f"{self.best} came out first ({self.means[self.best]:.1f} %), {by}, but {ahead.reason}."
        if not ahead.few:
            by += f" [{ahead.low:+.1f}, {ahead.high:+.1f}]"
        if self.decided:
            return f"Best is {self.best} ({self.means[self.best]:.1f} %), and that is decided: {by}."
        others = ", ".join(self.rivals)
        return (
            f"{self.best} came out first ({self.means[self.best]:.1f} %), {by}, but that is not decided at "
            f"{len(self.seeds)} seeds: {others} may be as good."
        )


def choose(values: Mapping[str, Mapping[int, float]]) -> Choice | None:
    """Compare all methods of one pair.

    Args:
        values: by method, value by seed; higher is better. Methods without a value are left out; of the others the
            seeds that all have count.

    Returns:
        None where no seed has all of them.
    """
    held = {name: by_seed for name, by_seed in values.items() if by_seed}
    seeds = sorted(set.intersection(*map(set, held.values()))) if held else []
    if not seeds:
        return None
    table = np.array([[held[name][seed] for seed in seeds] for name in held])
    means = dict(zip(held, table.mean(axis=1).tolist(), strict=True))
    order = sorted(means, key=lambda name: -means[name])
    half, reason = half_width(table)
    df = (len(held) - 1) * (len(seeds) - 1)
    gaps = {name: means[order[0]] - means[name] for name in order[1:]}
    return Choice(
        means={name: means[name] for name in order},
        ranks=mean_ranks({"": {name: {seed: held[name][seed] for seed in seeds} for name in order}}).ranks,
        behind={
            name: Estimate(mean=gap, low=gap - half, high=gap + half, n=len(seeds), df=df, reason=reason)
            for name, gap in gaps.items()
        },
        seeds=tuple(seeds),
        left_out=tuple(name for name in values if name not in held),
    )


def half_width(table: np.ndarray) -> tuple[float, str | None]:
    """Half the width of the intervals of all differences of means, and why there is none (nan).

    Args:
        table: values [k methods, n seeds].
    """
    k, n = table.shape
    if n < 2 or k < 2:
        return math.nan, "one seed decides nothing"
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    df = (k - 1) * (n - 1)
    spread = math.sqrt(float((residual**2).sum()) / df)
    if spread < EQUAL:
        return math.nan, "methods differ by the same in every seed, which says nothing of their spread"
    return quantile(k, df) * spread / math.sqrt(n), None


@cache
def quantile(k: int, df: int) -> float:
    """Of the studentized range of k means, at the level of all intervals here; it takes a moment."""
    return float(scipy_stats.studentized_range.ppf(LEVEL, k, df))


def choice_of(comparison: Comparison) -> Choice | None:
    """The choice among the columns of a table's first row, in its first metric."""
    first = comparison.cells[0].cell
    held = [each for each in comparison.cells if (each.cell.row, each.cell.metric) == (first.row, first.metric)]
    return choose({each.cell.label: each.values for each in held})
