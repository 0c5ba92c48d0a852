"""Variables of MATLAB 5 files (`.mat`, as MATLAB saves them up to version 7), read into plain values.

A reader of its own, because scipy's ends the process at a file of cells nested 20,000 deep. It calls nothing that a
file names, follows at most `DEEPEST` levels, and unpacks at most `MOST` bytes. Objects, functions and sparse arrays are
refused.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hkd.data.folder import read_bytes
from hkd.errors import UserError

DEEPEST = 8  # matrices within one another
MOST = 2**26  # bytes of a variable; all that those of Stanford Cars need is far below
MATRIX, COMPRESSED = 14, 15  # types of elements
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}  # by type
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}  # by type
CELL, STRUCT, CHAR = 1, 2, 4  # classes of arrays; numbers are 6 to 15


class NotMatlab(ValueError):
    """Bytes that are no MATLAB 5 file, or one that holds something else; the text says why."""


class Element(NamedTuple):
    """One element of a file: its type, and its bytes without tag and padding."""

    type: int
    data: memoryview


def read_variable(path: Path, name: str) -> Any:
    """A variable of a file: numbers as an array, text as a string, cells as a list, structs as a list of dicts.

    Cells and structs are in MATLAB's order (columns first); what is empty is None.

    Raises:
        UserError: no such file, no MATLAB 5 file, or one without the variable.
    """
    try:
        return variable(read_bytes(path, MOST), name)
    except NotMatlab as error:
        raise UserError(f"{path} cannot be read as a MATLAB file ({error}): unpack the archive again.") from None


def variable(content: bytes, name: str) -> Any:
    """As `read_variable`, from a file's bytes. Raises NotMatlab."""
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if content[:8] == b"\x89HDF\r\n\x1a\n" or content[:10] == b"MATLAB 7.3":
        raise NotMatlab("it is of MATLAB 7.3; save it with -v7")
    if order is None or len(content) < 128:
        raise NotMatlab("its head is that of another format")
    for element in elements(memoryview(content)[128:], order):
        found = unpacked(element, order)
        if found.type == MATRIX and name_of(found.data, order) == name:
            return value(found.data, order, 1)
    raise NotMatlab(f"it has no variable '{name}'")


def unpacked(element: Element, order: str) -> Element:
    """An element, decompressed if need be."""
    if element.type != COMPRESSED:
        return element
    unpack = zlib.decompressobj()
    try:
        data = unpack.decompress(element.data, MOST)
    except zlib.error:
        raise NotMatlab("what is compressed in it is damaged") from None
    if unpack.unconsumed_tail or not unpack.eof:
        raise NotMatlab("a variable is cut short, or too large")
    return next(elements(memoryview(data), order), Element(0, memoryview(b"")))


def elements(data: memoryview, order: str) -> Iterator[Element]:
    """The elements that lie one behind another."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise NotMatlab("it is cut short")
        kind, size = struct.unpack(f"{order}II", data[place : place + 8])
        if kind >> 16:  # a small element: its size and its bytes are in the tag
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
            if size > 4:
                raise NotMatlab("an element is larger than its place")
        else:
            start = place + 8
            end = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(data):
            raise NotMatlab("it is cut short")
        yield Element(kind, data[start : start + size])
        place = end


def name_of(data: memoryview, order: str) -> str:
    """The name of the variable that a matrix is."""
    parts = elements(data, order)
    for _ in range(2):  # flags, dimensions
        next(parts, None)
    return bytes(part.data).decode("latin-1") if (part := next(parts, None)) else ""


def value(data: memoryview, order: str, depth: int) -> Any:
    """What a matrix holds."""
    if not data:
        return None
    if depth > DEEPEST:
        raise NotMatlab(f"matrices lie more than {DEEPEST} deep in one another")
    parts = elements(data, order)

    def part() -> Element:
        if (found := next(parts, None)) is None:
            raise NotMatlab("a matrix lacks a part")
        return found

    flags = integers(part(), order)
    shape = tuple(integers(part(), order))
    part()  # the name
    if not flags or len(shape) < 2 or min(shape) < 0 or math.prod(shape) > len(data):
        raise NotMatlab("a matrix has no possible size")
    count, what = math.prod(shape), flags[0] % 256
    if not count:
        return None
    if what == CELL:
        return [inner(part(), order, depth) for _ in range(count)]
    if what == STRUCT:
        width = sum(integers(part(), order))
        names = bytes(part().data)
        if width < 1 or not names or len(names) % width:
            raise NotMatlab("a struct has no names")
        fields = [names[i : i + width].split(b"\0")[0].decode("latin-1") for i in range(0, len(names), width)]
        return [{field: inner(part(), order, depth) for field in fields} for _ in range(count)]
    if what == CHAR:
        return text(part(), order)
    if 6 <= what <= 15:
        return numbers(part(), order, shape)
    raise NotMatlab("it holds objects, functions or sparse arrays, which are not read")


def inner(element: Element, order: str, depth: int) -> Any:
    """What a cell or a field holds."""
    if element.type != MATRIX:
        raise NotMatlab("a cell holds no matrix")
    return value(element.data, order, depth + 1)


def array(element: Element, order: str) -> np.ndarray:
    """Numbers in a row."""
    if element.type not in NUMBERS:
        raise NotMatlab("something else stands where numbers must be")
    kind = np.dtype(order + NUMBERS[element.type])
    if len(element.data) % kind.itemsize:
        raise NotMatlab("a number is cut short")
    return np.frombuffer(element.data, dtype=kind)


def integers(element: Element, order: str) -> list[int]:
    """Whole numbers in a row."""
    found = array(element, order)
    if found.dtype.kind == "f":
        raise NotMatlab("something else stands where whole numbers must be")
    return [int(number) for number in found]


def numbers(element: Element, order: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a shape, whose columns lie one behind another."""
    found = array(element, order)
    if len(found) != math.prod(shape):
        raise NotMatlab("an array has another number of values than its size says")
    return found.reshape(shape, order="F")


def text(element: Element, order: str) -> str:
    """A row of characters."""
    if element.type not in TEXTS:
        raise NotMatlab("something else stands where a text must be")
    coding = TEXTS[element.type]
    wide = coding in ("utf-16", "utf-32")
    try:
        return bytes(element.data).decode(f"{coding}-{'le' if order == '<' else 'be'}" if wide else coding)
    except UnicodeDecodeError:
        raise NotMatlab("a text has characters that there are not") from None
