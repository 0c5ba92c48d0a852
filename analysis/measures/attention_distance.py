r"""Mean attention distance: how far, on the patch grid, a query's attention lies from it on average.

.. math:: d = \frac{1}{N} \sum_q \sum_k A_{qk} \Delta_{qk}, \quad \Delta_{qk} = \| r_q - r_k \|_2

per image and head, r being integer grid coordinates; then averaged over images. In patches; `HeadResult.pixels` gives
pixels, the unit of Park et al. (2023, arXiv:2305.00729). d is linear in A: averaging maps or distances first is equal.
Shapes: B images, h heads, N = H * W patches.
"""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.measures.parts.heads import HeadMeasure


@lru_cache(maxsize=16)
def grid_distances(grid: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "N N"]:
    """Euclidean distance between the cells of a grid, row by row, in cells."""
    axes = (torch.arange(side, dtype=torch.float64) for side in grid)
    cells = torch.cartesian_prod(*axes)
    return torch.cdist(cells, cells, compute_mode="donot_use_mm_for_euclid_dist").to(device, dtype)


def attention_distance(attention: Float[Tensor, "B h N N"], grid: tuple[int, int]) -> Float[Tensor, "B h"]:
    """Mean distance between query and key, in patches, from 0 to the grid's diagonal.

    Args:
        attention: patches only; rows (the last dimension) sum to one.
        grid: (H, W) with H * W = N.

    Raises:
        ValueError: the maps do not lie on this grid.
    """
    count = grid[0] * grid[1]
    if attention.shape[-2:] != (count, count):
        raise ValueError(f"Attention on a {grid[0]}x{grid[1]} grid is {count}x{count}, got {tuple(attention.shape)}.")
    distances = grid_distances(grid, attention.dtype, attention.device)
    return attention.flatten(2) @ distances.flatten() / count


class AttentionDistance(HeadMeasure):
    """Mean attention distance of every layer and head over any number of images, in patches."""

    title = "px; mean over heads; spread: largest minus smallest head"
    unit, digits = "px", 1
    label = "Attention distance (px)"

    def of(self, maps: Float[Tensor, "B h N N"], grid: tuple[int, int]) -> Float[Tensor, "B h"]:
        """The distance of each image and head."""
        return attention_distance(maps, grid)

    def uniform_of(self, grid: tuple[int, int]) -> float:
        """The mean distance between two cells."""
        return grid_distances(grid, torch.float64, torch.device("cpu")).mean().item()
