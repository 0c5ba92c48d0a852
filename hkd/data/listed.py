"""Images that lists beside them tell of, in the layout of the archive that a data set is published as.

Images stay files, or are decoded once into memory: for small models decoding costs more than training does.
Shapes: N images of a split, S the side of an image in memory in px.
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from os.path import isdir  # False also where the user may not look
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from hkd.data.base import OnCorrupt, PathList, Split, SplitName, digest
from hkd.data.decoded import Decoded, decode, remembered
from hkd.data.folder import (
    CACHE,
    DECODING,
    ClassFolder,
    ClassFolderConfig,
    Entry,
    content_digest,
    read_bytes,
    source_of,
)
from hkd.errors import UserError
from hkd.options import Switch, options

MOST_DIGITS = 9  # of a number in a list


class Listing(NamedTuple):
    """What the lists say of all N images, in their order.

    names: paths below the folder of the data set. labels: classes from 0. train: of the official training split.
    """

    classes: list[str]
    names: list[str]
    labels: Int[np.ndarray, " N"]
    train: Bool[np.ndarray, " N"]


@options
class ListedConfig(ClassFolderConfig):
    """memory: decode all images once, resized and cropped as in evaluation (short side to image_size / crop_pct, then
    the centre), and remember them beside the data. Training then crops and shifts what is left, not the photo.
    """

    memory: Switch = False


class Listed(ClassFolder):
    """A data set with lists. Class folders `<folder>/train/<class>/*.jpg` and `<folder>/test/<class>/` are read too.

    Validation (`select=True`) is the last tenth of each class's training images, in the order of the lists.
    """

    Config: ClassVar[type[ListedConfig]] = ListedConfig
    banner: ClassVar[int] = 0  # px at the bottom of every photograph that are no part of it

    @property
    def class_folders(self) -> bool:
        """Whether the images are in class folders instead of the archive's own layout."""
        return all(isdir(self.part(split)) for split in ("train", "test"))

    @property
    @abstractmethod
    def lists(self) -> list[str]:
        """The lists that are read, below the folder."""

    @property
    @abstractmethod
    def listing(self) -> Listing:
        """The archive's lists, checked against each other and against the images that are there."""

    @cached_property
    def class_names(self) -> list[str]:
        return super().class_names if self.class_folders else self.listing.classes

    def check_listing(self, listing: Listing, of_classes: str, of_images: str, there: set[str]) -> Listing:
        """The listing itself, unless it has too few classes, an image twice, or one that is not there.

        Args:
            listing: as the lists have it.
            of_classes, of_images: lists that name classes and images, for messages.
            there: paths below the folder of all images that are there.
        """
        exact, least = self.wanted_counts().get("classes"), self.options.classes or 1
        if (exact is not None and len(listing.classes) != exact) or len(listing.classes) < least:
            found = f"{self.folder / of_classes} has {len(listing.classes)} classes, {exact or least} are needed"
            raise UserError(f"{found}: complete it or set option 'classes'.")
        if doubled := [name for name, count in Counter(listing.names).items() if count > 1]:
            raise UserError(f"{self.folder / of_images} lists {doubled[0]} twice: unpack the archive again.")
        if absent := [name for name in listing.names if name not in there]:
            what = f"{self.folder / absent[0]} is listed in {of_images} but not there"
            raise UserError(
                f"{what} ({len(absent)} of {len(listing.names)} images are absent): unpack the archive again."
            )
        return listing

    def image_files(self) -> list[str]:
        return super().image_files() if self.class_folders else self.listing.names

    def content(self) -> str:
        """SHA-256 over the names and contents of the images, and of the lists where there are some."""
        lists = [] if self.class_folders else self.lists
        return content_digest(self.folder, [*lists, *self.image_files()])

    def entries(self, split: str) -> list[Entry]:
        if self.class_folders:
            return super().entries(split)
        found = [Entry(int(self.listing.labels[row]), self.listing.names[row]) for row in self.rows(split)]
        wanted = self.wanted_counts().get(split, len(found))
        if len(found) != wanted:
            what = f"{self.folder} has {len(found)} {split} images, {wanted} are needed"
            raise UserError(f"{what}: complete it or set option 'expected'.")
        self.check_classes(split, np.array([entry.label for entry in found], dtype=np.int64))
        return found

    def rows(self, split: str) -> Int[np.ndarray, " N"]:
        """Places in the lists of the images of "train" or "test", of the classes asked for."""
        chosen = self.listing.train == (split == "train")
        return np.flatnonzero(chosen & (self.listing.labels < self.num_classes))

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        self.present()
        part = source_of(self, split, select)
        found = self.entries(part)
        labels = np.array([entry.label for entry in found], dtype=np.int64)
        rows = np.arange(len(found)) if self.class_folders else self.rows(part)
        if not self.in_memory:
            chosen = self.choose(labels, rows, split, seed=seed, select=select)
            paths = PathList(self.folder, [found[position].name for position in chosen])
            size, crop = self.image_size, self.options.crop_pct
            return Split(None, paths, labels[chosen], rows[chosen], size, crop, banner=self.banner)
        images, kept, corrupt = self.decoded(part, [entry.name for entry in found])
        if corrupt and on_corrupt == "stop":
            name, reason = next(iter(corrupt.items()))
            more = f", and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
            raise UserError(f"Cannot read image {name} ({reason}){more}: replace it, or ask to skip corrupt images.")
        labels, rows = labels[kept], rows[kept]
        chosen = self.choose(labels, rows, split, seed=seed, select=select)
        return Split(images[chosen], None, labels[chosen], rows[chosen], corrupt=tuple(corrupt))

    @property
    def in_memory(self) -> bool:
        """Whether images are decoded once."""
        return self.options.memory

    @property
    def shown_by(self) -> tuple[str, ...]:
        """Options that decide what is shown of an image."""
        return ("image_size", "crop_pct", "classes")

    def decoded(self, part: str, names: list[str]) -> Decoded:
        """The readable images of a part, their places in `names`, and what could not be read: path -> reason.

        Remembered beside the data, for the content and the options that decide what is shown.
        """
        shown = {option: getattr(self.options, option) for option in self.shown_by}
        path = self.folder / CACHE / f"{part}-{DECODING}-{digest(self.content(), shown)[:32]}.npz"
        paths = [self.folder / name for name in names]
        return remembered(path, len(names), self.image_size, lambda: self.decode(part, paths))

    def decode(self, part: str, paths: list[Path]) -> Decoded:
        """The images of a part as evaluation shows them."""
        return decode(paths, self.image_size, self.options.crop_pct, without_banner(self.banner))


def without_banner(banner: int) -> Callable[[int, Any], Any] | None:
    """(place, image [3, H, W]) -> the image without so many px at its bottom; None for 0."""
    if not banner:
        return None
    from hkd.data.sources import cut  # late, as planning must not wait for torch

    return lambda place, image: cut(image, banner)


def listed_lines(path: Path) -> list[tuple[int, str]]:
    """Lines of a list that hold something, without blanks around, with their numbers from 1; UTF-8, of any system."""
    try:
        text = read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        place = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {place}, is not UTF-8: unpack the archive again, or rename the file.") from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def numbers(values: Sequence[str], low: int, high: int, path: Path) -> Int[np.ndarray, " N"]:
    """Whole numbers in [low, high]; UserError names the first other value."""
    odd = [v for v in values if not (v.isdecimal() and len(v) <= MOST_DIGITS and low <= int(v) <= high)]
    if odd:
        raise UserError(
            f"{path} has '{odd[0][:40]}' where a number from {low} to {high} must be: unpack the archive again."
        )
    return np.array([int(value) for value in values], dtype=np.int64)
