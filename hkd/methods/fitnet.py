"""Our FitNet: the student's stage maps, through one 1x1 convolution each, mimic the teacher's in the mean square.

Source: Romero et al. 2015, arXiv:1412.6550, in the all-stages form of the OFA-KD repository's comparison, which is
defined there for CNNs only. Ours, so that every pair is served: tokens count as maps, prefix tokens are dropped, and
where the grids differ the finer map is average-pooled to the coarser grid. Hence "our FitNet" in tables.
Shapes: B batch, D width, H W grid.
"""

from collections.abc import Mapping
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact
from hkd.methods.parts.pairs import meet, stage_grids
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Stages, options


@options
class FitNetConfig:
    """Options."""

    stages: Annotated[Stages, Field(min_length=1)] = (1, 2, 3, 4)  # which maps are compared
    weight: NotNegative = 1.0  # of every stage
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


class FitNet(Method):
    """`task` + `feat_s<stage>`: mean squared difference over all elements (batch, channels, positions).

    Own parameters: one 1x1 convolution without bias per stage, from the student's width to the teacher's.
    """

    Config = FitNetConfig

    def __init__(
        self, config: FitNetConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a stage whose map has no positions."""
        super().__init__(config, student, teachers, criterion)
        teacher = teachers["teacher"].info
        self.grids = stage_grids("fitnet", config.stages, student, teacher)
        self.projectors = nn.ModuleDict(
            {
                str(stage): nn.Conv2d(student.stages[stage][0], teacher.stages[stage][0], 1, bias=False)
                for stage in config.stages
            }
        )

    @classmethod
    def needs(cls, config: FitNetConfig) -> Needs:
        """The chosen stages of both."""
        want = Want(stages=tuple(sorted(config.stages)))
        return Needs(student=want, teachers={"teacher": want})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The task and one term per stage."""
        config = self.config
        losses = {"task": config.w_task * self.criterion(taps_s.logits, batch.y)}
        for stage, grid in self.grids.items():
            # Pooled first: it commutes with a 1x1 convolution, which then has fewer positions.
            map_s, map_t = meet(taps_s.stages[stage], taps_t["teacher"].stages[stage], grid)
            map_s = self.projectors[str(stage)](map_s)
            losses[f"feat_s{stage}"] = config.weight * F.mse_loss(exact(map_s), exact(map_t))
        return losses
