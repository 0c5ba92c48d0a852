"""Figures in one house style: colours that the colour-blind can tell apart, text that survives half width.

Functions take plain rows (dicts or a frame) and know nothing of plans or records. PNGs are equal byte for byte for
equal inputs and an equal matplotlib.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

# Okabe & Ito 2008, "Color Universal Design"; the marker is a second sign beside the colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("s", "o", "^", "v", "P", "X", "*")
GREY, INK = "#8c8c8c", "#262626"
DPI = 200
LABEL_LETTERS = 30  # of a line's label before it is wrapped
HEADING_LINE, PLAIN_LINE = 0.24, 0.2  # inches from one line of a heading to the next
PLAIN_LETTERS = 1.6  # plain letters under a heading for a bold one
MAP, MAP_RANGE = "RdBu", 1.9  # of gain maps: the scale ends where ink is still read, at 1 / MAP_RANGE of the colours

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "legend.fontsize": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


class GainRow(TypedDict):
    """One method on one pair. Gains in points; nan where there is none.

    pair: label of the line in the figure. pooled: whether it is a mean over pairs (drawn apart, at the bottom).
    """

    pair: str
    method: str
    published: float
    measured: float
    low: float
    high: float
    pooled: bool


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made and saved inside have the house style; outside, matplotlib's settings stay as they were."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure of that size in inches, free of pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the library's version in it, so that equal figures are equal bytes."""
    figure.savefig(path, dpi=DPI, format="png", metadata={"Software": None})


def comparison_figure(
    rows: Sequence[GainRow], path: Path, *, title: str, caption: str = "", unit: str = "points"
) -> None:
    """Published gain against measured gain per pair, with 95 % intervals; one dot and whisker per method.

    Args:
        rows: in the order in which pairs should stand, from the top; pooled rows are moved to the bottom.
        path: PNG to write.
        title: heading; what follows a line break in it stands below in plain type.
        caption: sentences under the figure; wrapped here.
        unit: of the gains, for the axis.
    """
    with house_style():
        methods = list(dict.fromkeys(row["method"] for row in rows))
        pairs = list(dict.fromkeys(row["pair"] for row in rows if not row["pooled"]))
        pooled = list(dict.fromkeys(row["pair"] for row in rows if row["pooled"]))
        names = {pair: textwrap.wrap(pair, LABEL_LETTERS) for pair in (*pairs, *pooled)}
        deepest = max(map(len, names.values()), default=1)
        # Height of a pair; a line of a wrapped label needs somewhat more than half of it.
        step = max(1.0, 0.42 * len(methods), 0.58 * deepest)
        at = {pair: i * step for i, pair in enumerate(pairs)}
        at |= {pair: (len(pairs) + 0.35 + i) * step for i, pair in enumerate(pooled)}
        lines, heading = textwrap.wrap(caption, 96), wrapped(title, 58)
        plot_height = 0.37 * (step * max(1.0, len(at) + 0.35 * bool(pooled)))
        signs = legend_handles(methods, any(not math.isnan(row["published"]) for row in rows))
        columns = legend_columns(signs)
        above = 0.57 + HEADING_LINE * len(heading) + 0.24 * (math.ceil(len(signs) / columns) - 1)
        below = 0.75 + 0.21 * len(lines)
        figure = canvas(7.2, plot_height + below + above)
        height = plot_height + below + above
        left = 0.04 + 0.0155 * max((len(line) for name in names.values() for line in name), default=4)
        axes = figure.add_axes((left, below / height, 0.97 - left, plot_height / height))

        for row in rows:
            i = methods.index(row["method"])
            offset = (i - (len(methods) - 1) / 2) * 0.62 * step / max(2, len(methods))
            draw_gain(axes, at[row["pair"]] + offset, row, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        for i, pair in enumerate(pairs):
            if i % 2 == 0:
                axes.axhspan(at[pair] - step / 2, at[pair] + step / 2, color="#f4f4f4", linewidth=0, zorder=0)
        if pooled:
            axes.axhline((len(pairs) - 1 + 0.675) * step, color=GREY, linewidth=0.8)
        axes.axvline(0, color=INK, linewidth=1.0, zorder=1)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_yticks(list(at.values()), ["\n".join(names[pair]) for pair in at], fontweight="normal")
        for label in axes.get_yticklabels()[len(pairs) :]:
            label.set_fontweight("bold")
        axes.set_ylim((max(at.values(), default=0) + step / 2), -step / 2)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"Gain over the baseline ({unit})")
        write_texts(figure, heading, lines)
        figure.legend(
            handles=signs,
            loc="upper left",
            bbox_to_anchor=(0.02, 1 - (0.2 + HEADING_LINE * len(heading)) / height),
            ncols=columns,
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.3,
            handletextpad=0.4,
        )
        if all(math.isnan(row["measured"]) for row in rows):
            axes.text(0.98, 0.5, "nothing measured yet", transform=axes.transAxes, ha="right", va="center", color=GREY)
        save(figure, path)


