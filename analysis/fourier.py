r"""Relative log amplitude of token features by frequency: how fast a layer's features vary over the image.

.. math:: f(u) = \frac{1}{C} \sum_c \log(|\hat X_c(u, u)| + 10^{-6}) - \text{the same at } u = 0

for u = 0 ... ceil(g / 2) - 1 on the diagonal of the 2-D spectrum, averaged over images. At even g the highest
frequency (Nyquist) is left out, at odd g none is: as the notebooks of Park et al. (2023, arXiv:2305.00729) do.
On a diagonal X depends on x + y alone, so that a few rows of the transform, as one product, replace the FFT.
Shapes: B images, N = H * W patches, C channels, K frequencies, L layers.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.accumulate import Moments, NotFinite
from hkd.errors import UserError

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
class FourierResult:
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

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for `numpy.savez`."""
        return {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}


class Fourier:
    """Spectrum of every layer over any number of images."""

    def __init__(self) -> None:
        self.layers: dict[int, Moments] = {}
        self.names: dict[int, str] = {}
        self.grids: dict[int, tuple[int, int]] = {}

    def update(self, layer: int, tokens: Float[Tensor, "B N C"], grid: tuple[int, int], *, name: str = "") -> None:
        """Take in the features of one layer for a batch.

        Args:
            layer: 0-based index.
            tokens: patches only, row by row.
            grid: (H, W).
            name: shown in results and errors; `layer <index>` unless given.

        Raises:
            NotFinite: a feature is NaN or infinite.
            ValueError: the tokens do not lie on this grid, or the layer had another one before.
        """
        name = name or f"layer {layer}"
        if self.grids.setdefault(layer, grid) != grid:
            raise ValueError(f"{name} has a grid of {grid} here and had {self.grids[layer]} before.")
        self.names[layer] = name
        try:
            self.layers.setdefault(layer, Moments(frequencies(grid))).update(log_amplitude(tokens, grid))
        except NotFinite as error:
            raise NotFinite(f"The features of {name} are not finite. {error}") from None

    def merge(self, other: "Fourier") -> None:
        """Take in what an accumulator of the same model saw elsewhere."""
        for layer, moments in other.layers.items():
            self.layers.setdefault(layer, Moments(len(moments.mean))).merge(moments)
        self.names |= other.names
        self.grids |= other.grids

    def compute(self) -> FourierResult:
        """Spectra and intervals so far.

        Raises:
            UserError: no images were taken in.
        """
        if not self.layers:
            raise UserError("No images were measured: give at least one.")
        order = sorted(self.layers)
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
