"""Corruptions of images, by hand and against scipy."""

import pytest
import scipy.ndimage
import torch

from hkd.data.corruptions import BLUR, CONTRAST, NOISE, blur, contrast, corrupted, noise


def images(count: int = 2, side: int = 9) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_contrast_draws_each_channel_towards_its_own_mean():
    x = torch.tensor([[0.0, 0.4], [0.8, 0.4]]).expand(1, 3, 2, 2) + torch.tensor([0.0, 0.1, 0.2])[:, None, None]
    found = contrast(x, 0.5)  # means are 0.4, 0.5 and 0.6
    assert torch.allclose(found[0, 0], torch.tensor([[0.2, 0.4], [0.6, 0.4]]))
    assert torch.allclose(found[0, 2], torch.tensor([[0.4, 0.6], [0.8, 0.6]]))
    assert torch.allclose(found.mean(dim=(2, 3)), x.mean(dim=(2, 3)))


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
def test_blur_is_scipys_gaussian_filter(sigma):
    x = images()
    wanted = scipy.ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4.0)
    assert torch.allclose(blur(x, sigma).double(), torch.from_numpy(wanted), atol=1e-6)


def test_blur_of_a_point_has_the_gaussians_weights():
    x = torch.zeros(1, 3, 7, 7)
    x[:, :, 3, 3] = 1
    found = blur(x, 0.4)[0, 0]  # weights 1 and e^(-1 / 0.32) = 0.0439369 to either side
    whole = 1 + 2 * 0.0439369 + 2 * 3.7266531720786e-06
    assert found[3, 3].item() == pytest.approx((1 / whole) ** 2, abs=1e-6)
    assert found[3, 4].item() == pytest.approx(0.0439369 / whole**2, abs=1e-6)


def test_noise_is_normal_of_each_position_and_strength_by_itself():
    index = torch.tensor([5, 0, 3])
    drawn = noise(index, 3, 32)
    assert torch.equal(noise(torch.tensor([3]), 3, 32)[0], drawn[2])
    assert not torch.equal(noise(index, 1, 32), drawn)
    assert drawn.mean().abs() < 0.05
    assert (drawn.std() - 1).abs() < 0.05


def test_strengths_are_those_of_cifar_10_c_up_to_64_px_and_of_imagenet_c_above():
    assert [values[0][0] for values in (NOISE, BLUR, CONTRAST)] == [0.04, 0.4, 0.75]
    assert [values[1][4] for values in (NOISE, BLUR, CONTRAST)] == [0.38, 6.0, 0.05]
    for side, left in ((64, 0.75), (65, 0.4)):
        x = images(side=side)
        found = corrupted(x, "contrast", 1, torch.arange(2))
        assert (found - contrast(x, left)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("name", ["noise", "blur", "contrast"])
def test_corrupted_images_are_bytes_further_from_the_image_the_stronger(name):
    x = images(side=32)
    away = []
    for strength in (1, 3, 5):
        found = corrupted(x, name, strength, torch.arange(2))
        assert torch.equal((found * 255).round() / 255, found)
        assert found.min() >= 0
        assert found.max() <= 1
        away.append((found - x).abs().mean().item())
    assert away == sorted(away)
    assert torch.equal(found[1:], corrupted(x[1:], name, 5, torch.tensor([1])))  # whatever else is in the batch


def test_an_unknown_corruption_is_refused():
    with pytest.raises(ValueError, match="unknown corruption 'fog'"):
        corrupted(images(), "fog", 1, torch.arange(2))
