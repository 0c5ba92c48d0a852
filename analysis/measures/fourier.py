r"""Relative log amplitude of token features by frequency: how fast a layer's features vary over the image.

.. math:: f(u) = \frac{1}{C} \sum_c \log(|\hat X_c(u, u)| + 10^{-6}) - \text{the same at } u = 0

for u = 0 ... ceil(g / 2) - 1 on the diagonal of the 2-D spectrum, averaged over images. At even g the highest
frequency (Nyquist) is left out, at odd g none is: as the notebooks of Park et al. (2023, arXiv:2305.00729) do.
On a diagonal X depends on x + y alone, so that a few rows of the transform, as one product, replace the FFT.
Shapes: B images, N = H * W patches, C channels, K frequencies, L layers.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import cycle
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from analysis.measures.base import Lines, Result, line
from analysis.measures.parts.layers import LayerMeasure, by_layer
from analysis.style import COLOURS, DEPTH, GRID, MARKERS, WIDTH, canvas, label_left, panels

FLOOR = 1e-6  # added to amplitudes


def frequencies(grid: tuple[int, int]) -> int:
    """K, how many frequencies are reported on a grid: half of its shorter side, rounded up."""
    return math.ceil(min(grid) / 2)


@lru_cache(maxsize=16)
def _transform(grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "2*K N"]:
    """Real parts, then imaginary parts of the diagonal's rows of the 2-D DFT."""
    rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in grid)
    turns = (rows[:, None] + columns).flatten() * torch.arange(frequencies(grid), dtype=torch.float64)[:, None]
    return torch.cat([torch.cos(2 * math.pi * turns), -torch.sin(2 * math.pi * turns)]).to(device, dtype)


def log_amplitude(tokens: Float[Tensor, "B N C"], grid: tuple[int, int]) -> Float[Tensor, "B K"]:
    """log(|FFT2| + 1e-6) on the diagonal, averaged over channels (not yet relative to frequency 0).

    Args:
        tokens: patches only, row by row; computed in single precision or better.
        grid: (H, W) with H * W = N. Frequency u means u periods along both sides, also where they differ.

    Raises:
        ValueError: the tokens do not lie on this grid.
    """
    if tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"A {grid[0]}x{grid[1]} grid has {grid[0] * grid[1]} tokens, got {tuple(tokens.shape)}.")
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    real, imaginary = (_transform(grid, tokens.dtype, tokens.device) @ tokens).chunk(2, dim=1)
    return real.square().addcmul_(imaginary, imaginary).sqrt_().add_(FLOOR).log_().mean(dim=2)


@dataclass(frozen=True)
class FourierResult(Result):
    """Spectra of L layers; `_half` is the half width of a 95 % interval over images.

    names: of the layers, in order. relative, relative_half: log amplitude minus that of frequency 0, [L, K], nan
    where a layer's grid has fewer frequencies. frequency: of each value in units of pi, [L, K]; on a grid that is not
    square, along the shorter side. highest, highest_half: the last value of each layer, [L] (the curve over depth), nan
    on grids of one or two cells a side, which have no frequency but 0.
    zero: log amplitude at frequency 0, [L]. images: how many.
    """

    names: tuple[str, ...]
    relative: np.ndarray
    relative_half: np.ndarray
    frequency: np.ndarray
    highest: np.ndarray
    highest_half: np.ndarray
    zero: np.ndarray
    images: int

    @property
    def first(self) -> int:
        """Number of the first layer: 0 for the embedding, else 1."""
        return 0 if self.names[0] == "embedding" else 1


