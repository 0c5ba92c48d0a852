"""The task that trains a student: from a spec to weights, predictions, curves and costs in the run's folder."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from hkd.data.base import DataSet, Split
from hkd.data.loading.loader import Loader
from hkd.errors import Refused
from hkd.methods.base import Method, Needs, Samples, method_of, needs_of
from hkd.models.convert.files import classes_of, read_weights
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.weights import load_weights
from hkd.options import NoOptions, configured
from hkd.spec import MethodSpec, Recipe, RunSpec
from hkd.tasks.evaluate import measure, top1
from hkd.tasks.launch import task
from hkd.training.cache import Teachers, make_teachers
from hkd.training.inputs import evaluation_split, give_weights, open_data
from hkd.training.job import Job, Outcome, Runtime
from hkd.training.recipe import make_criterion
from hkd.training.rng import seed_all
from hkd.training.session import Built, train_run
from hkd.training.step import TapStep, Training

log = logging.getLogger(__name__)


@task(NoOptions)
def train(job: Job) -> Outcome:
    """Train the student of a spec, or go on where an interrupted run stopped.

    Files and failures are those of `train_run`; predictions.npz holds row, label and prediction of every evaluated
    image. metrics: `top1` in percent, the one reading of the test split.
    """

    def built(job: Job, fabric: Fabric) -> Built:
        data, fingerprint = open_data(job.spec.data, job.runtime)

        def accuracy(run: Training) -> dict[str, float]:
            split = evaluation_split(job.spec, data, job.runtime)
            return measure(run.step.student, split, job, data, fabric)

        @cache
        def held_out() -> Split:
            return data.load("val", seed=job.spec.seed, select=True, on_corrupt=job.runtime.on_corrupt)

        def validation(run: Training) -> dict[str, float]:
            return {"val_top1": top1(run.step.student, held_out(), job, data, fabric)}

        made = build(job, fabric, data, fingerprint, accuracy)
        return replace(made, validate=validation)

    return train_run(job, built)


def build(
    job: Job, fabric: Fabric, data: DataSet, fingerprint: str, measure: Callable[[Training], dict[str, float]]
) -> Built:
    """Student, method and teachers of a spec, and its training batches.

    The student is drawn first, from the seed alone: it is the same for every method. Adapters have a stream of their
    own, so that they do not depend on the teacher either.
    """
    spec, recipe, runtime = job.spec, job.recipe, job.runtime
    split = data.load("train", seed=spec.seed, select=job.select, on_corrupt=runtime.on_corrupt)
    loader = Loader(
        split,
        recipe,
        num_classes=data.num_classes,
        seed=spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=runtime.loader_workers,
        on_corrupt=runtime.on_corrupt,
        device=fabric.device,
    )
    seed_all(spec.seed, "init")
    student = TapModel(spec.student, data.num_classes, recipe.drop_path)
    if spec.init is not None:
        start_from(student, spec, job.weights)
    teachers = make_frozen(spec, data.num_classes, job.weights, fabric.device)
    seed_all(spec.seed, "adapters")
    method, needs = make_method(spec.method, student, teachers, recipe)
    labels = torch.as_tensor(split.labels)
    method.prepare(Samples(labels=labels, classes=data.num_classes, epochs=recipe.epochs, steps=loader.steps))

    def sources() -> Teachers:
        return make_teachers(
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

    return Built(TapStep(student, method, needs).to(fabric.device), loader, sources, measure)


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
    kind = method_of(spec.name)
    config: Any = configured(kind.Config, f"Method '{spec.name}'", spec.options)
    needs = needs_of(kind, config)
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
    classes = classes_of(read_weights(file).get(head[0]))
    if classes == student.info.classes:
        return give_weights(student, spec.init, weights)
    donor = TapModel(student.card, classes)
    give_weights(donor, spec.init, weights)
    student.net.load_state_dict(
        {name: value for name, value in donor.net.state_dict().items() if name not in head}, strict=False
    )
    log.info("%s is new: %s has %d classes, the data %d", ", ".join(head), file, classes, student.info.classes)


def classifier_names(net: Any) -> list[str]:
    """State-dict names of a timm model's classifier, or of its several; empty without one, or where nobody tells it."""
    found = net.get_classifier() if hasattr(net, "get_classifier") else ()
    heads = found if isinstance(found, tuple | list) else [found]
    held = {id(parameter) for head in heads for parameter in head.parameters()}
    return [name for name, parameter in net.named_parameters() if id(parameter) in held]


def restore(spec: RunSpec, weights: Mapping[str, Path], folder: Path, runtime: Runtime) -> TapStep:
    """Student, method and teachers of a finished training in evaluation mode; the teachers are `step.method.teachers`.

    Args:
        spec: of the run.
        weights: local file of every teacher, by the id of its `Weights`.
        folder: where the run left student.safetensors and adapters.safetensors.
        runtime: places; everything is put on the CPU.

    Raises:
        UserError: files or data are missing or are not what the spec needs.
    """
    classes = open_data(spec.data, runtime)[0].num_classes
    student = TapModel(spec.student, classes)
    load_weights(student.net, folder / "student.safetensors")
    teachers = make_frozen(spec, classes, weights, torch.device("cpu"))
    recipe = spec.recipe or Recipe(epochs=1, batch_size=1)
    method, needs = make_method(spec.method, student, teachers, recipe)
    adapters = folder / "adapters.safetensors"
    if adapters.is_file():
        method.load_state_dict(read_weights(adapters))
    return TapStep(student, method, needs).eval()
