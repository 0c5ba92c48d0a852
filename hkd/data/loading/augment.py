"""Augmentation of whole batches of bytes, one draw per image, as a function of (seed, epoch, step) alone.

Crops, shifts and flips are one gather by index; RandAugment works in groups; erasing is timm's. What was drawn is
kept apart from what it is applied to, so that a process of several can take its share of a batch's draws, and a
worker can crop a large photograph while it is decoded.
Shapes: B images, H and W their sides, S the side of the result in px.
"""

import hashlib
import math
import random
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from hkd.data.loading.randaugment import OpDraws, RandAugment
from hkd.devices import sent
from hkd.spec import Recipe

ASPECT = (3 / 4, 4 / 3)  # of RandomResizedCrop
ATTEMPTS = 10  # of RandomResizedCrop to fit a box before it takes the centre


def generator(*stream: int | str) -> torch.Generator:
    """A generator of its own for every stream, e.g. (seed, "augment", epoch, step); independent of all others."""
    word = int.from_bytes(hashlib.blake2b(repr(stream).encode(), digest_size=4).digest(), "little")
    return torch.Generator().manual_seed(word)


@dataclass(frozen=True)
class Draws:
    """The random numbers of B images.

    shift: translation in px (down, right). place: where a crop lies in what room it has, uniform in [0, 1) (y, x).
    area, log_ratio: uniform proposals of RandomResizedCrop. erase: seeds of random erasing.
    """

    shift: Int[Tensor, "B 2"]
    place: Float[Tensor, "B 2"]
    area: Float[Tensor, "B attempts"]
    log_ratio: Float[Tensor, "B attempts"]
    flip: Bool[Tensor, " B"]
    erase: Int[Tensor, " B"]
    ops: OpDraws | None

    def __getitem__(self, index: slice | Int[Tensor, " b"]) -> "Draws":
        """The draws of some of the images."""
        parts = {f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "ops"}
        ops = self.ops and OpDraws(self.ops.ops[index], self.ops.levels[index], self.ops.signs[index])
        return Draws(**parts, ops=ops)


