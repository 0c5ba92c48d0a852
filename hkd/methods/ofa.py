"""One-for-all distillation (OFA): every stage of the student predicts classes, with the true one enhanced.

Source: Hao et al. 2023, arXiv:2310.19444, and its official repository `Hao840/OFAKD`, whose defaults are these.
The two disagree: the paper raises only the true class's term to the power, the code the other probabilities too
(`form`); at eps 1 they agree. In both forms the hard-label term is the task loss on the final logits alone, as in the
code. As there, the loss is not multiplied by tau squared.
Deviations: projectors on small grids, see `hkd.methods.parts.stage_projector`.
Shapes: B batch, C classes, S stages, E projected width.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.initialisers import as_ofa
from hkd.methods.parts.logits import class_index, exact, same_classes
from hkd.methods.parts.stage_projector import StageProjectors
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Positive, Stages, options, together


@options
class OFAConfig:
    """Options.

    stages: student stages with a branch. form: which probabilities are raised to the power, `code` (all) or `paper`
        (the true class's).
    eps: the power, > 0: one for all stages, or one for each. eps_logits: that of the final logits.
    tau: softmax temperature of both sides. w_task, w_ofa, w_kd: weights of the task loss, of the stages' losses
        (summed over stages) and of the same loss on the final logits, which stands in KD's place.
    projector: as `StageProjectors` takes it; Swin students need `tokens`.
    """

    stages: Stages = (1, 2, 3, 4)
    form: Literal["code", "paper"] = "code"
    eps: tuple[Positive, ...] = (1.0,)
    eps_logits: Positive = 1.0
    tau: Positive = 1.0
    w_task: NotNegative = 1.0
    w_ofa: NotNegative = 1.0
    w_kd: NotNegative = 1.0
    projector: Literal["auto", "cnn", "tokens"] = "auto"

    @together
    def _powers(self) -> None:
        if len(self.eps) not in (1, len(self.stages)):
            raise ValueError(f"eps needs one value, or one for each of {len(self.stages)} stages, got {self.eps}")


def ofa_loss(
    logits_s: Float[Tensor, "B S C"],
    logits_t: Float[Tensor, "B C"],
    y: Tensor,
    eps: Float[Tensor, " S"],
    *,
    tau: float,
    form: Literal["code", "paper"],
) -> Float[Tensor, ""]:
    r"""Cross-entropy from the teacher's probabilities, with the true class's enhanced.

    .. math:: L = -\frac{1}{B} \sum_{b,i,k} w_{bik} \log p^s_{bik}, \qquad
              w = (p^t + m)^{\epsilon_i} - m \quad \text{(code)}

    with m the one-hot class and p = softmax(logits / tau). In the paper's form w is the same at the true class, and
    plain p^t at the others.

    Args:
        logits_s: student logits of S branches [B, S, C]; gradients flow.
        logits_t: teacher logits [B, C]; detached here.
        y: class indices [B], or soft targets [B, C], whose arg-max counts.
        eps: power of each branch [S], > 0.
        tau: softmax temperature, > 0.
        form: `code` or `paper`.

    Returns:
        Scalar in nats, averaged over B and summed over S and C.
    """
    p_t = (exact(logits_t.detach()) / tau).softmax(dim=1)[:, None]
    one_hot = F.one_hot(class_index(y), logits_t.shape[1]).to(p_t.dtype)[:, None]
    weights = (p_t + one_hot) ** eps.to(p_t.dtype)[:, None] - one_hot
    if form == "paper":
        weights = torch.where(one_hot > 0, weights, p_t)
    return -(weights * (exact(logits_s) / tau).log_softmax(dim=2)).sum() / len(logits_s)


class OFA(Method):
    """`task`, `ofa` (all stages) and `kd` (the final logits). Terms of weight 0 are left out.

    Own parameters: a stage projector and a classifier Linear(E -> C) per stage.
    """

    Config = OFAConfig
    eps: Tensor
    eps_logits: Tensor

    def __init__(
        self, config: OFAConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build one branch per stage.

        Raises:
            Refused: a teacher with other classes, or a stage that cannot be projected.
        """
        super().__init__(config, student, teachers, criterion)
        if not self.needs(config).teachers:
            return
        teacher = teachers["teacher"].info
        same_classes("ofa", student, teacher)
        self.register_buffer("eps_logits", torch.tensor([config.eps_logits]), persistent=False)
        if not has_branches(config):
            return
        self.projectors = StageProjectors(student, config.stages, teacher.pooled, config.projector)
        self.classifiers = nn.ModuleList(nn.Linear(self.projectors.width, student.classes) for _ in config.stages)
        self.classifiers.apply(as_ofa)
        eps = config.eps if len(config.eps) > 1 else (*config.eps,) * len(config.stages)
        self.register_buffer("eps", torch.tensor(eps), persistent=False)

    @classmethod
    def needs(cls, config: OFAConfig) -> Needs:
        """The stages with a branch, and the teacher's logits, unless both weights are 0."""
        student = Want(stages=tuple(sorted(config.stages))) if has_branches(config) else Want()
        return Needs(student=student, teachers={"teacher": Want()} if has_branches(config) or config.w_kd else {})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """All weighted terms."""
        config = self.config
        losses = {"task": config.w_task * self.task_loss(taps_s.logits, batch.y)}
        options = {"tau": config.tau, "form": config.form}
        if has_branches(config):
            vectors = self.projectors(taps_s)
            logits = torch.stack([head(v) for head, v in zip(self.classifiers, vectors, strict=True)], dim=1)
            loss = ofa_loss(logits, taps_t["teacher"].logits, batch.y, self.eps, **options)
            losses["ofa"] = config.w_ofa * loss
        if config.w_kd:
            loss = ofa_loss(taps_s.logits[:, None], taps_t["teacher"].logits, batch.y, self.eps_logits, **options)
            losses["kd"] = config.w_kd * loss
        return losses


def has_branches(config: OFAConfig) -> bool:
    """Whether any stage has a loss."""
    return bool(config.stages) and config.w_ofa > 0
