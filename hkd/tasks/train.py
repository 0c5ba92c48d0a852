"""The task that trains a student: from a spec to weights, predictions, curves and costs in the run's folder."""

import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hkd import registry
from hkd.data.base import DataSet
from hkd.data.loading.loader import Loader
from hkd.errors import Diverged, Refused, UserError
from hkd.files import atomic_write
from hkd.methods import METHODS
from hkd.methods.base import Method, Needs, Samples
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.weights import read_weights, save_weights
from hkd.spec import MethodSpec, Recipe, RunSpec
from hkd.tasks.evaluate import measure
from hkd.training.cache import make_teachers
from hkd.training.checkpoint import Checkpoints
from hkd.training.cost import gpu_seconds, memory_told, millions, peak_memory_mib, reset_peak_memory
from hkd.training.distributed import launch, make_fabric, under_torchrun
from hkd.training.inputs import evaluation_split, give_weights, open_data
from hkd.training.journal import Journal
from hkd.training.loop import fit
from hkd.training.outcome import Outcome
from hkd.training.recipe import make_criterion, make_ema, make_optimizer, make_schedule
from hkd.training.rng import seed_all
from hkd.training.runtime import Runtime
from hkd.training.state import Position, Training
from hkd.training.step import Step

log = logging.getLogger(__name__)


