import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.measures.attention_nmi import AttentionNMI
from analysis.measures.parts.moments import Moments, NotFinite, ratio
from hkd.errors import UserError


def moments_of(rows):
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return moments


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(0, 40), st.integers(0, 1000))
def test_parts_merge_to_numpys_mean_and_covariance(count, cut, seed):
    rows = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1e6
    moments = moments_of(rows[:cut])
    moments.merge(pickle.loads(pickle.dumps(moments_of(rows[cut:]))))
    assert moments.count == count
    assert moments.mean == pytest.approx(rows.mean(0).numpy(), rel=1e-14)
    assert moments.scatter / (count - 1) == pytest.approx(np.cov(rows.numpy().T), rel=1e-6, abs=1e-8)


def test_half_widths_are_those_of_a_t_interval():
    rows = torch.randn(7, 2, dtype=torch.float64)
    apart = (rows[:, 0] - rows[:, 1]).numpy()
    low, high = scipy.stats.t.interval(0.95, 6, apart.mean(), scipy.stats.sem(apart))
    assert moments_of(rows).half(np.array([1.0, -1.0])) == pytest.approx((high - low) / 2)


def test_a_ratio_of_means_covers_the_truth_about_as_often_as_it_says():
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        below = torch.rand(50, generator=generator) + 1
        rows = torch.stack([0.3 * below + 0.1 * torch.randn(50, generator=generator), below], dim=1)
        value, half = ratio(moments_of(rows), 0, 1)
        hits += abs(value - 0.3) <= half
    assert 0.92 <= hits / 300 <= 0.98


def test_a_ratio_to_nothing_is_not_a_number():
    assert np.isnan(ratio(moments_of(torch.zeros(3, 2)), 0, 1)).all()


def test_heads_give_their_mean_spread_and_deviation():
    heads = AttentionNMI()
    heads.add(0, torch.tensor([[1.0, 2, 6], [3.0, 2, 4]]))
    result = heads.compute()
    assert result.mean.tolist() == [[2, 2, 5]]
    assert result.layer == pytest.approx([3])
    assert result.spread == pytest.approx([3])
    assert result.std == pytest.approx([np.std([2, 2, 5])])
    assert result.mean_half[0] == pytest.approx(12.706205 * np.array([1, 0, 1]))
    assert result.layer_half == pytest.approx([0], abs=1e-12)


def test_the_interval_of_a_deviation_is_that_of_bootstrapped_images():
    generator = np.random.default_rng(0)
    rows = generator.normal([1.0, 2.0, 4.0], 0.5, (200, 3))
    heads = AttentionNMI()
    heads.add(0, torch.from_numpy(rows))
    spread = [rows[generator.integers(0, 200, 200)].mean(axis=0).std() for _ in range(1000)]
    assert heads.compute().std_half[0] == pytest.approx(1.97 * np.std(spread), rel=0.1)


def test_layers_may_differ_in_heads_and_come_in_any_order():
    heads = AttentionNMI()
    heads.add(3, torch.ones(2, 3), name="deep")
    heads.add(1, torch.zeros(2, 2), name="early")
    result = heads.compute()
    assert result.names == ("early", "deep")
    assert result.mean.tolist()[1] == [1, 1, 1]
    assert np.isnan(result.mean[0, 2])
    assert set(result.arrays()) >= {"mean", "mean_half", "layer", "spread", "std", "names", "images"}


def test_windows_of_an_image_are_averaged_first():
    heads = AttentionNMI()
    heads.add(0, torch.tensor([[0.0], [2.0], [5.0], [5.0]]), windows=2)
    result = heads.compute()
    assert result.images == 2
    assert result.mean.item() == 3
    assert result.mean_half.item() == pytest.approx(12.706205 * 2)  # of 1 and 5


def test_processes_merge_to_what_one_would_have_seen():
    values = torch.rand(10, 4)
    whole, left, right = AttentionNMI(), AttentionNMI(), AttentionNMI()
    whole.add(0, values)
    left.add(0, values[:3])
    right.add(0, values[3:])
    left.merge(pickle.loads(pickle.dumps(right)))
    assert left.compute().mean == pytest.approx(whole.compute().mean, rel=1e-12)
    assert left.compute().std_half == pytest.approx(whole.compute().std_half, rel=1e-9)
    assert left.compute().images == 10


def test_one_image_has_no_interval():
    heads = AttentionNMI()
    heads.add(0, torch.ones(1, 2))
    assert np.isnan(heads.compute().mean_half).all()


def test_values_that_are_not_finite_are_named_and_not_taken_in():
    heads = AttentionNMI()
    heads.add(0, torch.ones(2, 2))
    with pytest.raises(NotFinite, match=r"attention of blocks.4 is not finite. Image 1 of a batch"):
        heads.add(0, torch.tensor([[1.0, 1.0], [1.0, torch.nan]]), name="blocks.4")
    assert heads.compute().images == 2


def test_nothing_measured_is_an_error():
    with pytest.raises(UserError, match="No images were measured"):
        AttentionNMI().compute()


def test_a_layer_that_changes_its_heads_is_refused():
    heads = AttentionNMI()
    heads.add(0, torch.ones(1, 2))
    with pytest.raises(ValueError, match="layer 0 has 3 values here and had 2 before"):
        heads.add(0, torch.ones(1, 3))
