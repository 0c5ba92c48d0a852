"""Moderated intervals: the gains of one table and metric lend each other what they know of their spread.

Sources: Smyth 2004 (doi 10.2202/1544-6115.1027) for prior and posterior variances; Phipson et al. 2016
(doi 10.1214/16-AOAS920) for the robust form, in which a cell much noisier than its table keeps its own variance.
The variance of a cell's paired gains over n seeds has d = n - 1 degrees of freedom: s² ~ s0² F(d, d0).
Gains are in points, variances in points squared.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from scipy import optimize, special, stats

from experiments.results.stats import LEVEL, Estimate, ends, no_interval

MIN_CELLS = 6  # fewer say nothing of a common spread: plain t
TAILS = (0.05, 0.10)  # shares of log-variances that are Winsorised, from below and from above
OUTLIER = 0.05  # upper-tail p of a cell's variance ratio below which it keeps its own variance
MOST_DF = 1e6  # a prior of more degrees of freedom is one of infinitely many
NODES = 32  # of the quadrature over quantiles

Cell = TypeVar("Cell", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the cells of a table say of a variance together: scale in points squared, and degrees of freedom d0."""

    variance: float
    df: float


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The variance that a cell's interval uses, with its degrees of freedom.

    own: it is the cell's own alone, as the cell is much noisier than its table, has a collapsed seed, or has too few
    cells beside it.
    """

    variance: float
    df: float
    own: bool


def trigamma_inverse(y: float) -> float:
    """The x with trigamma(x) = y > 0: Newton on the reciprocal, which is nearly linear and convex, so that it cannot
    overshoot; from 0.5 + 1/y as Smyth 2004 has it.
    """
    x = 0.5 + 1 / y
    for _ in range(50):
        value = float(special.polygamma(1, x))
        step = value * (1 - value / y) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


def prior(variances: Sequence[float], df: Sequence[float]) -> Prior:
    """Prior by the moments of log variances (Smyth 2004, section 6.2); every cell counts fully.

    Args:
        variances: of the cells, above 0; at least two.
        df: degrees of freedom of each.
    """
    s2, d = np.asarray(variances, dtype=float), np.asarray(df, dtype=float)
    e = np.log(s2) - special.digamma(d / 2) + np.log(d / 2)
    excess = float(np.var(e, ddof=1) - np.mean(special.polygamma(1, d / 2)))
    if excess <= 0:
        return Prior(variance=float(np.exp(np.mean(e))), df=math.inf)
    d0 = 2 * trigamma_inverse(excess)
    return Prior(variance=float(np.exp(np.mean(e) + special.digamma(d0 / 2) - math.log(d0 / 2))), df=d0)


def robust_prior(variances: Sequence[float], df: Sequence[float]) -> Prior:
    """Prior from Winsorised log variances: mean and variance of what is left are those that log F, Winsorised in the
    same tails, has with the prior's degrees of freedom.

    Cells of fewer degrees of freedom than the others are first brought to theirs, at equal tail probability under the
    prior of `prior`.
    """
    s2, d = np.asarray(variances, dtype=float), np.asarray(df, dtype=float)
    most = float(d.max())
    if (d < most).any():
        first = prior(variances, df)
        upper = ratio_tail(s2 / first.variance, d, first.df)
        s2 = first.variance * ratio_quantile(np.clip(upper, 1e-12, 1 - 1e-12), most, first.df)
    z = np.log(s2)
    z = np.clip(z, *np.quantile(z, (TAILS[0], 1 - TAILS[1])))
    mean, spread = float(z.mean()), float(z.var(ddof=1))
    if spread <= winsorised(most, math.inf)[1]:
        d0 = math.inf
    elif spread >= winsorised(most, 0.1)[1]:
        d0 = 0.1  # the table's spreads have next to nothing in common
    else:

        def short(log_d0: float) -> float:
            return winsorised(most, math.exp(log_d0))[1] - spread

        top = math.log(MOST_DF)
        d0 = math.inf if short(top) > 0 else math.exp(optimize.brentq(short, math.log(0.1), top, xtol=1e-5))
    return Prior(variance=math.exp(mean - winsorised(most, d0)[0]), df=d0)


@cache
def winsorised(df: float, prior_df: float) -> tuple[float, float]:
    """Mean and variance of log F(df, prior_df), Winsorised in `TAILS`; of log of chi²(df) / df for an infinite prior.

    By Gauss-Legendre over quantiles.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    low, high = TAILS[0], 1 - TAILS[1]
    p = np.concatenate(([low], low + (high - low) * (nodes + 1) / 2, [high]))
    w = np.concatenate(([low], weights * (high - low) / 2, [1 - high]))
    z = np.log(ratio_quantile(1 - p, df, prior_df))
    mean = float((w * z).sum())
    return mean, float((w * (z - mean) ** 2).sum())


