"""What H-GKD's networks see and predict: masks, active sets, features as colours, paintings, the queue.

In all functions `images` are RGB in [0, 1], a step is a finished run of a method that masks, `path` is the PNG to
write, and `setting` says below the heading what was used.
Shapes: N images, S side in px, g cells of a mask a side, D width, H W grid.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.ticker import NullLocator
from torch import Tensor

from analysis.style import COLOURS, GREY, GRID, HEADING_LINE, MARKERS, Lettering, picture_grid, sheet
from experiments.drawings.base import Finished, Images, chosen
from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.models.taps import Taps, Want
from hkd.training.rng import seed_all
from hkd.training.step import TapStep

SHOWN = 6  # images
STAGES = Want(stages=(1, 2, 3, 4))
PAINTERS = {"masked_pixels": "student", "mae": "MAE teacher"}  # methods that predict pixels, as columns name them


def draw(finished: Finished, folder: Path) -> None:
    """Active sets, features, paintings and the queue's effective entries, with the figures behind them as JSON."""
    runs, here = finished.runs, finished.plan.here
    split = finished.test_split()
    images = torch.cat(list(Images(chosen(split, range(min(SHOWN, len(split)))), len(split))))
    distilled = {label: run for label, run in runs.items() if run.spec.method.name == "hgkd"}
    steps = {label: finished.step(run) for label, run in distilled.items()}
    done = {run.key for run in runs.values()} | {need for run in runs.values() for need in run.needs}
    painters = {
        PAINTERS[run.spec.method.name]: finished.step(run)
        for run in finished.plan.runs.values()
        if run.key in done and run.spec.method.name in PAINTERS
    }
    facts: dict[str, Any] = {"images": f"first {SHOWN} of the test split"}
    if steps:
        facts["active"] = draw_active_sets(next(iter(steps.values())), images, folder / "active_sets.png", here)
        facts["cosine"] = draw_features(steps, images, folder / "features.png", here)
        sizes = {step.method.config.queue_size for step in steps.values()}
        if len(sizes) != 1:
            raise UserError(f"The runs of '{finished.plan.table}' have queues of different sizes: {sorted(sizes)}.")
        queues = {label: finished.curves(run) for label, run in distilled.items()}
        draw_queue(queues, folder / "queue_entries.png", size=sizes.pop(), setting=here)
    if painters:
        draw_paintings(painters, images, folder / "paintings.png", here)
    (folder / "pictures.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@torch.no_grad()
def masked_pass(step: TapStep, images: Float[Tensor, "N 3 S S"], seed: int = 0) -> tuple[Batch, Taps]:
    """The student's taps of images under masks drawn from a seed; the masks are in the batch's `extra`."""
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


def pictures_of(images: Float[Tensor, "N 3 S S"]) -> Sequence[np.ndarray]:
    """Images as matplotlib has them."""
    return list(images.clamp(0, 1).movedim(1, -1).numpy())


def draw_active_sets(
    step: TapStep, images: Float[Tensor, "N 3 S S"], path: Path, setting: str = ""
) -> dict[str, float]:
    """Image, masked image and where each stage of the sparse encoder is not zero.

    Returns:
        Share of active positions by stage, which is the share of visible cells if nothing leaks.
    """
    batch, taps = masked_pass(step, images)
    active = {stage: map_.abs().amax(dim=1) > 0 for stage, map_ in taps.stages.items()}
    columns = {"image": pictures_of(images), "masked": pictures_of(hide(images, batch.extra["visible"]))}
    for stage, where in active.items():
        columns[f"stage {stage}, {where.shape[1]}x{where.shape[2]}"] = list(where.double().numpy())
    picture_grid(
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
    """Teacher's features and what each H-GKD student predicts of them from masked images, in one basis a teacher.

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
    picture_grid(
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
    """What methods that predict pixels (they have `picture`) paint into the hidden part."""
    columns: dict[str, Sequence[Any]] = {"image": pictures_of(images)}
    for name, step in steps.items():
        method: Any = step.method
        batch, taps = masked_pass(step, images)
        columns[f"{name}: masked"] = pictures_of(hide(images, batch.extra["visible"]))
        with torch.no_grad():
            columns[f"{name}: rebuilt"] = pictures_of(method.picture(batch, taps))
    picture_grid(
        columns,
        path,
        title=f"Hidden pixels, reconstructed by the models that predict them\n{setting}",
        caption="Where pixels are normalised by cell for training, a reconstructed cell has the true mean and contrast "
        "of that cell: they are not the model's merit.",
    )


def draw_queue(
    curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path, *, size: int, setting: str = ""
) -> None:
    """Effective number of entries in the teacher's softmax over the queue, by epoch.

    Args:
        curves: name -> lines of a run's curves with `epoch` and `queue_entries`.
        path, setting: see the head of this file.
        size: of the queue.
    """
    texts: dict[str, Any] = {
        "title": f"How many queue entries the similarity looks at\n{setting}",
        "caption": f"Effective entries: 1 / Σ p² of the teacher's softmax p over the queue, mean over an epoch; "
        f"grey line: the queue holds {size}.",
        "lettering": Lettering(heading_line=HEADING_LINE),
    }
    with sheet(path, 6.4, 2.2, above=0.3, below=0.66, vector=False, **texts) as page:
        axes = page.axes(0.13 * page.width, page.bottom, 0.84 * page.width, 2.2)
        for i, (name, lines) in enumerate(curves.items()):
            xy = [(line["epoch"], line["queue_entries"]) for line in lines]
            axes.plot(*zip(*xy, strict=True), color=COLOURS[i], marker=MARKERS[i], markersize=4, label=name)
        axes.axhline(size, color=GREY, linewidth=0.8)
        axes.set_ylim(0, size * 1.08)
        axes.set_xscale("log")  # most happens in the first epochs
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], minor=False)
        axes.set_xlim(0.9, 1.1 * max(line["epoch"] for lines in curves.values() for line in lines))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("effective entries")
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.legend(loc="best")
