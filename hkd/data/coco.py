"""COCO 2017: `coco/train2017/*.jpg`, `coco/val2017/*.jpg`, `coco/annotations/instances_{train,val}2017.json`.

Any data in that layout is read, such as exported `scenes`. Images stay files; masks are decoded when asked for.
"""

import json
import logging
import math
import os
import posixpath
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from os.path import isdir, isfile  # False also where the user may not look
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32

from hkd.data.base import PathList, SplitName, digest
from hkd.data.dense import DenseFolder, DenseFolderConfig, DenseSplit, Objects, draw_subset, file_sizes, take_first
from hkd.data.folder import HELD_OUT, check_names, read_bytes, scanned, source_of
from hkd.data.images import MOST_PIXELS
from hkd.errors import UserError
from hkd.files import sha256
from hkd.options import FolderName, Size, Switch, options

log = logging.getLogger(__name__)

PARTS = {"train": "train2017", "test": "val2017"}
FIELDS = ("image_id", "category_id", "bbox", "area", "segmentation")  # that every annotation must have
FAR = 100_000  # px beyond zero up to which a polygon may go: drawing one takes memory by its length
MOST_OUTLINE = 1_000_000  # px, of all polygons of an object: drawing them walks along it in fifths of a px
MOST_AREA = 1e10  # px: COCO's rules count no object beyond it
CLIPPED, DROPPED, CROWDS, EMPTY = (
    "boxes clipped to their images",
    "boxes without area left out",
    "crowd regions not trained on",
    "images without objects not trained on",
)


class Annotations(Sequence[list[dict[str, Any]]]):
    """Annotations of N images, held as JSON: COCO's as objects would take gigabytes in every process that loads images.

    Args:
        groups: annotations by image.
    """

    def __init__(self, groups: Sequence[list[dict[str, Any]]]):
        texts = [json.dumps(group).encode() for group in groups]
        self.text = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self.ends = np.cumsum([0, *map(len, texts)])
        self.objects = np.array([sum(not entry["iscrowd"] for entry in group) for group in groups], dtype=np.int64)
        self.crowds = np.array([len(group) for group in groups], dtype=np.int64) - self.objects

    def __len__(self) -> int:
        return len(self.objects)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("annotations are read one image at a time")
        return json.loads(self.text[self.ends[index] : self.ends[index + 1]].tobytes())


class Listing(NamedTuple):
    """One annotation file: images in the order of their ids, their annotations, class names."""

    images: list[dict[str, Any]]
    entries: Annotations
    names: tuple[str, ...]
    categories: dict[int, int]  # category id -> label
    repairs: Counter[str]


@options
class CocoConfig(DenseFolderConfig):
    """empty: train on images without any object as well."""

    folder: FolderName = "coco"
    image_size: Size = 800
    max_size: Size = 1333
    empty: Switch = True


