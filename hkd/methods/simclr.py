r"""SimCLR: two views of an image find each other among those of all images of the batch (NT-Xent).

Source: Chen et al. 2020, arXiv:2002.05709. With z the projected features of V = 2 B views, of unit length, and j(i)
the other view of i's image,

.. math:: L = \frac{1}{V} \sum_i -\log \frac{\exp(z_i z_{j(i)} / \tau)}{\sum_{k \ne i} \exp(z_i z_k / \tau)}

Under several processes a view is compared with those of all, and gradients reach those of its own. Deviations: views
are drawn as `parts.views` says, without blur and grey; batch norm in the head is of one process. No teacher, no
labels. Shapes: B batch, V = 2 B views, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, refuse_student
from hkd.methods.parts.logits import several_samples
from hkd.methods.parts.views import ViewConfig, everyone, head, two_views, unit
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps
from hkd.options import Positive, Size, options
from hkd.spec import ModelCard, Recipe


@options
class SimCLRConfig(ViewConfig):
    """tau: temperature. hidden, width: of the projection; None: the student's own width."""

    tau: Positive = 0.1
    hidden: Size | None = None
    width: Size = 128


def nt_xent(z: Float[Tensor, "V D"], *, tau: float) -> Float[Tensor, ""]:
    """The loss above.

    Args:
        z: of this process: first one view of each image, then the other; any length but zero.
        tau: > 0.

    Returns:
        Scalar in nats, the mean over this process's views.
    """
    count = len(z)
    z = unit(z)
    candidates, start = everyone(z)
    own = torch.arange(count, device=z.device)
    scores = (z @ candidates.T / tau).index_put((own, start + own), z.new_tensor(float("-inf")))
    return F.cross_entropy(scores, start + own.roll(count // 2))


class SimCLR(Method):
    """`contrast`. Own parameters: the projection head. The student is of the family `view_vit`."""

    Config = SimCLRConfig

    def __init__(
        self, config: SimCLRConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        super().__init__(config, student, teachers, criterion)
        self.project = head([student.pooled, config.hidden or student.pooled, config.width], normed=False)

    @classmethod
    def needs(cls, config: SimCLRConfig) -> Needs:
        """No teacher; the pooled feature."""
        return Needs()

    @classmethod
    def refuse(
        cls, config: SimCLRConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """Students that take no views."""
        return refuse_student("simclr", "shows its student two views of every image", student, "views")

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Two views of every image in the place of the batch.

        Raises:
            UserError: a batch of one image, which has no other to be told from.
        """
        several_samples("simclr", len(batch.x))
        return {"views": two_views(batch.x, self.config)}

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """One term."""
        z = self.project(taps_s.pooled)
        with torch.autocast(z.device.type, enabled=False):
            return {"contrast": nt_xent(z, tau=self.config.tau)}
