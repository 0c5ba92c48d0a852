"""What detectors and segmenters found on the first test images, beside the truth; from the files of their runs.

Colours say right, wrong or missed, not classes: these are written beside the boxes.
Shapes: S, T sides of an image in px, U, V those of its enlarged picture, K objects of an image.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.utils import draw_segmentation_masks

from analysis.style import COLOURS, picture_grid
from experiments.drawings.base import Finished
from experiments.planning.plan import Plan
from hkd.tasks.detect import PREDICTIONS as DETECTIONS
from hkd.tasks.detect import read_detections
from hkd.tasks.segment import BACKGROUND, PREDICTIONS, predicted_maps
from hkd.training.inputs import open_data

SHOWN = 4  # images
ENLARGED = 4  # a pixel becomes so many a side, so that lines and letters are finer than the image
LINE, LETTERS = 4, 36  # px of enlarged pictures
AREA = 0.7  # opacity of masks
MATCH = 0.5  # intersection over union from which a box has found an object
RIGHT, WRONG, MISSED = (tuple(int(255 * part) for part in to_rgb(COLOURS[i])) for i in (0, 1, 5))
KEY = "Blue: right; orange: wrong; yellow: missed."


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
        picture(split, count, folders, folder, title=heading(finished.plan, task), caption=caption)


def heading(plan: Plan, task: str) -> str:
    """Title of one of the two pictures."""
    what = {"detect": "what detectors find", "segment": "what segmenters see"}[task]
    return f"{plan.title.partition(':')[0]}: {what}\n{plan.here}"


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
    caption += f" Of each model its top-k detections, k being the number of objects. {KEY}"
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
    truth = maps["truth"]
    columns = {
        heading: [
            with_map(image, labels, true, background) for image, labels, true in zip(images, each, truth, strict=True)
        ]
        for heading, each in maps.items()
    }
    picture_grid(columns, folder / "segmentations.png", title=title, caption=f"{caption} {KEY}")


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
    truth = next(iter(found.values()))
    columns = {}
    for heading, objects in found.items():
        pictures = []
        for image, each, true in zip(images, objects, truth, strict=True):
            scores = each.get("scores", torch.zeros(len(each["labels"])))
            top = scores.argsort(descending=True, stable=True)[: len(true["labels"])]
            pictures.append(with_objects(image, {part: each[part][top] for part in ("boxes", "labels")}, true, names))
        columns[heading] = pictures
    picture_grid(columns, path, title=title, caption=caption)


def enlarge(image: Float[Tensor, "3 S T"]) -> UInt8[Tensor, "3 U V"]:
    """An image in [0, 1] with larger pixels, as bytes."""
    return (255 * F.interpolate(image[None], scale_factor=ENLARGED, mode="nearest")[0]).round().to(torch.uint8)


def matched(found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> tuple[list[bool], list[bool]]:
    """Which of the found objects are right, the surest first, and which true ones were found: class and `MATCH`."""
    overlap = box_iou(found["boxes"], truth["boxes"]) if len(found["boxes"]) else torch.zeros(0, len(truth["boxes"]))
    overlap = overlap * (found["labels"][:, None] == truth["labels"])
    taken, right = [False] * len(truth["boxes"]), []
    for line in overlap.tolist():
        best = max((i for i in range(len(taken)) if not taken[i]), key=lambda i: line[i], default=None)
        right.append(best is not None and line[best] >= MATCH)
        if right[-1]:
            assert best is not None
            taken[best] = True
    return right, taken


def with_objects(
    image: Float[Tensor, "3 S T"], found: Mapping[str, Tensor], truth: Mapping[str, Tensor], names: Sequence[str]
) -> Float[np.ndarray, "U V 3"]:
    """An image with boxes: right and wrong ones with the names of their classes beside them, and those missed.

    Args:
        image: in [0, 1].
        found, truth: `boxes` (x1, y1, x2, y2 in px, [K, 4]) and `labels` ([K]); of the truth itself all are right.
        names: of the classes.
    """
    right, taken = matched(found, truth)
    picture = Image.fromarray(enlarge(image).movedim(0, -1).numpy())
    pen, font = ImageDraw.Draw(picture), ImageFont.truetype(font_manager.findfont("DejaVu Sans"), LETTERS)
    for box, was_found in zip((ENLARGED * truth["boxes"]).tolist(), taken, strict=True):
        if not was_found:
            pen.rectangle(box, outline=MISSED, width=LINE)
    for box, label, good in zip((ENLARGED * found["boxes"]).tolist(), found["labels"].tolist(), right, strict=True):
        pen.rectangle(box, outline=RIGHT if good else WRONG, width=LINE)
        # Outside of the box: above it where there is room.
        left, top, wide, high = box[0], box[1], pen.textlength(names[label], font=font) + 8, LETTERS + 4
        top = top - high if top >= high else min(box[3], picture.height - high)
        left = min(left, picture.width - wide)
        pen.rectangle((left, top, left + wide, top + high), fill="black")
        pen.text((left + 4, top + high / 2), names[label], font=font, fill="white", anchor="lm")
    return np.asarray(picture) / 255


def with_map(
    image: Float[Tensor, "3 S T"], labels: Int[Tensor, "S T"], truth: Int[Tensor, "S T"], background: int | None
) -> Float[np.ndarray, "U V 3"]:
    """An image with what is right, wrong and missed of a semantic map over it.

    Right: an object's pixel of its class; missed: one called background; wrong: any other, also background called an
    object. Background that is told as such, and pixels that the truth ignores (255), stay bare.
    """
    background = -1 if background is None else background  # the data set has none
    counted = truth != 255
    real, called = counted & (truth != background), labels != background
    masks = torch.stack([real & (labels == truth), counted & called & (labels != truth), real & ~called])
    larger = F.interpolate(masks[None].float(), scale_factor=ENLARGED, mode="nearest")[0] > 0.5
    picture = draw_segmentation_masks(enlarge(image), larger, alpha=AREA, colors=[RIGHT, WRONG, MISSED])
    return picture.movedim(0, -1).numpy() / 255
