"""Redundancy suppression (RSD): student and teacher channels correlate one to one, and with no other.

Source: Zhang et al. 2025 (ICCV), "Cross-Architecture Distillation Made Simple with Redundancy Suppression",
arXiv:2507.21844, in the form of its repository (spacewanderx/RSD, e4c7b3d: distillers/rsd.py), defaults included:
pooled features of both, a projector on the student, channels standardised over the batch, weight .1, kappa .01, and no
logit distillation. The classifier and the feature that it reads are untouched.
Deviation in form, not in value: a constant channel, where a standard deviation has no gradient, gives a finite one.
Decided here: `w_kd` adds KD at temperature 1; the correlation is that of one process's share of the batch.
Shapes: B batch, D width.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.kd import kd_loss
from hkd.methods.parts.initialisers import as_ofa
from hkd.methods.parts.logits import exact, same_classes, several_samples
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, options

EPS = 1e-5  # added to a channel's standard deviation


@options
class RSDConfig:
    """Options."""

    weight: NotNegative = 0.1  # of the loss, which is a sum over channels: about the teacher's width at the start
    kappa: NotNegative = 0.01  # weight of the correlations of different channels
    gamma: Positive = 2.0  # width of the projector's middle, in student widths
    tap: Literal["pooled", "logits"] = "pooled"  # what is correlated
    projector: Literal["mlp", "linear", "none"] = "mlp"  # of the student's; `none`: both widths are the same
    w_task: NotNegative = 1.0  # weight of the recipe's task loss
    w_kd: NotNegative = 0.0  # weight of logit distillation at temperature 1


def standardised(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """Each channel less its mean over the batch, divided by its standard deviation over B (biased) plus EPS.

    A constant channel is zero, with a finite gradient.
    """
    centred = features - features.mean(dim=0)
    # As a norm, because that has a gradient at zero.
    std = torch.linalg.vector_norm(centred, dim=0) / len(features) ** 0.5
    return centred / (std + EPS)


def rsd_loss(f_s: Float[Tensor, "B D"], f_t: Float[Tensor, "B D"], *, kappa: float) -> Float[Tensor, ""]:
    r"""Squared distance of the channels' cross-correlation from the identity.

    .. math:: L = \sum_i (R_{ii} - 1)^2 + \kappa \sum_{i \neq j} R_{ij}^2, \quad R = N(f_t)^T N(f_s) / B

    with N as in `standardised`.

    Args:
        f_s: projected student features [B, D], B >= 2; gradients flow.
        f_t: teacher features [B, D]; detached here.
        kappa: weight of the correlations off the diagonal.

    Returns:
        Scalar, *summed* over channels. Unrelated features give about D + kappa D^2 / B.
    """
    correlation = standardised(f_t.detach()).T @ standardised(f_s) / len(f_s)
    own = correlation.diagonal()
    return (own - 1).square().sum() + kappa * (correlation.square().sum() - own.square().sum())


class RSD(Method):
    """`task` + `rsd` (+ `kd`). Own parameters: the projector, from the student's width to the teacher's.

    Samples are related within one process' share of a batch, whose size is part of the method.
    """

    Config = RSDConfig

    def __init__(
        self, config: RSDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for different widths without a projector, and for other classes with `w_kd`."""
        super().__init__(config, student, teachers, criterion)
        teacher = teachers["teacher"].info
        width_s, width_t = (info.pooled if config.tap == "pooled" else info.classes for info in (student, teacher))
        if config.w_kd:
            same_classes("rsd", student, teacher)
        if config.projector == "none" and width_s != width_t:
            raise Refused(
                f"Method 'rsd' without a projector correlates equally many channels, but the student has {width_s} "
                f"and the teacher {width_t}: set projector to mlp or linear."
            )
        middle = max(round(config.gamma * width_s), 1)
        layers: dict[str, list[nn.Module]] = {
            "mlp": [
                nn.Linear(width_s, middle, bias=False),
                nn.BatchNorm1d(middle),
                nn.GELU(),
                nn.Linear(middle, width_t, bias=False),
            ],
            "linear": [nn.Linear(width_s, width_t, bias=False)],
            "none": [],
        }
        self.projector = nn.Sequential(*layers[config.projector]).apply(as_ofa)

    @classmethod
    def needs(cls, config: RSDConfig) -> Needs:
        """The teacher's pooled feature and logits."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms, three with `w_kd`.

        Raises:
            UserError: a batch of one, over which nothing varies.
        """
        config = self.config
        several_samples("rsd", len(batch.y))
        f_s, f_t = (taps.pooled if config.tap == "pooled" else taps.logits for taps in (taps_s, taps_t["teacher"]))
        f_s = self.projector(f_s)
        with torch.autocast(f_s.device.type, enabled=False):
            distance = rsd_loss(exact(f_s), exact(f_t), kappa=config.kappa)
        losses = {
            "task": config.w_task * self.task_loss(taps_s.logits, batch.y),
            "rsd": config.weight * distance,
        }
        if config.w_kd:
            losses["kd"] = config.w_kd * kd_loss(taps_s.logits, taps_t["teacher"].logits, tau=1.0)
        return losses
