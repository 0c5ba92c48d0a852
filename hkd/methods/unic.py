r"""UNIC: one student learns from several teachers at once, of whom the one it is worst at never rests.

Source: Sariyildiz et al. 2024 (ECCV), and its released code. For teacher t and kind k (the pooled feature, the map),
with h the heads' sum over all stages and n the target by running mean and deviation of each channel:

.. math::
    l_{t,b} = mean_k [\tfrac12 (1 - cos(h, n)) + \tfrac12 smoothL1(h, n)], \quad
    L = \sum_{t,b} keep_{t,b} l_{t,b} / \sum_{t,b} keep_{t,b}

cosines and smooth L1 (beta 1, mean over channels) averaged over the positions of a map. Of each image the worst teacher
is kept, and every other with probability 1 - drop.
Deviations: there the student is a transformer and learns without labels; here heads read the four stage taps of any
student (their spatial mean for the pooled feature), maps meet on the coarser grid, and the task loss trains the rest.
Shapes: B batch, T teachers, D width of a teacher, H W grid, N positions.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Criterion, Method, Needs, Samples
from hkd.methods.parts.feature_mimicking import to_grid
from hkd.methods.parts.gathering import gathered
from hkd.methods.parts.initialisers import as_ofa
from hkd.methods.parts.logits import exact
from hkd.methods.parts.on_host import Passes
from hkd.methods.parts.pairs import coarser
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want, to_tokens
from hkd.options import Different, NotNegative, Share, Size, options

STAGES = (1, 2, 3, 4)
LAST_MOMENTUM = 1e-3  # of the running statistics, from 1 at the first step
Role = Annotated[str, Field(min_length=1, max_length=64)]


@options
class UNICConfig:
    """Options.

    roles: of the teachers. hidden: width of a head at stages 1 to 3; four times that at stage 4.
    drop: probability that an image leaves out a teacher, unless it is the worst.
    average: over all kept losses (`kept`, as released: an image that keeps more teachers weighs more), or over each
        image's first (`per_image`).
    w_task, weight: of the recipe's task loss and of the distillation loss.
    """

    roles: Annotated[tuple[Role, ...], Different, Field(min_length=1)] = ("teacher",)
    hidden: Size = 768
    drop: Share = 0.5
    average: Literal["kept", "per_image"] = "kept"
    w_task: NotNegative = 1.0
    weight: NotNegative = 1.0


def feature_distances(found: Float[Tensor, "B N D"], target: Float[Tensor, "B N D"]) -> Float[Tensor, " B"]:
    """Half of 1 - cosine (that with 0 is 0) and half of smooth L1, averaged over positions; the target is detached."""
    target = target.detach()
    cosine = F.cosine_similarity(found, target, dim=2, eps=1e-12)
    smooth = F.smooth_l1_loss(found, target, reduction="none").mean(dim=2)
    return ((1 - cosine + smooth) / 2).mean(dim=1)


def kept(losses: Float[Tensor, "T B"], rest: Bool[Tensor, "T B"]) -> Float[Tensor, "T B"]:
    """1 for the worst teacher of each image, and for those that do not rest; else 0."""
    worst = F.one_hot(losses.argmax(dim=0), len(losses)).T.bool()
    return (worst | ~rest).to(losses.dtype)


def averaged(
    losses: Float[Tensor, "T B"], keep: Float[Tensor, "T B"], average: Literal["kept", "per_image"]
) -> Float[Tensor, ""]:
    """The mean of kept losses, over all of them, or over images after each image's."""
    if average == "kept":
        return (keep * losses).sum() / keep.sum()
    return ((keep * losses).sum(dim=0) / keep.sum(dim=0)).mean()


