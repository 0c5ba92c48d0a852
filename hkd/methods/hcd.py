"""Heterogeneous complementary distillation (HCD): targets made from the features of student and teacher together.

Source: arXiv:2511.10942 gives the structure and no equations; the losses, their weights and the modules follow
third-party re-implementations that disagree with each other (docs/hcd.md lists every open reading, its default here and
the option that takes the other one). Projectors: `hkd.methods.parts.stage_projector`.
Each stage i of the student and the teacher's pooled feature are mapped to n sub-logits z_ij (complementary feature
mapper, CFM); with the teacher's logits z_t added they are u_ij, extra targets of the student (sub-logit decoupled
distillation, SDD), which an orthogonality loss keeps apart.
Deviations: none known; `projector`, `ce_on` and the meaning of `cfm=False` are decided here.
Shapes: B batch, C classes, S stages, n sub-logits, D width, E projected width.
"""

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.kd import kd_loss
from hkd.methods.parts.initialisers import as_ofa
from hkd.methods.parts.logits import class_index, exact, same_classes
from hkd.methods.parts.on_host import Passes
from hkd.methods.parts.stage_projector import StageProjectors
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import Few, NotNegative, Positive, Share, ShareBelow1, Stages, Switch, Whole, options, together

FIGURES = ("sub_norm", "teacher_norm", "sub_cosine", "target_entropy", "teacher_entropy", "target_kl")


@options
class HCDConfig:
    """Options.

    stages: student stages with shared logits. n: sub-logits per stage; 1 with `sdd` off.
    cfm: whether a mapper joins both features; off: the projected student feature goes straight to a linear classifier.
    cfm_hidden: its hidden layer, as wide as the teacher's feature, or none. concat: which features it takes.
    sdd, ol, kd_term: whether the logits are split, kept apart, and whether plain KD is added.
    fuse_teacher: whether the teacher's logits are added to the sub-logits. ce_on: what L_sub classifies by.
    ol_on: what the orthogonality loss compares. theta: cosine in [0, 1] from which it acts. ol_mask: the true class's
        entry is set to 0, dropped (the same in value), or set to -1e6, which switches the loss off.
    stage_reduce: sum or mean of the stages' losses. detach_target: no gradient into the targets of L_hcd.
    tau: softmax temperature of both distillation terms. w_gt: weight of both classification losses.
        w_kd, w_hcd, w_ol: weights of the other terms. warmup: forward passes of training over which w_hcd rises from 0,
        in a straight line; 0: it is there from the first.
    label_smoothing: of L_sub; None: L_sub is the recipe's loss, as the task loss always is.
    projector: as `StageProjectors` takes it; Swin students need `tokens`.
    diagnose: whether every epoch says how far the targets are from the teacher (`HCD.diagnostics`).
    """

    stages: Stages = (1, 2, 3, 4)
    n: Few = 4
    cfm: Switch = True
    cfm_hidden: Literal["teacher", "none"] = "teacher"
    concat: Literal["both", "student", "teacher"] = "both"
    sdd: Switch = True
    ol: Switch = True
    kd_term: Switch = True
    fuse_teacher: Switch = True
    ce_on: Literal["fused", "sub"] = "fused"
    ol_on: Literal["fused", "sub"] = "fused"
    ol_mask: Literal["zero", "drop", "neg1e6"] = "zero"
    theta: Share = 0.5
    stage_reduce: Literal["sum", "mean"] = "sum"
    detach_target: Switch = False
    tau: Positive = 1.0
    w_gt: NotNegative = 1.0
    w_kd: NotNegative = 1.0
    w_hcd: NotNegative = 6.0
    warmup: Whole = 0
    w_ol: NotNegative = 1.0
    label_smoothing: ShareBelow1 | None = None
    projector: Literal["auto", "cnn", "tokens"] = "auto"
    diagnose: Switch = False

    @together
    def _mapper(self) -> None:
        if not self.cfm and self.concat != "both":
            raise ValueError(f"concat={self.concat} chooses the mapper's input, and cfm is off: leave one out")

    @property
    def parts(self) -> int:
        """Sub-logits per stage."""
        return self.n if self.sdd else 1

    @property
    def distils(self) -> bool:
        """Whether there is a plain KD term."""
        return self.kd_term and self.w_kd > 0

    @property
    def separates(self) -> bool:
        """Whether there is an orthogonality term: one sub-logit has nothing to be kept apart from."""
        return self.ol and self.w_ol > 0 and self.parts > 1

    @property
    def maps(self) -> bool:
        """Whether there are shared logits, and a loss that uses them."""
        return bool(self.stages) and (self.w_gt > 0 or self.w_hcd > 0 or self.separates)

    @property
    def projects(self) -> bool:
        """Whether shared logits depend on the student's features."""
        return self.maps and not (self.cfm and self.concat == "teacher")


