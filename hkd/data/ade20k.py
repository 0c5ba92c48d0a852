"""ADE20K's scene parsing benchmark: photographs and a semantic map of each, of 150 classes.

`ADEChallengeData2016/images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`; where there
are no such sub-folders, the names ADE_train_* and ADE_val_* tell the parts apart.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import UInt8
from pydantic import Field

from hkd.data.base import PathList, SplitName, digest
from hkd.data.dense import IGNORE, DenseFolder, DenseFolderConfig, DenseSplit, draw_subset, file_sizes, take_first
from hkd.data.folder import HELD_OUT, file_names, read_bytes, source_of
from hkd.data.images import Unreadable, content, opened, png_depth, size
from hkd.errors import UserError
from hkd.options import Count, FolderName, Size, options

PARTS = {"train": ("training", "ADE_train_"), "test": ("validation", "ADE_val_")}  # sub-folder; else prefix of names
TABLE = "objectInfo150.txt"


@options
class Ade20kConfig(DenseFolderConfig):
    """classes: C; a map's value 0 is ignored, 1 to C are the classes 0 to C - 1, and others are refused."""

    folder: FolderName = "ADEChallengeData2016"
    image_size: Size = 512
    max_size: Size = 2048
    classes: Annotated[Count, Field(lt=IGNORE)] = 150


