"""Looking into a model while it runs: what its modules are given and give, or get instead; and evaluation mode."""

import threading
from collections.abc import Callable, Container, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Key = TypeVar("Key", bound=Hashable)
Note = Callable[[Any], None]


class Recorded(dict[Key, Any], Generic[Key]):
    """Values by key, and what can become of a tensor after it was recorded.

    graded: whether gradients were followed when each value was recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graded: dict[Key, bool] = {}
        self.versions: dict[Key, int] = {}

    def note(self, key: Key, value: Any) -> None:
        """Record a value under its key."""
        self[key], self.graded[key] = value, torch.is_grad_enabled()
        if isinstance(value, Tensor) and not value.is_inference():  # which counts no versions
            self.versions[key] = value._version

    def overwritten(self) -> list[Key]:
        """Keys of tensors that an in-place operation has changed since."""
        return [key for key, version in self.versions.items() if self[key]._version != version]


def recorded_inputs(modules: Mapping[Key, nn.Module]) -> AbstractContextManager[Recorded[Key]]:
    """The first positional input of each module, by key, of the last call while the context is open."""

    def listen(module: nn.Module, note: Note) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: note(args[0]))

    return _recorded(modules, listen)


def recorded_outputs(
    modules: Mapping[Key, nn.Module], copied: Container[Key] = ()
) -> AbstractContextManager[Recorded[Key]]:
    """The output of each module, by key, of the last call while the context is open.

    Args:
        modules: by key.
        copied: keys of tensors to be copied at once, because a later in-place operation changes what is recorded.
    """

    def listen(module: nn.Module, note: Note) -> RemovableHandle:
        return module.register_forward_hook(lambda _module, _args, output: note(output))

    return _recorded(modules, listen, copied)


@contextmanager
def _recorded(
    modules: Mapping[Key, nn.Module],
    listen: Callable[[nn.Module, Note], RemovableHandle],
    copied: Container[Key] = (),
) -> Iterator[Recorded[Key]]:
    """Hooks are removed on leaving, also by an exception, and ignore calls from other threads, so that several forward
    passes of one model may overlap.
    """
    values: Recorded[Key] = Recorded()
    caller = threading.get_ident()

    def note(key: Key, value: Any) -> None:
        if threading.get_ident() == caller:
            values.note(key, value.clone() if key in copied and isinstance(value, Tensor) else value)

    handles = [listen(module, partial(note, key)) for key, module in modules.items()]
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def changed_inputs(modules: Mapping[Key, nn.Module], change: Callable[[Key, Any], Any]) -> Iterator[None]:
    """While the context is open, each module is given what `change(key, input)` makes of its first positional input.

    A module with several keys gets all changes, in their order. Hooks are removed on leaving and ignore calls from
    other threads, as those of `recorded_inputs` do.
    """
    caller = threading.get_ident()

    def changed(key: Key, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (change(key, args[0]), *args[1:]) if threading.get_ident() == caller else None

    handles = [module.register_forward_pre_hook(partial(changed, key)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for all modules, whatever their `train` does; each is as it was on leaving."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
