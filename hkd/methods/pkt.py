"""Probabilistic knowledge transfer (PKT): the neighbourhoods of the samples of a batch, as probabilities, are alike.

Source: Passalis and Tefas 2018, arXiv:1803.10837, with the cosine kernel, in the form and with the weight of
RepDistiller (b84f547, distiller_zoo/PKT.py): a mean over all B^2 pairs, so that the same weight is half as strong at
twice the batch. Deviation: a feature of zeros, whose gradient is NaN there, gives none.
Shapes: B batch, D width.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Method, Needs
from hkd.methods.parts.logits import exact, several_samples
from hkd.models.taps import Taps, Want
from hkd.options import NotNegative, options

EPS = 1e-7  # added to lengths and to probabilities


@options
class PKTConfig:
    """Options."""

    weight: NotNegative = 30000.0  # of the loss
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def neighbourhoods(features: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    """Of each sample a distribution over all, itself included, proportional to (cosine + 1) / 2."""
    lengths = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    directions = (features / (lengths + EPS)).masked_fill(lengths == 0, 0)
    kernel = ((directions @ directions.T + 1) / 2).clamp(min=0)  # opposite features may round to less than -1
    return kernel / kernel.sum(dim=1, keepdim=True)


def pkt_loss(f_s: Float[Tensor, "B Ds"], f_t: Float[Tensor, "B Dt"]) -> Float[Tensor, ""]:
    r"""KL divergence from the teacher's neighbourhoods to the student's.

    .. math:: L = \frac{1}{B^2} \sum_{ij} q^t_{ij} \log \frac{q^t_{ij} + e}{q^s_{ij} + e}

    with q as in `neighbourhoods`, rows given, and e = 1e-7.

    Args:
        f_s: student features [B, Ds], B >= 2; gradients flow, but none to a feature of zeros.
        f_t: teacher features [B, Dt]; detached here; widths may differ.

    Returns:
        Scalar in nats, averaged over B^2; zero where the features agree up to a rotation and a factor per sample.
    """
    q_s, q_t = neighbourhoods(f_s), neighbourhoods(f_t.detach())
    return (q_t * ((q_t + EPS) / (q_s + EPS)).log()).mean()


class PKT(Method):
    """`task` + `pkt`. No parameters of its own.

    Samples are related within one process' share of a batch.
    """

    Config = PKTConfig

    @classmethod
    def needs(cls, config: PKTConfig) -> Needs:
        """The teacher's pooled feature."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms.

        Raises:
            UserError: a batch of one, which has no neighbours.
        """
        config = self.config
        several_samples("pkt", len(batch.y))
        with torch.autocast(batch.x.device.type, enabled=False):
            distance = pkt_loss(exact(taps_s.pooled), exact(taps_t["teacher"].pooled))
        task = self.task_loss(taps_s.logits, batch.y)
        return {"task": config.w_task * task, "pkt": config.weight * distance}
