"""Images of a folder for analyses: read when needed, cropped at their centre, the unreadable ones left out and named.

Shapes: B images of a batch, H W the size that a model sees, in px.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from hkd.data.folder import check_names
from hkd.data.images import SUFFIXES, Unreadable, check_resized, is_image_name, read
from hkd.data.loading.augment import to_float
from hkd.errors import UserError


class ImageFolder:
    """All images below a folder, or some of them drawn by a seed, in the order of their names.

    What an image is, `hkd.data.images` says.

    Attributes:
        folder: where they are.
        names: paths relative to it, with forward slashes, sorted.
        corrupt: reason by name of those that could not be read in any pass so far.
    """

    def __init__(self, folder: str | Path, limit: int | None = None, seed: int = 0) -> None:
        """List them.

        Args:
            folder: searched with all folders below it.
            limit: at most so many, drawn without replacement; None for all.
            seed: of the draw.

        Raises:
            UserError: no such folder, no images in it, a name that is not UTF-8, or a limit below 1.
        """
        self.folder = Path(folder)
        self.corrupt: dict[str, str] = {}
        if limit is not None and limit < 1:
            raise UserError(f"The limit of images is {limit}; it must be at least 1.")
        if not os.path.isdir(self.folder):
            hint = "it is a file" if os.path.exists(self.folder) else "it is not there"
            raise UserError(f"{self.folder} is no folder of images: {hint}.")
        names = [
            (Path(place) / file).relative_to(self.folder).as_posix()
            for place, _, files in os.walk(self.folder)
            for file in files
            if is_image_name(file)
        ]
        self.names = check_names(self.folder, names)
        if not self.names:
            raise UserError(f"There are no images in {self.folder} or below it; known are {', '.join(SUFFIXES)}.")
        if limit is not None and limit < len(self.names):
            self.names = sorted(random.Random(seed).sample(self.names, limit))

    def batches(
        self, size: tuple[int, int], crop_pct: float = 1.0, batch_size: int = 32
    ) -> Iterator[Float[Tensor, "B 3 H W"]]:
        """RGB in [0, 1], the readable images in order.

        Args:
            size: (H, W).
            crop_pct: share of the resized image that the centre crop takes, along the side that fits more tightly.
            batch_size: images of all batches but the last.

        Raises:
            UserError: not one image can be read; after the last one.
        """
        batch: list[Tensor] = []
        found = 0
        for name in self.names:
            try:
                batch.append(centre_crop(torch.from_numpy(read(self.folder / name)), size, crop_pct))
            except Unreadable as error:
                self.corrupt[name] = str(error)
                continue
            found += 1
            if len(batch) == batch_size:
                yield to_float(torch.stack(batch))
                batch = []
        if batch:
            yield to_float(torch.stack(batch))
        if not found:
            name, reason = next(iter(self.corrupt.items()))
            raise UserError(f"None of the {len(self.names)} images in {self.folder} can be read ({name}: {reason}).")


def centre_crop(image: UInt8[Tensor, "3 h w"], size: tuple[int, int], crop_pct: float) -> UInt8[Tensor, "3 H W"]:
    """The centre of an image that is resized, keeping its proportions, until the crop takes `crop_pct` of it; bicubic.

    For a square size this is the usual evaluation: the short side becomes `size / crop_pct`. Raises `Unreadable` where
    the resized image would be too large.
    """
    height, width = image.shape[1:]
    scale = max(size[0] / height, size[1] / width) / crop_pct
    resized = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    if resized != [height, width]:
        check_resized(resized[1], resized[0])
        image = tv.resize(image, resized, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return tv.center_crop(image, list(size))
