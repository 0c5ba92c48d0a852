"""How much memory an old PyTorch file (no zip) asks for, told from its pickles before torch reads and allocates.

Nothing is unpickled: the opcodes are followed as far as needed to see the tuples by which a storage is named, and what
a pickle makes otherwise is not looked at.
"""

import pickletools
import warnings
from io import BufferedReader
from typing import Any

import torch

PICKLES = 4  # a file begins with magic number, version, facts about the machine, content; then bytes of storages
PLAIN = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
         "SHORT_BINSTRING", "GLOBAL")  # fmt: skip
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEPT = ("PUT", "BINPUT", "LONG_BINPUT")
TAKEN = ("GET", "BINGET", "LONG_BINGET")
LARGEST = 16  # bytes of a number: what is assumed of a type that is not known
MARK = object()


def claimed(file: BufferedReader) -> int:
    """Bytes of all storages that a file names, read from its beginning.

    Raises:
        ValueError: these are no pickles, or a storage is named in another way than torch does.
    """
    sizes: dict[Any, int] = {}
    try:
        for _ in range(PICKLES):
            for named in storages(file):
                if type(named) is not tuple or len(named) < 5 or named[0] != "storage":
                    raise ValueError("a storage without a size")
                _, kind, key, _, count, *_ = named
                if type(kind) is not str or type(key) is not str or type(count) is not int or count < 0:
                    raise ValueError("a storage without a size")
                sizes[key] = max(sizes.get(key, 0), count * item_size(kind))
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError("an opcode that finds nothing to work on") from error
    return sum(sizes.values())


def storages(file: BufferedReader) -> Any:
    """What a pickle names as its storages, one after the other: tuples of texts and numbers, and None for the rest."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name in PLAIN:
            stack.append(argument)
        elif name in TUPLES:
            count = TUPLES[name]
            stack[len(stack) - count :] = [tuple(stack[len(stack) - count :])]
        elif name == "TUPLE":
            stack.append(tuple(marked(stack)))
        elif name in KEPT:
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in TAKEN:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(MARK)
        else:
            kinds = [taken.name for taken in opcode.stack_before]
            if "mark" in kinds:
                marked(stack)
                kinds = kinds[: kinds.index("mark")]
            taken = [stack.pop() for _ in kinds]
            if name == "BINPERSID":
                yield taken[0]
            stack += [None] * len(opcode.stack_after)


def marked(stack: list[Any]) -> list[Any]:
    """What lies above the last mark; it and the mark are taken off. Raises ValueError where there is none."""
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is MARK:
            items = stack[place + 1 :]
            del stack[place:]
            return items
    raise ValueError("a mark is absent")


def item_size(kind: str) -> int:
    """Bytes of a number of a storage's class, as a pickle names it: "torch FloatStorage"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these classes are deprecated, and name what old files hold
        dtype = getattr(getattr(torch, kind.rpartition(" ")[2], None), "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else LARGEST