def target_kl(targets: Float[Tensor, "B M C"], logits_s: Float[Tensor, "B C"], *, tau: float) -> Float[Tensor, ""]:
    r"""Temperature-scaled KL divergence from M targets of each sample to the student; gradients flow to both.

    .. math:: L = \frac{\tau^2}{B M} \sum_{b,m} KL(softmax(u_{bm} / \tau) || softmax(s_b / \tau))

    Args:
        targets: logits of the targets [B, M, C].
        logits_s: student logits [B, C].
        tau: softmax temperature, > 0.

    Returns:
        Scalar in nats, averaged over B and M and summed over C; zero when all agree up to constants.
    """
    log_p_s = F.log_softmax(exact(logits_s) / tau, dim=1)[:, None]
    log_p_u = F.log_softmax(exact(targets) / tau, dim=2)
    return tau**2 * (log_p_u.exp() * (log_p_u - log_p_s)).sum(dim=2).mean()


def repeated(criterion: Criterion, logits: Float[Tensor, "B M C"], y: Tensor) -> Float[Tensor, ""]:
    """Mean of a criterion (itself a mean over samples) over M logits of each sample.

    Args:
        criterion: (logits [N, C], targets [N] or [N, C]) -> mean over N.
        logits: M per sample [B, M, C].
        y: class indices [B], or soft targets [B, C].
    """
    return criterion(logits.flatten(0, 1), y.repeat_interleave(logits.shape[1], dim=0))


def orthogonality_loss(
    logits: Float[Tensor, "B S n C"],
    y: Tensor,
    *,
    theta: float,
    mask: Literal["zero", "drop", "neg1e6"] = "zero",
) -> Float[Tensor, ""]:
    r"""How far the cosines between logits of a sample and stage lie above theta, the true class left out.

    .. math:: L = \frac{1}{B S} \sum_{b,i} \frac{1}{n (n - 1)} \sum_{j \ne k}
                  \max(0, \cos(m(u_{bij}), m(u_{bik})) - \theta)^2

    A mask m of -1e6 makes all masked vectors almost the same direction: the loss is then the constant
    (1 - theta)^2, without a gradient (docs/hcd.md).

    Args:
        logits: [B, S, n, C], n >= 2.
        y: class indices [B], or soft targets [B, C], whose arg-max counts.
        theta: cosine from which the loss acts, in [0, 1].
        mask: what becomes of the true class's entry.

    Returns:
        Scalar in [0, (1 - theta)^2], averaged over B, S and ordered pairs, in single precision or better. Vectors that
        are zero but for the true class have cosine 0 with all.
    """
    logits = exact(logits)
    true = F.one_hot(class_index(y), logits.shape[3]).bool()[:, None, None]
    # An entry of zero adds nothing to a product or a norm, so dropping it gives the same cosines.
    masked = logits.masked_fill(true, -1e6 if mask == "neg1e6" else 0.0)
    directions = F.normalize(masked, dim=3, eps=1e-8)
    n = logits.shape[2]
    # No autocast: cosines of half precision would be off by more than their distance from theta.
    with torch.autocast(logits.device.type, enabled=False):
        cosines = directions @ directions.transpose(2, 3)
    others = 1 - torch.eye(n, dtype=logits.dtype, device=logits.device)
    return ((cosines - theta).relu().square() * others).sum(dim=(2, 3)).mean() / (n * (n - 1))


