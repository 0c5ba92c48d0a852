"""Every task's front: a run that takes several processes is started through torchrun.

One process carries its run out itself. Several are one `torchrun` of `hkd.tasks.worker` in the run's folder, which
reads launch.json there and leaves outcome.json.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hkd.errors import Diverged, Refused, UserError
from hkd.files import atomic_write
from hkd.options import configured
from hkd.spec import RunSpec
from hkd.training.distributed import under_torchrun
from hkd.training.job import Job, Outcome, Report, Runtime

LAUNCH, OUTCOME, REPORT = "launch.json", "outcome.json", "report.json"
ENDPOINT = "HOST:PORT"  # where the nodes of a run meet; filled in by who starts them
SOURCE = Path(__file__).resolve().parents[2]  # the folder that `hkd` is imported from
POLL_S = 0.2
RANK = re.compile(r"^\[\w+\]: ?")  # torch may say before each line which process wrote it
ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)(: |$)")  # the last line of a traceback
Task = Callable[[Job], Outcome]


def task(config: type) -> Callable[[Task], Task]:
    """Make a task of a function that carries out one process's part of a run. config: class of the task's options."""

    def made(function: Task) -> Task:
        @wraps(function)
        def run(job: Job) -> Outcome:
            configured(config, f"Task '{job.spec.task}'", job.spec.task_options)
            several = job.runtime.processes > 1 and not under_torchrun()
            return launch(job) if several else function(job)

        run.Config = config  # type: ignore[attr-defined]
        return run

    return made


def launch(job: Job) -> Outcome:
    """Carry out a run in `runtime.processes` processes and return what they found; raises what they raised.

    On several nodes the processes cannot be started from here: a UserError says what to run on each, after which
    asking again picks up the outcome.
    """
    folder, runtime = job.folder, job.runtime
    folder.mkdir(parents=True, exist_ok=True)
    if runtime.num_nodes == 1:
        (folder / OUTCOME).unlink(missing_ok=True)
        _write_json(folder / LAUNCH, encode(job, parent=os.getpid()))
        _supervise(_torchrun(runtime, folder), folder, job.report)
    elif not (folder / OUTCOME).exists():
        _write_json(folder / LAUNCH, encode(job, parent=None))
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
    return [*command, "-m", "hkd.tasks.worker", str(folder.resolve())]


def _supervise(command: list[str], folder: Path, report: Report) -> None:
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
        raise RuntimeError(why((folder / "torchrun.log").read_text(errors="replace"), process.returncode))


def why(log: str, code: int) -> str:
    """What ended the processes of a run: the error that the first of them printed, then the last lines of all."""
    lines = log.splitlines()
    errors = (RANK.sub("", line) for line in lines)
    first = next((line for line in errors if ERROR.match(line)), "no error was printed")
    tail = "\n".join(lines[-20:])
    return f"{first} (torchrun ended with code {code})\nThe last lines it wrote:\n{tail}"


def encode(job: Job, parent: int | None) -> dict[str, Any]:
    """What a worker needs, as JSON. parent: process id of who waits for it, if anybody."""
    runtime = asdict(job.runtime)
    return {
        "spec": asdict(job.spec),
        "weights": {name: str(path.resolve()) for name, path in job.weights.items()},
        "runtime": {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in runtime.items()},
        "parent": parent,
    }


def decode(order: Mapping[str, Any], folder: Path, report: Report) -> Job:
    """The job of what `encode` gave, in the same folder or another."""
    return Job(
        spec=TypeAdapter(RunSpec).validate_python(order["spec"]),
        weights={name: Path(path) for name, path in order["weights"].items()},
        folder=folder,
        runtime=TypeAdapter(Runtime).validate_python(order["runtime"]),
        report=report,
    )


def write_outcome(folder: Path, outcome: Outcome | Exception) -> None:
    """Leave a worker's result, or a failure that has a meaning to the caller."""
    if isinstance(outcome, Diverged):
        # JSON has no NaN: the values travel as words.
        terms = {name: repr(value) for name, value in outcome.terms.items()}
        document: dict[str, Any] = {"diverged": {"step": outcome.step, "terms": terms}}
    elif isinstance(outcome, Exception):
        document = {"refused" if isinstance(outcome, Refused) else "mistake": str(outcome)}
    else:
        document = {"outcome": asdict(outcome)}
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
