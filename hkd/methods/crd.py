"""Contrastive representation distillation (CRD): a sample's student and teacher embeddings find each other in a bank.

Source: Tian et al. 2020, arXiv:1910.10699, equations 17 and 18, and the official code for what the paper leaves open
(banks that move towards the newest embedding, a constant Z fixed at the first batch, eps in both denominators).
Deviations in form, not in value: scores are logarithms throughout; they come from one product of the batch with the
whole bank, of which the negatives are picked, instead of copying K rows of the bank per sample.
Decided here: negatives are drawn on the run's own random generator; several processes exchange their embeddings, so
that all have the same banks and the same Z, which are those of the global batch.
Shapes: B batch, N training samples, D embedding width, K negatives, P = K + 1, C classes.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.methods.base import Criterion, Method, Needs, Samples
from hkd.methods.parts.gathering import SHORTEST, gathered
from hkd.methods.parts.logits import class_index, exact
from hkd.methods.parts.on_host import OnHost
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import Count, NotNegative, Positive, ShareBelow1, Size, options

EPS = 1e-7  # of the loss


@options
class CRDConfig:
    """Options."""

    dim: Size = 128  # width of the embeddings
    negatives: Count = 16384  # K, per sample
    tau: Positive = 0.07  # temperature of the scores
    momentum: ShareBelow1 = 0.5  # share of the old entry when a bank is updated
    weight: NotNegative = 1.0  # of both contrastive terms
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def crd_loss(log_scores: Float[Tensor, "B P"], count: int) -> Float[Tensor, ""]:
    r"""Noise-contrastive loss: is the first column the sample's own entry, and are the others not?

    .. math::
        L = -\frac{1}{B} \sum_b \left[ \log \frac{s_{b0}}{s_{b0} + c + \epsilon}
            + \sum_{k=1}^K \log \frac{c}{s_{bk} + c + \epsilon} \right], \quad c = K / N

    Args:
        log_scores: log s, the sample's own entry first, then K negatives.
        count: N.

    Returns:
        Scalar in nats, averaged over B and summed over K + 1.
    """
    noise = (log_scores.shape[1] - 1) / count
    relative = log_scores - math.log(noise + EPS)
    constant = (log_scores.shape[1] - 1) * math.log1p(EPS / noise)
    return (F.softplus(-relative[:, 0]) + F.softplus(relative[:, 1:]).sum(dim=1)).mean() + constant


def contrast(
    anchors: Float[Tensor, "B D"],
    bank: Float[Tensor, "N D"],
    picks: Int[Tensor, "B P"],
    log_z: Float[Tensor, ""],
    *,
    tau: float,
    fixed: bool | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Loss of unit vectors against the entries of a bank, s = exp(v . m / tau) / Z.

    Args:
        anchors: unit vectors v.
        bank: entries m; no gradient.
        picks: rows of the bank for each anchor: its own, then its negatives.
        log_z: log Z, or -inf where it is to be fixed now: Z = N times the mean of exp(v . m / tau) over all picks,
            of all processes.
        tau: temperature, > 0.
        fixed: whether log Z is a number, where that is known; None: it is looked up, which waits for a GPU.

    Returns:
        Loss as `crd_loss`, and log Z as it was used.
    """
    similarity = (anchors / tau @ bank.T).gather(1, picks)
    if log_z.isneginf() if fixed is None else not fixed:
        sums = gathered(similarity.detach().flatten().logsumexp(0, keepdim=True))
        log_z = sums.logsumexp(0) + math.log(len(bank) / (similarity.numel() * len(sums)))
    return crd_loss(similarity - log_z, len(bank)), log_z


class _Contrast(torch.autograd.Function):
    """`contrast` with its gradient taken at once: the bank may change before the backward pass, and B x N scores go."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, bank: Tensor, picks: Tensor, log_z: Tensor, tau: float, fixed: bool | None
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            leaf = anchors.detach().requires_grad_()
            loss, log_z = contrast(leaf, bank, picks, log_z, tau=tau, fixed=fixed)
        ctx.save_for_backward(*torch.autograd.grad(loss, leaf))
        ctx.mark_non_differentiable(log_z)
        return loss.detach(), log_z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (grad,) = ctx.saved_tensors
        return upstream * grad, None, None, None, None, None


def all_numbers(log_z: Tensor) -> bool:
    """Whether both constants were fixed."""
    return not bool(log_z.isneginf().any())


def value_alone(
    anchors: Tensor, bank: Tensor, picks: Tensor, log_z: Tensor, tau: float, fixed: bool | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`contrast` where no gradient is wanted, which inference mode could not take."""
    return contrast(anchors, bank, picks, log_z, tau=tau, fixed=fixed)


