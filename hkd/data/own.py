"""Somebody's own images as class folders, cut into training, validation and test.

Three layouts of a folder, told apart by the names in it:

- `train/<class>/`, `test/<class>/` and perhaps `val/<class>/`: the cut is that of the folders. Without `val/` the last
  tenth of each class's training images is held out while settings are chosen, as of all class folders;
- `train/<class>/` and `val/<class>/`: what `val/` holds is the test, as it is of ImageNet;
- `<class>/` alone: a cut of each class by a seed is made, so that every class has its share in each part.

The data root is the folder itself: no path and no name of it is part of what a run is, its images are. Small data are
decoded once into memory; of large data the images stay files. Shapes: N images, S the side of an image in memory in px.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from os.path import isdir
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from jaxtyping import Int
from pydantic import Field

from hkd.data.base import OnCorrupt, PathList, Split, SplitName, balanced_subset, digest
from hkd.data.decoded import Decoded, decode, remembered
from hkd.data.folder import (
    CACHE,
    DECODING,
    ClassFolder,
    ClassFolderConfig,
    Entry,
    content_digest,
    file_names,
    folder_names,
    listed,
    source_of,
    told,
)
from hkd.data.images import Unreadable, size
from hkd.errors import UserError
from hkd.options import FolderName, ShareBetween, Whole, options, together

IN_MEMORY = 2**28  # bytes of all images at their size, up to which they are decoded once
VALIDATION = ("val", "valid", "validation")  # names that a folder of validation images has
PARTS = ("train", "val", "test")
LEAST = 3  # images of a class that is to be in all parts


@options
class OwnFolderConfig(ClassFolderConfig):
    """val_share, test_share: of each class's images, where the folder has no parts of its own; at least one image each.
    split_seed: draws that cut.
    """

    folder: FolderName = "."
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] = 1.0
    val_share: ShareBetween = 0.15
    test_share: ShareBetween = 0.15
    split_seed: Whole = 0

    @together
    def _something_to_train(self) -> None:
        if self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share must leave something to train with: together less than 1")


class OwnFolder(ClassFolder):
    """Any folder of class folders, wherever it is; see the head of the file."""

    name: ClassVar[str] = "own_folder"
    licence: ClassVar[str] = "that of the images given"
    source: ClassVar[str] = "the user's own folder"
    Config = OwnFolderConfig
    obtain: ClassVar[str] = (
        "a folder of images for each class is expected there, or train/ and test/ (or val/) of these"
    )

    # -- the layout ---------------------------------------------------------------------------------------------

    @cached_property
    def places(self) -> dict[str, Path]:
        """Folder of class folders by part ("train", "val", "test"); one alone, under "", where the cut is made here."""
        self.present()
        names = folder_names(self.folder)
        validation = next((name for name in VALIDATION if name in names), None)
        test = "test" if "test" in names else validation
        if "train" in names and test is not None:
            found = {"train": self.folder / "train", "test": self.folder / test}
            return found if test != "test" or validation is None else found | {"val": self.folder / validation}
        if names == ["train"] and folder_names(self.folder / "train"):
            return {"": self.folder / "train"}
        return {"": self.folder}

    @property
    def is_cut(self) -> bool:
        """Whether the folder itself says which images are for training and for testing."""
        return "" not in self.places

    def part(self, split: str) -> Path:
        return self.places[split] if self.is_cut else self.places[""]

    def missing(self) -> str | None:
        if not isdir(self.folder) or not folder_names(self.folder):
            files = len(file_names(self.folder)) if isdir(self.folder) else 0
            beside = f" (there are {files} images outside of any class folder)" if files else ""
            return f"Data set '{self.name}' is not at {self.folder}{beside}: {self.obtain}."
        return None

    @cached_property
    def class_names(self) -> list[str]:
        """All classes, sorted.

        Raises:
            UserError: fewer than two, or parts of the folder that have not the same.
        """
        names = {split: folder_names(place) for split, place in self.places.items()}
        first, known = next(iter(names.items()))
        for split, others in names.items():
            if odd := sorted(set(known) ^ set(others)):
                inside = self.places[first if odd[0] in known else split]
                raise UserError(f"Class '{odd[0]}' is only in {inside}: all parts must have the same classes.")
        if len(known) < 2:
            have = f"one class ('{known[0]}')" if known else "no class folders"
            raise UserError(f"{self.places[first]} has {have}: two at least are needed, a folder of images for each.")
        if (self.options.classes or 0) > len(known):
            raise UserError(f"{self.places[first]} has {len(known)} classes, and {self.options.classes} are asked for.")
        return known

    # -- which images ---------------------------------------------------------------------------------------------

    @cached_property
    def held(self) -> dict[str, list[Entry]]:
        """Images by part, of the classes asked for; together they are all images, and none is in two.

        Raises:
            UserError: a class without images, or with too few for a cut.
        """
        found = {split: self.found(place) for split, place in self.places.items()}
        if self.is_cut:
            return found
        return self.cut(found[""])

    def found(self, place: Path) -> list[Entry]:
        """Images of the class folders of a place, by class and name."""
        entries: list[Entry] = []
        for label, name in enumerate(self.class_names[: self.options.classes]):
            files, others = listed(place / name)
            if not files:
                raise UserError(self.none_in(place / name, others))
            where = (place / name).relative_to(self.folder)
            entries += [Entry(label, f"{where.as_posix()}/{file}") for file in files]
        return entries

    def none_in(self, place: Path, others: Mapping[str, int]) -> str:
        """That a class folder has no images, with what else is in it."""
        held = f" (it holds {told(others)})" if +Counter(others) else ""
        suffixes = ".jpg, .png, .webp or .bmp"
        return f"Class '{place.name}' has no images in {place}{held}: put some there ({suffixes}), or take it out."

    def cut(self, entries: list[Entry]) -> dict[str, list[Entry]]:
        """Each class by itself: its shares for testing and validation, at least one each, drawn by the seed."""
        labels = np.array([entry.label for entry in entries])
        parts: dict[str, list[int]] = {split: [] for split in PARTS}
        for label, name in enumerate(self.class_names[: self.options.classes]):
            rows = np.flatnonzero(labels == label)
            if len(rows) < LEAST:
                raise UserError(
                    f"Class '{name}' has {len(rows)} images, and {LEAST} are the fewest for one each to train, "
                    f"validate and test with: add images, or take the class out."
                )
            drawn = np.random.default_rng([self.options.split_seed, label]).permutation(rows)
            test = min(max(1, round(self.options.test_share * len(rows))), len(rows) - 2)
            val = min(max(1, round(self.options.val_share * len(rows))), len(rows) - test - 1)
            for split, part in zip(("test", "val", "train"), np.split(drawn, [test, test + val]), strict=True):
                parts[split] += part.tolist()
        return {split: [entries[row] for row in sorted(rows)] for split, rows in parts.items()}

    def entries(self, split: str) -> list[Entry]:
        return self.held[split]

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        part: str = split if split in self.held else source_of(self, split, select)
        entries = self.entries(part)
        first = sum(len(others) for other, others in self.held.items() if PARTS.index(other) < PARTS.index(part))
        labels = np.array([entry.label for entry in entries], dtype=np.int64)
        rows = first + np.arange(len(entries))
        if not self.in_memory:
            chosen = self.choose(labels, rows, split, seed=seed, select=select)
            paths = PathList(self.folder, [entries[position].name for position in chosen])
            return Split(None, paths, labels[chosen], rows[chosen], self.image_size, self.options.crop_pct)
        images, kept, corrupt = self.decoded(part)
        if corrupt and on_corrupt == "stop":
            raise UserError(unreadable(corrupt))
        labels, rows = labels[kept], rows[kept]
        chosen = self.choose(labels, rows, split, seed=seed, select=select)
        return Split(images[chosen], None, labels[chosen], rows[chosen], corrupt=tuple(corrupt))

    def choose(
        self, labels: Int[np.ndarray, " N"], rows: Int[np.ndarray, " N"], split: SplitName, *, seed: int, select: bool
    ) -> Int[np.ndarray, " n"]:
        """As of all class folders; but where validation images are apart, all others of the part are taken."""
        if "val" not in self.held or split == "test":
            return super().choose(labels, rows, split, seed=seed, select=select)
        if split == "val" or self.options.n_train is None:
            return np.arange(len(labels))
        total = self.options.n_train * self.num_classes
        return balanced_subset(labels, total, self.num_classes, np.random.default_rng([seed, total]))

    # -- their content --------------------------------------------------------------------------------------------

    @cached_property
    def in_memory(self) -> bool:
        """Whether all images together are small enough to be decoded once."""
        return sum(map(len, self.held.values())) * 3 * self.image_size**2 <= IN_MEMORY

    def decoded(self, part: str) -> Decoded:
        """The readable images of a part [n, 3, S, S], their places in it, and the others: path -> reason.

        Remembered beside the data, for the content and for what decides how it is shown.
        """
        names = [entry.name for entry in self.held[part]]
        shown = [self.image_size, self.options.crop_pct, names]
        path = self.folder / CACHE / f"{part}-{DECODING}-{digest(self.content(), shown)[:32]}.npz"
        paths = [self.folder / name for name in names]
        return remembered(
            path, len(names), self.image_size, lambda: decode(paths, self.image_size, self.options.crop_pct)
        )

    def content(self) -> str:
        return content_digest(self.folder, self.image_files())

    def image_files(self) -> list[str]:
        """All image files, relative to the folder, by part, class and name; damaged ones too."""
        places = [place / name for place in self.places.values() for name in folder_names(place)]
        return [f"{place.relative_to(self.folder).as_posix()}/{file}" for place in places for file in file_names(place)]

    def corrupt(self) -> dict[str, str]:
        """Images that cannot be read, path -> reason; of large data the heads of files alone are looked at."""
        found: dict[str, str] = {}
        for part, entries in self.held.items():
            if self.in_memory:
                found |= self.decoded(part)[2]
                continue
            for path in (self.folder / entry.name for entry in entries):
                try:
                    size(path)
                except Unreadable as error:
                    found[str(path)] = str(error)
        return found


def unreadable(corrupt: Mapping[str, str], shown: int = 3) -> str:
    """That images cannot be read: how many, the first of them with the reason, and what to do."""
    names = "; ".join(f"{path} ({reason})" for path, reason in list(corrupt.items())[:shown])
    more = f"; and {len(corrupt) - shown} more" if len(corrupt) > shown else ""
    count = f"{len(corrupt)} images cannot be read" if len(corrupt) > 1 else "One image cannot be read"
    return f"{count}: {names}{more}; replace them, or take them out of the folder."
