"""Options: every field of every class of options, with numbers, texts, lists and others where they cannot be."""

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hkd.options import MOST, configured
from tests.hkd.test_options import CLASSES, REQUIRED, assert_inside
from tests.robust.damage import NUMBERS, ODD_VALUES, TEXTS, shown
from tests.robust.fuzz import Input, Kind


def choices(hint: Any) -> list[Any]:
    """Words that an annotation allows, wherever in it they stand."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for part in get_args(hint) for word in choices(part)]


def a_value(rng: random.Random, item: Any) -> object:
    """Something for a field: an odd value, a number, a list of them, a word of its own, or what it has by default."""
    kind = rng.choice(("odd", "number", "number", "list", "word", "near", "key"))
    if kind == "odd":
        return rng.choice(ODD_VALUES)
    if kind == "number":
        return rng.choice(NUMBERS)
    if kind == "list":
        return [rng.choice((*NUMBERS, *ODD_VALUES)) for _ in range(rng.choice((0, 1, 2, 2, 5, 1000)))]
    if kind == "word":
        words = [*choices(item.type), *TEXTS]
        return rng.choice([rng.choice(words), [rng.choice(words)] * rng.randint(1, 3)])
    if kind == "key":
        return {rng.choice(("train", "test", "classes", "", "x")): rng.choice((*NUMBERS, *ODD_VALUES))}
    held = item.default
    if type(held) in (int, float):
        return held * rng.choice((-1, 0, 0.5, 2, 10, 1000, 10**6))
    if isinstance(held, tuple) and held and type(held[0]) in (int, float):
        return [value * rng.choice((-1, 0, 1, 2, 1000)) for value in held]
    return not held if isinstance(held, bool) else rng.choice(NUMBERS)


def option_values(rng: random.Random, folder: Path) -> Input:
    of = rng.choice([name for name, kind in CLASSES.items() if fields(kind)])
    kind: Any = CLASSES[of]
    chosen = rng.sample(fields(kind), min(len(fields(kind)), rng.choice((1, 1, 1, 2, 4))))
    values = {**REQUIRED.get(of, {}), **{item.name: a_value(rng, item) for item in chosen}}
    if rng.random() < 0.05:
        values[rng.choice(("", "unknown", "self", "__class__", "é", f"{chosen[0].name} "))] = 1

    def attempt() -> None:
        made: Any = configured(kind, f"'{of}'", values)
        for item in fields(kind):
            value = getattr(made, item.name)
            assert_inside(item.type, value)
            for number in value if isinstance(value, tuple) else [value]:
                assert not isinstance(number, int | float) or abs(number) <= MOST, f"{item.name} is {number}"
            if not isinstance(value, Path):
                json.dumps(value, allow_nan=False).encode()

    return Input(f"{of} {str({name: shown(value) for name, value in values.items()})[:200]}", attempt)


KINDS: dict[str, Kind] = {"options": option_values}