def draw_gain(axes: Axes, y: float, row: GainRow, colour: str, marker: str) -> None:
    """One line: interval as a whisker, measured gain filled, published gain hollow, joined by a thin line."""
    measured, published = row["measured"], row["published"]
    if not math.isnan(measured) and not math.isnan(published):
        axes.plot([measured, published], [y, y], color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
    if not math.isnan(published):
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.7}
        axes.plot(published, y, "D", markersize=9.5, zorder=5, **hollow)
    if not math.isnan(row["low"]):
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
    if not math.isnan(measured):
        size = 9 if row["pooled"] else 7.5
        axes.plot(
            measured, y, marker, markersize=size, color=colour, markeredgecolor="white", markeredgewidth=0.7, zorder=4
        )


def legend_handles(methods: Sequence[str], published: bool) -> list[Line2D]:
    """A filled sign with whisker per method, and the hollow sign of published gains."""
    shared: dict[str, Any] = {"markersize": 8, "linewidth": 2.2}
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], label=method, **shared)
        for i, method in enumerate(methods)
    ]
    if published:
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
        handles.append(Line2D([], [], linestyle="none", marker="D", markersize=9, label="published", **hollow))
    return handles


def legend_columns(handles: Sequence[Line2D], width: float = 6.9) -> int:
    """In how many columns, at most four, a legend is no wider than so many inches."""
    # A letter is about .095 inches wide, a sign with its gaps .75; columns are filled from the top.
    widths = [0.75 + 0.095 * len(str(handle.get_label())) for handle in handles]
    for columns in range(min(4, len(widths)), 1, -1):
        if sum(max(column) for column in np.array_split(widths, columns)) <= width:
            return columns
    return 1


class RankRow(TypedDict):
    """The mean rank of one method over pairs; 1 is the best. low and high are nan where there is no interval.

    own: whether it is the paper's own method, which is drawn in the first colour.
    """

    method: str
    rank: float
    low: float
    high: float
    own: bool


