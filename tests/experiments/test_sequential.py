"""Looks: their boundaries against published ones and simulation, what a stored design may be, and bad input."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from experiments.results import sequential
from experiments.results.sequential import LOOKS, Design, boundary, design, nominal_levels, simulated_error, stored
from hkd.errors import UserError


def test_the_spent_error_grows_from_nothing_to_five_percent():
    assert sequential.spent(0.0) == 0
    assert sequential.spent(1.0) == pytest.approx(0.05)
    assert sequential.spent(0.5) == pytest.approx(0.05 * math.log(1 + (math.e - 1) / 2))


def test_one_look_is_an_ordinary_test():
    assert nominal_levels((7,)) == pytest.approx((0.05,))


def test_two_equal_looks_have_the_boundaries_of_a_bivariate_normal():
    first, second = nominal_levels((10, 20))
    assert first == pytest.approx(sequential.spent(0.5))
    a, b = (scipy_stats.norm.isf(p / 2) for p in (first, second))
    both = scipy_stats.multivariate_normal([0, 0], [[1, math.sqrt(0.5)], [math.sqrt(0.5), 1]])
    inside = sum(sign * both.cdf([x * a, y * b]) for x, y, sign in ((1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1)))
    assert 1 - inside == pytest.approx(0.05, abs=2e-5)


def test_boundaries_are_those_of_forty_thousand_simulated_tables():
    looks = (3, 5, 8, 12, 18, 27)
    t = [boundary(level, n - 1) for level, n in zip(nominal_levels(looks), looks, strict=True)]
    assert t == pytest.approx([10.5, 4.99, 3.51, 3.00, 2.68, 2.47], rel=0.02)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("looks", [LOOKS, LOOKS[:3]])
def test_all_looks_together_err_in_about_five_percent(looks):
    error, used = simulated_error(looks, tables=20_000)
    assert 0.04 <= error <= 0.056
    assert used <= looks[-1]


def test_an_effect_of_one_standard_deviation_is_found_early():
    power, used = simulated_error(tables=2_000, effect=1.0)
    assert power > 0.98
    assert used < 14


def test_a_limit_cuts_the_list_of_looks():
    assert design().looks == LOOKS
    assert design(12).looks == (5, 8, 12)
    assert design(17).looks == (5, 8, 12)
    with pytest.raises(UserError, match=r"--max-seeds is 4, below the first look at 5 seeds"):
        design(4)


def test_what_was_stored_is_read_again_and_anything_else_refused(tmp_path):
    assert stored(sequential.path_of(tmp_path, "a_table")) is None
    kept = Design(looks=(5, 8), taken=1, margins={"top1": 1.0})
    path = sequential.path_of(tmp_path, "a_table")
    sequential.store(kept, path)
    assert stored(tmp_path / "none", path) == kept
    for text in (
        "[]",
        '{"looks": [8, 5], "taken": 1}',
        '{"looks": [5], "taken": 2}',
        "no",
        '{"looks": [5], "more": 1}',
    ):
        path.write_text(text)
        with pytest.raises(UserError, match="which looks were taken"):
            stored(path)


def test_the_integration_is_fine_enough(monkeypatch):
    coarse = nominal_levels(LOOKS)
    monkeypatch.setattr(sequential, "GRID", 240)
    assert np.allclose(nominal_levels.__wrapped__(LOOKS), coarse, rtol=1e-6)
