r"""ReviewKD: each level of the teacher is compared with what the student's same and deeper levels make together.

Source: Chen et al. 2021, arXiv:2104.09044, and its official repository, which mdistiller follows; weights are those
nearest to one for all pairs. Levels are the four stages and, as level 5, the pooled feature as a map of one position;
the deepest comes first, and each fusion (`Fusion`) hands on to the next one:

.. math:: L = \min(e / E, 1) \sum_i HCL(fused_i, F^t_i)

with e the epoch from 1 and E those of `warmup`; HCL: `hkd.methods.parts.hierarchical_context`.
Deviations: timm's taps are after the last ReLU of a stage, where the official teachers' are before it. Tokens count as
maps; prefix tokens enter through the pooled feature alone. `teacher_norm` is ours.
Shapes: B batch, D width of the teacher's level, m width of a fusion, H W grid of the teacher's level.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, Samples
from hkd.methods.parts.gathering import gathered
from hkd.methods.parts.hierarchical_context import hierarchical_context_loss
from hkd.methods.parts.logits import exact
from hkd.methods.parts.on_host import Passes
from hkd.methods.parts.pairs import several_images, with_positions
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Whole, options

STAGES = (1, 2, 3, 4)
WIDEST = 512  # of a fusion, at most
FROZEN = 50  # batches after which a teacher's statistics stay
TWELFTH = 12  # of the epochs: warm-up unless told (20 of 240 in the official recipe)


@options
class ReviewKDConfig:
    """Options.

    warmup: epochs over which the weight rises; 0: none; None: a twelfth of all, rounded up.
    teacher_norm: `channel` compares with the teacher's levels by mean and deviation of each channel over the first 50
        batches.
    weight, w_task: of the loss (the same for all levels) and of the recipe's task loss.
    """

    warmup: Whole | None = None
    teacher_norm: Literal["none", "channel"] = "none"
    weight: NotNegative = 1.0
    w_task: NotNegative = 1.0


def initialised(convolution: nn.Conv2d) -> nn.Conv2d:
    """Kaiming-uniform with a = 1, as the official code draws a fusion's own convolutions."""
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    return convolution


class Fusion(nn.Module):
    """The official attention-based fusion (ABF) of a level with what the deeper level handed on.

    Args:
        width: of the student's level.
        inner: m.
        shape_t: (D, H, W) of the teacher's level.
        deepest: nothing was handed on.
    """

    def __init__(self, width: int, inner: int, shape_t: tuple[int, int, int], *, deepest: bool) -> None:
        super().__init__()
        self.grid = shape_t[1:]
        self.enter = nn.Sequential(initialised(nn.Conv2d(width, inner, 1, bias=False)), nn.BatchNorm2d(inner))
        self.attention = None if deepest else nn.Conv2d(2 * inner, 2, 1)
        self.leave = nn.Sequential(
            initialised(nn.Conv2d(inner, shape_t[0], 3, padding=1, bias=False)), nn.BatchNorm2d(shape_t[0])
        )

    def forward(
        self, map_s: Float[Tensor, "B C h w"], deeper: Float[Tensor, "B m hd wd"] | None
    ) -> tuple[Float[Tensor, "B D H W"], Float[Tensor, "B m H W"]]:
        """What is compared with the teacher's level, and what is handed on."""
        found = self.enter(map_s)
        if self.attention is not None:
            assert deeper is not None, "a level above the deepest is given what that handed on"
            deeper = nearest(deeper, (found.shape[2], found.shape[3]))
            shares = self.attention(torch.cat([found, deeper], dim=1)).sigmoid()
            found = shares[:, :1] * found + shares[:, 1:] * deeper
        found = nearest(found, self.grid)
        return self.leave(found), found


def nearest(map_: Float[Tensor, "B D H W"], grid: tuple[int, int]) -> Float[Tensor, "B D h w"]:
    """The map on a grid, by the nearest position; itself where it is there already."""
    return map_ if map_.shape[2:] == grid else F.interpolate(map_, grid, mode="nearest")


