"""Pickles of CIFAR without unpickling: opcodes are followed by a small machine that calls nothing a file names.

It knows dicts, lists, tuples, texts, bytes, whole and real numbers, and the ways in which NumPy's arrays of whole
numbers are pickled (of every protocol, by Python 2 and 3). Every other opcode or name is refused, and so is what is
longer than was announced. Arrays are made from bytes whose number was compared with their shape.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

PLAIN = {  # opcodes whose argument is the value
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "INT", "LONG", "FLOAT"),
    *("STRING", "UNICODE"),
}
FIXED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEPT = ("PUT", "BINPUT", "LONG_BINPUT")
TAKEN = ("GET", "BINGET", "LONG_BINGET")
MARK = object()


class Refused(ValueError):
    """A pickle that holds something else than plain values and arrays; the text says what."""


@dataclass
class Name:
    """What a pickle names, such as `numpy.ndarray`; never looked up."""

    text: str


@dataclass
class Kind:
    """A NumPy type of whole numbers: "u1" or "i8", say, and its byte order."""

    code: str
    order: str = "<"

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.code)


@dataclass
class Blank:
    """An array that waits for its state; it is filled in place, as it was remembered before."""

    value: np.ndarray | None = None


def parsed(data: bytes, most: int) -> Any:
    """The value of a pickle; arrays in it are `np.ndarray`.

    Args:
        data: its bytes.
        most: opcodes that it may have.

    Raises:
        Refused: damaged, or anything else than the plain values and arrays above.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for number, (code, argument, _) in enumerate(pickletools.genops(data)):
            if number >= most:
                raise Refused(f"it has more than {most:,} parts")
            if code.name == "STOP":
                return finished(stack.pop())
            step(code.name, argument, stack, memo)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError) as error:
        raise Refused(f"it is damaged: {str(error)[:80] or type(error).__name__}") from error
    raise Refused("it has no end")


def step(code: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    """One opcode."""
    if code in PLAIN:
        stack.append(argument)
    elif code in FIXED:
        stack.append(FIXED[code])
    elif code == "MARK":
        stack.append(MARK)
    elif code in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[code]())
    elif code == "DICT":
        stack.append(joined({}, marked(stack)))
    elif code == "LIST":
        stack.append([*map(finished, marked(stack))])
    elif code == "TUPLE":
        stack.append(tuple(marked(stack)))
    elif code in TUPLES:
        stack[-TUPLES[code] :] = [tuple(stack[-TUPLES[code] :])]
    elif code in ("APPEND", "APPENDS"):
        items = marked(stack) if code == "APPENDS" else [stack.pop()]
        of_type(stack[-1], list).extend(map(finished, items))
    elif code in ("SETITEM", "SETITEMS"):
        items = marked(stack) if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
        joined(of_type(stack[-1], dict), items)
    elif code in KEPT:
        memo[argument] = stack[-1]
    elif code == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif code in TAKEN:
        stack.append(memo[argument])
    elif code == "GLOBAL":
        stack.append(Name(argument.replace(" ", ".")))
    elif code == "STACK_GLOBAL":
        name = stack.pop()
        stack.append(Name(f"{of_type(stack.pop(), str)}.{of_type(name, str)}"))
    elif code == "REDUCE":
        arguments = of_type(stack.pop(), tuple)
        stack.append(made(of_type(stack.pop(), Name).text, arguments))
    elif code == "BUILD":
        state = of_type(stack.pop(), tuple)
        give(stack[-1], state)
    elif code not in ("PROTO", "FRAME"):
        raise Refused(f"it holds what no file of CIFAR has ({code})")


def marked(stack: list[Any]) -> list[Any]:
    """What lies above the last mark; it and the mark are taken off."""
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is MARK:
            items = stack[place + 1 :]
            del stack[place:]
            return items
    raise Refused("it is damaged: a mark is absent")


