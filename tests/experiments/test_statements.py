"""Many tests at once, and what methods do over pairs, by hand and against other implementations."""

import itertools

import numpy as np
import pytest
from scipy import stats as scipy_stats

from experiments.results import statements
from experiments.results.statements import benjamini_hochberg, performance_profile, probability_of_improvement, several
from experiments.results.stats import holm


def test_adjusted_p_values_by_hand():
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.20]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.20])
    assert benjamini_hochberg([]) == []


def test_both_corrections_are_those_of_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).uniform(0, 0.2, 25).tolist()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1].tolist())


def test_several_counts_each_way_and_ignores_what_is_no_test():
    found = several([0.001, 0.02, 0.03, 0.2, float("nan")])
    assert (found.tests, found.alone, found.holm, found.false_discovery) == (4, 3, 1, 3)


def test_the_probability_of_improvement_is_a_mean_over_pairs_of_comparisons_of_all_seeds():
    ours, theirs = {"a": {0: 3.0, 1: 1.0}, "b": {0: 5.0, 1: 6.0}}, {"a": {0: 2.0, 1: 1.0}, "b": {0: 1.0, 1: 2.0}}
    # pair a: 3>2, 3>1, 1<2, 1=1 -> 2.5 of 4; pair b: all four.
    assert probability_of_improvement(ours, theirs).mean == pytest.approx((2.5 / 4 + 1) / 2)


def test_it_is_mann_and_whitneys_u_by_its_size():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 9), rng.normal(0, 1, 7)
    found = probability_of_improvement({"r": dict(enumerate(a))}, {"r": dict(enumerate(b))})
    assert found.mean == pytest.approx(scipy_stats.mannwhitneyu(a, b).statistic / 63)
    assert 0 <= found.low <= found.mean <= found.high <= 1


def test_it_says_the_same_of_the_other_side():
    rng = np.random.default_rng(1)
    a, b = ({row: dict(enumerate(rng.normal(0, 1, 5))) for row in "xyz"} for _ in range(2))
    assert probability_of_improvement(a, b).mean + probability_of_improvement(b, a).mean == pytest.approx(1)


def test_pairs_that_one_side_lacks_do_not_count_and_one_seed_has_no_interval():
    found = probability_of_improvement({"a": {0: 1.0}, "b": {0: 9.0}}, {"a": {0: 2.0}})
    assert (found.mean, found.reason) == (0.0, "one seed gives no interval")
    assert probability_of_improvement({}, {}).n == 0


def test_a_performance_profile_counts_pairs_equally():
    gains = {"a": {0: 2.0, 1: -1.0}, "b": {0: 6.0}}
    assert performance_profile(gains, (0.0, 1.0, 5.0)) == pytest.approx((0.75, 0.75, 0.5))


def test_profiles_fall():
    rng = np.random.default_rng(0)
    for _ in range(200):
        profile = performance_profile({"a": dict(enumerate(rng.normal(1, 3, 6)))}, statements.GAINS)
        assert all(x >= y for x, y in itertools.pairwise(profile))
