"""Attention maps: what one patch attends to, as images.

Row q of the attention among the N patches, without prefix tokens and renormalised, for one patch q: as multiples of
uniform attention in figures, and summing to one in results.
Shapes: n images, h heads, N = H * W patches.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from analysis.looking.attention import Layer, Seen
from analysis.measures.base import Measure, Result
from analysis.style import DEPTH, blank, canvas, mark
from hkd.errors import UserError

SHARES = (1 / 4, 1 / 2, 5 / 6, 1)  # of the depth: layers 3, 6, 10 and 12 of 12
FEW = 2  # images shown of each of several models


@dataclass(frozen=True)
class MapsResult(Result):
    """What one patch attends to in some images.

    images: RGB in [0, 1], [n, Hi, Wi, 3]. maps: by 1-based layer, [n, h, H, W], each summing to one. query: (row,
    column) of the patch. patch: its side in px. size: (height, width) of what the network saw, in px.
    """

    images: np.ndarray
    maps: dict[int, np.ndarray]
    query: tuple[int, int]
    patch: float
    size: tuple[int, int]

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays, for `numpy.savez`."""
        maps = {f"block_{layer}": map_ for layer, map_ in self.maps.items()}
        return {"images": self.images, "query": np.array(self.query), "patch": np.array(self.patch), **maps}

    def scaled(self) -> dict[int, Float[np.ndarray, "n H W"]]:
        """Mean over heads by layer, as multiples of attention that is the same everywhere."""
        return {layer: map_.mean(axis=1) * map_[0, 0].size for layer, map_ in self.maps.items()}


class AttentionMaps(Measure):
    """What one patch attends to in some layers, of all images that are given: a few."""

    sees = "attention"
    most = 4

    def __init__(self, query: tuple[int, int] | None = None, layers: Sequence[int] | None = None) -> None:
        """Begin.

        Args:
            query: (row, column) of the patch, from 0; None: the central one.
            layers: counted from 1; None: those at SHARES of the depth.
        """
        self.query, self.layers = query, layers
        self._parts: dict[int, list[Tensor]] = {}  # by 1-based layer
        self._images: list[Tensor] = []
        self._patch, self._size = 1.0, (0, 0)

    @classmethod
    def refusal(cls, net: Any, layers: Sequence[Layer]) -> str | None:
        """Attention within windows has no such maps."""
        if layers[0].windowed:
            return f"{type(net).__name__} attends within windows: what a patch attends to is no image."
        return None

    def attention(self, seen: Seen, layers: Sequence[Layer]) -> None:
        """Keep the rows of the query.

        Raises:
            UserError: no such layer, or a query outside the grid.
        """
        depth, grid = len(layers), layers[0].grid
        chosen = self.layers or sorted({max(1, round(share * depth)) for share in SHARES})
        if unknown := [layer for layer in chosen if not 1 <= layer <= depth]:
            raise UserError(f"Layer {unknown[0]} was asked of a model with layers 1 to {depth}.")
        row, column = self.query = self.query or (grid[0] // 2, grid[1] // 2)
        if not (0 <= row < grid[0] and 0 <= column < grid[1]):
            raise UserError(f"The query {self.query} lies outside the {grid[0]}x{grid[1]} grid; both start at 0.")
        if seen.layer + 1 in chosen:
            rows = seen.maps[:, :, row * grid[1] + column].unflatten(2, grid)
            self._parts.setdefault(seen.layer + 1, []).append(rows.clone())
            self._patch = layers[0].patch

    def end(self, images: Float[Tensor, "n 3 Hi Wi"], size: tuple[int, int]) -> None:
        """Keep the images."""
        self._images.append(images)
        self._size = size

    def merge(self, other: "AttentionMaps") -> None:
        """Take in the images of another instance, after those that are here."""
        self.query, self._patch, self._size = other.query, other._patch, other._size
        for layer, parts in other._parts.items():
            self._parts.setdefault(layer, []).extend(parts)
        self._images += other._images

    def compute(self) -> MapsResult:
        """The maps so far."""
        if not self._images or self.query is None:
            raise UserError("No images were measured: give at least one.")
        return MapsResult(
            images=torch.cat(self._images).movedim(1, -1).cpu().numpy(),
            maps={layer: torch.cat(parts).cpu().numpy() for layer, parts in self._parts.items()},
            query=self.query,
            patch=self._patch,
            size=self._size,
        )

    @classmethod
    def figures(cls, results: Mapping[str, MapsResult]) -> dict[str, Figure]:
        """Images, and what the marked patch of each attends to by layer, on one scale for all models."""
        scaled = [result.scaled() for result in results.values()]
        top = np.quantile(np.concatenate([map_.flatten() for maps in scaled for map_ in maps.values()]), 0.99)
        norm = Normalize(0, max(2.0, float(top)))
        shown = [len(each.images) if len(results) == 1 else min(FEW, len(each.images)) for each in results.values()]
        tile, left, head, foot = 1.18, 1.25, 0.27, 0.72  # inches
        tall = tile * min(1.5, max(each.size[0] / each.size[1] for each in results.values()))
        width = left + tile * (max(len(each.maps) for each in results.values()) + 1) + 0.05
        height = sum(head + tall * count for count in shown) + foot
        figure = canvas(width, height)
        y = 0.0
        for (model, result), maps, count in zip(results.items(), scaled, shown, strict=True):
            y += head
            for i in range(count):
                pictures = {"image": result.images[i], **{f"layer {layer}": map_[i] for layer, map_ in maps.items()}}
                for x, (title, picture) in enumerate(pictures.items()):
                    place = ((left + tile * x + 0.03) / width, 1 - (y + tall - 0.03) / height)
                    panel = figure.add_axes((*place, (tile - 0.06) / width, (tall - 0.06) / height))
                    draw_map(panel, picture, norm, result.size, result.query, result.patch, line=1.2)
                    if i == 0:
                        panel.set_title(title, fontsize=11, pad=3)
                    if i == x == 0:
                        name = "\n".join(textwrap.wrap(model.replace("_", "_ "), 14)).replace("_ ", "_")
                        panel.text(-0.06, 0.5, name, transform=panel.transAxes, ha="right", va="center", fontsize=10)
                y += tall
        axes = figure.add_axes((left / width, 0.45 / height, (width - left - 0.1) / width, 0.12 / height))
        draw_scale(figure, axes, norm, "attention of the marked patch (1: uniform)")
        return {"": figure}


def draw_map(
    axes: Axes,
    picture: np.ndarray,
    norm: Normalize,
    size: tuple[int, int],
    query: tuple[int, int],
    patch: float,
    *,
    line: float,
) -> None:
    """An image of (height, width) px, or a map on its scale, with the patch that attends framed.

    Args:
        axes: where.
        picture: the image or the map.
        norm: scale of maps.
        size: of the image in px.
        query: (row, column) of the patch.
        patch: its side in px.
        line: of the frame, in points.
    """
    axes.imshow(picture, cmap=DEPTH, norm=norm, extent=(0, size[1], size[0], 0), interpolation="nearest")
    mark(axes, query[1] * patch, query[0] * patch, patch, line)
    blank(axes)


def draw_scale(figure: Figure, axes: Axes, norm: Normalize, label: str, pad: float | None = None) -> None:
    """The scale of maps, which go beyond its end. pad: between its numbers and the label, in points."""
    bar = figure.colorbar(ScalarMappable(norm, DEPTH), cax=axes, orientation="horizontal", extend="max")
    bar.set_label(label, fontsize=11, labelpad=pad)
    bar.ax.tick_params(labelsize=10, pad=2)