class ChannelNorm(nn.Module):
    """A teacher's map by mean and deviation of each channel over the first `FROZEN` training batches, or those so far;
    under several processes over all their shares, so that the statistics are the same in each.

    Args:
        width: D.
    """

    sums: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, width, dtype=torch.float64))  # of means, of mean squares
        self.register_buffer("count", torch.tensor(0))

    def forward(self, map_: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The normed map; as it is before the first batch of training."""
        if self.training and int(self.count) < FROZEN:
            wide = map_.detach().double()
            moments = torch.stack([wide.mean(dim=(0, 2, 3)), wide.square().mean(dim=(0, 2, 3))])
            self.sums += gathered(moments[None]).mean(dim=0)
            self.count += 1
        if not int(self.count):
            return map_
        mean, square = self.sums / self.count
        std = (square - mean.square()).clamp(min=0).sqrt() + 1e-6
        return (map_ - mean.to(map_.dtype)[:, None, None]) / std.to(map_.dtype)[:, None, None]


class ReviewKD(Method):
    """`task` + `review_s<level>`. Own parameters: a fusion per level, of width min(512, the student's pooled width).

    Buffers: `passes`, forward passes of training so far, from which the epoch is told; with `teacher_norm` statistics.
    """

    Config = ReviewKDConfig
    passes: Tensor

    def __init__(
        self, config: ReviewKDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a stage whose map has no positions."""
        super().__init__(config, student, teachers, criterion)
        sides = student, teachers["teacher"].info
        with_positions("reviewkd", STAGES, student=sides[0], teacher=sides[1])
        shapes_s, shapes_t = ({**info.stages, 5: (info.pooled, 1, 1)} for info in sides)
        inner = min(WIDEST, student.pooled)
        self.fusions = nn.ModuleDict(
            {
                str(level): Fusion(shapes_s[level][0], inner, shapes_t[level], deepest=level == 5)
                for level in (5, *reversed(STAGES))
            }
        )
        self.norms = nn.ModuleDict()
        if config.teacher_norm == "channel":
            self.norms.update({str(level): ChannelNorm(shape[0]) for level, shape in shapes_t.items()})
        self.register_buffer("passes", torch.tensor(0))
        self.passed = Passes()
        self.epochs = self.steps = 1

    @classmethod
    def needs(cls, config: ReviewKDConfig) -> Needs:
        """All stages of both."""
        want = Want(stages=STAGES)
        return Needs(student=want, teachers={"teacher": want})

    def prepare(self, samples: Samples) -> None:
        """Told how long the training is."""
        self.epochs, self.steps = samples.epochs, samples.steps

    def rise(self) -> float:
        """The share of the weight that this epoch has, in (0, 1].

        Epochs are counted by forward passes, so that a step in parts (micro-batches) counts once per part.
        """
        told = self.config.warmup
        warmup = math.ceil(self.epochs / TWELFTH) if told is None else told
        return min((self.passed(self.passes) // self.steps + 1) / warmup, 1.0) if warmup else 1.0

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The task and one term per level, the deepest first.

        Raises:
            UserError: training on one image, whose level of one position no batch norm can norm.
        """
        config, teacher = self.config, taps_t["teacher"]
        if self.training:
            several_images("reviewkd", len(batch))
        losses = {"task": config.w_task * self.task_loss(taps_s.logits, batch.y)}
        weight, handed = config.weight * self.rise(), None
        maps_s, maps_t = ({**taps.stages, 5: taps.pooled[:, :, None, None]} for taps in (taps_s, teacher))
        for level, fusion in self.fusions.items():
            fused, handed = fusion(maps_s[int(level)], handed)
            target = exact(maps_t[int(level)].detach())
            if level in self.norms:
                target = self.norms[level](target)
            losses[f"review_s{level}"] = weight * hierarchical_context_loss(fused, target)
        if self.training:
            self.passed.step(self.passes)
        return losses
