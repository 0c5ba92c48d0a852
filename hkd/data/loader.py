"""From a split and a recipe to batches: order, share of each process, augmentation, views, mixup, exact resume.

What a batch holds is a function of (split, recipe, seed, epoch, step) alone, so an epoch can start at any step
without having loaded the steps before, and any number of processes sees the same global batches.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hkd.data.augment import Augment, Draws, generator, to_float
from hkd.data.base import OnCorrupt, Split
from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.spec import Recipe

VIEW_BYTES = 2**29  # memory for precomputed views; beyond it a view is computed again when its epoch comes
MIX_GROUP = 8  # mixup pairs images within groups of at most this many, so that processes need not exchange images
EVALUATION_BATCH = 256


@dataclass
class Loaded:
    """A batch as it leaves a worker: with the files it could not read (name -> reason)."""

    batch: Batch | None
    corrupt: dict[str, str]


class Loader:
    """Batches of a split.

    Training: shuffled by (seed, epoch), augmented as the recipe says, full batches only. Evaluation: all images in
    order, unchanged, the last batch smaller. Images in memory are augmented here; files are read by `workers`.

    Args:
        split: what to show.
        recipe: batch size and augmentation; may be None for evaluation.
        num_classes: C, for the soft targets of mixup.
        seed: of the run.
        rank, world: this process and their number; each gets its contiguous part of every global batch.
        train: training or evaluation.
        workers: processes that decode files; images in memory need none.
        on_corrupt: "stop" raises UserError naming the file; "skip" counts it in `corrupt` and shows the next readable
            image of the batch in its place (training) or leaves it out (evaluation).
        batch_size: global; None takes the recipe's (evaluation without one: 256).

    Raises:
        UserError: batch larger than the data, or not divisible by the processes, or unfit for mixup.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe | None,
        *,
        num_classes: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
        workers: int = 0,
        on_corrupt: OnCorrupt = "stop",
        batch_size: int | None = None,
    ):
        if train and recipe is None:
            raise ValueError("training needs a recipe")
        self.split, self.recipe, self.seed, self.train = split, recipe, seed, train
        self.rank, self.world, self.workers, self.on_corrupt = rank, world, workers, on_corrupt
        self.batch_size = batch_size or (recipe.batch_size if recipe else EVALUATION_BATCH)
        self.size = split.image_size if split.images is None else split.images.shape[2]
        self.corrupt: dict[str, str] = dict.fromkeys(split.corrupt, "left out when the data was loaded")
        self.labels = torch.from_numpy(split.labels)
        self.images = None if split.images is None else torch.from_numpy(split.images)
        self.augment = Augment(recipe, self.size, seed) if train else None
        self.views = recipe.views if train else None
        self.mixup = mixup(recipe, num_classes) if train and (recipe.mixup or recipe.cutmix) else None
        self._shown: OrderedDict[int, Tensor] = OrderedDict()
        self._pipeline: DataLoader | None = None
        self._sampler = _Sampler()
        self._check()

    def __getstate__(self) -> dict[str, object]:
        """What worker processes need: everything but the pipeline they belong to."""
        return {**self.__dict__, "_pipeline": None}

    def _check(self) -> None:
        count, size, share = len(self.split), self.batch_size, self.batch_size // self.world
        if not count:
            raise UserError("The data has no images: check its options.")
        if self.train and size > count:
            raise UserError(f"batch_size {size} is larger than the {count} training images; use at most {count}.")
        if self.train and size % self.world:
            raise UserError(f"batch_size {size} cannot be shared equally by {self.world} processes.")
        if self.mixup and (size % 2 or share % mix_group(size)):
            need = f"a multiple of {mix_group(size)}" if size % 2 == 0 else "even"
            raise UserError(
                f"mixup and cutmix need {need} images per process and step, got {share}: change batch_size."
            )
        if self.images is not None and self.train and self.images.shape[2] != self.images.shape[3]:
            raise UserError(f"images in memory must be square, got {tuple(self.images.shape[2:])}.")

    @property
    def steps(self) -> int:
        """Global batches per epoch."""
        count = len(self.split)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch (0-based) from step `start` on; what comes before is not loaded.

        In evaluation a process without a share of the last batch gets no batch there.
        """
        return self._run([(epoch, step, None) for step in range(start, self.steps)])

    def view(self, view: int) -> Iterator[Batch]:
        """All images in order as fixed view `view` shows them (training with views), in batches of `batch_size`.

        Every process sees all of them. This is what a cache of teacher outputs is filled from.
        """
        if not self.views or not 0 <= view < self.views:
            raise ValueError(f"this loader has {self.views or 0} views, asked for view {view}")
        return self._run([(0, step, view) for step in range(-(-len(self.split) // self.batch_size))])

    def _run(self, items: list[tuple[int, int, int | None]]) -> Iterator[Batch]:
        for loaded in map(self.load, items) if self.images is not None else self._workers(items):
            if loaded.corrupt and self.on_corrupt == "stop":
                name, reason = next(iter(loaded.corrupt.items()))
                raise UserError(f"Cannot read image {name} ({reason}): replace it, or ask to skip corrupt images.")
            self.corrupt.update(loaded.corrupt)
            if loaded.batch is not None:
                yield loaded.batch

    def _workers(self, items: list[tuple[int, int, int | None]]) -> Iterator[Loaded]:
        """Items through worker processes that stay alive between epochs; in this process when there are none."""
        if self._pipeline is None:
            self._pipeline = DataLoader(
                _Items(self),
                sampler=self._sampler,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_same,
                persistent_workers=self.workers > 0,
            )
        self._sampler.items = items
        return iter(self._pipeline)

    def load(self, item: tuple[int, int, int | None]) -> Loaded:
        """This process's part of one global batch: (epoch, step, None), or of step `step` of a whole view."""
        epoch, step, whole_view = item
        view = whole_view if whole_view is not None else epoch % self.views if self.views else None
        index = self._indices(epoch, step, whole_view)
        if not len(index):
            return Loaded(None, {})
        draws = self._draws(epoch, step, view, index)
        corrupt: dict[str, str] = {}
        if self.images is None:
            x, index, corrupt = self._read(index, draws)
        elif view is not None:
            x = to_float(self._view(view)[index])
        else:
            x = self._augmented(self.images[index], draws)
        if not len(index):
            return Loaded(None, corrupt)
        y = self.labels[index]
        if self.mixup:
            x, y = self._mix(x, y, epoch, step)
        views = None if view is None else torch.full((len(index),), view)
        return Loaded(Batch(x, y, index, views), corrupt)

    def _indices(self, epoch: int, step: int, whole_view: int | None) -> Int[Tensor, " b"]:
        """Positions in the split of this process's images."""
        count, size = len(self.split), self.batch_size
        start, end = step * size, min((step + 1) * size, count)
        if whole_view is not None:
            return torch.arange(start, end)
        share = -(-(end - start) // self.world)
        start, end = min(start + self.rank * share, end), min(start + (self.rank + 1) * share, end)
        return self._order(epoch)[start:end] if self.train else torch.arange(start, end)

    def _order(self, epoch: int) -> Int[Tensor, " N"]:
        if getattr(self, "_ordered", (None, None))[0] != epoch:
            self._ordered = epoch, torch.randperm(len(self.split), generator=generator(self.seed, "order", epoch))
        return self._ordered[1]

    def _draws(self, epoch: int, step: int, view: int | None, index: Int[Tensor, " b"]) -> Draws | None:
        """The draws of this process's images, out of those of the global batch or of the whole view."""
        if self.augment is None or self.views == 1:  # a single view is the image itself
            return None
        if view is not None:
            return None if self.images is not None else self.augment.draw_view(len(self.split), view)[index]
        share = self.batch_size // self.world
        return self.augment.draw(self.batch_size, epoch, step)[self.rank * share : (self.rank + 1) * share]

    def _augmented(self, images: UInt8[Tensor, "b 3 H W"], draws: Draws | None, cropped: bool = False) -> Tensor:
        return to_float(images) if draws is None else self.augment(images, draws, cropped=cropped)

    def _view(self, view: int) -> UInt8[Tensor, "N 3 S S"]:
        """All images in one of their fixed views, in memory."""
        if view not in self._shown:
            while self._shown and (len(self._shown) + 1) * self.images.nbytes > VIEW_BYTES:
                self._shown.popitem(last=False)
            if self.views == 1:
                self._shown[view] = self.images
            else:
                draws = self.augment.draw_view(len(self.images), view)
                parts = torch.arange(len(self.images)).split(1024)
                shown = [self.augment(self.images[part], draws[part]).mul_(255.0).round_() for part in parts]
                self._shown[view] = torch.cat([part.to(torch.uint8) for part in shown])
        return self._shown[view]

    def _read(self, index: Int[Tensor, " b"], draws: Draws | None) -> tuple[Tensor, Int[Tensor, " b"], dict[str, str]]:
        """Decode, crop and augment files. Returns images in [0, 1], the positions shown, and what was unreadable."""
        corrupt: dict[str, str] = {}
        images: dict[int, Tensor] = {}
        for place, position in enumerate(index.tolist()):
            path = self.split.paths[position]
            try:
                image = decode_image(str(path), ImageReadMode.RGB)
            except (RuntimeError, OSError) as error:
                corrupt[str(path)] = str(error).splitlines()[0]
            else:
                images[place] = self._fit(image, None if draws is None else draws[place : place + 1])
        if not images:
            return torch.empty(0, 3, self.size, self.size), index[:0], corrupt
        shown = [place for place in range(len(index)) if place in images]
        if self.train:  # keep the batch full: the next readable image, cyclically, stands in
            shown = [
                next(p for k in range(len(index)) if (p := (place + k) % len(index)) in images)
                for place in range(len(index))
            ]
        cropped = self.recipe is not None and self.recipe.crop == "resized"
        x = self._augmented(torch.stack([images[place] for place in shown]), draws, cropped=cropped)
        return x, index[torch.tensor(shown)], corrupt

    def _fit(self, image: UInt8[Tensor, "3 H W"], draw: Draws | None) -> UInt8[Tensor, "3 S S"]:
        """RandomResizedCrop where the recipe has it, else the centre crop of the resized image; bicubic."""
        height, width = image.shape[1:]
        mode = InterpolationMode.BICUBIC
        if draw is not None and self.recipe.crop == "resized":
            box = self.augment.boxes(draw, height, width)[0].tolist()
            return tv.resized_crop(image, *box, [self.size, self.size], interpolation=mode, antialias=True)
        short = round(self.size / self.split.crop_pct)
        if min(height, width) != short:
            image = tv.resize(image, [short], interpolation=mode, antialias=True)
        return tv.center_crop(image, [self.size, self.size])

    def _mix(self, x: Tensor, y: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """timm's Mixup on groups of images, each with its own stream of NumPy's global generator, which is put back."""
        size = mix_group(self.batch_size)
        first = self.rank * (self.batch_size // self.world) // size
        state = np.random.get_state()
        mixed = []
        try:
            for number, (images, labels) in enumerate(zip(x.split(size), y.split(size), strict=True), start=first):
                np.random.seed(generator(self.seed, "mix", epoch, step, number).initial_seed())
                mixed.append(self.mixup(images, labels))
        finally:
            np.random.set_state(state)
        return torch.cat([images for images, _ in mixed]), torch.cat([targets for _, targets in mixed])


def mixup(recipe: Recipe, num_classes: int) -> Mixup:
    """Per-image mixup and cutmix; the soft targets carry the recipe's label smoothing."""
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        mode="elem",
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )


def mix_group(batch_size: int) -> int:
    """The largest even divisor of the batch that is at most MIX_GROUP; 2 where there is none."""
    return next((size for size in range(MIX_GROUP, 2, -2) if batch_size % size == 0), 2)


class _Items(Dataset):
    """Batches by (epoch, step, view), as a DataLoader asks for them."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __getitem__(self, item: tuple[int, int, int | None]) -> Loaded:
        return self.loader.load(item)


class _Sampler(Sampler):
    """Hands out the items of the current epoch."""

    def __init__(self) -> None:
        self.items: list[tuple[int, int, int | None]] = []

    def __iter__(self) -> Iterator[tuple[int, int, int | None]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _same(loaded: Loaded) -> Loaded:
    return loaded
