"""Where a loader's images come from: memory, or files that are decoded when needed; both augmented the same way.

Shapes: N images of a split, b images of one process's part of a batch, S their side in px.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hkd.data import images
from hkd.data.loading.augment import Augment, Draws, Patches, paste, to_float

VIEW_BYTES = 2**29  # memory for precomputed views; beyond it a view is computed again when its epoch comes


@dataclass
class Shown:
    """Images in [0, 1] or as bytes, their positions in the split, the files that could not be read (name -> reason),
    and what is to be pasted into images that are bytes once they are numbers.
    """

    raw: Float[Tensor, "b 3 S S"] | UInt8[Tensor, "b 3 S S"]
    index: Int[Tensor, " b"]
    corrupt: dict[str, str] = field(default_factory=dict)
    patches: Patches = field(default_factory=list)

    @property
    def x(self) -> Float[Tensor, "b 3 S S"]:
        """The images in [0, 1]."""
        return paste(to_float(self.raw), self.patches) if self.raw.dtype == torch.uint8 else self.raw


class MemorySource:
    """Images held as bytes; a fixed view of all of them is computed at once and kept.

    Args:
        images: bytes [N, 3, S, S].
        augment: applied to draws and views; None shows the images as they are.
    """

    def __init__(self, images: UInt8[Tensor, "N 3 H W"], augment: Augment | None):
        self.images, self.augment = images, augment
        self.views: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, index: Int[Tensor, " b"], draws: Draws | None, view: int | None) -> Shown:
        """Images at some positions: as view number `view`, else augmented by `draws`, else as they are."""
        if self.augment is None or (draws is None and view is None):
            return Shown(to_float(self.images[index]), index)
        if view is not None:
            return Shown(to_float(self.view(self.augment, view)[index]), index)
        assert draws is not None
        x = self.augment.as_bytes(self.images[index], draws)
        return Shown(x, index, patches=self.augment.patches(draws))

    def view(self, augment: Augment, view: int) -> UInt8[Tensor, "N 3 S S"]:
        """All images in one of their fixed views."""
        if view not in self.views:
            while self.views and (len(self.views) + 1) * self.images.nbytes > VIEW_BYTES:
                self.views.popitem(last=False)
            draws = augment.draw_view(len(self.images), view)
            parts = torch.arange(len(self.images)).split(1024)
            shown = [augment(self.images[part], draws[part]).mul_(255.0).round_().to(torch.uint8) for part in parts]
            self.views[view] = torch.cat(shown)
        return self.views[view]


class FileSource:
    """Image files, decoded in colour, cropped at full size, and augmented; shown as bytes.

    Args:
        paths: of the N images.
        size: S.
        crop_pct: share of the resized short side that the centre crop takes.
        augment: applied to draws and views; None shows the centre crop.
        fill: keep a batch full by showing a readable image in the place of an unreadable one.
        banner: px at the bottom of every image that are not shown.
    """

    def __init__(
        self, paths: Sequence[Path], size: int, crop_pct: float, augment: Augment | None, fill: bool, banner: int = 0
    ):
        self.paths, self.size, self.augment, self.fill, self.banner = paths, size, augment, fill, banner
        self.short = round(size / crop_pct)
        self.drawn: dict[int, Draws] = {}  # of the view in use

    def __call__(self, index: Int[Tensor, " b"], draws: Draws | None, view: int | None) -> Shown:
        """Images at some positions: as view number `view`, else augmented by `draws`, else their centre crops."""
        if self.augment is not None and view is not None:
            if view not in self.drawn:
                self.drawn = {view: self.augment.draw_view(len(self.paths), view)}
            draws = self.drawn[view][index]
        found, corrupt = self.read(index, draws)
        shown = [place for place in range(len(index)) if place in found]
        if not shown:
            return Shown(torch.empty(0, 3, self.size, self.size, dtype=torch.uint8), index[:0], corrupt)
        if self.fill:  # the next readable one, cyclically, stands in
            shown = [next((p for p in shown if p >= place), shown[0]) for place in range(len(index))]
        batch = torch.stack([found[place] for place in shown])
        positions = index[torch.tensor(shown)]
        if self.augment is None or draws is None:
            return Shown(batch, positions, corrupt)
        x = self.augment.as_bytes(batch, draws, cropped=self.augment.recipe.crop == "resized")
        return Shown(x, positions, corrupt, self.augment.patches(draws))

    def read(self, index: Int[Tensor, " b"], draws: Draws | None) -> tuple[dict[int, Tensor], dict[str, str]]:
        """Decoded and cropped images by their place in the batch, and what could not be read."""
        shown: dict[int, Tensor] = {}
        corrupt: dict[str, str] = {}
        for place, position in enumerate(index.tolist()):
            path = self.paths[position]
            try:
                image = cut(decode(path), self.banner)
                shown[place] = self.fit(image, None if draws is None else draws[place : place + 1])
            except images.Unreadable as error:
                corrupt[str(path)] = str(error)
        return shown, corrupt

    def fit(self, image: UInt8[Tensor, "3 H W"], draw: Draws | None) -> UInt8[Tensor, "3 S S"]:
        """RandomResizedCrop where the recipe has it, else the centre crop of the resized image; bicubic.

        Raises `images.Unreadable` where the resized image would be too large.
        """
        height, width = image.shape[1:]
        mode, size = InterpolationMode.BICUBIC, [self.size, self.size]
        if self.augment is not None and draw is not None and self.augment.recipe.crop == "resized":
            top, left, tall, wide = self.augment.boxes(draw, height, width)[0].tolist()
            return tv.resized_crop(image, top, left, tall, wide, size, interpolation=mode, antialias=True)
        if min(height, width) != self.short:
            images.check_resized(*(self.short * side // min(height, width) for side in (width, height)))
            image = tv.resize(image, [self.short], interpolation=mode, antialias=True)
        return tv.center_crop(image, size)


def decode(path: Path) -> UInt8[Tensor, "3 H W"]:
    """An image file in colour. Raises `images.Unreadable`."""
    return torch.from_numpy(images.read(path))


def cut(image: UInt8[Tensor, "3 H W"], banner: int) -> UInt8[Tensor, "3 h W"]:
    """An image without so many px at its bottom. Raises `images.Unreadable` where nothing is left."""
    if not banner:
        return image
    if image.shape[1] <= banner:
        raise images.Unreadable(f"it is {image.shape[1]} px high, of which {banner} are a banner")
    return image[:, :-banner]
