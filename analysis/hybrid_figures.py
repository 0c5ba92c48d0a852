"""Attention by layer of Hybrid Distill's teachers, students and decoders (arXiv:2306.15876, Figures 1 to 3 and 5 to 9).

A panel per model and a dot per head, as in the paper; the heads' mean as a bar, and a randomly initialised model in
grey, without which a distance says little. Distances are in px of a 224 px image, whatever the models see, so that
scales compare. Late layers are the two before the last, of which the method takes relations (10 and 11 of 12).
Shapes: B images, S side in px, L layers, h heads, H W grid.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.accumulate import HeadResult
from analysis.attention import Layer, Seen, attention_images, observed, query_box
from analysis.attention_distance import AttentionDistance, attention_distance
from analysis.attention_nmi import AttentionNMI, attention_nmi
from analysis.figure_files import Number, csv_text, save_both
from analysis.figures import COLOURS, GREY, INK, canvas, house_style, wrapped, write_texts
from analysis.measure import measure
from analysis.model import untrained
from hkd.methods.parts.token_decoder import TokenDecoder
from hkd.models.tap_model import TapModel
from hkd.spec import ModelCard
from hkd.training.step import TapStep

SIDE = 224  # px of the images in which distances are told
BATCH = 32
Kind = Literal["teacher", "student", "decoder", "hybrid"]
SIGNS: dict[Kind, tuple[str, str]] = {  # colour, marker
    "teacher": (INK, "o"),
    "student": (COLOURS[0], "s"),
    "decoder": (COLOURS[1], "^"),
    "hybrid": (COLOURS[2], "D"),
}
AXES = {"distance": f"head distance (px of {SIDE})", "nmi": "NMI of attention"}
ACROSS = 4  # panels in a line


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


def told(distance: HeadResult, side: int) -> HeadResult:
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
    found: dict[str, Any] = measure(model, images, ("distance", "nmi"), batch_size=BATCH)
    return Attention(told(found["distance"], model.card.image_size), found["nmi"])


def control(card: ModelCard, images: Iterable[Tensor], seed: int = 0) -> Attention:
    """The same of a randomly initialised model."""
    return attention_of(untrained(card, seed), images)


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
    distances, nmis = AttentionDistance(), AttentionNMI()
    step.eval()
    for batch in images:
        for part in batch.split(BATCH):
            values: dict[str, dict[int, list[Tensor]]] = {"distance": {}, "nmi": {}}

            def receive(seen: Seen, values: dict[str, dict[int, list[Tensor]]] = values) -> None:
                values["distance"].setdefault(seen.layer, []).append(attention_distance(seen.maps, grid))
                values["nmi"].setdefault(seen.layer, []).append(attention_nmi(seen.maps))

            tokens = step.student(part).tokens
            with observed(layers, len(part), receive):
                head(tokens)
            for index, layer in enumerate(layers):
                found = torch.cat(values["distance"][index])
                distances.add(index, found, name=layer.name, patch=layer.patch)
                nmis.add(index, torch.cat(values["nmi"][index]), name=layer.name)
    return Attention(told(distances.compute(), side), nmis.compute())


# -- numbers -------------------------------------------------------------------------------------------------------


def places(depth: int) -> dict[str, list[int]]:
    """Indices of the layers that a number is a mean over, by name: every layer from 1, `late`, `last` and `all`."""
    late = list(range(max(0, depth - 3), depth - 1)) or [0]
    return {str(i + 1): [i] for i in range(depth)} | {"late": late, "last": [depth - 1], "all": list(range(depth))}


def series(attention: Attention) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is told of each layer, with the half widths of the intervals: both measures and their spread over heads."""
    found = {}
    for name, result in (("distance", attention.distance), ("nmi", attention.nmi)):
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


def arrays(panels: Sequence[Panel]) -> dict[str, np.ndarray]:
    """All that was measured of the models that are drawn, by `<measure>/<model>/<field>`."""
    return {
        f"{measure}/{panel.name}/{field}": array
        for panel in panels
        for measure in ("distance", "nmi")
        for field, array in getattr(panel.shown, measure).arrays().items()
    }


def layer_table(panels: Sequence[Panel]) -> str:
    """CSV: one line per model and layer, means over heads and spreads of the seed that is drawn."""
    names = list(series(panels[0].shown))
    lines = []
    for panel in panels:
        found = series(panel.shown)
        for layer in range(len(found["nmi"][0])):
            lines.append([panel.label, layer + 1, *(float(each[layer]) for name in names for each in found[name])])
    return csv_text(("model", "layer", *(column for name in names for column in (name, f"{name}_half"))), lines)


# -- pictures ------------------------------------------------------------------------------------------------------