class Coco(DenseFolder):
    """80 classes; the official validation images are the test split.

    Category ids may have gaps: labels number the categories in the order of their ids. Boxes are clipped to their
    images; those without area then are left out, and so are crowd regions in training. The evaluator's truth keeps
    crowds and the file's own boxes. Validation (`select=True`) is the last tenth of the training images by id.
    The fingerprint covers the annotation files' contents, and names and sizes of the images.
    """

    name: ClassVar[str] = "coco"
    licence: ClassVar[str] = "annotations CC BY 4.0; the photographs belong to their makers"
    source: ClassVar[str] = "https://cocodataset.org (2017 train and val images, train/val annotations)"
    expected: ClassVar[dict[str, int]] = {"classes": 80, "train": 118_287, "test": 5_000}
    checksum: ClassVar[dict[str, str]] = {}
    Config = CocoConfig

    @property
    def num_classes(self) -> int:
        return self.expected["classes"] if self.missing() else len(self.object_names)

    @property
    def object_names(self) -> tuple[str, ...]:
        return self.test.names

    def annotation_file(self, part: str) -> Path:
        return self.folder / "annotations" / f"instances_{PARTS[part]}.json"

    def missing(self) -> str | None:
        for part, name in PARTS.items():
            for path, there in (
                (self.folder / name, isdir(self.folder / name)),
                (self.annotation_file(part), isfile(self.annotation_file(part))),
            ):
                if not there:
                    return f"COCO is not complete: {path} is absent; get it from {self.source} and unpack it there."
        return None

    def fingerprint(self) -> str:
        self.present()
        files = [sha256(self.annotation_file(part)) for part in PARTS]
        images = [file_sizes(self.folder / name) for name in PARTS.values()]
        return digest(self.name, files, images, asdict(self.options))

    @cached_property
    def train(self) -> Listing:
        return self.read("train")

    @cached_property
    def test(self) -> Listing:
        return self.read("test")

    def read(self, part: str) -> Listing:
        """The annotations of "train" or "test", checked against each other and the images that are there."""
        self.present()
        path = self.annotation_file(part)
        found = read_annotations(path)
        places = file_places(self.folder, PARTS[part], [image["file_name"] for image in found.images])
        absent = [image["file_name"] for image, place in zip(found.images, places, strict=True) if place is None]
        if absent:
            what = f"{str(self.folder / PARTS[part] / absent[0])[:300]} is annotated in {path.name} but not there"
            raise UserError(f"{what} ({len(absent)} of {len(found.images)} images are absent): unpack them again.")
        for what, count in found.repairs.items():
            log.warning("%s: %d %s", path, count, what)
        images = [{**image, "file_name": place} for image, place in zip(found.images, places, strict=True)]
        return found._replace(images=images)

    def load_dense(self, split: SplitName, *, seed: int, select: bool) -> DenseSplit:
        part = source_of(self, split, select)
        found = self.test if part == "test" else self.train
        if found.categories != self.test.categories or found.names != self.test.names:
            first, second = (self.annotation_file(part).name for part in PARTS)
            raise UserError(f"{first} and {second} in {self.folder} have different categories: they must be the same.")
        chosen = np.arange(len(found.images))
        cut = len(chosen) - max(1, len(chosen) // HELD_OUT) if select and part == "train" else len(chosen)
        repairs = Counter(found.repairs)
        if split == "test":
            chosen = chosen[take_first(len(chosen), self.options.n_test, self.name)]
            if not found.entries.objects[chosen].any():
                what = f"{self.annotation_file(part)} has no objects in its {len(chosen)} images"
                raise UserError(f"{what}, so nothing could be measured: complete it, or raise n_test.")
        elif split == "val":
            chosen = chosen[cut:]
        else:
            repairs[CROWDS] = int(found.entries.crowds.sum())
            pool = chosen[:cut][(found.entries.objects[:cut] > 0) | self.options.empty]
            repairs[EMPTY] = cut - len(pool)
            chosen = pool[draw_subset(len(pool), self.options.n_train, seed, self.name)]
        images = [found.images[index] for index in chosen.tolist()]
        sizes = np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2)
        return DenseSplit(
            images=None,
            paths=PathList(self.folder, [image["file_name"] for image in images]),
            rows=np.array([image["id"] for image in images], dtype=np.int64),
            sizes=sizes,
            objects=FileObjects(found, chosen, sizes, crowds=split != "train"),
            object_names=found.names,
            truth=None if split == "train" else official(found, chosen),
            image_size=self.image_size,
            max_size=self.options.max_size,
            repairs={what: count for what, count in repairs.items() if count},
        )


class FileObjects(Sequence[Objects]):
    """Objects of N images; masks are decoded when an image is asked for.

    Args:
        found: the file.
        chosen: which of its images [N].
        sizes: their height and width [N, 2].
        crowds: whether crowd regions are objects.
    """

    def __init__(self, found: Listing, chosen: np.ndarray, sizes: np.ndarray, *, crowds: bool):
        self.entries, self.categories = found.entries, found.categories
        self.chosen, self.sizes, self.crowds = chosen, sizes, crowds

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            raise TypeError("objects are read one image at a time")
        group = [entry for entry in self.entries[self.chosen[index]] if self.crowds or not entry["iscrowd"]]
        height, width = self.sizes[index].tolist()
        masks = np.zeros((len(group), height, width), dtype=bool)
        for mask, entry in zip(masks, group, strict=True):
            mask[:] = decode_mask(entry["segmentation"], height, width)  # was checked when the file was read
        return Objects(
            clip([entry["bbox"] for entry in group], height, width),
            np.array([self.categories[entry["category_id"]] for entry in group], dtype=np.int64),
            masks,
            np.array([bool(entry["iscrowd"]) for entry in group], dtype=bool),
        )


