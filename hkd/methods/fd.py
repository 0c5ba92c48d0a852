"""Plain feature distillation (FD): the student's last map mimics the teacher's through one 1x1 convolution.

Source: the comparison in ScaleKD, arXiv:2411.06786, Tables 1 and 15; the weight (.08 on a 7x7 teacher) is that of an
older configuration in its official repository. Not specified there, decided here: when the grids differ (a 16x16
teacher), the student's map is resized to the teacher's (see `to_grid`), and the weight follows the number of
positions. No logit distillation.
Shapes: B batch, D width, H W grid.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs
from hkd.methods.parts.feature_mimicking import mimic_loss, to_grid
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want, to_tokens
from hkd.options import NotNegative, options

S4_TAPS = {"final": Want(), "raw": Want(stages=(4,))}


@options
class FDConfig:
    """Options."""

    weight: NotNegative | None = None  # of the loss; None: 4 / teacher positions (.0816 on 7x7, .0156 on 16x16)
    s4_tap: Literal["final", "raw"] = "final"  # student's last map: after its final norm, or before


class FD(Method):
    """`task` + `feat_s4`: `mimic_loss` to F_T, the teacher's last map after its final norm where it has one.

    Own parameters: a 1x1 convolution with bias, unless student and teacher are equally wide.
    """

    Config = FDConfig

    def __init__(
        self, config: FDConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        super().__init__(config, student, teachers, criterion)
        width_s = (student.final if config.s4_tap == "final" else student.stages[4])[0]
        width_t, height, width = teachers["teacher"].info.final
        self.grid = (height, width)
        self.weight = 4 / (height * width) if config.weight is None else config.weight
        self.projector = nn.Identity() if width_s == width_t else nn.Conv2d(width_s, width_t, 1)

    @classmethod
    def needs(cls, config: FDConfig) -> Needs:
        """The last maps of both."""
        return Needs(student=S4_TAPS[config.s4_tap], teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Two weighted terms."""
        map_s = taps_s.final if self.config.s4_tap == "final" else taps_s.stages[4]
        projected = self.projector(to_grid(map_s, self.grid))
        distance = mimic_loss(to_tokens(projected), to_tokens(taps_t["teacher"].final))
        return {"task": self.task_loss(taps_s.logits, batch.y), "feat_s4": self.weight * distance}
