"""Feature mimicking: how far the directions of two feature maps are from each other, position by position.

Shared by FD (the original view) and ScaleKD (the original and the alternative view).
Source: ScaleKD, arXiv:2411.06786, dual-view feature mimicking. Deviation in form, not in value: the paper removes
the zero-frequency coefficient of a 2-D DCT, which is the same as subtracting each channel's spatial mean.
Shapes: B batch, D width, H W grid, N = H * W positions.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.methods.parts.logits import exact

# Smallest norm that counts as a direction. Removing the mean of a constant map leaves rounding noise of about 2e-7,
# which a smaller value (PyTorch's 1e-12) would blow up to unit length.
EPS = 1e-5


def to_grid(map_: Float[Tensor, "B D H W"], grid: tuple[int, int]) -> Float[Tensor, "B D h w"]:
    """Resize a map: adaptive average pooling to a grid that is nowhere finer, else bilinear interpolation."""
    if map_.shape[2:] == grid:
        return map_
    if map_.shape[2] >= grid[0] and map_.shape[3] >= grid[1]:
        return F.adaptive_avg_pool2d(map_, grid)
    return F.interpolate(map_, size=grid, mode="bilinear", align_corners=False)


def centre(tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """Remove each channel's mean over positions: the map without its DC component."""
    return tokens - tokens.mean(dim=1, keepdim=True)


def directions(tokens: Float[Tensor, "B N D"], *, centred: bool = False) -> Float[Tensor, "B N D"]:
    """Each position's feature vector divided by its L2 norm (at least EPS), in single precision or better.

    Args:
        tokens: features [B, N, D].
        centred: remove the DC component first (the alternative view).
    """
    tokens = exact(tokens)
    return F.normalize(centre(tokens) if centred else tokens, dim=2, eps=EPS)


def mimic_loss(
    tokens_s: Float[Tensor, "B N D"], tokens_t: Float[Tensor, "B N D"], *, centred: bool = False
) -> Float[Tensor, ""]:
    r"""Squared distance between the directions of student and teacher features.

    .. math:: L = \frac{1}{B} \sum_b \sum_p \| n(s_{b,p}) - n(t_{b,p}) \|^2
                = \frac{1}{B} \sum_{b,p} (2 - 2 \cos(s_{b,p}, t_{b,p}))

    The second form holds where no vector is shorter than EPS.

    Args:
        tokens_s: student features [B, N, D]; gradients flow.
        tokens_t: teacher features [B, N, D]; detached here.
        centred: compare both without their DC component.

    Returns:
        Scalar in [0, 4 N], averaged over B and *summed* over positions: weights must shrink with the grid.
        About 2 N for unrelated features. A map that is constant in space counts as zero when `centred`.
    """
    target = directions(tokens_t.detach(), centred=centred)
    return (directions(tokens_s, centred=centred) - target).square().sum() / len(tokens_s)
