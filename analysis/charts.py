"""Charts of plain numbers: gains beside published ones, ranks, maps of gains, dots with intervals, shares.

Functions take rows (dicts or a frame) and know nothing of plans or records. In all of them `title` is the heading (what
follows a line break in it stands below in plain type) and `caption` the sentences under the chart, wrapped here.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.style import (
    COLOURS,
    EMPTY,
    GREY,
    GRID,
    HATCH,
    HEADING_LINE,
    INK,
    LETTERING,
    MARKERS,
    SOFT,
    WIDTH,
    ZEBRA,
    Lettering,
    bare,
    sheet,
    tint,
    zebra,
)

TABLE = Lettering(heading_line=HEADING_LINE, caption_line=0.21)
LINE, PAGE = 0.37, 24  # inches of a line of gains, and how many fill a page
PANEL_TITLE, PANEL_GAP = 0.32, 0.1  # inches above a panel that has a title, and between panels
FEW_SEEDS = 5  # that are drawn one by one
LABEL_LETTERS, MORE_LETTERS = 30, 36  # of a line's label before it is wrapped; where lines are of one method
MAP, MAP_RANGE = "RdBu", 1.9  # of gain maps: the scale ends where ink is still read, at 1 / MAP_RANGE of the colours
NUMBER_SHARE = 25  # points of lettering to an inch of a cell's width, in which "+6.7" stands in bold
MAP_LIMIT = 10  # points at which the scale ends, in all maps
MOST_ACROSS = 13  # methods side by side; their numbers would touch
MOST_LETTERS = 30  # of a line of a pair's name; the rest goes below
MOST_TICKS = 16  # ranks with a number below them; two digits would touch
GAP = 0.32  # inches between panels of dots: room for the numbers at the ends of two axes


# -- gains of a table ----------------------------------------------------------------------------------------------


class GainRow(TypedDict):
    """One method on one pair. Gains in points; nan where there is none.

    pair: label of the line in the figure. pooled: whether it is a mean over pairs (drawn apart, at the bottom).
    panel: what the line stands under, which says over what its gain is; lines of one panel are together.
    seeds: the gains of single seeds, drawn where they are few. verdict: word at the right edge, "" for none.
    """

    pair: str
    method: str
    published: float
    measured: float
    low: float
    high: float
    pooled: bool
    panel: str
    seeds: Sequence[float]
    verdict: str


@dataclass(frozen=True)
class Panel:
    """A panel of a comparison: its lines by pair, from the top, and the place of each. height: in units of a line."""

    title: str
    rows: Sequence[GainRow]
    names: Mapping[str, Sequence[str]]  # pair -> lines of its label
    at: Mapping[str, float]
    pooled: int  # pairs at the bottom that are means
    step: float
    height: float


def comparison_figure(
    rows: Sequence[GainRow], path: Path, *, title: str, caption: str = "", unit: str = "points"
) -> None:
    """Published gain against measured gain per pair, with 95 % intervals; one dot and whisker per method.

    Panels share one range. A figure of more than `PAGE` lines goes on in further files, NAME_2.png and so on.

    Args:
        rows: in the order in which pairs should stand, from the top; pooled rows are moved to the bottom.
        path: PNG to write.
        title, caption: see the head of this file.
        unit: of the gains, for the axis.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    ends = [end for row in rows for end in span(row) if not math.isnan(end)] or [0.0]
    margin = 0.04 * (max(0.0, *ends) - min(0.0, *ends) or 1.0)
    limits = (min(0.0, *ends) - margin, max(0.0, *ends) + margin)
    pages = pages_of([panel_of(title, group, len(methods)) for title, group in by_panel(rows).items()])
    for number, panels in enumerate(pages, 1):
        where = path if number == 1 else path.with_stem(f"{path.stem}_{number}")
        head = title if len(pages) == 1 else title.replace("\n", f" ({number} of {len(pages)})\n", 1)
        page_of_gains(panels, methods, limits, where, title=head, caption=caption, unit=unit)


