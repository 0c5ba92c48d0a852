"""Images per CPU second from JPEG files to batches of numbers, with two loader workers: ours, torchvision's, timm's.

Photographs of about 400 px, cropped at random to 224 px and flipped. The references are how torchvision is used
(`ImageFolder`, transforms of Pillow's images, a DataLoader with the default collation) and, with RandAugment and
erasing, how timm is (`create_loader`, with its prefetching collation of bytes). Beside them our own loader with
numbers instead of bytes from its workers. Counted are the CPU seconds of this process and its workers, in alternating
passes of one process: what else runs on the machine moves them less than a clock.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from hkd.data.base import PathList, Split
from hkd.data.loading.augment import paste, to_float
from hkd.data.loading.loader import Item, Loaded, Loader
from hkd.spec import Recipe

IMAGES, BATCH, SIDE, WORKERS, ROUNDS = 512, 32, 224, 2, 3
CLASSES = 4
RANDAUGMENT, ERASING = "rand-m9-mstd0.5", 0.25  # not -inc1, for which timm asks Pillow for 0 bits, which it refuses


class FromNumbers(Loader):
    """Numbers leave the workers."""

    def load(self, item: Item) -> Loaded[Any]:
        loaded = super().load(item)
        assert loaded.batch is not None
        x = paste(to_float(loaded.batch.x), loaded.patches)
        return replace(loaded, batch=replace(loaded.batch, x=x), patches=[])


def photographs(folder: Path) -> PathList:
    """Smooth pictures with some noise, of a size and weight as ImageNet's have."""
    rng = np.random.default_rng(0)
    names = []
    for number in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((400, 300), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (pixels + rng.integers(-12, 13, pixels.shape)).clip(0, 255).astype(np.uint8)
        name = f"{number % CLASSES}/{number}.jpg"
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name, quality=90)
        names.append(name)
    return PathList(folder, names)


def cpu_seconds(epoch: Callable[[], int]) -> float:
    """Of this process and of children that ended meanwhile."""
    before = os.times()
    assert epoch() == IMAGES
    return sum(after - start for after, start in zip(os.times()[:4], before[:4], strict=True))


def compared(named: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Images per CPU second of each kind of epoch; the best of alternating passes."""
    taken: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(ROUNDS):
        for name, epoch in named.items():
            taken[name].append(cpu_seconds(epoch))
    rates = {name: IMAGES / min(seconds) for name, seconds in taken.items()}
    print("\n" + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items()) + " images per CPU second")
    return rates


def labelled(paths: PathList) -> Split:
    return Split(None, paths, np.arange(IMAGES) % CLASSES, np.arange(IMAGES), image_size=SIDE)


def test_files_become_batches_for_less_than_torchvision_takes(benchmark, tmp_path):
    split = labelled(photographs(tmp_path))
    recipe = Recipe(epochs=1, batch_size=BATCH, crop="resized", flip=True)
    crop = transforms.RandomResizedCrop(SIDE, interpolation=transforms.InterpolationMode.BICUBIC)
    shown = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()])

    def ours(kind: type[Loader] = Loader) -> int:
        loader = kind(split, recipe, num_classes=CLASSES, seed=0, workers=WORKERS)
        return sum(len(batch.x) for batch in loader.epoch(0))

    def theirs() -> int:
        loader = DataLoader(ImageFolder(str(tmp_path), shown), BATCH, shuffle=True, num_workers=WORKERS)
        return sum(len(x) for x, _ in loader)

    rates = compared({"bytes": ours, "numbers": lambda: ours(FromNumbers), "torchvision": theirs})
    benchmark.extra_info.update({f"{name}_images_per_cpu_s": rate for name, rate in rates.items()})
    benchmark.pedantic(ours, rounds=1)
    assert rates["bytes"] > rates["numbers"]
    assert rates["bytes"] > rates["torchvision"]


def test_strong_augmentation_against_timm(benchmark, tmp_path):
    split = labelled(photographs(tmp_path))
    recipe = Recipe(epochs=1, batch_size=BATCH, crop="resized", flip=True, randaugment=RANDAUGMENT, erasing=ERASING)

    def ours() -> int:
        loader = Loader(split, recipe, num_classes=CLASSES, seed=0, workers=WORKERS)
        return sum(len(batch.x) for batch in loader.epoch(0))

    def theirs() -> int:
        loader = create_loader(
            ImageDataset(str(tmp_path)),
            (3, SIDE, SIDE),
            BATCH,
            is_training=True,
            auto_augment=RANDAUGMENT,
            re_prob=ERASING,
            re_mode="pixel",
            interpolation="bicubic",
            num_workers=WORKERS,
            device=torch.device("cpu"),
            pin_memory=False,
        )
        return sum(len(x) for x, _ in loader)

    rates = compared({"ours": ours, "timm": theirs})
    benchmark.extra_info.update({f"{name}_images_per_cpu_s": rate for name, rate in rates.items()})
    benchmark.pedantic(ours, rounds=1)


def test_numbers_from_workers_are_those_of_bytes(tmp_path):
    split = labelled(photographs(tmp_path))
    recipe = Recipe(epochs=1, batch_size=BATCH, crop="resized", flip=True, erasing=0.5)
    one, other = (
        next(iter(kind(split, recipe, num_classes=CLASSES, seed=0).epoch(0))) for kind in (Loader, FromNumbers)
    )
    assert torch.equal(one.x, other.x)
