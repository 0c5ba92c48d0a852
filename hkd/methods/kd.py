"""Logit distillation (KD): the student matches the teacher's softened class distribution.

Source: Hinton et al. 2015, arXiv:1503.02531, section 2; defaults as in the comparison of the OFA-KD repository
(tau 1, both weights 1; other suites use tau 4 with weights .1 and .9). Deviations: none.
Shapes: B batch, C classes.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Method, Needs
from hkd.methods.parts.logits import exact
from hkd.models.taps import Taps, Want
from hkd.options import NotNegative, Positive, options


@options
class KDConfig:
    """Options."""

    tau: Positive = 1.0  # softmax temperature
    w_task: NotNegative = 1.0  # weight of the recipe's task loss
    w_kd: NotNegative = 1.0  # weight of the distillation loss


def kd_loss(logits_s: Float[Tensor, "B C"], logits_t: Float[Tensor, "B C"], *, tau: float) -> Float[Tensor, ""]:
    r"""Temperature-scaled KL divergence from teacher to student.

    .. math:: L = \frac{\tau^2}{B} \sum_b KL(softmax(t_b / \tau) || softmax(s_b / \tau))

    Args:
        logits_s: student logits [B, C]; gradients flow.
        logits_t: teacher logits [B, C]; detached here.
        tau: softmax temperature, > 0.

    Returns:
        Scalar in nats, averaged over B and summed over C; zero when the logits agree up to a constant per sample.
    """
    log_p_s = F.log_softmax(exact(logits_s) / tau, dim=1)
    log_p_t = F.log_softmax(exact(logits_t.detach()) / tau, dim=1)
    return tau**2 * F.kl_div(log_p_s, log_p_t, reduction="batchmean", log_target=True)


class KD(Method):
    """`task` + `kd`. No parameters of its own; serves every pair with the same classes."""

    Config = KDConfig

    @classmethod
    def needs(cls, config: KDConfig) -> Needs:
        """The teacher's logits."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms."""
        config = self.config
        kd = kd_loss(taps_s.logits, taps_t["teacher"].logits, tau=config.tau)
        return {"task": config.w_task * self.task_loss(taps_s.logits, batch.y), "kd": config.w_kd * kd}
