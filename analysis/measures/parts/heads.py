"""Measures with one value per image and head of every layer: their result, its tables and its figure.

Shapes: B images, w windows per image, L layers, h heads, N patches.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from analysis.looking.attention import Layer, Seen
from analysis.measures.base import Lines, Result, line
from analysis.measures.parts.layers import LayerMeasure, by_layer
from analysis.measures.parts.moments import Moments
from analysis.style import COLOURS, DASHES, GREY, GRID, INK, label_left, panels, top_legend


@dataclass(frozen=True)
class HeadResult(Result):
    """A measure of attention by layer and head; every `_half` is the half width of a 95 % interval over images.

    names: of the L layers, in order. mean, mean_half: per head, [L, h]; nan where a layer has fewer heads than h.
    layer, layer_half: mean over a layer's heads, [L]. spread, spread_half: largest minus smallest head, [L].
    std, std_half: standard deviation over heads (divided by their number), [L]. images: how many.
    patch: pixels that one unit of length stands for, [L]; ones where a measure has no unit of length.
    uniform: what attention that is the same everywhere has, [L]; None where that is 0.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    mean_half: np.ndarray
    layer: np.ndarray
    layer_half: np.ndarray
    spread: np.ndarray
    spread_half: np.ndarray
    std: np.ndarray
    std_half: np.ndarray
    images: int
    patch: np.ndarray
    uniform: np.ndarray | None = None

    def pixels(self) -> "HeadResult":
        """The same in pixels of the model's input instead of patches."""
        scaled = {
            item.name: (getattr(self, item.name).T * self.patch).T
            for item in fields(self)
            if item.name not in ("names", "images", "patch") and getattr(self, item.name) is not None
        }
        return replace(self, **scaled, patch=np.ones_like(self.patch))


