"""Moderated variances against hand values, the formulas of limma written anew, and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import integrate, optimize, special
from scipy import stats as scipy_stats

from experiments.results import moderated
from experiments.results.moderated import Spread, interval, prior, robust_prior, spreads, trigamma_inverse
from experiments.results.stats import mean


@pytest.mark.parametrize("y", [1e-6, 0.01, 0.4, 1.0, math.pi**2 / 6, 30.0, 1e6])
def test_the_inverse_of_trigamma_is_its_inverse(y):
    assert float(special.polygamma(1, trigamma_inverse(y))) == pytest.approx(y, rel=1e-8)


def test_the_inverse_of_trigamma_has_its_known_values():
    assert trigamma_inverse(math.pi**2 / 6) == pytest.approx(1.0)  # trigamma(1)
    assert trigamma_inverse(math.pi**2 / 2) == pytest.approx(0.5)  # trigamma(1/2)


def test_the_prior_has_the_moments_of_log_variances():
    variances, d = [0.5, 2.0, 1.0, 8.0, 0.1, 3.0, 0.02, 20.0], 2.0
    found = prior(variances, [d] * 8)
    z = np.log(variances)
    # What F(d, d0) says of z: var z = trigamma(d/2) + trigamma(d0/2); mean z = log s0² + psi(d/2) - psi(d0/2) + ...
    assert special.polygamma(1, d / 2) + special.polygamma(1, found.df / 2) == pytest.approx(z.var(ddof=1))
    shift = special.digamma(d / 2) - math.log(d / 2) - special.digamma(found.df / 2) + math.log(found.df / 2)
    assert math.log(found.variance) + shift == pytest.approx(z.mean())


def test_equal_variances_share_everything_and_degrees_of_freedom_stop_at_those_of_all_cells():
    gains = {cell: [shift - 1.0, shift, shift + 1.0] for cell, shift in enumerate(range(7))}  # variance 1 each, d = 2
    common = prior([1.0] * 7, [2.0] * 7)
    assert math.isinf(common.df)
    assert common.variance == pytest.approx(math.exp(-special.digamma(1.0)))  # e = 0 - psi(1) + log(1)
    found = spreads(gains, robust=False)
    assert {(each.df, each.own) for each in found.values()} == {(14.0, False)}


def test_the_posterior_variance_is_the_weighted_mean_of_prior_and_own():
    rng = np.random.default_rng(3)
    gains = {c: rng.normal(0, s, 3) for c, s in enumerate(rng.uniform(0.2, 6, 30))}
    s2 = {c: float(np.var(v, ddof=1)) for c, v in gains.items()}
    common = prior([*s2.values()], [2.0] * 30)
    assert math.isfinite(common.df)
    for cell, each in spreads(gains, robust=False).items():
        assert each.variance == pytest.approx((common.df * common.variance + 2 * s2[cell]) / (common.df + 2))
        assert each.df == pytest.approx(min(common.df + 2, 60))


def test_the_interval_is_that_of_t_with_the_posterior_variance_and_degrees_of_freedom():
    found = interval([1.0, 2.0, 6.0], Spread(variance=4.0, df=7.5, own=False))
    half = scipy_stats.t.ppf(0.975, 7.5) * 2 / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    assert interval([1.0, 2.0, 6.0], Spread(variance=4.0, df=7.5, own=False), level=0.99).half_width > half


def test_a_p_value_is_below_5_percent_exactly_where_the_interval_leaves_0_out():
    for shift in np.linspace(0.5, 4, 30):
        spread = Spread(variance=2.0, df=5.0, own=False)
        gains = [shift - 1, shift, shift + 1]
        assert (moderated.p_value(gains, spread) < 0.05) == (interval(gains, spread).sign != 0)


def test_fewer_than_six_cells_keep_the_plain_interval():
    rng = np.random.default_rng(0)
    gains = {c: rng.normal(0, 1, 4).tolist() for c in range(5)}
    for cell, each in spreads(gains).items():
        plain = mean(gains[cell])
        found = interval(gains[cell], each)
        assert each.own
        assert (found.low, found.high) == pytest.approx((plain.low, plain.high))


def test_equal_values_and_single_seeds_stay_out():
    rng = np.random.default_rng(0)
    gains = {c: rng.normal(0, 1, 3).tolist() for c in range(8)}
    with_others = spreads({**gains, "equal": [1.0, 1.0, 1.0], "one": [2.0], "none": []})
    assert with_others == spreads(gains)


def test_a_much_noisier_cell_keeps_its_own_variance_and_moves_the_others_little():
    rng = np.random.default_rng(1)
    gains = {c: rng.normal(0, 1, 3).tolist() for c in range(20)}
    found = spreads({**gains, "collapsed": [-60.0, 2.0, 1.0]})
    assert found["collapsed"].own
    assert found["collapsed"].df == 2
    alone = spreads(gains)
    assert all(found[c].variance == pytest.approx(alone[c].variance, rel=0.35) for c in gains if not alone[c].own)
    assert not spreads({**gains, "collapsed": [-60.0, 2.0, 1.0]}, robust=False)["collapsed"].own


def test_a_cell_that_is_named_keeps_its_own_variance_whatever_it_is():
    rng = np.random.default_rng(1)
    gains = {c: rng.normal(0, 1, 3).tolist() for c in range(10)}
    found = spreads(gains, frozenset({4}))
    assert found[4].own
    assert found[4].variance == pytest.approx(np.var(gains[4], ddof=1))


@pytest.mark.parametrize(("d", "d0"), [(2.0, 3.0), (4.0, 12.0), (2.0, math.inf)])
def test_winsorised_moments_are_those_of_an_adaptive_quadrature(d, d0):
    of = scipy_stats.chi2(d) if math.isinf(d0) else scipy_stats.f(d, d0)
    scale = d if math.isinf(d0) else 1.0
    low, high = np.log(of.ppf([0.05, 0.90]) / scale)

    def moment(k, centre=0.0):
        inside = integrate.quad(lambda p: (math.log(of.ppf(p) / scale) - centre) ** k, 0.05, 0.90)[0]
        return inside + 0.05 * (low - centre) ** k + 0.10 * (high - centre) ** k

    found = moderated.winsorised(d, d0)
    assert found == pytest.approx((moment(1), moment(2, moment(1))), rel=1e-4)


def test_the_robust_prior_has_the_winsorised_moments_that_were_observed():
    rng = np.random.default_rng(2)
    s2 = 2.0 * rng.f(2, 6, 60)
    found = robust_prior(s2.tolist(), [2.0] * 60)
    z = np.log(s2)
    z = np.clip(z, *np.quantile(z, [0.05, 0.9]))
    centre, spread = moderated.winsorised(2.0, found.df)
    assert spread == pytest.approx(z.var(ddof=1), rel=1e-3)
    assert math.log(found.variance) + centre == pytest.approx(z.mean(), abs=1e-6)


def test_the_robust_prior_of_a_large_table_is_the_one_it_was_drawn_from():
    rng = np.random.default_rng(5)
    s2 = 3.0 * rng.f(2, 8, 4000)
    s2[:200] *= 64  # five in a hundred cells are of another kind
    found = robust_prior(s2.tolist(), [2.0] * 4000)
    assert found.variance == pytest.approx(3.0, rel=0.15)
    plain = prior(s2.tolist(), [2.0] * 4000).df  # does not see through them
    assert abs(found.df - 8) < abs(plain - 8)
    assert found.df > 1.3 * plain


def test_cells_of_fewer_seeds_count_in_the_robust_prior_at_their_own_degrees_of_freedom():
    rng = np.random.default_rng(6)
    d = np.where(np.arange(3000) % 3 == 0, 2.0, 4.0)
    s2 = 2.0 * rng.f(d, 10)
    found = robust_prior(s2.tolist(), d.tolist())
    assert found.variance == pytest.approx(2.0, rel=0.1)
    assert 7 < found.df < 15


def by_limma(variances, d):
    """squeezeVar's moments, solved by bracketing instead of Newton's steps: an independent derivation."""
    e = np.log(variances) - special.digamma(d / 2) + np.log(d / 2)
    excess = e.var(ddof=1) - special.polygamma(1, d / 2)
    if excess <= 0:
        return math.inf, math.exp(e.mean())
    d0 = 2 * optimize.brentq(lambda x: float(special.polygamma(1, x)) - excess, 1e-4, 1e7)
    return d0, math.exp(e.mean() + special.digamma(d0 / 2) - math.log(d0 / 2))


@pytest.mark.parametrize("seed", range(6))
def test_the_prior_is_limmas(seed):
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.5, 2) * rng.f(4, 6, 25)
    found = prior(variances.tolist(), [4.0] * 25)
    assert (found.df, found.variance) == pytest.approx(by_limma(variances, 4.0), rel=1e-6)


def draw(kind, cells, rng):
    """True variances of a table."""
    if kind == "inverse chi2":
        return 2.5 / rng.chisquare(2.5, cells)
    if kind == "two groups":
        return np.where(rng.random(cells) < 0.5, 1.0, 16.0)
    if kind == "some 64 times":
        return np.where(rng.random(cells) < 0.1, 64.0, 1.0)
    return np.ones(cells)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["inverse chi2", "equal", "two groups", "some 64 times"])
@pytest.mark.parametrize(
    ("cells", "seeds", "width"), [(12, 3, (0.55, 0.72)), (22, 3, (0.55, 0.72)), (22, 5, (0.75, 0.92))]
)
def test_moderated_intervals_cover_and_are_narrower(kind, cells, seeds, width):
    rng = np.random.default_rng(0)
    hits, noisy, ours, plain = [], [], [], []
    for _ in range(400):
        true = draw(kind, cells, rng)
        gains = rng.normal(0, np.sqrt(true)[:, None], (cells, seeds))
        found = spreads(dict(enumerate(gains)))
        halves = []
        for cell, each in found.items():
            estimate = interval(gains[cell], each)
            hits.append(estimate.low <= 0 <= estimate.high)
            halves.append(estimate.half_width)
            if true[cell] > 3 * np.median(true):
                noisy.append(hits[-1])
        ours.append(np.median(halves))
        plain.append(np.median(scipy_stats.t.ppf(0.975, seeds - 1) * gains.std(axis=1, ddof=1) / math.sqrt(seeds)))
    assert 0.93 <= np.mean(hits) <= 0.97
    assert width[0] <= np.median(ours) / np.median(plain) <= width[1]
    assert not noisy or np.mean(noisy) >= 0.82
