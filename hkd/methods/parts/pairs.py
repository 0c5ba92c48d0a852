"""Stages of student and teacher in pairs: number i meets number i, on the coarser of their two grids.

Tokens are maps here as everywhere (prefix tokens apart, row by row), so that every pair of architectures has pairs.
Shapes: B batch, D width, H W grid.
"""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.errors import Refused, UserError
from hkd.methods.parts.feature_mimicking import to_grid
from hkd.models.taps import TapInfo

SHORTEST = 1e-12  # smallest length that is divided by; a zero vector stays zero


def coarser(grid_s: tuple[int, int], grid_t: tuple[int, int]) -> tuple[int, int]:
    """The grid that is nowhere finer than either."""
    return min(grid_s[0], grid_t[0]), min(grid_s[1], grid_t[1])


def stage_grids(
    method: str, stages: Iterable[int], student: TapInfo, teacher: TapInfo, *, positions: int = 1
) -> dict[int, tuple[int, int]]:
    """The grid that each pair of stages is compared on.

    Args:
        method: registry name, for the sentence.
        stages: numbers of the stages, in the order of the answer.
        student, teacher: their shapes.
        positions: fewest positions of a grid that the method can compare.

    Raises:
        Refused: a map without positions, or a grid with fewer than `positions`.
    """
    grids = {}
    for stage in stages:
        sizes = {side: info.stages[stage][1:] for side, info in (("student", student), ("teacher", teacher))}
        for side, (height, width) in sizes.items():
            if 0 in (height, width):
                raise Refused(
                    f"Method '{method}' compares stage {stage}, where the {side}'s map is {height}x{width}: "
                    f"leave that stage out, or use larger images."
                )
        height, width = grids[stage] = coarser(sizes["student"], sizes["teacher"])
        if height * width < positions:
            raise Refused(
                f"Method '{method}' compares positions with each other, and at stage {stage} the maps meet on a grid "
                f"of {height}x{width}: leave that stage out of its option stages, or use larger images."
            )
    return grids


def with_positions(method: str, stages: Sequence[int], **sides: TapInfo) -> None:
    """Raises Refused for a map of these stages without positions, of a side named by its keyword."""
    for side, info in sides.items():
        if empty := [stage for stage in stages if 0 in info.stages[stage]]:
            raise Refused(
                f"Method '{method}' reads all stages, and the {side}'s map of stage {empty[0]} has no positions: take "
                "larger images."
            )


def several_images(method: str, count: int) -> None:
    """Raises UserError for a training batch of one image, where a map of one position has no variance to norm by."""
    if count == 1:
        raise UserError(
            f"Method '{method}' norms maps of one position over the batch, so every batch needs at least 2 images, "
            "got 1."
        )


def meet(
    map_s: Float[Tensor, "B Ds Hs Ws"], map_t: Float[Tensor, "B Dt Ht Wt"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "B Ds H W"], Float[Tensor, "B Dt H W"]]:
    """Both maps on a grid that is nowhere finer, by adaptive average pooling; the teacher's detached.

    A map that is on the grid already stays what it is.
    """
    return to_grid(map_s, grid), to_grid(map_t.detach(), grid)


def unit(x: Tensor, dim: int) -> Tensor:
    """Vectors along `dim` divided by their L2 norm (at least SHORTEST)."""
    return F.normalize(x, dim=dim, eps=SHORTEST)
