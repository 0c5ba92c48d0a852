"""Attention transfer (AT): where a map has its energy, whatever its channels.

Source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, in the form and with the weight of RepDistiller (b84f547) and
mdistiller (a08d46f): p 2, weight 1000. Ours, so that every pair is served: tokens count as maps, stage i meets stage i,
the finer map is average-pooled to the coarser grid before the power, and all four stages take part (those suites' lists
for CIFAR ResNets have three maps).
A map after a layer norm has the same energy everywhere, and nothing to transfer: raw stage maps are read. Channels of
plain transformers differ widely in scale, and AT then copies the largest: `diagnostics` says how large.
Shapes: B batch, D width, H W grid, P = H * W positions.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, Strict
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact
from hkd.methods.parts.pairs import meet, stage_grids, unit
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Stages, options

LOOKED_AT = 8  # samples of a batch in whose maps the largest channel is looked for


@options
class ATConfig:
    """Options."""

    stages: Annotated[Stages, Field(min_length=1)] = (1, 2, 3, 4)  # which maps are compared
    p: Annotated[int, Strict(), Field(ge=2, le=16, multiple_of=2)] = 2  # power; an odd one would see signs
    # Over positions. With mean a stage of P positions is at most 2 / P, so that small grids rule a pyramid.
    reduce: Literal["mean", "sum"] = "mean"
    weight: NotNegative = 1000.0  # of every stage
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def attention(map_: Float[Tensor, "B D H W"], *, p: int) -> Float[Tensor, "B P"]:
    """The mean over channels of a map's p-th power, as a unit vector over positions."""
    return unit(map_.pow(p).mean(dim=1).flatten(1), dim=1)


def at_loss(
    map_s: Float[Tensor, "B Ds H W"],
    map_t: Float[Tensor, "B Dt H W"],
    *,
    p: int = 2,
    reduce: Literal["mean", "sum"] = "mean",
) -> Float[Tensor, ""]:
    r"""Squared distance of the attention of two maps of one grid.

    .. math:: L = \frac{1}{B P} \sum_b \| a(s_b) - a(t_b) \|^2, \quad a(F) = u(vec(\frac{1}{D} \sum_c F_c^p))

    with u(x) = x / |x|; without the factor 1 / P for `reduce="sum"`.

    Args:
        map_s: student map; gradients flow.
        map_t: teacher map; detached here; widths may differ.
        p: even power.
        reduce: mean or sum over positions; over B it is the mean.

    Returns:
        Scalar, at most 2 / P (2 for `sum`); zero where the maps agree up to a factor per sample.
    """
    squares = (attention(map_s, p=p) - attention(map_t.detach(), p=p)).square()
    return squares.mean() if reduce == "mean" else squares.sum() / len(squares)


def top_share(map_: Float[Tensor, "B D H W"]) -> Float[Tensor, ""]:
    """The largest channel's share of the sum of squares: 1 / D where all are alike; 0 for a map of zeros."""
    energy = map_.detach().square().sum(dim=(0, 2, 3))
    return energy.max() / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)


class AT(Method):
    """`task` + `at_s<stage>`. No parameters of its own; serves every pair whose maps meet on more than one position."""

    Config = ATConfig

    sums: Tensor  # of diagnostics: batches, and every stage's `top_share` of the teacher

    def __init__(
        self, config: ATConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a stage of one position: its attention is 1 whatever the map."""
        super().__init__(config, student, teachers, criterion)
        self.grids = stage_grids("at", config.stages, student, teachers["teacher"].info, positions=2)
        self.register_buffer("sums", torch.zeros(1 + len(self.grids), dtype=torch.float64))

    @classmethod
    def needs(cls, config: ATConfig) -> Needs:
        """The chosen stages of both."""
        want = Want(stages=tuple(sorted(config.stages)))
        return Needs(student=want, teachers={"teacher": want})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The task and one term per stage."""
        config = self.config
        losses = {"task": config.w_task * self.task_loss(taps_s.logits, batch.y)}
        shares = []
        with torch.autocast(batch.x.device.type, enabled=False):
            for stage, grid in self.grids.items():
                map_s, map_t = exact(taps_s.stages[stage]), exact(taps_t["teacher"].stages[stage])
                distance = at_loss(*meet(map_s, map_t, grid), p=config.p, reduce=config.reduce)
                losses[f"at_s{stage}"] = config.weight * distance
                if self.training:
                    shares.append(top_share(map_t[:LOOKED_AT]).double())
        if shares:
            self.sums += torch.stack([self.sums.new_ones(()), *shares])
        return losses

    def diagnostics(self) -> dict[str, float]:
        """Means over the training batches since the last call: `top_share_s<stage>`, the teacher's `top_share`, of the
        first LOOKED_AT samples of this process's share of the batch."""
        batches, *totals = self.sums.tolist()
        self.sums.zero_()
        if not batches:
            return {}
        return {f"top_share_s{stage}": total / batches for stage, total in zip(self.grids, totals, strict=True)}
