"""Checkpoints that cannot be resumed from: the run must start over and end as one that was never interrupted."""

import hashlib
import io
import os
import random
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec
from hkd.tasks.train import train
from hkd.training.checkpoint import HEAD, head
from hkd.training.job import Job, Runtime
from tests.robust.damage import changed, damaged, odd_value
from tests.robust.fuzz import Input, Kind

SPEC = RunSpec(
    task="train",
    data=DataSpec(name="folder", options={"image_size": 32, "crop_pct": 1.0}),
    student=ZOO["mobilenet_v2_mini"],
    method=MethodSpec(name="supervised", options={}),
    recipe=Recipe(epochs=2, batch_size=2, lr=1e-3, shift=2),
    teachers={},
)


class KilledError(Exception):
    """Stands for whatever ends a process."""


def data(root: Path) -> Path:
    """Two classes of two images, always the same."""
    for part in ("train", "test"):
        for number, kind in enumerate("ab"):
            (root / "folder" / part / kind).mkdir(parents=True)
            for count in range(2):
                pixels = np.random.default_rng([number, count]).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "folder" / part / kind / f"{count}.png")
    return root


def killed(news: Mapping[str, object]) -> None:
    if news["epoch"] == 2:
        raise KilledError


def carried_out(spec: RunSpec, root: Path, folder: Path, *, kill: bool = False) -> bytes:
    """The weights after a run."""
    runtime = Runtime(accelerator="cpu", report_every_s=0.0, checkpoint_every_s=0.0, data_root=root)
    try:
        train(Job(spec, {}, folder, runtime, killed if kill else lambda news: None))
    except KilledError:
        return b""
    return (folder / "student.safetensors").read_bytes()


@cache
def known() -> tuple[bytes, bytes, bytes]:
    """A checkpoint, one of another seed, and the weights of a run that was not interrupted."""
    with tempfile.TemporaryDirectory() as place:
        root = data(Path(place))
        for name, spec in (("own", SPEC), ("other", replace(SPEC, seed=1))):
            carried_out(spec, root, root / name, kill=True)
        contents = [(root / name / "checkpoint.pt").read_bytes() for name in ("own", "other")]
        return contents[0], contents[1], carried_out(SPEC, root, root / "whole")


def sealed(content: object) -> bytes:
    """A checkpoint of this content with a digest that is right."""
    rest = io.BytesIO()
    torch.save(content, rest)
    return head(hashlib.sha256(rest.getvalue()).hexdigest()) + rest.getvalue()


def checkpoints(rng: random.Random, folder: Path) -> Input:
    own, other, whole = known()
    root, place = data(folder), folder / "run"
    place.mkdir()
    path = place / "checkpoint.pt"
    how = rng.choice(
        ("bytes", "bytes", "bytes", "version", "other run", "place", "unfit", "unfit", "own", "aside is there")
    )
    told = ""
    if how in ("bytes", "aside is there"):
        content, told = damaged(rng, own)
        path.write_bytes(content)
        if how == "aside is there":
            aside = path.with_name("checkpoint.pt.damaged")
            rng.choice((lambda: aside.write_bytes(b"x"), aside.mkdir, lambda: (aside.mkdir(), (aside / "x").mkdir())))()
    elif how == "version":
        told = rng.choice(("1", "3", "none"))
        path.write_bytes(
            own[HEAD:] if told == "none" else own.replace(b"hkd-checkpoint 2", b"hkd-checkpoint " + told.encode(), 1)
        )
    elif how == "other run":
        path.write_bytes(other)
    elif how == "own":
        path.write_bytes(own)
    elif how == "place":
        told = rng.choice(("folder", "full folder", "pipe", "dangling", "link to itself", "device"))
        if "folder" in told:
            path.mkdir()
            if told == "full folder":
                (path / "x").mkdir()
        elif told == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to({"dangling": "/nowhere/x", "link to itself": path.name, "device": "/dev/zero"}[told])
    else:
        content = torch.load(io.BytesIO(own[HEAD:]), weights_only=True)
        name = rng.choice(list(content))
        told = name
        if name == "spec" or rng.random() < 0.3:
            content = rng.choice(
                ([content], {}, {**content, "spec": odd_value(rng)}, {"spec": content["spec"]}, odd_value(rng))
            )
        elif name in ("student", "adapters") and content[name] and rng.random() < 0.5:
            content[name].popitem()
        elif name in ("position", "journal", "spent"):
            content[name] = odd_value(rng)
        else:
            content[name] = changed(rng, {"a": [1]})[0]
        try:
            path.write_bytes(sealed(content))
        except (RecursionError, UnicodeEncodeError):
            path.write_bytes(b"")

    def attempt() -> None:
        found = carried_out(SPEC, root, place)
        assert how == "unfit" or found == whole, "other digits"
        assert not path.exists(), "the checkpoint is still there"

    return Input(f"{how} {told}", attempt)


KINDS: dict[str, Kind] = {"checkpoints": checkpoints}
