"""From a split and a recipe to batches: order, share of each process, augmentation, views, mixup, exact resume.

What a batch holds is a function of (split, recipe, seed, epoch, step) alone, so an epoch can start at any step
without having loaded the steps before, and any number of processes sees the same global batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hkd.data.base import OnCorrupt, Split
from hkd.data.batch import Batch
from hkd.data.loading.augment import Augment, Draws, Patches, generator, paste, to_float
from hkd.data.loading.shared_memory import check_room
from hkd.data.sources import FileSource, MemorySource
from hkd.errors import UserError
from hkd.spec import Recipe

MIX_GROUP = 8  # mixup pairs images within groups of at most this many, so that processes need not exchange images
EVALUATION_BATCH = 256


class Item(NamedTuple):
    """One batch to load: a step of an epoch, or of a pass over all images in fixed view `whole_view`."""

    epoch: int
    step: int
    whole_view: int | None = None


B = TypeVar("B", bound=Batch)


@dataclass
class Loaded(Generic[B]):
    """A batch as it leaves a worker (None: no image of it is left), the files that could not be read, and what is to be
    pasted into its images.

    Augmented images, and those of files, are bytes here, a quarter of what numbers would take of the memory that
    processes share. mix: which item the batch is, if mixup is still to come.
    """

    batch: B | None
    corrupt: dict[str, str]
    mix: Item | None = None
    patches: Patches = field(default_factory=list)

    def pin_memory(self) -> "Loaded[B]":
        """As `Batch.pin_memory`."""
        return replace(self, batch=None if self.batch is None else self.batch.pin_memory())


class BatchLoader(ABC, Generic[B]):
    """Batches of a data set, one after the other: order, shares of processes, workers and what cannot be read.

    Training: shuffled by (seed, epoch), full batches only. Evaluation: all images in order, the last batch smaller.
    Subclasses say in `load` what a batch is; it is called in `workers` where they are `ahead`, else in this process.

    Args:
        count: N, number of images.
        batch_size: global.
        seed: of the run.
        rank, world: this process and their number; each gets its contiguous part of every global batch.
        train: training or evaluation.
        workers: processes that load batches ahead (images in memory: `Loader.ahead`); 0 loads in this one.
        on_corrupt: "stop" raises UserError naming the file; "skip" counts it in `corrupt` and shows the next readable
            image of the batch in its place (training) or leaves it out (evaluation).
        device: where batches are wanted: those from workers go there while they are bytes. None: they stay on the CPU.

    Raises:
        UserError: no images, a batch larger than the data, or not divisible by the processes.
    """

    in_memory: bool

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
        workers: int = 0,
        on_corrupt: OnCorrupt = "stop",
        device: torch.device | None = None,
    ):
        self.device = device
        self.count, self.batch_size, self.seed, self.train = count, batch_size, seed, train
        self.rank, self.world, self.workers, self.on_corrupt = rank, world, workers, on_corrupt
        self.corrupt: dict[str, str] = {}
        self._ordered: dict[int, Tensor] = {}  # the order of the current epoch
        self._pipeline: DataLoader | None = None
        self._sampler = _Sampler()
        if not count:
            raise UserError("The data has no images: check its options.")
        if train and batch_size > count:
            raise UserError(f"batch_size {batch_size} is larger than the {count} training images; use at most {count}.")
        if train and batch_size % world:
            raise UserError(f"batch_size {batch_size} cannot be shared equally by {world} processes.")

    def __getstate__(self) -> dict[str, object]:
        """What worker processes need: everything but the pipeline they belong to."""
        return {**self.__dict__, "_pipeline": None}

    @abstractmethod
    def load(self, item: Item) -> Loaded[B]:
        """This process's part of one global batch, on the CPU."""

    @property
    def ahead(self) -> bool:
        """Whether batches are made by workers, where there are any, while others are used."""
        return not self.in_memory

    @property
    def steps(self) -> int:
        """Global batches per epoch."""
        return self.count // self.batch_size if self.train else -(-self.count // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[B]:
        """Batches of an epoch (0-based) from step `start` on; what comes before is not loaded.

        In evaluation a process without a share of the last batch gets no batch there.
        """
        return self.batches([Item(epoch, step) for step in range(start, self.steps)])

    def batches(self, items: list[Item]) -> Iterator[B]:
        """The batches of some items, one after the other."""
        for loaded in self._through_workers(items) if self.ahead else map(self.load, items):
            if loaded.corrupt and self.on_corrupt == "stop":
                name, reason = next(iter(loaded.corrupt.items()))
                raise UserError(f"Cannot read image {name} ({reason}): replace it, or ask to skip corrupt images.")
            self.corrupt.update(loaded.corrupt)
            if loaded.batch is not None:
                yield self.finished(loaded.batch, loaded)

    def finished(self, batch: B, loaded: Loaded[B]) -> B:
        """A batch as it is used: numbers where it is bytes, on the device, with the patches of random erasing."""
        if self.device is not None and self.ahead:
            batch = batch.to(self.device)
        if batch.x.dtype == torch.uint8:
            batch = replace(batch, x=paste(to_float(batch.x), loaded.patches))
        return batch

    def positions(self, item: Item) -> Int[Tensor, " b"]:
        """Positions in the split of this process's images."""
        start, end = item.step * self.batch_size, min((item.step + 1) * self.batch_size, self.count)
        if item.whole_view is not None:
            return torch.arange(start, end)
        share = -(-(end - start) // self.world)
        start, end = min(start + self.rank * share, end), min(start + (self.rank + 1) * share, end)
        return self._order(item.epoch)[start:end] if self.train else torch.arange(start, end)

    def _order(self, epoch: int) -> Int[Tensor, " N"]:
        if epoch not in self._ordered:
            order = torch.randperm(self.count, generator=generator(self.seed, "order", epoch))
            self._ordered = {epoch: order}
        return self._ordered[epoch]

    def _through_workers(self, items: list[Item]) -> Iterator[Loaded[B]]:
        """Items through worker processes that stay alive between epochs; in this process when there are none.

        Raises:
            UserError: what `load` raised, as it was: torch would raise it again with a worker's traceback for its text.
        """
        if self._pipeline is None:
            self._pipeline = DataLoader(
                _Items(copy(self)),  # a copy, or the cycle of references would delay the end of the workers by 5 s
                sampler=self._sampler,
                batch_size=None,
                num_workers=self.workers,
                collate_fn=_same,
                persistent_workers=self.workers > 0,
                pin_memory=self.workers > 0 and self.device is not None and self.device.type == "cuda",
                generator=torch.Generator(),  # or every epoch would draw from the global one
            )
        self._sampler.items = items
        for loaded in self._pipeline:
            if isinstance(loaded, UserError):
                raise loaded
            yield loaded


class Loader(BatchLoader[Batch]):
    """Batches of a split of images with labels, or of images alone.

    Images are augmented in training as the recipe says, unchanged in evaluation.

    Args:
        split: what to show.
        recipe: batch size and augmentation; may be None for evaluation.
        num_classes: C, for the soft targets of mixup; 0: targets are [B, 0], so that nothing reads a label.
        batch_size: global; None takes the recipe's (evaluation without one: 256).
        more: as for `BatchLoader`.

    Raises:
        UserError: as `BatchLoader`, or a batch unfit for mixup.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe | None,
        *,
        num_classes: int,
        batch_size: int | None = None,
        **more: Any,
    ):
        size = batch_size or (recipe.batch_size if recipe else EVALUATION_BATCH)
        super().__init__(len(split), size, **more)
        self.split = split
        self.corrupt.update(dict.fromkeys(split.corrupt, "left out when the data was loaded"))
        self.labels = torch.from_numpy(split.labels) if num_classes else torch.empty(len(split), 0)
        self.augment: Augment | None = None
        self.views: int | None = None
        self.mixup: Mixup | None = None
        if self.train:
            if recipe is None:
                raise ValueError("training needs a recipe")
            self.views = recipe.views
            self.mixup = mixup(recipe, num_classes) if recipe.mixup or recipe.cutmix else None
            if self.views != 1:  # a single view is the image itself
                self.augment = Augment(recipe, split.side, self.seed)
        self.in_memory = split.images is not None
        self.source: MemorySource | FileSource
        if split.images is not None:
            self.source = MemorySource(torch.from_numpy(split.images), self.augment)
        else:
            assert split.paths is not None
            self.source = FileSource(
                split.paths, split.side, split.crop_pct, self.augment, fill=self.train, banner=split.banner
            )
        share = size // self.world
        if self.mixup and (size % 2 or share % mix_group(size)):
            need = f"a multiple of {mix_group(size)}" if size % 2 == 0 else "an even number of"
            raise UserError(f"mixup and cutmix need {need} images per process, got {share}: change batch_size.")

    def view(self, view: int) -> Iterator[Batch]:
        """All images in order as fixed view `view` shows them (training with views), in batches of `batch_size`.

        Every process sees all of them. This is what a cache of teacher outputs is filled from.
        """
        if not self.views or not 0 <= view < self.views:
            raise ValueError(f"this loader has {self.views or 0} views, asked for view {view}")
        return self.batches([Item(0, step, view) for step in range(-(-self.count // self.batch_size))])

    def load(self, item: Item) -> Loaded[Batch]:
        """This process's part of one global batch, or one batch of a whole view."""
        index = self.positions(item)
        if not len(index):
            return Loaded(None, {})
        view = item.whole_view
        if view is None and self.views:
            view = item.epoch % self.views
        shown = self.source(index, self._draws(item) if view is None else None, view)
        if not len(shown.index):
            return Loaded(None, shown.corrupt)
        x, y, patches = shown.raw, self.labels[shown.index], shown.patches
        if self.mixup and not self.mixes_late:
            (x, y), patches = self._mix(self.mixup, shown.x, y, item), []
        views = None if view is None else torch.full((len(x),), view)
        return Loaded(
            Batch(x, y, shown.index, views), shown.corrupt, item if self.mixup and self.mixes_late else None, patches
        )

    @property
    def ahead(self) -> bool:
        """Of images in memory those that are augmented while a GPU would wait: on a CPU nobody would gain, and fixed
        views are made but once.
        """
        return super().ahead or (self.workers > 0 and self.on_gpu and self.augment is not None and not self.views)

    @property
    def on_gpu(self) -> bool:
        """Whether batches are wanted on a GPU."""
        return self.device is not None and self.device.type == "cuda"

    @property
    def mixes_late(self) -> bool:
        """Whether images that workers made are mixed on the device: mixed ones are numbers, four times as large.
        On a CPU the workers have the time for it.
        """
        return self.ahead and self.on_gpu

    def finished(self, batch: Batch, loaded: Loaded[Batch]) -> Batch:
        """As every loader's, and mixed where that was left for here."""
        batch = super().finished(batch, loaded)
        if loaded.mix is None or self.mixup is None:
            return batch
        x, y = self._mix(self.mixup, batch.x, batch.y, loaded.mix)
        return replace(batch, x=x, y=y)

    def _draws(self, item: Item) -> Draws | None:
        """The draws of this process's images, out of those of the global batch."""
        if self.augment is None:
            return None
        share = self.batch_size // self.world
        draws = self.augment.draw(self.batch_size, item.epoch, item.step)
        return draws[self.rank * share : (self.rank + 1) * share]

    def _mix(self, mix: Mixup, x: Tensor, y: Tensor, item: Item) -> tuple[Tensor, Tensor]:
        """timm's Mixup on groups of images, each with its own stream of NumPy's global generator, which is put back."""
        size = mix_group(self.batch_size)
        first = self.rank * (self.batch_size // self.world) // size
        state = np.random.get_state()
        mixed = []
        try:
            for group, (images, labels) in enumerate(zip(x.split(size), y.split(size), strict=True), start=first):
                np.random.seed(generator(self.seed, "mix", item.epoch, item.step, group).initial_seed())
                mixed.append(mix(images, labels))
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
    """Batches by item, as a DataLoader asks for them; in the place of one a mistake of the user's."""

    def __init__(self, loader: BatchLoader):
        self.loader = loader

    def __getitem__(self, item: Item) -> Loaded | UserError:
        try:
            loaded = self.loader.load(item)
            check_room(loaded, self.loader.workers)
            return loaded
        except UserError as error:
            return error


class _Sampler(Sampler):
    """Hands out the items of the current epoch."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def _same(loaded: Any) -> Any:
    return loaded
