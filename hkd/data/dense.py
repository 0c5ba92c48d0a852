"""What a split for detection and semantic segmentation is: images with boxes, instance masks and semantic maps.

Free of torch, as all data sets are. Classes of objects and of maps count from 0; `IGNORE` in a map is no class.
Shapes: N images of a split, K objects of one image (K may be 0), H and W sides of an image in px.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64, UInt8

from hkd.data.base import DataSet, OnCorrupt, Split, SplitName
from hkd.data.folder import check_link, scanned
from hkd.data.images import Unreadable, read
from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.options import Count, FolderName, Size, options, together

IGNORE = 255  # label of pixels that neither a loss nor a metric looks at


@dataclass(frozen=True)
class Objects:
    """Objects of one image.

    boxes: x1, y1, x2, y2 in px, within the image and of positive area. labels: classes from 0. masks: where each is
    seen. crowd: a region of many objects that nobody told apart; an evaluator forgives what is found in it.
    """

    boxes: Float32[np.ndarray, "K 4"]
    labels: Int64[np.ndarray, " K"]
    masks: Bool[np.ndarray, "K H W"]
    crowd: Bool[np.ndarray, " K"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DenseSplit:
    """Images of one split, in memory (`images`) or as files (`paths`), with objects, semantic maps, or both.

    rows: what each image is called in its source: its number there, or its id.
    sizes: height and width in px of each image; always there with objects.
    objects: `Objects` of each image; crowds are left out of training splits. maps: UInt8 [H, W] of each image, where
        `IGNORE` may occur. Both may be read from files when an item is asked for, and raise UserError then.
    object_names, map_names: the classes; empty without objects, without maps.
    truth: annotations of the evaluator as a COCO file holds them (with category ids from 1 = label 0); None makes them
        from `objects`.
    image_size: short side in px at which `paths` are shown, max_size: bound of the long one.
    size_borders: px, for "box" and "mask": an object is medium if the root of its area, that of the box or of the mask,
        lies between; None leaves it to COCO's rule (32 and 96 px, by the annotated area, for both).
    repairs: what was mended while reading, such as boxes clipped to the image: what -> how many.
    """

    images: UInt8[np.ndarray, "N 3 H W"] | None
    paths: Sequence[Path] | None
    rows: Int[np.ndarray, " N"]
    sizes: Int[np.ndarray, "N 2"] | None = None
    objects: Sequence[Any] | None = None  # Any, here and below: a check of items while testing would read their files
    maps: Sequence[Any] | UInt8[np.ndarray, "N H W"] | None = None
    object_names: tuple[str, ...] = ()
    map_names: tuple[str, ...] = ()
    truth: Sequence[Mapping[str, Any]] | None = None
    image_size: int | None = None
    max_size: int | None = None
    size_borders: Mapping[str, tuple[float, float]] | None = None
    repairs: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.images is None) == (self.paths is None):
            raise ValueError("a dense split has either images or paths")
        if self.objects is None and self.maps is None:
            raise ValueError("a dense split has objects, maps, or both")
        if self.objects is not None and self.sizes is None:
            raise ValueError("a split with objects needs the sizes of its images")
        for what in ("images", "paths", "sizes", "objects", "maps"):
            held = getattr(self, what)
            if held is not None and len(held) != len(self.rows):
                raise ValueError(f"lengths differ: {len(held)} {what}, {len(self.rows)} rows")

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> UInt8[np.ndarray, "3 H W"]:
        """One image in colour.

        Raises:
            UserError: the file is no readable image, or not of the size that was announced.
        """
        if self.images is not None:
            return self.images[index]
        assert self.paths is not None
        path = self.paths[index]
        try:
            image = read(path)
        except Unreadable as error:
            raise UserError(
                f"Cannot read image {path} ({error}): replace it, or ask to skip corrupt images."
            ) from error
        if self.sizes is not None and image.shape[1:] != tuple(self.sizes[index].tolist()):
            height, width = self.sizes[index].tolist()
            found = f"{path} has {image.shape[2]} x {image.shape[1]} px"
            raise UserError(f"{found}, but its annotations are for {width} x {height}: replace one of them.")
        return image

    def file_name(self, index: int) -> str:
        """What the image is called: that of its file, or its row as a PNG file."""
        return self.paths[index].name if self.paths is not None else f"{int(self.rows[index]):012d}.png"

    def coco(self) -> dict[str, Any]:
        """The ground truth in COCO's format: images in the order of the split with `rows` as ids, annotations
        numbered from 1, categories with the ids 1 to C for the labels 0 to C - 1.
        """
        if self.objects is None or self.sizes is None:
            raise ValueError("this split has no objects")
        images = [
            {"id": row, "file_name": self.file_name(index), "height": height, "width": width}
            for index, (row, (height, width)) in enumerate(zip(self.rows.tolist(), self.sizes.tolist(), strict=True))
        ]
        if self.truth is not None:
            annotations = [dict(entry) for entry in self.truth]
        else:
            annotations = [
                {"image_id": row, **entry}
                for row, objects in zip(self.rows.tolist(), self.objects, strict=True)
                for entry in annotate(objects)
            ]
        return {
            "images": images,
            "annotations": [{**entry, "id": number} for number, entry in enumerate(annotations, 1)],
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(self.object_names)],
        }


class DenseSet(DataSet):
    """Base of the data sets for dense tasks: everything that `DataSet` is, but for what it loads."""

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names of the classes of objects; empty where there are none."""
        return ()

    @property
    def map_names(self) -> tuple[str, ...]:
        """Names of the classes of semantic maps; empty where there are none."""
        return ()

    @property
    def num_classes(self) -> int:
        return len(self.object_names) or len(self.map_names)

    @abstractmethod
    def load_dense(self, split: SplitName, *, seed: int, select: bool) -> DenseSplit:
        """One split. Arguments as in `DataSet.load`; an unreadable image is told when it is asked for."""

    def load(self, split: SplitName, *, seed: int, select: bool, on_corrupt: OnCorrupt = "stop") -> Split:
        raise UserError(
            f"Data set '{self.name}' has objects or maps, but no label per image: "
            "it serves detection and segmentation; classification needs another data set."
        )


