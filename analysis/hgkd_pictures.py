"""What H-GKD's networks see and predict, as pictures for people: masks, active sets, features as colours, paintings.

Shapes: N images, S side in px, g cells of a mask a side, D width, H W grid.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.figures import COLOURS, HEADING_LINE, MARKERS, canvas, house_style, save, wrapped, write_texts
from hkd.data.batch import Batch
from hkd.models.taps import Taps, Want
from hkd.training.rng import seed_all
from hkd.training.step import TapStep

TILE = 0.92  # inches of one picture
STAGES = Want(stages=(1, 2, 3, 4))


@torch.no_grad()
def masked_pass(step: TapStep, images: Float[Tensor, "N 3 S S"], seed: int = 0) -> tuple[Batch, Taps]:
    """The student's taps of images under masks drawn from a seed; the masks are in the batch's `extra`.

    Args:
        step: a finished run of a method that masks.
        images: RGB in [0, 1].
        seed: of the masks.
    """
    seed_all(seed, "pictures")
    batch = Batch(images, torch.empty(len(images), 0), torch.arange(len(images)))
    return batch, step.student(batch.x, step.want | STAGES, **step.method.student_inputs(batch, {}))


def hide(images: Float[Tensor, "N 3 S S"], visible: Bool[Tensor, "N 1 g g"]) -> Float[Tensor, "N 3 S S"]:
    """Images whose hidden cells are grey."""
    cell = images.shape[-1] // visible.shape[-1]
    shown = visible.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return torch.where(shown, images, 0.5)


def as_colours(*maps: Float[Tensor, "N D H W"]) -> list[Float[np.ndarray, "N H W 3"]]:
    """Feature maps as RGB: their first three principal components, one basis and one scale for all.

    Args:
        maps: the first gives mean, basis (the leading right singular vectors of its centred features) and scale (its
            2nd to 98th percentile of each component); the others are shown in it.
    """
    rows = [map_.movedim(1, -1).double().numpy() for map_ in maps]
    first = rows[0].reshape(-1, rows[0].shape[-1])
    mean = first.mean(axis=0)
    basis = np.linalg.svd(first - mean, full_matrices=False)[2][:3]
    basis *= np.sign(
        basis.sum(axis=1, keepdims=True)
    )  # a component's sign is arbitrary: fixed, so that bytes are equal
    low, high = np.percentile((first - mean) @ basis.T, [2, 98], axis=0)
    return [(((row - mean) @ basis.T - low) / np.maximum(high - low, 1e-12)).clip(0, 1) for row in rows]


def grid_of_pictures(
    columns: Mapping[str, Sequence[Any]], path: Path, *, title: str, caption: str, rows: Sequence[str] = ()
) -> None:
    """Columns of pictures under their headings, one line per image.

    Args:
        columns: heading -> pictures, [H, W, 3] colours in [0, 1] or [H, W] in [0, 1] as grey.
        path: PNG to write.
        title, caption: heading (plain after a line break), and the sentence below.
        rows: labels of the lines.
    """
    count = len(next(iter(columns.values())))
    left = 0.1 + 0.09 * max(map(len, rows), default=0)
    width = left + TILE * len(columns) + 0.1
    # Letters of 10.5 and 14 points are about .085 and .135 inches wide.
    lines, heading = textwrap.wrap(caption, int(width / 0.085)), wrapped(title, int(width / 0.135))
    names = ["\n".join(textwrap.wrap(name, int(TILE / 0.085))) for name in columns]
    above = 0.3 + 0.26 * len(heading) + 0.17 * max(name.count("\n") + 1 for name in names)
    height = above + TILE * count + 0.25 + 0.2 * len(lines)
    with house_style():
        figure = canvas(width, height)
        for x, (name, pictures) in enumerate(zip(names, columns.values(), strict=True)):
            for y, picture in enumerate(pictures):
                axes = figure.add_axes(
                    (
                        (left + TILE * x + 0.03) / width,
                        1 - (above + TILE * (y + 1) - 0.03) / height,
                        (TILE - 0.06) / width,
                        (TILE - 0.06) / height,
                    )
                )
                tile(axes, np.asarray(picture))
                if y == 0:
                    axes.set_title(name, fontsize=10, pad=4)
                if x == 0 and rows:
                    axes.set_ylabel(rows[y], fontsize=10, rotation=0, ha="right", va="center")
        write_texts(figure, heading, lines)
        save(figure, path)


def tile(axes: Axes, picture: np.ndarray) -> None:
    """One picture without axes."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def pictures_of(images: Float[Tensor, "N 3 S S"]) -> Sequence[np.ndarray]:
    """Images as matplotlib has them."""
    return list(images.clamp(0, 1).movedim(1, -1).numpy())


