"""DIST: the student's class probabilities correlate with the teacher's, per sample and per class.

Source: Huang et al. 2022, arXiv:2205.10536, equations 6 to 9; defaults as in the comparison of the OFA-KD repository
(beta, gamma and tau 1; the original weighs both parts by 2, with tau 4 on CIFAR). Deviations: none.
Worth knowing: a correlation has no gradient scale of its own. Where the student's probabilities do not vary at all (a
classifier that starts at zero, a batch of equal samples) the gradient is the direction divided by `eps`, up to 1e8;
clip gradients there, or raise `eps`.
Shapes: B batch, C classes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact, same_classes, several_samples
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, options


@options
class DISTConfig:
    """Options."""

    tau: Positive = 1.0  # softmax temperature
    beta: NotNegative = 1.0  # weight of the relation among the classes of one sample (inter)
    gamma: NotNegative = 1.0  # weight of the relation among the samples of one class (intra)
    eps: Positive = 1e-8  # added to the denominator of a correlation
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def pearson(a: Float[Tensor, "R N"], b: Float[Tensor, "R N"], *, eps: float = 1e-8) -> Float[Tensor, " R"]:
    r"""Correlation of each row of a with the same row of b, in [-1, 1]; zero where one of them is constant.

    .. math:: \rho = \frac{\sum (a - \bar a)(b - \bar b)}{\|a - \bar a\| \|b - \bar b\| + \epsilon}
    """
    a = a - a.mean(dim=1, keepdim=True)
    b = b - b.mean(dim=1, keepdim=True)
    length = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    return (a * b).sum(dim=1) / (length + eps)


def dist_losses(
    logits_s: Float[Tensor, "B C"], logits_t: Float[Tensor, "B C"], *, tau: float, eps: float = 1e-8
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Distances of the two relations.

    .. math::
        inter = \tau^2 (1 - \frac{1}{B} \sum_b \rho(p^t_{b,:}, p^s_{b,:})), \quad
        intra = \tau^2 (1 - \frac{1}{C} \sum_k \rho(p^t_{:,k}, p^s_{:,k}))

    Args:
        logits_s: student logits [B, C]; gradients flow.
        logits_t: teacher logits [B, C]; detached here.
        tau: softmax temperature, > 0.
        eps: of `pearson`.

    Returns:
        inter and intra: scalars in [0, 2 tau^2].
    """
    p_s = (exact(logits_s) / tau).softmax(dim=1)
    p_t = (exact(logits_t.detach()) / tau).softmax(dim=1)
    inter = 1 - pearson(p_s, p_t, eps=eps).mean()
    intra = 1 - pearson(p_s.T, p_t.T, eps=eps).mean()
    return tau**2 * inter, tau**2 * intra


class DIST(Method):
    """`task` + `inter` + `intra`. No parameters of its own.

    Samples are related within one process' share of a batch.
    """

    Config = DISTConfig

    def __init__(
        self, config: DISTConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a teacher with other classes."""
        super().__init__(config, student, teachers, criterion)
        same_classes("dist", student, teachers["teacher"].info)

    @classmethod
    def needs(cls, config: DISTConfig) -> Needs:
        """The teacher's logits."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Three weighted terms.

        Raises:
            UserError: a batch of one, which has no relation among samples, unless gamma is 0.
        """
        config = self.config
        if config.gamma:
            several_samples("dist", len(batch.y))
        inter, intra = dist_losses(taps_s.logits, taps_t["teacher"].logits, tau=config.tau, eps=config.eps)
        task = self.task_loss(taps_s.logits, batch.y)
        return {"task": config.w_task * task, "inter": config.beta * inter, "intra": config.gamma * intra}
