"""Ways to damage bytes and nested values, drawn from a seeded generator: what disks and people do to files."""

import random
from typing import Any

BYTES = ("none", "flip", "cut", "zeros", "noise", "repeat", "drop", "insert", "empty", "double")


def damaged(rng: random.Random, content: bytes) -> tuple[bytes, str]:
    """The content with one to three damages, and their names."""
    names = [rng.choice(BYTES) for _ in range(rng.randint(1, 3))]
    for name in names:
        content = one_damage(rng, content, name)
    return content, " + ".join(names)


def one_damage(rng: random.Random, content: bytes, name: str) -> bytes:
    """The content after one damage, at a random place."""
    if name == "none" or not content:
        return content
    start = rng.randrange(len(content))
    stop = min(len(content), start + rng.choice((1, 4, 16, 256)))
    if name == "flip":
        return content[:start] + bytes([content[start] ^ (1 << rng.randrange(8))]) + content[start + 1 :]
    if name == "cut":
        return content[:start]
    if name == "zeros":
        return content[:start] + bytes(stop - start) + content[stop:]
    if name == "noise":
        return content[:start] + rng.randbytes(stop - start) + content[stop:]
    if name == "repeat":
        return content[:stop] + content[start:stop] * rng.randint(1, 50) + content[stop:]
    if name == "drop":
        return content[:start] + content[stop:]
    if name == "insert":
        return content[:start] + rng.randbytes(rng.choice((1, 2, 100))) + content[start:]
    if name == "double":
        return content + content
    return b""


# What stands in a file where something else was expected.
ODD_VALUES = (
    None, True, False, 0, -1, 1, 10**9, 10**400, 0.5, -0.0, float("nan"), float("inf"), 1e308, "", " ", "0", "nan", "é",
    "\x00", "\ud800", "../../etc/passwd", "/", "~nouser", "x" * 10_000, "<script>", "{", [], {}, [[]], [None],
    {"a": None}, {"": {}}, [1, "a", None], {"x": [{"y": []}]},
)  # fmt: skip


def odd_value(rng: random.Random) -> object:
    return rng.choice(ODD_VALUES)


def changed(rng: random.Random, value: object) -> tuple[object, str]:
    """A nested value (dicts, lists, scalars) with one place replaced, removed, added, renamed or doubled; and which."""
    places = list(walk(value))
    path = rng.choice(places)
    how = rng.choice(("replace", "replace", "replace", "remove", "add", "rename", "double", "deepen"))
    return rebuilt(rng, value, path, how), f"{how} at /{'/'.join(map(str, path))}"


# What could stand there by its kind.
NUMBERS = (0, 1, -1, 2, 3, 7, 64, 1000, 10**6, 10**9, 2**31, 2**63, 10**400, 10**5000, 0.5, 1.0, -0.0, 1e-9,
           1e-300, 1e6, 1e30, 1e308)  # fmt: skip
TEXTS = ("", " ", "x", "é🙂", "\x00", "\x1b[31m", "a\nb", "\ud800", "../../etc/passwd", "/etc/passwd", "~nouser",
         "{}", "%s", "<script>", "x" * 300, "x" * 10_000, "con", "a/b", "a@b", "-", "0", "nan", "*", "$HOME", "|",
         "\u202e")  # fmt: skip


def retyped(rng: random.Random, value: object) -> tuple[object, str]:
    """A nested value with one scalar replaced by another of its kind: a number, or a text, maybe of elsewhere in it."""
    leaves = [path for path in walk(value) if not isinstance(at(value, path), dict | list)]
    if not leaves:
        return changed(rng, value)
    path = rng.choice(leaves)
    held = at(value, path)
    texts = [other for each in leaves if isinstance(other := at(value, each), str)]
    new: object = rng.choice(TEXTS) if rng.random() < 0.5 or not texts else rng.choice(texts)
    if isinstance(held, bool) or held is None:
        new = rng.choice((True, False, None, new))
    elif isinstance(held, int | float):
        new = rng.choice(NUMBERS)
    return replaced(value, path, new), f"{shown(new)} at /{'/'.join(map(str, path))}"


def shown(value: object) -> str:
    """A value, for the line that says what an input is."""
    try:
        return repr(value)[:40]
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__} of too many digits"


def at(value: Any, path: tuple) -> object:
    """What stands at a place."""
    for name in path:
        value = value[name]
    return value


def replaced(value: Any, path: tuple, new: object) -> object:
    """A copy of the value with something else at a place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


def walk(value: object, path: tuple = ()) -> list[tuple]:
    """The path of every place in a nested value, its root's () first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [place for name, item in inner for place in walk(item, (*path, name))]


def rebuilt(rng: random.Random, value: object, path: tuple, how: str) -> object:
    """A copy of the value in which the place at `path` is changed."""
    if not path:
        if how == "deepen":
            for _ in range(rng.choice((1, 30, 3000))):
                value = [value]
            return value
        return [value, value] if how == "double" else odd_value(rng)
    name, rest = path[0], path[1:]
    copy = dict(value) if isinstance(value, dict) else list(value)
    if rest or how in {"replace", "double", "deepen"}:
        copy[name] = rebuilt(rng, copy[name], rest, how)
    elif how == "remove":
        del copy[name]
    elif isinstance(copy, list):
        copy.insert(name, odd_value(rng))
    elif how == "rename":
        copy[rng.choice(("", "x", f"{name} ", str(name).upper(), "é"))] = copy.pop(name)
    else:
        copy[rng.choice(("", "unknown", "seed", "__class__", "é"))] = odd_value(rng)
    return copy
