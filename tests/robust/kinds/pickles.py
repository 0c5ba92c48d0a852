"""CIFAR-100's pickles: of every protocol, damaged, with other contents, and with code that must never run."""

import os
import pickle
import random
import struct
from pathlib import Path

import numpy as np

from hkd.data.cifar100 import Cifar100
from tests.robust.damage import changed, damaged, odd_value
from tests.robust.fuzz import Input, Kind

COUNT = 6


class Runs:
    """What runs when it is unpickled."""

    def __init__(self, call: object, arguments: tuple[object, ...]):
        self.reduced = call, arguments

    def __reduce__(self) -> object:
        return self.reduced


def content(rng: random.Random) -> dict[str, object]:
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (COUNT, 3072), dtype=np.uint8)
    return {
        "data": pixels,
        "fine_labels": [number % 3 for number in range(COUNT)],
        "coarse_labels": [0] * COUNT,
        "filenames": [f"image_{number}.png" for number in range(COUNT)],
        "batch_label": "training batch 1 of 1",
    }


def short(text: bytes) -> bytes:
    """SHORT_BINSTRING, as Python 2 writes a text of its own kind."""
    return b"U" + bytes([len(text)]) + text


def official(entry: dict[str, object]) -> bytes:
    """The bytes that Python 2's cPickle wrote with protocol 2: texts are SHORT_BINSTRING, arrays are BINSTRING."""
    pixels = np.asarray(entry["data"])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85"
        + short(b"b")
        + b"\x87Rq\x04(K\x01"
        + b"M"
        + struct.pack("<H", pixels.shape[0])
        + b"M"
        + struct.pack("<H", pixels.shape[1])
        + b"\x86"
        + b"cnumpy\ndtype\nq\x05"
        + short(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T"
        + struct.pack("<I", pixels.nbytes)
        + pixels.tobytes()
        + b"tb"
    )

    def numbers(values: object) -> bytes:
        return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"  # type: ignore[attr-defined]

    names = b"](" + b"".join(short(name.encode()) for name in entry["filenames"]) + b"e"  # type: ignore[attr-defined]
    items = short(b"filenames") + names + short(b"batch_label") + short(str(entry["batch_label"]).encode())
    items += short(b"fine_labels") + numbers(entry["fine_labels"]) + short(b"coarse_labels")
    return b"\x80\x02}q\x01(" + items + numbers(entry["coarse_labels"]) + short(b"data") + array + b"u."


def other(rng: random.Random, entry: dict[str, object]) -> tuple[dict[str, object], str]:
    """The content with data or labels that cannot be, or can."""
    pixels = np.asarray(entry["data"])
    data = (
        pixels.astype(rng.choice((np.float32, np.int64, np.bool_, np.complex64, ">u2", "S1", "U1", "M8[s]"))),
        pixels[:, :-1],
        pixels.reshape(COUNT, 3, 32, 32),
        pixels.reshape(COUNT, 32, 32, 3),
        pixels.reshape(-1),
        pixels[:0],
        pixels[0, 0],
        np.array(5, np.uint8),
        np.zeros((0, 3072), np.uint8),
        np.zeros((COUNT, 0), np.uint8),
        pixels[None],
        np.zeros(COUNT, [("a", "u1"), ("b", "O")]),
        pixels.tolist(),
        pixels.tobytes(),
        np.asfortranarray(pixels),
        pixels[::-1],
        np.array([None] * COUNT),
        np.ma.masked_array(pixels),
        np.memmap,
    )
    labels = (
        [0] * (COUNT - 1),
        [100] * COUNT,
        [-1] * COUNT,
        [0.0] * COUNT,
        ["0"] * COUNT,
        [True] * COUNT,
        [None] * COUNT,
        [],
        None,
        7,
        "0" * COUNT,
        tuple([0] * COUNT),
        np.arange(COUNT),
        np.arange(COUNT)[None],
        np.array(3),
        np.arange(COUNT) / 2,
        [10**400] * COUNT,
        [[0]] * COUNT,
        {0: 1},
        [np.int64(number % 3) for number in range(COUNT)],
        set(range(COUNT)),
    )
    which = rng.choice(("data", "labels", "key", "nested"))
    if which == "data":
        place = rng.randrange(len(data))
        return entry | {"data": data[place]}, f"data number {place}"
    if which == "labels":
        place = rng.randrange(len(labels))
        return entry | {"fine_labels": labels[place]}, f"labels number {place}"
    if which == "key":
        name = rng.choice(list(entry))
        return {
            (key.encode() if rng.random() < 0.5 else f"{key} "): value for key, value in entry.items() if key != name
        } | {name: odd_value(rng)}, f"keys around {name}"
    value, how = changed(rng, {name: value for name, value in entry.items() if name != "data"})
    if "deepen" in how:  # Python does not write what is very deep
        value, how = [[entry]], "two lists deep"
    return (value | {"data": pixels} if isinstance(value, dict) else value), how  # type: ignore[return-value]