def span(row: GainRow) -> list[float]:
    """Every value that a line shows."""
    return [row["published"], row["measured"], row["low"], row["high"], *drawn_seeds(row)]


def drawn_seeds(row: GainRow) -> Sequence[float]:
    """The gains of single seeds, where they are few enough to tell more than their interval."""
    return row["seeds"] if len(row["seeds"]) <= FEW_SEEDS else ()


def by_panel(rows: Sequence[GainRow]) -> dict[str, list[GainRow]]:
    """Rows by panel, in the order of their first; without any, one panel without a title."""
    found: dict[str, list[GainRow]] = {}
    for row in rows:
        found.setdefault(row["panel"], []).append(row)
    return found or {"": []}


def panel_of(title: str, rows: Sequence[GainRow], methods: int) -> Panel:
    """Places of the lines of a panel; a pair is higher where several methods, or a label of several lines, need it."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows if not row["pooled"]))
    pooled = list(dict.fromkeys(row["pair"] for row in rows if row["pooled"]))
    letters = LABEL_LETTERS if methods > 1 else MORE_LETTERS
    names = {pair: textwrap.wrap(pair, letters) for pair in (*pairs, *pooled)}
    here = len({row["method"] for row in rows})
    # A line of a wrapped label needs somewhat more than half of a line of the figure.
    step = max(0.8 if methods == 1 else 1.0, 0.48 * here, 0.58 * max(map(len, names.values()), default=1))
    at = {pair: i * step for i, pair in enumerate(pairs)}
    at |= {pair: (len(pairs) + 0.35 + i) * step for i, pair in enumerate(pooled)}
    return Panel(title, rows, names, at, len(pooled), step, step * max(1.0, len(at) + 0.35 * bool(pooled)))


def pages_of(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Panels on pages of at most `PAGE` lines, if a panel has no more."""
    pages: list[list[Panel]] = [[]]
    for panel in panels:
        if pages[-1] and sum(each.height for each in pages[-1]) + panel.height > PAGE:
            pages.append([])
        pages[-1].append(panel)
    return pages


def page_of_gains(
    panels: Sequence[Panel], methods: Sequence[str], limits: tuple[float, float], path: Path, **texts: Any
) -> None:
    """One picture of gains: panels below one another on one range, the scale under the last."""
    rows = [row for panel in panels for row in panel.rows]
    signs = legend_handles(methods, any(not math.isnan(row["published"]) for row in rows))
    columns = legend_columns(signs)
    titled = PANEL_TITLE * sum(bool(panel.title) for panel in panels)
    plot = LINE * sum(panel.height for panel in panels) + titled + PANEL_GAP * (len(panels) - 1)
    unit = texts.pop("unit")
    texts |= {"lettering": TABLE, "vector": False}
    texts |= {"above": 0.57 + 0.24 * (math.ceil(len(signs) / columns) - 1), "below": 0.75}
    with sheet(path, WIDTH, plot, **texts) as page:
        longest = max((len(line) for panel in panels for name in panel.names.values() for line in name), default=4)
        left = 0.04 + 0.0155 * longest
        words = max((len(row["verdict"]) for row in rows), default=0)
        right = 0.97 - (0.03 + 0.0118 * words if words else 0.0)
        top = page.top
        for panel in panels:
            top -= PANEL_TITLE if panel.title else 0.0
            height = LINE * panel.height
            axes = page.axes(left * WIDTH, top - height, (right - left) * WIDTH, height)
            draw_panel(axes, panel, methods, limits)
            if panel.title:
                page.text(0.02 * WIDTH, top + 0.07, panel.title, fontsize=12, fontweight="bold", va="bottom")
            if panel is not panels[-1]:
                axes.tick_params(axis="x", labelbottom=False, length=0)
                axes.spines["bottom"].set_visible(False)
            top -= height + PANEL_GAP
        axes.set_xlabel(f"Gain ({unit})")
        page.figure.legend(
            handles=signs,
            loc="upper left",
            bbox_to_anchor=(0.02, 1 - (0.2 + HEADING_LINE * len(page.heading)) / page.height),
            ncols=columns,
            borderaxespad=0,
            borderpad=0,
            columnspacing=1.3,
            handletextpad=0.4,
        )
        if all(math.isnan(row["measured"]) for row in rows):
            axes.text(0.98, 0.5, "nothing measured yet", transform=axes.transAxes, ha="right", va="center", color=GREY)