class Augment:
    """Draws and applies the augmentation of a recipe.

    Args:
        recipe: its fields crop, crop_scale, flip, shift, randaugment and erasing are read.
        size: S, side of the result in px.
        seed: of the run.
    """

    def __init__(self, recipe: Recipe, size: int, seed: int):
        self.recipe, self.size, self.seed = recipe, size, seed
        self.rand_augment = RandAugment(recipe.randaugment) if recipe.randaugment else None
        self.erasing = RandomErasing(recipe.erasing, mode="pixel", device="cpu") if recipe.erasing else None

    def draw(self, count: int, epoch: int, step: int) -> Draws:
        """For the `count` images of one global batch."""
        return self._draw(count, generator(self.seed, "augment", epoch, step))

    def draw_view(self, count: int, view: int) -> Draws:
        """For fixed view number `view` of all `count` images of a split."""
        return self._draw(count, generator(self.seed, "view", view))

    def _draw(self, count: int, rng: torch.Generator) -> Draws:
        low, high = self.recipe.crop_scale
        log_low, log_high = math.log(ASPECT[0]), math.log(ASPECT[1])
        return Draws(
            shift=torch.randint(-self.recipe.shift, self.recipe.shift + 1, (count, 2), generator=rng),
            place=torch.rand(count, 2, generator=rng),
            area=low + (high - low) * torch.rand(count, ATTEMPTS, generator=rng),
            log_ratio=log_low + (log_high - log_low) * torch.rand(count, ATTEMPTS, generator=rng),
            flip=torch.rand(count, generator=rng) < 0.5,
            erase=torch.randint(2**31, (count,), generator=rng),
            ops=self.rand_augment.draw(count, rng) if self.rand_augment else None,
        )

    def __call__(
        self, images: UInt8[Tensor, "B 3 H W"], draws: Draws, *, cropped: bool = False
    ) -> Float[Tensor, "B 3 S S"]:
        """Augmented images in [0, 1].

        Args:
            images: bytes [B, 3, H, W], H = W = S unless the recipe crops with `resized`.
            draws: of these images.
            cropped: RandomResizedCrop was done already, while decoding.
        """
        return paste(to_float(self.as_bytes(images, draws, cropped=cropped)), self.patches(draws))

    def as_bytes(
        self, images: UInt8[Tensor, "B 3 H W"], draws: Draws, *, cropped: bool = False
    ) -> UInt8[Tensor, "B 3 S S"]:
        """All of the augmentation that bytes can hold: what is erased is not (`patches`). Arguments as for a call."""
        if self.recipe.crop == "resized" and not cropped:
            images = resized_crop(images, self.boxes(draws, images.shape[2], images.shape[3]), self.size)
        images = self._move(images, draws)
        if self.rand_augment is not None and draws.ops is not None:
            images = self.rand_augment(images, draws.ops)
        return images

    def patches(self, draws: Draws) -> "Patches":
        """What is erased of these images."""
        return [] if self.erasing is None else drawn_patches(self.erasing, self.size, draws.erase)

    def _move(self, images: UInt8[Tensor, "B 3 S S"], draws: Draws) -> UInt8[Tensor, "B 3 S S"]:
        """Shift with repeated edges, then crop out of zero padding, then flip."""
        shift, pad, flip = self.recipe.shift, self.recipe.crop == "pad", self.recipe.flip
        if not (shift or pad or flip):
            return images
        if not (shift or pad):
            flipped = images.clone()
            for image in draws.flip.nonzero().squeeze(1).tolist():  # a third of the time of all at once by index
                flipped[image] = images[image].flip(2)
            return flipped
        size = images.shape[2]
        at = torch.arange(size)
        rows, columns = at.expand(len(images), size), at.expand(len(images), size)
        if flip:
            columns = torch.where(draws.flip.unsqueeze(1), columns.flip(1), columns)
        if pad:
            room = size // 8
            corner = (draws.place * (2 * room + 1)).long() - room
            rows, columns = rows + corner[:, :1], columns + corner[:, 1:]
        inside = within(rows, size).unsqueeze(2) & within(columns, size).unsqueeze(1)
        rows = (rows - draws.shift[:, :1]).clamp(0, size - 1)
        columns = (columns - draws.shift[:, 1:]).clamp(0, size - 1)
        index = (rows.unsqueeze(2) * size + columns.unsqueeze(1)).flatten(1)
        moved = images.flatten(2).gather(2, index.unsqueeze(1).expand(-1, 3, -1)).view_as(images)
        return moved.mul_(inside.unsqueeze(1)) if pad else moved

    def boxes(self, draws: Draws, height: int, width: int) -> Int[Tensor, "B 4"]:
        """Boxes of RandomResizedCrop (top, left, height, width) in images of one size, as torchvision draws them.

        The first of ten proposals that fits is taken; if none does, the largest centred box of allowed aspect.
        """
        # NumPy, because files ask for one box at a time, and calling torch costs more than these few numbers do.
        area = draws.area.numpy() * np.float32(height) * np.float32(width)
        ratio = draws.log_ratio.exp().numpy()
        w, h = (np.rint(np.sqrt(part)).astype(np.int64) for part in (area * ratio, area / ratio))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
        at, first = np.arange(len(fits)), fits.argmax(1)
        w, h = w[at, first], h[at, first]
        room = np.stack([height - h + 1, width - w + 1], 1).astype(np.float32)
        corner = (draws.place.numpy() * room).astype(np.int64)
        centre_w = min(width, round(height * ASPECT[1]))
        centre_h = min(height, round(width / ASPECT[0]))
        centre = np.array([(height - centre_h) // 2, (width - centre_w) // 2, centre_h, centre_w])
        drawn = np.concatenate([corner, h[:, None], w[:, None]], 1)
        return torch.from_numpy(np.where(fits.any(1)[:, None], drawn, centre))


def within(position: Int[Tensor, "*shape"], size: int) -> Bool[Tensor, "*shape"]:
    return (position >= 0) & (position < size)


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bytes as numbers in [0, 1], the same ones on every device."""
    # By a plain number a GPU would multiply with its reciprocal, which moves the last bit of some.
    divisor = 255.0 if images.device.type == "cpu" else torch.full((), 255.0, device=images.device)
    return images.float().div_(divisor)


def resized_crop(
    images: UInt8[Tensor, "B 3 H W"], boxes: Int[Tensor, "B 4"], size: int
) -> UInt8[Tensor, "B 3 size size"]:
    """Each image's box, scaled to `size` bilinearly (half-pixel centres, no anti-aliasing: for small images).

    Args:
        images: [B, 3, H, W].
        boxes: top, left, height, width of each crop in px, inside the image.
        size: side of the result in px.
    """
    (top, left, height, width) = (edge.unsqueeze(1) for edge in boxes.unbind(1))

    def along(start: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        at = ((torch.arange(size) + 0.5) * length / size - 0.5).clamp(min=0.0).minimum(length - 1.0)
        low = at.long()
        return start + low, start + (low + 1).minimum(length - 1), at - low

    y0, y1, dy = along(top, height)
    x0, x1, dx = along(left, width)
    count, _, _, columns = images.shape

    def rows(index: Tensor) -> Tensor:
        return images.gather(2, index.view(count, 1, size, 1).expand(-1, 3, -1, columns)).float()

    tall = torch.lerp(rows(y0), rows(y1), dy.view(count, 1, size, 1))

    def cells(index: Tensor) -> Tensor:
        return tall.gather(3, index.view(count, 1, 1, size).expand(-1, 3, size, -1))

    return torch.lerp(cells(x0), cells(x1), dx.view(count, 1, 1, size)).round_().to(torch.uint8)


class Patch(NamedTuple):
    """Pixels in the place of those of one image: its position in the batch, the corner, values in [0, 1]."""

    image: int
    top: int
    left: int
    values: Float[Tensor, "3 h w"]


Patches = list[Any]  # of `Patch`: were it said, a type checker would draw one to look at from Python's generator


class _Canvas:
    """What timm's eraser takes for one image: keeps where it wrote, and what. size: [3, S, S]."""

    dtype = torch.float32

    def __init__(self, side: int):
        self.side = side
        self.written: list[tuple[int, int, Tensor]] = []

    def size(self) -> tuple[int, int, int]:
        return 3, self.side, self.side

    def __setitem__(self, place: tuple[slice, slice, slice], noise: Tensor) -> None:
        self.written.append((place[1].start, place[2].start, noise))


def drawn_patches(erasing: RandomErasing, side: int, seeds: Int[Tensor, " B"]) -> Patches:
    """timm's random erasing of B images, seeded per image.

    timm erases normalised images and fills with standard normal noise; here the noise is brought to ImageNet's mean
    and standard deviation and clipped to [0, 1]. timm draws from Python's and torch's global generators: both are
    put back.
    """
    mean = torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    found = []
    python, torch_ = random.getstate(), torch.default_generator.get_state()
    try:
        for image, seed in enumerate(seeds.tolist()):
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            canvas = _Canvas(side)
            erasing(canvas)
            for top, left, noise in canvas.written:
                found.append(Patch(image, top, left, (mean + std * noise).clamp(0.0, 1.0)))
    finally:
        random.setstate(python)
        torch.default_generator.set_state(torch_)
    return found


def sent_at_once(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on a device, by one copy, for which nobody waits."""
    together = sent(torch.cat([one.flatten() for one in tensors]), device)
    parts = together.split([one.numel() for one in tensors])
    return [part.view_as(one) for part, one in zip(parts, tensors, strict=True)]


def paste(x: Float[Tensor, "B 3 S S"], patches: Patches) -> Float[Tensor, "B 3 S S"]:
    """The images with patches in them, changed in place."""
    noises = [patch.values for patch in patches]
    if patches and x.device.type != "cpu":
        noises = sent_at_once(noises, x.device)
    for (image, top, left, _), values in zip(patches, noises, strict=True):
        height, width = values.shape[1:]
        x[image, :, top : top + height, left : left + width] = values
    return x
