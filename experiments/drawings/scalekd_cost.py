"""What a training step of each run costs beside a supervised one (ScaleKD, arXiv:2411.06786, Table 15).

Runs are built anew from their specs, with the teacher on line, and take steps of the training loop; nothing is trained
for this. Time: in each round every run takes a few steps in turn, and its ratio to the supervised run is taken within
the round, so that a machine that slows down slows both. Memory: the most that tensors hold while a run is built and
takes two steps, all included (student, teacher, adapters, optimiser).
"""

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from analysis.charts import Dot, dots_figure
from analysis.figure_files import Number, csv_text, save_measures
from experiments.drawings.base import Finished
from experiments.planning.plan import PlannedRun
from experiments.results import stats
from experiments.results.stats import Estimate
from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.tasks.train import build
from hkd.training.distributed import make_fabric
from hkd.training.inputs import open_data
from hkd.training.job import Job, Runtime
from hkd.training.journal import Journal
from hkd.training.loop import update
from hkd.training.session import assembled
from hkd.training.step import Training

Cell = tuple[str, str, str]  # row, method, variant
ROUNDS = 12  # after one that is not counted
STEPS = 4  # of each run in a round
TIME, MEMORY = "step time, × supervised", "memory, × supervised"


@dataclass(frozen=True)
class Steps:
    """A run that takes training steps on one and the same batch."""

    run: Training
    batch: Batch
    journal: Journal

    def __call__(self, count: int = STEPS) -> None:
        for _ in range(count):
            update(self.run, self.batch, self.journal)

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.run.fabric.device


@dataclass(frozen=True)
class Cost:
    """What a step costs as a multiple of the supervised one's: over rounds, and at the peak."""

    time: Estimate
    memory: float


def draw(finished: Finished, folder: Path) -> None:
    """Ratios of time and memory, a line for each run but the supervised one, of which there must be one."""
    runs = {cell: each[0] for cell, each in finished.cells.items()}
    reference = next((cell for cell in runs if cell[1] == "supervised"), None)
    if reference is None:
        raise UserError(f"'{finished.plan.table}' needs its supervised run, which costs are measured against.")
    runs = {cell: run for cell, run in runs.items() if cell == reference or run.key != runs[reference].key}
    with one_thread():
        costs = measured({cell: maker(finished, run, folder) for cell, run in runs.items()}, reference)
    teachers = {row.row: row.label[0] for row in finished.table.rows}
    slugs = {row.row: "+".join(row.teachers.values()) for row in finished.table.rows}
    lines = {f"{finished.label(cell)}, {teachers[cell[0]]}": cost for cell, cost in costs.items()}
    panels = {
        TIME: {name: Dot(cost.time.mean, cost.time.low, cost.time.high) for name, cost in lines.items()},
        MEMORY: {name: Dot(cost.memory) for name, cost in lines.items()},
    }
    run = runs[reference]
    rule = (
        f"Steps of {device_batch(run, finished.runtime)} training images on {kind(finished.runtime)}, the teacher on "
        f"line; {ROUNDS} rounds of {STEPS} steps."
    )
    dots_figure(
        list(lines),
        panels,
        folder / "costs",
        title=f"What a training step costs beside a supervised one\n{finished.plan.here}",
        caption=f"Profile {finished.plan.profile}. {rule} Whiskers: 95 % intervals over rounds. No cost that the paper "
        "measured (8 V100) was found.",
    )
    numbers = {}
    for cell, cost in costs.items():
        name = f"{'_'.join(filter(None, cell[1:]))}/{slugs[cell[0]]}"
        numbers[f"time/{name}"] = Number(cost.time.mean, cost.time.half_width)
        numbers[f"memory/{name}"] = Number(cost.memory)
    save_measures(numbers, folder / "measures.json", profile=finished.plan.profile, images=rule)
    table = ([name, cost.time.mean, cost.time.half_width, cost.memory] for name, cost in lines.items())
    (folder / "costs.csv").write_text(csv_text(("step", "time", "half", "memory"), table), encoding="utf-8")


def maker(finished: Finished, run: PlannedRun, folder: Path) -> Callable[[], Steps]:
    """What builds a run that stands at its beginning, in one process, each of its images drawn afresh."""
    assert run.spec.recipe is not None
    recipe = replace(run.spec.recipe, views=None, batch_size=device_batch(run, finished.runtime))
    runtime = replace(finished.runtime, devices=1, num_nodes=1, loader_workers=0, micro_batch=None)
    job = Job(replace(run.spec, recipe=recipe), finished.weights(run), folder, runtime, lambda news: None)

    def make() -> Steps:
        fabric = make_fabric(runtime, recipe.precision)
        training = assembled(
            job, fabric, build(job, fabric, *open_data(job.spec.data, runtime), measure=lambda run: {})
        )
        training.step.train()
        journal = Journal(
            fabric, epochs=recipe.epochs, steps=training.loader.steps, report=job.report, every_s=math.inf, norms=False
        )
        return Steps(training, next(iter(training.loader.epoch(0))).to(fabric.device), journal)

    return make


def device_batch(run: PlannedRun, runtime: Runtime) -> int:
    """Images of a step on one device."""
    return Job(run.spec, {}, Path(), runtime, lambda news: None).device_batch


def kind(runtime: Runtime) -> str:
    """The device in words."""
    device = make_fabric(replace(runtime, devices=1, num_nodes=1), "32-true").device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU thread"


def measured(makers: Mapping[Cell, Callable[[], Steps]], reference: Cell) -> dict[Cell, Cost]:
    """Costs of all runs but the reference, as multiples of its own.

    Args:
        makers: each builds a run.
        reference: the run that costs 1.
    """
    memory = {cell: peak(make) for cell, make in makers.items()}
    made = {cell: make() for cell, make in makers.items()}
    ratios: dict[Cell, list[float]] = {cell: [] for cell in made}
    for number in range(ROUNDS + 1):
        taken = {cell: seconds(steps) for cell, steps in made.items()}
        for cell in made if number else ():
            ratios[cell].append(taken[cell] / taken[reference])
    return {
        cell: Cost(stats.mean(each), memory[cell] / memory[reference])
        for cell, each in ratios.items()
        if cell != reference
    }


def seconds(steps: Steps) -> float:
    """What a few steps take: CPU time on a CPU, else wall-clock time."""
    if steps.device.type == "cpu":
        start = time.process_time()
        steps()
        return time.process_time() - start
    torch.cuda.synchronize(steps.device)
    start = time.perf_counter()
    steps()
    torch.cuda.synchronize(steps.device)
    return time.perf_counter() - start


def peak(make: Callable[[], Steps]) -> float:
    """Bytes that tensors hold at most while a run is built and takes two steps."""
    gc.collect()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints when it starts and stops otherwise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        steps = make()
        steps(2)
    if steps.device.type == "cuda":
        return torch.cuda.max_memory_allocated(steps.device) - before
    held = most = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, as runs have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
