"""Similarity preserving (SP): samples that excite the teacher alike excite the student alike.

Source: Tung and Mori 2019, arXiv:1907.09682, with the last map and the weight 3000 of mdistiller (a08d46f).
Ours, so that every pair is served: tokens count as maps, patch tokens only, and `tap: pooled` compares the pooled
features instead, the only sense where the classifier ignores the patches (class tokens).
Maps are not pooled: widths and grids may differ.
Shapes: B batch, D width, H W grid.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.logits import exact, several_samples
from hkd.methods.parts.pairs import stage_grids, unit
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.options import NotNegative, Stages, options


@options
class SPConfig:
    """Options."""

    tap: Literal["map", "pooled"] = "map"  # what is compared
    stages: Annotated[Stages, Field(min_length=1)] = (4,)  # whose maps; of `map` only
    weight: NotNegative = 3000.0  # of every stage
    w_task: NotNegative = 1.0  # weight of the recipe's task loss


def similarities(features: Float[Tensor, "B ..."]) -> Float[Tensor, "B B"]:
    """Inner products of all samples, each row a unit vector; a row of zeros stays zero."""
    rows = features.flatten(1)
    return unit(rows @ rows.T, dim=1)


def sp_loss(features_s: Float[Tensor, "B ..."], features_t: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
    r"""Mean squared difference of the similarities of student and teacher.

    .. math:: L = \frac{1}{B^2} \| \hat G_s - \hat G_t \|_F^2, \quad \hat G_b = u((F F^T)_b)

    with F the features of a sample as one row, and u(x) = x / |x|.

    Args:
        features_s: student features [B, D] or maps [B, D, H, W], B >= 2; gradients flow.
        features_t: the teacher's, of any width and grid; detached here.

    Returns:
        Scalar; zero where the features agree up to a rotation and one factor.
    """
    return (similarities(features_s) - similarities(features_t.detach())).square().mean()


class SP(Method):
    """`task` + `sp_s<stage>`, or `sp` of the pooled features. No parameters of its own.

    Samples are related within one process' share of a batch.
    """

    Config = SPConfig

    def __init__(
        self, config: SPConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        """Raises Refused for a stage whose map has no positions."""
        super().__init__(config, student, teachers, criterion)
        if config.tap == "map":
            stage_grids("sp", config.stages, student, teachers["teacher"].info)

    @classmethod
    def needs(cls, config: SPConfig) -> Needs:
        """The chosen stages of both, or the pooled features."""
        want = Want(stages=tuple(sorted(config.stages))) if config.tap == "map" else Want()
        return Needs(student=want, teachers={"teacher": want})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """The task and one term per stage.

        Raises:
            UserError: a batch of one, which resembles only itself.
        """
        config, taught = self.config, taps_t["teacher"]
        several_samples("sp", len(batch.y))
        if config.tap == "map":
            compared = {f"sp_s{stage}": (taps_s.stages[stage], taught.stages[stage]) for stage in config.stages}
        else:
            compared = {"sp": (taps_s.pooled, taught.pooled)}
        losses = {"task": config.w_task * self.task_loss(taps_s.logits, batch.y)}
        with torch.autocast(batch.x.device.type, enabled=False):
            for name, (features_s, features_t) in compared.items():
                losses[name] = config.weight * sp_loss(exact(features_s), exact(features_t))
        return losses
