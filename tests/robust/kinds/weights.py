"""Weights files of others: safetensors and PyTorch's own, of every age, damaged, with odd contents and with code."""

import argparse
import collections
import json
import os
import pathlib
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from hkd.models.cards.zoo import ZOO
from hkd.models.convert import legacy, mim_checkpoints
from hkd.models.convert.files import read_weights
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights
from tests.robust.damage import ODD_VALUES, changed, damaged, odd_value
from tests.robust.fuzz import Input, Kind
from tests.robust.kinds.pickles import Runs

CARD = ZOO["deit_t_mini"]
CLASSES = 3
NET = TapModel(CARD, CLASSES).net
STATE = {name: value.clone() for name, value in NET.state_dict().items()}
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.int8,
    torch.uint16,
)


def other_tensor(rng: random.Random, value: torch.Tensor) -> tuple[object, str]:
    """What stands in the place of a tensor."""
    choices = {
        "dtype": lambda: value.to(rng.choice(DTYPES)),
        "nan": lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value,
        "inf": lambda: (
            torch.full_like(value, rng.choice((float("inf"), -float("inf")))) if value.is_floating_point() else value
        ),
        "transposed": lambda: value.T if value.ndim == 2 else value[None],
        "part": lambda: value.flatten()[:-1],
        "scalar": lambda: value.sum(),
        "empty": lambda: value.new_zeros(0),
        "expanded": lambda: torch.zeros(1).expand(10**12),
        "meta": lambda: torch.empty(10**12, device="meta"),
        "sparse": lambda: torch.zeros(3, 3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8),
        "parameter": lambda: torch.nn.Parameter(value) if value.is_floating_point() else value,
        "array": lambda: value.numpy(),
        "numpy scalar": lambda: np.float64(3.0),
        "nested": lambda: {"weight": value},
        "list": lambda: value.tolist() if value.numel() < 100 else [1.0],
        "strided": lambda: torch.zeros(*(2 * side for side in value.shape))[
            tuple(slice(None, None, 2) for _ in value.shape)
        ],
        "odd": lambda: odd_value(rng),
        "conjugate": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
        "storage": lambda: torch.zeros(3).untyped_storage(),
        "object": lambda: rng.choice(
            (set(), 1j, b"x", range(3), Ellipsis, slice(1), pathlib.PurePosixPath("x"), collections.Counter("a"))
        ),
        "subclass": lambda: torch.nn.Buffer(value),
    }
    how = rng.choice(list(choices))
    return choices[how](), how


def odd_state(rng: random.Random) -> tuple[object, str, bool]:
    """A content, what was done to it, and whether it is whole."""
    state: dict = dict(STATE)
    how = rng.choice(
        (
            "tensor",
            "tensor",
            "tensor",
            "names",
            "prefix",
            "wrapped",
            "wrapped",
            "beside",
            "missing",
            "more",
            "whole",
            "not a dict",
            "old",
        )
    )
    whole = how in ("prefix", "whole", "beside", "old")
    name = rng.choice(list(state))
    if how == "tensor":
        state[name], told = other_tensor(rng, state[name])
        how += f" {told}"
    elif how == "names":
        odd = rng.choice(
            (
                5,
                None,
                "",
                " ",
                "é",
                "a\nb",
                "x" * 10**5,
                ("a",),
                b"a",
                1.5,
                "\ud800",
                "__class__",
                "module.",
                "pos_embed",
                "a..b",
            )
        )
        state[odd] = state.pop(name)
        how += f" {odd!r:.30}"
    elif how == "prefix":
        prefix = rng.choice(("module.", "_orig_mod.", "module._orig_mod.", "module.module."))
        state = {prefix + key: value for key, value in state.items()}
        how += prefix
    elif how == "missing":
        for key in rng.sample(list(state), rng.choice((1, len(state)))):
            del state[key]
    elif how == "more":
        state[rng.choice(("extra.weight", "head.bias2", "model", "state_dict", "pos_embed.x"))] = other_tensor(
            rng, torch.zeros(3)
        )[0]
    elif how == "old":
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    elif how == "not a dict":
        return (
            rng.choice(
                (*ODD_VALUES, torch.zeros(3), [torch.zeros(3)], {"model": None}, {"model": {}}, {"state_dict": [1]})
            ),
            how,
            False,
        )
    if how == "beside":
        more = {
            "epoch": 3,
            "args": argparse.Namespace(lr=0.1, path=pathlib.Path("x"), n=np.float64(2)),
            "best": np.float32(1),
            "rng": np.arange(9),
        }
        return {"model": state, **more}, how, True
    if how == "wrapped":
        value = {
            "state_dict": state,
            "epoch": 1,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        }
        if rng.random() < 0.5:
            return value, how, True
        changed_value, told = changed(rng, {"state_dict": {"a": 1}, "epoch": 1, "args": [1, {"b": None}]})
        return changed_value, f"{how} {told}", False
    return state, how, whole