def joined(held: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    """A dict with more items, of which every other one is a key: a text."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        held[of_type(key, str)] = finished(value)
    return held


def of_type(value: Any, kind: type) -> Any:
    """The value, if it is of this type."""
    if type(value) is not kind:
        raise Refused(f"it holds a {type(value).__name__} where a {kind.__name__} must be")
    return value


def finished(value: Any) -> Any:
    """A value that may be part of the result: no name, no type, no array without its state."""
    if isinstance(value, Blank) and value.value is not None:
        return value.value
    if value is MARK or isinstance(value, Name | Kind | Blank):
        raise Refused(f"it holds {value.text if isinstance(value, Name) else 'an array without values'}")
    return value


def made(name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call of one of `CALLS` with such arguments would have made."""
    if name not in CALLS:
        raise Refused(f"it asks for {name[:80]}")
    return CALLS[name](*arguments)


def empty(kind: Any, shape: Any, code: Any) -> Blank:
    """`numpy._core.multiarray._reconstruct`, which is always called for an array of no values."""
    if kind != Name("numpy.ndarray") or shape != (0,) or code not in ("b", b"b"):
        raise Refused("it makes an array in another way than NumPy does")
    return Blank()


def kind(code: Any, align: Any = False, copy: Any = False) -> Kind:
    """`numpy.dtype`, of whole numbers only."""
    code = code.decode("latin1") if isinstance(code, bytes) else code
    if type(code) is not str or code not in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"):
        what = f"'{code[:20]}'" if type(code) is str else f"a {type(code).__name__}"
        raise Refused(f"it holds an array of {what} instead of whole numbers")
    return Kind(code)


def array(raw: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    """An array of bytes that are as many as its shape says."""
    raw = raw.encode("latin1") if type(raw) is str else raw
    if type(raw) not in (bytes, bytearray) or type(kind) is not Kind or type(shape) is not tuple:
        raise Refused("it holds an array of other parts than bytes, type and shape")
    if any(type(side) is not int or side < 0 for side in shape) or len(shape) > 4:
        raise Refused("it holds an array whose shape is none")
    if prod(shape) * kind.dtype.itemsize != len(raw):
        raise Refused(f"it holds an array of shape {shape} with {len(raw)} bytes")
    return np.frombuffer(raw, dtype=kind.dtype).reshape(shape, order="F" if order in ("F", True, 1) else "C")


def scalar(kind: Any, raw: Any) -> int:
    """`numpy._core.multiarray.scalar`: one whole number."""
    return int(array(raw, kind, (), "C"))


def encoded(text: Any, encoding: Any) -> bytes:
    """`_codecs.encode`, by which Python 3 writes bytes for Python 2."""
    if type(text) is not str or encoding != "latin1":
        raise Refused("it encodes a text in another way than pickle does")
    return text.encode("latin1")


def give(value: Any, state: tuple[Any, ...]) -> None:
    """Give a type or an array its state, as NumPy writes it."""
    if type(value) is Kind:
        if len(state) not in (8, 9) or state[1] not in ("<", ">", "|", b"<", b">", b"|") or state[2:5] != (None,) * 3:
            raise Refused("it holds a type of array that is not plain")
        order = state[1] if isinstance(state[1], str) else state[1].decode()
        value.order = order.replace("|", "<")
    elif type(value) is Blank and value.value is None and len(state) == 5:
        _, shape, held, columns_first, raw = state
        value.value = array(raw, held, shape, columns_first)
    else:
        raise Refused(f"it gives a state to a {type(value).__name__}")


NUMPY: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": empty,
    "multiarray.scalar": scalar,
    "numeric._frombuffer": array,
}
CALLS: dict[str, Callable[..., Any]] = {
    "numpy.dtype": kind,
    "_codecs.encode": encoded,
    **{f"numpy.{core}.{name}": call for core in ("core", "_core") for name, call in NUMPY.items()},
}
