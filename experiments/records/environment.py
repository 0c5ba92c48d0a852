"""Where a run happened: versions, processor, threads, GPUs and the commit. Recorded, never part of a run's key."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import hkd
from experiments import places

# What can change a number; everything else is pinned by constraints.txt.
PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "scikit-learn", "scipy", "safetensors")


def environment(accelerator: str = "auto", settings: Sequence[str] = ()) -> dict[str, Any]:
    """Facts for a record, JSON-able and cheap (each is looked up once per process).

    Args:
        accelerator: what the run asked for: auto, cpu or cuda.
        settings: of the machine that were on (`Runtime.settings`); without any, there is no such entry.
    """
    return {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": cpu(),
        "cores": cores(),
        "threads": threads(),
        "device": device(accelerator),
        "gpu": list(gpus()),
        **({"settings": list(settings)} if settings else {}),
        **commit(),
    }


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that can change a number; absent ones are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def cpu() -> str:
    """The processor as it names itself."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads that one process computes with: torch's where it is in use, else those it would take."""
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() else cores()


@cache
def gpus() -> tuple[str, ...]:
    """Names of the visible NVIDIA GPUs, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "" or shutil.which("nvidia-smi") is None:
        return ()
    asked = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    names = tuple(asked.stdout.splitlines()) if asked.returncode == 0 else ()
    return names if visible is None else names[: len(visible.split(","))]


def device(accelerator: str) -> str:
    """The device type that an accelerator setting means on this machine: cpu or cuda."""
    if accelerator == "auto":
        return "cuda" if gpus() else "cpu"
    return accelerator


@cache
def commit() -> dict[str, Any]:
    """`commit` (None outside git) and `dirty` (tracked files changed since it)."""
    head = git("rev-parse", "HEAD")
    if head is None:
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def git(*arguments: str, folder: Path | None = None) -> str | None:
    """What git answers in this checkout (or another folder's), or None if it cannot."""
    if shutil.which("git") is None:
        return None
    asked = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(folder or places.repository()), *arguments],
        capture_output=True,
        text=True,
    )
    return asked.stdout.strip() if asked.returncode == 0 else None


def source_digest() -> str:
    """Hash over the source files of hkd as they are on disk now."""
    root = Path(hkd.__file__).parent
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        state.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return state.hexdigest()
