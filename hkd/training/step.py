"""One training step's forward pass as one module, and all that a run trains with.

A wrapper around the step sees all that learns: calling a part of it (the student alone) under several processes would
skip the exchange of gradients, silently.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from hkd.data.batch import Batch
from hkd.data.loading.loader import BatchLoader
from hkd.methods.base import Method, Needs, scalar_losses
from hkd.models.tap_model import TapModel
from hkd.models.taps import Taps
from hkd.spec import Recipe
from hkd.training.cache import Teachers
from hkd.training.recipe import Schedule


class Step(nn.Module, ABC):
    """What learns, as one module: `student`, whose plain timm model `student.net` is exported, and `method`, whose
    weights go to the adapters. Teachers come in as taps, so that they are nobody's parameters.

    Attributes:
        hits: correct predictions of the last batch, a count on the device, or None where targets are soft or absent.
    """

    student: Any
    method: Any

    def __init__(self, student: nn.Module, method: nn.Module):
        super().__init__()
        self.student, self.method = student, method
        self.hits: Tensor | None = None

    @property
    def averaged(self) -> nn.Module:
        """What a recipe's moving average is of: all that is evaluated."""
        net: nn.Module = self.student.net
        return net

    @abstractmethod
    def forward(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Named, weighted scalar losses of one batch; their sum is minimised."""

    def diagnostics(self) -> dict[str, float]:
        """Figures of the epoch that has ended, for its line of the curves."""
        return {}


class TapStep(Step):
    """A student with taps, and the method that compares them with its teachers'."""

    student: TapModel
    method: Method

    def __init__(self, student: TapModel, method: Method, needs: Needs):
        super().__init__(student, method)
        self.want = needs.student

    def forward(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Named, weighted scalar losses of one batch; their sum is minimised."""
        taps_s = self.student(batch.x, self.want, **self.method.student_inputs(batch, taps_t))
        if (second := self.method.second_view(batch)) is not None:
            taps_s.second = self.student(second)
        self.hits = (taps_s.logits.detach().argmax(1) == batch.y).sum() if batch.y.ndim == 1 else None
        return scalar_losses(self.method, batch, taps_s, taps_t)

    def diagnostics(self) -> dict[str, float]:
        """What the method says of the epoch that has ended."""
        return self.method.diagnostics()


@dataclass
class Position:
    """Where a run stands: epoch and step within it (both 0-based), and updates done in all."""

    epoch: int = 0
    step: int = 0
    updates: int = 0


@dataclass
class Training:
    """Everything one run trains with. `step` is the bare module, `forward` its form under the engine."""

    fabric: Fabric
    recipe: Recipe
    step: Step
    forward: _FabricModule
    optimizer: Optimizer
    schedule: Schedule
    ema: ModelEmaV3 | None
    loader: BatchLoader
    teachers: Teachers
    micro_batch: int | None
    position: Position
