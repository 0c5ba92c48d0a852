"""Names to things: every registry is a plain dict `{"name": "module:Attribute"}`, resolved here on first use.

Kept lazy on purpose: importing `hkd` or planning a table must not import torch, and an entry added to a
registry must not change the identity of runs that do not use it.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from hkd.errors import UserError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def lookup(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry called `name`.

    Raises:
        UserError: no such entry; the sentence lists the known names and the nearest one.
    """
    if not isinstance(name, str) or name not in registry:
        known = ", ".join(sorted(registry))
        raise UserError(f"Unknown {kind} '{name}'.{nearest(name, registry)} Known: {known}.")
    return registry[name]


def load(path: str) -> Any:
    """Import `"package.module:Attribute"` and return the attribute."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)
