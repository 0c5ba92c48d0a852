"""What the host knows of a buffer that lies on a device, so that a training step need not wait for the device."""

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class OnHost(Generic[T]):
    """What was read of a buffer, for as long as nobody has changed the buffer: reading waits for a GPU.

    Whatever changes it (a checkpoint that is loaded, a move to another device, `fill_`) is seen, and it is read again.

    Args:
        read: the value of a buffer.
    """

    def __init__(self, read: Callable[[Tensor], T]) -> None:
        self.read = read
        self.known: tuple[Tensor, int, T] | None = None

    def __call__(self, buffer: Tensor) -> T:
        """The value, read from the buffer unless it is known."""
        if self.known and self.known[0] is buffer and self.known[1] == version(buffer) != UNTOLD:
            return self.known[2]
        value = self.read(buffer)
        self.note(buffer, value)
        return value

    def note(self, buffer: Tensor, value: T) -> None:
        """Take a value as the one that the buffer has now."""
        self.known = (buffer, version(buffer), value)


class Passes(OnHost[int]):
    """Forward passes of training that a method has counted in a buffer of its own, which checkpoints keep."""

    def __init__(self) -> None:
        super().__init__(int)

    def step(self, buffer: Tensor) -> None:
        """Count one more."""
        count = self(buffer) + 1
        buffer.add_(1)
        self.note(buffer, count)


UNTOLD = -1


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; UNTOLD where torch does not count (inference mode)."""
    return UNTOLD if tensor.is_inference() else tensor._version
