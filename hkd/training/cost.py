"""What a run costs: seconds, memory at the peak, and the sentence when there is not enough of it."""

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from hkd.errors import UserError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures from its making on what a run costs this process.

    Attributes:
        before: seconds spent before an interruption (`spent` of then).
    """

    def __init__(self) -> None:
        reset_peak_memory()
        self.before: Mapping[str, float] = {"wall_s": 0.0, "cpu_s": 0.0}
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def spent(self) -> dict[str, float]:
        """Seconds so far: wall-clock time and this process's CPU time, interrupted attempts included."""
        return {
            "wall_s": self.before["wall_s"] + time.perf_counter() - self._wall,
            "cpu_s": self.before["cpu_s"] + time.process_time() - self._cpu,
        }

    def cost(self, fabric: Fabric, student: nn.Module | None = None) -> dict[str, float]:
        """`spent`, GPU seconds, trainable parameters of the student in millions and the peak of memory in MiB."""
        spent = self.spent()
        return {
            **spent,
            "gpu_s": gpu_seconds(spent["wall_s"], fabric.device, fabric.world_size),
            **({} if student is None else {"student_params_m": millions(student)}),
            "peak_memory_mib": peak_memory_mib(fabric.device),
        }


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
            f"Out of memory with {images} images per forward pass; set micro_batch of the machine to fewer, such as "
            f"{max(1, images // 2)} (it is part of no run's name), or use more devices."
        ) from error
