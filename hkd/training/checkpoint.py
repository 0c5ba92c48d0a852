"""Checkpoints of a run: everything that the rest of it depends on, so that resumed equals uninterrupted.

The order of a resumption: build all as for a fresh run; then student, adapters, optimiser, moving average and scaler
take their states; then position and curves; the random generators last, because building drew from them. The
schedule is a function of the updates done, the data order one of (seed, epoch): neither has a state. Teachers are
named by the spec, not stored. Files hold tensors and plain values only and are loaded without running code.

A file is a line with the format and the SHA-256 of what follows, then what `torch.save` writes. Nothing of a file is
used before its digest was found right: a flipped bit, or a file cut short, starts the run over and moves no digit.
"""

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric

from hkd.files import atomic_write, printable
from hkd.spec import RunSpec
from hkd.training.cost import Meter
from hkd.training.distributed import agree
from hkd.training.journal import Journal
from hkd.training.rng import rng_state, seed_all, set_rng_state
from hkd.training.step import Position, Training

log = logging.getLogger(__name__)

FORMAT = "hkd-checkpoint 2 sha256:"  # 1 had no digest
HEAD = len(FORMAT) + 65  # bytes of the first line
SHARE = 0.02  # of the wall time that writing may take


def spec_digest(spec: RunSpec) -> str:
    """16 hexadecimal digits over all that determines a run but its code."""
    document = asdict(spec) | {"student": spec.student.identity()}
    for role, teacher in spec.teachers.items():
        document["teachers"][role] = {"model": teacher.model.identity(), "weights": asdict(teacher.weights)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Unfit(Exception):
    """A checkpoint did not fit the run that was built, which has taken a part of it."""


class Checkpoints:
    """The checkpoint file of one run.

    Args:
        path: the file; one at a time is kept.
        spec: the run it belongs to.
        every_s: least seconds between checkpoints; 0 is after every reading of the losses, whatever that costs.
        meter: of the run's cost.
    """

    def __init__(self, path: Path, spec: RunSpec, every_s: float, meter: Meter):
        self.path, self.spec, self.every_s, self.meter = path, spec, every_s, meter
        self.saved, self.took = time.perf_counter(), 0.0

    @property
    def interval(self) -> float:
        """Seconds from the end of one to the next: `every_s`, or as many as make the last one `SHARE` of the time."""
        return max(self.every_s, self.took / SHARE) if self.every_s else 0.0

    def due(self, fabric: Fabric) -> bool:
        """Whether it is time for the next checkpoint: rank 0, which writes it, says so in every process."""
        return agree(fabric, fabric.is_global_zero and time.perf_counter() - self.saved >= self.interval)[0]

    def save(self, run: Training, journal: Journal) -> None:
        """Write the state of the run, atomically; in every process, because each has random generators.

        The training waits: a copy for a thread to write would need the memory of all states once more, and writing is
        `SHARE` of the time at most.
        """
        begun = time.perf_counter()
        states = [rng_state()]
        if run.fabric.world_size > 1:
            states = [{} for _ in range(run.fabric.world_size)]
            torch.distributed.all_gather_object(states, rng_state())
        if run.fabric.is_global_zero:
            content = {
                "spec": spec_digest(self.spec),
                **_parts(run),
                "position": asdict(run.position),
                "journal": journal.state(),
                "spent": self.meter.spent(),
                "rng": states,
            }
            with atomic_write(self.path) as temporary, open(temporary, "w+b") as file:
                file.write(head(""))
                torch.save(content, file)
                file.seek(HEAD)
                found = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                file.write(head(found))
        self.saved = time.perf_counter()
        self.took = self.saved - begun

    def restore(self, run: Training, journal: Journal) -> bool:
        """Put the run where its checkpoint left it. Returns whether there was one.

        A damaged file, or one of another format or run, is set aside, with a warning, and the run starts over.

        Raises:
            Unfit: it does not fit what was built, was set aside, and the run is no longer at its beginning: build it
                again.
        """
        content = self._read()
        run.fabric.barrier()  # so that no process sets aside what another one has not read yet
        if content is None:
            return False
        try:
            self._give(content, run, journal)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:  # by other code
            self._set_aside(f"it does not fit this run: {printable(error)[:200]}")
            raise Unfit from error
        return True

    def _give(self, content: dict[str, Any], run: Training, journal: Journal) -> None:
        step = run.step
        step.student.net.load_state_dict(content["student"])
        step.method.load_state_dict(content["adapters"])
        run.optimizer.load_state_dict(content["optimizer"])
        if run.ema is not None:
            run.ema.module.load_state_dict(content["ema"])
        run.fabric.strategy.precision.load_state_dict(content["scaler"])
        run.position.__dict__.update(asdict(Position(**content["position"])))
        journal.restore(content["journal"])
        self.meter.before = {name: float(content["spent"][name]) for name in self.meter.before}
        if len(content["rng"]) == run.fabric.world_size:
            set_rng_state(content["rng"][run.fabric.global_rank])
        else:  # another number of processes: new streams, as the shares are new
            seed_all(self.spec.seed, "train", run.fabric.global_rank, run.position.updates)

    def remove(self) -> None:
        """The run is finished: nothing is left to resume."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        """The content of the file, if it is there and of this run."""
        if not os.path.lexists(self.path):
            return None
        content, why = None, "it is no file"
        if os.path.isfile(self.path):
            try:
                with open(self.path, "rb") as file:
                    content, why = read(file)
            except OSError as error:
                why = f"it cannot be read: {error.strerror}"
        if content is not None and content.get("spec") != spec_digest(self.spec):
            content, why = None, "it is of another run"
        if content is None:
            self._set_aside(why)
        return content

    def _set_aside(self, why: str) -> None:
        """Keep the file under another name, which nothing has yet."""
        names = (f"{self.path.name}.damaged{end}" for end in ("", *(f".{count}" for count in range(2, 1000))))
        aside = next(path for name in names if not os.path.lexists(path := self.path.with_name(name)))
        with suppress(FileNotFoundError):  # another process of this run was faster
            os.replace(self.path, aside)
        log.warning("%s cannot be used (%s); kept as %s, and the run starts over", self.path, why, aside.name)


def head(digest: str) -> bytes:
    """The first line of a file whose rest has this SHA-256."""
    return f"{FORMAT}{digest:64}\n".encode()


def read(file: BufferedReader) -> tuple[dict[str, Any] | None, str]:
    """What a checkpoint holds, or None and why that cannot be used."""
    if why := fault(file):
        return None, why
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:  # of another version of torch; its digest was right
        return None, f"torch does not read it: {printable(error)[:200]}"
    return (content, "") if isinstance(content, dict) else (None, "it holds no state")


def fault(file: BufferedReader) -> str | None:
    """What is wrong with a checkpoint, read from its beginning; None if nothing is: it then stands after its head."""
    first = file.read(HEAD)
    if not first.startswith(FORMAT.encode()):
        return "it is cut short" if FORMAT.encode().startswith(first) else "it is of an earlier version, or damaged"
    if head(hashlib.file_digest(file, "sha256").hexdigest()) != first:
        return "it is damaged: its digest does not match"
    file.seek(HEAD)
    return None


def _parts(run: Training) -> dict[str, Any]:
    return {
        "student": run.step.student.net.state_dict(),
        "adapters": run.step.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "scaler": run.fabric.strategy.precision.state_dict(),
    }
