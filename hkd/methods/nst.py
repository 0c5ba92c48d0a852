"""Neuron selectivity transfer (NST): the set of activation patterns of a map's channels is the teacher's.

Source: Huang and Wang 2017, arXiv:1707.01219, squared maximum mean discrepancy with the polynomial kernel (x.y)^2, in
the form and with the weight of RepDistiller (b84f547, distiller_zoo/NST.py). Ours, so that every pair is served: tokens
count as maps, stage i meets stage i, and the finer map is average-pooled to the coarser grid.
Deviation in form, not in value: no [B, Dt, Ds, P] tensor is built; see `nst_loss`.
Shapes: B batch, D width, H W grid, P = H * W positions.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact
from hkd.methods.parts.pairs import meet, stage_grids, unit
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Stages, options


@options
class NSTConfig:
    """Options."""

    stages: Annotated[Stages, Field(min_length=1)] = (1, 2, 3, 4)  # which maps are compared
    weight: NotNegative = 50.0  # of every stage
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def by_positions(x: Float[Tensor, "B Ds P"], y: Float[Tensor, "B Dt P"]) -> Float[Tensor, ""]:
    """The discrepancy of unit vectors x and y from their second moments over positions [B, P, P]."""
    return (x.mT @ x / x.shape[1] - y.mT @ y / y.shape[1]).square().sum() / len(x)


def by_channels(x: Float[Tensor, "B Ds P"], y: Float[Tensor, "B Dt P"]) -> Float[Tensor, ""]:
    """The discrepancy of unit vectors x and y from the inner products of channels."""
    return (x @ x.mT).square().mean() + (y @ y.mT).square().mean() - 2 * (x @ y.mT).square().mean()


def nst_loss(map_s: Float[Tensor, "B Ds H W"], map_t: Float[Tensor, "B Dt H W"]) -> Float[Tensor, ""]:
    r"""Squared maximum mean discrepancy between the channels of two maps of one grid.

    .. math::
        L = \frac{1}{B} \sum_b [mean_{cc'} (x_c \cdot x_{c'})^2 + mean_{cc'} (y_c \cdot y_{c'})^2
            - 2 mean_{cc'} (x_c \cdot y_{c'})^2]
          = \frac{1}{B} \sum_b \| X^T X / D_s - Y^T Y / D_t \|_F^2

    with the channels of student and teacher as unit vectors x_c and y_c over positions, the rows of X and Y. Whichever
    form multiplies less is taken: the first on large grids of few channels, the second on small ones of many.

    Args:
        map_s: student map; gradients flow.
        map_t: teacher map; detached here; widths may differ.

    Returns:
        Scalar, at least 0 but for rounding; zero iff the second moments of the channels agree.
    """
    # Contiguous, because tokens and maps with channels last are slow to normalise over positions.
    x, y = (unit(map_.flatten(2).contiguous(), dim=2) for map_ in (map_s, map_t.detach()))
    width_s, width_t, positions = x.shape[1], y.shape[1], x.shape[2]
    channels_cost = width_s**2 + width_s * width_t + width_t**2
    return (by_positions if positions * (width_s + width_t) <= channels_cost else by_channels)(x, y)


class NST(Method):
    """`task` + `nst_s<stage>`. No parameters of its own; serves pairs whose maps meet on more than one position."""

    Config = NSTConfig

    def __init__(
        self, config: NSTConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a stage of one position, where every channel is 1 or -1."""
        super().__init__(config, student, teachers, criterion)
        self.grids = stage_grids("nst", config.stages, student, teachers["teacher"].info, positions=2)

    @classmethod
    def needs(cls, config: NSTConfig) -> Needs:
        """The chosen stages of both."""
        want = Want(stages=tuple(sorted(config.stages)))
        return Needs(student=want, teachers={"teacher": want})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The task and one term per stage."""
        config = self.config
        losses = {"task": config.w_task * self.task_loss(taps_s.logits, batch.y)}
        with torch.autocast(batch.x.device.type, enabled=False):
            for stage, grid in self.grids.items():
                maps = meet(exact(taps_s.stages[stage]), exact(taps_t["teacher"].stages[stage]), grid)
                losses[f"nst_s{stage}"] = config.weight * nst_loss(*maps)
        return losses
