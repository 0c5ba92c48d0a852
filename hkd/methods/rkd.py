"""Relational knowledge distillation (RKD): distances and angles among the samples of a batch are the teacher's.

Source: Park et al. 2019, arXiv:1904.05068, equations 4 to 9, on pooled features; weights 25 and 50.
Deviation in form, not in value: all relations come from the matrix of inner products, so that no [B, B, D] tensor of
differences is built. They are of centred features and all that follows is in double precision, because a small distance
is a small difference of large numbers.
Decided here: samples nearer than 1e-6 (squared distance 1e-12) count as 1e-6 apart, have no direction (their angles are
zero) and give no gradient. The same holds where double precision cannot tell a distance from zero, which is about
where single precision cannot tell two features apart.
Shapes: B batch, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from hkd.data.batch import Batch
from hkd.methods.base import Method, Needs
from hkd.methods.parts.logits import exact, several_samples
from hkd.models.taps import Taps, Want
from hkd.options import NotNegative, options

NEAREST = 1e-12  # squared distance below which two samples are one
ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a squared distance, relative to the squared lengths it comes from
CPU_BLOCK, GPU_BLOCK = 2**16, 2**22  # elements of [anchors, B, B] at a time: what a CPU's cache holds, what fills a GPU


@options
class RKDConfig:
    """Options."""

    w_distance: NotNegative = 25.0
    w_angle: NotNegative = 50.0
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def gram(features: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Inner products of the features around their mean, in double precision: no relation depends on the mean."""
    centred = features.double()
    centred = centred - centred.mean(dim=0)
    return centred @ centred.T


def distances(products: Float[Tensor, "B B"]) -> tuple[Float[Tensor, "B B"], Bool[Tensor, "B B"]]:
    """Distances of all pairs, and which pairs are one and the same point (the diagonal among them).

    Args:
        products: inner products.

    Returns:
        Distances, at least 1e-6 off the diagonal and 0 on it; no gradient flows to those of equal points.
    """
    lengths = products.diagonal()
    sums = lengths[:, None] + lengths
    squared = sums - 2 * products
    same = squared <= (ROUNDING * sums).clamp(min=NEAREST)
    diagonal = torch.eye(len(same), dtype=torch.bool, device=same.device)
    return squared.masked_fill(same, NEAREST).sqrt().masked_fill(diagonal, 0), same | diagonal


def distance_loss(d_s: Float[Tensor, "B B"], d_t: Float[Tensor, "B B"]) -> Float[Tensor, ""]:
    """Smooth L1 (beta 1) between distances in units of their mean over all pairs, averaged over B^2.

    Args:
        d_s, d_t: distances, positive off the diagonal; B >= 2.
    """
    pairs = len(d_s) * (len(d_s) - 1)
    return F.smooth_l1_loss(d_s * (pairs / d_s.sum()), d_t * (pairs / d_t.sum()))


class _AngleLoss(torch.autograd.Function):
    """Smooth L1 between the angles of two sets of points, with the gradient by hand, some anchors at a time.

    The angle at anchor i is cos_ijk = (G_jk + h_ij + h_ik) v_ij v_ik with h_ij = G_ii / 2 - G_ij and v_ij the inverse
    distance (0: no direction). Autograd over whole [B, B, B] tensors takes about three times as long.
    """

    @staticmethod
    def forward(ctx: Any, g_s: Tensor, v_s: Tensor, g_t: Tensor, v_t: Tensor) -> Float[Tensor, ""]:
        count = len(g_s)
        block = max(1, (CPU_BLOCK if g_s.device.type == "cpu" else GPU_BLOCK) // count**2)
        d_g, d_h, d_v = (torch.zeros_like(g_s) for _ in range(3))
        total = g_s.new_zeros(())
        for start in range(0, count, block):
            anchors = slice(start, start + block)
            inner_s, outer_s = _anchored(g_s, v_s, anchors)
            inner_t, outer_t = _anchored(g_t, v_t, anchors)
            error = (inner_s * outer_s).addcmul_(inner_t, outer_t, value=-1)
            slope = error.clamp(-1, 1)
            # e^2 / 2 up to 1, |e| - 1/2 beyond.
            total += slope.flatten().dot(error.flatten()) - slope.flatten().dot(slope.flatten()) / 2
            outer_s.mul_(slope)
            d_g += outer_s.sum(dim=0)
            # All is symmetric in j and k, so that the two places of h and v count twice.
            d_h[anchors] = 2 * outer_s.sum(dim=2)
            d_v[anchors] = 2 * slope.mul_(inner_s).matmul(v_s[anchors, :, None]).squeeze(2)
        d_g -= d_h
        d_g.diagonal().add_(d_h.sum(dim=1), alpha=0.5)
        ctx.save_for_backward(d_g / count**3, d_v / count**3)
        return total / count**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_g, d_v = ctx.saved_tensors
        return upstream * d_g, upstream * d_v, None, None


def _anchored(
    products: Float[Tensor, "B B"], inverse: Float[Tensor, "B B"], anchors: slice
) -> tuple[Float[Tensor, "A B B"], Float[Tensor, "A B B"]]:
    """(f_j - f_i) . (f_k - f_i) for anchors i, and v_ij v_ik; the product of both is the cosine."""
    h = products.diagonal()[anchors, None] / 2 - products[anchors]
    v = inverse[anchors]
    return (products + h[:, :, None]).add_(h[:, None, :]), v[:, :, None] * v[:, None, :]


def rkd_losses(
    features_s: Float[Tensor, "B Ds"], features_t: Float[Tensor, "B Dt"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Distance and angle loss.

    .. math::
        L_d = \frac{1}{B^2} \sum_{ij} l(D^s_{ij} / \bar D^s, D^t_{ij} / \bar D^t), \quad
        L_a = \frac{1}{B^3} \sum_{ijk} l(\cos^s_{ijk}, \cos^t_{ijk})

    with l the smooth L1 loss (beta 1), \bar D the mean over pairs i != j, and \cos_{ijk} the cosine at sample i between
    the directions to j and k, zero where one of them has no direction.

    Args:
        features_s: student features [B, Ds], B >= 2; gradients flow.
        features_t: teacher features [B, Dt]; detached here; widths may differ.

    Returns:
        L_d and L_a: scalars, zero when the features agree up to rotation, scale and shift.
    """
    g_s, g_t = gram(features_s), gram(features_t.detach())
    (d_s, same_s), (d_t, same_t) = distances(g_s), distances(g_t)
    # The diagonal is filled before the division, or its gradient would be 0 times infinity.
    v_s, v_t = ((1 / d.masked_fill(same, 1)).masked_fill(same, 0) for d, same in ((d_s, same_s), (d_t, same_t)))
    distance, angle = distance_loss(d_s, d_t), _AngleLoss.apply(g_s, v_s, g_t, v_t)
    dtype = exact(features_s).dtype
    return distance.to(dtype), angle.to(dtype)


class RKD(Method):
    """`task` + `distance` + `angle`. No parameters of its own.

    Samples are related within one process' share of a batch; work grows with the cube of that share.
    """

    Config = RKDConfig

    @classmethod
    def needs(cls, config: RKDConfig) -> Needs:
        """The teacher's pooled feature."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Three weighted terms.

        Raises:
            UserError: a batch of one, which has no relations.
        """
        config = self.config
        several_samples("rkd", len(batch.y))
        distance, angle = rkd_losses(taps_s.pooled, taps_t["teacher"].pooled)
        task = self.task_loss(taps_s.logits, batch.y)
        return {
            "task": config.w_task * task,
            "distance": config.w_distance * distance,
            "angle": config.w_angle * angle,
        }
