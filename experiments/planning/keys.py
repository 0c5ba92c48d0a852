"""The identity of a run: a hash of its spec and of what the code that it enters by name computes.

Of every unit that the run enters (task, method, model families, data set) the key holds the version of
hkd/numerics.lock, if the unit's code is proved to compute it on this kind of device, else the digest of that code. So
an edit that is proved to move no digit changes no key, an edit that is not makes new keys, and a new method or model
changes none.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any

from experiments.planning import code, declared
from experiments.planning.lock import Lock, read_lock
from experiments.records.store import digest
from hkd.spec import ModelCard, Recipe, RunSpec
from hkd.units import units_of


def run_key(spec: RunSpec, kind: str = "cpu") -> str:
    """16 hexadecimal digits that name the run; equal for equal spec and code, whatever table or machine asks.

    Args:
        spec: the run.
        kind: of device it is carried out on (`device_kind`); matters only for code that is not proved on all kinds.
    """
    return key_of(spec, {unit: computed(unit, module, kind) for unit, module in units_of(spec).items()})


def key_of(spec: RunSpec, computes: Mapping[str, int | str]) -> str:
    """The key of a run whose units compute these versions, or have code of these digests."""
    return digest({"spec": spec_identity(spec), "units": computes}, size=8)


def device_kind(device: str, processes: int) -> str:
    """The kind of device that a proof is for: `cpu` or `cuda`, with `-ddp` where several processes share a run."""
    return device + ("-ddp" if processes > 1 else "")


@cache
def computed(unit: str, module: str, kind: str) -> int | str:
    """The version of a unit whose code is proved, or the digest of code that is not."""
    found = code.own_code().digest([module])
    entry = lock().entries.get(unit)
    return entry.version if entry is not None and entry.holds(found, kind) else found


@cache
def lock() -> Lock:
    """The lock of the package that is imported."""
    return read_lock()


def forget() -> None:
    """Read sources and lock anew: they may have been edited."""
    code.forget()
    for cached in (lock, computed, declared.declared, declared.meaning, declared.top_level):
        cached.cache_clear()


def spec_identity(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain JSON values, without what only describes a model and without fields at their default."""
    return reduced(spec)


def reduced(value: Any) -> Any:
    """Dataclasses as dicts of the fields that differ from their default."""
    if isinstance(value, dict):
        return {key: reduced(item) for key, item in value.items()}
    if isinstance(value, ModelCard | Recipe):  # which hundreds of runs share
        held = SHARED.get(id(value))
        if held is None or held[0] is not value:
            if len(SHARED) > MOST_SHARED:
                SHARED.clear()
            held = SHARED[id(value)] = value, of_fields(value)
        return held[1]
    return of_fields(value) if is_dataclass(value) else value


SHARED: dict[int, tuple[Any, dict[str, Any]]] = {}  # cards and recipes by id, as they are reduced
MOST_SHARED = 4096


def of_fields(value: Any) -> dict[str, Any]:
    """A dataclass, reduced."""
    named = value.identity() if isinstance(value, ModelCard) else None
    kind: Any = type(value)
    found = {}
    for name, default in defaults(kind):
        if (named is None or name in named) and (given := getattr(value, name)) != default:
            found[name] = reduced(given)
    return found


@cache
def defaults(kind: type) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass with their defaults, which nobody changes; MISSING where a field has none."""
    return tuple(
        (item.name, item.default if item.default_factory is MISSING else item.default_factory())
        for item in fields(kind)
    )
