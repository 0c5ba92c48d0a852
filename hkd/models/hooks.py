"""Looking into a model while it runs: what its modules are given and give; and evaluation mode for a while."""

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

Key = TypeVar("Key", bound=Hashable)
Note = Callable[[Any], None]


def recorded_inputs(modules: Mapping[Key, nn.Module]) -> AbstractContextManager[dict[Key, Any]]:
    """The first positional input of each module, by key, of the last call while the context is open."""

    def listen(module: nn.Module, note: Note) -> RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: note(args[0]))

    return _recorded(modules, listen)


def recorded_outputs(modules: Mapping[Key, nn.Module]) -> AbstractContextManager[dict[Key, Any]]:
    """The output of each module, by key, of the last call while the context is open."""

    def listen(module: nn.Module, note: Note) -> RemovableHandle:
        return module.register_forward_hook(lambda _module, _args, output: note(output))

    return _recorded(modules, listen)


@contextmanager
def _recorded(
    modules: Mapping[Key, nn.Module], listen: Callable[[nn.Module, Note], RemovableHandle]
) -> Iterator[dict[Key, Any]]:
    """Hooks are removed on leaving, also by an exception, and ignore calls from other threads, so that several forward
    passes of one model may overlap.
    """
    values: dict[Key, Any] = {}
    caller = threading.get_ident()

    def note(key: Key, value: Any) -> None:
        if threading.get_ident() == caller:
            values[key] = value

    handles = [listen(module, partial(note, key)) for key, module in modules.items()]
    try:
        yield values
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