def draw_panel(axes: Axes, panel: Panel, methods: Sequence[str], limits: tuple[float, float]) -> None:
    """The lines of a panel: zebra, zero, signs, and verdicts at the right edge."""
    here = [method for method in methods if any(row["method"] == method for row in panel.rows)]
    for row in panel.rows:
        i = methods.index(row["method"])
        place = here.index(row["method"]) - (len(here) - 1) / 2
        y = panel.at[row["pair"]] + place * 0.62 * panel.step / max(2, len(here))
        draw_gain(axes, y, row, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
        if row["verdict"]:
            ink: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)] if len(methods) > 1 else SOFT}
            ink["fontsize"] = 10.5 if len(here) < 3 else 9
            where = axes.get_yaxis_transform()
            axes.text(1.02, y, row["verdict"], transform=where, va="center_baseline", clip_on=False, **ink)
    single = len(panel.at) - panel.pooled
    for pair in list(panel.at)[:single:2]:
        middle = panel.at[pair]
        axes.axhspan(middle - panel.step / 2, middle + panel.step / 2, color=ZEBRA, linewidth=0, zorder=0)
    if panel.pooled:
        axes.axhline((single - 1 + 0.675) * panel.step, color=GREY, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=1.0, zorder=1)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    labels = ["\n".join(panel.names[pair]) for pair in panel.at]
    axes.set_yticks(list(panel.at.values()), labels, fontweight="normal")
    for label in axes.get_yticklabels()[single:]:
        label.set_fontweight("bold")
    axes.set_ylim((max(panel.at.values(), default=0) + panel.step / 2), -panel.step / 2)
    axes.set_xlim(*limits)
    bare(axes)


def draw_gain(axes: Axes, y: float, row: GainRow, colour: str, marker: str) -> None:
    """One line: interval as a whisker, measured gain filled, seeds as dots, published gain hollow, joined by dots."""
    measured, published = row["measured"], row["published"]
    if not math.isnan(measured) and not math.isnan(published):
        axes.plot([measured, published], [y, y], color=colour, linewidth=0.9, linestyle=(0, (1, 2)), zorder=2)
    if not math.isnan(published):
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": colour, "markeredgewidth": 1.7}
        axes.plot(published, y, "D", markersize=9.5, color="white", markeredgewidth=0, zorder=2.5)
        axes.plot(published, y, "D", markersize=9.5, zorder=5, **hollow)
    if not math.isnan(row["low"]):
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
    seeds = drawn_seeds(row)
    if seeds:
        pale: dict[str, Any] = {"color": tint(colour, 0.45), "markeredgecolor": "white", "markeredgewidth": 0.4}
        axes.plot(seeds, [y] * len(seeds), "o", markersize=4.2, zorder=3.5, **pale)
    if not math.isnan(measured):
        size = 9 if row["pooled"] else 7.5
        axes.plot(
            measured, y, marker, markersize=size, color=colour, markeredgecolor="white", markeredgewidth=0.7, zorder=4
        )


class SweepPoint(TypedDict):
    """A gain at one value of what is varied. In points; nan where there is none."""

    at: float
    published: float
    measured: float
    low: float
    high: float
    seeds: Sequence[float]


