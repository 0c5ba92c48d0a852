"""What a run cost this process: memory at its peak."""

import resource
import sys
from pathlib import Path

import torch
from torch import nn

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


def millions(module: nn.Module) -> float:
    """Trainable parameters in millions."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6
