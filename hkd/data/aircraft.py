"""FGVC-Aircraft (2013b), as its archive lays it out: `data/images/*.jpg` beside lists of images and their labels.

Each photograph has a banner 20 px high at its bottom with the name of its maker, which is never shown: the benchmark's
readme asks for that, as a banner can tell the class. Shapes: N images of a split.
"""

from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int

from hkd.data.base import SplitName
from hkd.data.folder import file_names
from hkd.data.listed import Listed, ListedConfig, Listing, listed_lines
from hkd.errors import UserError
from hkd.options import FolderName, options

CLASSES = {"variant": "variants.txt", "family": "families.txt"}  # level -> list of its classes
PARTS = ("train", "val", "test")  # each a list of images, in which order rows are counted


@options
class AircraftConfig(ListedConfig):
    """level: what a class is: one of 100 variants (Boeing 737-700) or one of 70 families (Boeing 737)."""

    folder: FolderName = "fgvc-aircraft-2013b"
    level: Literal["variant", "family"] = "variant"


class Aircraft(Listed):
    """100 variants of aircraft, 6,667 training images (the official training and validation parts) and 3,333 of test.

    Classes are in the order of variants.txt. Validation (`select=True`) is the official validation part. There are no
    class folders, as of them nobody could say whether they still have the banner.
    """

    name: ClassVar[str] = "aircraft"
    licence: ClassVar[str] = "non-commercial research; the photographs belong to their makers"
    source: ClassVar[str] = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"
    expected: ClassVar[dict[str, int]] = {"classes": 100, "train": 6667, "test": 3333}
    Config = AircraftConfig
    banner: ClassVar[int] = 20
    class_folders = False

    @property
    def num_classes(self) -> int:
        return super().num_classes if self.options.level == "variant" else self.options.classes or self.families

    @property
    def families(self) -> int:
        """How many families there are: those asked for, else all."""
        return (self.asked or {}).get("classes", 70)

    def wanted_counts(self) -> dict[str, int]:
        """As of all data sets; the classes are families where that is the level."""
        found = super().wanted_counts()
        return found | {"classes": self.families} if self.options.level == "family" and "classes" in found else found

    @property
    def lists(self) -> list[str]:
        names = [CLASSES[self.options.level], *(f"images_{self.options.level}_{part}.txt" for part in PARTS)]
        return [f"data/{name}" for name in names]

    def missing(self) -> str | None:
        step = f"unpack {self.folder.name}.tar.gz of {self.source} in {self.folder.parent}"
        if not isdir(self.folder / "data" / "images"):
            return f"FGVC-Aircraft is not at {self.folder}: {step}."
        gone = [name for name in self.lists if not isfile(self.folder / name)]
        return f"{self.folder} has no file '{gone[0]}': {step}." if gone else None

    @cached_property
    def parts(self) -> Int[np.ndarray, " N"]:
        """Which of `PARTS` each image of the lists is in."""
        counts = [len(listed_lines(self.folder / name)) for name in self.lists[1:]]
        return np.repeat(np.arange(len(PARTS)), counts)

    @cached_property
    def listing(self) -> Listing:
        self.present()
        kinds, *paths = (self.folder / name for name in self.lists)
        classes = [line for _, line in listed_lines(kinds)]
        if len(set(classes)) < len(classes):
            raise UserError(f"{kinds} names a class twice: unpack the archive again.")
        numbers = {name: label for label, name in enumerate(classes)}
        labelled = [pair for path in paths for pair in read_labels(path, numbers, kinds.name)]
        names = [f"data/images/{image}.jpg" for image, _ in labelled]
        labels = np.array([label for _, label in labelled], dtype=np.int64)
        there = {f"data/images/{file}" for file in file_names(self.folder / "data" / "images")}
        listing = Listing(classes, names, labels, self.parts < PARTS.index("test"))
        return self.check_listing(listing, self.lists[0], "its lists", there)

    def choose(
        self, labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " N"], split: SplitName, *, seed: int, select: bool
    ) -> Int[np.ndarray, " n"]:
        if not select or split == "test":
            return super().choose(labels, rows, split, seed=seed, select=select)
        mine = np.flatnonzero((self.parts[rows] == PARTS.index("val")) == (split == "val"))
        return mine[super().choose(labels[mine], rows[mine], split, seed=seed, select=False)]


def read_labels(path: Path, numbers: dict[str, int], of_classes: str) -> list[tuple[str, int]]:
    """Image and class number on each line of a list, such as `0787226 Boeing 737-700`.

    Args:
        path: of the list.
        numbers: of the classes, by name.
        of_classes: the list that names them, for messages.
    """
    found = []
    for number, line in listed_lines(path):
        image, _, name = line.partition(" ")
        if not image.isalnum() or not name.strip():
            raise UserError(f"{path}, line {number}, is '{line[:40]}'; it must be the number of an image and a class.")
        if name.strip() not in numbers:
            what = f"{path}, line {number}, has the class '{name.strip()[:40]}', which {of_classes} has not"
            raise UserError(f"{what}: unpack the archive again.")
        found.append((image, numbers[name.strip()]))
    return found
