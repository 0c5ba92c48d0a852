"""Pictures of diagnostics: one number of many models or methods, and shares of loss terms in the gradient."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.figure_files import save_both
from analysis.figures import COLOURS, GREY, INK, canvas, house_style, wrapped, write_texts

GAP = 0.32  # inches between panels: room for the numbers at the ends of two axes


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
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        left = 0.25 + 0.098 * max(map(len, lines), default=4)
        wide = max(1.35, (7.2 - left) / len(panels) - GAP)
        width, plot = left + len(panels) * (wide + GAP), 0.3 * max(2, len(lines))
        sentences, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        labels = ["\n".join(textwrap.wrap(label, max(10, int(wide / 0.092)))) for label in panels]
        above, below = 0.18 + 0.26 * len(heading), 0.45 + 0.2 * (1 + max(label.count("\n") for label in labels))
        below += 0.2 * len(sentences)
        height = above + plot + below
        figure = canvas(width, height)
        for i, (label, dots) in enumerate(zip(labels, panels.values(), strict=True)):
            place = ((left + i * (wide + GAP)) / width, below / height, wide / width, plot / height)
            axes = figure.add_axes(place)
            for y, name in enumerate(lines):
                if y % 2 == 0:
                    axes.axhspan(y - 0.5, y + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
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
            axes.set_yticks(range(len(lines)), list(lines) if i == 0 else [])
            axes.set_ylim(max(1, len(lines)) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.locator_params(axis="x", nbins=3 if wide < 3 else 7)
            axes.tick_params(axis="x", labelsize=11)
            axes.set_xlabel(label)
        write_texts(figure, heading, sentences)
        save_both(figure, path)


def shares_figure(shares: Mapping[str, Mapping[str, float]], path: Path, *, title: str, caption: str) -> None:
    """A bar per method, divided among the terms of its loss.

    Args:
        shares: method -> term -> share in [0, 1].
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        width, plot = 7.2, 0.42 * max(2, len(shares))
        sentences, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        left = 0.25 + 0.098 * max(map(len, shares), default=4)
        above, below = 0.18 + 0.26 * len(heading), 0.65 + 0.2 * len(sentences)
        height = above + plot + below
        figure = canvas(width, height)
        axes = figure.add_axes((left / width, below / height, (width - left - 0.2) / width, plot / height))
        for y, terms in enumerate(shares.values()):
            at = 0.0
            for i, (term, share) in enumerate(terms.items()):
                axes.barh(y, share, left=at, height=0.78, color=COLOURS[i % 6], edgecolor="white", linewidth=1.2)
                if share * (width - left) > 0.085 * len(term) + 0.1:
                    ink = "white" if i % 6 < 3 else INK  # the first three colours are dark
                    axes.text(at + share / 2, y, term, ha="center", va="center_baseline", fontsize=11, color=ink)
                at += share
        axes.set_yticks(range(len(shares)), list(shares))
        axes.set_ylim(max(1, len(shares)) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("share of the gradient's norm")
        write_texts(figure, heading, sentences)
        save_both(figure, path)
