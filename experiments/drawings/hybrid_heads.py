"""Attention by layer of Hybrid Distill's teachers, students and decoders (arXiv:2306.15876, Figures 1 to 3 and 5 to 9).

A panel per model and a dot per head, as in the paper; the heads' mean as a bar, and a randomly initialised model in
grey, without which a distance says little. Distances are in px of a 224 px image, whatever the models see, so that
scales compare. Late layers are the two before the last, of which the method takes relations (10 and 11 of 12).
Shapes: L layers, h heads.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.figure_files import Number, csv_text
from analysis.looking.attention import Layer
from analysis.looking.model import untrained
from analysis.measure import attended, measure
from analysis.measures.attention_distance import AttentionDistance
from analysis.measures.attention_nmi import AttentionNMI
from analysis.measures.parts.heads import HeadResult
from analysis.style import COLOURS, GREY, GRID, INK, Lettering, sheet, tint
from experiments.drawings.base import NAMES, Finished
from hkd.methods.parts.token_decoder import TokenDecoder
from hkd.models.tap_model import TapModel
from hkd.training.step import TapStep

MEASURED = 1000  # images
SIDE = 224  # px of the images in which distances are told
BATCH = 32
ACROSS = 4  # panels in a line
Kind = Literal["teacher", "student", "decoder", "hybrid"]
SIGNS: dict[Kind, tuple[str, str]] = {  # colour, marker
    "teacher": (INK, "o"),
    "student": (COLOURS[0], "s"),
    "decoder": (COLOURS[1], "^"),
    "hybrid": (COLOURS[2], "D"),
}
MEASURES = {  # heading, axis
    "distance": ("Head distance", f"head distance (px of {SIDE})"),
    "nmi": ("NMI of attention", "NMI of attention"),
}


@dataclass(frozen=True)
class Attention:
    """Head distance (px of a 224 px image) and NMI of one model, by layer."""

    distance: HeadResult
    nmi: HeadResult


@dataclass(frozen=True)
class Panel:
    """One model in a figure.

    name: in files, without slashes. label: for people. kind: gives colour and marker. seeds: by seed; a model that is
    not trained here (a teacher) has one, 0.
    """

    name: str
    label: str
    kind: Kind
    seeds: Mapping[int, Attention]

    @property
    def shown(self) -> Attention:
        """The first seed's, which is drawn."""
        return next(iter(self.seeds.values()))


def draw(finished: Finished, folder: Path) -> None:
    """Head distance and NMI by layer of a table's students (all seeds), their decoders and their teachers."""
    plan, images, panels = finished.plan, finished.images(MEASURED), []
    for slug, (run, role) in finished.teachers().items():
        teacher = finished.step(run).method.teachers[role]
        measured = {0: attention_of(teacher, images)}
        panels.append(Panel(slug, f"{NAMES.get(slug, slug)} (teacher)", "teacher", measured))
    for cell, runs in finished.cells.items():
        students, decoders = {}, {}
        for run in runs:
            step = finished.step(run)
            students[run.spec.seed] = attention_of(step.student, images)
            if (decoder := decoder_attention(step, images)) is not None:
                decoders[run.spec.seed] = decoder
        label, name = finished.label(cell), cell[2]
        panels.append(Panel(name, label, "hybrid" if name.startswith("hybrid") else "student", students))
        if decoders:
            panels.append(Panel(f"{name}_decoder", f"the decoder of {label}", "decoder", decoders))
    random = attention_of(untrained(next(iter(finished.runs.values())).spec.student), images)
    shown = [*panels, Panel("random", "random weights", "teacher", {0: random})]
    seeds = len(plan.seeds)
    caption = (
        f"Profile {plan.profile}; {len(images.rows)} test images; a dot per head, bars: their mean; grey band: random "
        f"weights. {'The first of ' + str(seeds) + ' seeds is' if seeds > 1 else 'One seed is'} drawn."
    )
    for name, (heading, _) in MEASURES.items():
        title = f"{plan.title.partition(':')[0]}: {heading} by layer\n{plan.here}"
        heads_figure(panels, random, name, folder / name, title=title, caption=caption)
    (folder / "layers.csv").write_text(layer_table(shown), encoding="utf-8")
    finished.leave(folder, images, arrays=arrays(shown), numbers=numbers(shown))


