import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from hkd.data.loading.augment import Augment, resized_crop, to_float
from hkd.spec import Recipe


def recipe(**fields) -> Recipe:
    return Recipe(epochs=1, batch_size=8, **fields)


def pictures(count: int = 8, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return (x * 255).round().to(torch.uint8)


def test_an_empty_recipe_only_changes_bytes_to_numbers():
    augment = Augment(recipe(), 32, seed=0)
    x = augment(pictures(), augment.draw(8, 0, 0))
    assert x.dtype == torch.float32
    assert torch.equal(x, pictures().float() / 255)


def test_shift_repeats_the_edge_and_moves_every_image_on_its_own():
    augment = Augment(recipe(shift=3), 32, seed=0)
    images, draws = pictures(), augment.draw(8, 0, 0)
    moved = as_bytes(augment(images, draws))
    assert len({tuple(shift) for shift in draws.shift.tolist()}) > 1
    for image, result, (down, right) in zip(images, moved, draws.shift.tolist(), strict=True):
        padded = torch.nn.functional.pad(image.float()[None], (3, 3, 3, 3), mode="replicate")[0].byte()
        assert torch.equal(result, padded[:, 3 - down : 35 - down, 3 - right : 35 - right])


def test_pad_crop_and_flip_equal_torchvisions_functions_with_the_same_draws():
    augment = Augment(recipe(crop="pad", flip=True), 32, seed=1)
    images, draws = pictures(64), augment.draw(64, 2, 5)
    result = as_bytes(augment(images, draws))
    for i in range(64):
        top, left = (int(place * 9) for place in draws.place[i])
        expected = tv.crop(tv.pad(images[i], [4]), top, left, 32, 32)
        assert torch.equal(result[i], tv.horizontal_flip(expected) if draws.flip[i] else expected)


def test_crop_places_are_uniform_and_half_of_the_images_are_flipped():
    draws = Augment(recipe(), 32, seed=0).draw(40_000, 0, 0)
    counts = torch.bincount((draws.place[:, 0] * 9).long(), minlength=9).double()
    assert ((counts - 40_000 / 9) ** 2 / (40_000 / 9)).sum() < 26.1  # chi-squared, 8 degrees of freedom, 99.9 %
    assert abs(draws.flip.double().mean().item() - 0.5) < 0.01


@given(top=st.integers(0, 20), left=st.integers(0, 20), height=st.integers(1, 12), width=st.integers(1, 12))
@settings(deadline=None, max_examples=30)
def test_resized_crop_equals_torchvisions_within_a_grey_level(top, left, height, width):
    image = pictures(1)
    ours = resized_crop(image, torch.tensor([[top, left, height, width]]), 32)
    theirs = tv.resized_crop(image.float(), top, left, height, width, [32, 32], antialias=False)
    assert (ours.float() - theirs).abs().max() <= 0.5 + 1e-3


def test_resized_crop_boxes_have_torchvisions_distribution():
    augment = Augment(recipe(crop="resized", crop_scale=(0.3, 1.0)), 32, seed=0)
    boxes = augment.boxes(augment.draw(3000, 0, 0), 40, 60).numpy()
    torch.manual_seed(0)
    image = torch.zeros(3, 40, 60)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)])
    for ours_column, theirs_column in zip(boxes.T, theirs.T, strict=True):
        grid = np.arange(61)
        gap = np.abs((ours_column[:, None] <= grid).mean(0) - (theirs_column[:, None] <= grid).mean(0)).max()
        assert gap < 1.95 * math.sqrt(2 / 3000)  # Kolmogorov-Smirnov, 99.9 %


@given(height=st.integers(1, 600), width=st.integers(1, 600), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_a_box_is_the_first_proposal_that_fits_whether_alone_or_among_others(height, width, seed):
    augment = Augment(recipe(crop="resized", crop_scale=(0.08, 1.0)), 32, seed=seed)
    draws = augment.draw(6, 0, 0)
    boxes = augment.boxes(draws, height, width)
    for i in range(6):
        assert augment.boxes(draws[i : i + 1], height, width).tolist() == [boxes[i].tolist()]
        for area, log_ratio in zip(draws.area[i], draws.log_ratio[i], strict=True):  # single precision, as drawn
            area, ratio = area * height * width, log_ratio.exp()
            w, h = round((area * ratio).sqrt().item()), round((area / ratio).sqrt().item())
            if 0 < w <= width and 0 < h <= height:
                y, x = draws.place[i]
                assert boxes[i].tolist() == [int(y * (height - h + 1)), int(x * (width - w + 1)), h, w]
                break


def test_a_box_that_never_fits_is_the_largest_centred_one():
    augment = Augment(recipe(crop="resized", crop_scale=(1.0, 1.0)), 32, seed=0)
    assert augment.boxes(augment.draw(4, 0, 0), 10, 100).tolist() == [[0, 43, 10, 13]] * 4


def test_erasing_is_timms_with_the_seed_of_each_image():
    augment = Augment(recipe(erasing=1.0), 32, seed=0)
    images, draws = pictures(), augment.draw(8, 0, 0)
    x = augment(images, draws)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for i, seed in enumerate(draws.erase.tolist()):
        random.seed(seed)
        torch.manual_seed(seed)
        erased = RandomErasing(1.0, mode="pixel", device="cpu")((to_float(images[i]) - mean) / std)
        assert torch.allclose(x[i], (erased * std + mean).clamp(0, 1), atol=1e-6)


def test_erasing_reaches_the_asked_for_share_of_images_and_leaves_the_rest_alone():
    augment = Augment(recipe(erasing=0.25), 32, seed=0)
    images = pictures(1000)
    changed = (augment(images, augment.draw(1000, 0, 0)) != to_float(images)).flatten(1).any(1)
    assert abs(changed.double().mean().item() - 0.25) < 0.05


def test_erasing_puts_the_global_generators_back():
    augment = Augment(recipe(erasing=1.0), 32, seed=0)
    random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), torch.get_rng_state()
    augment(pictures(), augment.draw(8, 0, 0))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


FULL = {"shift": 1, "flip": True, "randaugment": "rand-m9-n2-mstd0.5-inc1", "erasing": 0.5}


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_a_part_of_a_batch_with_its_draws_is_that_part_of_the_whole(crop):
    augment = Augment(recipe(crop=crop, **FULL), 32, seed=0)
    images, draws = pictures(24), augment.draw(24, 0, 0)
    whole = augment(images, draws)
    assert torch.equal(whole[5:13], augment(images[5:13], draws[5:13]))
    assert torch.equal(whole[7:8], augment(images[7:8], draws[7:8]))
    index = torch.tensor([20, 3])
    assert torch.equal(whole[index], augment(images[index], draws[index]))


def test_draws_depend_on_seed_epoch_and_step_only():
    def draw(seed, epoch, step):
        return Augment(recipe(crop="pad"), 32, seed=seed).draw(16, epoch, step).place

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    different = [draw(1, 2, 3), draw(1, 3, 2), draw(2, 1, 3), draw(1, 2, 4), draw(12, 3, 0)]
    assert len({tuple(place.flatten().tolist()) for place in different}) == len(different)


def test_results_stay_in_range_and_input_bytes_are_not_changed():
    augment = Augment(recipe(crop="pad", **FULL), 32, seed=0)
    images = pictures(64)
    x = augment(images, augment.draw(64, 0, 0))
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal(images, pictures(64))
