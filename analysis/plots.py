"""Figures of measures: one per measure, with all models of an analysis.

Shapes: L layers, h heads, H W grid.
"""

import textwrap
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.attention import query_box
from analysis.figures import COLOURS, GREY, INK, MARKERS, canvas, house_style, save, save_vector
from analysis.report import Analysis, AttentionMaps, number

WIDTH = 7.2  # inches, as all figures of the suite
DEPTH = "viridis"  # equal steps look equal, also without colour vision
STYLES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))  # when there are more models than colours
LEAST = 1e-2  # of the DC component; what is below has the last colour


def draw(analyses: Sequence[Analysis], folder: Path) -> list[Path]:
    """Write PNG and SVG of every measure that some model has, with all models that have it.

    Returns:
        The files.
    """
    files = []
    for name, figures in FIGURES.items():
        having = [each for each in analyses if name in each.results]
        for suffix, make in figures.items() if having else ():
            with house_style():
                figure = make(having)
                for ending, write in (("png", save), ("svg", save_vector)):
                    files.append(folder / f"{name}{suffix}.{ending}")
                    write(figure, files[-1])
    return files


def panels(
    analyses: Sequence[Analysis], height: float, *, above: float = 0.0, below: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per model, two in a line, and its axes with models' names above them.

    Args:
        analyses: the models.
        height: of a panel in inches, with its name and axis.
        above: room at the top that is left free, in inches.
        below: more room in inches, for a scale.
    """
    columns = min(2, len(analyses))
    rows = -(-len(analyses) // columns)
    whole = rows * height + above + below
    figure = canvas(WIDTH, whole)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - above / whole))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=False, sharey=False).flatten().tolist()
    for unused in axes[len(analyses) :]:
        unused.remove()
    for each, panel in zip(analyses, axes, strict=False):
        panel.set_title("\n".join(textwrap.wrap(each.model, 62 // columns, break_on_hyphens=False)), fontsize=12)
    return figure, axes[: len(analyses)]


def distance_figure(analyses: Sequence[Analysis]) -> Figure:
    """Mean attention distance by layer: a dot per head, their mean as a line, and what uniform attention would have."""
    return head_figure(analyses, "attention_distance", "Attention distance (px)")


def nmi_figure(analyses: Sequence[Analysis]) -> Figure:
    """Normalised mutual information by layer: a dot per head and their mean as a line."""
    return head_figure(analyses, "attention_nmi", "Attention NMI")


def head_figure(analyses: Sequence[Analysis], name: str, label: str) -> Figure:
    """A panel per model, all on one scale that begins at 0."""
    figure, axes = panels(analyses, 2.9, above=0.35)
    results: list[Any] = [each.results[name].pixels() for each in analyses]  # type: ignore[union-attr]
    top = max(np.nanmax(result.mean) for result in results)
    uniform = [each.uniform for each in analyses if each.uniform is not None and name == "attention_distance"]
    top = max([top, *(each.max() for each in uniform)]) * 1.06
    for each, panel, result in zip(analyses, axes, results, strict=True):
        layers = np.arange(1, len(result.names) + 1)
        heads = result.mean.shape[1]
        panel.plot(
            np.repeat(layers, heads), result.mean.flatten(), "o", color=COLOURS[0], alpha=0.55, markersize=5.5,
            markeredgewidth=0, clip_on=False, zorder=3,
        )  # fmt: skip
        panel.errorbar(
            layers, result.layer, np.nan_to_num(result.layer_half), color=INK, linewidth=1.6, elinewidth=1.6,
            capsize=2.5, zorder=4,
        )  # fmt: skip
        if name == "attention_distance" and each.uniform is not None:
            panel.step(layers, each.uniform, where="mid", color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
        panel.set_ylim(0, top if name == "attention_distance" else max(top, 0.6))
        panel.set_xlim(0.5, len(layers) + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        panel.set_xlabel("Layer")
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
    for panel in axes[:: min(2, len(axes))]:
        panel.set_ylabel(label)
    handles = [
        Line2D([], [], linestyle="none", marker="o", color=COLOURS[0], alpha=0.55, markersize=7, label="head"),
        Line2D([], [], color=INK, linewidth=1.6, label="mean of heads, 95 % interval"),
    ]
    if name == "attention_distance":
        handles.append(Line2D([], [], color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), label="uniform attention"))
    top_legend(figure, handles)
    return figure


def top_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend in one line above the panels."""
    figure.legend(
        handles=list(handles), loc="upper center", bbox_to_anchor=(0.5, 1), ncols=len(handles), columnspacing=1.4,
        handletextpad=0.5, borderaxespad=0.2,
    )  # fmt: skip


def spectrum_figure(analyses: Sequence[Analysis]) -> Figure:
    """Relative log amplitude by frequency: a line per layer, dark at the beginning and light at the end."""
    figure, axes = panels(analyses, 2.9, below=0.4)
    results: list[Any] = [each.results["fourier"] for each in analyses]
    shades = colormaps[DEPTH].resampled(256)
    lowest = min(np.nanmin(result.relative) for result in results)
    highest = max(np.nanmax(result.relative) for result in results)
    margin = 0.05 * max(highest - lowest, 0.1)
    for panel, result in zip(axes, results, strict=True):
        depth = max(1, len(result.names) - 1)
        for row in range(len(result.names)):
            panel.plot(
                result.frequency[row], result.relative[row], "-o", color=shades(0.92 * row / depth), linewidth=1.5,
                markersize=3.5,
            )  # fmt: skip
        panel.set_ylim(lowest - margin, highest + margin)
        panel.set_xlim(-0.03, 1.03)
        panel.set_xticks([0, 0.5, 1])
        panel.set_xlabel("Frequency (× π)")
        panel.grid(color="#dddddd", linewidth=0.6)
    for panel in axes[:: min(2, len(axes))]:
        panel.set_ylabel("Δ log amplitude")
    map_ = ScalarMappable(Normalize(0, 1), colormaps[DEPTH].resampled(256))
    bar = figure.colorbar(map_, ax=axes, location="bottom", shrink=0.6, aspect=35)
    bar.set_ticks([0, 1], labels=["first", "last"])
    bar.ax.tick_params(length=0)
    bar.set_label("Layer", labelpad=-14)
    return figure


def depth_figure(analyses: Sequence[Analysis]) -> Figure:
    """Relative log amplitude at the highest frequency over the depth of each model, with 95 % bands."""
    columns = 2 if max(len(each.model) for each in analyses) <= 31 and len(analyses) > 1 else 1
    figure = canvas(WIDTH, 3.6 + 0.27 * -(-len(analyses) // columns))
    figure.set_layout_engine("constrained")
    panel = figure.subplots()
    for (colour, marker, style), each in zip(signs(), analyses, strict=False):
        result: Any = each.results["fourier"]
        depth = np.linspace(0, 1, len(result.names)) if len(result.names) > 1 else np.ones(1)
        half = np.nan_to_num(result.highest_half)
        panel.fill_between(depth, result.highest - half, result.highest + half, color=colour, alpha=0.2, linewidth=0)
        panel.plot(
            depth, result.highest, marker=marker, color=colour, linestyle=style, linewidth=1.8, markersize=6,
            label=each.model,
        )  # fmt: skip
    panel.set_xlabel("Depth (0: first, 1: last layer)")
    panel.set_ylabel("Δ log amplitude\nat the highest frequency")
    panel.grid(color="#dddddd", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=columns, columnspacing=1.4)
    return figure


def signs() -> Iterator[tuple[str, str, Any]]:
    """Colour, marker and line of one model after the other; again from the first after the last."""
    every = [(colour, marker, style) for style in STYLES for colour, marker in zip(COLOURS, MARKERS, strict=True)]
    return cycle(every)


def dct_figure(analyses: Sequence[Analysis]) -> Figure:
    """Mean absolute DCT coefficients, averaged over channels, relative to the DC component."""
    figure, axes = panels(analyses, 3.4, below=0.4)
    for each, panel in zip(analyses, axes, strict=True):
        result: Any = each.results["dct_spectrum"]
        spectrum = result.orthonormal.mean(axis=0)
        relative = (spectrum / max(spectrum[0, 0], np.finfo(float).tiny)).clip(LEAST, 1 / LEAST)
        image = panel.imshow(relative, cmap="cividis", norm=LogNorm(LEAST, 1), aspect="equal")
        rows, columns = relative.shape
        panel.set_xticks(sorted({0, columns // 2, columns - 1}))
        panel.set_yticks(sorted({0, rows // 2, rows - 1}))
        share = number(100 * result.share_energy, 100 * result.share_energy_half, 1)
        panel.set_title(f"{panel.get_title()}\nDC: {share} % of energy", fontsize=11.5)
        panel.set_xlabel("Horizontal frequency")
        panel.spines[:].set_visible(False)
    for panel in axes[:: min(2, len(axes))]:
        panel.set_ylabel("Vertical frequency")
    bar = figure.colorbar(image, ax=axes, location="bottom", extend="both", shrink=0.8, aspect=40)
    bar.set_label("Mean |X|, DC = 1")
    return figure


def maps_figure(analyses: Sequence[Analysis]) -> Figure:
    """What the central patch attends to, averaged over heads, as multiples of uniform attention."""
    found: list[Any] = [each.results["attention_maps"] for each in analyses]
    scaled = [{block: map_.mean(axis=1) * map_[0, 0].size for block, map_ in maps.maps.items()} for maps in found]
    top = np.quantile(np.concatenate([map_.flatten() for maps in scaled for map_ in maps.values()]), 0.99)
    norm = Normalize(0, max(2.0, float(top)))
    shown = [len(maps.images) if len(analyses) == 1 else min(2, len(maps.images)) for maps in found]
    tile, left, head, foot = 1.18, 1.25, 0.27, 0.72  # inches
    tall = tile * min(1.5, max(maps.size[0] / maps.size[1] for maps in found))
    width = left + tile * (max(len(maps.maps) for maps in found) + 1) + 0.05
    height = sum(head + tall * count for count in shown) + foot
    figure = canvas(width, height)
    y = 0.0
    for each, maps, rows, count in zip(analyses, found, scaled, shown, strict=True):
        y += head
        for i in range(count):
            pictures = {"image": maps.images[i], **{f"layer {block}": map_[i] for block, map_ in rows.items()}}
            for x, (title, picture) in enumerate(pictures.items()):
                place = ((left + tile * x + 0.03) / width, 1 - (y + tall - 0.03) / height)
                panel = figure.add_axes((*place, (tile - 0.06) / width, (tall - 0.06) / height))
                draw_map(panel, picture, maps, norm)
                if i == 0:
                    panel.set_title(title, fontsize=11, pad=3)
                if i == x == 0:
                    name = "\n".join(textwrap.wrap(each.model.replace("_", "_ "), 14)).replace("_ ", "_")
                    panel.text(-0.06, 0.5, name, transform=panel.transAxes, ha="right", va="center", fontsize=10)
            y += tall
    axes = figure.add_axes((left / width, 0.45 / height, (width - left - 0.1) / width, 0.12 / height))
    bar = figure.colorbar(ScalarMappable(norm, DEPTH), cax=axes, orientation="horizontal", extend="max")
    bar.set_label("attention of the marked patch (1: uniform)", fontsize=11)
    bar.ax.tick_params(labelsize=10, pad=2)
    return figure


def draw_map(panel: Axes, picture: np.ndarray, maps: AttentionMaps, norm: Normalize) -> None:
    """An image, or a map on its scale, with the patch that attends framed."""
    panel.imshow(picture, cmap=DEPTH, norm=norm, extent=(0, maps.size[1], maps.size[0], 0), interpolation="nearest")
    left, top, wide, tall = query_box(maps.query, maps.patch)
    for colour, thickness in (("white", 2.4), (COLOURS[1], 1.2)):
        panel.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor=colour, linewidth=thickness))
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)


# By measure: what its files' names end in, and who draws them.
FIGURES: dict[str, dict[str, Any]] = {
    "attention_distance": {"": distance_figure},
    "attention_nmi": {"": nmi_figure},
    "fourier": {"": spectrum_figure, "_depth": depth_figure},
    "dct_spectrum": {"": dct_figure},
    "attention_maps": {"": maps_figure},
}
