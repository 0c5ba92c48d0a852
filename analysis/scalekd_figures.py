"""Pictures of ScaleKD (arXiv:2411.06786): spectra of features (Figures 2 and 5), alternative components (Figure 6).

Shapes: B images, C channels, H W grid, S samples.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from torch import Tensor

from analysis.dct_spectrum import DCTResult
from analysis.feature_scatter import FeatureScatter, ScatterResult
from analysis.figure_files import Number, csv_text, save_arrays, save_both, save_measures
from analysis.figures import COLOURS, GREY, canvas, house_style, wrapped, write_texts
from hkd.models.taps import to_tokens
from hkd.training.step import TapStep

BATCH = 32
DRAWS, SHARE = 8, 10  # panels of a scatter, each of a tenth of the samples
SEED = 0  # of the projection and of the draws
STATISTICS: dict[str, Callable[[ScatterResult], float]] = {
    "norm_mean": lambda result: result.mean,
    "norm_median": lambda result: result.median,
    "per_position": lambda result: float(result.per_position.mean()),
}


# -- spectra -------------------------------------------------------------------------------------------------------


def tint(colour: str, share: float) -> tuple[float, ...]:
    """A colour, lightened by a share of the way to white."""
    return tuple(value + (1 - value) * share for value in to_rgb(colour))


def bars(figure: Figure, box: tuple[float, float, float, float], heights: np.ndarray) -> Any:
    """3-D bars of a spectrum over its frequencies, the zero one in another colour.

    Args:
        figure: to draw in.
        box: of the axes, as shares of the figure.
        heights: [H, W].
    """
    axes: Any = figure.add_axes(box, projection="3d", computed_zorder=False)
    axes.patch.set_visible(False)
    rows, columns = heights.shape
    # Sides in three tones instead of matplotlib's shading, which is too dark to print: bottom, top, then four sides.
    tones = {
        zero: [tint(COLOURS[1] if zero else COLOURS[0], share) for share in (1.0, 0.35, 1.0, 0.0, 1.0, 0.18)]
        for zero in (True, False)
    }
    # From the back to the front, as bars are drawn in the order in which they come.
    for y in range(rows):
        for x in range(columns):
            thin = {"edgecolor": "white", "linewidth": 0.2 if rows > 8 else 0.5}
            axes.bar3d(x - 0.4, y - 0.4, 0, 0.8, 0.8, heights[y, x], color=tones[x == y == 0], shade=False, **thin)
    axes.view_init(elev=24, azim=52)
    step = max(1, (columns - 1) // 3)
    axes.set_xticks(range(0, columns, step))
    axes.set_yticks(range(0, rows, step))
    axes.tick_params(labelsize=10, pad=-3)
    axes.zaxis.set_tick_params(pad=1)
    axes.locator_params(axis="z", nbins=4)
    axes.set_zlabel("mean |DCT|", fontsize=10, labelpad=-3)
    axes.set_box_aspect((1, 1, 0.85), zoom=1.05)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor("#fafafa")
        axis.pane.set_edgecolor("#dddddd")
        axis._axinfo["grid"].update(color="#dddddd", linewidth=0.5)
    return axes


def spectra_figure(results: Mapping[str, DCTResult], path: Path, *, title: str, caption: str) -> None:
    """3-D bars of several teachers, mean over channels.

    Args:
        results: by label.
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        columns = min(2, len(results))
        rows = math.ceil(len(results) / columns)
        wide, high = 3.4, 2.95
        width = max(columns * wide + 0.2, 5.2)
        lines, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        above, below = 0.2 + 0.26 * len(heading), 0.25 + 0.2 * len(lines)
        height = above + rows * high + below
        figure = canvas(width, height)
        for i, (label, result) in enumerate(results.items()):
            left, bottom = 0.1 + (i % columns) * wide, height - above - (i // columns + 1) * high
            box = ((left + 0.05) / width, (bottom + 0.22) / height, (wide - 0.2) / width, (high - 0.42) / height)
            axes = bars(figure, box, result.unscaled.mean(axis=0))
            axes.set_xlabel("horizontal", fontsize=11, labelpad=-5)
            axes.set_ylabel("vertical", fontsize=11, labelpad=-5)
            share = f"DC {100 * result.share_energy:.0f} ± {100 * result.share_energy_half:.1f} %"
            middle, top = (left + wide / 2) / width, (bottom + high - 0.08) / height
            figure.text(middle, top, f"{label}: {share}", ha="center", va="top", fontsize=12.5)
        write_texts(figure, heading, lines)
        save_both(figure, path)


def spectrum_figure(result: DCTResult, path: Path, *, title: str, caption: str) -> None:
    """3-D bars of one teacher, and beside them every channel's spectrum by index of the frequency.

    Args:
        result: its spectrum.
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        width = 7.2
        lines, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        above, below, high = 0.1 + 0.26 * len(heading), 0.35 + 0.2 * len(lines), 2.9
        height = above + high + below
        figure = canvas(width, height)
        box = (0.1 / width, (below + 0.05) / height, 3.3 / width, (high - 0.1) / height)
        axes = bars(figure, box, result.unscaled.mean(axis=0))
        axes.set_xlabel("horizontal frequency", fontsize=11, labelpad=-4)
        axes.set_ylabel("vertical frequency", fontsize=11, labelpad=-4)
        axes = figure.add_axes((4.25 / width, (below + 0.6) / height, 1.95 / width, (high - 0.85) / height))
        flat = result.unscaled.reshape(len(result.unscaled), -1)
        shown = axes.pcolormesh(
            np.arange(flat.shape[1] + 1) - 0.5,
            np.arange(flat.shape[0] + 1),
            flat[np.argsort(-flat[:, 0], kind="stable")],
            cmap="viridis",
            norm=LogNorm(max(float(flat[flat > 0].min()), float(flat.max()) * 1e-4), float(flat.max())),
            rasterized=True,
        )
        axes.set_xlabel("frequency index (0: DC)")
        axes.set_ylabel("channel, by its DC")
        axes.locator_params(axis="x", integer=True, nbins=5)
        bar_axes = figure.add_axes((6.32 / width, (below + 0.6) / height, 0.13 / width, (high - 0.85) / height))
        bar = figure.colorbar(shown, cax=bar_axes)
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.ax.tick_params(labelsize=10)
        bar.ax.set_title("mean |DCT|", fontsize=10)
        write_texts(figure, heading, lines)
        save_both(figure, path)


def leave(results: Mapping[str, DCTResult], folder: Path, *, profile: str, images: str, rows: np.ndarray) -> None:
    """Write arrays.npz and measures.json of spectra, and the zero frequency's share of their energy as shares.csv.

    Args:
        results: by name.
        folder: where to.
        profile, images: see `save_measures`.
        rows: which images, for the arrays.
    """
    arrays = {f"{name}/{field}": array for name, each in results.items() for field, array in each.arrays().items()}
    save_arrays(arrays | {"rows": rows}, folder / "arrays.npz")
    values = {}
    for name, each in results.items():
        values[f"dct_energy/{name}"] = Number(each.share_energy, each.share_energy_half, each.images)
        values[f"dct_unscaled/{name}"] = Number(each.share_unscaled, each.share_unscaled_half, each.images)
        values[f"dct_orthonormal/{name}"] = Number(each.share_orthonormal, each.share_orthonormal_half, each.images)
    shares = ([name, each.share_energy, each.share_energy_half] for name, each in results.items())
    (folder / "shares.csv").write_text(csv_text(("teacher", "share", "half"), shares))
    save_measures(values, folder / "measures.json", profile=profile, images=images)


# -- alternative components ----------------------------------------------------------------------------------------


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
    scatter = FeatureScatter(seed=SEED)
    for batch in images:
        for part in batch.split(BATCH):
            mimics = method.mimics(step.student(part, step.want))
            tokens = mimics["s4", "alt"] if ("s4", "alt") in mimics else mimics["s4", "orig"]
            scatter.update(tokens, to_tokens(method.teachers["teacher"](part).final))
    return scatter.compute()


def draws(samples: int) -> list[np.ndarray]:
    """Indices of each panel's samples: a tenth, without replacement within a panel."""
    generator = np.random.default_rng(SEED)
    return [generator.choice(samples, max(1, samples // SHARE), replace=False) for _ in range(DRAWS)]


def scatter_figure(results: Mapping[str, ScatterResult], path: Path, *, title: str, caption: str) -> None:
    """Eight random draws of two students' points, one scale for all.

    Args:
        results: by label; orange is the first (with DFM), blue the second, as in the paper.
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        width, tile, left = 7.2, 1.52, 0.72
        lines, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        above, below = 0.55 + 0.26 * len(heading), 0.68 + 0.2 * len(lines)
        rows = math.ceil(DRAWS / 4)
        height = above + rows * (tile + 0.1) + below
        figure = canvas(width, height)
        styles = list(zip((COLOURS[1], COLOURS[0]), ("o", "s"), strict=True))
        points = [result.points for result in results.values()]
        limit = max(float(np.quantile(np.abs(each), 0.998)) for each in points) * 1.1
        size = max(0.8, min(3.2, 60 / math.sqrt(len(points[0]) / SHARE)))
        for i, chosen in enumerate(draws(min(map(len, points)))):
            x, y = left + (i % 4) * (tile + 0.1), height - above - (i // 4 + 1) * (tile + 0.1) + 0.1
            axes = figure.add_axes((x / width, y / height, tile / width, tile / height))
            # The student without DFM first: its points lie around the others.
            for each, (colour, marker) in reversed(list(zip(points, styles, strict=False))):
                axes.plot(*each[chosen].T, marker, color=colour, markersize=size, alpha=0.55, markeredgewidth=0)
            axes.axhline(0, color=GREY, linewidth=0.6, zorder=0)
            axes.axvline(0, color=GREY, linewidth=0.6, zorder=0)
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.locator_params(nbins=3)
            axes.tick_params(labelleft=i % 4 == 0, labelbottom=i >= DRAWS - 4)
        handles = [
            Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=7,
                   label=f"{label}: ‖δ‖ {result.mean:.2f} ± {result.mean_half:.1g}")
            for (label, result), (colour, marker) in zip(results.items(), styles, strict=False)
        ]  # fmt: skip
        place = (0.02, 1 - (0.18 + 0.26 * len(heading)) / height)
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=2, borderaxespad=0, borderpad=0,
                      handletextpad=0.2, columnspacing=1.4)  # fmt: skip
        figure.text(
            (left + 2 * tile + 0.15) / width, (below - 0.4) / height, "first projection", ha="center", va="center"
        )
        figure.text(0.12 / width, (below + rows * (tile + 0.1) / 2) / height, "second projection", rotation=90,
                    ha="left", va="center")  # fmt: skip
        write_texts(figure, heading, lines)
        save_both(figure, path)