def heads_figure(
    panels: Sequence[Panel],
    random: Attention,
    measure: Literal["distance", "nmi"],
    path: Path,
    *,
    title: str,
    caption: str,
) -> None:
    """A panel per model: layers across, a dot per head, their mean as a bar, the random control in grey.

    Args:
        panels: in reading order.
        random: the control; its heads' mean over layers is a line, as its layers are alike.
        measure: which one.
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        columns = min(ACROSS, len(panels))
        rows = math.ceil(len(panels) / columns)
        wide, high, left, gap = 1.62, 1.5, 0.72, 0.14
        labels = ["\n".join(textwrap.wrap(panel.label, 17)) for panel in panels]
        name_lines = max(label.count("\n") + 1 for label in labels)
        pitch = high + 0.5 + 0.19 * name_lines
        width = max(left + columns * (wide + gap) + 0.06, 5.2)
        lines, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        above, below = 0.24 + 0.25 * len(heading) + 0.19 * name_lines, 0.3 + 0.2 * len(lines)
        height = above + rows * pitch - 0.19 * name_lines + below
        figure = canvas(width, height)
        level = float(getattr(random, measure).layer.mean())
        values = [getattr(panel.shown, measure).mean for panel in panels]
        top = max([level, *(float(np.nanmax(value)) for value in values)]) * 1.07
        for i, (panel, label) in enumerate(zip(panels, labels, strict=True)):
            x, y = left + (i % columns) * (wide + gap), height - above - (i // columns) * pitch - high
            axes = figure.add_axes((x / width, y / height, wide / width, high / height))
            draw_heads(axes, getattr(panel.shown, measure), SIGNS[panel.kind])
            axes.axhline(level, color=GREY, linewidth=1.3, linestyle=(0, (4, 2)), zorder=1)
            axes.set_ylim(0, top)
            axes.set_title(label, fontsize=12, pad=5)
            if i % columns:
                axes.tick_params(labelleft=False)
            if i + columns >= len(panels):
                axes.set_xlabel("layer", labelpad=2)
        middle = height - above - (rows * pitch - 0.5 - 0.19 * name_lines) / 2
        figure.text(0.07 / width, middle / height, AXES[measure], rotation=90, va="center", ha="left", fontsize=13)
        write_texts(figure, heading, lines)
        save_both(figure, path)


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
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)


@torch.no_grad()
def query_maps(
    model: TapModel, images: Float[Tensor, "B 3 S S"], query: tuple[float, float]
) -> dict[int, Float[np.ndarray, "B H W"]]:
    """What a patch attends to in the last late layer but one and in the last (10 and 12 of 12), mean over heads.

    Args:
        model: a plain transformer.
        images: RGB in [0, 1].
        query: (row, column) of the patch as shares of the grid.

    Returns:
        By layer, counted from 1; maps sum to one.
    """
    net: Any = model.net
    depth, grid = len(net.blocks), net.patch_embed.grid_size
    cell = (int(query[0] * grid[0]), int(query[1] * grid[1]))
    model.eval()
    blocks = sorted({max(0, depth - 3), depth - 1})
    found = attention_images(net, model.prepare(images), cell, blocks)
    return {block + 1: maps.mean(dim=1).double().numpy() for block, maps in found.items()}


def maps_figure(
    images: Float[Tensor, "B 3 S S"],
    maps: Mapping[str, Mapping[int, Float[np.ndarray, "B H W"]]],
    query: tuple[float, float],
    path: Path,
    *,
    title: str,
    caption: str,
) -> None:
    """Images, and what the marked patch of each attends to, by model and layer; one colour range for all.

    Args:
        images: RGB in [0, 1].
        maps: by model's label and layer, from `query_maps`.
        query: as there.
        path: of PNG and SVG, without suffix.
        title, caption: heading (plain after a line break), and the sentences below.
    """
    with house_style():
        shown = [(label, layer, found) for label, layers in maps.items() for layer, found in layers.items()]
        tile, side = 0.92, images.shape[-1]
        width = max(0.15 + tile * (len(shown) + 1), 5.2)
        lines, heading = textwrap.wrap(caption, int(width / 0.078)), wrapped(title, int(width / 0.128))
        names = ["\n".join(textwrap.wrap(label, 2 * int(tile / 0.09))) for label in maps]
        above = 0.5 + 0.25 * len(heading) + 0.19 * max(name.count("\n") + 1 for name in names)
        below = 0.82 + 0.2 * len(lines)
        height = above + tile * len(images) + below
        figure = canvas(width, height)
        # 1 is what attention that is the same everywhere gives a patch.
        scaled = [found * found[0].size for _, _, found in shown]
        norm = Normalize(0, float(np.quantile(np.concatenate([each.ravel() for each in scaled]), 0.995)))

        def place(x: int, y: int) -> Axes:
            left, bottom = 0.06 + tile * x, height - above - tile * (y + 1)
            box = ((left + 0.03) / width, (bottom + 0.03) / height, (tile - 0.06) / width, (tile - 0.06) / height)
            axes = figure.add_axes(box)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            return axes

        for y, image in enumerate(images.clamp(0, 1).movedim(1, -1).numpy()):
            for x, picture in enumerate([image, *(each[y] for each in scaled)]):
                axes = place(x, y)
                axes.imshow(picture, cmap="viridis", norm=norm, extent=(0, side, side, 0), interpolation="nearest")
                grid = scaled[0].shape[1:]
                cell = (int(query[0] * grid[0]), int(query[1] * grid[1]))
                left, top, wide, high = query_box(cell, side / grid[0])
                for colour, thick in (("white", 2.6), (COLOURS[1], 1.4)):
                    axes.add_patch(Rectangle((left, top), wide, high, fill=False, edgecolor=colour, linewidth=thick))
                if y == 0:
                    axes.set_title("image" if x == 0 else f"layer {shown[x - 1][1]}", fontsize=11, pad=4)
        at = 1
        for name, layers in zip(names, maps.values(), strict=True):
            middle = 0.06 + tile * (at + len(layers) / 2)
            figure.text(middle / width, (height - above + 0.24) / height, name, ha="center", va="bottom", fontsize=12)
            at += len(layers)
        bar_axes = figure.add_axes((0.3 / width, (below - 0.3) / height, (width - 0.6) / width, 0.11 / height))
        bar = figure.colorbar(ScalarMappable(norm, "viridis"), cax=bar_axes, orientation="horizontal", extend="max")
        bar.set_label("attention of the marked patch (1: the same everywhere)", fontsize=11, labelpad=1)
        bar.ax.tick_params(labelsize=10, pad=2)
        write_texts(figure, heading, lines)
        save_both(figure, path)
