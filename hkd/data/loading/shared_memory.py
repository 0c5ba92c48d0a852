"""Room for the batches that loader workers hand over: torch puts them into /dev/shm, and waits where it is full."""

import shutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hkd.errors import UserError

PLACE = Path("/dev/shm")


def check_room(batch: Any, workers: int) -> None:
    """Refuse to hand over a batch that might not find room, beside one of every other worker.

    Args:
        batch: tensors in dataclasses, mappings and lists.
        workers: processes that load; nothing is checked without any, or where there is no such place.

    Raises:
        UserError: with what is free, and what is needed.
    """
    if not workers or not PLACE.is_dir():
        return
    size, usage = bytes_of(batch), shutil.disk_usage(PLACE)
    if usage.free < workers * size:
        raise UserError(
            f"{PLACE} has {mib(usage.free)} MiB free of {mib(usage.total)}, too little for batches of {mib(size)} MiB "
            f"from {workers} loader workers, of which each has up to two there: give it at least "
            f"{mib((2 * workers + 1) * size)} MiB (`docker run --shm-size`), or use fewer loader_workers."
        )


def bytes_of(value: Any) -> int:
    """Of all tensors in it."""
    if isinstance(value, Tensor):
        return value.nbytes
    if is_dataclass(value):
        return sum(bytes_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return sum(map(bytes_of, value.values()))
    return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else 0


def mib(size: int) -> str:
    """Bytes in MiB, with one digit where there are few."""
    return f"{size / 2**20:,.0f}" if size >= 10 * 2**20 else f"{size / 2**20:.1f}"