def sweep_figure(
    series: Mapping[str, Sequence[SweepPoint]], path: Path, *, name: str, unit: str, title: str, caption: str
) -> None:
    """Gains over the values of one option, a panel for each series on one scale; the baseline is 0.

    Args:
        series: by name.
        path: PNG to write.
        name: of the option, for the horizontal axis. unit: of the vertical one.
        title, caption: see the head of this file.
    """
    left, gap, high = 0.85, 0.25, 2.7
    wide = (WIDTH - left - 0.15 - gap * (len(series) - 1)) / len(series)
    points = [point for each in series.values() for point in each]
    ends = [end for point in points for end in (point["published"], point["measured"], point["low"], point["high"])]
    ends = [0.0, *(end for end in ends if not math.isnan(end))]
    room = 0.06 * (max(ends) - min(ends) or 1.0)
    texts: dict[str, Any] = {"title": title, "caption": caption, "lettering": TABLE, "vector": False}
    with sheet(path, WIDTH, high, above=0.75, below=0.7, **texts) as page:
        for i, (label, each) in enumerate(series.items()):
            axes = page.axes(left + i * (wide + gap), page.bottom, wide, high)
            ordered = sorted(each, key=lambda point: point["at"])
            where = [point["at"] for point in ordered]
            axes.axhline(0, color=INK, linewidth=1.0, zorder=1)
            axes.plot(where, [point["measured"] for point in ordered], color=COLOURS[0], linewidth=1.2, zorder=2)
            for point in ordered:
                draw_sweep_point(axes, point)
            axes.set_ylim(min(ends) - room, max(ends) + room)
            axes.set_xticks(where)
            axes.margins(x=0.1)
            axes.grid(axis="y", color=GRID, linewidth=0.6)
            axes.set_title(label, fontsize=12.5)
            axes.set_xlabel(name)
            axes.tick_params(labelleft=i == 0)
            if i == 0:
                axes.set_ylabel(f"gain ({unit})")
        page.figure.legend(
            handles=legend_handles(["measured"], any(not math.isnan(point["published"]) for point in points)),
            loc="upper left", bbox_to_anchor=(0.02, 1 - (0.2 + HEADING_LINE * len(page.heading)) / page.height),
            ncols=2,
            borderaxespad=0, borderpad=0, columnspacing=1.3, handletextpad=0.4,
        )  # fmt: skip


def draw_sweep_point(axes: Axes, point: SweepPoint) -> None:
    """Measured filled with its whisker and seeds, published hollow."""
    at = point["at"]
    if not math.isnan(point["low"]):
        axes.plot([at, at], [point["low"], point["high"]], color=COLOURS[0], linewidth=2.2, solid_capstyle="butt")
    if len(point["seeds"]) <= FEW_SEEDS:
        pale: dict[str, Any] = {"color": tint(COLOURS[0], 0.45), "markeredgecolor": "white", "markeredgewidth": 0.4}
        axes.plot([at] * len(point["seeds"]), point["seeds"], "o", markersize=4.2, zorder=3.5, **pale)
    axes.plot(at, point["measured"], MARKERS[0], color=COLOURS[0], markersize=7.5, markeredgecolor="white", zorder=4)
    if not math.isnan(point["published"]):
        hollow: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
        axes.plot(at, point["published"], "D", markersize=9.5, zorder=5, **hollow)


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


