"""NAME: one sentence on what the student learns from the teacher.

In a table of your own: `{method: "NAME:Mine", label: Mine, gain_over: supervised}`; in your own loop:
`hkd.Distiller(student, teacher, method="NAME:Mine")`. Does it keep what methods promise?

    pytest --pyargs hkd.contract --method NAME:Mine

Shapes: B batch, C classes.
"""

from collections.abc import Mapping

from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Method, Needs
from hkd.models.taps import Taps, Want
from hkd.options import NotNegative, options


@options
class MineConfig:
    """What a table may set; every option has a default."""

    weight: NotNegative = 1.0  # of the distillation loss


class Mine(Method):
    """`task` + `mse`: the labels, and the teacher's logits."""

    Config = MineConfig

    @classmethod
    def needs(cls, config: MineConfig) -> Needs:
        """Logits and pooled features are always there; `Want(stages=(3, 4))` asks for maps too."""
        return Needs(teachers={"teacher": Want()})

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Named, weighted scalars; their sum is minimised. Teachers give no gradient."""
        distance = (taps_s.logits - taps_t["teacher"].logits).square().sum(dim=1).mean() / 2
        return {"task": self.criterion(taps_s.logits, batch.y), "mse": self.config.weight * distance}