def safetensors_file(rng: random.Random) -> tuple[bytes, str]:
    """A file of safetensors with a head of its own."""
    whole = safetensors.torch.save(
        {name: value.contiguous() for name, value in STATE.items()}, metadata={"format": "pt"}
    )
    length = struct.unpack("<Q", whole[:8])[0]
    head = json.loads(whole[8 : 8 + length])
    how = rng.choice(("bytes", "bytes", "length", "place", "place", "offsets", "dtype", "shape", "deep", "twice"))
    name = rng.choice([key for key in head if key != "__metadata__"])
    if how == "bytes":
        content, told = damaged(rng, whole)
        return content, told
    if how == "length":
        claim = rng.choice((0, 1, 7, 2**63, 2**64 - 1, 10**8, length + 1, length - 1))
        return struct.pack("<Q", claim) + whole[8:], f"length {claim}"
    told = ""
    if how == "place":
        head, told = changed(rng, head)
    elif how == "offsets":
        head[name]["data_offsets"] = rng.choice(
            ([0, 0], [0, 10**18], [10, 5], [-1, 4], [0, 4], [0.0, 4.0], [2**64, 2**64], [], [0], "x")
        )
        told = str(head[name]["data_offsets"])
    elif how == "dtype":
        head[name]["dtype"] = rng.choice(
            ("F8_E4M3", "F8_E8M0", "F4", "BOOL", "U64", "C64", "f32", "", "F32 ", 5, None, "I32", "F6_E2M3")
        )
        told = str(head[name]["dtype"])
    elif how == "shape":
        head[name]["shape"] = rng.choice(([2**32, 2**32], [2**63], [-1], [0], [], [1] * 1000, [1.5], None, [10**400]))
        told = str(head[name]["shape"])[:40]
    try:
        text = json.dumps(head).encode()
    except RecursionError:
        text = b"[" * 10**5
    if how == "deep":
        text = b'{"a":' * 10**5
    elif how == "twice":
        text = text[:-1] + b"," + json.dumps({name: head[name]}).encode()[1:]
    return struct.pack("<Q", len(text)) + text + whole[8 + length :], f"{how} {told}"