class Fourier(LayerMeasure):
    """Spectrum of every layer over any number of images."""

    sees = "features"
    title = "log amplitude at the highest frequency, relative to frequency 0; layer 0: embedding"

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[int, tuple[int, int]] = {}

    def features(self, layer: int, name: str, map_: Float[Tensor, "B C H W"]) -> None:
        """Take in one layer's features of a batch. Raises ValueError if the layer had another grid before."""
        grid = (map_.shape[2], map_.shape[3])
        if self.grids.setdefault(layer, grid) != grid:
            raise ValueError(
                f"{name or f'layer {layer}'} has a grid of {grid} here and had {self.grids[layer]} before."
            )
        self.take(layer, log_amplitude(map_.flatten(2).transpose(1, 2), grid), name)

    def merge(self, other: "Fourier") -> None:
        """Take in what another instance saw of the same model."""
        super().merge(other)
        self.grids |= other.grids

    def compute(self) -> FourierResult:
        """Spectra and intervals so far. Raises UserError if no images were taken in."""
        order = self.order()
        most = max(len(self.layers[layer].mean) for layer in order)
        relative, half, frequency = (np.full((len(order), most), np.nan) for _ in range(3))
        for row, layer in enumerate(order):
            moments = self.layers[layer]
            count = len(moments.mean)
            relative[row, :count] = moments.mean - moments.mean[0]
            weights = np.eye(count)
            weights[:, 0] -= 1
            half[row, :count] = moments.half(weights)
            frequency[row, :count] = 2 * np.arange(count) / min(self.grids[layer])
        last = np.array([len(self.layers[layer].mean) - 1 for layer in order])
        rows = np.arange(len(order))
        alone = last == 0
        return FourierResult(
            names=tuple(self.names[layer] for layer in order),
            relative=relative,
            relative_half=half,
            frequency=frequency,
            highest=np.where(alone, np.nan, relative[rows, last]),
            highest_half=np.where(alone, np.nan, half[rows, last]),
            zero=np.array([self.layers[layer].mean[0] for layer in order]),
            images=self.layers[order[0]].count,
        )

    @classmethod
    def rows(cls, result: FourierResult) -> Iterator[dict[str, Any]]:
        """Every layer and frequency but 0."""
        for row, name in enumerate(result.names):
            for k in range(1, result.relative.shape[1]):
                if not np.isnan(result.relative[row, k]):
                    pair = result.relative[row, k], result.relative_half[row, k]
                    place = {"layer": row + result.first, "name": name, "frequency": result.frequency[row, k]}
                    yield line("relative log amplitude", "", *pair, **place)

    @classmethod
    def table(cls, results: Mapping[str, FourierResult]) -> Lines:
        """The highest frequency of every layer."""
        return by_layer([(model, each.highest, each.highest_half, each.first) for model, each in results.items()], 2)

    @classmethod
    def figures(cls, results: Mapping[str, FourierResult]) -> dict[str, Figure]:
        """Spectra, and their highest frequency over depth."""
        return {"": spectrum_figure(results), "_depth": depth_figure(results)}


def spectrum_figure(results: Mapping[str, FourierResult]) -> Figure:
    """Relative log amplitude by frequency: a line per layer, dark at the beginning and light at the end."""
    figure, axes = panels(list(results), 2.9, below=0.4)
    shades = colormaps[DEPTH].resampled(256)
    lowest = min(np.nanmin(result.relative) for result in results.values())
    highest = max(np.nanmax(result.relative) for result in results.values())
    margin = 0.05 * max(highest - lowest, 0.1)
    for panel, result in zip(axes, results.values(), strict=True):
        depth = max(1, len(result.names) - 1)
        for row in range(len(result.names)):
            panel.plot(
                result.frequency[row], result.relative[row], "-o", color=shades(0.92 * row / depth), linewidth=1.5,
                markersize=3.5,
            )  # fmt: skip
        panel.set_ylim(lowest - margin, highest + margin)
        panel.set_xlim(-0.03, 1.03)
        panel.set_xticks([0, 0.5, 1])
        panel.set_xlabel("Frequency (× π)")
        panel.grid(color=GRID, linewidth=0.6)
    label_left(axes, "Δ log amplitude")
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), shades), ax=axes, location="bottom", shrink=0.6, aspect=35)
    bar.set_ticks([0, 1], labels=["first", "last"])
    bar.ax.tick_params(length=0)
    bar.set_label("Layer", labelpad=-14)
    return figure


def depth_figure(results: Mapping[str, FourierResult]) -> Figure:
    """Relative log amplitude at the highest frequency over the depth of each model, with 95 % bands."""
    columns = 2 if max(map(len, results)) <= 31 and len(results) > 1 else 1
    figure = canvas(WIDTH, 3.6 + 0.27 * -(-len(results) // columns))
    figure.set_layout_engine("constrained")
    panel = figure.subplots()
    # Lines tell models apart that are more than there are colours.
    styles: Any = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
    signs = cycle((*sign, style) for style in styles for sign in zip(COLOURS, MARKERS, strict=True))
    for (model, result), (colour, marker, style) in zip(results.items(), signs, strict=False):
        depth = np.linspace(0, 1, len(result.names)) if len(result.names) > 1 else np.ones(1)
        half = np.nan_to_num(result.highest_half)
        panel.fill_between(depth, result.highest - half, result.highest + half, color=colour, alpha=0.2, linewidth=0)
        panel.plot(
            depth, result.highest, marker=marker, color=colour, linestyle=style, linewidth=1.8, markersize=6,
            label=model,
        )  # fmt: skip
    panel.set_xlabel("Depth (0: first, 1: last layer)")
    panel.set_ylabel("Δ log amplitude\nat the highest frequency")
    panel.grid(color=GRID, linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=columns, columnspacing=1.4)
    return figure
