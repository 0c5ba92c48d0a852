"""Names to things: every registry is a plain dict `{"name": "module:Attribute"}`, resolved here on first use.

Kept lazy on purpose: importing `hkd` or planning a table must not import torch, and an entry added to a
registry must not change the identity of runs that do not use it.
"""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

from hkd.errors import UserError
from hkd.outside import GROUPS, found_outside, imported, is_ours, outside

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def lookup(kind: str, name: str, registry: Mapping[str, T]) -> T:
    """The entry called `name`; of methods and data sets also the path of what comes from outside (hkd/outside.py).

    Raises:
        UserError: no such entry; the sentence lists the known names and the nearest one.
    """
    if isinstance(name, str) and name in registry:
        return registry[name]
    open_to_others = kind in GROUPS and kind != "model"  # models are cards, not paths; who takes them asks `outside`
    if open_to_others and isinstance(name, str) and (path := found_outside(kind, name)) is not None:
        return cast(T, path)
    known = sorted({*registry, *(outside(GROUPS[kind]) if open_to_others else ())})
    raise UserError(f"Unknown {kind} '{name}'.{nearest(name, known)} Known: {', '.join(known)}.")


def load(path: str) -> Any:
    """Import `"package.module:Attribute"` and return the attribute.

    Raises:
        UserError: it is not of this package and cannot be imported.
    """
    module, _, attribute = path.partition(":")
    if not is_ours(module):
        return imported(path)
    return getattr(importlib.import_module(module), attribute)
