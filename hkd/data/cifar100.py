"""CIFAR-100, as torchvision lays it out (`cifar-100-python/`) or as class folders of images; kept in memory.

Class folders are decoded once and remembered beside the data, because every run of a table reads them.
"""

import hashlib
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt8

from hkd.data import pickled
from hkd.data.base import OnCorrupt, Split, SplitName
from hkd.data.folder import (
    CACHE,
    DECODING,
    ClassFolder,
    SubsetConfig,
    arrays_of,
    content_digest,
    keep_arrays,
    read_bytes,
    row_numbers,
    source_of,
)
from hkd.data.images import Unreadable, read
from hkd.errors import UserError
from hkd.options import FolderName, options

SIDE = 32
PIXELS = 3 * SIDE * SIDE
BESIDE = "cifar-100-python"  # torchvision's folder
OFFICIAL = {"train": 50_000, "test": 10_000}
Decoded = tuple[UInt8[np.ndarray, "N 3 32 32"], Int[np.ndarray, " N"], Int[np.ndarray, " N"], dict[str, str]]


@options
class Cifar100Config(SubsetConfig):
    """Options of a part of the data."""

    folder: FolderName = "cifar100"


class Cifar100(ClassFolder):
    """100 classes in alphabetical order, 500 training and 100 test images each; subsets of it are fine.

    The option `folder` names class folders, or torchvision's folder or what that lies in. Without the option
    `cifar-100-python` beside is read where there are no class folders.
    """

    name: ClassVar[str] = "cifar100"
    licence: ClassVar[str] = "none stated; its author asks for the citation of Krizhevsky 2009"
    source: ClassVar[str] = "https://www.cs.toronto.edu/~kriz/cifar.html"
    expected: ClassVar[dict[str, int]] = {"classes": 100}
    full: ClassVar[dict[str, int]] = {"classes": 100, **OFFICIAL}
    checksum: ClassVar[dict[str, str]] = {
        "train": "md5:16019d7e3df5f24257cddd939b257f8d",
        "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    }
    Config = Cifar100Config
    asked = None
    image_size = SIDE

    @property
    def pickles(self) -> Path | None:
        """torchvision's folder, if that is what the images are in."""
        if all(isdir(self.part(split)) for split in OFFICIAL):
            return None
        places = [self.folder / BESIDE, self.folder]
        if self.options.folder == Cifar100Config.folder:
            places.append(self.root / BESIDE)
        return next((place for place in places if isdir(place) and (place.name == BESIDE or holds(place))), None)

    def missing(self) -> str | None:
        if self.pickles:
            gone = [split for split in OFFICIAL if not isfile(self.pickles / split)]
            return f"{self.pickles} has no file '{gone[0]}': unpack cifar-100-python.tar.gz again." if gone else None
        if not (isdir(self.part("train")) and isdir(self.part("test"))):
            step = (
                f"unpack cifar-100-python.tar.gz of {self.source} in {self.root}, or class folders train/, test/ there"
            )
            return f"CIFAR-100 is not at {self.folder}: {step}."
        return None

    def content(self) -> str:
        return content_digest(self.pickles, sorted(OFFICIAL)) if self.pickles else super().content()

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        self.present()
        source = source_of(self, split, select)
        place = self.pickles
        images, labels, rows, corrupt = self.unpickled(place, source) if place else self.decoded(source)
        if corrupt and on_corrupt == "stop":
            name, reason = next(iter(corrupt.items()))
            raise UserError(f"Cannot read image {name} ({reason}): replace it, or ask to skip corrupt images.")
        chosen = self.choose(labels, rows, split, seed=seed, select=select)
        return Split(images[chosen], None, labels[chosen], rows[chosen], corrupt=tuple(corrupt))

    def unpickled(self, place: Path, source: str) -> Decoded:
        """Images of torchvision's file. One that is long enough for all images must have the official checksum."""
        path = place / source
        mend = "unpack cifar-100-python.tar.gz again"
        length = OFFICIAL[source] * PIXELS
        data = read_bytes(path, 2 * length)  # twice as long as any file may be
        official = f"md5:{hashlib.md5(data, usedforsecurity=False).hexdigest()}" == self.checksum[source]
        if not official and len(data) >= length:
            raise UserError(f"{path} does not have {self.checksum[source]}: {mend}.")
        try:
            # An image has a name and a label or two; each is at most eight opcodes.
            images, labels = contents(pickled.parsed(data, most=1000 + 32 * (len(data) // PIXELS)))
        except pickled.Refused as error:
            raise UserError(f"{path} is not a file of CIFAR-100 ({error}): {mend}.") from error
        keep = labels < self.num_classes
        if len(np.unique(labels[keep])) != self.num_classes:
            raise UserError(f"{path} has {len(np.unique(labels))} classes, {self.num_classes} are needed.")
        return images[keep], labels[keep], np.flatnonzero(keep), {}

    def decoded(self, source: str) -> Decoded:
        """Images of class folders; all classes are decoded once and remembered under the digest of the content."""
        numbers = {name: label for label, name in enumerate(self.class_names)}
        path = self.folder / CACHE / f"{source}-{DECODING}-{self.content()[:32]}.npz"
        kinds = {"images": np.uint8, "labels": np.int64, "rows": np.int64, "corrupt": np.str_}
        arrays = arrays_of(path, kinds, {"labels": len(numbers), "rows": 10**18}, SIDE)
        if arrays is None:
            part = self.part(source).name
            arrays = decode(self.folder, [name for name in self.image_files() if name.startswith(f"{part}/")], numbers)
            keep_arrays(path, arrays)
        keep = arrays["labels"] < self.num_classes
        self.check_classes(source, arrays["labels"][keep])
        return arrays["images"][keep], arrays["labels"][keep], arrays["rows"][keep], dict(arrays["corrupt"].tolist())


def holds(place: Path) -> bool:
    """Whether a folder has torchvision's files."""
    return all(isfile(place / split) for split in OFFICIAL)


def contents(entry: Any) -> tuple[UInt8[np.ndarray, "N 3 32 32"], Int[np.ndarray, " N"]]:
    """Images and labels of what a file of CIFAR-100 holds. Raises `pickled.Refused`."""
    if type(entry) is not dict or not {"data", "fine_labels"} <= entry.keys():
        raise pickled.Refused("it must hold 'data' and 'fine_labels'")
    images, given = entry["data"], entry["fine_labels"]
    shapes = (PIXELS,), (3, SIDE, SIDE)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] not in shapes:
        raise pickled.Refused(f"its 'data' must be an array of bytes, {PIXELS} of each image")
    labels = given.tolist() if isinstance(given, np.ndarray) else given
    if type(labels) is not list or not all(type(label) is int and 0 <= label < 100 for label in labels):
        raise pickled.Refused("its 'fine_labels' must be whole numbers from 0 to 99")
    if len(labels) != len(images):
        raise pickled.Refused(f"it has {len(images)} images, but {len(labels)} labels")
    return images.reshape(-1, 3, SIDE, SIDE), np.array(labels, dtype=np.int64)


def decode(folder: Path, names: list[str], numbers: dict[str, int]) -> dict[str, np.ndarray]:
    """Images, labels and rows of `part/class/file` names, and the unreadable ones as pairs (path, reason)."""
    images, kept, corrupt = [], [], []
    for place, name in enumerate(names):
        try:
            image = read(folder / name)
        except Unreadable as error:
            corrupt.append((str(folder / name), str(error)))
            continue
        if image.shape[1:] != (SIDE, SIDE):
            corrupt.append((str(folder / name), f"{image.shape[2]}x{image.shape[1]} px instead of {SIDE}x{SIDE}"))
            continue
        images.append(image)
        kept.append(place)
    return {
        "images": np.stack(images) if images else np.empty((0, 3, SIDE, SIDE), np.uint8),
        "labels": np.array([numbers[names[place].split("/")[1]] for place in kept], dtype=np.int64),
        "rows": row_numbers(names)[kept],
        "corrupt": np.array(corrupt, dtype=np.str_).reshape(-1, 2),
    }
