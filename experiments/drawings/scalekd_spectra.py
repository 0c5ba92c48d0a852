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
from analysis.style import COLOURS, DEPTH, GREY, GRID, INK, WALL, WIDTH, Sheet, sheet, tint, zebra
from experiments.drawings.base import Finished

MEASURED = 1600  # images, as in Figure 5
BARS = 7  # cells a side from which spectra are 3-D bars, as in the paper


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
        by_label = {labels[slug]: result for slug, result in found.items()}
        grids = [result.unscaled.shape[1:] for result in by_label.values()]
        if min(map(min, grids)) >= BARS:
            spectra_figure(
                by_label,
                folder / "spectra",
                title=f"Frequencies in teachers' features\n{finished.plan.here}",
                caption=f"{begins} over channels, unscaled; orange: the zero frequency, with its share of the energy "
                f"(orthonormal form). {ends}",
            )
        else:  # of few cells, a number in each says more than a bar
            heat_figure(
                by_label,
                {labels[slug]: result for slug, result in controls.items()},
                folder / "spectra",
                title=f"How much of teachers' features is constant over the image\n{finished.plan.here}",
                caption=f"{begins} over channels, unscaled, the zero frequency being 1 (below: its share of the "
                "energy, orthonormal form, with 95 % intervals over images; hollow: random weights).",
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


def heat_figure(
    results: Mapping[str, DCTResult], controls: Mapping[str, DCTResult], path: Path, *, title: str, caption: str
) -> None:
    """Spectra as heat maps with their numbers, and below a line per teacher: its share beside that of random weights.

    Args:
        results, controls: trained and with random weights, by label.
        path, title, caption: see `sheet`.
    """
    columns = min(4, len(results))
    rows = math.ceil(len(results) / columns)
    gap, left = 0.32, 0.62
    tile = min(1.9, (WIDTH - left - 0.15 - gap * (columns - 1)) / columns)
    lines = 0.32 * len(results)
    maps = rows * (tile + 0.62)
    with sheet(path, WIDTH, maps + lines + 0.55, title=title, caption=caption, above=0.1, below=0.65) as page:
        spectra = [result.unscaled.mean(axis=0) for result in results.values()]
        relative = [each / max(each[0, 0], np.finfo(float).tiny) for each in spectra]
        lowest = min(float(each.min()) for each in relative)
        for i, (label, values) in enumerate(zip(results, relative, strict=True)):
            x, y = left + (i % columns) * (tile + gap), page.top - (i // columns) * (tile + 0.62) - tile - 0.3
            axes = page.axes(x, y, tile, tile)
            axes.imshow(values, cmap=DEPTH, norm=LogNorm(max(lowest, 1e-4), 1.0), aspect="equal")
            for (row, column), value in np.ndenumerate(values):
                light = math.log(max(value, 1e-4) / max(lowest, 1e-4)) < 0.6 * math.log(1 / max(lowest, 1e-4))
                ink: dict[str, Any] = {"color": "white" if light else INK, "fontsize": 12 if len(values) < 4 else 7.5}
                text = f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
                axes.text(column, row, text, ha="center", va="center", **ink)
            axes.set_title(label, fontsize=12.5)
            axes.set_xticks(range(values.shape[1]))
            axes.set_yticks(range(values.shape[0]))
            axes.tick_params(length=0, labelsize=10)
            axes.spines[:].set_visible(False)
            if i % columns == 0:
                axes.set_ylabel("vertical", fontsize=11)
            axes.set_xlabel("horizontal", fontsize=11, labelpad=2)
        names = list(results)
        axes = page.axes(1.1, page.bottom, WIDTH - 1.4, lines)
        zebra(axes, names)
        for y, name in enumerate(names):
            trained, random = results[name], controls[name]
            ends = 100 * trained.share_energy, 100 * random.share_energy
            axes.plot(ends, (y, y), color=GREY, linewidth=1.4, zorder=1)
            axes.errorbar(ends[0], y, xerr=100 * trained.share_energy_half, fmt="o", color=COLOURS[0], markersize=8)
            axes.plot(ends[1], y, "o", markersize=8, markerfacecolor="white", markeredgecolor=COLOURS[0])
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the zero frequency, % of energy")


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
