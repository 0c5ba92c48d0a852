import math
import pickle

import numpy as np
import pytest
import scipy.fft
import torch

from analysis.measures.dct_spectrum import DCTSpectrum, dct2, orthonormal_scale
from analysis.measures.parts.moments import NotFinite
from hkd.errors import UserError


def both(map_):
    """Coefficients in the unscaled and the orthonormal form."""
    unscaled = dct2(map_)
    return unscaled, unscaled * torch.from_numpy(orthonormal_scale(tuple(map_.shape)))


def mode(k, g):
    return torch.cos(math.pi * k * (2 * torch.arange(g, dtype=torch.float64) + 1) / (2 * g))


def only(coefficient, value, g):
    expected = torch.zeros(g, g, dtype=torch.float64)
    expected[coefficient] = value
    return expected


@pytest.mark.parametrize(("g", "expected"), [(7, 196), (14, 784), (16, 1024)])
def test_a_constant_has_the_dc_coefficient_alone(g, expected):
    unscaled, orthonormal = both(torch.ones(g, g))
    torch.testing.assert_close(unscaled, only((0, 0), expected, g), rtol=0, atol=1e-10)
    torch.testing.assert_close(orthonormal, only((0, 0), g, g), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("g", "unscaled", "orthonormal"), [(7, 49, 3.5), (14, 196, 7)])
def test_a_product_of_cosines_has_one_coefficient(g, unscaled, orthonormal):
    found = both(torch.outer(mode(3, g), mode(2, g)))
    torch.testing.assert_close(found[0], only((3, 2), unscaled, g), rtol=0, atol=1e-10)
    torch.testing.assert_close(found[1], only((3, 2), orthonormal, g), rtol=0, atol=1e-10)


def test_a_cosine_along_one_side():
    unscaled, orthonormal = both(mode(3, 7)[:, None].expand(7, 7))
    torch.testing.assert_close(unscaled, only((3, 0), 98, 7), rtol=0, atol=1e-10)
    torch.testing.assert_close(orthonormal, only((3, 0), 4.949747, 7), rtol=0, atol=1e-6)


def test_two_by_two_by_hand():
    unscaled, orthonormal = both(torch.tensor([[1.0, 2], [3, 4]]))
    assert unscaled.flatten().tolist() == pytest.approx([40, -5.656854, -11.313708, 0], abs=1e-6)
    assert orthonormal.flatten().tolist() == pytest.approx([5, -1, -2, 0], abs=1e-6)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 7), (8, 8), (7, 12), (14, 14), (16, 16)])
def test_it_equals_scipys(grid):
    maps = torch.randn(3, 4, *grid, dtype=torch.float64)
    expected = scipy.fft.dctn(maps.numpy(), axes=(-2, -1))
    assert np.abs(dct2(maps).numpy() - expected).max() < 1e-10
    expected = scipy.fft.dctn(maps.numpy(), axes=(-2, -1), norm="ortho")
    assert np.abs(dct2(maps).numpy() * orthonormal_scale(grid) - expected).max() < 1e-10


@pytest.mark.parametrize("g", [7, 14])
def test_without_dc_the_inverse_is_the_map_without_its_mean(g):
    map_ = torch.randn(g, g, dtype=torch.float64)
    unscaled = dct2(map_).numpy()
    unscaled[0, 0] = 0
    assert scipy.fft.idctn(unscaled) == pytest.approx((map_ - map_.mean()).numpy())


def test_the_orthonormal_form_keeps_energy():
    map_ = torch.randn(7, 7, dtype=torch.float64)
    assert both(map_)[1].square().sum().item() == pytest.approx(map_.square().sum().item())


def test_the_spectrum_is_the_mean_over_images_of_magnitudes():
    maps, spectrum = torch.randn(6, 3, 7, 7) + 0.3, DCTSpectrum()
    spectrum.final(maps[:4])
    spectrum.final(maps[4:])
    result = spectrum.compute()
    magnitude = np.abs(scipy.fft.dctn(maps.double().numpy(), axes=(-2, -1)))
    orthonormal = np.abs(scipy.fft.dctn(maps.double().numpy(), axes=(-2, -1), norm="ortho"))
    assert result.images == 6
    assert result.unscaled == pytest.approx(magnitude.mean(0))
    assert result.orthonormal == pytest.approx(orthonormal.mean(0))
    assert result.share_unscaled == pytest.approx(magnitude[..., 0, 0].sum() / magnitude.sum())
    assert result.share_orthonormal == pytest.approx(orthonormal[..., 0, 0].sum() / orthonormal.sum())
    assert result.share_energy == pytest.approx((orthonormal[..., 0, 0] ** 2).sum() / (orthonormal**2).sum())
    assert 0 < result.share_energy_half < result.share_energy


def test_a_constant_map_is_all_dc_and_a_centred_one_none():
    constant, centred, map_ = DCTSpectrum(), DCTSpectrum(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    constant.final(torch.ones(2, 3, 7, 7))
    centred.final(map_ - map_.mean(dim=(2, 3), keepdim=True))
    for share in ("share_unscaled", "share_orthonormal", "share_energy"):
        assert getattr(constant.compute(), share) == pytest.approx(1)
        assert getattr(centred.compute(), share) == pytest.approx(0, abs=1e-12)


def test_processes_merge_to_what_one_would_have_seen():
    maps, whole, merged = torch.randn(9, 2, 14, 14), DCTSpectrum(), DCTSpectrum()
    whole.final(maps)
    for part in maps.split(2):
        other = DCTSpectrum()
        other.final(part)
        merged.merge(pickle.loads(pickle.dumps(other)))
    assert merged.compute().unscaled == pytest.approx(whole.compute().unscaled, rel=1e-12)
    assert merged.compute().share_energy_half == pytest.approx(whole.compute().share_energy_half, rel=1e-9)


def test_one_image_has_no_interval():
    spectrum = DCTSpectrum()
    spectrum.final(torch.randn(1, 2, 4, 6))
    assert np.isnan(spectrum.compute().share_energy_half)
    assert spectrum.compute().unscaled.shape == (2, 4, 6)


def test_bad_input_is_named():
    spectrum = DCTSpectrum()
    with pytest.raises(UserError, match="No images were measured"):
        spectrum.compute()
    with pytest.raises(NotFinite, match=r"last feature map is not finite. Image 0"):
        spectrum.final(torch.full((1, 2, 7, 7), torch.inf))
    with pytest.raises(UserError, match="No images were measured"):
        spectrum.compute()
    spectrum.final(torch.zeros(1, 2, 7, 7))
    with pytest.raises(ValueError, match=r"maps are \(3, 7, 7\) here and were \(2, 7, 7\) before"):
        spectrum.final(torch.zeros(1, 3, 7, 7))