class CRD(Method):
    """`task` + `crd_s` (student against the teacher's bank) + `crd_t` (teacher against the student's).

    Own parameters: one linear embedding with bias per side, of the pooled features, brought to unit length. Buffers,
    made by `prepare` and kept in checkpoints: `bank_s` and `bank_t` [N, D], `log_z` [2] (student's and teacher's; -inf
    before the first batch). Memory of a step: B x N scores.
    """

    Config = CRDConfig
    bank_s: Tensor | None
    bank_t: Tensor | None
    log_z: Tensor
    labels: Tensor
    order: Tensor
    start: Tensor
    size: Tensor

    def __init__(
        self, config: CRDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        super().__init__(config, student, teachers, criterion)
        self.embed_s = nn.Linear(student.pooled, config.dim)
        self.embed_t = nn.Linear(teachers["teacher"].info.pooled, config.dim)
        self.register_buffer("bank_s", None)
        self.register_buffer("bank_t", None)
        self.register_buffer("log_z", torch.full((2,), -math.inf))
        self.fixed = OnHost(all_numbers)

    @classmethod
    def needs(cls, config: CRDConfig) -> Needs:
        """The teacher's pooled feature, and to know every sample again."""
        return Needs(teachers={"teacher": Want()}, hard_labels=True, index=True)

    def prepare(self, samples: Samples) -> None:
        """Fill the banks, uniformly in +-sqrt(3 / D) per coordinate: the expected length is 1.

        Raises:
            UserError: fewer than two classes have samples, so that there are no negatives.
        """
        dim, count = self.config.dim, len(samples.labels)
        bound = math.sqrt(3 / dim)
        self.bank_s, self.bank_t = (torch.empty(count, dim).uniform_(-bound, bound) for _ in range(2))
        labels = class_index(samples.labels)
        # Samples sorted by class: those of class c are `size[c]` places of `order` from `start[c]` on.
        size = torch.bincount(labels, minlength=samples.classes)
        if (size > 0).sum() < 2:
            raise UserError("Method 'crd' takes its negatives from other classes, so it needs samples of at least 2.")
        ranges = {"labels": labels, "order": labels.argsort(stable=True), "start": size.cumsum(0) - size, "size": size}
        for name, tensor in ranges.items():
            self.register_buffer(name, tensor, persistent=False)
        self.repeats = self.config.negatives > count - int(size.max())

    def negatives(self, index: Int[Tensor, " B"]) -> Int[Tensor, "B K"]:
        """Random samples of other classes, uniform and independent between the samples of a batch.

        Without replacement within a row, unless some class has fewer than K samples of other classes.
        """
        count, own = len(self.labels), self.labels[index][:, None]
        if not self.repeats:
            keys = torch.rand(len(index), count, device=index.device).masked_fill_(self.labels == own, -1)
            return keys.topk(self.config.negatives, dim=1, sorted=False).indices
        size, start = self.size[own], self.start[own]
        # Double precision: single would not reach every sample evenly where there are a million.
        draws = torch.rand(len(index), self.config.negatives, dtype=torch.float64, device=index.device)
        place = (draws * (count - size)).long()
        return self.order[place + size * (place >= start)]

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Three weighted terms; in training mode the entries of the batch then move towards the new embeddings.

        Raises:
            UserError: a batch without sample indices, or `prepare` was not called.
        """
        if batch.index is None:
            raise UserError("Method 'crd' needs Batch.index, the row of each sample in the training data.")
        if self.bank_s is None or self.bank_t is None:
            raise UserError("Method 'crd' keeps an entry per training sample: call prepare(Samples(...)) first.")
        config, pooled_t = self.config, taps_t["teacher"].pooled.detach()
        learn: Any = _Contrast.apply if torch.is_grad_enabled() else value_alone
        with torch.autocast(batch.x.device.type, enabled=False):
            v_s = F.normalize(self.embed_s(exact(taps_s.pooled)), dim=1, eps=SHORTEST)
            v_t = F.normalize(self.embed_t(exact(pooled_t)), dim=1, eps=SHORTEST)
            picks = torch.cat([batch.index[:, None], self.negatives(batch.index)], dim=1)
            fixed = self.fixed(self.log_z)
            crd_s, log_z_s = learn(v_s, self.bank_t, picks, self.log_z[0], config.tau, fixed)
            crd_t, log_z_t = learn(v_t, self.bank_s, picks, self.log_z[1], config.tau, fixed)
        if self.training:
            if not fixed:
                self.log_z.copy_(torch.stack([log_z_s, log_z_t]))
            rows = gathered(batch.index)
            for bank, new in ((self.bank_s, v_s), (self.bank_t, v_t)):
                mixed = config.momentum * bank[rows] + (1 - config.momentum) * gathered(new.detach())
                bank.index_copy_(0, rows, F.normalize(mixed, dim=1, eps=SHORTEST))
        task = self.task_loss(taps_s.logits, batch.y)
        return {"task": config.w_task * task, "crd_s": config.weight * crd_s, "crd_t": config.weight * crd_t}