def target_figures(targets: Float[Tensor, "B M C"], logits_t: Float[Tensor, "B C"]) -> dict[str, Float[Tensor, ""]]:
    r"""How far M targets u of each sample are from the teacher's logits z_t, each a mean over B and M.

    Softmax does not see a constant, so norms and the cosine are of logits whose mean over classes is taken out.

    Args:
        targets: logits of the targets [B, M, C].
        logits_t: teacher logits [B, C].

    Returns:
        `sub_norm` and `teacher_norm`, the norms of u - z_t and of z_t; `sub_cosine` between both: -1 where what is
        added to the teacher's logits only takes them back; `target_entropy` and `teacher_entropy`, of softmax(u) and
        softmax(z_t), and `target_kl`, KL(softmax(z_t) || softmax(u)), in nats.
    """
    u, t = exact(targets), exact(logits_t)[:, None]
    sub, teacher = ((x - x.mean(dim=2, keepdim=True)) for x in (u - t, t))
    log_u, log_t = F.log_softmax(u, dim=2), F.log_softmax(t, dim=2)
    values = (
        sub.norm(dim=2),
        teacher.norm(dim=2),
        F.cosine_similarity(sub, teacher, dim=2),
        -(log_u.exp() * log_u).sum(dim=2),
        -(log_t.exp() * log_t).sum(dim=2),
        (log_t.exp() * (log_t - log_u)).sum(dim=2),
    )
    return {name: value.mean() for name, value in zip(FIGURES, values, strict=True)}


