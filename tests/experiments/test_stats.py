"""Statistics against hand values, scipy as an independent oracle where ours is not scipy, and simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from experiments.results import moderated, stats
from experiments.results.caption import interval, with_interval


def test_mean_has_the_t_interval_computed_by_hand():
    # mean 2, sd 1, n 3: half-width = t(0.975, 2) / sqrt(3) = 4.302652730 / 1.732050808
    found = stats.mean([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half_width == pytest.approx(2.484137712, abs=1e-8)


def test_one_value_gives_no_interval():
    found = stats.mean([88.0])
    assert found.mean == 88.0
    assert math.isnan(found.low)
    assert math.isnan(found.half_width)
    assert found.reason == "one seed gives no interval"


def test_nothing_measured_has_no_mean():
    found = stats.mean([])
    assert found.n == 0
    assert math.isnan(found.mean)


def test_equal_gains_are_refused_an_interval_with_a_reason():
    found = stats.paired_gain({0: 81.0, 1: 82.0, 2: 83.0}, {0: 80.0, 1: 81.0, 2: 82.0})
    assert found.mean == pytest.approx(1.0)
    assert math.isnan(found.low)
    assert found.reason == "equal values in every seed give no interval"
    assert found.sign == 0


def test_gains_that_are_equal_but_for_rounding_are_refused_too():
    found = stats.paired_gain({0: 0.1 + 0.2, 1: 0.3}, {0: 0.0, 1: 0.0})
    assert found.reason


def test_a_gain_is_paired_by_seed_and_ignores_seeds_that_one_side_lacks():
    found = stats.paired_gain({0: 81.0, 1: 84.0, 7: 10.0}, {1: 82.0, 0: 80.0, 9: 99.0})
    alone = stats.mean([1.0, 2.0])
    assert (found.mean, found.n) == (1.5, 2)
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=8))
def test_a_paired_gain_is_the_mean_of_the_differences(pairs):
    ours = stats.paired_gain({i: a for i, (a, _) in enumerate(pairs)}, {i: b for i, (_, b) in enumerate(pairs)})
    differences = [a - b for a, b in pairs]
    assert ours.mean == pytest.approx(np.mean(differences), abs=1e-9)
    if ours.reason is None:
        assert ours.half_width == pytest.approx(stats.mean(differences).half_width, rel=1e-6, abs=1e-9)


def test_paired_intervals_cover_at_their_level():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(600):
        base, noise = rng.normal(80, 2, 5), rng.normal(1.5, 1, 5)
        found = stats.paired_gain(dict(enumerate(base + noise)), dict(enumerate(base)))
        hits += found.low <= 1.5 <= found.high
    assert 0.925 <= hits / 600 <= 0.975


def test_a_pooled_gain_averages_rows_within_seeds_before_it_asks_for_an_interval():
    pooled = stats.pooled_gain({"a": {0: 1.0, 1: 3.0}, "b": {0: 3.0, 1: 7.0}})
    by_hand = stats.mean([2.0, 5.0])
    assert pooled.estimate == by_hand
    assert pooled.spread == pytest.approx(math.sqrt(((2 - 3.5) ** 2 + (5 - 3.5) ** 2) / 1))


def test_a_row_that_lacks_seeds_is_left_out_of_the_pool_and_named():
    pooled = stats.pooled_gain({"a": {0: 1.0, 1: 3.0}, "b": {0: 30.0}})
    assert (pooled.rows, pooled.left_out) == (("a",), ("b",))
    assert pooled.estimate.mean == 2.0


def test_pooling_nothing_gives_nothing():
    assert stats.pooled_gain({}).estimate.n == 0


def test_the_interval_over_images_is_near_the_normal_one_for_many_images():
    gain = np.random.default_rng(0).choice([-100.0, 0.0, 100.0], p=[0.05, 0.85, 0.1], size=2000)
    found = stats.over_images(gain)
    normal = 1.96 * gain.std() / math.sqrt(len(gain))
    assert found.low == pytest.approx(gain.mean() - normal, abs=0.2)
    assert found.high == pytest.approx(gain.mean() + normal, abs=0.2)


def test_the_interval_over_images_is_the_same_each_time():
    gain = np.random.default_rng(0).normal(1, 5, 300)
    assert stats.over_images(gain) == stats.over_images(gain)


@pytest.mark.parametrize("gain", [np.arange(99.0), np.ones(500)])
def test_few_or_equal_images_give_no_interval(gain):
    found = stats.over_images(gain)
    assert math.isnan(found.low)
    assert found.reason


def test_many_images_take_the_percentile_interval():
    found = stats.over_images(np.random.default_rng(0).normal(1, 5, 20_000), resamples=200)
    assert found.low < 1 < found.high


def test_holm_multiplies_the_smallest_p_value_by_the_number_of_tests():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_welch_has_the_interval_computed_by_hand():
    a, b = [3.0, 4.0, 5.0], [1.0, 1.5, 2.0, 2.5]
    va, vb = 1.0 / 3, np.var(b, ddof=1) / 4
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 3)
    half = scipy_stats.t.ppf(0.975, df) * math.sqrt(va + vb)
    found = stats.welch(a, b)
    assert (found.mean, found.half_width) == pytest.approx((2.25, half))


def test_ranks_of_few_rows_take_their_p_value_from_all_permutations():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 5.0, 4.0]
    found = stats.rank_correlation(x, y)
    observed = scipy_stats.spearmanr(x, y).statistic
    every = [scipy_stats.spearmanr(x, p).statistic for p in itertools.permutations(y)]
    above = np.mean([r >= observed - 1e-12 for r in every])
    below = np.mean([r <= observed + 1e-12 for r in every])
    assert found.rho == pytest.approx(0.9)
    assert found.rho_p == pytest.approx(2 * min(above, below))
    assert found.rho_p == pytest.approx(0.0833, abs=1e-3)  # the asymptotic one claims 0.037


def test_tau_by_permutation_agrees_with_the_exact_distribution():
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]
    found, exact = stats.rank_correlation(x, y), scipy_stats.kendalltau(x, y, method="exact")
    assert (found.tau, found.tau_p) == pytest.approx((exact.statistic, exact.pvalue))


def test_many_rows_take_the_usual_p_value():
    x = np.arange(12.0)
    y = np.roll(x, 3)
    found = stats.rank_correlation(x, y)
    assert found.rho_p == pytest.approx(scipy_stats.spearmanr(x, y).pvalue)


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4])])
def test_ranks_need_four_rows_that_differ(x, y):
    assert stats.rank_correlation(x, y) is None


def test_ranks_are_averaged_over_pairs_for_each_seed_and_then_over_seeds():
    found = stats.mean_ranks(
        {
            "a": {"x": {0: 3.0, 1: 1.0}, "y": {0: 2.0, 1: 2.0}, "z": {0: 1.0, 1: 1.0}},
            "b": {"x": {0: 9.0, 1: 9.0}, "y": {0: 7.0, 1: 8.0}, "z": {0: 8.0, 1: 7.0}},
        }
    )
    # seed 0: x 1 and 1, y 2 and 3, z 3 and 2; seed 1: x 2.5 (with z) and 1, y 1 and 2, z 2.5 and 3
    assert {name: rank.mean for name, rank in found.ranks.items()} == {"x": 1.375, "y": 2.0, "z": 2.625}
    assert found.ranks["x"].half_width == pytest.approx(12.7062047 * 0.375, abs=1e-6)
    assert (found.pairs, found.left_out) == (("a", "b"), ())


def test_a_method_without_a_pair_is_not_ranked_and_a_missing_seed_is_left_out_for_all():
    found = stats.mean_ranks(
        {
            "a": {"x": {0: 3.0, 1: 1.0}, "y": {0: 2.0}, "z": {0: 9.0, 1: 9.0}},
            "b": {"x": {0: 9.0, 1: 9.0}, "y": {0: 7.0, 1: 10.0}, "z": {}},
            "not run": {"x": {}, "y": {}, "z": {}},
        }
    )
    assert {name: (rank.mean, rank.n) for name, rank in found.ranks.items()} == {"x": (1.0, 1), "y": (2.0, 1)}
    assert (found.pairs, found.left_out) == (("a", "b"), ("z",))


@pytest.mark.parametrize("values", [{}, {"a": {"x": {}}}, {"a": {"x": {0: 1.0}, "y": {1: 1.0}}}])
def test_nothing_in_common_gives_no_ranks(values):
    assert stats.mean_ranks(values).ranks == {}


@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=5))
def test_ranks_of_all_methods_sum_to_the_same_whatever_is_measured(table):
    values = {f"pair {i}": {f"m{j}": {0: float(v)} for j, v in enumerate(row)} for i, row in enumerate(table)}
    assert sum(rank.mean for rank in stats.mean_ranks(values).ranks.values()) == pytest.approx(10)


# -- what is printed of two seeds ----------------------------------------------------------------------------------


def test_an_interval_of_two_seeds_is_not_printed_but_their_ends_are():
    two = stats.mean([60.0, 85.0])  # 72.5 ± 12.706 * 25 / 2 = ± 158.83
    assert two.half_width == pytest.approx(158.83, abs=0.01)
    assert two.few
    assert two.span() == "n=2: 60.00 to 85.00"
    assert math.isnan(two.shown.low)
    assert two.shown.reason == "2 seeds (60.00 to 85.00) say too little of their spread"
    assert with_interval(two) == "72.50 (n=2: 60.00 to 85.00)"
    assert "±" not in with_interval(two, signed=True)
    assert interval(two) == "none: 2 seeds (60.00 to 85.00) say too little of their spread"


def test_from_three_seeds_on_the_interval_is_printed_as_it_was():
    three = stats.mean([1.0, 2.0, 3.0])
    assert not three.few
    assert three.shown is three
    assert with_interval(three) == "2.00 ± 2.48"
    assert three.span() == ""


def test_two_seeds_whose_spread_the_table_shares_inform():
    cells = {i: [float(i), float(i) + 1 + 0.1 * (i % 3)] for i in range(12)}
    shared = moderated.spreads(cells)
    estimate = moderated.interval(cells[3], shared[3])
    assert not shared[3].own
    assert estimate.df >= 2
    assert not estimate.few
    assert "±" in with_interval(estimate)
    alone = moderated.interval(cells[3], moderated.spreads({3: cells[3]})[3])
    assert alone.few
