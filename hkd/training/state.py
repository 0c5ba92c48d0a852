"""Everything that one run trains with, and where it stands."""

from dataclasses import dataclass

from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch.optim import Optimizer

from hkd.data.loading.loader import Loader
from hkd.spec import Recipe
from hkd.training.cache import Teachers
from hkd.training.step import Step


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
    schedule: Scheduler
    ema: ModelEmaV3 | None
    loader: Loader
    teachers: Teachers
    micro_batch: int | None
    position: Position
