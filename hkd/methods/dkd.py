"""Decoupled knowledge distillation (DKD): target class and other classes are matched apart, each with its own weight.

Source: Zhao et al. 2022, arXiv:2203.08679, equations 6 and 7; defaults as in the comparison of the OFA-KD repository
(alpha 1, beta 2, tau 1; mdistiller takes beta 8, tau 4 and a warm-up of 20 epochs). Deviation in form, not in value:
the distribution over the other classes is a softmax of their C - 1 logits, instead of one over C logits of which the
target's was lowered by 1000.
Shapes: B batch, C classes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import class_index, exact, same_classes
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, options


@options
class DKDConfig:
    """Options."""

    tau: Positive = 1.0  # softmax temperature
    alpha: NotNegative = 1.0  # weight of the target class against the rest (TCKD)
    beta: NotNegative = 2.0  # weight of the distribution among the other classes (NCKD)
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def dkd_losses(
    logits_s: Float[Tensor, "B C"], logits_t: Float[Tensor, "B C"], target: Int[Tensor, " B"], *, tau: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""The two parts of the KL divergence from teacher to student.

    .. math::
        TCKD = \frac{\tau^2}{B} \sum_b KL([p^t_y, 1 - p^t_y] || [p^s_y, 1 - p^s_y]), \quad
        NCKD = \frac{\tau^2}{B} \sum_b KL(\hat p^t || \hat p^s)

    with p = softmax(z / tau) and \hat p the softmax over the C - 1 classes other than y. Per sample, KD is
    TCKD + (1 - p^t_y) NCKD.

    Args:
        logits_s: student logits [B, C], C >= 2; gradients flow.
        logits_t: teacher logits [B, C]; detached here.
        target: class of each sample [B].
        tau: softmax temperature, > 0.

    Returns:
        TCKD and NCKD: scalars in nats, averaged over B; NCKD is zero for two classes.
    """
    binary_s, others_s = _split(exact(logits_s) / tau, target)
    binary_t, others_t = _split(exact(logits_t.detach()) / tau, target)
    tckd = F.kl_div(binary_s, binary_t, reduction="batchmean", log_target=True)
    nckd = F.kl_div(others_s, others_t, reduction="batchmean", log_target=True)
    return tau**2 * tckd, tau**2 * nckd


def _split(
    logits: Float[Tensor, "B C"], target: Int[Tensor, " B"]
) -> tuple[Float[Tensor, "B 2"], Float[Tensor, "B C-1"]]:
    """Log-probabilities of (target, not target), and of each other class given that it is not the target."""
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, column + (column >= target[:, None]))
    binary = torch.cat([logits.gather(1, target[:, None]), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return binary.log_softmax(dim=1), others.log_softmax(dim=1)


class DKD(Method):
    """`task` + `tckd` + `nckd`. No parameters of its own; soft targets count as their most probable class."""

    Config = DKDConfig

    def __init__(
        self, config: DKDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a teacher with other classes, or fewer than two classes."""
        super().__init__(config, student, teachers, criterion)
        same_classes("dkd", student, teachers["teacher"].info)
        if student.classes < 2:
            raise Refused(f"Method 'dkd' needs at least 2 classes, the data has {student.classes}.")

    @classmethod
    def needs(cls, config: DKDConfig) -> Needs:
        """The teacher's logits."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Three weighted terms."""
        config = self.config
        tckd, nckd = dkd_losses(taps_s.logits, taps_t["teacher"].logits, class_index(batch.y), tau=config.tau)
        task = self.task_loss(taps_s.logits, batch.y)
        return {"task": config.w_task * task, "tckd": config.alpha * tckd, "nckd": config.beta * nckd}
