"""CUB-200-2011, as its archive lays it out (lists of ids beside `images/<class>/<file>.jpg`) or as class folders.

Shapes: N images of a split.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from hkd.data.decoded import Decoded, decode
from hkd.data.folder import file_names, folder_names
from hkd.data.listed import MOST_DIGITS, Listed, ListedConfig, Listing, listed_lines, numbers
from hkd.errors import UserError
from hkd.options import FolderName, Switch, options

LISTS = {  # columns of each list; the first is always the id
    "classes.txt": "a class id and a name",
    "images.txt": "an image id and a path",
    "image_class_labels.txt": "an image id and a class id",
    "train_test_split.txt": "an image id and 1 (train) or 0 (test)",
}
BOXES = "bounding_boxes.txt"


@options
class Cub200Config(ListedConfig):
    """boxes: show the bird alone: the smallest square around its bounding box, as far as the photo reaches, resized
    to image_size; crop_pct is not used. Implies memory.
    """

    folder: FolderName = "CUB_200_2011"
    boxes: Switch = False


class Cub200(Listed):
    """200 kinds of birds, 5,994 training and 5,794 test images by the official split; subsets of it are fine.

    Classes are numbered by their official ids; they have 30 or 29 training images each. Class folders have no boxes.
    """

    name: ClassVar[str] = "cub200"
    licence: ClassVar[str] = "non-commercial research and education; the photographs belong to their makers"
    source: ClassVar[str] = "https://data.caltech.edu/records/65de6-vp158"
    expected: ClassVar[dict[str, int]] = {"classes": 200, "train": 5994, "test": 5794}
    checksum: ClassVar[dict[str, str]] = {"CUB_200_2011.tgz": "md5:97eceeb196236b17998738112f37df78"}
    Config = Cub200Config

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
        listing = Listing(classes, [f"images/{name}" for name in names], labels, flags == 1)
        kinds = folder_names(self.folder / "images")
        there = {f"images/{kind}/{file}" for kind in kinds for file in file_names(self.folder / "images" / kind)}
        return self.check_listing(listing, "classes.txt", "images.txt", there)

    @property
    def in_memory(self) -> bool:
        return self.options.memory or self.options.boxes

    @property
    def shown_by(self) -> tuple[str, ...]:
        return (*super().shown_by, "boxes")

    def decode(self, part: str, paths: list[Path]) -> Decoded:
        if not self.options.boxes:
            return super().decode(part, paths)
        return decode(paths, self.image_size, 1.0, boxed(paths, self.boxes()[self.rows(part)]))

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
    for number, line in listed_lines(path):
        first, _, rest = line.partition(" ")
        if not first.isdecimal() or len(first) > MOST_DIGITS or not rest:
            raise UserError(f"{path}, line {number}, is '{line[:40]}'; it must be {form}.")
        if int(first) in found:
            raise UserError(f"{path}, line {number}, has id {int(first)} twice: unpack the archive again.")
        found[int(first)] = rest.strip()
    if gap := next((wanted for wanted in range(1, len(found) + 1) if wanted not in found), None):
        raise UserError(f"{path} has no id {gap}, though ids go up to {max(found)}: unpack the archive again.")
    return [found[place] for place in range(1, len(found) + 1)]


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
