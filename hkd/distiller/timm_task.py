"""A `Distiller` as a training task of timm: for loops like timm's `train.py`, which take a `timm.task.TrainingTask`."""

from typing import Any

import torch
from timm.models import model_parameters
from timm.task import TrainingTask
from timm.utils.model import unwrap_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hkd.distiller.module import Distiller
from hkd.errors import UserError


class TimmTask(TrainingTask):
    """`forward` gives what timm's loop reads: `loss`, the sum; `output`, the student's logits; and each term by name.

    What is trained is the distiller, student and adapters; what is evaluated and stored as the model is the plain
    student, and adapters and memories of the method are stored beside it as the state of the task. Methods that know
    samples again (CRD) are refused, because timm's loops give no rows.
    """

    def __init__(
        self,
        distiller: Distiller,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = True,
    ) -> None:
        """Arguments as timm's tasks have them.

        Raises:
            UserError: the method needs the row of each sample.
        """
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if distiller.needs.index:
            raise UserError(
                f"Method '{distiller.method}' knows samples again by their row, and timm's loops give no rows: call "
                f"the distiller in a loop of your own, distiller(x, y, index=index)."
            )
        self.trainable_module: Any = distiller

    @property
    def distiller(self) -> Distiller:
        """The distiller, without what processes and compilers put around it."""
        return self.inside(self.trainable_module)

    @staticmethod
    def inside(module: nn.Module) -> Distiller:
        """The distiller inside a wrapper, or inside its moving average."""
        while not isinstance(module, Distiller):
            module = unwrap_model(getattr(module, "module", module))
        return module

    def prepare_distributed(self, device_ids: list[int] | None = None, **ddp_kwargs: Any) -> "TimmTask":
        """Wrap the distiller, whose teachers are no parameters of it."""
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = "inductor", mode: str | None = None, **compile_kwargs: Any) -> Any:
        """Compile the distiller; the result evaluates the student."""
        options = {"backend": backend, "mode": mode, **compile_kwargs}
        self.eval_model = torch.compile(self.distiller.student, **options)
        self.trainable_module = torch.compile(self.trainable_module, **options)
        return self.eval_model

    def get_eval_model(self, module: nn.Module | None = None, ema: bool = False) -> nn.Module | None:
        """The plain student."""
        found = super().get_eval_model(module=module, ema=ema)
        held = self.get_trainable_module(ema=ema) if module is None else module
        return self.inside(held).student if found is not None and found is held else found

    def get_clip_parameters(self, exclude_head: bool = False) -> list[nn.Parameter]:
        """Parameters of the student, without those of its classifier if asked, and of the adapters."""
        student = model_parameters(self.distiller.student, exclude_head=exclude_head)
        return [*student, *self.distiller.step.method.parameters()]

    def get_task_state(self, module: nn.Module | None = None, ema: bool = False) -> dict[str, Any]:
        """Adapters and memories of the method."""
        held = self.get_trainable_module(ema=ema) if module is None else module
        state = {} if held is None else self.inside(held).step.method.state_dict()
        return {"method": state} if state else {}

    def load_task_state(
        self,
        state: dict[str, Any] | None,
        strict: bool = True,
        module: nn.Module | None = None,
        ema: bool = False,
    ) -> None:
        """As `get_task_state` gave it."""
        held = self.get_trainable_module(ema=ema) if module is None else module
        if state and held is not None:
            self.inside(held).step.method.load_state_dict(state["method"], strict=strict)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Loss, output and terms of a batch of images and targets."""
        losses = self.trainable_module(input, target)
        logits = self.distiller.step.logits
        assert logits is not None
        return {"loss": torch.stack([*losses.values()]).sum(), "output": logits, **losses}
