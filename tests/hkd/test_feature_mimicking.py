"""The distances between feature maps that FD and ScaleKD share."""

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st

from hkd.methods.parts.feature_mimicking import centre, directions, mimic_loss, to_grid
from hkd.models.taps import to_tokens


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens_of(map_: list) -> torch.Tensor:
    return to_tokens(torch.tensor(map_, dtype=torch.float64)[None])


def both(tokens_s: torch.Tensor, tokens_t: torch.Tensor) -> tuple[float, float]:
    return tuple(mimic_loss(tokens_s, tokens_t, centred=centred).item() for centred in (False, True))


@pytest.mark.parametrize("side", [7, 14, 16])
@pytest.mark.parametrize("norm", [None, "ortho"])
def test_removing_the_mean_equals_removing_the_dc_coefficient_of_a_dct(side, norm):
    maps = np.random.default_rng(side).normal(size=(3, side, side))
    coefficients = scipy.fft.dctn(maps, axes=(1, 2), norm=norm)
    coefficients[:, 0, 0] = 0
    expected = scipy.fft.idctn(coefficients, axes=(1, 2), norm=norm)
    ours = centre(to_tokens(torch.tensor(maps)[None]))[0].T.unflatten(1, (side, side))
    assert np.abs(ours.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize(("side", "dc"), [(7, 196), (14, 784), (16, 1024)])
def test_the_unscaled_dct_of_ones_has_only_a_dc_coefficient(side, dc):
    expected = np.zeros((side, side))
    expected[0, 0] = dc
    np.testing.assert_allclose(scipy.fft.dctn(np.ones((side, side))), expected, atol=1e-10)


def test_orthogonal_constant_maps_differ_in_the_original_view_only():
    s, t = torch.zeros(1, 4, 2, dtype=torch.float64), torch.zeros(1, 4, 2, dtype=torch.float64)
    s[..., 0], t[..., 1] = 1, 2
    assert both(s, t) == (pytest.approx(8), 0)


def test_one_channel_against_its_negative_and_its_shift():
    s = tokens_of([[[1, 2], [3, 4]]])
    assert both(s, -s) == (pytest.approx(16), pytest.approx(16))
    assert both(s, s + 10) == (pytest.approx(0), pytest.approx(0))


@given(scale=st.floats(0.1, 100), shift=st.floats(-10, 10))
def test_positive_scaling_changes_neither_view_and_a_shift_not_the_centred_one(scale, shift):
    s, t = random_tokens(2, 9, 5), random_tokens(2, 9, 5, seed=1)
    assert mimic_loss(scale * s, t).item() == pytest.approx(mimic_loss(s, t).item())
    shifted = scale * s + shift * random_tokens(1, 1, 5, seed=2)
    assert mimic_loss(shifted, t, centred=True).item() == pytest.approx(mimic_loss(s, t, centred=True).item())


@pytest.mark.parametrize("centred", [False, True])
def test_the_loss_is_a_sum_of_cosines_over_positions_and_a_mean_over_the_batch(centred):
    s, t = random_tokens(3, 6, 4).numpy(), random_tokens(3, 6, 4, seed=1).numpy()
    expected = 0.0
    for b in range(3):
        for p in range(6):
            x, y = (v[b, p] - (v[b].mean(axis=0) if centred else 0) for v in (s, t))
            expected += (2 - 2 * (x @ y) / (np.linalg.norm(x) * np.linalg.norm(y))) / 3
    assert mimic_loss(torch.tensor(s), torch.tensor(t), centred=centred).item() == pytest.approx(expected)
    assert 0 <= expected <= 4 * 6


def test_unrelated_wide_features_are_two_per_position_apart():
    s, t = random_tokens(16, 49, 768), random_tokens(16, 49, 768, seed=1)
    assert mimic_loss(s, t).item() == pytest.approx(98, abs=0.5)


@pytest.mark.parametrize("centred", [False, True])
def test_gradients_agree_with_finite_differences_and_spare_the_teacher(centred):
    s, t = random_tokens(2, 4, 3).requires_grad_(), random_tokens(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mimic_loss(x, t, centred=centred), s)
    mimic_loss(s, t, centred=centred).backward()
    assert t.grad is None


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7, 1e4])
@pytest.mark.parametrize("positions", [4, 25, 49])
def test_constant_maps_have_no_direction_left_without_their_mean(value, positions):
    tokens = torch.full((2, positions, 96), value, requires_grad=True)
    loss = mimic_loss(tokens, torch.randn(2, positions, 96), centred=True)
    loss.backward()
    assert loss.isfinite()
    assert tokens.grad.isfinite().all()


def test_rounding_noise_of_a_constant_map_is_not_blown_up():
    tokens = torch.full((1, 49, 64), 1.3)
    assert directions(tokens, centred=True).norm(dim=2).max() < 0.5


def test_half_precision_features_are_compared_in_single_precision():
    tokens = (1000 + torch.rand(2, 9, 512)).to(torch.float16)  # squares overflow float16
    assert directions(tokens).dtype == torch.float32
    assert directions(tokens).norm(dim=2).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize(("grid", "same_as"), [((2, 2), "pool"), ((8, 8), "bilinear"), ((2, 8), "bilinear")])
def test_a_map_is_pooled_to_a_coarser_grid_and_interpolated_to_any_other(grid, same_as):
    x = torch.randn(2, 3, 4, 4)
    expected = {
        "pool": torch.nn.functional.adaptive_avg_pool2d(x, grid),
        "bilinear": torch.nn.functional.interpolate(x, grid, mode="bilinear", align_corners=False),
    }[same_as]
    torch.testing.assert_close(to_grid(x, grid), expected)


def test_a_map_of_the_same_grid_is_left_alone():
    x = torch.randn(2, 3, 4, 4)
    assert to_grid(x, (4, 4)) is x


def test_tokens_run_row_by_row():
    assert to_tokens(torch.arange(6.0).view(1, 1, 2, 3)).flatten().tolist() == [0, 1, 2, 3, 4, 5]
