"""Canaries: the runs of all tables, each shrunk to a second and still a whole run through its real task.

At least three epochs of some steps, so that warm-up, the end of the schedule, clipping, moving averages, mixing, drop
path, fixed views and on-line teachers do what they do in the run it stands for; then evaluation and all its files. Most
are interrupted and resumed. The papers' own models are replaced by miniatures of their families, their data by samples
in the same layout; recipes and options of methods stay.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from experiments import places
from experiments.planning import schema
from experiments.planning.keys import spec_identity
from experiments.planning.plan import PlannedRun, data_facts, plan_with
from experiments.planning.schema import DataMapping, Profile
from experiments.records.store import canonical, digest
from hkd.methods import METHODS
from hkd.models.cards.zoo import ZOO
from hkd.registry import load, lookup
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights
from hkd.units import units_of

PROFILES = ("laptop", "cifar_subset", "cub_subset", "cifar", "paper")
EPOCHS = 3
INTERRUPT_AT = 5  # updates done: in the second epoch
BATCH = {"numbers100": 25, "numbers200": 50, "scenes": 3, "coco": 3, "ade20k": 3}
SIZE: dict[str, dict[str, Any]] = {  # options that make a data set small: whatever else a profile says of it stays
    "digits": {"n_train": 24, "test_copies": 1},
    "digits_unlabelled": {"n_train": 24, "test_copies": 1},
    "numbers100": {"pool": 2, "n_train": 100, "n_test": 1},
    "numbers100_unlabelled": {"pool": 2, "n_train": 100, "n_test": 1},
    "numbers200": {"pool": 2, "n_train": 200, "n_test": 1},
    "scenes": {"pool": 10, "n_train": 9, "n_test": 3},
    "cifar100": {"folder": "cifar100", "classes": 3, "n_train": 8, "n_test": 3},
    "cifar100_unlabelled": {"folder": "cifar100", "classes": 3, "n_train": 8, "n_test": 3},
    "cub200": {"folder": "CUB_200_2011", "classes": 3, "n_train": 8, "n_test": 3, "image_size": 32, "expected": None},
    "aircraft": {"classes": 3, "n_train": 8, "n_test": 3, "image_size": 32, "expected": None},
    "stanford_cars": {"classes": 3, "n_train": 8, "n_test": 3, "image_size": 32, "expected": None},
    "imagenet1k": {"folder": "imagenet", "classes": 3, "n_train": 8, "n_test": 3, "image_size": 32, "expected": None},
    "imagenet1k_unlabelled": {"folder": "imagenet", "classes": 3, "n_train": 8, "n_test": 3, "image_size": 32},
    "folder": {"folder": "folder", "classes": 3, "n_train": 8, "n_test": 3, "image_size": 32, "expected": None},
    "own_folder": {"folder": "folder", "n_train": 8, "n_test": 3, "image_size": 32},
    "coco": {"image_size": 64, "max_size": 96, "n_train": 9, "n_test": 3},
    "ade20k": {"image_size": 64, "max_size": 96, "classes": 4, "n_train": 9, "n_test": 3},
}
OWN_MODEL = "test_byobnet"  # of timm, the smallest that no family of ours is for
# Options that make a method or task small, over those of every profile; a segmenter's head stays what it is.
SMALL_METHODS: dict[str, dict[str, Any]] = {"hgkd": {"queue_size": 16, "width": 16}}
SMALL_TASKS: dict[str, dict[str, Any]] = {"segment": {"width": 16}}
LARGEST = {"queue_size": 16}  # where a variant asks for more than the images that there are


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One small run: its spec, which canary's weights each `Weights.id` means, and how it is carried out."""

    id: str
    spec: RunSpec
    weights: dict[str, str]
    label: str  # of a run that it stands for
    runtime: dict[str, Any]
    interrupt_at: int | None

    @property
    def units(self) -> set[str]:
        """The units it enters."""
        return set(units_of(self.spec))

    def order(self) -> dict[str, Any]:
        """What the tracer is told, as JSON values."""
        return {
            "id": self.id,
            "spec": asdict(self.spec),
            "weights": self.weights,
            "runtime": self.runtime,
            "interrupt_at": self.interrupt_at,
        }


