"""Correlation congruence (CC): how the samples of a batch relate to each other is the same for student and teacher.

Two things go by this name. `delta` (the default, as in the tables of the OFA-KD repository, whose code is that of the
CRD authors) multiplies the differences of student and teacher at neighbouring samples. Its embeddings of both sides
are learned, so it has a trivial minimum: both embeddings equal. `rbf` is the published method (Peng et al. 2019,
arXiv:1904.01802, equations 6 to 8): Gaussian similarities of all pairs, as a Taylor series of order 2.
Deviations: none beyond these readings. Not specified, decided here: the weight of `rbf` is 1.
Shapes: B batch, D embedding width.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact, several_samples
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, Size, options

WEIGHTS = {"delta": 0.02, "rbf": 1.0}
EPS = 1e-5  # smallest length of an embedding that has a direction


@options
class CCConfig:
    """Options."""

    form: Literal["delta", "rbf"] = "delta"
    dim: Size = 128  # width of the embeddings
    gamma: Positive = 0.4  # of the Gaussian exp(-gamma |a - b|^2); `rbf` only
    weight: NotNegative | None = None  # of the loss; None: .02 for `delta`, 1 for `rbf`
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def delta_loss(g_s: Float[Tensor, "B D"], g_t: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    r"""Product of the differences at neighbouring samples.

    .. math:: L = \frac{1}{B - 1} \sum_{b < B} \sum_c \Delta_{b,c} \Delta_{b+1,c}, \quad \Delta = |g_s - g_t|

    Args:
        g_s: student embeddings [B, D], B >= 2.
        g_t: teacher embeddings [B, D]; gradients flow, because they are learned too.

    Returns:
        Scalar, at least 0, averaged over neighbours and summed over D.
    """
    delta = (g_s - g_t).abs()
    return (delta[:-1] * delta[1:]).sum(dim=1).mean()


def rbf_similarity(g: Float[Tensor, "B D"], *, gamma: float) -> Float[Tensor, "B B"]:
    r"""Gaussian similarity of unit vectors, to the second order of its Taylor series.

    .. math:: R = e^{-2 \gamma} \sum_{p=0}^2 \frac{(2 \gamma)^p}{p!} G^p, \quad G_{ij} = \hat g_i \cdot \hat g_j
    """
    unit = F.normalize(g, dim=1, eps=EPS).double()  # which autocast leaves alone, and B is small
    gram = (unit @ unit.T).to(g.dtype)
    return math.exp(-2 * gamma) * (1 + 2 * gamma * gram + 2 * (gamma * gram).square())


def rbf_loss(g_s: Float[Tensor, "B D"], g_t: Float[Tensor, "B D"], *, gamma: float) -> Float[Tensor, ""]:
    """Mean squared difference of the two B x B matrices of `rbf_similarity`.

    Args:
        g_s: student embeddings [B, D].
        g_t: teacher embeddings [B, D]; gradients flow, because they are learned too.
        gamma: > 0.
    """
    return F.mse_loss(rbf_similarity(g_s, gamma=gamma), rbf_similarity(g_t, gamma=gamma))


class CC(Method):
    """`task` + `cc`. Own parameters: one linear embedding with bias per side, of the pooled features."""

    Config = CCConfig

    def __init__(
        self, config: CCConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        super().__init__(config, student, teachers, criterion)
        self.embed_s = nn.Linear(student.pooled, config.dim)
        self.embed_t = nn.Linear(teachers["teacher"].info.pooled, config.dim)
        self.weight = WEIGHTS[config.form] if config.weight is None else config.weight

    @classmethod
    def needs(cls, config: CCConfig) -> Needs:
        """The teacher's pooled feature."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms.

        Raises:
            UserError: a batch of one, in which no two samples can be compared.
        """
        several_samples("cc", len(batch.y))
        g_s = exact(self.embed_s(taps_s.pooled))
        g_t = exact(self.embed_t(taps_t["teacher"].pooled.detach()))
        loss = delta_loss(g_s, g_t) if self.config.form == "delta" else rbf_loss(g_s, g_t, gamma=self.config.gamma)
        task = self.task_loss(taps_s.logits, batch.y)
        return {"task": self.config.w_task * task, "cc": self.weight * loss}
