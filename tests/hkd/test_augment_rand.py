import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import _FILL, AugmentOp, rand_augment_transform

from hkd.data.loading.randaugment import FILL, INCREASING, OPERATIONS, RandAugment, parse, warp_part, warp_straight
from hkd.errors import UserError

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


def photograph(side: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture with every grey level of some range, [side, side, 3]."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(20, 236, (6, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


def as_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def timm_op(name: str, level: float, sign: float, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    monkeypatch.setattr("timm.data.auto_augment._randomly_negate", lambda value: sign * value)
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC, "translate_pct": 0.45}
    # Pillow used to make the image black at 0 bits, which timm counts on, and refuses that now.
    monkeypatch.setattr(
        "PIL.ImageOps.posterize", lambda img, bits: img.point([v & (256 - 2 ** (8 - bits)) for v in range(256)] * 3)
    )
    op = AugmentOp(name, prob=1.0, magnitude=level, hparams=hparams)
    return np.asarray(op(Image.fromarray(image)))


@pytest.mark.parametrize("name", list(OPERATIONS) + [f"{name}Increasing" for name in INCREASING])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_every_operation_gives_timms_pixels_at_several_magnitudes(name, sign, monkeypatch):
    operation = OPERATIONS.get(name) or INCREASING[name.removesuffix("Increasing")]
    levels = [0.0, 1.0, 4.37, 9.0, 10.0]
    pictures = [photograph(seed=i) for i in range(len(levels))]
    args = torch.tensor(levels, dtype=torch.float64), torch.full((len(levels),), sign, dtype=torch.float64)
    ours = operation(as_batch(*pictures), *args).numpy().transpose(0, 2, 3, 1)
    for image, level, picture in zip(ours, levels, pictures, strict=True):
        theirs = timm_op(name, level, sign, picture, monkeypatch)
        difference = np.abs(image.astype(int) - theirs.astype(int))
        assert difference.max() <= 1, (level, difference.max())
        assert (difference > 0).mean() < 0.01, (level, (difference > 0).mean())


@pytest.mark.parametrize("name", ["Equalize", "AutoContrast", "Sharpness", "Contrast"])
def test_operations_agree_with_timm_on_a_plain_image(name, monkeypatch):
    plain = np.full((32, 32, 3), (10, 200, 90), dtype=np.uint8)
    ours = OPERATIONS[name](as_batch(plain), torch.tensor([6.0]).double(), torch.ones(1).double())
    assert np.array_equal(ours[0].permute(1, 2, 0).numpy(), timm_op(name, 6.0, 1.0, plain, monkeypatch))


def test_operations_agree_with_timm_on_an_image_that_is_not_square(monkeypatch):
    picture = photograph(40)[:24]
    for name in GEOMETRIC:
        ours = OPERATIONS[name](as_batch(picture), torch.tensor([7.0]).double(), torch.ones(1).double())
        theirs = timm_op(name, 7.0, 1.0, picture, monkeypatch).astype(int)
        assert np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1, name


@pytest.mark.parametrize("name", GEOMETRIC)
def test_how_many_images_are_warped_at_once_changes_no_pixel(name, monkeypatch):
    images = as_batch(*(photograph(seed=i) for i in range(7)))
    levels, signs = torch.linspace(0, 10, 7).double(), torch.tensor([1.0, -1.0] * 4)[:7].double()
    whole = OPERATIONS[name](images, levels, signs)
    for pixels in (1, 2 * 32 * 32):
        monkeypatch.setattr("hkd.data.loading.randaugment.WARPED_PX", pixels)
        assert torch.equal(OPERATIONS[name](images, levels, signs), whole)


def test_rows_and_columns_apart_give_the_pixels_of_both_at_once():
    images = as_batch(photograph(40)[:24], photograph(40, seed=1)[:24])
    for across, down in ((0.0, 0.0), (3.0, 0.0), (-2.7, 0.0), (0.0, 5.3), (1.25, -39.5), (100.0, 0.4)):
        matrix = torch.tensor(
            [[[1.0, 0.0, across], [0.0, 1.0, down]], [[0.8, 0.0, -across], [0.0, 1.3, down]]]
        ).double()
        assert torch.equal(warp_straight(images, matrix), warp_part(images, matrix))


def test_the_notation_is_read_as_timm_reads_it():
    theirs = rand_augment_transform("rand-m7-n3-p0.7-mstd0.5-inc1-mmax12", {"img_mean": _FILL})
    ours = parse("rand-m7-n3-p0.7-mstd0.5-inc1-mmax12")
    op = theirs.ops[0]
    assert (ours.layers, ours.magnitude, ours.prob) == (theirs.num_layers, op.magnitude, op.prob)
    assert (ours.std, ours.most) == (op.magnitude_std, op.magnitude_max)
    names = [op.name.removesuffix("Increasing") for op in theirs.ops]
    assert names == list(OPERATIONS)
    assert {op.name.removesuffix("Increasing") for op in theirs.ops if "Incr" in op.name} == set(INCREASING)


@pytest.mark.parametrize("text", ["rand-q9", "rand-m", "augmix-m3", "rand-m9-tweights", "original"])
def test_a_notation_that_is_not_understood_is_named(text):
    with pytest.raises(UserError, match="randaugment"):
        parse(text)


def test_operations_are_drawn_evenly_and_applied_with_the_probability():
    draws = RandAugment("rand-m9-n2").draw(30_000, torch.Generator().manual_seed(0))
    applied = draws.ops[draws.ops >= 0]
    assert abs(len(applied) / draws.ops.numel() - 0.5) < 0.01
    counts = torch.bincount(applied, minlength=len(OPERATIONS)).double()
    expected = len(applied) / len(OPERATIONS)
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert chi2 < 36.1  # 99.9 % point with 14 degrees of freedom
    assert abs(draws.signs.mean().item()) < 0.02


def test_magnitudes_follow_timms_distribution():
    random.seed(0)
    draws = RandAugment("rand-m9-mstd0.5").draw(20_000, torch.Generator().manual_seed(1))
    theirs = np.array([max(0.0, min(random.gauss(9, 0.5), 10.0)) for _ in range(40_000)])
    ours = draws.levels.flatten().numpy()
    grid = np.linspace(7, 10, 31)
    gap = np.abs((ours[:, None] <= grid).mean(0) - (theirs[:, None] <= grid).mean(0)).max()
    assert gap < 0.0138  # Kolmogorov-Smirnov, 99.9 %
    assert ours.max() == 10.0


def test_an_infinite_deviation_draws_the_magnitude_uniformly():
    levels = RandAugment("rand-m8-mstd101").draw(20_000, torch.Generator().manual_seed(0)).levels
    assert levels.min() >= 0
    assert levels.max() <= 8
    assert abs(levels.mean().item() - 4.0) < 0.05


def test_magnitudes_above_ten_need_mmax():
    rng = torch.Generator().manual_seed(0)
    assert RandAugment("rand-m12").draw(4, rng).levels.max() == 10.0
    assert RandAugment("rand-m12-mmax15").draw(4, rng).levels.max() == 12.0


def test_the_whole_of_randaugment_equals_timms_ops_applied_one_image_at_a_time(monkeypatch):
    rand = RandAugment("rand-m9-n2-mstd0.5-inc1")
    pictures = [photograph(seed=i) for i in range(24)]
    draws = rand.draw(len(pictures), torch.Generator().manual_seed(3))
    ours = rand(as_batch(*pictures), draws).numpy().transpose(0, 2, 3, 1)
    names = list(OPERATIONS)
    assert Counter((draws.ops >= 0).sum(1).tolist()).keys() == {0, 1, 2}
    for i, picture in enumerate(pictures):
        for op, level, sign in zip(
            draws.ops[i].tolist(), draws.levels[i].tolist(), draws.signs[i].tolist(), strict=True
        ):
            if op >= 0:
                name = names[op] + ("Increasing" if names[op] in INCREASING else "")
                picture = timm_op(name, level, sign, picture, monkeypatch)
        # a difference of one grey level after the first operation may grow in the second
        assert np.abs(ours[i].astype(int) - picture.astype(int)).mean() < 0.5, i
        assert (ours[i] != picture).mean() < 0.1, i