class Ade20k(DenseFolder):
    """150 classes; the official validation images are the test split.

    Validation (`select=True`) is the last tenth of the training images by name. A map that cannot be is told when it
    is read. The fingerprint covers names and sizes of the files.
    """

    name: ClassVar[str] = "ade20k"
    licence: ClassVar[str] = "images for non-commercial research and education; annotations BSD-3"
    source: ClassVar[str] = "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)"
    expected: ClassVar[dict[str, int]] = {"classes": 150, "train": 20_210, "test": 2_000}
    checksum: ClassVar[dict[str, str]] = {}
    Config = Ade20kConfig

    @property
    def num_classes(self) -> int:
        return self.options.classes

    @cached_property
    def map_names(self) -> tuple[str, ...]:
        """Names of the classes from the table beside the images; their numbers where there is none."""
        path = self.folder / TABLE
        if not isfile(path):
            return tuple(f"class {number}" for number in range(1, self.num_classes + 1))
        try:
            table = io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="")
            names = [line.get("Name") for line in csv.DictReader(table, delimiter="\t")]
        except (ValueError, csv.Error) as error:
            raise UserError(f"{path} is no table of text ({error}): unpack it again.") from error
        if len(names) < self.num_classes or None in names:
            raise UserError(f"{path} must have a column 'Name' with {self.num_classes} classes: unpack it again.")
        return tuple(str(name).strip() for name in names[: self.num_classes])

    def missing(self) -> str | None:
        for kind in ("images", "annotations"):
            if not isdir(self.folder / kind):
                return f"ADE20K is not complete: {self.folder / kind} is absent; get it from {self.source}."
        return None

    def parts(self, kind: str) -> dict[str, Path]:
        """Folder of the files of each part, for "images" or "annotations"."""
        top = self.folder / kind
        return {part: top / sub if isdir(top / sub) else top for part, (sub, _) in PARTS.items()}

    def fingerprint(self) -> str:
        self.present()
        files = [
            file_sizes(path) for kind in ("images", "annotations") for path in sorted({*self.parts(kind).values()})
        ]
        return digest(self.name, files, self.map_names, asdict(self.options))

    def names(self, part: str) -> list[str]:
        """Names without suffix of the images of "train" or "test", sorted.

        Raises:
            UserError: there are none, or an image has no map or a map no image.
        """
        self.present()
        images, maps = self.files(part, "images"), self.files(part, "annotations")
        odd = sorted(images.keys() ^ maps.keys())
        if odd:
            kind, other = ("image", "map") if odd[0] in images else ("map", "image")
            path = images.get(odd[0]) or maps[odd[0]]
            what = f"{path} is an {kind}" if kind == "image" else f"{path} is a {kind}"
            raise UserError(f"{what} without {other} ({len(odd)} such files): every image needs a map of its name.")
        if not images:
            raise UserError(f"There are no {part} images in {self.parts('images')[part]}: get them from {self.source}.")
        return sorted(images)

    def files(self, part: str, kind: str) -> dict[str, Path]:
        """Files of a part by their names without suffix.

        Raises:
            UserError: two files differ in their suffix alone.
        """
        folder = self.parts(kind)[part]
        sub, prefix = PARTS[part]
        prefix = "" if folder.name == sub else prefix
        found: dict[str, Path] = {}
        for name in file_names(folder):
            if name.startswith(prefix):
                path = folder / name
                if found.setdefault(path.stem, path) != path:
                    raise UserError(f"{found[path.stem]} and {name} beside it have one name: take one of them out.")
        return found

    def load_dense(self, split: SplitName, *, seed: int, select: bool) -> DenseSplit:
        part = source_of(self, split, select)
        names = self.names(part)
        chosen = np.arange(len(names))
        cut = len(chosen) - max(1, len(chosen) // HELD_OUT) if select and part == "train" else len(chosen)
        if split == "test":
            chosen = chosen[take_first(len(chosen), self.options.n_test, self.name)]
        elif split == "val":
            chosen = chosen[cut:]
        else:
            chosen = chosen[:cut][draw_subset(cut, self.options.n_train, seed, self.name)]
        images, maps = self.files(part, "images"), self.files(part, "annotations")
        taken = [names[index] for index in chosen.tolist()]
        paths = PathList(self.parts("images")[part], [images[name].name for name in taken])
        return DenseSplit(
            images=None,
            paths=paths,
            rows=chosen,
            maps=FileMaps(
                PathList(self.parts("annotations")[part], [maps[name].name for name in taken]), paths, self.num_classes
            ),
            map_names=self.map_names,
            image_size=self.image_size,
            max_size=self.options.max_size,
        )


class FileMaps(Sequence[Any]):
    """Semantic maps (bytes [H, W]) of N images, read and checked when asked for.

    Args:
        paths: of the maps. images: of the images, which must have the same sizes.
        classes: C.
    """

    def __init__(self, paths: Sequence[Path], images: Sequence[Path], classes: int):
        self.paths, self.images, self.classes = paths, images, classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("maps are read one at a time")
        path = self.paths[index]
        raw = read_map(path)
        try:
            height, width = size(self.images[index])
        except Unreadable as error:
            raise UserError(f"Cannot read image {self.images[index]} ({error}): replace it.") from error
        if raw.shape != (height, width):
            what = f"{path} has {raw.shape[1]} x {raw.shape[0]} px, its image {width} x {height}"
            raise UserError(f"{what}: they must be of one size.")
        if raw.max() > self.classes:
            what = f"{path} holds the value {int(raw.max())}"
            raise UserError(f"{what}; with {self.classes} classes it may hold 0 (ignored) to {self.classes}.")
        return np.where(raw == 0, np.uint8(IGNORE), raw - np.uint8(1))


def read_map(path: Path) -> UInt8[np.ndarray, "H W"]:
    """The values of a PNG of one channel, grey or with a palette, as they are in the file.

    Raises:
        UserError: not readable, or not of one byte per pixel.
    """
    try:
        data = content(path)
        with opened(data) as file:
            kind = file.format
            raw = np.asarray(file)
            # Grey values of two or four bits come scaled up to 255.
            bits = png_depth(data) if file.mode == "L" else None
    except Unreadable as error:
        raise UserError(f"Cannot read map {path} ({error}): replace it.") from error
    if raw.ndim != 2 or raw.dtype != np.uint8 or kind == "JPEG":  # which changes values
        raise UserError(f"{path} is no map: it must have one channel of one byte, as the mode L of PNG.")
    return raw // np.uint8(255 // (2 ** (bits or 8) - 1))
