r"""DCT spectrum of a feature map (ScaleKD, arXiv:2411.06786, Figures 2 and 5) and the share of its DC component.

.. math:: X = M_H F M_W^T, \quad M_{kn} = 2 \cos\frac{\pi k (2 n + 1)}{2 g}

per channel: the 2-D DCT-II in ScaleKD's unscaled form. The orthonormal form divides row 0 of M by sqrt(4 g) and the
others by sqrt(2 g): it keeps energy (Parseval) and halves the DC coefficient against those that vary along both axes.
Shares of the two forms differ and are never to be compared; the share of energy is that of the orthonormal form.
Shapes: B images, C channels, H W grid.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import scipy.fft
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.accumulate import Moments, NotFinite, ratio
from hkd.errors import UserError

KRONECKER = 64  # cells of the largest grid on which one product with the Kronecker matrix is faster than SciPy's FFT


def dct_matrix(size: int) -> Float[Tensor, "g g"]:
    """M, unscaled, float64; rows are frequencies."""
    index = torch.arange(size, dtype=torch.float64)
    return 2 * torch.cos(math.pi * index[:, None] * (2 * index + 1) / (2 * size))


def orthonormal_scale(grid: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """What each unscaled coefficient is multiplied by to become an orthonormal one."""
    rows, columns = (np.where(np.arange(side) == 0, 1 / np.sqrt(4 * side), 1 / np.sqrt(2 * side)) for side in grid)
    return np.outer(rows, columns)


@lru_cache(maxsize=8)
def _kronecker(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N N"]:
    """What a flattened map is multiplied by from the right."""
    return torch.kron(dct_matrix(grid[0]), dct_matrix(grid[1])).T.contiguous().to(device)


def dct2(maps: Float[Tensor, "... H W"]) -> Float[Tensor, "... H W"]:
    """Unscaled 2-D DCT-II in float64; equals `scipy.fft.dctn(maps, axes=(-2, -1))` to 1e-10 for maps of order one."""
    grid = (maps.shape[-2], maps.shape[-1])
    maps = maps.detach().double()
    if maps.is_cpu and grid[0] * grid[1] > KRONECKER:
        return torch.from_numpy(scipy.fft.dctn(maps.numpy(), axes=(-2, -1)))
    return (maps.flatten(-2) @ _kronecker(grid, maps.device)).unflatten(-1, grid)


@dataclass(frozen=True)
class DCTResult:
    """Mean spectrum of a map; `_half` is the half width of a 95 % interval over images.

    unscaled, orthonormal: mean over images of |X| in the two forms, [C, H, W].
    share_unscaled, share_orthonormal: mean |X_00| over the sum of mean |X|, over channels and images, in [0, 1].
    share_energy: the same of the orthonormal X squared. images: how many.
    """

    unscaled: np.ndarray
    orthonormal: np.ndarray
    share_unscaled: float
    share_unscaled_half: float
    share_orthonormal: float
    share_orthonormal_half: float
    share_energy: float
    share_energy_half: float
    images: int

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields as arrays, for `numpy.savez`."""
        return {item.name: np.asarray(getattr(self, item.name)) for item in fields(self)}


class DCTSpectrum:
    """Mean absolute DCT spectrum of a feature map over any number of images."""

    def __init__(self) -> None:
        self.total: np.ndarray | None = None  # of unscaled |X| over images, [C, H, W], float64
        # Per image: |X_00| and the sum of |X| unscaled, the same orthonormal, the same of the orthonormal square.
        self.shares = Moments(6)

    def update(self, maps: Float[Tensor, "B C H W"]) -> None:
        """Take in the maps of a batch, patches only.

        Raises:
            NotFinite: a feature is NaN or infinite.
            ValueError: maps of another shape than before.
        """
        if self.total is not None and self.total.shape != tuple(maps.shape[1:]):
            raise ValueError(f"The maps are {tuple(maps.shape[1:])} here and were {self.total.shape} before.")
        grid = (maps.shape[2], maps.shape[3])
        magnitude = dct2(maps).abs_()
        scale = torch.from_numpy(orthonormal_scale(grid)).to(magnitude.device)
        by_cell = magnitude.sum(dim=1)
        energy = torch.einsum("bcij,bcij->bij", magnitude, magnitude) * scale.square()
        columns = [value for kind in (by_cell, by_cell * scale, energy) for value in (kind[:, 0, 0], kind.sum((1, 2)))]
        try:
            self.shares.update(torch.stack(columns, dim=1))
        except NotFinite as error:
            raise NotFinite(f"The last feature map is not finite. {error}") from None
        total = magnitude.sum(dim=0).cpu().numpy()
        self.total = total if self.total is None else self.total + total

    def merge(self, other: "DCTSpectrum") -> None:
        """Take in what an accumulator of the same model saw elsewhere."""
        if other.total is not None:
            self.total = other.total.copy() if self.total is None else self.total + other.total
        self.shares.merge(other.shares)

    def compute(self) -> DCTResult:
        """Spectrum, shares and intervals so far.

        Raises:
            UserError: no images were taken in.
        """
        if self.total is None:
            raise UserError("No images were measured: give at least one.")
        mean = self.total / self.shares.count
        shares = [ratio(self.shares, above, above + 1) for above in (0, 2, 4)]
        return DCTResult(
            unscaled=mean,
            orthonormal=mean * orthonormal_scale((mean.shape[1], mean.shape[2])),
            share_unscaled=shares[0][0],
            share_unscaled_half=shares[0][1],
            share_orthonormal=shares[1][0],
            share_orthonormal_half=shares[1][1],
            share_energy=shares[2][0],
            share_energy_half=shares[2][1],
            images=self.shares.count,
        )
