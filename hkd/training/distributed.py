"""The engine (Lightning Fabric), and what several processes agree on."""

import os
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.training.job import Runtime


class Bfloat16(Precision):
    """Autocast to bfloat16. Inputs stay float32: pixels, soft targets and teacher outputs keep their digits until an
    operation that pays in 16 bits casts them. No scaler, so that single terms can be differentiated as well."""

    precision = "bf16-mixed"

    def __init__(self, device: str):
        self.device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.bfloat16)


class Float16(MixedPrecision):
    """Autocast to float16 with a scaled loss; inputs stay float32, as above."""

    def __init__(self, device: str):
        super().__init__("16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        return data


PRECISIONS = {"bf16-mixed": Bfloat16, "16-mixed": Float16}


def make_fabric(runtime: Runtime, precision: str) -> Fabric:
    """The engine of this process: alone, or one rank of a torchrun.

    Raises:
        UserError: CUDA was asked for and there is none, or float16 on a CPU.
    """
    accelerator = runtime.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("The accelerator 'cuda' was asked for, but torch sees no GPU here; use 'cpu' or 'auto'.")
    if accelerator == "cpu" and precision == "16-mixed":
        raise UserError("The precision '16-mixed' needs a GPU; on a CPU use 'bf16-mixed' or '32-true'.")
    several = under_torchrun()
    # The environment is named, so that a run inside somebody's Slurm or MPI job is still one process.
    plugins: list[Any] = [TorchElasticEnvironment() if several else LightningEnvironment()]
    if precision in PRECISIONS:
        plugins.append(PRECISIONS[precision](accelerator))
    if accelerator == "cuda":
        # Set whatever they are, as this process may have carried out another run. Convolutions have TF32 anyway.
        torch.set_float32_matmul_precision("high" if runtime.tf32 else "highest")
        torch.backends.cudnn.benchmark = runtime.cudnn_benchmark
    fabric = Fabric(
        accelerator=accelerator,
        devices=runtime.devices if several else 1,
        num_nodes=runtime.num_nodes if several else 1,
        # Buffers are not sent around before every step: those that a loss reads (queues, banks, codebooks, statistics
        # of targets) are equal in all processes by construction, and batch norms read theirs in evaluation alone,
        # before which `give_buffers` makes them those of rank 0.
        strategy=DDPStrategy(forward_sync_buffers=False) if several else "auto",
        plugins=plugins,
    )
    fabric.launch()
    return fabric


def of_all(fabric: Fabric, names: list[str]) -> list[str]:
    """The names that any process holds, by rank, each once; every process must ask."""
    if fabric.world_size == 1:
        return names
    held: list[list[str]] = [[] for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(held, names)
    return list(dict.fromkeys(name for each in held for name in each))


def under_torchrun() -> bool:
    """Whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@torch.no_grad()
def give_buffers(fabric: Fabric, module: nn.Module) -> None:
    """Make a module's statistics (its buffers of real numbers) those of rank 0, in every process."""
    if fabric.world_size > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                torch.distributed.broadcast(buffer, src=0)


def agree(fabric: Fabric, *flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    if fabric.world_size == 1:
        return flags
    return tuple(bool(value) for value in reduce(fabric, torch.tensor(flags, dtype=torch.float32), "max").tolist())


def reduce(fabric: Fabric, tensor: Tensor, operation: str) -> Tensor:
    """The tensor, combined over all processes ("sum", "max"), where it was."""
    if fabric.world_size == 1:
        return tensor
    combined = fabric.all_reduce(tensor.to(fabric.device), reduce_op=operation)
    assert isinstance(combined, Tensor)
    return combined.to(tensor.device)
