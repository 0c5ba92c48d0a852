"""Images per second: augmentation of whole batches against a DataLoader with per-image transforms, same operations.

Both crop out of zero padding and flip, 256 images of 32 px at a time, one thread, no workers, and end with numbers in
[0, 1]. The reference is how torchvision is used: `v2` transforms on uint8 tensors, the default collation.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from hkd.data.base import Split
from hkd.data.loading.loader import Loader
from hkd.spec import Recipe

IMAGES, BATCH, REQUIRED = 2048, 256, 4.0


class PerImage(Dataset):
    """The same images, transformed one at a time."""

    def __init__(self, images: torch.Tensor):
        self.images = images
        self.transform = v2.Compose(
            [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), index


def seconds(epoch: Callable[[], int], repeats: int) -> float:
    """Median time of an epoch, the first excluded."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        assert epoch() == IMAGES
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def test_whole_batches_are_augmented_at_least_four_times_as_fast_as_single_images(benchmark):
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)
    split = Split(images, None, np.arange(IMAGES) % 10, np.arange(IMAGES))
    recipe = Recipe(epochs=1, batch_size=BATCH, crop="pad", flip=True)
    ours = Loader(split, recipe, num_classes=10, seed=0)
    theirs = DataLoader(PerImage(torch.from_numpy(images)), batch_size=BATCH, shuffle=True, num_workers=0)

    def whole() -> int:
        return sum(len(batch.x) for batch in ours.epoch(0))

    def single() -> int:
        return sum(len(x) for x, _ in theirs)

    reference = seconds(single, repeats=3)
    measured = seconds(whole, repeats=10)
    benchmark.pedantic(whole, rounds=5, warmup_rounds=1)
    ratio = reference / measured
    benchmark.extra_info.update(ratio=ratio, images_per_s=IMAGES / measured, reference_images_per_s=IMAGES / reference)
    print(f"\nwhole batches {IMAGES / measured:,.0f} images/s, single images {IMAGES / reference:,.0f}: {ratio:.1f}x")
    assert ratio >= REQUIRED
