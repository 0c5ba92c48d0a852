import math
import pickle

import numpy as np
import pytest
import torch

from analysis.measures.fourier import Fourier, frequencies, log_amplitude
from analysis.measures.parts.moments import NotFinite
from hkd.errors import UserError

U, V = torch.meshgrid(torch.arange(14.0, dtype=torch.float64), torch.arange(14.0, dtype=torch.float64), indexing="ij")
WAVE = torch.cos(2 * math.pi * 3 * (U + V) / 14)


def amplitude(map_):
    return log_amplitude(map_.flatten()[None, :, None], tuple(map_.shape))[0]


def as_map(tokens, grid):
    return tokens.transpose(1, 2).unflatten(2, grid)


def by_fft(tokens, grid):
    """The notebooks' form: log of the FFT's amplitude, rolled to the centre, half of the diagonal from there."""
    height, width = grid
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    spectrum = torch.log(torch.fft.fft2(maps).abs() + 1e-6)
    spectrum = spectrum.roll((height // 2, width // 2), dims=(2, 3)).mean(dim=1)
    return torch.diagonal(spectrum, dim1=1, dim2=2)[:, height // 2 :]


def test_a_constant_has_frequency_zero_alone():
    found = amplitude(torch.ones_like(U))
    assert found[0].item() == pytest.approx(5.278115, abs=1e-6)
    assert found[1:].tolist() == pytest.approx([-13.815511] * 6, abs=1e-6)
    assert (found[1:] - found[0]).tolist() == pytest.approx([-19.093625] * 6, abs=1e-6)


def test_a_wave_has_its_frequency_alone():
    found = amplitude(WAVE).tolist()
    assert found.pop(3) == pytest.approx(4.584967, abs=1e-6)
    assert found == pytest.approx([-13.8155] * 6, abs=1e-4)


def test_a_wave_on_a_constant_has_half_the_constants_amplitude():
    found = amplitude(WAVE + 1)
    assert (found[3] - found[0]).item() == pytest.approx(-0.693147, abs=1e-6)


def test_a_point_has_all_frequencies_alike():
    point = torch.zeros_like(U)
    point[4, 9] = 1
    assert amplitude(point).tolist() == pytest.approx([0] * 7, abs=2e-6)


def test_a_checkerboard_is_beyond_the_last_frequency():
    assert amplitude(1 - 2 * ((U + V) % 2)).tolist() == pytest.approx([-13.8155] * 7, abs=1e-4)


@pytest.mark.parametrize("g", [1, 2, 7, 14, 16])
def test_it_equals_the_fft_at_even_and_odd_grids(g):
    tokens = torch.randn(2, g * g, 5, dtype=torch.float64)
    found = log_amplitude(tokens, (g, g))
    assert found.shape == (2, math.ceil(g / 2)) == (2, frequencies((g, g)))
    torch.testing.assert_close(found, by_fft(tokens, (g, g)))


def test_a_grid_that_is_not_square_has_equal_periods_along_both_sides():
    tokens = torch.randn(2, 6 * 10, 5, dtype=torch.float64)
    spectrum = torch.fft.fft2(tokens.transpose(1, 2).unflatten(2, (6, 10))).abs()
    expected = torch.stack([torch.log(spectrum[:, :, u, u] + 1e-6).mean(1) for u in range(3)], dim=1)
    torch.testing.assert_close(log_amplitude(tokens, (6, 10)), expected)


def test_single_and_half_precision_are_close_to_double():
    tokens = torch.randn(2, 196, 64)
    exact = log_amplitude(tokens.double(), (14, 14))
    torch.testing.assert_close(log_amplitude(tokens, (14, 14)).double(), exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(log_amplitude(tokens.bfloat16(), (14, 14)).double(), exact, rtol=0, atol=0.05)


def test_layers_of_different_grids_keep_their_own_frequencies():
    fourier, tokens = Fourier(), torch.randn(5, 196, 8, dtype=torch.float64)
    fourier.features(0, "embedding", as_map(tokens, (14, 14)))
    fourier.features(1, "", as_map(tokens[:, :49], (7, 7)))
    result = fourier.compute()
    assert result.names == ("embedding", "layer 1")
    assert result.relative.shape == (2, 7)
    assert np.isnan(result.relative[1, 4:]).all()
    relative = by_fft(tokens, (14, 14)).numpy()
    relative = relative - relative[:, :1]
    assert result.relative[0] == pytest.approx(relative.mean(0))
    assert result.relative_half[0] == pytest.approx(2.776445 * relative.std(0, ddof=1) / math.sqrt(5))
    assert result.highest == pytest.approx(result.relative[[0, 1], [6, 3]])
    assert result.frequency[0].tolist() == pytest.approx([k / 7 for k in range(7)])
    assert result.frequency[1, 3] == pytest.approx(6 / 7)
    assert result.zero[0] == pytest.approx(by_fft(tokens, (14, 14))[:, 0].mean().item())


@pytest.mark.parametrize("side", [1, 2])
def test_a_grid_without_another_frequency_has_no_highest_one(side):
    fourier = Fourier()
    fourier.features(0, "", torch.randn(3, 4, side, side))
    assert np.isnan(fourier.compute().highest).all()
    assert np.isnan(fourier.compute().highest_half).all()


def test_processes_merge_to_what_one_would_have_seen():
    maps, whole, parts = torch.randn(9, 3, 4, 4), Fourier(), [Fourier(), Fourier()]
    whole.features(0, "", maps)
    parts[0].features(0, "", maps[:2])
    parts[1].features(0, "", maps[2:])
    empty = Fourier()
    for part in parts:
        empty.merge(pickle.loads(pickle.dumps(part)))
    assert empty.compute().relative == pytest.approx(whole.compute().relative, rel=1e-12)
    assert empty.compute().relative_half == pytest.approx(whole.compute().relative_half, rel=1e-9)


def test_bad_input_is_named():
    fourier = Fourier()
    with pytest.raises(UserError, match="No images were measured"):
        fourier.compute()
    with pytest.raises(ValueError, match=r"A 4x4 grid has 16 tokens"):
        log_amplitude(torch.ones(1, 15, 2), (4, 4))
    with pytest.raises(NotFinite, match=r"features of blocks.2 are not finite. Image 0"):
        fourier.features(2, "blocks.2", torch.full((1, 2, 4, 4), torch.nan))
    with pytest.raises(ValueError, match=r"layer 2 has a grid of \(2, 8\) here and had \(4, 4\) before"):
        fourier.features(2, "", torch.ones(1, 2, 2, 8))