# -- what is measured ----------------------------------------------------------------------------------------------


def of_224(distance: HeadResult, side: int) -> HeadResult:
    """Distances in px of a 224 px image, from patches of an image of another side."""
    return replace(distance, patch=distance.patch * SIDE / side).pixels()


def attention_of(model: TapModel, images: Iterable[Tensor]) -> Attention:
    """Measure a model's own layers.

    Args:
        model: a plain transformer.
        images: batches, RGB in [0, 1].

    Raises:
        Refused: a model without attention over a grid of patches.
    """
    found = measure(model, images, ("attention_distance", "attention_nmi"), batch_size=BATCH)
    return Attention(of_224(found["attention_distance"], model.card.image_size), found["attention_nmi"])


@torch.no_grad()
def decoder_attention(step: TapStep, images: Iterable[Tensor]) -> Attention | None:
    """The same of the layers of a student's decoder, which sees all of its tokens; None without such a decoder."""
    method: Any = step.method
    if not isinstance(method.head, TokenDecoder):
        return None
    head: Any = method.head
    side, grid = step.student.card.image_size, (method.grid, method.grid)
    layers = [
        Layer(f"decoder.blocks.{index}.attn", block.attn, grid, head.prefix, patch=side / method.grid)
        for index, block in enumerate(head.blocks)
    ]
    distance, nmi = AttentionDistance(), AttentionNMI()
    step.eval()
    for batch in images:
        for part in batch.split(BATCH):
            tokens = step.student(part).tokens
            with attended((distance, nmi), layers, part, (side, side)):
                head(tokens)
    return Attention(of_224(distance.compute(), side), nmi.compute())


# -- numbers -------------------------------------------------------------------------------------------------------


def places(depth: int) -> dict[str, list[int]]:
    """Indices of the layers that a number is a mean over, by name: every layer from 1, `late`, `last` and `all`."""
    late = list(range(max(0, depth - 3), depth - 1)) or [0]
    return {str(i + 1): [i] for i in range(depth)} | {"late": late, "last": [depth - 1], "all": list(range(depth))}


