"""One batch as the loop and the methods see it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

B = TypeVar("B", bound="Batch")


@dataclass
class Batch:
    """x: RGB in [0, 1], not normalised (each model applies its own mean and std), [B, 3, H, W]; bytes on the way from a
    loader's workers.

    y: class indices [B], or soft targets [B, C] after mixup. index: row of each sample in its split [B].
    view: number of the fixed view each sample shows [B], or None when augmentation is drawn afresh.
    extra: what a method drew for this batch (a mask), shared by the teachers' and the student's inputs.
    """

    x: Float[Tensor, "B 3 H W"] | UInt8[Tensor, "B 3 H W"]
    y: Tensor
    index: Int[Tensor, " B"]
    view: Int[Tensor, " B"] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def to(self: B, device: torch.device) -> B:
        """The batch with all it holds on a device; itself if it is there."""
        return self if self.x.device == device else self._with(lambda value: moved(value, device))

    def pin_memory(self: B) -> B:
        """The batch in memory that a GPU reads while the processor goes on; a DataLoader asks for it by this name."""
        return self._with(pinned)

    def rows(self: B, rows: slice) -> B:
        """Some of its images, with what belongs to them."""
        return self._with(lambda value: picked(value, rows))

    def _with(self: B, change: Callable[[Any], Any]) -> B:
        return replace(self, **{item.name: change(getattr(self, item.name)) for item in fields(self)})


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or all in a list or dictionary, on a device."""
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    if isinstance(value, list):
        return [moved(item, device) for item in value]
    return None if value is None else value.to(device, non_blocking=True)


def pinned(value: Any) -> Any:
    """A tensor, or all in a list or dictionary, in pinned memory."""
    if isinstance(value, dict):
        return {name: pinned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [pinned(item) for item in value]
    return None if value is None else value.pin_memory()


def picked(value: Any, rows: slice) -> Any:
    """Entries of a tensor or list, or of all in a dictionary."""
    if isinstance(value, dict):
        return {name: picked(item, rows) for name, item in value.items()}
    return None if value is None else value[rows]
