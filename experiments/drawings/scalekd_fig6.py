"""Alternative components of students with and without DFM (ScaleKD, arXiv:2411.06786, Figure 6).

Shapes: B images, S samples.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.lines import Line2D
from torch import Tensor

from analysis.figure_files import Number, csv_text
from analysis.measures.feature_scatter import FeatureScatter, ScatterResult, draws
from analysis.style import COLOURS, DASHES, GREY, GRID, WIDTH, sheet
from experiments.drawings.base import Finished
from hkd.models.taps import to_tokens
from hkd.training.step import TapStep

SAMPLES = 64_000
BATCH = 32
MOST_POINTS = 1000  # of a student that are drawn
STATISTICS: dict[str, Callable[[ScatterResult], float]] = {
    "norm_mean": lambda result: result.mean,
    "norm_median": lambda result: result.median,
    "per_position": lambda result: float(result.per_position.mean()),
}


def draw(finished: Finished, folder: Path) -> None:
    """Differences of students and their teacher, as points and as distances."""
    plan, images = finished.plan, finished.images(SAMPLES)
    found, numbers = {}, {}
    for cell, runs in finished.cells.items():
        results = {run.spec.seed: scatter_of(finished.step(run), images) for run in runs}
        first = next(iter(results.values()))
        found[cell[2]] = (finished.label(cell), first)
        for name, of in STATISTICS.items():
            half = first.mean_half if name == "norm_mean" else math.nan
            by_seed = {seed: of(result) for seed, result in results.items()}
            numbers[f"{name}/{cell[2]}"] = Number(of(first), half, len(images.rows), by_seed)
    scatter_figure(
        dict(found.values()),
        folder / "scatter",
        title=f"{closer(found)}\n{plan.here}",
        caption=f"Profile {plan.profile}; left: one fixed random projection of the differences (student minus teacher, "
        f"alternative components) of at most {MOST_POINTS} of {len(images.rows)} test images, up to their 99.8 % "
        "quantile; the origin is agreement. Right: distances of all of them; dashed: medians. The first of "
        f"{len(plan.seeds)} seeds.",
    )
    distances = ([label, result.mean, result.mean_half] for label, result in found.values())
    (folder / "distances.csv").write_text(csv_text(("student", "distance", "half"), distances), encoding="utf-8")
    arrays = {name: result.arrays() for name, (_, result) in found.items()}
    finished.leave(folder, images, arrays=arrays, numbers=numbers)


def closer(found: Mapping[str, tuple[str, ScatterResult]]) -> str:
    """The finding: whose features are nearer to the teacher's, if the intervals over images do not meet."""
    (one, first), (other, second) = list(found.values())[:2] if len(found) > 1 else [next(iter(found.values()))] * 2
    apart = abs(first.mean - second.mean) > first.mean_half + second.mean_half
    if not apart:
        return "Alternative components: student minus teacher"
    near, far = (one, other) if first.mean < second.mean else (other, one)
    return f"Students {near} are nearer to their teacher than those {far}"


@torch.no_grad()
def scatter_of(step: TapStep, images: Iterable[Tensor]) -> ScatterResult:
    """Differences of a ScaleKD student's last tokens and its teacher's, without their DC components.

    The tokens are those that the alternative view compares, or, in a student without DFM, its only ones.

    Args:
        step: a finished run of the method `scalekd` that uses stage 4.
        images: batches, RGB in [0, 1].
    """
    method: Any = step.method
    step.eval()
    scatter = FeatureScatter()
    for batch in images:
        for part in batch.split(BATCH):
            mimics = method.mimics(step.student(part, step.want))
            tokens = mimics["s4", "alt"] if ("s4", "alt") in mimics else mimics["s4", "orig"]
            scatter.update(tokens, to_tokens(method.teachers["teacher"](part).final))
    return scatter.compute()


def scatter_figure(results: Mapping[str, ScatterResult], path: Path, *, title: str, caption: str) -> None:
    """Two students' points on one scale, and beside them how many samples lie within each distance of the teacher.

    Args:
        results: by label; orange is the first (with DFM), blue the second, as in the paper.
        path, title, caption: see `sheet`.
    """
    tile, left, gap = 2.75, 0.8, 1.0
    styles = list(zip((COLOURS[1], COLOURS[0]), ("o", "s"), strict=True))
    points = [result.points for result in results.values()]
    limit = max(float(np.quantile(np.abs(each), 0.998)) for each in points) * 1.1
    (chosen, *_) = draws(min(map(len, points)), size=min(MOST_POINTS, *map(len, points)), count=1)
    size = max(1.2, min(3.6, 90 / math.sqrt(len(chosen))))
    with sheet(path, WIDTH, tile, title=title, caption=caption, above=0.5, below=0.68) as page:
        axes = page.axes(left, page.bottom, tile, tile)
        # The student without DFM first: its points lie around the others.
        for each, (colour, marker) in reversed(list(zip(points, styles, strict=False))):
            axes.plot(*each[chosen].T, marker, color=colour, markersize=size, alpha=0.55, markeredgewidth=0)
        axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.locator_params(nbins=5)
        axes.set_xlabel("first projection")
        axes.set_ylabel("second projection", labelpad=0)
        axes = page.axes(left + tile + gap, page.bottom, WIDTH - left - tile - gap - 0.15, tile)
        for result, (colour, _) in zip(results.values(), styles, strict=False):
            distances = np.sort(result.norm)
            axes.step(distances, np.arange(1, len(distances) + 1) / len(distances), color=colour, linewidth=2)
            axes.axvline(result.median, color=colour, linewidth=1.0, linestyle=DASHES)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.01)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_xlabel("distance ‖δ‖ from the teacher")
        axes.set_ylabel("share of images within it", labelpad=2)
        handles = [
            Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=7,
                   label=f"{label}: ‖δ‖ {result.mean:.2f} ± {result.mean_half:.1g}")
            for (label, result), (colour, marker) in zip(results.items(), styles, strict=False)
        ]  # fmt: skip
        place = (0.02, 1 - (0.18 + 0.26 * len(page.heading)) / page.height)
        page.figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=place, ncols=2, borderaxespad=0, borderpad=0,
            handletextpad=0.2, columnspacing=1.4,
        )  # fmt: skip
