"""From a split for dense tasks to batches: images of different sizes padded to one, targets that follow them.

Order, shares of processes, workers and resumption are those of `BatchLoader`: what a batch holds
is a function of (split, recipe, options, seed, epoch, step) alone.
Shapes: B images of a batch, K objects of one image (K may be 0), h and w its own sides, H and W those of the batch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64, UInt8
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from hkd.data.batch import Batch
from hkd.data.dense import IGNORE, DenseSplit
from hkd.data.loading.augment import generator, to_float
from hkd.data.loading.loader import EVALUATION_BATCH, BatchLoader, Item, Loaded
from hkd.errors import UserError
from hkd.options import Factor, Rising, Size, options
from hkd.spec import Recipe


@options
class ViewOptions:
    """How training images are shown beside the recipe's flip; base of the options of every dense task."""

    # Sides are multiplied by a factor drawn uniformly from this range.
    scale: Annotated[tuple[Factor, Factor], Rising] = (1.0, 1.0)
    crop: Size | None = None  # px: larger sides are then cropped to this, at a uniform place; None: no crop


@dataclass
class DenseBatch(Batch):
    """Images padded with zeros at the right and the bottom, and their targets.

    x: [B, 3, H, W] in [0, 1]. y, index: positions in the split [B] (there is no label per image).
    sizes: h and w of each image within x [B, 2].
    objects: of each image "boxes" (x1, y1, x2, y2 in px of x, float [K, 4]), "labels" (classes from 0, int64 [K]) and
        "masks" (bool [K, h, w], not padded); None where the split has no objects.
    maps: classes from 0, `IGNORE` where padded or not labelled, [B, H, W]; None where the split has none.
    In evaluation both are None: what is true stays with the split, at the size of the files.
    """

    sizes: Int64[Tensor, "B 2"] = None  # type: ignore[assignment]  # after fields with defaults, but always given
    objects: list[dict[str, Tensor]] | None = None
    maps: Int64[Tensor, "B H W"] | None = None


class Draws(NamedTuple):
    """Random numbers of B images, uniform in [0, 1): flip, factor of the scale [B], place of the crop (y, x) [B, 2]."""

    flip: Float[Tensor, " B"]
    factor: Float[Tensor, " B"]
    place: Float[Tensor, "B 2"]


class Example(NamedTuple):
    """One image as it is shown, with what of it the split has."""

    image: UInt8[Tensor, "3 h w"]
    objects: dict[str, Tensor] | None
    map: UInt8[Tensor, "h w"] | None


