"""Stand-ins for training and methods: they take no time, and misbehave when their options say so.

Registered by the tests in the driver, and in worker processes by dask, which calls `dask_setup` there.
"""

import os
import shutil
import signal
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from experiments.planning.plan import Plan, PlannedRun
from hkd.errors import Diverged, Refused, UserError
from hkd.options import NotNegative, options
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights

STUDENT = ModelCard(name="student", family="resnet", arch="resnet18", gmacs=0.001, params_m=0.01)


@options
class FakeConfig:
    do: str = "train"  # what the task does
    seconds: NotNegative = 0.0
    file: str = ""  # something on disk that `do` looks at


class FakeMethod:
    Config = FakeConfig

    @classmethod
    def refuse(cls, config, student, teachers, recipe):
        return "a fake cannot serve this pair" if config.do == "refuse" else None


@dataclass
class FakeOutcome:
    metrics: dict = field(default_factory=lambda: {"top1": 50.0})
    cost: dict = field(default_factory=lambda: {"wall_s": 0.1})
    curves: list = field(default_factory=lambda: [{"epoch": 0, "loss": 2.0, "note": "x"}, {"epoch": 1, "loss": 1.0}])


def task(job):
    spec, weights, folder, report = job.spec, job.weights, job.folder, job.report
    options = FakeConfig(**spec.method.options)
    taught = b"".join(Path(path).read_bytes() for path in weights.values())
    with open(folder / "attempts", "a") as attempts:
        attempts.write(f"{os.getpid()}\n")
    began = time.monotonic()
    report({"epoch": 1, "epochs": 2, "loss": 1.5, "top1": 10.0})
    while time.monotonic() - began < options.seconds:
        time.sleep(0.01)
    BEHAVIOURS.get(options.do, lambda options, folder: None)(options, folder)
    (folder / "student.safetensors").write_bytes(b"weights of " + folder.name.encode() + taught)
    return FakeOutcome()


def diverge(options, folder):
    raise Diverged(7, {"task": float("nan")})


def crash(options, folder):
    raise RuntimeError("it broke\nin two lines")


def crash_until_file(options, folder):
    if not Path(options.file).exists():
        raise RuntimeError("the file is not there yet")


def complain(options, folder):
    raise UserError("image 17 is corrupt")


def refuse_late(options, folder):
    raise Refused("3 heads do not divide the width 8")


def data_not_readable(options, folder):
    raise PermissionError(13, "Permission denied", options.file)


def store_not_writable(options, folder):
    raise PermissionError(13, "Permission denied", str(folder / "checkpoint.pt"))


def run_out_of_memory(options, folder):
    raise MemoryError


def fill_disk(options, folder):
    raise OSError(28, "No space left on device", str(folder / "checkpoint.pt"))


def lose_store_once(options, folder):
    """As if a disk were unplugged; `file` remembers that it was."""
    if not Path(options.file).exists():
        Path(options.file).touch()
        shutil.rmtree(folder.parent)


def kill_worker(options, folder):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_worker_once(options, folder):
    if (folder / "attempts").read_text().count("\n") == 1:
        kill_worker(options, folder)


def warn(options, folder):
    warnings.warn("something to know", stacklevel=1)


BEHAVIOURS = {
    behaviour.__name__: behaviour
    for behaviour in (
        diverge,
        crash,
        crash_until_file,
        complain,
        refuse_late,
        data_not_readable,
        store_not_writable,
        run_out_of_memory,
        fill_disk,
        lose_store_once,
        kill_worker,
        kill_worker_once,
        warn,
    )
}


def register() -> None:
    from experiments.execution import run
    from hkd.methods import METHODS
    from hkd.tasks import TASKS

    # As if fakes were units of ours: a fake run's key is its name, so that it cannot be compared with its code.
    run.is_ours = lambda module: module.startswith(("hkd.", "tests."))

    METHODS["fake"] = "tests.experiments.fake_tasks:FakeMethod"
    TASKS["fake"] = "tests.experiments.fake_tasks:task"


def dask_setup(worker) -> None:
    register()


def fake_run(
    name: str, *, needs: tuple[str, ...] = (), teacher: str | None = None, missing=None, **options
) -> PlannedRun:
    """A run whose key is its name."""
    teachers = {}
    if teacher:
        teachers["teacher"] = TeacherSpec(model=STUDENT, weights=Weights(kind="run", id=teacher))
        needs = (teacher, *needs)
    spec = RunSpec(
        task="fake",
        data=DataSpec(name="digits", fingerprint="0"),
        student=STUDENT,
        method=MethodSpec(name="fake", options=options),
        recipe=Recipe(epochs=2, batch_size=8),
        teachers=teachers,
    )
    return PlannedRun(key=name, spec=spec, needs=needs, label=f"fake {name}", missing=missing)


def fake_plan(*runs: PlannedRun) -> Plan:
    return Plan(
        table="fake_table",
        title="Fake",
        paper="fake",
        profile="laptop",
        by_value=False,
        metrics=("top1",),
        seeds=(0,),
        cells=(),
        runs={run.key: run for run in runs},
    )
