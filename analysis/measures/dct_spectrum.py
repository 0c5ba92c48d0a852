r"""DCT spectrum of a feature map (ScaleKD, arXiv:2411.06786, Figures 2 and 5) and the share of its DC component.

.. math:: X = M_H F M_W^T, \quad M_{kn} = 2 \cos\frac{\pi k (2 n + 1)}{2 g}

per channel: the 2-D DCT-II in ScaleKD's unscaled form. The orthonormal form divides row 0 of M by sqrt(4 g) and the
others by sqrt(2 g): it keeps energy (Parseval) and halves the DC coefficient against those that vary along both axes.
Shares of the two forms differ and are never to be compared; the share of energy is that of the orthonormal form.
Shapes: B images, C channels, H W grid.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
import torch
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from analysis.measures.base import Lines, Measure, Result, line, number
from analysis.measures.parts.moments import Moments, NotFinite, ratio
from analysis.style import DEPTH, label_left, panels
from hkd.errors import UserError

SHARES = {
    "share_energy": "DC share of energy",
    "share_unscaled": "DC share, unscaled",
    "share_orthonormal": "DC share, orthonormal",
}
LEAST = 1e-3  # of the DC component; what is below has the figure's last colour
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
class DCTResult(Result):
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


class DCTSpectrum(Measure):
    """Mean absolute DCT spectrum of a feature map over any number of images."""

    sees = "final"
    title = "% of the last feature map in its DC component"

    def __init__(self) -> None:
        self.total: np.ndarray | None = None  # of unscaled |X| over images, [C, H, W], float64
        # Per image: |X_00| and the sum of |X| unscaled, the same orthonormal, the same of the orthonormal square.
        self.shares = Moments(6)

    def final(self, map_: Float[Tensor, "B C H W"]) -> None:
        """Take in the maps of a batch, patches only.

        Raises:
            NotFinite: a feature is NaN or infinite.
            ValueError: maps of another shape than before.
        """
        if self.total is not None and self.total.shape != tuple(map_.shape[1:]):
            raise ValueError(f"The maps are {tuple(map_.shape[1:])} here and were {self.total.shape} before.")
        grid = (map_.shape[2], map_.shape[3])
        magnitude = dct2(map_).abs_()
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
        """Take in what another instance saw of the same model."""
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

    @classmethod
    def rows(cls, result: DCTResult) -> Iterator[dict[str, Any]]:
        """The three shares."""
        for key, text in SHARES.items():
            yield line(text, "", getattr(result, key), getattr(result, f"{key}_half"))

    @classmethod
    def table(cls, results: Mapping[str, DCTResult]) -> Lines:
        """The three shares in percent, a line per model."""
        lines = [
            [model, *(number(100 * getattr(each, key), 100 * getattr(each, f"{key}_half"), 1) for key in SHARES)]
            for model, each in results.items()
        ]
        return ["model", *SHARES.values()], lines

    @classmethod
    def figures(cls, results: Mapping[str, DCTResult]) -> dict[str, Figure]:
        """Mean absolute coefficients, averaged over channels, relative to the DC component."""
        figure, axes = panels(list(results), 3.4, below=0.4)
        spectra = [result.orthonormal.mean(axis=0) for result in results.values()]
        shown = [each / max(each[0, 0], np.finfo(float).tiny) for each in spectra]
        # The scale begins where the data does, so that its dark end is used, at a round number above LEAST.
        least = max(LEAST, 10 ** (math.floor(5 * math.log10(max(LEAST, min(map(np.min, shown))))) / 5))
        least = min(least, 0.5)
        for result, relative, panel in zip(results.values(), shown, axes, strict=True):
            image = panel.imshow(relative.clip(LEAST, 1 / LEAST), cmap=DEPTH, norm=LogNorm(least, 1), aspect="equal")
            rows, columns = relative.shape
            panel.set_xticks(sorted({0, columns // 2, columns - 1}))
            panel.set_yticks(sorted({0, rows // 2, rows - 1}))
            share = number(100 * result.share_energy, 100 * result.share_energy_half, 1)
            panel.set_title(f"{panel.get_title()}\nDC: {share} % of energy", fontsize=11.5)
            panel.set_xlabel("Horizontal frequency")
            panel.spines[:].set_visible(False)
        label_left(axes, "Vertical frequency")
        bar = figure.colorbar(image, ax=axes, location="bottom", extend="both", shrink=0.8, aspect=40)
        bar.set_label("Mean |X|, DC = 1")
        return {"": figure}
