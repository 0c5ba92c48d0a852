"""Checkpoints of a run: everything that the rest of it depends on, so that resumed equals uninterrupted.

The order of a resumption: build all as for a fresh run; then student, adapters, optimiser, moving average and scaler
take their states; then position and curves; the random generators last, because building drew from them. The
schedule is a function of the updates done, the data order one of (seed, epoch): neither has a state. Teachers are
named by the spec, not stored. Files hold tensors and plain values only and are loaded without running code.
"""

import hashlib
import json
import logging
import os
import pickle
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning_fabric import Fabric

from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.spec import RunSpec
from hkd.training.cost import Meter
from hkd.training.distributed import agree
from hkd.training.journal import Journal
from hkd.training.rng import rng_state, seed_all, set_rng_state
from hkd.training.step import Training

log = logging.getLogger(__name__)


def spec_digest(spec: RunSpec) -> str:
    """16 hexadecimal digits over all that determines a run but its code."""
    document = asdict(spec) | {"student": spec.student.identity()}
    for role, teacher in spec.teachers.items():
        document["teachers"][role] = {"model": teacher.model.identity(), "weights": asdict(teacher.weights)}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Checkpoints:
    """The checkpoint file of one run.

    Args:
        path: the file; one at a time is kept.
        spec: the run it belongs to.
        every_s: seconds between checkpoints; 0 is after every reading of the losses.
        meter: of the run's cost.
    """

    def __init__(self, path: Path, spec: RunSpec, every_s: float, meter: Meter):
        self.path, self.spec, self.every_s, self.meter = path, spec, every_s, meter
        self.saved = time.perf_counter()

    def due(self, fabric: Fabric) -> bool:
        """Whether it is time for the next checkpoint: the same in every process, although their clocks differ."""
        return agree(fabric, time.perf_counter() - self.saved >= self.every_s)[0]

    def save(self, run: Training, journal: Journal) -> None:
        """Write the state of the run, atomically; in every process, because each has random generators."""
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
            with atomic_write(self.path) as temporary:
                torch.save(content, temporary)
        self.saved = time.perf_counter()

    def restore(self, run: Training, journal: Journal) -> bool:
        """Put the run where its checkpoint left it. Returns whether there was one.

        A damaged file is set aside, with a warning, and the run starts over.

        Raises:
            UserError: the checkpoint is of another spec.
        """
        content = self._read()
        if content is None:
            return False
        if content["spec"] != spec_digest(self.spec):
            raise UserError(f"{self.path} is a checkpoint of another run; move it away, or train in another folder.")
        step = run.step
        step.student.net.load_state_dict(content["student"])
        step.method.load_state_dict(content["adapters"])
        run.optimizer.load_state_dict(content["optimizer"])
        if run.ema is not None:
            run.ema.module.load_state_dict(content["ema"])
        run.fabric.strategy.precision.load_state_dict(content["scaler"])
        run.position.__dict__.update(content["position"])
        journal.restore(content["journal"])
        self.meter.before = content["spent"]
        if len(content["rng"]) == run.fabric.world_size:
            set_rng_state(content["rng"][run.fabric.global_rank])
        else:  # another number of processes: new streams, as the shares are new
            seed_all(self.spec.seed, "train", run.fabric.global_rank, run.position.updates)
        return True

    def remove(self) -> None:
        """The run is finished: nothing is left to resume."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, aside)
            log.warning("%s cannot be read (%s); kept as %s, and the run starts over", self.path, error, aside.name)
            return None


def _parts(run: Training) -> dict[str, Any]:
    return {
        "student": run.step.student.net.state_dict(),
        "adapters": run.step.method.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "ema": None if run.ema is None else run.ema.module.state_dict(),
        "scaler": run.fabric.strategy.precision.state_dict(),
    }
