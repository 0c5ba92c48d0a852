"""Spectra (2-D DCT) of teachers' last features (ScaleKD, arXiv:2411.06786, Figures 2 and 5).

Shapes: C channels, H W grid.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullFormatter

from analysis.figure_files import Number, csv_text
from analysis.looking.model import untrained
from analysis.measure import measure
from analysis.measures.dct_spectrum import DCTResult
from analysis.style import COLOURS, DEPTH, GRID, WALL, WIDTH, Sheet, sheet, tint
from experiments.drawings.base import Finished

MEASURED = 1600  # images, as in Figure 5


def draw(finished: Finished, folder: Path) -> None:
    """The spectra of a table's teachers side by side; of one alone, by channel too. Random weights in the caption."""
    images, labels = finished.images(MEASURED), finished.rows
    found, controls = {}, {}
    for (slug, *_), runs in finished.cells.items():
        network = finished.network(runs[0])
        found[slug] = measure(network, images, "dct_spectrum")["dct_spectrum"]
        controls[slug] = measure(untrained(network.card), images, "dct_spectrum")["dct_spectrum"]
    begins = f"Profile {finished.plan.profile}; last features, {len(images.rows)} test images; mean |DCT|"
    shares = (f"{labels[slug]} {100 * each.share_energy:.0f} %" for slug, each in controls.items())
    ends = f"With random weights: {', '.join(shares)}."
    if len(finished.table.rows) == 1:
        slug, result = next(iter(found.items()))
        spectrum_figure(
            result,
            folder / "spectrum",
            title=f"Frequencies in the features of {labels[slug]}\n{finished.plan.here}",
            caption=f"{begins}, unscaled. The zero frequency has {100 * result.share_energy:.0f} % of the energy "
            f"(orthonormal form). {ends}",
        )
    else:
        spectra_figure(
            {labels[slug]: result for slug, result in found.items()},
            folder / "spectra",
            title=f"Frequencies in teachers' features\n{finished.plan.here}",
            caption=f"{begins} over channels, unscaled; orange: the zero frequency, with its share of the energy "
            f"(orthonormal form). {ends}",
        )
    every = found | {f"random_{slug}": each for slug, each in controls.items()}
    lines = ([name, each.share_energy, each.share_energy_half] for name, each in every.items())
    (folder / "shares.csv").write_text(csv_text(("teacher", "share", "half"), lines), encoding="utf-8")
    arrays = {name: each.arrays() for name, each in every.items()}
    finished.leave(folder, images, arrays=arrays, numbers=numbers(every))


def numbers(results: Mapping[str, DCTResult]) -> dict[str, Number]:
    """The zero frequency's shares, as `dct_<form>/<name>`."""
    return {
        f"dct_{form}/{name}": Number(getattr(each, f"share_{form}"), getattr(each, f"share_{form}_half"), each.images)
        for name, each in results.items()
        for form in ("energy", "unscaled", "orthonormal")
    }


def bars(page: Sheet, left: float, bottom: float, width: float, height: float, heights: np.ndarray) -> Any:
    """3-D bars of a spectrum over its frequencies, the zero one in another colour.

    Args:
        page: to draw in.
        left, bottom, width, height: of the axes, in inches.
        heights: [H, W].
    """
    axes = page.axes(left, bottom, width, height, projection="3d", computed_zorder=False)
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
        axis.pane.set_facecolor(WALL)
        axis.pane.set_edgecolor(GRID)
        axis._axinfo["grid"].update(color=GRID, linewidth=0.5)
    return axes


def spectra_figure(results: Mapping[str, DCTResult], path: Path, *, title: str, caption: str) -> None:
    """3-D bars of several teachers, mean over channels.

    Args:
        results: by label.
        path, title, caption: see `sheet`.
    """
    columns = min(2, len(results))
    rows = math.ceil(len(results) / columns)
    wide, high = 3.4, 2.95
    width = max(columns * wide + 0.2, 5.2)
    with sheet(path, width, rows * high, title=title, caption=caption, above=0.2, below=0.25) as page:
        for i, (label, result) in enumerate(results.items()):
            left, bottom = 0.1 + (i % columns) * wide, page.top - (i // columns + 1) * high
            axes = bars(page, left + 0.05, bottom + 0.22, wide - 0.2, high - 0.42, result.unscaled.mean(axis=0))
            axes.set_xlabel("horizontal", fontsize=11, labelpad=-5)
            axes.set_ylabel("vertical", fontsize=11, labelpad=-5)
            share = f"DC {100 * result.share_energy:.0f} ± {100 * result.share_energy_half:.1f} %"
            page.text(
                left + wide / 2, bottom + high - 0.08, f"{label}: {share}", ha="center", va="top", fontsize=12.5
            )  # fmt: skip


def spectrum_figure(result: DCTResult, path: Path, *, title: str, caption: str) -> None:
    """3-D bars of one teacher, and beside them every channel's spectrum by index of the frequency.

    Args:
        result: its spectrum.
        path, title, caption: see `sheet`.
    """
    high = 2.9
    with sheet(path, WIDTH, high, title=title, caption=caption, above=0.1, below=0.35) as page:
        axes = bars(page, 0.1, page.bottom + 0.05, 3.3, high - 0.1, result.unscaled.mean(axis=0))
        axes.set_xlabel("horizontal frequency", fontsize=11, labelpad=-4)
        axes.set_ylabel("vertical frequency", fontsize=11, labelpad=-4)
        axes = page.axes(4.25, page.bottom + 0.6, 1.95, high - 0.85)
        flat = result.unscaled.reshape(len(result.unscaled), -1)
        shown = axes.pcolormesh(
            np.arange(flat.shape[1] + 1) - 0.5,
            np.arange(flat.shape[0] + 1),
            flat[np.argsort(-flat[:, 0], kind="stable")],
            cmap=DEPTH,
            norm=LogNorm(max(float(flat[flat > 0].min()), float(flat.max()) * 1e-4), float(flat.max())),
            rasterized=True,
        )
        axes.set_xlabel("frequency index (0: DC)")
        axes.set_ylabel("channel, by its DC")
        axes.locator_params(axis="x", integer=True, nbins=5)
        bar = page.figure.colorbar(shown, cax=page.axes(6.32, page.bottom + 0.6, 0.13, high - 0.85))
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.ax.tick_params(labelsize=10)
        bar.ax.set_title("mean |DCT|", fontsize=10)
