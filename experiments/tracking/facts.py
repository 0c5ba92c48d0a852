"""Runs as flat facts: to be filtered, sorted and compared by name."""

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.records.store import Record, Store
from experiments.results.caption import LOSSES
from hkd.errors import UserError
from hkd.registry import nearest

TERM = re.compile(r"(?P<name>[\w.@-]+?)\s*(?P<sign>!=|<=|>=|=|<|>)\s*(?P<value>.*)")
ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
TELLING = ("key", "status", "label", "task", "method", "student", "teacher", "data", "seed")

Facts = dict[str, Any]


def facts(record: Record) -> Facts:
    """A run by names: who and what first, then options, recipe, metrics and costs.

    Options of the method and fields of the recipe stand under their own name; where that is taken already (a
    method's option `lr`, say), under `method.NAME` and `recipe.NAME` alone.
    """
    spec = record.spec
    found: Facts = {"key": record.key, "status": record.status, "label": record.label}
    found |= {name: spec[name] for name in ("task", "seed", "evaluate_on") if name in spec}
    found["method"] = inner(spec, "method").get("name", "")
    found["student"] = inner(spec, "student").get("name", "")
    teachers = inner(spec, "teachers")
    found["teacher"] = "+".join(str(inner(inner(teachers, role), "model").get("name", "")) for role in teachers)
    found["data"] = inner(spec, "data").get("name", "")
    found |= {"took": record.finished - record.started, "finished": record.finished}
    found |= dict(record.metrics)
    parts = {"method": inner(inner(spec, "method"), "options"), "recipe": inner(spec, "recipe"), "cost": record.cost}
    for part, values in parts.items():
        found |= {f"{part}.{name}": value for name, value in values.items()}
        found = {name: value for name, value in values.items() if name not in found} | found
    return {name: found[name] for name in (*filter(found.__contains__, TELLING), *found)}


def inner(mapping: Any, name: str) -> Mapping[str, Any]:
    """A mapping within another; empty where there is none (a run without a recipe, a record of older code)."""
    value = mapping.get(name) if isinstance(mapping, Mapping) else None
    return value if isinstance(value, Mapping) else {}


Condition = tuple[str, str, str]  # name, sign, value


def conditions(texts: Iterable[str]) -> list[Condition]:
    """`method=kd,student=resnet*,top1>80` as conditions, all of which must hold.

    Raises:
        UserError: a part is no condition.
    """
    found = []
    for text in texts:
        for part in filter(None, (part.strip() for part in text.split(","))):
            match = TERM.fullmatch(part)
            if match is None:
                raise UserError(f"'{part}' is no condition; write NAME=VALUE, such as method=kd or top1>80.")
            found.append((match["name"], match["sign"], match["value"]))
    return found


def chosen(runs: Sequence[Facts], wanted: Sequence[Condition]) -> list[Facts]:
    """The runs for which all conditions hold.

    Raises:
        UserError: no run has a fact of that name, or a number is asked for and the value is none.
    """
    known = sorted({name for run in runs for name in run})
    for name, sign, value in wanted:
        if runs and name not in known:
            raise UserError(f"No run has '{name}'.{nearest(name, known)} {example(runs)}")
        if sign in ORDERS and as_number(value) is None:
            raise UserError(f"'{name}{sign}{value}' compares with no number; write {name}{sign}80, say.")
    return [run for run in runs if all(holds(run, *condition) for condition in wanted)]


def holds(run: Facts, name: str, sign: str, value: str) -> bool:
    """Whether a run fulfils a condition; one that lacks the fact fulfils `!=` alone."""
    held = run.get(name)
    if sign in ORDERS:
        limit, number = as_number(value), as_number(held)
        return number is not None and limit is not None and ORDERS[sign](number, limit)
    return (name in run and same(held, value)) is (sign == "=")


def same(held: Any, value: str) -> bool:
    """Whether a fact is what was written: as a number, else as text in which * and ? stand for any letters."""
    number, written = as_number(held), as_number(value)
    if number is not None and written is not None:
        return number == written
    return fnmatch.fnmatchcase(str(held).lower(), value.lower())


def as_number(value: Any) -> float | None:
    """A number, or a text of one; None for anything else, truth values among them."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def ordered(runs: Sequence[Facts], name: str, metrics: Iterable[str]) -> list[Facts]:
    """Runs sorted by a fact, those that lack it last: metrics from the best (the lowest loss), the latest end first,
    all else upwards.

    Raises:
        UserError: no run has it.
    """
    known = sorted({each for run in runs for each in run})
    if runs and name not in known:
        raise UserError(f"No run has '{name}' to sort by.{nearest(name, known)} {example(runs)}")
    down = (name in metrics and name not in LOSSES) or name == "finished"
    numbers = [run for run in runs if as_number(run.get(name)) is not None]
    texts = [run for run in runs if name in run and as_number(run[name]) is None]
    numbers.sort(key=lambda run: as_number(run[name]) or 0.0, reverse=down)
    return [*numbers, *sorted(texts, key=lambda run: str(run[name])), *(run for run in runs if name not in run)]


def example(runs: Sequence[Facts]) -> str:
    """Names that there are."""
    more = [name for name in ("top1", "epochs", "took", "finished") if name in runs[0]]
    return f"There are {', '.join((*TELLING, *more))} and others (--json prints all)."


def full_key(store: Store, key: str) -> str:
    """The key of a run by enough of its beginning to be the only one.

    Raises:
        UserError: there is no such run, or there are several.
    """
    keys = list(store.keys())
    found = [key] if key in keys else [known for known in keys if known.startswith(key)]
    if len(found) != 1:
        many = f"'{key}' is the beginning of {len(found)} runs; give more of it." if found else f"Unknown run '{key}'."
        raise UserError(f"{many}{'' if found else nearest(key, keys)} `hkd runs list` lists all.")
    return found[0]


def record_called(store: Store, key: str) -> Record:
    """The record of a run by its key or the beginning of it.

    Raises:
        UserError: as `full_key`, or the record is not what was written.
    """
    record = store.load(full_key(store, key))
    assert record is not None
    return record