def ranking_figure(rows: Sequence[RankRow], path: Path, *, title: str, caption: str = "") -> None:
    """Mean ranks with 95 % intervals, one line per method, the best at the top.

    Args:
        rows: in any order.
        path: PNG to write.
        title: heading; what follows a line break in it stands below in plain type.
        caption: sentences under the figure; wrapped here.
    """
    with house_style():
        ordered = sorted(rows, key=lambda row: (row["rank"], row["method"]))
        lines, heading = textwrap.wrap(caption, 96), wrapped(title, 58)
        plot_height = 0.36 * max(2, len(ordered))
        below, above = 0.75 + 0.21 * len(lines), 0.25 + 0.24 * len(heading)
        height = plot_height + below + above
        figure = canvas(7.2, height)
        left = 0.05 + 0.0165 * max((len(row["method"]) for row in ordered), default=4)
        axes = figure.add_axes((left, below / height, 0.88 - left, plot_height / height))
        for y, row in enumerate(ordered):
            colour = COLOURS[0] if row["own"] else "#4d4d4d"
            if y % 2 == 0:
                axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
            if not math.isnan(row["low"]):
                axes.plot(
                    [row["low"], row["high"]], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt", zorder=3
                )
            axes.plot(row["rank"], y, "D" if row["own"] else "o", markersize=9, color=colour, zorder=4)
            axes.text(
                1.02, y, f"{row['rank']:.1f}", transform=axes.get_yaxis_transform(), va="center_baseline",
                fontweight="bold" if row["own"] else "normal",
            )  # fmt: skip
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_yticks(range(len(ordered)), [row["method"] for row in ordered])
        for label, row in zip(axes.get_yticklabels(), ordered, strict=True):
            label.set_fontweight("bold" if row["own"] else "normal")
        axes.set_ylim(max(1, len(ordered)) - 0.5, -0.5)
        axes.set_xlim(0.5, max(1, len(ordered)) + 0.5)
        axes.set_xticks(range(1, len(ordered) + 1))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if not rows:
            axes.text(0.5, 0.5, "nothing measured on every pair yet", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xlabel("Mean rank over pairs (1 is the best)")
        write_texts(figure, heading, lines)
        save(figure, path)


class MapCell(TypedDict):
    """One cell of the map of gains. gain: points, nan where there is none. sure: its interval excludes 0.

    refused: whether the method cannot serve the pair (hatched), rather than not having been measured (empty).
    """

    pair: str
    method: str
    gain: float
    sure: bool
    refused: bool


def gain_map(cells: Sequence[MapCell], path: Path, *, title: str, caption: str = "") -> None:
    """Gains of every method (columns) on every pair (rows), as numbers on a diverging scale centred at 0.

    Blue is a gain, red a loss. The scale ends at the 90th percentile of sizes, so that one collapsed method does not
    bleach the rest; there is no bar beside it, as every value is printed.

    Args:
        cells: pairs and methods stand in the order of their first cell; pairs wrap at "→".
        path: PNG to write.
        title: heading; what follows a line break in it stands below in plain type.
        caption: sentences under the figure; wrapped here.
    """
    with house_style():
        pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
        methods = list(dict.fromkeys(cell["method"] for cell in cells))
        gains = np.full((max(1, len(pairs)), max(1, len(methods))), math.nan)
        for cell in cells:
            gains[pairs.index(cell["pair"]), methods.index(cell["method"])] = cell["gain"]
        sizes = np.abs(gains[np.isfinite(gains)])
        limit = max(0.1, float(np.percentile(sizes, 90))) if len(sizes) else 1.0

        labels = [pair.replace(" → ", " →\n") for pair in pairs]
        lines, heading = textwrap.wrap(caption, 96), wrapped(title, 58)
        tilted = max(map(len, methods), default=0) * len(methods) > 50
        plot_height, below = 0.47 * max(2, len(pairs)), 0.25 + 0.21 * len(lines)
        above = 0.5 + 0.24 * len(heading) + (0.35 if tilted else 0.0)
        height = plot_height + below + above
        figure = canvas(7.2, height)
        left = 0.03 + 0.0148 * max((len(line) for label in labels for line in label.split("\n")), default=4)
        names = [method.replace(", ", ",\n") for method in methods]
        # The last tilted label leans out of the axes by most of its length.
        right = 0.97 - (0.007 * max(map(len, names[-1].split("\n"))) if tilted else 0.0)
        axes = figure.add_axes((left, below / height, right - left, plot_height / height))
        ends = MAP_RANGE * limit
        axes.pcolormesh(gains.clip(-limit, limit), cmap=MAP, vmin=-ends, vmax=ends, edgecolors="white", linewidth=1.5)
        for cell in cells:
            draw_map_cell(axes, methods.index(cell["method"]), pairs.index(cell["pair"]), cell)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        angle: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if tilted else {}
        axes.set_xticks([x + 0.5 for x in range(len(names))], names, linespacing=1.0, **angle)
        axes.set_yticks([y + 0.5 for y in range(len(pairs))], labels, linespacing=1.05)
        axes.set_ylim(gains.shape[0], 0)
        axes.spines[["left", "bottom"]].set_visible(False)
        write_texts(figure, heading, lines)
        save(figure, path)


def draw_map_cell(axes: Axes, x: int, y: int, cell: MapCell) -> None:
    """The number of one cell, or why there is none."""
    centred: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
    if not math.isnan(cell["gain"]):
        number = f"{cell['gain']:+.0f}" if abs(cell["gain"]) >= 9.95 else f"{cell['gain']:+.1f}"
        weight = "bold" if cell["sure"] else "normal"
        axes.text(x + 0.5, y + 0.5, number.replace("-", "−"), fontsize=11.5, fontweight=weight, **centred)
        return
    hatch: dict[str, Any] = {"hatch": "////", "edgecolor": "#c4c4c4"} if cell["refused"] else {}
    axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor="#f7f7f7", linewidth=0, **hatch))
    if cell["refused"]:
        box = {"facecolor": "#f7f7f7", "edgecolor": "none", "pad": 1.5}
        axes.text(x + 0.5, y + 0.5, "–", bbox=box, **centred)


@dataclass(frozen=True)
class Heading:
    """Lines at the top of a figure: first the bold ones, then those in plain type.

    Its length is the number of bold lines that would be as high, rounded up.
    """

    bold: Sequence[str]
    plain: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.bold) + math.ceil(PLAIN_LINE / HEADING_LINE * len(self.plain))


def wrapped(title: str, letters: int) -> Heading:
    """A title as a heading, with so many bold letters in a line; what follows a line break in it is plain."""
    bold, _, plain = title.partition("\n")
    return Heading(textwrap.wrap(bold, letters), textwrap.wrap(plain, int(PLAIN_LETTERS * letters)))


def write_texts(figure: Figure, heading: Heading, lines: Sequence[str]) -> None:
    """Heading at the top and caption at the bottom."""
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.12 / height, "\n".join(heading.bold), fontsize=14, fontweight="bold", va="top")
    below = 0.12 + HEADING_LINE * len(heading.bold)
    figure.text(0.02, 1 - below / height, "\n".join(heading.plain), fontsize=10.5, va="top", linespacing=1.3)
    figure.text(0.02, 0.1 / height, "\n".join(lines), fontsize=10.5, va="bottom", linespacing=1.3, color="#4d4d4d")


def save_vector(figure: Figure, path: Path) -> None:
    """Write an SVG without date, equal byte for byte for equal figures."""
    with mpl.rc_context({"svg.hashsalt": "hkd"}):
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