def payload(rng: random.Random, entry: dict[str, object], marker: Path) -> object:
    """A content in which something runs, if it is unpickled."""
    calls = (
        (os.system, (f"touch {marker}",)),
        (eval, (f"open({str(marker)!r}, 'w')",)),
        (exec, (f"open({str(marker)!r}, 'w')",)),
        (open, (str(marker), "w")),
        (os.mkdir, (str(marker),)),
        (np.memmap, (str(marker), np.uint8, "w+", 0, (1,))),
        (np.save, (str(marker), np.zeros(1))),
        (bytearray, (10**12,)),
        (np.ndarray, ((10**6, 10**6),)),
        (np.zeros, ((10**9, 10**9),)),
        (__import__, ("antigravity",)),
        (os.popen, (f"touch {marker}",)),
    )
    runs = Runs(*rng.choice(calls))
    where = rng.choice(("whole", "data", "fine_labels", "in the labels", "unread"))
    if where == "whole":
        return runs
    if where == "in the labels":
        return entry | {"fine_labels": [0] * (COUNT - 1) + [runs]}
    return entry | {where: runs}


def pickles(rng: random.Random, folder: Path) -> Input:
    place = folder / "cifar-100-python"
    place.mkdir()
    entry = content(rng)
    marker = folder / "marker"
    right = False
    protocol = rng.randint(0, 5)
    kind = rng.choice(
        ("official", "official damaged", "damaged", "damaged", "other", "other", "payload", "payload", "opcodes")
    )
    how = ""
    if kind.startswith("official"):
        data = official(entry)
        right = kind == "official"
    elif kind == "payload":
        data = pickle.dumps(payload(rng, entry, marker), protocol)
    elif kind == "other":
        value, how = other(rng, entry)
        data = pickle.dumps(value, protocol)
    else:
        data = pickle.dumps(entry, protocol)
        right = kind == "damaged" and rng.random() < 0.1
    if not right and "damaged" in kind:
        data, how = damaged(rng, data)
    if kind == "opcodes":
        start = rng.randrange(len(data))
        huge = (
            b"\x8e" + struct.pack("<Q", 2**62),
            b"X" + struct.pack("<I", 2**32 - 1),
            b"\x8b" + struct.pack("<i", -5),
            b"T" + struct.pack("<i", -1),
            b"r" + struct.pack("<I", 2**32 - 1),
            b"(" * 10**5,
            b"2" * 1000,
            b"0",
            b"R",
            b"b",
            b"i" + b"os\nsystem\n",
            b"c" + b"os\nsystem\n(S'true'\ntR",
            b"P1\n",
            b"Q",
            b"\x82\x01",
            b"]" * 10**5,
            b"\x85" * 10**5,
            b"I" + b"9" * 10**5 + b"\n",
            b"\x96" + struct.pack("<Q", 2**40),
            b"\x95" + struct.pack("<Q", 2**63),
            b"}",
        )
        data = data[:start] + rng.choice(huge) + data[start:]
    for part in ("train", "test"):
        (place / part).write_bytes(data)

    def attempt() -> None:
        try:
            found = Cifar100({"classes": 3}, folder)
            found.fingerprint()
            split = found.load("train", seed=0, select=False)
        finally:
            assert not marker.exists(), "what a file names was run"
        assert split.images is not None
        assert split.images.shape == (len(split), 3, 32, 32)
        assert set(split.labels.tolist()) == {0, 1, 2}
        if right:
            assert np.array_equal(split.images.reshape(COUNT, -1), np.asarray(entry["data"])), "other pixels"
            assert split.labels.tolist() == entry["fine_labels"], "other labels"

    return Input(f"{kind}, protocol {protocol}, {how}", attempt)


KINDS: dict[str, Kind] = {"pickles": pickles}
