"""Measures with values per image of every layer, averaged over images last.

Shapes: B images, K values per image.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
from jaxtyping import Float
from torch import Tensor

from analysis.measures.base import Lines, Measure, number
from analysis.measures.parts.moments import Moments, NotFinite
from hkd.errors import UserError


class LayerMeasure(Measure):
    """Values per image of every layer, in any order, whose number may differ from layer to layer.

    Attributes:
        layers, names: by 0-based index, what was taken in and what the layer is called.
    """

    def __init__(self) -> None:
        self.layers: dict[int, Moments] = {}
        self.names: dict[int, str] = {}

    def take(self, layer: int, values: Float[Tensor, "B K"], name: str) -> None:
        """Take in a batch of one layer; without a name it is called `layer <index>`.

        Raises:
            NotFinite: a value is NaN or infinite.
            ValueError: another number of values than this layer had before.
        """
        name = self.names[layer] = name or f"layer {layer}"
        moments = self.layers.setdefault(layer, Moments(values.shape[1]))
        if len(moments.mean) != values.shape[1]:
            raise ValueError(f"{name} has {values.shape[1]} values here and had {len(moments.mean)} before.")
        try:
            moments.update(values)
        except NotFinite as error:
            verb = "is" if self.sees == "attention" else "are"
            raise NotFinite(f"The {self.sees} of {name} {verb} not finite. {error}") from None

    def merge(self, other: Self) -> None:
        """Take in what another instance saw of the same model."""
        for layer, moments in other.layers.items():
            self.layers.setdefault(layer, Moments(len(moments.mean))).merge(moments)
        self.names |= other.names

    def order(self) -> list[int]:
        """Indices of the layers in order. Raises UserError if no images were taken in."""
        if not self.layers:
            raise UserError("No images were measured: give at least one.")
        return sorted(self.layers)


def by_layer(columns: Sequence[tuple[str, np.ndarray, np.ndarray, int]], digits: int) -> Lines:
    """A table with a line per layer; models of fewer layers have empty cells.

    Args:
        columns: heading, values and half widths by layer, and the number of the first layer.
        digits: behind the point.
    """
    cells = [
        {first + i: number(*pair, digits) for i, pair in enumerate(zip(values, halves, strict=True))}
        for _, values, halves, first in columns
    ]
    layers = sorted({layer for column in cells for layer in column})
    lines = [[str(layer), *(column.get(layer, "") for column in cells)] for layer in layers]
    return ["layer", *(heading for heading, *_ in columns)], lines