class HeadMeasure(LayerMeasure):
    """One value per image and head of every layer; a subclass says which.

    Attributes:
        unit: of the values in the tables; "px" of values that are lengths, in patches until then.
        label: of the figure's axis. least: that this axis reaches. digits: of the table for reading.
    """

    sees = "attention"
    unit: ClassVar[str]
    label: ClassVar[str]
    least: ClassVar[float] = 0.0
    digits: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.patch: dict[int, float] = {}
        self.uniform: dict[int, float] = {}
        # Values of the pass under way: taking them in image by image would cost more than making them.
        self._passing: dict[int, tuple[Layer, list[Tensor]]] = {}

    @abstractmethod
    def of(self, maps: Float[Tensor, "B h N N"], grid: tuple[int, int]) -> Float[Tensor, "B h"]:
        """The value of each image (or window) and head; rows of the maps sum to one."""

    def uniform_of(self, grid: tuple[int, int]) -> float | None:
        """The value of attention that is the same everywhere; None if it is 0."""
        return None

    def attention(self, seen: Seen, layers: Sequence[Layer]) -> None:
        """See the maps of some images."""
        layer = layers[seen.layer]
        self._passing.setdefault(seen.layer, (layer, []))[1].append(self.of(seen.maps, layer.grid))

    def end(self, images: Float[Tensor, "B 3 Hi Wi"], size: tuple[int, int]) -> None:
        """Take in the values of the pass."""
        for index, (layer, parts) in self._passing.items():
            values = torch.cat(parts)
            self.add(index, values, len(values) // len(images), layer.name, layer.patch if self.unit else 1.0)
            if (uniform := self.uniform_of(layer.grid)) is not None:
                self.uniform[index] = uniform
        self._passing = {}

    def add(
        self, layer: int, values: Float[Tensor, "B*w h"], windows: int = 1, name: str = "", patch: float = 1.0
    ) -> None:
        """Take in a batch of one layer (see `take`).

        Args:
            layer: 0-based index.
            values: per image and head; with windows, those of one image are together and are averaged first.
            windows: per image.
            name: of the layer.
            patch: pixels of one patch.
        """
        self.take(layer, values.unflatten(0, (-1, windows)).mean(dim=1) if windows > 1 else values, name)
        self.patch[layer] = patch

    def merge(self, other: Self) -> None:
        """Take in what another instance saw of the same model."""
        super().merge(other)
        self.patch |= other.patch
        self.uniform |= other.uniform

    def compute(self) -> HeadResult:
        """Values and intervals so far. Raises UserError if no images were taken in."""
        order = self.order()
        rows = [_over_heads(self.layers[layer]) for layer in order]
        heads = max(len(row["mean"]) for row in rows)

        def padded(key: str) -> np.ndarray:
            return np.array([np.pad(row[key], (0, heads - len(row[key])), constant_values=np.nan) for row in rows])

        return HeadResult(
            names=tuple(self.names[layer] for layer in order),
            mean=padded("mean"),
            mean_half=padded("mean_half"),
            **{key: np.array([row[key] for row in rows]) for key in rows[0] if not key.startswith("mean")},
            images=self.layers[order[0]].count,
            patch=np.array([self.patch[layer] for layer in order]),
            uniform=np.array([self.uniform[layer] for layer in order]) if self.uniform else None,
        )

    @classmethod
    def rows(cls, result: HeadResult) -> Iterator[dict[str, Any]]:
        """Mean, spread and standard deviation over heads of every layer, then each of its heads."""
        shown = result.pixels()
        for layer, module in enumerate(shown.names):
            place = {"layer": layer + 1, "name": module}
            for quantity, value, half in (
                ("mean over heads", shown.layer, shown.layer_half),
                ("spread over heads", shown.spread, shown.spread_half),
                ("standard deviation over heads", shown.std, shown.std_half),
            ):
                yield line(quantity, cls.unit, value[layer], half[layer], **place)
            for head, value in enumerate(shown.mean[layer]):
                if not np.isnan(value):
                    yield line("head", cls.unit, value, shown.mean_half[layer, head], **place, head=head + 1)

    @classmethod
    def table(cls, results: Mapping[str, HeadResult]) -> Lines:
        """Mean over heads and spread of every layer."""
        columns = []
        for model, result in results.items():
            shown = result.pixels()
            columns += [(model, shown.layer, shown.layer_half, 1), ("spread", shown.spread, shown.spread_half, 1)]
        return by_layer(columns, cls.digits)

    @classmethod
    def figures(cls, results: Mapping[str, HeadResult]) -> dict[str, Figure]:
        """A dot per head by layer, and their mean as a line; a panel per model, all on one scale.

        Of a share it begins at 0; of a distance where the data does, which lies far from 0 and close together.
        """
        figure, axes = panels(list(results), 2.9, above=0.35)
        shown = [result.pixels() for result in results.values()]
        drawn = [each for result in shown for each in (result.mean, result.uniform) if each is not None]
        lowest, highest = min(map(np.nanmin, drawn)), max(map(np.nanmax, drawn))
        room = 0.08 * max(highest - lowest, 1e-3)
        limits = (lowest - room, highest + room) if cls.unit else (0.0, max(highest * 1.06, cls.least))
        for panel, result in zip(axes, shown, strict=True):
            layers, heads = np.arange(1, len(result.names) + 1), result.mean.shape[1]
            panel.plot(
                np.repeat(layers, heads), result.mean.flatten(), "o", color=COLOURS[0], alpha=0.55, markersize=5.5,
                markeredgewidth=0, clip_on=False, zorder=3,
            )  # fmt: skip
            panel.errorbar(
                layers, result.layer, np.nan_to_num(result.layer_half), color=INK, linewidth=1.6, elinewidth=1.6,
                capsize=2.5, zorder=4,
            )  # fmt: skip
            if result.uniform is not None:
                panel.step(layers, result.uniform, where="mid", color=GREY, linewidth=1.3, linestyle=DASHES, zorder=2)
            panel.set_ylim(*limits)
            panel.set_xlim(0.5, len(layers) + 0.5)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
            panel.set_xlabel("Layer")
            panel.grid(axis="y", color=GRID, linewidth=0.6)
        label_left(axes, cls.label)
        handles = [
            Line2D([], [], linestyle="none", marker="o", color=COLOURS[0], alpha=0.55, markersize=7, label="head"),
            Line2D([], [], color=INK, linewidth=1.6, label="mean of heads, 95 % interval"),
        ]
        if any(result.uniform is not None for result in shown):
            handles.append(Line2D([], [], color=GREY, linewidth=1.3, linestyle=DASHES, label="uniform attention"))
        top_legend(figure, handles)
        return {"": figure}


def _over_heads(moments: Moments) -> dict[str, np.ndarray]:
    """The fields of HeadResult for one layer. Mean and spread are weighted sums; the std enters by its gradient."""
    mean = moments.mean
    count, std, unit = len(mean), mean.std(), np.eye(len(mean))
    average = np.full(count, 1 / count)
    gradient = (mean - mean.mean()) / (count * std) if std > 0 else np.zeros(count)
    return {
        "mean": mean,
        "mean_half": moments.half(unit),
        "layer": mean.mean(),
        "layer_half": moments.half(average),
        "spread": np.ptp(mean),
        "spread_half": moments.half(unit[mean.argmax()] - unit[mean.argmin()]),
        "std": std,
        "std_half": moments.half(gradient),
    }