class HCD(Method):
    """`task` (L_ce), `kd`, `sub` (CE of the targets), `hcd` and `ol`. Terms of weight 0 are left out.

    Own parameters: per stage a stage projector and a mapper to n * C shared logits. Buffers, kept in checkpoints: with
    `warmup` the forward passes of training so far, `passes`; with `diagnose` the running sums of `diagnostics`.
    """

    Config = HCDConfig
    passes: Tensor
    sums: Tensor

    def __init__(
        self, config: HCDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Build what this configuration uses.

        Raises:
            Refused: a teacher with other classes, or a stage that cannot be projected.
        """
        super().__init__(config, student, teachers, criterion)
        if not self.needs(config).teachers:
            return
        teacher = teachers["teacher"].info
        same_classes("hcd", student, teacher)
        self.mappers = nn.ModuleList()
        if not config.maps:
            return
        width = teacher.pooled if config.cfm and config.concat != "student" else 0
        if config.projects:
            self.projectors = StageProjectors(student, config.stages, teacher.pooled, config.projector)
            width += self.projectors.width
        for _ in config.stages:
            self.mappers.append(self.mapper(width, teacher.pooled, config.parts * student.classes))
        self.mappers.apply(as_ofa)
        if config.warmup:
            self.register_buffer("passes", torch.tensor(0))
            self.passed = Passes()
        if config.diagnose:
            self.register_buffer("sums", torch.zeros(1 + len(FIGURES), dtype=torch.float64))  # batches, then figures

    def mapper(self, in_width: int, hidden: int, out_width: int) -> nn.Module:
        """From the features of one stage to its shared logits, [B, in_width] -> [B, out_width]."""
        if not self.config.cfm or self.config.cfm_hidden == "none":
            return nn.Linear(in_width, out_width)
        return nn.Sequential(nn.Linear(in_width, hidden), nn.ReLU(), nn.Linear(hidden, out_width))

    @classmethod
    def needs(cls, config: HCDConfig) -> Needs:
        """The stages that are projected; the teacher unless this is supervised training."""
        return Needs(
            student=Want(stages=tuple(sorted(config.stages))) if config.projects else Want(),
            teachers={"teacher": Want()} if config.distils or config.maps else {},
        )

    def sub_logits(self, taps_s: Taps, teacher: Taps) -> Float[Tensor, "B S n C"]:
        """z: the shared logits of every stage; class k of sub-logit j is entry j * C + k of a mapper's output.

        In single precision or better.
        """
        config = self.config
        vectors: list[list[Tensor]] = [[] for _ in config.stages]
        if config.projects:
            vectors = [[vector] for vector in self.projectors(taps_s)]
        if config.cfm and config.concat != "student":
            vectors = [[*vector, teacher.pooled.detach()] for vector in vectors]
        shared = [mapper(torch.cat(vector, dim=1)) for mapper, vector in zip(self.mappers, vectors, strict=True)]
        return exact(torch.stack(shared, dim=1)).unflatten(2, (config.parts, self.student.classes))

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """All weighted terms."""
        config = self.config
        losses = {"task": config.w_gt * self.task_loss(taps_s.logits, batch.y)}
        if config.distils:
            losses["kd"] = config.w_kd * kd_loss(taps_s.logits, taps_t["teacher"].logits, tau=config.tau)
        if config.maps:
            losses |= self.target_losses(self.sub_logits(taps_s, taps_t["teacher"]), batch, taps_s, taps_t["teacher"])
            if config.warmup and self.training:
                self.passed.step(self.passes)
        return losses

    def target_losses(
        self, sub: Float[Tensor, "B S n C"], batch: Batch, taps_s: Taps, teacher: Taps
    ) -> dict[str, Tensor]:
        """The weighted terms that need the sub-logits, all stages at once."""
        config = self.config
        stages = len(config.stages) if config.stage_reduce == "sum" else 1  # losses below are means over stages
        fused = sub + exact(teacher.logits.detach())[:, None, None] if config.fuse_teacher else sub
        if config.diagnose and self.training:
            self.note(fused, teacher)
        losses = {}
        if config.w_gt > 0:
            judged = fused if config.ce_on == "fused" else sub
            losses["sub"] = config.w_gt * stages * repeated(self.sub_criterion, judged.flatten(1, 2), batch.y)
        if config.w_hcd > 0:
            targets = (fused.detach() if config.detach_target else fused).flatten(1, 2)
            losses["hcd"] = self.w_hcd * stages * target_kl(targets, taps_s.logits, tau=config.tau)
        if config.separates:
            compared = fused if config.ol_on == "fused" else sub
            loss = orthogonality_loss(compared, batch.y, theta=config.theta, mask=config.ol_mask)
            losses["ol"] = config.w_ol * stages * loss
        return losses

    @property
    def w_hcd(self) -> float:
        """The weight of the target loss in this forward pass."""
        config = self.config
        return config.w_hcd * min(self.passed(self.passes) / config.warmup, 1.0) if config.warmup else config.w_hcd

    def note(self, fused: Float[Tensor, "B S n C"], teacher: Taps) -> None:
        """Add a batch to what `diagnostics` gives."""
        with torch.no_grad():
            found = target_figures(fused.flatten(1, 2), teacher.logits)
            self.sums += torch.stack([self.sums.new_ones(()), *(found[name].double() for name in FIGURES)])

    def diagnostics(self) -> dict[str, float]:
        """With `diagnose`: `target_figures`, means over the training batches since the last call; u are the targets of
        the loss (the sub-logits alone without `fuse_teacher`). Of this process's share of the batch."""
        if not (self.config.diagnose and self.config.maps):
            return {}
        batches, *totals = self.sums.tolist()
        self.sums.zero_()
        return {name: total / batches for name, total in zip(FIGURES, totals, strict=True)} if batches else {}

    def sub_criterion(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of L_sub, [N, C] and [N] or [N, C] to a mean over N; soft targets are taken as they are."""
        smoothing = self.config.label_smoothing
        if smoothing is None:
            return self.task_loss(logits, y)
        return F.cross_entropy(logits, y, label_smoothing=smoothing if y.ndim == 1 else 0.0)
