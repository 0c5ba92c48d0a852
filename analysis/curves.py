"""Curves of two runs over epochs, beside one another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from analysis.style import COLOURS, sheet

LINES: Any = ("-", "--")  # a second sign beside the colour


def curves_figure(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: Path,
    *,
    names: tuple[str, str],
    title: str,
    caption: str,
) -> None:
    """Curves of two runs over epochs, a panel each.

    Args:
        curves: axis label -> values of the first and of the second run, one per epoch from 1; either may be empty.
        path: PNG to write, and an SVG beside it.
        names: of the two runs.
        title, caption: as for `sheet`.
    """
    wide, tall, left = 2.6, 2.0, 0.85
    width = max(2, len(curves)) * (left + wide) + 0.15
    with sheet(path, width, tall, title=title, caption=caption, above=0.7, below=0.65) as page:
        for i, (label, sides) in enumerate(curves.items()):
            axes = page.axes(left + i * (left + wide), page.bottom, wide, tall)
            for values, colour, line in zip(sides, COLOURS, LINES, strict=False):
                axes.plot(range(1, len(values) + 1), values, line, color=colour, linewidth=1.8)
            axes.set_xlabel("epoch")
            axes.set_ylabel(label)
            axes.tick_params(labelsize=10)
        handles = [
            Line2D([], [], color=colour, linestyle=line, label=name)
            for name, colour, line in zip(names, COLOURS, LINES, strict=False)
        ]
        page.figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0.06, page.top / page.height), fontsize=11
        )
