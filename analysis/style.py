"""The house style of every picture: palette, type, sheets with a heading and a caption, and files of equal bytes.

Colours can be told apart by the colour-blind, text survives half width, and lengths are in inches. Files are equal
byte for byte for equal inputs and an equal matplotlib.
"""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from hkd.files import atomic_write

# Okabe & Ito 2008, "Color Universal Design"; the marker is a second sign beside the colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("s", "o", "^", "v", "P", "X", "*")
INK, SOFT, GREY = "#262626", "#4d4d4d", "#8c8c8c"  # text, text that stands back, lines beside what is measured
GRID, HATCH, ZEBRA, EMPTY, WALL = "#dddddd", "#c4c4c4", "#f4f4f4", "#f7f7f7", "#fafafa"  # from dark to light
ON_DARK = "#e8e8e8"  # text on dark ground
DEPTH = "viridis"  # of maps and layers: equal steps look equal, also without colour vision
DASHES: Any = (0, (4, 2))  # of lines that are no measurement: a control, a bound

WIDTH = 7.2  # of a picture that fills a page
TILE = 0.92  # of one picture among others
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


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made and saved inside have the house style; outside, matplotlib's settings stay as they were."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def tint(colour: str, share: float) -> tuple[float, ...]:
    """A colour, lightened by a share of the way to white."""
    return tuple(value + (1 - value) * share for value in to_rgb(colour))


def canvas(width: float, height: float) -> Figure:
    """An empty figure, free of pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or SVG without date and version in it, so that equal figures are equal bytes."""
    with mpl.rc_context({"svg.hashsalt": "hkd"}), atomic_write(path) as temporary:
        if path.suffix == ".svg":
            figure.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None})
        else:
            figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


# -- sheets: a heading, panels, a caption --------------------------------------------------------------------------


class Lettering(NamedTuple):
    """Room for text: from one line of a heading and of a caption to the next."""

    heading_line: float = 0.26
    caption_line: float = 0.2


LETTERING = Lettering()
HEADING_LINE, PLAIN_LINE = 0.24, 0.2  # from one line of a heading to the next, bold and plain
BOLD_SIZE, PLAIN_SIZE = 14.0, 10.5  # of letters, in points
MARGIN = 0.02  # of the width, on either side of a line of text


@dataclass(frozen=True)
class Heading:
    """Lines at the top of a figure: first the bold ones, then those in plain type.

    Its length is the number of bold lines that would be as high, rounded up.
    """

    bold: Sequence[str]
    plain: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.bold) + math.ceil(PLAIN_LINE / HEADING_LINE * len(self.plain))


def wrapped(title: str, width: float) -> Heading:
    """A title as the heading of a figure of that width in inches; what follows a line break in it is plain."""
    bold, _, plain = title.partition("\n")
    return Heading(lines_of(bold, width, BOLD_SIZE, "bold"), lines_of(plain, width, PLAIN_SIZE))