def canaries(data: Path, device: str = "cpu", tables: tuple[str, ...] = ()) -> dict[str, Canary]:
    """All canaries by id, each after those whose weights it takes.

    They stand for the runs that bring a pair of units, a value of an option, a set of options or a recipe which no run
    before them has, and for what these need.

    Args:
        data: where `write_samples` has put the sample data sets.
        device: cpu or cuda.
        tables: ids of tables whose runs they stand for; empty: all, and what no table has.
    """
    flock = Flock(device)
    with data_root(data):
        for name in PROFILES:
            profile = small_profile(schema.load_profile(name))
            for table in tables or schema.table_ids():
                flock.add_all(plan_with(schema.load_table(table), profile, (0,)).runs)
        if not tables:
            flock.add_others()
    return flock.canaries


@contextmanager
def data_root(path: Path) -> Iterator[None]:
    """Have data sets looked for below a folder."""
    before = os.environ.get("HKD_DATA")
    os.environ["HKD_DATA"] = str(path)
    data_facts.cache_clear()
    try:
        yield
    finally:
        data_facts.cache_clear()
        os.environ.pop("HKD_DATA") if before is None else os.environ.update(HKD_DATA=before)


def small_profile(profile: Profile) -> Profile:
    """A profile with miniatures for its models and small data for its data, where it has none of its own."""
    laptop = schema.load_profile("laptop")
    models = {
        slug: name if is_small(name) else laptop.models.get(slug, "")
        for slug, name in profile.models.items()
        if is_small(name) or slug in laptop.models
    }
    data = {slug: small_data(mapping) for slug, mapping in profile.data.items()}
    tasks = {**profile.tasks, "detect": {**profile.tasks.get("detect", {}), **laptop.tasks["detect"]}}
    changed = {
        "models": models,
        "data": data,
        "methods": merged(profile.methods, laptop.methods, SMALL_METHODS),
        "tasks": merged(tasks, SMALL_TASKS),
    }
    return profile.model_copy(update=changed)


