"""Stanford Cars, as its archives lay it out (`cars_train/`, `cars_test/`, a devkit of MATLAB files) or class folders.

Shapes: N images of a split.
"""

from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hkd.data.folder import file_names
from hkd.data.listed import Listed, ListedConfig, Listing
from hkd.data.matlab import read_variable
from hkd.errors import UserError
from hkd.options import FolderName, options

META, TRAIN, TEST = "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"


@options
class StanfordCarsConfig(ListedConfig):
    """See the fields of the base."""

    folder: FolderName = "stanford_cars"


class StanfordCars(Listed):
    """196 makes, models and years of cars, 8,144 training and 8,041 test images by the official split.

    Classes are numbered by their official ids. The file with the labels of the test images is published apart; it is
    looked for beside the devkit, and in it.
    """

    name: ClassVar[str] = "stanford_cars"
    licence: ClassVar[str] = "non-commercial research; the photographs belong to their makers"
    source: ClassVar[str] = "https://ai.stanford.edu/~jkrause/cars/car_dataset.html"
    expected: ClassVar[dict[str, int]] = {"classes": 196, "train": 8144, "test": 8041}
    Config = StanfordCarsConfig

    @property
    def lists(self) -> list[str]:
        beside = isfile(self.folder / TEST) or not isfile(self.folder / "devkit" / TEST)
        return [META, TRAIN, TEST if beside else f"devkit/{TEST}"]

    def missing(self) -> str | None:
        if self.class_folders:
            return None
        step = (
            f"unpack cars_train, cars_test and devkit of {self.source} there, with {TEST} beside them, "
            "or put class folders train/, test/ there"
        )
        gone = [name for name in ("cars_train", "cars_test") if not isdir(self.folder / name)]
        if gone:
            return f"Stanford Cars is not at {self.folder / gone[0]}: {step}."
        gone = [name for name in self.lists if not isfile(self.folder / name)]
        return f"{self.folder} has no file '{gone[0]}': {step}." if gone else None

    @cached_property
    def listing(self) -> Listing:
        self.present()
        meta, *annotated = (self.folder / name for name in self.lists)
        classes = read_variable(meta, "class_names")
        if not isinstance(classes, list) or not all(isinstance(name, str) and name.strip() for name in classes):
            raise UserError(f"{meta} has no class names: unpack the archive again.")
        names, labels, train = [], [], []
        for part, path in zip(("cars_train", "cars_test"), annotated, strict=True):
            for name, label in read_annotations(path, len(classes)):
                names.append(f"{part}/{name}")
                labels.append(label)
                train.append(part == "cars_train")
        there = {f"{part}/{file}" for part in ("cars_train", "cars_test") for file in file_names(self.folder / part)}
        listing = Listing(classes, names, np.array(labels, dtype=np.int64), np.array(train, dtype=bool))
        return self.check_listing(listing, META, "its annotations", there)


def read_annotations(path: Path, classes: int) -> list[tuple[str, int]]:
    """File name and class from 0 of every image that a file of annotations has, in its order.

    Args:
        path: of the file.
        classes: how many there are.
    """
    found = read_variable(path, "annotations")
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise UserError(f"{path} has no list of annotations: unpack the archive again.")
    pairs = []
    for number, entry in enumerate(found, 1):
        name, label = entry.get("fname"), whole(entry.get("class"))
        if label is None and "class" not in entry:
            raise UserError(f"{path} has no classes: the test images' are in {TEST}, which is published apart.")
        if not isinstance(name, str) or label is None or not 1 <= label <= classes:
            what = f"{path}, annotation {number}, must have a file name and a class from 1 to {classes}"
            raise UserError(f"{what}: unpack the archive again.")
        pairs.append((name, label - 1))
    return pairs


def whole(value: Any) -> int | None:
    """The one whole number that an array holds, or None."""
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "iuf":
        return None
    number = float(value.item())
    return int(number) if number.is_integer() and abs(number) < 1e9 else None