def lines_of(text: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """A text in lines that a figure of that width in inches has room for, as its letters are drawn."""
    room = (1 - 4 * MARGIN) * width * 72  # hinting widens letters of few pixels by up to two in a hundred
    style = FontProperties(family=STYLE["font.family"], weight=weight, size=size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and TextPath((0, 0), longer, prop=style).get_extents().x1 <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def write_texts(figure: Figure, heading: Heading, lines: Sequence[str]) -> None:
    """Heading at the top and caption at the bottom."""
    height = figure.get_figheight()
    figure.text(MARGIN, 1 - 0.12 / height, "\n".join(heading.bold), fontsize=BOLD_SIZE, fontweight="bold", va="top")
    below = 0.12 + HEADING_LINE * len(heading.bold)
    figure.text(MARGIN, 1 - below / height, "\n".join(heading.plain), fontsize=PLAIN_SIZE, va="top", linespacing=1.3)
    figure.text(MARGIN, 0.1 / height, "\n".join(lines), fontsize=PLAIN_SIZE, va="bottom", linespacing=1.3, color=SOFT)


@dataclass(frozen=True)
class Sheet:
    """A figure whose panels are placed in inches from its lower left corner.

    bottom, top: between them is the room for panels. heading: its height in lines, as for `Heading`.
    """

    figure: Figure
    width: float
    height: float
    bottom: float
    top: float
    heading: Heading

    def axes(self, left: float, bottom: float, width: float, height: float, **options: Any) -> Any:
        """A panel (matplotlib's Axes, or Axes3D with projection="3d")."""
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, **options)

    def text(self, left: float, bottom: float, text: str, **options: Any) -> None:
        """Text at a place."""
        self.figure.text(left / self.width, bottom / self.height, text, **options)


@contextmanager
def sheet(
    path: Path,
    width: float,
    plot: float,
    *,
    title: str,
    caption: str,
    above: float,
    below: float,
    lettering: Lettering = LETTERING,
    vector: bool = True,
) -> Iterator[Sheet]:
    """A sheet in the house style, which is written to files on leaving.

    Args:
        path: PNG to write, and an SVG beside it.
        width: of the figure.
        plot: height of the room for panels.
        title: heading; what follows a line break in it stands below in plain type.
        caption: sentences under the figure; wrapped here.
        above, below: room between the panels and the heading, and between them and the caption.
        lettering: room for the text itself.
        vector: False: no SVG.
    """
    heading, lines = wrapped(title, width), lines_of(caption, width, PLAIN_SIZE)
    above, below = above + lettering.heading_line * len(heading), below + lettering.caption_line * len(lines)
    height = above + plot + below
    with house_style():
        figure = canvas(width, height)
        yield Sheet(figure, width, height, below, height - above, heading)
        write_texts(figure, heading, lines)
        for suffix in (".png", ".svg") if vector else (".png",):
            save(figure, path.with_suffix(suffix))


def zebra(axes: Axes, names: Sequence[str]) -> None:
    """Named rows from the top, every other one shaded, on grid lines across; the values' axis is the horizontal one."""
    for y in range(0, len(names), 2):
        axes.axhspan(y - 0.5, y + 0.5, color=ZEBRA, linewidth=0, zorder=0)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    bare(axes)


def bare(axes: Axes) -> None:
    """Names beside the panel without a line or ticks between them and it."""
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


# -- pictures of models: one panel each, or one tile per image -----------------------------------------------------


def panels(names: Sequence[str], height: float, *, above: float = 0.0, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per model, two in a line, and its axes with models' names above them.

    Args:
        names: of the models.
        height: of a panel, with its name and axis.
        above: room at the top that is left free.
        below: more room, for a scale.
    """
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    whole = rows * height + above + below
    figure = canvas(WIDTH, whole)
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - above / whole))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=False, sharey=False).flatten().tolist()
    for unused in axes[len(names) :]:
        unused.remove()
    for name, panel in zip(names, axes, strict=False):
        panel.set_title("\n".join(textwrap.wrap(name, 62 // columns, break_on_hyphens=False)), fontsize=12)
    return figure, axes[: len(names)]


def label_left(axes: Sequence[Axes], label: str) -> None:
    """Name the vertical axis of the first panel in each line of `panels`."""
    for panel in axes[:: min(2, len(axes))]:
        panel.set_ylabel(label)


def top_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend in one line above the panels."""
    figure.legend(
        handles=list(handles), loc="upper center", bbox_to_anchor=(0.5, 1), ncols=len(handles), columnspacing=1.4,
        handletextpad=0.5, borderaxespad=0.2,
    )  # fmt: skip


def blank(axes: Axes) -> None:
    """Without ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def mark(axes: Axes, left: float, top: float, side: float, line: float) -> None:
    """Frame a square cell of a picture, in the picture's units, by a line of so many points."""
    for colour, thickness in (("white", line + 1.2), (COLOURS[1], line)):
        axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=thickness))


def picture_grid(columns: Mapping[str, Sequence[Any]], path: Path, *, title: str, caption: str) -> None:
    """Columns of pictures under their headings, one line per image.

    Args:
        columns: heading -> pictures, [H, W, 3] colours in [0, 1] or [H, W] in [0, 1] as grey.
        path: PNG to write.
        title, caption: see `sheet`.
    """
    count, width = len(next(iter(columns.values()))), 0.1 + TILE * len(columns) + 0.1
    names = ["\n".join(textwrap.wrap(name, int(TILE / 0.085))) for name in columns]
    above = 0.3 + 0.17 * max(name.count("\n") + 1 for name in names)
    with sheet(path, width, TILE * count, title=title, caption=caption, above=above, below=0.25, vector=False) as page:
        for x, (name, pictures) in enumerate(zip(names, columns.values(), strict=True)):
            for y, picture in enumerate(pictures):
                left, bottom = 0.1 + TILE * x, page.top - TILE * (y + 1)
                axes = page.axes(left + 0.03, bottom + 0.03, TILE - 0.06, TILE - 0.06)
                shown = np.asarray(picture)
                axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
                blank(axes)
                axes.spines[:].set(visible=True, color=GRID, linewidth=0.6)  # white on white would have no edge
                if y == 0:
                    axes.set_title(name, fontsize=10, pad=4)