class DenseLoader(BatchLoader[DenseBatch]):
    """Batches of a dense split.

    Training: shuffled by (seed, epoch), full batches only; images are flipped (`recipe.flip`), scaled and cropped
    (`options`), and boxes, masks and maps follow. Objects of which nothing is left are left out, and images without
    objects stay. Evaluation: all images in order, no targets, the last batch smaller.
    Images in memory are shown at their size, files with the split's `image_size` as their short side unless the long
    one would exceed `max_size`; resizing is bilinear with anti-aliasing, for masks and maps to the nearest pixel.

    Args:
        split: what to show.
        recipe: batch size and flip; None in evaluation shows 256 images at a time.
        options: scale and crop.
        multiple: the sides of x are multiples of it.
        more: as for `BatchLoader`.

    Raises:
        UserError: no images, a batch larger than the data or not divisible by the processes.
    """

    def __init__(
        self,
        split: DenseSplit,
        recipe: Recipe | None,
        *,
        options: ViewOptions,
        multiple: int = 1,
        **more: Any,
    ):
        super().__init__(len(split), recipe.batch_size if recipe else EVALUATION_BATCH, **more)
        self.dense, self.options, self.multiple = split, options, multiple
        self.in_memory = split.images is not None
        self.flip = self.train and recipe is not None and recipe.flip

    def load(self, item: Item) -> Loaded:
        """This process's part of one global batch, on the CPU."""
        positions = self.positions(item)
        if not len(positions):
            return Loaded(None, {})
        draws = self._share(item) if self.train else None
        found: list[Example | None] = []
        corrupt: dict[str, str] = {}
        for place, position in enumerate(positions.tolist()):
            try:
                image = torch.as_tensor(self.dense.image(position))
                found.append(self.show(image, position, draws and Draws(*(part[place] for part in draws))))
            except UserError as error:
                if self.on_corrupt == "stop":
                    raise
                corrupt[self.dense.file_name(position)] = str(error)
                found.append(None)
        shown = [place for place, example in enumerate(found) if example is not None]
        if not shown:
            return Loaded(None, corrupt)
        if self.train:  # the next readable one, cyclically, stands in
            shown = [next((p for p in shown if p >= place), shown[0]) for place in range(len(found))]
        examples = [example for place in shown if (example := found[place]) is not None]
        return Loaded(collate(examples, positions[torch.tensor(shown)], self.multiple), corrupt)

    def show(self, image: UInt8[Tensor, "3 h w"], position: int, draw: Draws | None) -> Example:
        """One image at the size of its split, in training with its targets and augmented by its draws."""
        whole = shown_size(image.shape[-2:], self.dense)
        if draw is None:
            return Example(resized(tv_tensors.Image(image), whole), None, None)
        parts: dict[str, Any] = {"image": tv_tensors.Image(image)}
        if self.dense.objects is not None:
            objects = self.dense.objects[position]
            parts["boxes"] = tv_tensors.BoundingBoxes(
                torch.tensor(objects.boxes), format="XYXY", canvas_size=tuple(image.shape[-2:])
            )
            parts["masks"] = tv_tensors.Mask(torch.tensor(objects.masks))
        if self.dense.maps is not None:
            parts["map"] = tv_tensors.Mask(torch.tensor(self.dense.maps[position])[None])
        parts = self.augmented(parts, whole, draw)
        kept = None
        if self.dense.objects is not None:
            boxes, masks = parts["boxes"].as_subclass(Tensor), parts["masks"].as_subclass(Tensor)
            left = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & masks.flatten(1).any(dim=1)
            kept = {"boxes": boxes[left], "labels": torch.tensor(objects.labels)[left], "masks": masks[left]}
        return Example(parts["image"].as_subclass(Tensor), kept, parts["map"][0] if "map" in parts else None)

    def augmented(self, parts: dict[str, Any], whole: tuple[int, int], draw: Draws) -> dict[str, Any]:
        """Image and targets scaled, cropped and flipped alike. whole: height and width at factor 1."""
        low, high = self.options.scale
        factor = low + (high - low) * float(draw.factor)
        size = max(round(whole[0] * factor), 1), max(round(whole[1] * factor), 1)
        parts = {name: resized(part, size) for name, part in parts.items()}
        if self.options.crop is not None:
            height, width = (min(side, self.options.crop) for side in size)
            top = int(float(draw.place[0]) * (size[0] - height + 1))
            left = int(float(draw.place[1]) * (size[1] - width + 1))
            if (height, width) != size:
                parts = {name: tv.crop(part, top, left, height, width) for name, part in parts.items()}
        if self.flip and draw.flip < 0.5:
            parts = {name: tv.horizontal_flip(part) for name, part in parts.items()}
        return parts

    def _share(self, item: Item) -> Draws:
        """The draws of this process's images, out of those of the global batch."""
        rng = generator(self.seed, "dense", item.epoch, item.step)
        count, share = self.batch_size, self.batch_size // self.world
        draws = Draws(
            flip=torch.rand(count, generator=rng),
            factor=torch.rand(count, generator=rng),
            place=torch.rand(count, 2, generator=rng),
        )
        return Draws(*(part[self.rank * share : (self.rank + 1) * share] for part in draws))


def shown_size(size: tuple[int, int] | torch.Size, split: DenseSplit) -> tuple[int, int]:
    """Height and width at which an image of `size` is shown: its own in memory; else by short and long side."""
    height, width = size
    if split.images is not None or split.image_size is None:
        return height, width
    factor = split.image_size / min(height, width)
    if split.max_size is not None:
        factor = min(factor, split.max_size / max(height, width))
    return max(round(height * factor), 1), max(round(width * factor), 1)


def resized(part: Any, size: tuple[int, int]) -> Any:
    """An image, boxes or masks at another size; itself where it has it. No masks at all have a size too."""
    held = part.canvas_size if isinstance(part, tv_tensors.BoundingBoxes) else part.shape[-2:]
    if tuple(held) == size:
        return part
    if not part.numel() and isinstance(part, tv_tensors.Mask):
        return tv_tensors.Mask(part.new_zeros(0, *size))
    return tv.resize(part, list(size), antialias=True)


def collate(examples: list[Example], index: Int[Tensor, " B"], multiple: int) -> DenseBatch:
    """Examples of different sizes as one batch, padded to the largest sides rounded up to multiples."""
    sizes = torch.tensor([example.image.shape[-2:] for example in examples])
    height, width = (-(-side // multiple) * multiple for side in sizes.amax(dim=0).tolist())

    def padded(part: Tensor, value: int) -> Tensor:
        return F.pad(part, (0, width - part.shape[-1], 0, height - part.shape[-2]), value=value)

    objects = [example.objects for example in examples if example.objects is not None]
    maps = [padded(example.map, IGNORE) for example in examples if example.map is not None]
    return DenseBatch(
        x=to_float(torch.stack([padded(example.image, 0) for example in examples])),
        y=index,
        index=index,
        sizes=sizes,
        objects=objects or None,
        maps=torch.stack(maps).long() if maps else None,
    )
