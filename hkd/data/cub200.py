"""CUB-200-2011, as its archive lays it out (lists of ids beside `images/<class>/<file>.jpg`) or as class folders.

Images stay files, or are decoded once into memory: for small models decoding costs more than training does.
Shapes: N images of a split, S the side of an image in memory in px.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hkd.data.base import OnCorrupt, PathList, Split, SplitName, digest
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
    read_bytes,
    source_of,
)
from hkd.errors import UserError
from hkd.options import FolderName, Switch, options

LISTS = {  # columns of each list; the first is always the id
    "classes.txt": "a class id and a name",
    "images.txt": "an image id and a path",
    "image_class_labels.txt": "an image id and a class id",
    "train_test_split.txt": "an image id and 1 (train) or 0 (test)",
}
BOXES = "bounding_boxes.txt"
MOST_DIGITS = 9  # of an id


class Listing(NamedTuple):
    """What the lists say of all N images, in the order of their ids.

    names: paths below `images/`. labels: classes from 0. train: the official split.
    """

    classes: list[str]
    names: list[str]
    labels: Int[np.ndarray, " N"]
    train: Int[np.ndarray, " N"]


@options
class Cub200Config(ClassFolderConfig):
    """memory: decode all images once, resized and cropped as in evaluation (short side to image_size / crop_pct, then
        the centre), and remember them beside the data. Training then crops and shifts what is left, not the photo.
    boxes: show the bird alone: the smallest square around its bounding box, as far as the photo reaches, resized
        to image_size; crop_pct is not used. Implies memory.
    """

    folder: FolderName = "CUB_200_2011"
    memory: Switch = False
    boxes: Switch = False


class Cub200(ClassFolder):
    """200 kinds of birds, 5,994 training and 5,794 test images by the official split; subsets of it are fine.

    Classes are numbered by their official ids; they have 30 or 29 training images each.
    `<folder>/train/<class>/*.jpg` and `<folder>/test/<class>/*.jpg` are read too, without boxes.
    Validation (`select=True`) is the last tenth of each class's training images, in the order of their ids.
    """

    name: ClassVar[str] = "cub200"
    licence: ClassVar[str] = "non-commercial research and education; the photographs belong to their makers"
    source: ClassVar[str] = "https://data.caltech.edu/records/65de6-vp158"
    expected: ClassVar[dict[str, int]] = {"classes": 200, "train": 5994, "test": 5794}
    checksum: ClassVar[dict[str, str]] = {"CUB_200_2011.tgz": "md5:97eceeb196236b17998738112f37df78"}
    Config = Cub200Config

    @property
    def class_folders(self) -> bool:
        """Whether the images are in class folders instead of the archive's own layout."""
        return all(isdir(self.part(split)) for split in ("train", "test"))

    @property
    def lists(self) -> list[str]:
        """The lists that are read."""
        return [*LISTS, *([BOXES] if self.options.boxes else [])]

    def missing(self) -> str | None:
        if self.class_folders:
            if self.options.boxes:
                return f"{self.folder} has class folders, which come without boxes: set option 'boxes' to false."
            return None
        step = f"unpack CUB_200_2011.tgz of {self.source} in {self.root}, or put class folders train/, test/ there"
        if not isdir(self.folder / "images"):
            return f"CUB-200-2011 is not at {self.folder}: {step}."
        gone = [name for name in self.lists if not isfile(self.folder / name)]
        return f"{self.folder} has no file '{gone[0]}': {step}." if gone else None

    @cached_property
    def class_names(self) -> list[str]:
        return super().class_names if self.class_folders else self.listing.classes

    @cached_property
    def listing(self) -> Listing:
        """The archive's lists, checked against each other and against the images that are there."""
        self.present()
        classes, names, owners, train = (read_list(self.folder / name, form) for name, form in LISTS.items())
        for name, column in (("image_class_labels.txt", owners), ("train_test_split.txt", train)):
            if len(column) != len(names):
                what = f"{self.folder / name} has {len(column)} lines, but images.txt {len(names)}"
                raise UserError(f"{what}: unpack the archive again.")
        labels = numbers(owners, 1, len(classes), self.folder / "image_class_labels.txt") - 1
        flags = numbers(train, 0, 1, self.folder / "train_test_split.txt")
        exact, least = self.wanted_counts().get("classes"), self.options.classes or 1
        if (exact is not None and len(classes) != exact) or len(classes) < least:
            found = f"{self.folder / 'classes.txt'} has {len(classes)} classes, {exact or least} are needed"
            raise UserError(f"{found}: complete it or set option 'classes'.")
        if doubled := [name for name, count in Counter(names).items() if count > 1]:
            raise UserError(f"{self.folder / 'images.txt'} lists {doubled[0]} twice: unpack the archive again.")
        there = {f"{kind}/{file}" for kind in folder_names(self.folder / "images") for file in self.files(kind)}
        if absent := [name for name in names if name not in there]:
            what = f"{self.folder / 'images' / absent[0]} is listed in images.txt but not there"
            raise UserError(f"{what} ({len(absent)} of {len(names)} images are absent): unpack the archive again.")
        return Listing(classes, names, labels, flags)

    def files(self, kind: str) -> list[str]:
        """Names of the images of a class."""
        return file_names(self.folder / "images" / kind)

    def image_files(self) -> list[str]:
        return super().image_files() if self.class_folders else [f"images/{name}" for name in self.listing.names]

    def content(self) -> str:
        """SHA-256 over the names and contents of the images, and of the lists where there are some."""
        lists = [] if self.class_folders else self.lists
        return content_digest(self.folder, [*lists, *self.image_files()])

    def entries(self, split: str) -> list[Entry]:
        if self.class_folders:
            return super().entries(split)
        found = [Entry(int(self.listing.labels[row]), f"images/{self.listing.names[row]}") for row in self.rows(split)]
        wanted = self.wanted_counts().get(split, len(found))
        if len(found) != wanted:
            what = f"{self.folder} has {len(found)} {split} images, {wanted} are needed"
            raise UserError(f"{what}: complete it or set option 'expected'.")
        self.check_classes(split, np.array([entry.label for entry in found], dtype=np.int64))
        return found

    def rows(self, split: str) -> Int[np.ndarray, " N"]:
        """Rows in images.txt of the images of "train" or "test", of the classes asked for."""
        chosen = self.listing.train == (split == "train")
        return np.flatnonzero(chosen & (self.listing.labels < self.num_classes))

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        self.present()
        part = source_of(self, split, select)
        found = self.entries(part)
        labels = np.array([entry.label for entry in found], dtype=np.int64)
        rows = np.arange(len(found)) if self.class_folders else self.rows(part)
        if not (self.options.memory or self.options.boxes):
            chosen = self.choose(labels, rows, split, seed=seed, select=select)
            paths = PathList(self.folder, [found[position].name for position in chosen])
            return Split(None, paths, labels[chosen], rows[chosen], self.image_size, self.options.crop_pct)
        images, kept, corrupt = self.decoded(part, [entry.name for entry in found])
        if corrupt and on_corrupt == "stop":
            name, reason = next(iter(corrupt.items()))
            more = f", and {len(corrupt) - 1} more" if len(corrupt) > 1 else ""
            raise UserError(f"Cannot read image {name} ({reason}){more}: replace it, or ask to skip corrupt images.")
        labels, rows = labels[kept], rows[kept]
        chosen = self.choose(labels, rows, split, seed=seed, select=select)
        return Split(images[chosen], None, labels[chosen], rows[chosen], corrupt=tuple(corrupt))

    def decoded(self, part: str, names: list[str]) -> Decoded:
        """The readable images of a part, their places in `names`, and what could not be read: path -> reason.

        Remembered beside the data, for the content and the options that decide what is shown.
        """
        shown = {option: getattr(self.options, option) for option in ("image_size", "crop_pct", "boxes", "classes")}
        path = self.folder / CACHE / f"{part}-{DECODING}-{digest(self.content(), shown)[:32]}.npz"
        paths = [self.folder / name for name in names]

        def read() -> Decoded:
            if not self.options.boxes:
                return decode(paths, self.image_size, self.options.crop_pct)
            return decode(paths, self.image_size, 1.0, boxed(paths, self.boxes()[self.rows(part)]))

        return remembered(path, len(names), self.image_size, read)

    def boxes(self) -> Float[np.ndarray, "N 4"]:
        """Left, top, width and height in px of the bird in each image, in the order of images.txt."""
        path = self.folder / BOXES
        values = read_list(path, "an image id and x, y, width, height")
        try:
            boxes = np.array([value.split() for value in values], dtype=np.float64).reshape(-1, 4)
        except ValueError as error:
            raise UserError(f"{path} is not a list of boxes ({error}): unpack the archive again.") from error
        if len(boxes) != len(self.listing.names):
            have, want = len(boxes), len(self.listing.names)
            raise UserError(f"{path} has {have} lines, but images.txt {want}: unpack the archive again.")
        if not (np.isfinite(boxes).all() and (boxes[:, 2:] >= 1).all()):
            raise UserError(f"{path} has a box of less than one px: unpack the archive again.")
        return boxes


