"""What records say of their runs, in today's terms: a spec that was written before a field existed lacks it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from experiments.planning.keys import spec_identity
from experiments.records.store import Record, canonical
from hkd.spec import RunSpec


def read_spec(spec: Mapping[str, Any]) -> RunSpec | None:
    """A record's spec, with the defaults of what it does not say; None where it is of another time or hand."""
    try:
        return _reader().validate_python(spec)
    except ValidationError:
        return None


@cache
def _reader() -> TypeAdapter[RunSpec]:
    return TypeAdapter(RunSpec)


def complete(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a record's spec; as it stands there if it cannot be read."""
    found = read_spec(spec)
    return dict(spec) if found is None else asdict(found)


def identity(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec_identity` of a record's spec: equal for the same run, whenever it was written down."""
    found = read_spec(spec)
    return dict(spec) if found is None else spec_identity(found)


def setting_of(record: Record) -> bytes:
    """All that determines a record's run but its seed."""
    return canonical({name: value for name, value in identity(record.spec).items() if name != "seed"})


def siblings(record: Record, others: Iterable[Record]) -> dict[int, Record]:
    """Finished runs that differ from one in their seed alone, and it, by seed."""
    setting = setting_of(record)
    done = (other for other in others if other.status == "done" and type(other.spec.get("seed")) is int)
    found = {other.spec["seed"]: other for other in done if setting_of(other) == setting}
    return dict(sorted((found | {record.spec["seed"]: record}).items()))
