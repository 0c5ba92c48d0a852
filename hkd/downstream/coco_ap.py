"""COCO's average precision of boxes and masks, and by size of the objects, computed by faster_coco_eval.

Source: Lin et al. 2014, arXiv:1405.0312, and the evaluation code published with it, whose numbers these are
(101 recall points, 10 overlaps from .50 to .95, at most 100 detections of a class in an image, crowds forgiven); that
code adds 2^-52 to a denominator, which shows at 1e-14 of a percent.
Deviations: sizes may have other borders than COCO's. Without any detection AP is 0.
Shapes: K detections in one image, C classes, H and W sides of an image in px.
"""

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval import mask as coding
from jaxtyping import Bool, Float, Int

log = logging.getLogger(__name__)

Kind = Literal["box", "mask"]
KINDS: dict[Kind, str] = {"box": "bbox", "mask": "segm"}  # ours -> the package's
SIZES = ("small", "medium", "large")
BORDERS = (32.0, 96.0)  # px: roots of the areas between which COCO calls an object medium
LARGEST = 1e5  # px: root of an area that none reaches


@dataclass(frozen=True)
class AveragePrecision:
    """AP in percent; nan where the truth has no such object.

    ap: mean over overlaps .50, .55, ..., .95 and over classes. ap50, ap75: at one overlap. small, medium, large: of
    objects of these sizes. by_class: AP of each class [C].
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    by_class: Float[np.ndarray, " C"]

    def named(self, kind: Kind) -> dict[str, float]:
        """The six means by name: `ap_box`, `ap50_box`, ..., `ap_large_box`."""
        sizes = {f"ap_{size}_{kind}": getattr(self, size) for size in SIZES}
        return {f"ap_{kind}": self.ap, f"ap50_{kind}": self.ap50, f"ap75_{kind}": self.ap75, **sizes}


class CocoAP:
    """Collects the detections of all images of a split, image by image, then compares them with the truth.

    Several processes each add their images and then `merge` the `found` of the others.

    Args:
        truth: in COCO's format, as `DenseSplit.coco()` gives it; category ids must be label + 1.
        kinds: what is compared.
        borders: px, for each kind: roots of the areas between which an object is medium, areas being those of boxes
            for "box" and those annotated for "mask". None is COCO's rule: 32 and 96 px, annotated areas for both.
    """

    def __init__(
        self,
        truth: Mapping[str, Any],
        kinds: tuple[Kind, ...] = ("box", "mask"),
        borders: Mapping[str, tuple[float, float]] | None = None,
    ):
        ids = [category["id"] for category in truth["categories"]]
        if ids != list(range(1, len(ids) + 1)):
            raise ValueError(f"category ids must be 1 to {len(ids)} in order, got {ids[:5]} ...")
        self.truth, self.kinds, self.borders = truth, kinds, borders
        self.images = [(image["id"], image["height"], image["width"]) for image in truth["images"]]
        self.found: dict[int, dict[Kind, list[dict[str, Any]]]] = {}  # position of the image -> its results

    def add(
        self,
        index: int,
        boxes: Float[np.ndarray, "K 4"],
        scores: Float[np.ndarray, " K"],
        labels: Int[np.ndarray, " K"],
        masks: Bool[np.ndarray, "K H W"] | None = None,
    ) -> None:
        """Detections in one image; none is said by K = 0.

        Args:
            index: position of the image in the split.
            boxes: x1, y1, x2, y2 in px.
            scores: the higher, the surer.
            labels: classes from 0.
            masks: of the image's size; needed where masks are compared.

        Raises:
            ValueError: the image was added before, a label is no class, a number is not finite, masks do not fit.
        """
        if not 0 <= index < len(self.images):
            raise ValueError(f"image {index} is not among the {len(self.images)} of the truth")
        if index in self.found:
            raise ValueError(f"detections of image {index} were added before")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"a box or score in image {index} is not finite")
        classes = len(self.truth["categories"])
        if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise ValueError(f"labels must be 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
        image_id, height, width = self.images[index]
        common = [
            {"image_id": image_id, "category_id": label + 1, "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
        results: dict[Kind, list[dict[str, Any]]] = {}
        if "box" in self.kinds:
            corners = boxes.astype(np.float64)
            sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
            results["box"] = [{**entry, "bbox": box} for entry, box in zip(common, sides.tolist(), strict=True)]
        if "mask" in self.kinds:
            if masks is None or masks.shape != (len(labels), height, width):
                shape = None if masks is None else masks.shape
                raise ValueError(f"masks of image {index} must be {(len(labels), height, width)}, got {shape}")
            # No box beside a mask: the package would take the box's area for the mask's size.
            results["mask"] = [
                {**entry, "segmentation": coding.encode(np.asfortranarray(mask, dtype=np.uint8))}
                for entry, mask in zip(common, masks, strict=True)
            ]
        self.found[index] = results

    def merge(self, found: Mapping[int, Any] | Iterable[Mapping[int, Any]]) -> None:
        """Take over what others have `found`: one process's, or those of several.

        Raises:
            ValueError: an image is in two of them.
        """
        for other in [found] if isinstance(found, Mapping) else found:
            if twice := sorted(self.found.keys() & other.keys()):
                raise ValueError(f"detections of image {twice[0]} were found twice ({len(twice)} such images)")
            self.found.update(other)

    def compute(self) -> dict[Kind, AveragePrecision]:
        """Average precision of each kind.

        Raises:
            ValueError: an image of the truth was not added.
        """
        absent = [index for index in range(len(self.images)) if index not in self.found]
        if absent:
            what = f"image {absent[0]} and {len(absent) - 1} more" if len(absent) > 1 else f"image {absent[0]}"
            raise ValueError(f"{what} of {len(self.images)} were not added; where nothing was found, add no boxes")
        return {kind: self.measure(kind) for kind in self.kinds}

    def measure(self, kind: Kind) -> AveragePrecision:
        """Average precision of one kind."""
        # Entries are copied because the package writes into them.
        truth = {**self.truth, "annotations": [dict(entry) for entry in self.truth["annotations"]]}
        low, high = BORDERS
        if self.borders is not None:
            low, high = self.borders[kind]
            if kind == "box":
                for entry in truth["annotations"]:
                    entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        edges = [0.0, low**2, high**2, LARGEST**2]
        wanted = COCO(truth, print_function=log.debug)
        results = [dict(entry) for index in sorted(self.found) for entry in self.found[index][kind]]
        judge = COCOeval_faster(
            wanted,
            wanted.loadRes(results),
            KINDS[kind],
            ranges={size: list(edges[place : place + 2]) for place, size in enumerate(SIZES)},
            print_function=log.debug,
            rle_iou_max_workers=1,  # runs have one thread each
        )
        judge.evaluate()
        judge.accumulate()
        # Overlap, recall, class, size (all, small, medium, large), most detections; -1 where no object is.
        precision = np.asarray(judge.eval["precision"])[:, :, :, :, -1]
        every = precision[:, :, :, 0]
        sizes = {size: mean(precision[:, :, :, place]) for place, size in enumerate(SIZES, 1)}
        by_class = np.array([mean(every[:, :, label]) for label in range(every.shape[2])], dtype=np.float64)
        return AveragePrecision(mean(every), mean(every[0]), mean(every[5]), **sizes, by_class=by_class)


def mean(precision: Float[np.ndarray, "..."]) -> float:
    """Mean in percent of the entries that are told (not -1); nan where none is."""
    told = precision[precision > -1]
    return 100.0 * float(np.mean(told)) if told.size else math.nan
