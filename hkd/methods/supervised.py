"""No distillation: the recipe's task loss alone, the baseline that every gain is measured over.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping

from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Method, Needs
from hkd.models.taps import Taps
from hkd.options import NoOptions


class Supervised(Method):
    """`task`: the criterion on the student's logits. No teacher, no parameters."""

    Config = NoOptions

    @classmethod
    def needs(cls, config: NoOptions) -> Needs:
        """Nothing beyond the logits."""
        return Needs()

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """One term, exactly the criterion."""
        return {"task": self.task_loss(taps_s.logits, batch.y)}
