"""One training from beginning to end, whatever is trained: build or restore, run, keep, evaluate, count the cost.

What differs between tasks (what learns, from which batches, how it is measured) is what a task builds (`Built`); the
loop, the checkpoints, the curves and the folder are the same for all.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from hkd.data.loading.loader import BatchLoader
from hkd.errors import Diverged, Refused
from hkd.files import atomic_write
from hkd.models.hooks import evaluation_mode
from hkd.models.weights import save_weights
from hkd.training.cache import Teachers
from hkd.training.checkpoint import Checkpoints, Unfit
from hkd.training.compiled import compile_models
from hkd.training.cost import Meter, memory_told, millions
from hkd.training.distributed import give_buffers, make_fabric, of_all
from hkd.training.job import Job, Outcome
from hkd.training.journal import Journal
from hkd.training.loop import fit
from hkd.training.recipe import make_ema, make_optimizer, make_schedule
from hkd.training.rng import rng_state, seed_all, set_rng_state
from hkd.training.step import Position, Step, Training

log = logging.getLogger(__name__)

LIVE_S = 2.0  # seconds between writings of the curves so far


@dataclass(frozen=True)
class Built:
    """What a task has built for a training, standing at its beginning.

    step: what learns, on the device. loader: of the training batches. teachers: called once the engine has wrapped
    the step, for what the teachers say about a batch. measure: called once with the finished training, whose step is
    in evaluation mode and without gradients; gives the metrics, and leaves predictions in the folder. validate: called
    in the same state between epochs where the recipe asks for it, and gives what the curves get; None: the task cannot.
    """

    step: Step
    loader: BatchLoader
    teachers: Callable[[], Teachers]
    measure: Callable[[Training], dict[str, float]]
    validate: Callable[[Training], dict[str, float]] | None = None


def train_run(job: Job, build: Callable[[Job, Fabric], Built]) -> Outcome:
    """Train what a task builds, or go on where an interrupted run stopped.

    Leaves in `job.folder`: student.safetensors (plain timm keys; the moving average where the recipe has one),
    adapters.safetensors (the method's own parameters and buffers, if any), curves.jsonl, and what `measure` writes;
    checkpoint.pt only while it runs. curves.jsonl is there from the first epoch on, for whoever watches.

    Raises:
        Diverged: a loss stopped being finite, or the last update left weights that are not.
        UserError: data, weights or options are not what the spec needs.
    """
    recipe, folder, meter = job.recipe, job.folder, Meter()
    folder.mkdir(parents=True, exist_ok=True)
    with memory_told(job.device_batch):
        checkpoints = Checkpoints(folder / "checkpoint.pt", job.spec, job.runtime.checkpoint_every_s, meter)
        fabric = make_fabric(job.runtime, recipe.precision)
        built, run, journal = begun(job, fabric, build)
        try:
            restored = checkpoints.restore(run, journal)
        except Unfit:
            built, run, journal = begun(job, fabric, build)
            restored = False
        if not restored:
            seed_all(job.spec.seed, "train", fabric.global_rank)
        live = Live(run, journal, built, folder)
        try:
            fit(run, journal, checkpoints, live)
        finally:
            write_curves(journal.curves, folder)
        keep(run, folder)
        run.step.eval()
        with torch.no_grad():
            give_buffers(fabric, run.step)
            metrics = built.measure(run)
        fabric.barrier()
    if fabric.is_global_zero:
        checkpoints.remove()
    cost = meter.cost(fabric, run.step.student) | {
        "step_ms": journal.step_ms,
        "steps": float(run.position.updates),
        "device_batch": float(job.device_batch),
        "extra_params_m": millions(run.step.method),
    }
    if corrupt := of_all(fabric, list(run.loader.corrupt)):
        log.warning("skipped corrupt training images: %s", ", ".join(corrupt))
        cost["corrupt_images"] = float(len(corrupt))
    return Outcome(metrics=metrics, cost=cost, curves=journal.curves)


class Live:
    """What is done between epochs: validation accuracy where it is asked for, and the curves so far for who watches."""

    def __init__(self, run: Training, journal: Journal, built: Built, folder: Path):
        self.run, self.journal, self.built, self.folder = run, journal, built, folder
        self.written = time.monotonic()

    def __call__(self, epoch: int) -> None:
        """Add to the line of an epoch (0-based), and write the lines, at most every `LIVE_S` seconds."""
        recipe = self.run.recipe
        if recipe.validate_every and ((epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs):
            self.journal.curves[-1] |= validated(self.run, self.built)
        if self.run.fabric.is_global_zero and time.monotonic() - self.written >= LIVE_S:
            write_curves(self.journal.curves, self.folder)
            self.written = time.monotonic()


def validated(run: Training, built: Built) -> dict[str, float]:
    """What `built.validate` gives of the weights as they would be kept now; the training is left as it was."""
    assert built.validate is not None
    averaged, kept, random = run.step.averaged, None, rng_state()
    if run.ema is not None:
        kept = {name: value.clone() for name, value in averaged.state_dict().items()}
        averaged.load_state_dict(run.ema.module.state_dict())
    try:
        with torch.no_grad(), evaluation_mode(run.step):
            give_buffers(run.fabric, run.step)
            return built.validate(run)
    finally:
        set_rng_state(random)
        if kept is not None:
            averaged.load_state_dict(kept)


def begun(job: Job, fabric: Fabric, build: Callable[[Job, Fabric], Built]) -> tuple[Built, Training, Journal]:
    """What a task builds, ready to be trained, at its beginning."""
    built = build(job, fabric)
    if job.runtime.channels_last:
        for module in (built.step, *getattr(built.step.method, "teachers", {}).values()):
            module.to(memory_format=torch.channels_last)
    if job.runtime.compile:
        compile_models(built.step)
    if job.recipe.validate_every and built.validate is None:
        raise Refused(f"The task '{job.spec.task}' has no accuracy to read between epochs: leave validate_every out.")
    run = assembled(job, fabric, built)
    journal = Journal(
        fabric,
        epochs=job.recipe.epochs,
        steps=run.loader.steps,
        report=job.report,
        every_s=job.runtime.report_every_s,
        norms=job.recipe.precision != "16-mixed",
    )
    return built, run, journal


def assembled(job: Job, fabric: Fabric, built: Built) -> Training:
    """Optimiser, schedule and moving average around what was built, under the engine."""
    recipe, net = job.recipe, built.step.student.net
    assert isinstance(net, nn.Module)
    optimizer = make_optimizer(recipe, net, built.step.method)
    schedule = make_schedule(recipe, optimizer, built.loader.steps)
    ema = make_ema(recipe, built.step.averaged)
    forward, wrapped = fabric.setup(built.step, optimizer)
    return Training(
        fabric=fabric,
        recipe=recipe,
        step=built.step,
        forward=forward,
        optimizer=wrapped,
        schedule=schedule,
        ema=ema,
        loader=built.loader,
        teachers=built.teachers(),
        micro_batch=job.runtime.micro_batch,
        position=Position(),
    )


def keep(run: Training, folder: Path) -> None:
    """Write what was trained, or the moving average that takes its place: the student, and the adapters.

    Raises:
        Diverged: the last update left weights that are not finite, which no loss came to show.
    """
    student, method = run.step.student, run.step.method
    if not all(torch.isfinite(parameter).all() for parameter in run.step.parameters()):
        raise Diverged(run.position.updates - 1, {"weights": math.nan})
    if run.ema is not None:
        run.step.averaged.load_state_dict(run.ema.module.state_dict())
    if run.fabric.is_global_zero:
        save_weights(student.net.state_dict(), folder / "student.safetensors")
        if adapters := method.state_dict():
            save_weights(adapters, folder / "adapters.safetensors")
    run.fabric.barrier()


def write_curves(curves: list[dict[str, Any]], folder: Path) -> None:
    """One JSON object per line and epoch."""
    with atomic_write(folder / "curves.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in curves))
