r"""MoCo v3: a view finds the other view of its image among those that a moving average of the student encodes.

Source: Chen, Xie and He 2021, arXiv:2104.02057. Queries q are what student, projection and prediction make of a view,
keys k what moving averages of student and projection make of it; both have unit length, and with B images

.. math::
    L = ctr(q_1, k_2) + ctr(q_2, k_1), \quad
    ctr(q, k) = -\frac{2 \tau}{B} \sum_i \log \frac{\exp(q_i k_i / \tau)}{\sum_j \exp(q_i k_j / \tau)}

The averages take a step before every forward pass of training, w <- m w + (1 - m) w_student, with m rising to 1 by a
cosine over the run. Under several processes keys are those of all. There is no queue. Deviations: views are drawn as
`parts.views` says, without blur, grey and solarising; batch norm is of one process; the patch embedding learns;
a step that is done in parts (micro-batches) moves the averages once per part. No teacher, no labels.
Shapes: B batch, V = 2 B views, D width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.methods.base import Criterion, Method, Needs, Samples, refuse_student
from hkd.methods.parts.logits import several_samples
from hkd.methods.parts.on_host import Passes
from hkd.methods.parts.views import ViewConfig, everyone, head, two_views, unit
from hkd.models.families.view_vit import MovingAverage, ViewTaps
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps
from hkd.options import Positive, Share, Size, Switch, options
from hkd.spec import ModelCard, Recipe


@options
class MoCoConfig(ViewConfig):
    """tau: temperature. momentum: m at the start; rises: to 1 at the end, else m stays. hidden, width: of projection
    (three linear maps) and prediction (two).
    """

    tau: Positive = 0.2
    momentum: Share = 0.99
    rises: Switch = True
    hidden: Size = 4096
    width: Size = 256


def info_nce(q: Float[Tensor, "B D"], k: Float[Tensor, "B D"], *, tau: float) -> Float[Tensor, ""]:
    """`ctr` above: 2 tau times the cross-entropy of finding each query's key.

    Args:
        q: queries; gradients flow.
        k: keys in the same order; detached here. Those of other processes are candidates too.
        tau: > 0.
    """
    keys, start = everyone(unit(k.detach()))
    return 2 * tau * F.cross_entropy(unit(q) @ keys.T / tau, start + torch.arange(len(q), device=q.device))


class MoCo(Method):
    """`contrast`. Own parameters: projection and prediction. The student is of the family `view_vit`.

    Kept in checkpoints beside them: the averages of student and projection (as long as their weights) and `passes`,
    the forward passes of training so far.
    """

    Config = MoCoConfig
    passes: Tensor

    def __init__(
        self, config: MoCoConfig, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion
    ) -> None:
        super().__init__(config, student, teachers, criterion)
        self.project = head([student.pooled, config.hidden, config.hidden, config.width], normed=True)
        self.predict = head([config.width, config.hidden, config.width], normed=True)
        self.encoder, self.projection = MovingAverage(), MovingAverage()
        self.register_buffer("passes", torch.tensor(0))
        self.passed = Passes()
        self.length = 1

    @classmethod
    def needs(cls, config: MoCoConfig) -> Needs:
        """No teacher; the pooled feature."""
        return Needs()

    @classmethod
    def refuse(
        cls, config: MoCoConfig, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe
    ) -> str | None:
        """Students that take no views."""
        return refuse_student("moco", "shows its student two views of every image", student, "views")

    def prepare(self, samples: Samples) -> None:
        """How many steps the momentum has for its rise."""
        self.length = samples.epochs * samples.steps

    def momentum(self) -> float:
        """m of the next step."""
        if not self.config.rises:
            return self.config.momentum
        done = min(self.passed(self.passes) / self.length, 1)
        return 1 - (1 - self.config.momentum) * (1 + math.cos(math.pi * done)) / 2

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Two views of every image in the place of the batch; the averages of the student and of the head step.

        Raises:
            UserError: a batch of one image, which has no other to be told from.
        """
        several_samples("moco", len(batch.x))
        inputs = {"views": two_views(batch.x, self.config), "average": self.encoder}
        if not self.training:
            return inputs
        momentum = self.momentum()
        self.projection.follow(self.project, momentum)
        self.passed.step(self.passes)
        return inputs | {"momentum": momentum}

    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """One term."""
        assert isinstance(taps_s, ViewTaps)
        # Each view has its own statistics, as in the official code, which runs the views one after the other.
        queries = [self.predict(self.project(pooled)) for pooled in taps_s.pooled.chunk(2)]
        keys = [self.projection(self.project, pooled) for pooled in taps_s.keys.chunk(2)]
        with torch.autocast(queries[0].device.type, enabled=False):
            pairs = zip(queries, reversed(keys), strict=True)
            return {"contrast": torch.stack([info_nce(q, k, tau=self.config.tau) for q, k in pairs]).sum()}