def read_annotations(path: Path) -> Listing:
    """A file of instances, checked.

    Raises:
        UserError: not JSON, a part or field is absent or of a wrong type, an id is given twice or not known, a box or
            an area is none, a mask cannot be decoded.
    """
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): unpack it again.") from error
    parts = ("images", "annotations", "categories")
    absent = [part for part in parts if not (isinstance(content, dict) and isinstance(content.get(part), list))]
    if absent:
        raise UserError(f"{path} has no list '{absent[0]}': it must be a COCO file of instances.")
    images = by_id(content["images"], ("file_name", "height", "width"), "image", path)
    kinds = by_id(content["categories"], ("name",), "category", path)
    categories = {identity: label for label, identity in enumerate(kinds)}
    repairs: Counter[str] = Counter()
    for image in images.values():
        if not isinstance(image["file_name"], str):
            raise UserError(
                f"{path}: image {image['id']} has the file name {image['file_name']!r:.80}; it must be a text."
            )
        if any(type(image[side]) is not int or image[side] < 1 for side in ("height", "width")):
            what = f"{path}: image {image['id']} has height {image['height']!r:.40} and width {image['width']!r:.40}"
            raise UserError(f"{what}; both must be whole numbers of px, at least 1.")
        if image["height"] * image["width"] > MOST_PIXELS:
            what = f"{path}: image {image['id']} has height {image['height']!r:.40} and width {image['width']!r:.40}"
            raise UserError(f"{what}; an image may have {MOST_PIXELS:,} px.")
    entries: dict[int, list[dict[str, Any]]] = {identity: [] for identity in images}
    for number, entry in enumerate(content["annotations"], 1):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: annotation number {number} is {entry!r:.80}; it must be an object of JSON.")
        where = f"{path}: annotation {entry.get('id', f'number {number}')!s:.80}"
        if gone := [name for name in FIELDS if name not in entry]:
            raise UserError(f"{where} has no '{gone[0]}': complete it.")
        # An id of another type may be unhashable, or equal to a number only for a reader: "17".
        if type(entry["image_id"]) is not int or entry["image_id"] not in images:
            raise UserError(
                f"{where} is of image {entry['image_id']!r:.80}, which is not listed: add it or take this out."
            )
        if type(entry["category_id"]) is not int or entry["category_id"] not in categories:
            known = f"{len(categories)} categories, ids {min(categories, default=0)} to {max(categories, default=0)}"
            raise UserError(f"{where} has category {entry['category_id']!r:.80}, which is not among the {known}.")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise UserError(f"{where} has 'iscrowd' {entry['iscrowd']!r:.80}; it must be 0 or 1.")
        image = images[entry["image_id"]]
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(is_number(value) for value in box)):
            raise UserError(f"{where} has the box {box!r:.80}; it must be x, y, width, height in px.")
        x1, y1, x2, y2 = clip([box], image["height"], image["width"])[0].tolist()
        if x2 <= x1 or y2 <= y1:
            repairs[DROPPED] += 1
            continue
        if not (is_number(entry["area"]) and 0 <= entry["area"] <= MOST_AREA):
            raise UserError(
                f"{where} has the area {entry['area']!r:.80}; it must be a number of px, from 0 to {MOST_AREA:.0e}."
            )
        if fault := decoding_fault(entry["segmentation"], image["height"], image["width"]):
            raise UserError(f"{where} of image {entry['image_id']} has no mask that can be decoded: {fault}.")
        # Less than one px is the rounding of the files.
        x, y, w, h = box
        repairs[CLIPPED] += x < -1 or y < -1 or x + w > image["width"] + 1 or y + h > image["height"] + 1
        # What else is there may be as deep as it likes.
        kept = {name: entry[name] for name in ("id", *FIELDS) if name != "id" or type(entry.get("id")) is int}
        entries[entry["image_id"]].append({**kept, "iscrowd": int(entry.get("iscrowd", 0))})
    names = tuple(str(kind["name"]) for kind in kinds.values())
    return Listing(list(images.values()), Annotations(list(entries.values())), names, categories, +repairs)


def by_id(items: list[dict[str, Any]], fields: tuple[str, ...], what: str, path: Path) -> dict[int, dict[str, Any]]:
    """Items of a COCO file by their ids, ascending; UserError where a field is absent or an id is given twice."""
    found: dict[int, dict[str, Any]] = {}
    for number, item in enumerate(items, 1):
        if not isinstance(item, dict):
            raise UserError(f"{path}: {what} number {number} is {item!r:.80}; it must be an object of JSON.")
        if gone := [name for name in ("id", *fields) if name not in item]:
            raise UserError(f"{path}: {what} number {number} has no '{gone[0]}': complete it.")
        if type(item["id"]) is not int or abs(item["id"]) >= 2**63 or item["id"] in found:
            identity = f"{item['id']!r:.40}"
            raise UserError(f"{path}: {what} number {number} has the id {identity}; ids must be different numbers.")
        found[item["id"]] = item
    return dict(sorted(found.items()))


def file_places(folder: Path, part: str, names: Sequence[str]) -> list[str | None]:
    """Where the images of a file of annotations are, below a folder: its own path for each name; None where it is not.

    A name is a path below the part's folder, or below the folder that this is in (`train2017/1.jpg`).

    Args:
        folder: of the data set.
        part: name of the part's folder.
        names: as annotations give them.
    """
    flat = all("/" not in name for name in names)
    if flat:
        with scanned(folder / part) as entries:
            held = {entry.name for entry in entries}
    else:
        held = below(folder / part)
    check_names(folder / part, [name for name in names if name in held])
    other = part + "/"
    places: list[str | None] = []
    for name in names:
        path = name if flat else posixpath.normpath(name)
        if path in held:
            places.append(other + path)
        elif path.startswith(other) and path.removeprefix(other) in held:
            places.append(path)
        else:
            places.append(None)
    return places


