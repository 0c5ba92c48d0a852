"""What a run costs this process: its memory at the peak, and the sentence when there is not enough of it."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from hkd.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Forget the peak of what ran in this process before, where the system allows that."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        CLEAR.write_text("5")
    except OSError:  # not Linux, or not permitted: the peak is then that of the process
        return


def peak_memory_mib(device: torch.device) -> float:
    """Peak memory since the reset in MiB: allocated by torch on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if STATUS.exists():
        peak = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def gpu_seconds(wall_s: float, device: torch.device, processes: int) -> float:
    """Seconds of GPU time: each process has a GPU of its own for all of a run; 0 on a CPU."""
    return wall_s * processes if device.type == "cuda" else 0.0


def millions(module: nn.Module) -> float:
    """Trainable parameters in millions."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6


@contextmanager
def memory_told(images: int) -> Iterator[None]:
    """Turn running out of memory into one sentence.

    Args:
        images: of one forward pass in this process.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch raises its own class for a GPU, and a plain RuntimeError by this name for the CPU.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            f"Out of memory with {images} images per forward pass; set the runtime's micro_batch to fewer, "
            "or use more devices."
        ) from error
