"""Logit standardisation (LSKD): logit vectors are compared by their shape, not by their mean and range.

Source: Sun et al. 2024, arXiv:2403.01427, as its repository has it (f6e5aa5): both logit vectors, each less its mean
and divided by its standard deviation (over C - 1), go into a logit method at tau 2, whose weight is 9. The task loss
sees the logits as they are. Weights there: task .1 with KD, 1 with DKD.
No neutral switch: plain KD in the same tables has the weight .9.
Decided here: `std_floor`. Where a student's classifier starts at zero (timm's MLPs), its logits are constant and the
source's form (a floor of 0) has gradients some 1e7 times the ordinary ones at the first step.
Not here: the source's third base, MLKD.
Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.dkd import dkd_losses
from hkd.methods.kd import kd_loss
from hkd.methods.parts.logits import class_index, exact, same_classes
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, options

EPS = 1e-7  # added to a standard deviation
W_TASK = {"kd": 0.1, "dkd": 1.0}


@options
class LSKDConfig:
    """Options."""

    base: Literal["kd", "dkd"] = "kd"  # the logit method
    tau: Positive = 2.0  # softmax temperature of standardised logits
    weight: NotNegative = 9.0  # of the distillation loss
    alpha: NotNegative = 1.0  # weight of the target class against the rest; `dkd` only
    beta: NotNegative = 2.0  # weight of the distribution among the other classes; `dkd` only
    w_task: NotNegative | None = None  # weight of the recipe's task loss; None: .1 for `kd`, 1 for `dkd`
    std_floor: NotNegative = 0.0  # smallest deviation of a sample's logits that is divided by


def standardised(logits: Float[Tensor, "B C"], *, std_floor: float = 0.0) -> Float[Tensor, "B C"]:
    r"""Each sample's logits less their mean, divided by their deviation; gradients flow through both.

    .. math:: Z(z) = \frac{z - mean_k z}{\max(std_k z, floor) + 10^{-7}}

    Args:
        logits: [B, C], C >= 2.
        std_floor: smallest standard deviation (unbiased, over C) that is divided by.
    """
    std = logits.std(dim=1, keepdim=True).clamp(min=std_floor)
    return (logits - logits.mean(dim=1, keepdim=True)) / (std + EPS)


class LSKD(Method):
    """`task` + `kd`, or + `tckd` + `nckd`. No parameters of its own."""

    Config = LSKDConfig

    sums: Tensor  # of diagnostics: batches, and the mean deviation of the student's logits

    def __init__(
        self, config: LSKDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a teacher with other classes, or fewer than three: two logits have one shape."""
        super().__init__(config, student, teachers, criterion)
        same_classes("lskd", student, teachers["teacher"].info)
        if student.classes < 3:
            raise Refused(
                f"Method 'lskd' compares the shapes of logit vectors, which all agree below 3 classes, and the data "
                f"has {student.classes}."
            )
        self.w_task = W_TASK[config.base] if config.w_task is None else config.w_task
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))

    @classmethod
    def needs(cls, config: LSKDConfig) -> Needs:
        """The teacher's logits."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms, or three."""
        config = self.config
        logits_s, logits_t = exact(taps_s.logits), exact(taps_t["teacher"].logits.detach())
        if self.training:
            deviation = logits_s.detach().std(dim=1).mean().double()
            self.sums += torch.stack([self.sums.new_ones(()), deviation])
        z_s, z_t = (standardised(logits, std_floor=config.std_floor) for logits in (logits_s, logits_t))
        losses = {"task": self.w_task * self.task_loss(taps_s.logits, batch.y)}
        if config.base == "kd":
            return losses | {"kd": config.weight * kd_loss(z_s, z_t, tau=config.tau)}
        tckd, nckd = dkd_losses(z_s, z_t, class_index(batch.y), tau=config.tau)
        return losses | {
            "tckd": config.weight * config.alpha * tckd,
            "nckd": config.weight * config.beta * nckd,
        }

    def diagnostics(self) -> dict[str, float]:
        """`logit_std`, the mean deviation of a student's logits over the training batches since the last call: near 0
        the gradients are large. Of this process's share of the batch."""
        batches, total = self.sums.tolist()
        self.sums.zero_()
        return {"logit_std": total / batches} if batches else {}