def read_list(path: Path, form: str) -> list[str]:
    """What follows the id on each line of a list, in the order of the ids, which must be 1, 2, 3, ... without gaps.

    Args:
        path: of the list.
        form: what a line holds, for the message.
    """
    found: dict[int, str] = {}
    try:
        text = read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        place = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {place}, is not UTF-8: unpack the archive again, or rename the file.") from error
    for number, line in enumerate(text.split("\n"), 1):
        first, _, rest = line.strip().partition(" ")
        if not first:
            continue
        if not first.isdecimal() or len(first) > MOST_DIGITS or not rest:
            raise UserError(f"{path}, line {number}, is '{line[:40]}'; it must be {form}.")
        if int(first) in found:
            raise UserError(f"{path}, line {number}, has id {int(first)} twice: unpack the archive again.")
        found[int(first)] = rest.strip()
    if gap := next((wanted for wanted in range(1, len(found) + 1) if wanted not in found), None):
        raise UserError(f"{path} has no id {gap}, though ids go up to {max(found)}: unpack the archive again.")
    return [found[place] for place in range(1, len(found) + 1)]


def numbers(values: Sequence[str], low: int, high: int, path: Path) -> Int[np.ndarray, " N"]:
    """Whole numbers in [low, high]; UserError names the first other value."""
    odd = [v for v in values if not (v.isdecimal() and len(v) <= MOST_DIGITS and low <= int(v) <= high)]
    if odd:
        raise UserError(
            f"{path} has '{odd[0][:40]}' where a number from {low} to {high} must be: unpack the archive again."
        )
    return np.array([int(value) for value in values], dtype=np.int64)


def square(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the smallest square around a box, moved and cut to lie within the photo.

    Args:
        box: left, top, width, height in px, at least partly within the photo.
        height, width: of the photo in px.
    """
    x, y, w, h = box
    side = max(1, round(max(w, h)))
    tall, wide = min(side, height), min(side, width)
    top = min(max(round(y + h / 2 - tall / 2), 0), height - tall)
    left = min(max(round(x + w / 2 - wide / 2), 0), width - wide)
    return top, left, tall, wide


def boxed(paths: Sequence[Path], boxes: Float[np.ndarray, "N 4"]) -> Callable[[int, Any], Any]:
    """(place, image [3, H, W]) -> its square around the box of that place: left, top, width, height in px."""
    from torchvision.transforms.v2.functional import crop

    def view(place: int, image: Any) -> Any:
        height, width = image.shape[1:]
        left, top, wide, tall = boxes[place].tolist()
        if left >= width or top >= height or left + wide <= 0 or top + tall <= 0:
            what = f"{BOXES} has the box {left:g} {top:g} {wide:g} {tall:g} for {paths[place]}"
            raise UserError(f"{what}, all of it outside its {width} x {height} px: unpack the archive again.")
        return crop(image, *square(boxes[place].tolist(), height, width))

    return view