def series(attention: Attention) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is told of each layer, with the half widths of the intervals: both measures and their spread over heads."""
    found = {}
    for name in MEASURES:
        result: HeadResult = getattr(attention, name)
        found[name] = result.layer, result.layer_half
        found[f"{name}_spread"] = result.spread, result.spread_half
    return found


def numbers(panels: Sequence[Panel]) -> dict[str, Number]:
    """`<measure>/<model>/<layers>` of every model.

    The interval of a mean over layers is the mean of their intervals' widths: what it is at most, as the layers see the
    same images.
    """
    found = {}
    for panel in panels:
        by_seed = {seed: series(attention) for seed, attention in panel.seeds.items()}
        trained = panel.kind != "teacher"
        for name, (values, halves) in series(panel.shown).items():
            for place, layers in places(len(values)).items():
                seeds = {seed: float(each[name][0][layers].mean()) for seed, each in by_seed.items()} if trained else {}
                found[f"{name}/{panel.name}/{place}"] = Number(
                    float(values[layers].mean()), float(halves[layers].mean()), panel.shown.nmi.images, seeds
                )
    return found


def arrays(panels: Sequence[Panel]) -> dict[str, dict[str, np.ndarray]]:
    """All that was measured of the models that are drawn, by `<measure>/<model>`, then by field."""
    return {f"{name}/{panel.name}": getattr(panel.shown, name).arrays() for panel in panels for name in MEASURES}


def layer_table(panels: Sequence[Panel]) -> str:
    """CSV: one line per model and layer, means over heads and spreads of the seed that is drawn."""
    names = list(series(panels[0].shown))
    lines = []
    for panel in panels:
        found = series(panel.shown)
        for layer in range(len(found["nmi"][0])):
            lines.append([panel.label, layer + 1, *(float(each[layer]) for name in names for each in found[name])])
    return csv_text(("model", "layer", *(column for name in names for column in (name, f"{name}_half"))), lines)


# -- the picture ---------------------------------------------------------------------------------------------------


def heads_figure(
    panels: Sequence[Panel], random: Attention, name: str, path: Path, *, title: str, caption: str
) -> None:
    """A panel per model: layers across, a dot per head, their mean as a bar, the random control in grey.

    Args:
        panels: in reading order.
        random: the control; a band from the least to the most of its heads, with their mean, as its layers are alike.
        name: of the measure.
        path, title, caption: see `sheet`.
    """
    columns = min(ACROSS, len(panels))
    rows = math.ceil(len(panels) / columns)
    wide, high, left, gap = 1.62, 1.5, 0.72, 0.14
    labels = ["\n".join(textwrap.wrap(panel.label, 17)) for panel in panels]
    lines = 0.19 * max(label.count("\n") + 1 for label in labels)  # inches of a label
    pitch = high + 0.5 + lines
    width = max(left + columns * (wide + gap) + 0.06, 5.2)
    texts: dict[str, Any] = {"title": title, "caption": caption, "lettering": Lettering(heading_line=0.25)}
    with sheet(path, width, rows * pitch - lines, above=0.24 + lines, below=0.3, **texts) as page:
        control = getattr(random, name).mean
        band = float(np.nanmin(control)), float(np.nanmax(control))
        drawn = [*band, *(end for panel in panels for end in extremes(getattr(panel.shown, name).mean))]
        room = 0.07 * (max(drawn) - min(drawn) or 1.0)
        # Distances lie far from zero and close together; NMI is a share, of which zero says something.
        limits = (min(drawn) - room if name == "distance" else 0.0, max(drawn) + room)
        for i, (panel, label) in enumerate(zip(panels, labels, strict=True)):
            x, y = left + (i % columns) * (wide + gap), page.top - (i // columns) * pitch - high
            axes = page.axes(x, y, wide, high)
            draw_heads(axes, getattr(panel.shown, name), SIGNS[panel.kind])
            axes.axhspan(*band, color=tint(GREY, 0.55), linewidth=0, zorder=0)
            axes.axhline(float(np.nanmean(control)), color=GREY, linewidth=1.0, zorder=1)
            axes.set_ylim(*limits)
            axes.set_title(label, fontsize=12, pad=5)
            if i % columns:
                axes.tick_params(labelleft=False)
            if i + columns >= len(panels):
                axes.set_xlabel("layer", labelpad=2)
        middle = page.top - (rows * pitch - 0.5 - lines) / 2
        page.text(0.07, middle, MEASURES[name][1], rotation=90, va="center", ha="left", fontsize=13)


def extremes(values: np.ndarray) -> tuple[float, float]:
    """Least and most."""
    return float(np.nanmin(values)), float(np.nanmax(values))


def draw_heads(axes: Axes, result: HeadResult, sign: tuple[str, str]) -> None:
    """Dots of one model's heads by layer."""
    colour, marker = sign
    layers = np.arange(1, len(result.layer) + 1)
    for head in range(result.mean.shape[1]):
        axes.plot(layers, result.mean[:, head], marker, color=colour, markersize=4.6, alpha=0.6, markeredgewidth=0)
    axes.hlines(result.layer, layers - 0.34, layers + 0.34, color=colour, linewidth=2.4, zorder=3)
    axes.set_xlim(0.4, len(layers) + 0.6)
    if len(layers) <= 6:  # of few layers the locator would mark halves
        axes.set_xticks(layers)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
