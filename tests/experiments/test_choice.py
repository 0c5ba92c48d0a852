"""Which method is best, and whether that is decided: against values by hand and against an error that is simulated."""

import math

import numpy as np
import pytest

from experiments.results.choice import choose

# Three methods at three seeds whose residuals are by hand: rows 1, 2, 3; 4, 6, 5; 9, 7, 8.
BY_HAND = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 4.0, 1: 6.0, 2: 5.0}, "c": {0: 9.0, 1: 7.0, 2: 8.0}}


def test_the_intervals_are_those_of_tukey_with_the_residuals_of_methods_and_seeds():
    found = choose(BY_HAND)
    assert found.means == {"c": 8.0, "b": 5.0, "a": 2.0}
    # Means of seeds are 14/3, 5, 16/3, of all 5. Squared residuals sum to 6 - 3 * 2/9 = 16/3; over 4 degrees of freedom
    # that is 4/3; q(0.95; 3, 4) is 5.040 in tables; so half a width is 5.040 * sqrt(4/3/3).
    half = 5.040 * math.sqrt(4 / 9)
    assert found.behind["b"].low == pytest.approx(3 - half, abs=2e-3)
    assert found.behind["a"].high == pytest.approx(6 + half, abs=2e-3)
    assert found.rivals == ("b",)
    assert not found.decided
    assert "not decided at 3 seeds: b may be as good" in found.sentence()


def test_a_shift_of_all_methods_at_a_seed_changes_nothing():
    shifted = {name: {seed: value + 10 * seed for seed, value in values.items()} for name, values in BY_HAND.items()}
    assert choose(shifted).behind["b"].low == pytest.approx(choose(BY_HAND).behind["b"].low)


def test_a_large_lead_is_decided():
    apart = {"a": {0: 50.0, 1: 50.5, 2: 49.5}, "b": {0: 60.0, 1: 60.4, 2: 60.1}, "c": {0: 55.0, 1: 55.1, 2: 54.7}}
    found = choose(apart)
    assert found.decided
    assert found.sentence().startswith("Best is b (60.2 %), and that is decided: 5.2 points above c")
    assert {name: rank.mean for name, rank in found.ranks.items()} == {"b": 1, "c": 2, "a": 3}


def test_one_seed_decides_nothing_and_methods_without_a_value_are_left_out():
    found = choose({"a": {0: 50.0}, "b": {0: 60.0}, "c": {}})
    assert found.left_out == ("c",)
    assert not found.decided
    assert "one seed decides nothing" in found.sentence()
    assert choose({"a": {}}) is None
    assert choose({"a": {0: 1.0}, "b": {1: 1.0}}) is None


def test_a_difference_that_is_the_same_in_every_seed_has_no_interval_and_decides_nothing():
    alone = {0: 90.0, 1: 80.0, 2: 85.0}
    found = choose({"alone": alone, "kd": {seed: value - 3.3 for seed, value in alone.items()}})
    assert not found.decided
    assert found.rivals == ("kd",)
    assert found.sentence().endswith("which says nothing of their spread.")


def test_methods_whose_means_are_printed_alike_are_level_and_none_is_named_above_the_other():
    found = choose({"a": {0: 50.0, 1: 52.0}, "b": {0: 52.0, 1: 50.0}, "c": {0: 40.0, 1: 41.0}})
    assert found.sentence() == "a and b came out first, level at 51.0 %: which is better is not decided at 2 seeds."
    assert choose({"a": {0: 50.0}, "b": {0: 50.02}, "c": {0: 50.0}}).sentence() == (
        "b, a and c came out first, level at 50.0 %: one seed decides nothing."
    )


def test_of_equal_methods_one_in_twenty_tables_at_most_names_a_best():
    rng = np.random.default_rng(0)
    tables = rng.normal(0, 1, (400, 4, 3)) + rng.normal(0, 3, (400, 1, 3))  # seeds differ more than methods do
    decided = sum(
        choose({str(i): dict(enumerate(row)) for i, row in enumerate(table.tolist())}).decided for table in tables
    )
    assert decided / 400 < 0.05
