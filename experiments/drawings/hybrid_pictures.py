"""What detectors and segmenters found on the first test images, beside the truth; from the files of their runs.

Shapes: S, T sides of an image in px, U, V those of its enlarged picture, K objects of an image.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps, font_manager
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from analysis.style import picture_grid
from experiments.drawings.base import Finished
from hkd.tasks.detect import PREDICTIONS as DETECTIONS
from hkd.tasks.detect import read_detections
from hkd.tasks.segment import BACKGROUND, PREDICTIONS, predicted_maps
from hkd.training.inputs import open_data

SHOWN = 4  # images
ENLARGED = 4  # a pixel becomes so many a side, so that lines and letters are finer than the image
OBJECT, AREA = 0.55, 0.85  # opacity of objects' masks and of semantic maps
LINE, LETTERS = 3, 32  # px of enlarged pictures
CLASSES = [(int(r), int(g), int(b)) for r, g, b, _ in 255 * np.asarray(colormaps["tab20"](np.arange(20)))]


def draw(finished: Finished, folder: Path) -> None:
    """Detections and segmentations, each if the table has runs of it."""
    for task, picture in {"detect": detections, "segment": segmentations}.items():
        runs = {finished.rows[cell[0]]: each[0] for cell, each in finished.cells.items() if each[0].spec.task == task}
        if not runs:
            continue
        first = next(iter(runs.values())).spec
        data: Any = open_data(first.data, finished.runtime)[0]
        split = data.load_dense("test", seed=0, select=False)
        count = min(SHOWN, len(split))
        left = {"detect": DETECTIONS, "segment": PREDICTIONS}[task]
        folders = {label: finished.file(run.key, left).parent for label, run in runs.items()}
        caption = f"Profile {finished.plan.profile}, seed {first.seed}; the first {count} test images."
        picture(split, count, folders, folder, title=finished.plan.heading, caption=caption)


def detections(split: Any, count: int, folders: Mapping[str, Path], folder: Path, *, title: str, caption: str) -> None:
    """detections.png, from the runs' folders by label."""
    found = {"truth": [vars(split.objects[i]) for i in range(count)]}
    for label, at in folders.items():
        found[label] = [each._asdict() for each in islice(read_detections(at), count)]
    parts = ("boxes", "labels", "masks", "scores")
    tensors = {
        label: [{name: torch.from_numpy(each[name]) for name in parts if name in each} for each in objects]
        for label, objects in found.items()
    }
    images = [torch.from_numpy(split.image(i)) / 255 for i in range(count)]
    caption += " Of each model as many of its surest detections as there are objects."
    draw_detections(images, tensors, split.object_names, folder / "detections.png", title=title, caption=caption)


def segmentations(
    split: Any, count: int, folders: Mapping[str, Path], folder: Path, *, title: str, caption: str
) -> None:
    """segmentations.png, from the runs' folders by label."""
    maps = {"truth": [torch.from_numpy(split.maps[i]).long() for i in range(count)]}
    for label, at in folders.items():
        predicted = predicted_maps(at / PREDICTIONS)
        maps[label] = [torch.from_numpy(predicted[int(split.rows[i])]).long() for i in range(count)]
    images = [torch.from_numpy(split.image(i)) / 255 for i in range(count)]
    background = split.map_names.index(BACKGROUND) if BACKGROUND in split.map_names else None
    columns = {
        heading: [with_map(image, labels, background) for image, labels in zip(images, each, strict=True)]
        for heading, each in maps.items()
    }
    picture_grid(columns, folder / "segmentations.png", title=title, caption=caption)


def draw_detections(
    images: Sequence[Float[Tensor, "3 S T"]],
    found: Mapping[str, Sequence[Mapping[str, Tensor]]],
    names: Sequence[str],
    path: Path,
    *,
    title: str,
    caption: str,
) -> None:
    """Objects of each image, one column for the truth and for every model: as many of its surest as there are objects.

    Scores say little between models that were trained for different times, so none is asked for.

    Args:
        images: in [0, 1].
        found: heading -> for each image `boxes`, `labels`, `masks` and, but for the truth, which comes first, `scores`.
        names: of the classes.
        path: PNG to write.
        title, caption: see `sheet`.
    """
    columns = {}
    counts = [len(each["labels"]) for each in next(iter(found.values()))]
    for heading, objects in found.items():
        pictures = []
        for image, each, count in zip(images, objects, counts, strict=True):
            scores = each.get("scores", torch.zeros(len(each["labels"])))
            sure = scores.argsort(descending=True, stable=True)[:count]
            boxes, labels, masks = (each[part][sure] for part in ("boxes", "labels", "masks"))
            pictures.append(with_objects(image, boxes, labels, masks, names))
        columns[heading] = pictures
    picture_grid(columns, path, title=title, caption=caption)


def colour(label: int) -> tuple[int, int, int]:
    """The colour of a class: strong ones first, then their pale forms."""
    strong = [*CLASSES[::2], *CLASSES[1::2]]
    return strong[label % len(strong)]


def enlarge(image: Float[Tensor, "3 S T"]) -> UInt8[Tensor, "3 U V"]:
    """An image in [0, 1] with larger pixels, as bytes."""
    return (255 * F.interpolate(image[None], scale_factor=ENLARGED, mode="nearest")[0]).round().to(torch.uint8)


def with_masks(
    picture: UInt8[Tensor, "3 U V"], masks: Bool[Tensor, "K S T"], labels: Sequence[int], opacity: float
) -> UInt8[Tensor, "3 U V"]:
    """An enlarged image with masks in the colours of their classes."""
    larger = F.interpolate(masks[None].float(), scale_factor=ENLARGED, mode="nearest")[0] > 0.5
    return draw_segmentation_masks(picture, larger, alpha=opacity, colors=[colour(label) for label in labels])


def with_objects(
    image: Float[Tensor, "3 S T"],
    boxes: Float[Tensor, "K 4"],
    labels: Int[Tensor, " K"],
    masks: Bool[Tensor, "K S T"],
    names: Sequence[str],
) -> Float[np.ndarray, "U V 3"]:
    """An image with boxes (x1, y1, x2, y2 in px), masks and names of objects drawn into it."""
    picture, kinds = enlarge(image), labels.tolist()
    if kinds:
        colours: Any = [colour(kind) for kind in kinds]
        picture = draw_bounding_boxes(
            with_masks(picture, masks, kinds, OBJECT),
            boxes * ENLARGED,
            labels=[names[kind] for kind in kinds],
            colors=colours,
            width=LINE,
            font_size=LETTERS,
            font=font_manager.findfont("DejaVu Sans"),  # which ships with matplotlib
        )
    return picture.movedim(0, -1).numpy() / 255


def with_map(
    image: Float[Tensor, "3 S T"], labels: Int[Tensor, "S T"], background: int | None
) -> Float[np.ndarray, "U V 3"]:
    """An image with a semantic map over it; pixels of the class `background`, and ignored ones (255), stay bare."""
    picture, kinds = enlarge(image), [kind for kind in labels.unique().tolist() if kind not in (background, 255)]
    if kinds:
        picture = with_masks(picture, torch.stack([labels == kind for kind in kinds]), kinds, AREA)
    return picture.movedim(0, -1).numpy() / 255