# -- ranks ---------------------------------------------------------------------------------------------------------


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
        title, caption: see the head of this file.
    """
    ordered = sorted(rows, key=lambda row: (row["rank"], row["method"]))
    plot = 0.36 * max(2, len(ordered))
    texts: dict[str, Any] = {"title": title, "caption": caption, "lettering": TABLE, "vector": False}
    with sheet(path, WIDTH, plot, above=0.25, below=0.75, **texts) as page:
        left = 0.05 + 0.0165 * max((len(row["method"]) for row in ordered), default=4)
        axes = page.axes(left * WIDTH, page.bottom, (0.88 - left) * WIDTH, plot)
        zebra(axes, [row["method"] for row in ordered])
        for y, row in enumerate(ordered):
            colour, weight = (COLOURS[0], "bold") if row["own"] else (SOFT, "normal")
            if not math.isnan(row["low"]):
                axes.plot(
                    [row["low"], row["high"]], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt", zorder=3
                )
            axes.plot(row["rank"], y, "D" if row["own"] else "o", markersize=9, color=colour, zorder=4)
            place = axes.get_yaxis_transform()
            axes.text(1.02, y, f"{row['rank']:.1f}", transform=place, va="center_baseline", fontweight=weight)
            axes.get_yticklabels()[y].set_fontweight(weight)
        axes.set_xlim(0.5, max(1, len(ordered)) + 0.5)
        axes.set_xticks(range(1, len(ordered) + 1, -(-max(1, len(ordered)) // MOST_TICKS)))
        if not rows:
            axes.text(0.5, 0.5, "nothing measured on every pair yet", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xlabel("Mean rank over pairs (1 is the best)")


# -- a map of gains ------------------------------------------------------------------------------------------------


class MapCell(TypedDict):
    """One cell of the map of gains. gain: points, nan where there is none. sure: its interval excludes 0.

    refused: whether the method cannot serve the pair (hatched), rather than not having been measured (empty).
    untold: whether the set-up could not have shown a gain there (in italics), whatever the number is.
    """

    pair: str
    method: str
    gain: float
    sure: bool
    refused: bool
    untold: NotRequired[bool]


def gain_map(cells: Sequence[MapCell], path: Path, *, title: str, caption: str = "") -> None:
    """Gains of every method (columns) on every pair (rows), as numbers on a diverging scale centred at 0.

    More than `MOST_ACROSS` methods stand in rows, and pairs in columns. Blue is a gain, red a loss. All maps have one
    scale, which ends at `MAP_LIMIT` points, with its key below.

    Args:
        cells: pairs and methods stand in the order of their first cell; pairs wrap at "→".
        path: PNG to write.
        title, caption: see the head of this file.
    """
    pairs = list(dict.fromkeys(cell["pair"] for cell in cells))
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    turned = len(methods) > MOST_ACROSS
    down, across = (methods, pairs) if turned else (pairs, methods)
    gains = np.full((max(1, len(down)), max(1, len(across))), math.nan)
    places = [(methods.index(cell["method"]), pairs.index(cell["pair"]), cell) for cell in cells]
    if turned:
        places = [(y, x, cell) for x, y, cell in places]
    for x, y, cell in places:
        gains[y, x] = cell["gain"]
    halves = [pair.replace(" → ", " →\n").split("\n") for pair in pairs]
    folded = ["\n".join(line for half in both for line in textwrap.wrap(half, MOST_LETTERS)) for both in halves]
    tilted = turned or max(map(len, methods), default=0) * len(methods) > 50
    level = methods if tilted else [each.replace(", ", ",\n") for each in methods]
    labels, names = (methods, folded) if turned else (folded, level)
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    height = 0.062 * longest if turned else max(0.35, 0.053 * longest) if tilted else 0.0
    lines = max((label.count("\n") + 1 for label in labels), default=1)
    plot = (0.31 if turned else 0.235 * max(2, lines)) * max(2, len(down))
    texts: dict[str, Any] = {"title": title, "caption": caption, "lettering": TABLE, "vector": False}
    with sheet(path, WIDTH, plot, above=0.5 + height, below=0.85, **texts) as page:
        left = 0.03 + 0.0148 * max((len(line) for label in labels for line in label.split("\n")), default=4)
        # Tilted labels lean to the right of their columns, the last ones out of the axes.
        lean = 0.006 if turned else 0.0115
        ends_at = [1.0 - lean * max(map(len, name.split("\n"))) for name in names] if tilted else []
        wide = [(end - left) * len(names) / (x + 0.5) for x, end in enumerate(ends_at)]
        right = left + min([0.97 - left, *wide])
        axes = page.axes(left * WIDTH, page.bottom, (right - left) * WIDTH, plot)
        size = min(9.5 if turned else 11.5, NUMBER_SHARE * (right - left) * WIDTH / max(1, len(across)))
        ends = MAP_RANGE * MAP_LIMIT
        shown = gains.clip(-MAP_LIMIT, MAP_LIMIT)
        axes.pcolormesh(shown, cmap=MAP, vmin=-ends, vmax=ends, edgecolors="white", linewidth=1.5)
        for x, y, cell in places:
            draw_map_cell(axes, x, y, cell, size)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        angle: dict[str, Any] = {"rotation": 35, "ha": "left", "rotation_mode": "anchor"} if tilted else {}
        angle |= {"rotation": 60, "fontsize": 10} if turned else {}
        axes.set_xticks([x + 0.5 for x in range(len(names))], names, linespacing=1.0, **angle)
        axes.set_yticks([y + 0.5 for y in range(len(labels))], labels, linespacing=1.05)
        axes.set_ylim(gains.shape[0], 0)
        axes.spines[["left", "bottom"]].set_visible(False)
        draw_key(page.axes(left * WIDTH, page.bottom - 0.42, min(2.6, (right - left) * WIDTH), 0.14))


def draw_key(axes: Axes) -> None:
    """The scale of a map of gains."""
    steps = np.linspace(-MAP_LIMIT, MAP_LIMIT, 200)
    ends = MAP_RANGE * MAP_LIMIT
    box = (-MAP_LIMIT, MAP_LIMIT, 0.0, 1.0)
    axes.imshow(steps[None], aspect="auto", cmap=MAP, vmin=-ends, vmax=ends, extent=box)
    axes.set_yticks([])
    words = [f"≤ −{MAP_LIMIT}", f"−{MAP_LIMIT // 2}", "0", f"+{MAP_LIMIT // 2}", f"≥ +{MAP_LIMIT}"]
    axes.set_xticks(np.linspace(-MAP_LIMIT, MAP_LIMIT, 5), words, fontsize=10)
    axes.tick_params(axis="x", length=2)
    axes.text(1.06, 0.5, "points", transform=axes.transAxes, fontsize=10, va="center")
    axes.spines[:].set_visible(False)


def draw_map_cell(axes: Axes, x: int, y: int, cell: MapCell, size: float) -> None:
    """The number of one cell in points of this size, or why there is none."""
    centred: dict[str, Any] = {"ha": "center", "va": "center_baseline"}
    if not math.isnan(cell["gain"]):
        number = f"{cell['gain']:+.0f}" if abs(cell["gain"]) >= 9.95 else f"{cell['gain']:+.1f}"
        look: dict[str, Any] = {"fontweight": "bold" if cell["sure"] else "normal"}
        if cell.get("untold"):
            look = {"fontstyle": "italic"}
        axes.text(x + 0.5, y + 0.5, number.replace("-", "−"), fontsize=size, **look, **centred)
        return
    hatch: dict[str, Any] = {"hatch": "////", "edgecolor": HATCH} if cell["refused"] else {}
    axes.add_patch(Rectangle((x + 0.03, y + 0.03), 0.94, 0.94, facecolor=EMPTY, linewidth=0, **hatch))
    if cell["refused"]:
        axes.text(x + 0.5, y + 0.5, "–", bbox={"facecolor": EMPTY, "edgecolor": "none", "pad": 1.5}, **centred)


# -- numbers of several models or methods --------------------------------------------------------------------------


@dataclass(frozen=True)
class Dot:
    """A number with the ends of its interval, nan where there are none."""

    value: float
    low: float = math.nan
    high: float = math.nan


def dots_figure(
    lines: Sequence[str], panels: Mapping[str, Mapping[str, Dot]], path: Path, *, title: str, caption: str
) -> None:
    """A line per model and a panel per number, each with its own scale.

    Args:
        lines: names, from the top.
        panels: axis label -> line -> number; lines without one are marked by a dash.
        path: PNG to write, and an SVG beside it.
        title, caption: see the head of this file.
    """
    left = 0.25 + 0.098 * max(map(len, lines), default=4)
    wide = max(1.35, (WIDTH - left) / len(panels) - GAP)
    width, plot = left + len(panels) * (wide + GAP), 0.3 * max(2, len(lines))
    labels = ["\n".join(textwrap.wrap(label, max(10, int(wide / 0.092)))) for label in panels]
    below = 0.45 + 0.2 * (1 + max(label.count("\n") for label in labels))
    with sheet(path, width, plot, title=title, caption=caption, above=0.18, below=below) as page:
        for i, (label, dots) in enumerate(zip(labels, panels.values(), strict=True)):
            axes = page.axes(left + i * (wide + GAP), page.bottom, wide, plot)
            zebra(axes, lines)
            if i:
                axes.set_yticklabels([])
            for y, name in enumerate(lines):
                dot = dots.get(name)
                if dot is None:
                    axes.text(0.5, y, "–", transform=axes.get_yaxis_transform(), ha="center", va="center", color=GREY)
                    continue
                if not math.isnan(dot.low):
                    axes.plot([dot.low, dot.high], [y, y], color=COLOURS[0], linewidth=2.4, solid_capstyle="butt")
                axes.plot(dot.value, y, "o", color=COLOURS[0], markersize=6.5, zorder=4, clip_on=False)
            ends = [end for dot in dots.values() for end in (dot.value, dot.low, dot.high) if not math.isnan(end)]
            if ends and min(ends) < 0 < max(ends):
                axes.axvline(0, color=GREY, linewidth=0.9)
            if ends and min(ends) >= 0:
                axes.set_xlim(left=0)
            axes.locator_params(axis="x", nbins=4 if wide < 3 else 7)
            axes.tick_params(axis="x", labelsize=11)
            axes.set_xlabel(label)


def shares_figure(
    shares: Mapping[str, Mapping[str, float]],
    path: Path,
    *,
    kinds: Mapping[str, str],
    label: str,
    title: str,
    caption: str,
) -> None:
    """A bar per method, divided among its parts; a colour says of what kind a part is, its name stands in it or below.

    Args:
        shares: method -> part -> share in [0, 1].
        kinds: part -> kind, for every part; colours are given in the order of the kinds, of which there are at most 6.
        path: PNG to write, and an SVG beside it.
        label: what is shared, for the axis.
        title, caption: see the head of this file.
    """
    order = {kind: i for i, kind in enumerate(dict.fromkeys(kinds.values()))}
    used = [kind for kind in order if any(kinds[part] == kind for parts in shares.values() for part in parts)]
    plot, left = 0.5 * max(2, len(shares)), 0.25 + 0.098 * max(map(len, shares), default=4)
    with sheet(path, WIDTH, plot, title=title, caption=caption, above=0.5, below=0.65) as page:
        axes = page.axes(left, page.bottom, WIDTH - left - 0.2, plot)
        for y, parts in enumerate(shares.values()):
            at, small = 0.0, []
            # Parts of a kind stand together, in the order of the kinds.
            for part, share in sorted(parts.items(), key=lambda item: order[kinds[item[0]]]):
                i = order[kinds[part]]
                bar: dict[str, Any] = {"color": COLOURS[i], "edgecolor": "white", "linewidth": 1.2}
                axes.barh(y - 0.08, share, left=at, height=0.6, **bar)
                if share * (WIDTH - left) > 0.085 * len(part) + 0.1:
                    ink = "white" if i < 3 else INK  # the first three colours are dark
                    place: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 11}
                    axes.text(at + share / 2, y - 0.08, part, color=ink, **place)
                else:
                    small.append(f"{part} {100 * share:.0f} %")
                at += share
            if small:
                axes.text(1.0, y + 0.36, ", ".join(small), ha="right", va="center", fontsize=8.5, color=SOFT)
        axes.set_yticks(range(len(shares)), list(shares))
        axes.set_ylim(max(1, len(shares)) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        bare(axes)
        axes.set_xlabel(label)
        handles = [Rectangle((0, 0), 1, 1, color=COLOURS[order[kind]], label=kind) for kind in used]
        top = 1 - (0.2 + LETTERING.heading_line * len(page.heading)) / page.height
        page.figure.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0.02, top), ncols=len(handles), borderaxespad=0,
            borderpad=0, columnspacing=1.3, handletextpad=0.5, handlelength=1.2,
        )  # fmt: skip