@options
class DenseFolderConfig:
    """folder: its name below the data root.
    image_size, max_size: px; images are shown with this short side unless the long one would exceed max_size.
    n_train: annotated training images in all, drawn by the run's seed; None takes all.
    n_test: of the test images the first ones; None takes all.
    """

    folder: FolderName
    image_size: Size
    max_size: Size
    n_train: Count | None = None
    n_test: Count | None = None

    @together
    def _sides(self) -> None:
        if self.max_size < self.image_size:
            raise ValueError(f"max_size {self.max_size} must not be less than image_size {self.image_size}")


class DenseFolder(DenseSet):
    """Base of dense data sets whose photographs are files below one folder.

    Their options are a `DenseFolderConfig`; they state how many images are `expected` in the parts "train" and "test".
    """

    expected: ClassVar[dict[str, int]]

    @property
    def folder(self) -> Path:
        return self.root / self.options.folder

    @property
    def image_size(self) -> int:
        return self.options.image_size

    def counts(self) -> dict[str, int]:
        asked = {"train": self.options.n_train, "test": self.options.n_test}
        return {part: count or self.expected[part] for part, count in asked.items()}


def file_sizes(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes in bytes of all files in a folder and below it, sorted."""
    sizes = []
    with scanned(folder) as found:
        for entry in found:
            if entry.is_file():
                sizes.append((entry.name, entry.stat().st_size))
            elif entry.is_dir(follow_symlinks=False):
                sizes += [(f"{entry.name}/{name}", size) for name, size in file_sizes(Path(entry.path))]
            else:
                check_link(entry)
    return sorted(sizes)


def draw_subset(count: int, wanted: int | None, seed: int, name: str) -> Int[np.ndarray, " n"]:
    """Positions of so many of `count` images, drawn by a run's seed and ascending; all where `wanted` is None.

    Raises:
        UserError: fewer are there.
    """
    if wanted is None:
        return np.arange(count)
    if wanted > count:
        raise UserError(f"n_train asks for {wanted} images of data set '{name}', but only {count} are there.")
    return np.sort(np.random.default_rng([seed, wanted]).permutation(count)[:wanted])


def take_first(count: int, wanted: int | None, name: str) -> Int[np.ndarray, " n"]:
    """Positions of the first so many of `count` images; all where `wanted` is None.

    Raises:
        UserError: fewer are there.
    """
    if wanted is not None and wanted > count:
        raise UserError(f"n_test asks for {wanted} images of data set '{name}', but only {count} are there.")
    return np.arange(count if wanted is None else wanted)


def annotate(objects: Objects) -> list[dict[str, Any]]:
    """Objects as COCO's annotations, without ids: boxes as x, y, width, height, masks as run lengths, area of masks."""
    return [
        {
            "category_id": label + 1,
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": float(mask.sum()),
            "iscrowd": int(crowd),
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
        }
        for (x1, y1, x2, y2), label, mask, crowd in zip(
            objects.boxes.tolist(), objects.labels.tolist(), objects.masks, objects.crowd.tolist(), strict=True
        )
    ]


def run_lengths(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """Lengths of runs of equal pixels down the columns, the first one of background (COCO's uncompressed format)."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def write_coco(split: DenseSplit, folder: Path, part: str) -> None:
    """Write a split as the reader `coco` finds it: `<folder>/<part>/*.png` and `annotations/instances_<part>.json`.

    Args:
        split: with objects, its images in memory.
        folder: where to; made if it is not there.
        part: name of the part, such as "train2017".
    """
    from PIL import Image  # late: only who writes pictures needs it

    if split.images is None:
        raise ValueError("only images in memory are written")
    for place in (folder / part, folder / "annotations"):
        place.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(split.images):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / part / split.file_name(index))
    with atomic_write(folder / "annotations" / f"instances_{part}.json") as temporary:
        temporary.write_text(json.dumps(split.coco()))