def train(
    spec: RunSpec,
    weights: Mapping[str, Path],
    folder: Path,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Train the student of a spec, or go on where an interrupted run stopped.

    Leaves in `folder`: student.safetensors (plain timm keys; the moving average where the recipe has one),
    adapters.safetensors (a method's own parameters and buffers, if any), predictions.npz (row, label, prediction of
    every evaluated image) and curves.jsonl; checkpoint.pt only while it runs.

    Args:
        spec: the run, completely.
        weights: local file of every teacher and of `init`, by the id of its `Weights`.
        folder: of this run alone; made if needed.
        runtime: machine and places.
        report: called with {"epoch", "epochs", "step", "steps", "loss", "top1"} of the running epoch (top1: percent
            of training images, absent with soft targets) at most every `runtime.report_every_s` seconds.

    Raises:
        Diverged: a loss stopped being finite.
        UserError: data, weights or options are not what the spec needs.
    """
    if runtime.processes > 1 and not under_torchrun():
        return launch(spec, weights, folder, runtime, report)
    if spec.recipe is None:
        raise UserError("A training run needs a recipe.")
    reset_peak_memory()
    folder.mkdir(parents=True, exist_ok=True)
    images = device_batch(spec.recipe, runtime)
    with memory_told(images):
        checkpoints = Checkpoints(folder / "checkpoint.pt", spec, runtime.checkpoint_every_s)
        run, data = prepare(spec, spec.recipe, weights, runtime)
        journal = Journal(
            run.fabric,
            epochs=spec.recipe.epochs,
            steps=run.loader.steps,
            report=report,
            every_s=runtime.report_every_s,
            norms=spec.recipe.precision != "16-mixed",
        )
        if not checkpoints.restore(run, journal):
            seed_all(spec.seed, "train", run.fabric.global_rank)
        try:
            fit(run, journal, checkpoints)
        finally:
            write_curves(journal.curves, folder)
        metrics = finish(run, spec, data, folder, runtime)
    if run.fabric.is_global_zero:
        checkpoints.remove()
    costs = checkpoints.costs()
    cost = {
        **costs,
        "gpu_s": gpu_seconds(costs["wall_s"], run.fabric.device, run.fabric.world_size),
        "step_ms": journal.step_ms,
        "steps": float(run.position.updates),
        "device_batch": float(images),
        "student_params_m": millions(run.step.student),
        "extra_params_m": millions(run.step.method),
        "peak_memory_mib": peak_memory_mib(run.fabric.device),
    }
    if run.loader.corrupt:
        log.warning("skipped corrupt training images: %s", ", ".join(run.loader.corrupt))
        cost["corrupt_images"] = float(len(run.loader.corrupt))
    return Outcome(metrics=metrics, cost=cost, curves=journal.curves)


def finish(run: Training, spec: RunSpec, data: DataSet, folder: Path, runtime: Runtime) -> dict[str, float]:
    """Evaluate and keep what was trained; the one reading of the test split.

    Raises:
        Diverged: the last update left weights that are not finite, which no loss came to show.
    """
    student, method = run.step.student, run.step.method
    if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
        raise Diverged(run.position.updates - 1, {"weights": math.nan})
    if run.ema is not None:
        student.net.load_state_dict(run.ema.module.state_dict())
    metrics = measure(student, evaluation_split(spec, data, runtime), spec, data, folder, runtime, run.fabric)
    if run.fabric.is_global_zero:
        save_weights(student.net.state_dict(), folder / "student.safetensors")
        if adapters := method.state_dict():
            save_weights(adapters, folder / "adapters.safetensors")
    run.fabric.barrier()
    return metrics


def device_batch(recipe: Recipe, runtime: Runtime) -> int:
    """Images of one forward pass in one process, derived from the global batch."""
    share = recipe.batch_size // runtime.processes
    return share if runtime.micro_batch is None else min(share, runtime.micro_batch)


def prepare(spec: RunSpec, recipe: Recipe, weights: Mapping[str, Path], runtime: Runtime) -> tuple[Training, DataSet]:
    """Build all that a run trains with, standing at its beginning.

    The student is drawn first, from the seed alone: it is the same for every method. Adapters have a stream of their
    own, so that they do not depend on the teacher either.
    """
    fabric = make_fabric(runtime, recipe.precision)
    data, fingerprint = open_data(spec.data, runtime)
    split = data.load("train", seed=spec.seed, select=spec.evaluate_on == "val", on_corrupt=runtime.on_corrupt)
    loader = Loader(
        split,
        recipe,
        num_classes=data.num_classes,
        seed=spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=runtime.loader_workers,
        on_corrupt=runtime.on_corrupt,
    )
    seed_all(spec.seed, "init")
    student = TapModel(spec.student, data.num_classes, recipe.drop_path)
    if spec.init is not None:
        start_from(student, spec, weights)
    teachers = make_frozen(spec, data.num_classes, weights, fabric.device)
    seed_all(spec.seed, "adapters")
    method, needs = make_method(spec.method, student, teachers, recipe)
    labels = torch.as_tensor(split.labels)
    method.prepare(Samples(labels=labels, classes=data.num_classes, epochs=recipe.epochs, steps=loader.steps))
    step = Step(student, method, needs).to(fabric.device)
    optimizer = make_optimizer(recipe, student.net, method)
    schedule = make_schedule(recipe, optimizer, loader.steps)
    ema = make_ema(recipe, student.net)
    forward, wrapped = fabric.setup(step, optimizer)
    source = make_teachers(
        teachers,
        needs.teachers,
        loader,
        spec=spec,
        fingerprint=fingerprint,
        cache_dir=runtime.cache_dir,
        device=fabric.device,
        precision=fabric.autocast,
        method=method,
    )
    run = Training(
        fabric, recipe, step, forward, wrapped, schedule, ema, loader, source, runtime.micro_batch, Position()
    )
    return run, data


def make_frozen(
    spec: RunSpec, num_classes: int, weights: Mapping[str, Path], device: torch.device
) -> dict[str, Teacher]:
    """The teachers of a run by role, with their weights, on the device."""
    teachers = {}
    for role, teacher in spec.teachers.items():
        teachers[role] = Teacher(teacher.model, num_classes if teacher.classes is None else teacher.classes)
        give_weights(teachers[role], teacher.weights, weights)
        teachers[role].to(device)
    return teachers


def make_method(
    spec: MethodSpec, student: TapModel, teachers: Mapping[str, Teacher], recipe: Recipe
) -> tuple[Method, Needs]:
    """The method of a spec around a student and its teachers, and what it needs.

    Raises:
        Refused: a missing teacher, or a pair or recipe that the method cannot serve.
        UserError: unknown method or option, or a value the method refuses.
    """
    kind: type[Method] = registry.load(registry.lookup("method", spec.name, METHODS))
    config = registry.configured(  # type: ignore[var-annotated]
        kind.Config, f"Method '{spec.name}'", spec.options
    )
    needs = kind.needs(config)
    for role in needs.teachers:
        if role not in teachers:
            raise Refused(f"Method '{spec.name}' needs a teacher with the role '{role}'.")
    if needs.hard_labels and (recipe.mixup or recipe.cutmix):
        raise Refused(f"Method '{spec.name}' needs class labels, so the recipe cannot have mixup or cutmix.")
    cards = {role: teacher.card for role, teacher in teachers.items()}
    if sentence := kind.refuse(config, student.card, cards, recipe):
        raise Refused(sentence)
    return kind(config, student.info, teachers, make_criterion(recipe)), needs


def start_from(student: TapModel, spec: RunSpec, weights: Mapping[str, Path]) -> None:
    """Fill the student from `spec.init`, strictly; only a classifier for other classes (or none) is left new, by name.

    Raises:
        UserError: as `give_weights`.
    """
    assert spec.init is not None
    head = classifier_names(student.net)
    file = weights.get(spec.init.id)
    if spec.init.kind == "random" or file is None or not file.is_file() or not head:
        return give_weights(student, spec.init, weights)
    held = read_weights(file).get(head[0])
    classes = 0 if held is None else len(held)
    if classes == student.info.classes:
        return give_weights(student, spec.init, weights)
    donor = TapModel(student.card, classes)
    give_weights(donor, spec.init, weights)
    student.net.load_state_dict(
        {name: value for name, value in donor.net.state_dict().items() if name not in head}, strict=False
    )
    log.info("%s is new: %s has %d classes, the data %d", ", ".join(head), file, classes, student.info.classes)


def classifier_names(net: Any) -> list[str]:
    """State-dict names of a timm model's classifier, or of its several; empty without one."""
    found = net.get_classifier()
    heads = found if isinstance(found, tuple | list) else [found]
    held = {id(parameter) for head in heads for parameter in head.parameters()}
    return [name for name, parameter in net.named_parameters() if id(parameter) in held]


def write_curves(curves: list[dict[str, Any]], folder: Path) -> None:
    """One JSON object per line and epoch."""
    with atomic_write(folder / "curves.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in curves))