def ratio_tail(ratio: np.ndarray, df: np.ndarray | float, prior_df: float) -> np.ndarray:
    """Upper-tail p of variance ratios s²/s0² under F(df, prior_df)."""
    if math.isinf(prior_df):
        return np.asarray(special.chdtrc(df, ratio * df))
    return np.asarray(special.fdtrc(df, prior_df, ratio))


def ratio_quantile(upper: np.ndarray, df: float, prior_df: float) -> np.ndarray:
    """The ratios with these upper-tail p."""
    if math.isinf(prior_df):
        return np.asarray(special.chdtri(df, upper) / df)
    return np.asarray(1 / special.fdtri(prior_df, df, upper))


def spreads(
    gains: Mapping[Cell, Sequence[float]], keep_own: frozenset[Cell] = frozenset(), *, robust: bool = True
) -> dict[Cell, Spread]:
    """The variance of every cell that has one, moderated where its table allows.

    Args:
        gains: paired gains over seeds, per cell of one table and metric; cells that cannot tell are left out by the
            caller, and those with one seed or with equal values here.
        keep_own: cells with a collapsed or diverged seed, which is information about that cell.
        robust: False counts every cell fully, whatever its spread.
    """
    used = {cell: np.asarray(values, dtype=float) for cell, values in gains.items() if no_spread(values) is None}
    own = {cell: Spread(variance=float(v.var(ddof=1)), df=len(v) - 1.0, own=True) for cell, v in used.items()}
    if len(own) < MIN_CELLS:
        return own
    s2, d = [each.variance for each in own.values()], [each.df for each in own.values()]
    common = robust_prior(s2, d) if robust else prior(s2, d)
    most = sum(d)
    found = {}
    for cell, each in own.items():
        tail = float(ratio_tail(np.array(each.variance / common.variance), each.df, common.df))
        if cell in keep_own or (robust and tail < OUTLIER):
            found[cell] = each
        elif math.isinf(common.df):
            found[cell] = Spread(variance=common.variance, df=most, own=False)
        else:
            both = common.df + each.df
            variance = (common.df * common.variance + each.df * each.variance) / both
            found[cell] = Spread(variance=variance, df=min(both, most), own=False)
    return found


def no_spread(values: Sequence[float]) -> str | None:
    """Why these gains have no variance, or None if they have one."""
    return "nothing measured" if not len(values) else no_interval(values)


def interval(values: Sequence[float], spread: Spread, level: float = LEVEL) -> Estimate:
    """Mean of a cell's gains with the interval of its spread."""
    n, mean = len(values), float(np.mean(values))
    half = float(stats.t.isf((1 - level) / 2, spread.df)) * math.sqrt(spread.variance / n)
    least, most = ends(values)
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n, df=spread.df, least=least, most=most)


def p_value(values: Sequence[float], spread: Spread) -> float:
    """Two-sided p of a mean gain of 0."""
    t = float(np.mean(values)) / math.sqrt(spread.variance / len(values))
    return float(2 * stats.t.sf(abs(t), spread.df))