def legacy_claim(rng: random.Random, path: Path) -> str:
    """An old PyTorch file whose storages claim more than they hold."""
    torch.save({"a.weight": torch.zeros(4, 4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    count = rng.choice((17, 10**6, 2**31 - 1))
    place = content.index(b"cpu") + 3
    old = content.index(b"K\x10", place)
    content = content[:old] + b"J" + struct.pack("<i", count) + content[old + 2 :]
    if rng.random() < 0.5:
        content = content.replace(
            b"torch\nFloatStorage", rng.choice((b"torch\nDoubleStorage", b"torch\nNoStorage", b"os\nsystem"))
        )
    path.write_bytes(content)
    return f"a storage of {count}"


def zipped(rng: random.Random, path: Path) -> str:
    """A zip of PyTorch with its parts changed."""
    torch.save({"model": STATE}, path)
    with zipfile.ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    names = sorted(parts)
    how = rng.choice(
        ("packed", "part damaged", "part damaged", "part gone", "twice", "bomb", "renamed", "code", "numel")
    )
    name = rng.choice([n for n in names if "data/" not in n] + [n for n in names if "data/" in n][:3])
    top = names[0].split("/")[0]
    packed = zipfile.ZIP_DEFLATED if how in ("packed", "bomb") else zipfile.ZIP_STORED
    if how == "part damaged":
        parts[name], told = damaged(rng, parts[name])
        how += f" {name} {told}"
    elif how == "part gone":
        del parts[name]
        how += f" {name}"
    elif how == "renamed":
        parts = {key.replace(top, rng.choice(("x", "../x", "/x")), 1): value for key, value in parts.items()}
    elif how == "bomb":
        parts[f"{top}/data/0"] = bytes(rng.choice((10**6, 10**8)))
    elif how == "numel":
        pickled = parts[f"{top}/data.pkl"]
        place = pickled.index(b"cpu") + 3
        end = pickled.index(b"t", place)
        parts[f"{top}/data.pkl"] = pickled[:end] + b"0J" + struct.pack("<i", 2**31 - 1) + pickled[end:]
    elif how == "code":
        parts[f"{top}/code/__torch__.py"] = b"import os\n"
        parts[f"{top}/constants.pkl"] = b"cos\nsystem\n(S'true'\ntR."
    with zipfile.ZipFile(path, "w", packed) as archive:
        for key, value in parts.items():
            archive.writestr(key, value)
            if how == "twice" and key == name:
                archive.writestr(key, value[:-1] + b"x")
    return how


def weights(rng: random.Random, folder: Path) -> Input:
    marker = folder / "marker"
    whole = False
    kind = rng.choice(
        (
            "state",
            "state",
            "state",
            "state old",
            "safetensors",
            "safetensors",
            "zip",
            "zip",
            "bytes",
            "bytes old",
            "claim",
            "payload",
            "place",
        )
    )
    path = folder / f"weights{rng.choice(('.pth', '.pt'))}"
    how = ""
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        content, how = safetensors_file(rng)
        path.write_bytes(content)
    elif kind.startswith("state"):
        state, how, whole = odd_state(rng)
        try:
            torch.save(state, path, _use_new_zipfile_serialization=kind == "state")
        except (
            RuntimeError,
            ValueError,
            AttributeError,
            NotImplementedError,
            UnicodeEncodeError,
            TypeError,
            RecursionError,
            pickle.PicklingError,
        ):
            torch.save({}, path)  # torch does not write it
            whole = False
    elif kind == "zip":
        how = zipped(rng, path)
    elif kind.startswith("bytes"):
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "bytes")
        content, how = damaged(rng, path.read_bytes())
        path.write_bytes(content)
    elif kind == "claim":
        how = legacy_claim(rng, path)
    elif kind == "payload":
        calls = (
            (os.system, (f"touch {marker}",)),
            (eval, (f"open({str(marker)!r}, 'w')",)),
            (os.mkdir, (str(marker),)),
            (open, (str(marker), "w")),
            (torch.zeros, (10**12,)),
            (bytearray, (10**12,)),
            (torch.load, (str(marker),)),
            (np.save, (str(marker), np.zeros(1))),
        )
        runs = Runs(*rng.choice(calls))
        value = rng.choice((runs, {"model": STATE, "args": runs}, {**STATE, "x": runs}, {"model": runs}))
        if rng.random() < 0.3:
            path.write_bytes(pickle.dumps(value if value is runs else {"args": runs}, rng.randint(0, 5)))
        else:
            torch.save(value, path, _use_new_zipfile_serialization=rng.random() < 0.5)
    else:
        how = rng.choice(("folder", "pipe", "device", "empty", "none", "dangling", "suffix"))
        if how == "folder":
            path.mkdir()
        elif how == "pipe":
            os.mkfifo(path)
        elif how in ("device", "dangling"):
            path.symlink_to("/dev/zero" if how == "device" else "/nowhere")
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "suffix":
            path = folder / "weights.bin"
            torch.save(STATE, path)
    user = rng.choice(("load", "load", "convert", "encoder", "read"))

    def attempt() -> None:
        try:
            if user == "load":
                load_weights(NET, path)
                assert all(torch.isfinite(value).all() for value in NET.parameters()), "NaN taken for weights"
            elif user == "convert":
                legacy.convert(path, CARD, CLASSES, folder / "out.safetensors")
                assert read_weights(folder / "out.safetensors").keys() == STATE.keys()
            elif user == "encoder":
                mim_checkpoints.convert_file(path, CARD, CLASSES, folder / "out.safetensors")
            else:
                read_weights(path)
        except ValueError as error:
            if whole and user in ("load", "convert"):
                raise AssertionError(f"refused, though it is whole: {error}") from error
            raise
        finally:
            assert not marker.exists(), "what a file names was run"

    return Input(f"{kind}, {how}, {user}", attempt)


KINDS: dict[str, Kind] = {"weights": weights}
