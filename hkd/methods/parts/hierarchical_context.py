"""Hierarchical context loss (HCL): maps compared as they are and pooled to 4x4, 2x2 and 1x1.

Source: ReviewKD, arXiv:2104.09044, and its official repository; PAT uses it too.
Shapes: B batch, D width, H W grid.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.methods.parts.logits import exact

LEVELS = (4, 2, 1)  # sides of the pooled grids


def hierarchical_context_loss(map_s: Float[Tensor, "B D H W"], map_t: Float[Tensor, "B D H W"]) -> Float[Tensor, ""]:
    r"""Weighted mean of mean squared differences over the levels.

    .. math:: L = \sum_l w_l MSE(pool_l(s), pool_l(t)) / \sum_l w_l

    The full grid has weight 1; those of `LEVELS` that are smaller than it follow with 1/2, 1/4, 1/8 in the order taken.

    Args:
        map_s, map_t: of equal shape. Neither is detached.

    Returns:
        Scalar, averaged over all elements of a level.
    """
    map_s, map_t = exact(map_s), exact(map_t)
    total, weights = F.mse_loss(map_s, map_t), [1.0]
    for side in (level for level in LEVELS if level < min(map_s.shape[2:])):
        weights.append(weights[-1] / 2)
        pooled_s, pooled_t = (F.adaptive_avg_pool2d(map_, side) for map_ in (map_s, map_t))
        total = total + weights[-1] * F.mse_loss(pooled_s, pooled_t)
    return total / sum(weights)
