"""Figures in one house style: colours that the colour-blind can tell apart, text that survives half width.

Functions take plain rows (dicts or a frame) and know nothing of plans or records. PNGs are equal byte for byte for
equal inputs and an equal matplotlib.
"""

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe & Ito 2008, "Color Universal Design"; the marker is a second sign beside the colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("s", "o", "^", "v", "P", "X", "*")
GREY, INK = "#8c8c8c", "#262626"
DPI = 200

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
        title: heading.
        caption: sentences under the figure; wrapped here.
        unit: of the gains, for the axis.
    """
    with house_style():
        methods = list(dict.fromkeys(row["method"] for row in rows))
        pairs = list(dict.fromkeys(row["pair"] for row in rows if not row["pooled"]))
        pooled = list(dict.fromkeys(row["pair"] for row in rows if row["pooled"]))
        step = max(1.0, 0.42 * len(methods))  # height of a pair, in units of one line of text
        at = {pair: i * step for i, pair in enumerate(pairs)}
        at |= {pair: (len(pairs) + 0.35 + i) * step for i, pair in enumerate(pooled)}
        lines, heading = textwrap.wrap(caption, 96), textwrap.wrap(title, 58)
        plot_height = 0.37 * (step * max(1.0, len(at) + 0.35 * bool(pooled)))
        below, above = 0.75 + 0.21 * len(lines), 0.57 + 0.24 * len(heading)
        figure = canvas(7.2, plot_height + below + above)
        height = plot_height + below + above
        left = min(0.5, 0.04 + 0.0155 * max(map(len, at), default=4))  # room for the longest label
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
        axes.set_yticks(list(at.values()), list(at), fontweight="normal")
        for label in axes.get_yticklabels()[len(pairs) :]:
            label.set_fontweight("bold")
        axes.set_ylim((max(at.values(), default=0) + step / 2), -step / 2)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"Gain over the baseline ({unit})")
        figure.text(0.02, 1 - 0.12 / height, "\n".join(heading), fontsize=14, fontweight="bold", va="top")
        figure.legend(
            handles=legend_handles(methods, any(not math.isnan(row["published"]) for row in rows)),
            loc="upper left",
            bbox_to_anchor=(0.02, 1 - (0.2 + 0.24 * len(heading)) / height),
            ncols=max(1, min(4, len(methods) + 1)),
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.3,
            handletextpad=0.4,
        )
        if all(math.isnan(row["measured"]) for row in rows):
            axes.text(0.98, 0.5, "nothing measured yet", transform=axes.transAxes, ha="right", va="center", color=GREY)
        figure.text(0.02, 0.1 / height, "\n".join(lines), fontsize=10.5, va="bottom", linespacing=1.3, color="#4d4d4d")
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
