import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from analysis.measures.attention_distance import AttentionDistance, attention_distance, grid_distances


def distance(attention, grid):
    return attention_distance(attention.double()[None, None], grid).item()


def uniform(g):
    return torch.full((g * g, g * g), 1 / g**2, dtype=torch.float64)


def all_on(cell, g):
    attention = torch.zeros(g * g, g * g)
    attention[:, cell[0] * g + cell[1]] = 1
    return attention


def test_attention_to_itself_has_no_distance():
    assert distance(torch.eye(196), (14, 14)) == 0


@pytest.mark.parametrize(("g", "expected"), [(2, 0.853553), (7, 3.609465), (14, 7.280764), (16, 8.326075)])
def test_uniform_attention_has_the_mean_distance_of_the_grid(g, expected):
    assert distance(uniform(g), (g, g)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("g", "patch", "pixels"), [(14, 16, 116.4922), (16, 14, 116.5651)])
def test_pixels_are_patches_times_their_size(g, patch, pixels):
    measure = AttentionDistance()
    measure.add(0, attention_distance(uniform(g).expand(3, 2, -1, -1), (g, g)), patch=patch)
    result = measure.compute()
    assert result.pixels().mean == pytest.approx(np.full((1, 2), pixels), abs=1e-4)
    assert result.pixels().pixels().layer == pytest.approx(result.layer * patch)


def test_all_mass_on_one_cell():
    assert distance(all_on((0, 0), 14), (14, 14)) == pytest.approx(10.064385, abs=1e-6)
    assert distance(all_on((7, 7), 14), (14, 14)) == pytest.approx(5.376183, abs=1e-6)


def test_half_on_the_right_neighbour():
    attention = 0.5 * torch.eye(196)
    for query in range(196):
        attention[query, query + (query % 14 != 13)] += 0.5
    assert distance(attention, (14, 14)) == pytest.approx(0.5 * 13 / 14, abs=1e-6)


def test_the_diagonal_bounds_all_distances():
    assert grid_distances((14, 14), torch.float64, torch.device("cpu")).max() == pytest.approx(18.384776, abs=1e-6)


def test_rows_that_are_not_renormalised_come_out_too_near_by_the_class_tokens_mass():
    assert distance(uniform(2) / 2, (2, 2)) == pytest.approx(0.4268, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 100))
def test_it_equals_a_loop_over_queries_and_keys_on_any_grid(height, width, seed):
    count = height * width
    attention = torch.rand(2, 3, count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    attention = attention / attention.sum(-1, keepdim=True)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for query in range(count):
        for key in range(count):
            rows, columns = query // width - key // width, query % width - key % width
            expected += attention[:, :, query, key] * math.hypot(rows, columns) / count
    torch.testing.assert_close(attention_distance(attention, (height, width)), expected)
    cells = np.stack(np.divmod(np.arange(count), width), axis=1)
    ours = grid_distances((height, width), torch.float64, torch.device("cpu"))
    assert ours.numpy() == pytest.approx(cdist(cells, cells))


def test_single_precision_is_enough_for_six_digits():
    attention = torch.randn(2, 3, 196, 196, generator=torch.Generator().manual_seed(0)).softmax(-1)
    torch.testing.assert_close(
        attention_distance(attention, (14, 14)).double(),
        attention_distance(attention.double(), (14, 14)),
        rtol=5e-6,
        atol=0,
    )


def test_attention_of_another_grid_is_refused():
    with pytest.raises(ValueError, match="Attention on a 3x3 grid is 9x9"):
        attention_distance(torch.zeros(1, 1, 4, 4), (3, 3))
