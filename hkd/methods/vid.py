r"""Variational information distillation (VID): the teacher's maps are likely given the student's, as Gaussians.

Source: Ahn et al. 2019, arXiv:1904.05835, in the form of the repositories RepDistiller (variances are learned) and
mdistiller (they are not; `variance`). Per stage, with r a regressor of the student's map on the coarser of both grids:

.. math:: L = mean \, \tfrac12 [ (r(F_s) - F_t)^2 / \sigma_c^2 + \log \sigma_c^2 ], \quad
          \sigma_c^2 = \log(1 + e^{\rho_c}) + 10^{-5}

Deviations: tokens count as maps; learned variances have no weight decay, which would pull them to .69.
Shapes: B batch, D width of the teacher's stage, H W grid.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact
from hkd.methods.parts.pairs import meet, stage_grids
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Stages, options

START, LEAST = 5.0, 1e-5  # variance at the start, and what is added to every variance


@options
class VIDConfig:
    """Options."""

    stages: Annotated[Stages, Field(min_length=1)] = (1, 2, 3, 4)  # which maps are compared
    variance: Literal["learned", "fixed"] = "learned"  # one per channel of the teacher, or 5 for ever
    weight: NotNegative = 1.0  # of every stage
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def vid_loss(
    mean: Float[Tensor, "B D H W"], map_t: Float[Tensor, "B D H W"], variance: Float[Tensor, " D"]
) -> Float[Tensor, ""]:
    """Negative log-likelihood of the teacher's map without its constant, in nats; may be negative.

    Args:
        mean: what the student expects; gradients flow.
        map_t: the teacher's; detached here.
        variance: of each channel, > 0; gradients flow.

    Returns:
        Scalar, averaged over all elements.
    """
    square = (mean - map_t.detach()).square().mean(dim=(0, 2, 3))
    return (square / variance + variance.log()).mean() / 2


class Gaussian(nn.Module):
    """A map of the student to the mean of the teacher's: three 1x1 convolutions without bias with ReLU between them.

    rho: of the variances; a parameter where they are learned.
    """

    rho: Tensor

    def __init__(self, width_s: int, width_t: int, *, learned: bool) -> None:
        super().__init__()
        self.regressor = nn.Sequential(
            nn.Conv2d(width_s, width_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width_t, width_t, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width_t, width_t, 1, bias=False),
        )
        rho = torch.full((width_t,), math.log(math.expm1(START - LEAST)))
        if learned:
            self.rho = nn.Parameter(rho)
        else:
            self.register_buffer("rho", rho, persistent=False)

    @property
    def variance(self) -> Float[Tensor, " D"]:
        """Of each channel."""
        return F.softplus(exact(self.rho)) + LEAST

    def forward(self, map_s: Float[Tensor, "B Ds H W"]) -> Float[Tensor, "B D H W"]:
        """The mean."""
        return self.regressor(map_s)


class VID(Method):
    """`task` + `vid_s<stage>`. Own parameters: a regressor per stage, and a variance per channel where learned.

    Every epoch tells the mean of each stage's variances (`variance_s<stage>`).
    """

    Config = VIDConfig

    def __init__(
        self, config: VIDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a stage whose map has no positions."""
        super().__init__(config, student, teachers, criterion)
        teacher = teachers["teacher"].info
        self.grids = stage_grids("vid", config.stages, student, teacher)
        learned = config.variance == "learned"
        self.gaussians = nn.ModuleDict(
            {
                str(stage): Gaussian(student.stages[stage][0], teacher.stages[stage][0], learned=learned)
                for stage in self.grids
            }
        )

    @classmethod
    def needs(cls, config: VIDConfig) -> Needs:
        """The chosen stages of both."""
        want = Want(stages=tuple(sorted(config.stages)))
        return Needs(student=want, teachers={"teacher": want})

    def no_weight_decay(self) -> set[str]:
        """The variances."""
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith("rho")}

    def diagnostics(self) -> dict[str, float]:
        """The mean variance of every stage, as it is now."""
        gaussians: Any = self.gaussians.items()
        return {f"variance_s{stage}": float(gaussian.variance.detach().mean()) for stage, gaussian in gaussians}

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The task and one term per stage."""
        config = self.config
        losses = {"task": config.w_task * self.task_loss(taps_s.logits, batch.y)}
        for stage, grid in self.grids.items():
            gaussian: Any = self.gaussians[str(stage)]
            map_s, map_t = meet(taps_s.stages[stage], taps_t["teacher"].stages[stage], grid)
            mean = exact(gaussian(map_s))
            losses[f"vid_s{stage}"] = config.weight * vid_loss(mean, exact(map_t), gaussian.variance)
        return losses
