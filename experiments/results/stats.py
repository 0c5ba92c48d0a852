"""Statistics of measured values: intervals over seeds and over test images, paired gains, several tests, ranks.

Sources: intervals over seeds are Student's t (coverage 95 % from three seeds on, where bootstraps give 75 to 85 %);
BCa is Efron 1987, used over test images only. Holm 1979 for several tests; Welch 1947 for unequal variances.
Values are percent and differences percentage points throughout.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
EQUAL = 1e-9  # points: a spread below this is rounding, not a spread
EXACT_BELOW = 10  # rows: below this a rank correlation's p value comes from permutations
FEWEST_DF = 2.0  # of an interval that informs: three seeds, or two whose spread other cells share
MIN_IMAGES = 100  # fewer give no bootstrap interval
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
PERCENTILE_FROM = 10_000  # images: beyond, BCa's corrections vanish and its jackknife is quadratic


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its 95 % interval. Where no interval can be given, low and high are nan and `reason` says why.

    df: degrees of freedom of the interval; None: n - 1. least, most: of the values, nan where they are not known.
    """

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int
    reason: str | None = None
    df: float | None = None
    least: float = math.nan
    most: float = math.nan

    @property
    def half_width(self) -> float:
        """Half the interval's length, nan without an interval."""
        return (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies wholly above or below zero, else 0 (also without an interval)."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def few(self) -> bool:
        """Whether there is an interval of too few degrees of freedom to inform whoever reads it (12.7 standard errors
        at one); it may judge, as its coverage is right.
        """
        return not math.isnan(self.low) and (self.n - 1 if self.df is None else self.df) < FEWEST_DF

    @property
    def shown(self) -> "Estimate":
        """As it is printed and drawn: in the place of an interval that does not inform stand the values' ends."""
        if not self.few:
            return self
        ends = "" if math.isnan(self.least) else f" ({self.least:.2f} to {self.most:.2f})"
        return replace(self, low=math.nan, high=math.nan, reason=f"{self.n} seeds{ends} say too little of their spread")

    def span(self, digits: int = 2, sign: str = "") -> str:
        """`n=2: 86.10 to 90.38` of an estimate whose interval does not inform, else ""."""
        if not self.few:
            return ""
        if math.isnan(self.least):
            return f"n={self.n}"
        return f"n={self.n}: {self.least:{sign}.{digits}f} to {self.most:{sign}.{digits}f}"


NOTHING = Estimate(mean=math.nan, n=0, reason="nothing measured")


def mean(values: Sequence[float]) -> Estimate:
    """Mean with a t-interval over seeds; no interval from one value or from equal values."""
    n = len(values)
    if n == 0:
        return NOTHING
    centre = float(np.mean(values))
    reason = no_interval(values)
    if reason:
        return Estimate(mean=centre, n=n, reason=reason)
    low, high = stats.t.interval(LEVEL, n - 1, loc=centre, scale=stats.sem(values))
    least, most = ends(values)
    return Estimate(mean=centre, low=float(low), high=float(high), n=n, least=least, most=most)


def paired_gain(measured: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Mean of measured - baseline over the seeds that both have, with the paired t-interval."""
    seeds = sorted(measured.keys() & baseline.keys())
    if not seeds:
        return NOTHING
    a, b = ([values[seed] for seed in seeds] for values in (measured, baseline))
    differences = np.subtract(a, b)
    centre, n = float(differences.mean()), len(seeds)
    reason = no_interval(differences)
    if reason:
        return Estimate(mean=centre, n=n, reason=reason)
    low, high = stats.ttest_rel(a, b).confidence_interval(LEVEL)
    least, most = ends(differences)
    return Estimate(mean=centre, low=float(low), high=float(high), n=n, least=least, most=most)


def ends(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The least and the most of some values."""
    return float(np.min(values)), float(np.max(values))


def binomial(successes: int, trials: int) -> Estimate:
    """A share in percent with Wilson's interval (1927): of one model over test images that were drawn independently.

    Args:
        successes: of `trials`, at least 0 of at least 1.
    """
    low, high = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return Estimate(mean=100 * successes / trials, low=100 * float(low), high=100 * float(high), n=trials)


def no_interval(values: Sequence[float] | np.ndarray) -> str | None:
    """Why these values give no interval over seeds, or None if they do."""
    if len(values) == 1:
        return "one seed gives no interval"
    if np.ptp(values) < EQUAL:
        return "equal values in every seed give no interval"
    return None


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A gain over several rows: its mean with an interval over seeds, and how much rows differ.

    spread: standard deviation of the rows' mean gains, nan for one row. rows: those that entered; left_out: those
    with fewer seeds than the others. images: the second interval, over test images, where predictions were kept.
    """

    estimate: Estimate
    spread: float
    rows: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    images: Estimate | None = None


def pooled_gain(gains: Mapping[str, Mapping[int, float]]) -> Pooled:
    """The mean over rows for each seed, then a t-interval over seeds.

    Rows that lack a seed which another row has are left out: otherwise seeds would average different rows.

    Args:
        gains: per row, gain in points by seed.
    """
    seeds = sorted({seed for by_seed in gains.values() for seed in by_seed})
    rows = tuple(row for row, by_seed in gains.items() if seeds and len(by_seed) == len(seeds))
    table = np.array([[gains[row][seed] for seed in seeds] for row in rows])  # rows x seeds
    return Pooled(
        estimate=mean(table.mean(axis=0).tolist()) if rows else NOTHING,
        spread=float(table.mean(axis=1).std(ddof=1)) if len(rows) > 1 else math.nan,
        rows=rows,
        left_out=tuple(row for row in gains if row not in rows),
    )


@dataclass(frozen=True, kw_only=True)
class MeanRanks:
    """Mean rank of every method over pairs; 1 is the best.

    ranks: per method, with an interval over seeds. pairs: those that entered. left_out: methods that lack a pair, and
    would be judged on others than the rest.
    """

    ranks: dict[str, Estimate]
    pairs: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def mean_ranks(values: Mapping[str, Mapping[str, Mapping[int, float]]]) -> MeanRanks:
    """Rank methods within each pair and seed (equal values share the mean of their ranks), average over pairs for each
    seed, then a t-interval over seeds.

    Only methods measured on every pair are ranked, at the seeds that all of them have on every pair: a rank says
    nothing without the same company.

    Args:
        values: per pair and method, value by seed; higher is better.
    """
    pairs = tuple(pair for pair, methods in values.items() if any(methods.values()))
    names = list(dict.fromkeys(name for pair in pairs for name in values[pair]))
    full = [name for name in names if all(values[pair].get(name) for pair in pairs)]
    cells = [values[pair][name] for pair in pairs for name in full]
    seeds = sorted(set.intersection(*(set(cell) for cell in cells))) if cells else []
    per_seed = [
        np.mean([stats.rankdata([-values[pair][name][seed] for name in full]) for pair in pairs], axis=0)
        for seed in seeds
    ]
    return MeanRanks(
        ranks={name: mean([float(ranks[i]) for ranks in per_seed]) for i, name in enumerate(full)} if seeds else {},
        pairs=pairs,
        left_out=tuple(name for name in names if name not in full),
    )


def over_images(gain: np.ndarray, resamples: int = 5000) -> Estimate:
    """Mean gain with a bootstrap interval over test images (BCa; percentile from 10,000 images on).

    Args:
        gain: [N] gain in points at each test image, averaged over seeds (and rows).
    """
    n, centre = len(gain), float(np.mean(gain)) if len(gain) else math.nan
    if n < MIN_IMAGES:
        return Estimate(mean=centre, n=n, reason=f"fewer than {MIN_IMAGES} test images give no interval")
    if np.ptp(gain) < EQUAL:
        return Estimate(mean=centre, n=n, reason="equal values at every image give no interval")
    interval = stats.bootstrap(
        (gain,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=resamples,
        method="BCa" if n < PERCENTILE_FROM else "percentile",
        batch=max(1, 4_000_000 // n),
        rng=np.random.default_rng(0),  # fixed, so that equal inputs give equal bytes
    ).confidence_interval
    return Estimate(mean=centre, low=float(interval.low), high=float(interval.high), n=n)


def welch(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Mean of a - b for unpaired samples of unequal variance, with Welch's t-interval; n is the smaller size."""
    n = min(len(a), len(b))
    if n == 0:
        return NOTHING
    centre = float(np.mean(a) - np.mean(b))
    if n == 1:
        return Estimate(mean=centre, n=n, reason="one seed gives no interval")
    if np.ptp(a) < EQUAL and np.ptp(b) < EQUAL:
        return Estimate(mean=centre, n=n, reason="equal values in every seed give no interval")
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(LEVEL)
    return Estimate(mean=centre, low=float(low), high=float(high), n=n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: reject those below the wished-for family-wise level."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(order))
    rising = np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(rising, 1.0)
    return [float(p) for p in adjusted]


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Kendall's tau-b and Spearman's rho with two-sided p values over n rows."""

    tau: float
    tau_p: float
    rho: float
    rho_p: float
    n: int


def rank_correlation(published: Sequence[float], measured: Sequence[float]) -> RankCorrelation | None:
    """How far two orders agree; None below four rows or where one side is constant.

    Below ten rows p values come from permutations (all of them up to eight rows), as the asymptotic ones are too small.
    """
    n = len(published)
    if n < 4 or np.ptp(published) < EQUAL or np.ptp(measured) < EQUAL:
        return None
    tau, rho = stats.kendalltau(published, measured), stats.spearmanr(published, measured)
    tau_p, rho_p = tau.pvalue, rho.pvalue
    if n < EXACT_BELOW:
        tau_p, rho_p = (permutation_p(published, measured, statistic) for statistic in (concordance, rank_product))
    return RankCorrelation(
        tau=float(tau.statistic), tau_p=float(tau_p), rho=float(rho.statistic), rho_p=float(rho_p), n=n
    )


def permutation_p(x: Sequence[float], y: Sequence[float], statistic: Statistic) -> float:
    """Two-sided p value of `statistic(ranks of x, centred ranks of y)` over re-pairings of the rows."""
    ranks_x, ranks_y = (r - r.mean() for r in map(stats.rankdata, (x, y)))
    result = stats.permutation_test(
        (ranks_x,),
        lambda permuted, axis: statistic(permuted, ranks_y),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.factorial(8),
        batch=10_000,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def concordance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Concordant minus discordant pairs: Kendall's tau up to a factor re-pairing leaves alone. x [..., n], y [n]."""
    i, j = np.triu_indices(len(y), k=1)
    return (np.sign(x[..., i] - x[..., j]) * np.sign(y[i] - y[j])).sum(axis=-1)


def rank_product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sum of products of centred ranks: Spearman's rho up to such a factor. x [..., n], y [n]."""
    return (x * y).sum(axis=-1)