def below(folder: Path) -> set[str]:
    """Paths of all files below a folder, relative to it and with forward slashes."""
    return {
        (Path(place) / name).relative_to(folder).as_posix() for place, _, names in os.walk(folder) for name in names
    }


def is_number(value: Any) -> bool:
    """Whether JSON gave a number that is finite as a float, which a whole one of 400 digits is not."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def clip(boxes: Sequence[Any], height: int, width: int) -> Float32[np.ndarray, "K 4"]:
    """Boxes x, y, width, height (K lists of four numbers, px) as x1, y1, x2, y2 within an image."""
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return corners.clip(0.0, [width, height, width, height]).astype(np.float32)


def official(found: Listing, chosen: np.ndarray) -> list[dict[str, Any]]:
    """Annotations of some images for an evaluator: as the file has them, but for category ids without gaps."""
    return [
        {**entry, "category_id": found.categories[entry["category_id"]] + 1}
        for index in chosen.tolist()
        for entry in found.entries[index]
    ]


def mask_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What keeps a mask from being decoded for an image of this size, as far as that is seen without decoding it."""
    if isinstance(segmentation, list):
        rings = [isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in segmentation]
        if not (rings and all(rings)):
            return "each polygon needs at least three points x, y"
        near = all(
            {*map(type, ring)} <= {int, float}
            and -FAR <= min(ring) <= max(ring) <= FAR
            and math.isfinite(sum(ring))  # nan escapes comparisons
            for ring in segmentation
        )
        if not near:
            return f"the points of a polygon must be numbers of px, from -{FAR} to {FAR}"
        most = sum((max(ring) - min(ring)) * len(ring) / 2 for ring in segmentation)  # quick to tell
        long = most > MOST_OUTLINE and sum(map(perimeter, segmentation)) > MOST_OUTLINE
        return f"the outline of its polygons is longer than {MOST_OUTLINE} px" if long else None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "it must be polygons, or run lengths with 'size' and 'counts'"
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(counts, str | bytes | list) or (
        isinstance(counts, list) and any(type(run) is not int for run in counts)
    ):
        return "its counts must be whole numbers or a text"
    if size != [height, width] or {*map(type, size)} != {int}:
        return f"its size is {size!s:.80}, that of the image {[height, width]} (height, width)"
    if isinstance(counts, list):
        return runs_fault(counts, height, width)
    return None


def runs_fault(runs: Sequence[int], height: int, width: int) -> str | None:
    """What is wrong with the lengths of a mask's runs."""
    if any(not 0 <= run <= height * width for run in runs):
        return f"a run is less than 0 or more than the image's {height * width} px"
    total = sum(runs)
    return None if total == height * width else f"its runs sum to {total} px, the image has {height * width}"


def perimeter(ring: Sequence[Any]) -> float:
    """Length in px of a polygon's outline x, y, x, y, ... along the longer axis of each side."""
    points = np.array(ring, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def decoding_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What keeps a mask from being decoded; a text of compressed runs is decoded to see."""
    fault = mask_fault(segmentation, height, width)
    if fault is None and isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        try:
            return runs_fault(unpacked(segmentation["counts"]), height, width)
        except ValueError as error:
            return str(error)
    return fault


def unpacked(text: str | bytes) -> list[int]:
    """The run lengths of COCO's compressed text.

    Numbers in digits of five bits, the least first, each a printable character of which bit 5 says that more follow;
    from the fourth on they are differences to the run before the last.

    Raises:
        ValueError: a character that is no digit, a number that does not end, or one beyond any image.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in text.encode() if isinstance(text, str) else text:
        digit = byte - 48
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("its counts are no compressed run lengths")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        value -= 1 << shift if digit & 16 else 0
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its counts end within a number")
    return runs


def decode_mask(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """A mask from polygons, run lengths, or compressed run lengths.

    Raises:
        ValueError: it is none of these, or of another size.
    """
    if fault := mask_fault(segmentation, height, width):
        raise ValueError(fault)
    if isinstance(segmentation, list):
        # Late: planning imports this file. The package's `init_as_pycocotools` is not called, as it would replace
        # pycocotools for the whole process.
        from faster_coco_eval import mask as masks

        rings = [[float(value) for value in ring] for ring in segmentation]
        return masks.decode(masks.merge(masks.frPyObjects(rings, height, width))).astype(bool)
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        counts = unpacked(counts)
        if fault := runs_fault(counts, height, width):
            raise ValueError(fault)
    runs = np.arange(len(counts)) % 2 == 1
    return np.repeat(runs, counts).reshape(width, height).T