def draw_active_sets(
    step: TapStep, images: Float[Tensor, "N 3 S S"], path: Path, setting: str = ""
) -> dict[str, float]:
    """Image, masked image and where each stage of the sparse encoder is not zero.

    Args:
        step: a finished run of a method that masks.
        images: RGB in [0, 1].
        path: PNG to write.
        setting: what was used, for under the heading.

    Returns:
        Share of active positions by stage, which is the share of visible cells if nothing leaks.
    """
    batch, taps = masked_pass(step, images)
    visible = batch.extra["visible"]
    active = {stage: map_.abs().amax(dim=1) > 0 for stage, map_ in taps.stages.items()}
    columns = {"image": pictures_of(images), "masked": pictures_of(hide(images, visible))}
    for stage, where in active.items():
        columns[f"stage {stage}, {where.shape[1]}x{where.shape[2]}"] = list(where.double().numpy())
    grid_of_pictures(
        columns,
        path,
        title=f"Active sets of the sparse encoder\n{setting}",
        caption="White: positions whose features are not zero. They are the visible cells at every stage.",
    )
    return {f"stage_{stage}": float(where.double().mean()) for stage, where in active.items()}


@torch.no_grad()
def draw_features(
    steps: Mapping[str, TapStep], images: Float[Tensor, "N 3 S S"], path: Path, setting: str = ""
) -> dict[str, float]:
    """Teacher's features and what each student predicts of them from masked images, as colours in one basis a teacher.

    Args:
        steps: finished H-GKD runs by name.
        images: RGB in [0, 1].
        path: PNG to write.
        setting: what was used, for under the heading.

    Returns:
        Mean cosine of predicted and true features (both as they are compared in training), by name.
    """
    columns: dict[str, Sequence[Any]] = {}
    agreement = {}
    for name, step in steps.items():
        batch, taps = masked_pass(step, images)
        visible = batch.extra["visible"]
        method: Any = step.method
        predicted = method.predict(taps, visible)
        target = method.targets(method.teachers["teacher"](images).final, predicted)[0]
        true, guess = as_colours(target, predicted[0])
        if not columns:
            columns |= {"image": pictures_of(images), "masked": pictures_of(hide(images, visible))}
        columns |= {f"{name}: teacher": list(true), f"{name}: predicted": list(guess)}
        agreement[name] = float(torch.cosine_similarity(predicted[0], target, dim=1).mean())
    grid_of_pictures(
        columns,
        path,
        title=f"Teacher's features, and the student's prediction of them from the masked image\n{setting}",
        caption="First three principal components of the teacher's features as red, green and blue; one basis and "
        "scale for a teacher and its student.",
    )
    return agreement


def draw_paintings(
    steps: Mapping[str, TapStep], images: Float[Tensor, "N 3 S S"], path: Path, setting: str = ""
) -> None:
    """What methods that predict pixels paint into the hidden part.

    Args:
        steps: finished runs of methods that have `picture`, by name.
        images: RGB in [0, 1].
        path: PNG to write.
        setting: what was used, for under the heading.
    """
    columns: dict[str, Sequence[Any]] = {"image": pictures_of(images)}
    for name, step in steps.items():
        method: Any = step.method
        batch, taps = masked_pass(step, images)
        columns[f"{name}: masked"] = pictures_of(hide(images, batch.extra["visible"]))
        with torch.no_grad():
            columns[f"{name}: painted"] = pictures_of(method.picture(batch, taps))
    grid_of_pictures(
        columns,
        path,
        title=f"Hidden pixels, painted by the models that predict them\n{setting}",
        caption="Where pixels are normalised by cell for training, a painted cell has the true mean and contrast of "
        "that cell: they are not the model's merit.",
    )


def draw_queue(
    curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path, *, size: int, setting: str = ""
) -> None:
    """Effective number of entries in the teacher's softmax over the queue, by epoch.

    Args:
        curves: name -> lines of a run's curves with `epoch` and `queue_entries`.
        path: PNG to write.
        size: of the queue.
        setting: what was used, for under the heading.
    """
    with house_style():
        heading = wrapped(f"How many queue entries the similarity looks at\n{setting}", 50)
        above, plot, below = 0.3 + HEADING_LINE * len(heading), 2.2, 0.86
        height = above + plot + below
        figure = canvas(6.4, height)
        axes = figure.add_axes((0.13, below / height, 0.84, plot / height))
        for i, (name, lines) in enumerate(curves.items()):
            xy = [(line["epoch"], line["queue_entries"]) for line in lines]
            axes.plot(*zip(*xy, strict=True), color=COLOURS[i], marker=MARKERS[i], markersize=4, label=name)
        axes.axhline(size, color="#8c8c8c", linewidth=0.8)
        axes.set_ylim(0, size * 1.08)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("effective entries")
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.legend(loc="best")
        write_texts(figure, heading, [f"Grey line: the queue holds {size}."])
        save(figure, path)