class Standardise(nn.Module):
    """Targets by running mean and deviation of each channel, as they were before this batch: 0 and 1 at first."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def forward(self, target: Float[Tensor, "B N D"], momentum: float) -> Float[Tensor, "B N D"]:
        """The normed targets; in training the statistics of all processes' batches are taken in afterwards.

        Args:
            target: of a teacher.
            momentum: share of the new statistics in (0, 1].
        """
        found = (target - self.mean) / (self.std + 1e-6)
        if self.training:
            moments = torch.stack([target.mean(dim=(0, 1)), target.square().mean(dim=(0, 1))])
            mean, square = gathered(moments[None]).mean(dim=0)
            self.mean = self.mean.lerp(mean, momentum)
            self.std = self.std.lerp((square - mean.square()).clamp(min=0).sqrt(), momentum)
        return found


class Heads(nn.Module):
    """The sum of two-layer heads on the stages.

    Args:
        widths: of the stages by number.
        hidden: at stages 1 to 3.
        out: D.
    """

    def __init__(self, widths: Mapping[int, int], hidden: int, out: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        for stage, width in widths.items():
            inner = 4 * hidden if stage == max(widths) else hidden
            self.heads[str(stage)] = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, out))
        self.apply(as_ofa)

    def forward(self, tokens: Mapping[int, Tensor]) -> Float[Tensor, "B N D"]:
        """What stands for the teacher's feature, from the stages' tokens [B, N, width]."""
        return torch.stack([head(tokens[int(stage)]) for stage, head in self.heads.items()]).sum(dim=0)


class FromTeacher(nn.Module):
    """Losses of one teacher: heads and running statistics of both kinds.

    grid: where the maps meet.
    """

    def __init__(self, student: TapInfo, teacher: TapInfo, hidden: int) -> None:
        super().__init__()
        widths = {stage: student.stages[stage][0] for stage in STAGES}
        self.grid = (teacher.final[1], teacher.final[2])
        for stage in STAGES:
            self.grid = coarser(self.grid, student.stages[stage][1:])
        self.summary, self.patches = (Heads(widths, hidden, out) for out in (teacher.pooled, teacher.final[0]))
        self.norm_summary, self.norm_patches = Standardise(teacher.pooled), Standardise(teacher.final[0])

    def forward(self, taps_s: Taps, taps_t: Taps, momentum: float) -> Float[Tensor, " B"]:
        """The loss of each image."""
        means = {stage: taps_s.stages[stage].mean(dim=(2, 3))[:, None] for stage in STAGES}
        maps = {stage: to_tokens(to_grid(taps_s.stages[stage], self.grid)) for stage in STAGES}
        summary = self.norm_summary(exact(taps_t.pooled)[:, None], momentum)
        patches = self.norm_patches(to_tokens(to_grid(exact(taps_t.final), self.grid)), momentum)
        pooled = feature_distances(exact(self.summary(means)), summary)
        return (pooled + feature_distances(exact(self.patches(maps)), patches)) / 2


class UNIC(Method):
    """`task` + `unic`. Own parameters: heads per teacher, kind and stage. Buffers: statistics of targets, `passes`."""

    Config = UNICConfig
    passes: Tensor

    def __init__(
        self, config: UNICConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a map without positions."""
        super().__init__(config, student, teachers, criterion)
        maps = {f"the student's map of stage {stage}": student.stages[stage] for stage in STAGES}
        maps |= {f"the last map of '{role}'": teachers[role].info.final for role in config.roles}
        if empty := [what for what, shape in maps.items() if 0 in shape]:
            raise Refused(f"Method 'unic' reads {empty[0]}, which has no positions: take larger images.")
        self.sources = nn.ModuleList(FromTeacher(student, teachers[role].info, config.hidden) for role in config.roles)
        self.register_buffer("passes", torch.tensor(0))
        self.passed = Passes()
        self.length = 1

    @classmethod
    def needs(cls, config: UNICConfig) -> Needs:
        """All stages of the student; pooled feature and last map of every teacher."""
        return Needs(student=Want(stages=STAGES), teachers=dict.fromkeys(config.roles, Want()))

    def prepare(self, samples: Samples) -> None:
        """How many steps the momentum has for its fall; a step in parts (micro-batches) counts once per part."""
        self.length = samples.epochs * samples.steps

    def momentum(self) -> float:
        """Of the running statistics: from 1 down by a cosine over the training."""
        done = min(self.passed(self.passes) / self.length, 1.0)
        return LAST_MOMENTUM + (1 - LAST_MOMENTUM) * (1 + math.cos(math.pi * done)) / 2

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms; teachers rest in training alone."""
        config, momentum = self.config, self.momentum()
        each = [source(taps_s, taps_t[role], momentum) for role, source in zip(config.roles, self.sources, strict=True)]
        losses = torch.stack(each)
        rest = torch.zeros_like(losses, dtype=torch.bool)
        if self.training:
            self.passed.step(self.passes)
            rest = torch.rand_like(losses) < config.drop
        loss = averaged(losses, kept(losses.detach(), rest), config.average)
        return {"task": config.w_task * self.task_loss(taps_s.logits, batch.y), "unic": config.weight * loss}
