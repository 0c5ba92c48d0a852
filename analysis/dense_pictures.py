"""Detections and segmentations beside the ground truth, as pictures for people.

Shapes: N images, S side in px, K objects of an image.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from matplotlib import colormaps
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from analysis.hgkd_pictures import grid_of_pictures

ENLARGED = 4  # a pixel becomes so many a side, so that lines and letters are finer than the image
OPACITY = 0.55  # of masks
LINE, LETTERS = 3, 32  # px of enlarged pictures
PALETTE = [(int(r), int(g), int(b)) for r, g, b, _ in 255 * np.asarray(colormaps["tab20"](np.arange(20)))]


def colour(label: int) -> tuple[int, int, int]:
    """The colour of a class: strong ones first, then their pale forms."""
    strong = [*PALETTE[::2], *PALETTE[1::2]]
    return strong[label % len(strong)]


def enlarge(image: Float[Tensor, "3 S T"]) -> UInt8[Tensor, "3 U V"]:
    """An image in [0, 1] with larger pixels, as bytes."""
    return (255 * F.interpolate(image[None], scale_factor=ENLARGED, mode="nearest")[0]).round().to(torch.uint8)


def with_objects(
    image: Float[Tensor, "3 S T"],
    boxes: Float[Tensor, "K 4"],
    labels: Int[Tensor, " K"],
    masks: Bool[Tensor, "K S T"],
    names: Sequence[str],
) -> Float[np.ndarray, "U V 3"]:
    """An image with boxes (x1, y1, x2, y2 in px), masks and names of objects drawn into it."""
    picture = enlarge(image)
    if len(labels):
        colours: Any = [colour(int(label)) for label in labels]
        larger = F.interpolate(masks[None].float(), scale_factor=ENLARGED, mode="nearest")[0] > 0.5
        picture = draw_segmentation_masks(picture, larger, alpha=OPACITY, colors=colours)
        picture = draw_bounding_boxes(
            picture,
            boxes * ENLARGED,
            labels=[names[int(label)] for label in labels],
            colors=colours,
            width=LINE,
            font_size=LETTERS,
            font=font_file(),
        )
    return picture.movedim(0, -1).numpy() / 255


def with_map(
    image: Float[Tensor, "3 S T"], labels: Int[Tensor, "S T"], background: int | None
) -> Float[np.ndarray, "U V 3"]:
    """An image with a semantic map over it; pixels of the class `background`, and ignored ones (255), stay bare."""
    picture = enlarge(image)
    found = [int(label) for label in labels.unique() if int(label) not in (background, 255)]
    if found:
        masks = torch.stack([labels == label for label in found])
        larger = F.interpolate(masks[None].float(), scale_factor=ENLARGED, mode="nearest")[0] > 0.5
        picture = draw_segmentation_masks(picture, larger, alpha=0.85, colors=[colour(label) for label in found])
    return picture.movedim(0, -1).numpy() / 255


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
        images: N images in [0, 1].
        found: heading -> for each image `boxes`, `labels`, `masks` and, but for the truth, which comes first, `scores`.
        names: of the classes.
        path: PNG to write.
        title, caption: heading (plain after a line break), and the sentence below.
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
    grid_of_pictures(columns, path, title=title, caption=caption)


def draw_segmentations(
    images: Sequence[Float[Tensor, "3 S T"]],
    found: Mapping[str, Sequence[Int[Tensor, "S T"]]],
    path: Path,
    *,
    title: str,
    caption: str,
    background: int | None,
) -> None:
    """Semantic maps of each image, one column for the truth and for every model. Arguments as for detections."""
    columns = {
        heading: [with_map(image, labels, background) for image, labels in zip(images, maps, strict=True)]
        for heading, maps in found.items()
    }
    grid_of_pictures(columns, path, title=title, caption=caption)


def font_file() -> str:
    """DejaVu Sans, which ships with matplotlib."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")
