"""One training step's forward pass as one module, so that a wrapper around it sees all that learns.

Calling a part of it (the student alone) under several processes would skip the exchange of gradients, silently.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.methods.base import Method, Needs
from hkd.models.tap_model import TapModel
from hkd.models.taps import Taps


class Step(nn.Module):
    """Student and method; teachers come in as taps, so that they are nobody's parameters.

    Attributes:
        hits: correct predictions of the last batch, a count on the device, or None where targets are soft.
    """

    def __init__(self, student: TapModel, method: Method, needs: Needs):
        super().__init__()
        self.student, self.method = student, method
        self.want = needs.student
        self.hits: Tensor | None = None

    def forward(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Named, weighted scalar losses of one batch; their sum is minimised."""
        taps_s = self.student(batch.x, self.want, **self.method.student_inputs(batch, taps_t))
        self.hits = (taps_s.logits.detach().argmax(1) == batch.y).sum() if batch.y.ndim == 1 else None
        return self.method(batch, taps_s, taps_t)