def merged(*options: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Options by name; where several name the same one, the last counts."""
    return {
        name: {k: v for some in options for k, v in some.get(name, {}).items()} for some in options for name in some
    }


def is_small(name: str) -> bool:
    """Whether a card is a miniature: trained in a second."""
    return "_mini" in name or name.endswith("_64px")


def small_data(mapping: DataMapping) -> DataMapping:
    """The same data set with few images, for teachers too."""
    options = {**mapping.options, **SIZE.get(mapping.name, {})}
    return mapping.model_copy(update={"options": options, "teacher_options": {}})


class Flock:
    """Canaries while they are put together.

    Args:
        device: that they are carried out on.
    """

    def __init__(self, device: str):
        self.device = device
        self.canaries: dict[str, Canary] = {}
        self.features: set[Any] = set()

    def add_all(self, runs: Mapping[str, PlannedRun]) -> None:
        """Add the canaries of those of a plan's runs that bring something new."""
        ids: dict[str, str] = {}  # key of a run -> id of its canary
        for run in runs.values():
            features = features_of(run.spec)
            if not features <= self.features:
                self.features |= features
                self.add_run(run, runs, ids)

    def add_run(self, run: PlannedRun, runs: Mapping[str, PlannedRun], ids: dict[str, str]) -> str:
        """The canary that stands for a run, after those that stand for runs and files whose weights it takes."""
        if run.key in ids:
            return ids[run.key]
        spec, weights = run.spec, {}

        def replaced(source: Weights, model: ModelCard, classes: int | None) -> Weights:
            """The weights of a canary in place of a run's or a file's."""
            if source.kind == "random":
                return source
            if source.kind == "file" and (classes == 0 or (classes is None and spec.task == "pretrain")):
                return Weights(kind="random", id="3")
            of_run = source.kind == "run"
            canary = self.add_run(runs[source.id], runs, ids) if of_run else self.add_file(spec, model)
            weights[canary] = canary
            return Weights(kind="run", id=canary)

        teachers = {}
        for role, teacher in spec.teachers.items():
            classes = teacher.classes if teacher.classes in (None, 0, 10) else None
            source = replaced(teacher.weights, teacher.model, classes)
            teachers[role] = TeacherSpec(model=teacher.model, weights=source, classes=classes)
        init = None
        if spec.init is not None:
            headless = spec.task in ("pretrain", "probe", "detect", "segment")
            init = replaced(spec.init, spec.student, 0 if headless else None)
        method = replace(spec.method, options=small_options(spec.method.options))
        small = replace(spec, method=method, teachers=teachers, init=init, recipe=small_recipe(spec))
        ids[run.key] = self.add(small, weights, run.label)
        return ids[run.key]

    def add_file(self, spec: RunSpec, model: ModelCard) -> str:
        """The canary that leaves weights of a model with a classifier for the data of a run."""
        recipe = Recipe(epochs=1, batch_size=BATCH.get(spec.data.name, 8))
        method = MethodSpec(name="supervised")
        trained = RunSpec(task="train", data=labelled(spec.data), student=model, method=method, recipe=recipe)
        return self.add(trained, {}, f"weights of {model.name}")

    def add_others(self) -> None:
        """Runs that no table has: of units that are in none, and of every method with other values of its options."""
        firsts = {canary.spec.method.name: canary for canary in reversed(self.canaries.values())}
        for name in METHODS:
            if name not in firsts and takes_a_teacher(name):
                spec = replace(firsts["kd"].spec, method=MethodSpec(name=name))
                firsts[name] = self.canaries[self.add(spec, firsts["kd"].weights, f"{name}, in no table")]
                for choice in choices(name):
                    method = MethodSpec(name=name, options=choice)
                    self.add(replace(spec, method=method), firsts["kd"].weights, f"{name}, another choice")
        for name, canary in firsts.items():
            method = replace(canary.spec.method, options={**other_values(name), **canary.spec.method.options})
            self.add(replace(canary.spec, method=method), canary.weights, f"{name}, other values")
        for canary in list(self.canaries.values()):
            spec = canary.spec
            if spec.data.name == "imagenet1k_unlabelled":
                data = small_set("cifar100_unlabelled")
                self.add(replace(spec, data=data), canary.weights, "other data")
                break
        for canary in list(self.canaries.values()):
            spec = canary.spec
            if spec.student.family == "sparse_resnet" and spec.method.name == "masked_pixels":
                card = replace(
                    lookup("model", "convnext_t_mini", ZOO), name="sparse_convnext", family="sparse_convnext"
                )
                self.add(replace(spec, student=card), canary.weights, "another sparse family")
        for canary in list(self.canaries.values()):
            spec = canary.spec
            if (spec.task, spec.data.name, spec.method.name) == ("train", "cifar100", "kd"):
                for family in ("timm", "own"):
                    card = ModelCard(name=OWN_MODEL, family=family, arch=OWN_MODEL, image_size=32)
                    own = replace(spec, data=small_set("own_folder"), student=card)
                    self.add(own, canary.weights, f"somebody's own images and model, family {family}")
                break

    def add(self, spec: RunSpec, weights: dict[str, str], label: str) -> str:
        """Add a canary unless there is one of the same spec; its id."""
        identity = digest(spec_identity(without_origin(spec)), size=8)
        # A few more ways to carry out a run, spread over all of them by their names.
        draw = int(identity, 16)
        runtime: dict[str, Any] = {"accelerator": self.device, "checkpoint_every_s": 0.0, "report_every_s": 0.0}
        if spec.recipe is not None and draw % 4 == 0 and spec.task in ("train", "pretrain"):
            runtime["micro_batch"] = (spec.recipe.batch_size + 1) // 2
        if draw % 5 == 0 and spec.data.name in ("digits", "numbers100", "numbers200", "scenes"):
            spec = replace(spec, evaluate_on="val")
        canary = Canary(
            id=identity,
            spec=spec,
            weights=weights,
            label=label,
            runtime=runtime,
            interrupt_at=None if spec.recipe is None else INTERRUPT_AT,
        )
        self.canaries.setdefault(identity, canary)
        return identity


def small_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method with what is larger than the canaries' data made smaller."""
    return {name: min(value, LARGEST[name]) if name in LARGEST else value for name, value in options.items()}


def labelled(data: DataSpec) -> DataSpec:
    """The data set of the same images with labels."""
    if not data.name.endswith("_unlabelled"):
        return data
    return small_set(data.name.removesuffix("_unlabelled"))


def small_set(name: str) -> DataSpec:
    """A sample data set as it is by itself."""
    fingerprint, missing = data_facts(name, json.dumps(SIZE[name], sort_keys=True), places.data(), False)
    assert missing is None, missing
    return DataSpec(name=name, options=SIZE[name], fingerprint=fingerprint)


def other_values(method: str) -> dict[str, float]:
    """Every number that a method takes, moved off its default: a factor of 1 or a term of 0 hides what it stands at."""
    config = load(lookup("method", method, METHODS)).Config
    found: dict[str, float] = {}
    for item in fields(config):
        if type(item.default) is float:
            moved = {item.name: 0.8 * item.default or 0.2}
            with suppress(ValueError):  # some go together only with others
                config(**found, **moved)
                found |= moved
    return found


def takes_a_teacher(method: str) -> bool:
    """Whether a method trains students as KD does: with one teacher, and labels that may be mixed."""
    kind = load(lookup("method", method, METHODS))
    needs = kind.needs(kind.Config())
    return set(needs.teachers) == {"teacher"} and not needs.hard_labels


def choices(method: str) -> Iterator[dict[str, Any]]:
    """Every named choice of an option of a method that is not its default, one at a time."""
    for item in fields(load(lookup("method", method, METHODS)).Config):
        if get_origin(item.type) is Literal:
            yield from ({item.name: value} for value in get_args(item.type) if value != item.default)


def features_of(spec: RunSpec) -> set[Any]:
    """What a run brings: its units by pairs, values of options, options that are set together, its recipe."""
    kinds = (("method", spec.method.name, spec.method.options), ("task", spec.task, spec.task_options))
    recipe = None if spec.recipe is None else replace(spec.recipe, lr=1.0, min_lr=0.0, warmup_lr=0.0, weight_decay=0.1)
    return {
        *itertools.combinations(sorted(units_of(spec)), 2),
        *((kind, of, name, canonical(value)) for kind, of, options in kinds for name, value in options.items()),
        *((kind, of, *sorted(options)) for kind, of, options in kinds),
        (spec.task, None if recipe is None else replace(recipe, epochs=EPOCHS, batch_size=1, warmup_epochs=0.0)),
    }


def small_recipe(spec: RunSpec) -> Recipe | None:
    """The recipe with three epochs of small batches; lengths in epochs shrink with it."""
    recipe = spec.recipe
    if recipe is None:
        return None
    share = EPOCHS / recipe.epochs
    return replace(
        recipe,
        epochs=EPOCHS,
        batch_size=BATCH.get(spec.data.name, 8),
        warmup_epochs=max(recipe.warmup_epochs * share, 0.7) if recipe.warmup_epochs else 0.0,
        milestones=tuple(milestone * share for milestone in recipe.milestones),
        views=None if recipe.views is None else min(recipe.views, 2),
    )


def without_origin(spec: RunSpec) -> RunSpec:
    """The spec without whose weights it takes: these change numbers, and no code that runs."""

    def blank(source: Weights) -> Weights:
        return replace(source, id="")

    teachers = {role: replace(teacher, weights=blank(teacher.weights)) for role, teacher in spec.teachers.items()}
    return replace(spec, teachers=teachers, init=None if spec.init is None else blank(spec.init))
