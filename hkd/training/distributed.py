"""The engine (Lightning Fabric), and runs that take several processes, started through torchrun.

One process makes its own Fabric and nothing is launched. Several are one `torchrun` of `hkd.training.worker` in the
run's folder, which reads launch.json there and leaves outcome.json.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import Tensor

from hkd.data.batch import Batch
from hkd.errors import Diverged, Refused, UserError
from hkd.files import atomic_write
from hkd.spec import RunSpec
from hkd.training.outcome import Outcome
from hkd.training.runtime import Runtime

LAUNCH, OUTCOME, REPORT = "launch.json", "outcome.json", "report.json"
ENDPOINT = "HOST:PORT"  # where the nodes of a run meet; filled in by who starts them
SOURCE = Path(__file__).resolve().parents[2]  # the folder that `hkd` is imported from
POLL_S = 0.2


class Bfloat16(Precision):
    """Autocast to bfloat16. Inputs stay float32: pixels, soft targets and teacher outputs keep their digits until an
    operation that pays in 16 bits casts them. No scaler, so that single terms can be differentiated as well."""

    precision = "bf16-mixed"

    def __init__(self, device: str):
        self.device = device

    def forward_context(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, dtype=torch.bfloat16)


class Float16(MixedPrecision):
    """Autocast to float16 with a scaled loss; inputs stay float32, as above."""

    def __init__(self, device: str):
        super().__init__("16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        return data


PRECISIONS = {"bf16-mixed": Bfloat16, "16-mixed": Float16}


def make_fabric(runtime: Runtime, precision: str) -> Fabric:
    """The engine of this process: alone, or one rank of a torchrun.

    Raises:
        UserError: CUDA was asked for and there is none, or float16 on a CPU.
    """
    accelerator = runtime.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("The accelerator 'cuda' was asked for, but torch sees no GPU here; use 'cpu' or 'auto'.")
    if accelerator == "cpu" and precision == "16-mixed":
        raise UserError("The precision '16-mixed' needs a GPU; on a CPU use 'bf16-mixed' or '32-true'.")
    several = under_torchrun()
    # The environment is named, so that a run inside somebody's Slurm or MPI job is still one process.
    plugins: list[Any] = [TorchElasticEnvironment() if several else LightningEnvironment()]
    if precision in PRECISIONS:
        plugins.append(PRECISIONS[precision](accelerator))
    fabric = Fabric(
        accelerator=accelerator,
        devices=runtime.devices if several else 1,
        num_nodes=runtime.num_nodes if several else 1,
        strategy="ddp" if several else "auto",
        plugins=plugins,
    )
    fabric.launch()
    return fabric


def under_torchrun() -> bool:
    """Whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def agree(fabric: Fabric, *flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    if fabric.world_size == 1:
        return flags
    return tuple(bool(value) for value in reduce(fabric, torch.tensor(flags, dtype=torch.float32), "max").tolist())


def reduce(fabric: Fabric, tensor: Tensor, operation: str) -> Tensor:
    """The tensor, combined over all processes ("sum", "max"), where it was."""
    if fabric.world_size == 1:
        return tensor
    combined = fabric.all_reduce(tensor.to(fabric.device), reduce_op=operation)
    assert isinstance(combined, Tensor)
    return combined.to(tensor.device)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device; itself if it is there."""
    if batch.x.device == device:
        return batch

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    return Batch(moved(batch.x), moved(batch.y), moved(batch.index), None if batch.view is None else moved(batch.view))


def launch(
    spec: RunSpec,
    weights: Mapping[str, Path],
    folder: Path,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Train in `runtime.processes` processes and return what they found; raises what they raised.

    On several nodes the processes cannot be started from here: a UserError says what to run on each, after which
    asking again picks up the outcome.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if runtime.num_nodes == 1:
        (folder / OUTCOME).unlink(missing_ok=True)
        order = encode_order(spec, weights, runtime, parent=os.getpid())
        _write_json(folder / LAUNCH, order)
        _supervise(_torchrun(runtime, folder), folder, report)
    elif not (folder / OUTCOME).exists():
        _write_json(folder / LAUNCH, encode_order(spec, weights, runtime, parent=None))
        # From where this code is, so that every node runs it, whatever is installed there.
        command = f"cd {shlex.quote(str(SOURCE))} && {shlex.join(_torchrun(runtime, folder))}"
        raise UserError(
            f"This run takes {runtime.num_nodes} nodes: on each of them run `{command}`, where {ENDPOINT} is the name "
            "of one of them and a free port there, and then ask for the run again."
        )
    return _read_outcome(folder)


def _torchrun(runtime: Runtime, folder: Path) -> list[str]:
    where = ["--standalone"]
    if runtime.num_nodes > 1:
        meeting = ["--rdzv-backend=c10d", f"--rdzv-id={folder.name}", f"--rdzv-endpoint={ENDPOINT}"]
        where = [f"--nnodes={runtime.num_nodes}", *meeting]
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={runtime.devices}"]
    return [*command, "-m", "hkd.training.worker", str(folder.resolve())]


def _supervise(command: list[str], folder: Path, report: Callable[[dict[str, Any]], None]) -> None:
    """Run torchrun, pass its progress on, and end it if we are interrupted."""
    seen = None
    with open(folder / "torchrun.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            news = _read_json(folder / REPORT)
            if news is not None and news != seen:
                seen = news
                report(news)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        (folder / REPORT).unlink(missing_ok=True)
    if process.returncode and not (folder / OUTCOME).exists():
        tail = "\n".join((folder / "torchrun.log").read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"torchrun ended with code {process.returncode}; the last lines it wrote:\n{tail}")


def encode_order(spec: RunSpec, weights: Mapping[str, Path], runtime: Runtime, parent: int | None) -> dict[str, Any]:
    """What a worker needs, as JSON. parent: process id of who waits for it, if anybody."""
    return {
        "spec": asdict(spec),
        "weights": {name: str(Path(path).resolve()) for name, path in weights.items()},
        "runtime": {
            name: str(value.resolve()) if isinstance(value, Path) else value for name, value in asdict(runtime).items()
        },
        "parent": parent,
    }


def write_outcome(folder: Path, outcome: Outcome | Exception) -> None:
    """Leave a worker's result, or a failure that has a meaning to the caller."""
    if isinstance(outcome, Diverged):
        # JSON has no NaN: the values travel as words.
        terms = {name: repr(value) for name, value in outcome.terms.items()}
        document: dict[str, Any] = {"diverged": {"step": outcome.step, "terms": terms}}
    elif isinstance(outcome, Exception):
        document = {"refused" if isinstance(outcome, Refused) else "mistake": str(outcome)}
    else:
        document = {"outcome": dataclasses.asdict(outcome)}
    _write_json(folder / OUTCOME, document)


def _read_outcome(folder: Path) -> Outcome:
    document = json.loads((folder / OUTCOME).read_text())
    for name in (LAUNCH, OUTCOME, REPORT):
        (folder / name).unlink(missing_ok=True)
    if "diverged" in document:
        terms = {name: float(value) for name, value in document["diverged"]["terms"].items()}
        raise Diverged(document["diverged"]["step"], terms)
    if "refused" in document:
        raise Refused(document["refused"])
    if "mistake" in document:
        raise UserError(document["mistake"])
    return Outcome(**document["outcome"])


def _write_json(path: Path, document: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
