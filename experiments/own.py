"""A table of a user's own: one student, one teacher, a folder of images and some methods, asked for on a command line.

It becomes a table file with a profile in it, as users write them by hand, so that it is planned, run, kept, judged and
shown by the same code, and can be run again from there. What is decided on the way (how the teacher
comes to know these classes, how the images are cut) is told as sentences.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from experiments import places
from experiments.documents import Document
from experiments.planning import schema
from experiments.planning.plan import SELECTION_SEED, Plan, data_facts, num_classes, plan_with
from experiments.planning.schema import Column, DataMapping, Profile, Row, Table, TeacherMapping
from experiments.results.assay import ALONE, COPIES_OUTPUTS
from hkd.data.own import OwnFolder, unreadable
from hkd.errors import UserError
from hkd.files import atomic_write, sha256
from hkd.methods import METHODS
from hkd.models.cards.named import card_of
from hkd.options import MOST
from hkd.registry import lookup, nearest
from hkd.spec import ModelCard, Recipe

if TYPE_CHECKING:
    from torch import Tensor

DATA = "images"
START = "start"  # the slug of the weights that a student starts from
# Methods that train a classifier from labels and a teacher, cheap steps first: the teacher's logits alone, its pooled
# feature, its maps, its maps at every stage with heads or attention.
CHEAP_FIRST = ("kd", "dkd", "dist", "rkd", "cc", "crd", "fitnet", "hcd", "ofa", "scalekd")
# What does not train a classifier with one teacher; any other method is taken by name, and `all` is the ones above.
LABEL_FREE = frozenset({"beit", "cae", "hgkd", "hybrid", "mae", "masked_pixels", "moco", "simclr"})
SEVERAL_TEACHERS = frozenset({"unic"})
RECIPES = schema.HERE / "recipes"
SEEDS = 3
STEPS = 8  # of an epoch at least, however few images there are


class RecipeFile(Document):
    """A recipe: of students; of a teacher that is trained from nothing (None: as students); of one that is tuned."""

    about: str = ""
    student: Recipe
    teacher: Recipe | None = None
    tune: Recipe | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks for; names as they gave them.

    weights: "scratch", "random", "pretrained" or a path; None: the sensible ones. tune: None: where it is needed.
    """

    student: str
    teacher: str
    data: Path
    methods: Sequence[str] = ("kd",)
    recipe: str = "cifar"
    seeds: int = SEEDS
    name: str | None = None
    image_size: int | None = None
    epochs: int | None = None
    student_weights: str | None = None
    teacher_weights: str | None = None
    tune: bool | None = None
    train_images: int | None = None  # per class, drawn by the seed; None: all


@dataclass(frozen=True, kw_only=True)
class Own:
    """A table of one's own in its file. said: what was decided, as sentences."""

    file: Path
    said: tuple[str, ...] = ()

    @cached_property
    def table(self) -> Table:
        """As it is written."""
        return schema.load_table(str(self.file))

    @cached_property
    def profile(self) -> Profile:
        """That the table holds."""
        name = schema.profile_for(str(self.file))
        if name is None:
            raise UserError(f"{self.file} holds no profile, so it says nothing of images and models.")
        return schema.load_profile(name)

    def plan(self, seeds: int | None = None, methods: Sequence[str] | None = None) -> Plan:
        """Its plan.

        Args:
            seeds: per cell; None: as asked.
            methods: columns, beside the student alone; None: all.
        """
        count = self.profile.seeds if seeds is None else checked_seeds(seeds)
        wanted = self.table.columns
        if methods is not None:
            wanted = tuple(column for column in wanted if column.method in (ALONE, *methods))
        return plan_with(self.table.model_copy(update={"columns": wanted}), self.profile, tuple(range(count)))

    @property
    def methods(self) -> tuple[str, ...]:
        """Its methods, without the student alone."""
        return tuple(column.method for column in self.table.columns if column.method != ALONE)


def checked_seeds(seeds: int) -> int:
    """A number of seeds that can be."""
    if not 1 <= seeds <= SELECTION_SEED:
        raise UserError(f"--seeds is {seeds}; it must be at least 1 and at most {SELECTION_SEED}.")
    return seeds


def own(asked: Asked, tell: Callable[[str], None] = lambda sentence: None) -> Own:
    """The table that is asked for, written into its file, with the cut of the images beside it.

    Args:
        asked: by the user.
        tell: told what is looked at before it takes time.

    Raises:
        UserError: something that cannot be: data, names, weights, methods, numbers, a folder to write to.
    """
    checked_seeds(asked.seeds)
    methods = methods_of(asked.methods)
    recipes = load_recipe(asked.recipe, asked.epochs)
    student, teacher = card_of(asked.student, asked.image_size), card_of(asked.teacher, asked.image_size)
    side = asked.image_size or student.image_size
    tell(f"Looking at the images in {asked.data} ...")
    data = examined(asked.data, side, asked.train_images)
    classes = data.num_classes
    said = [images_said(data)]
    name = slug_of(asked.name or f"{asked.student}-from-{asked.teacher}-{data.folder.name}")
    student_slug, teacher_slug = slugs_of(asked.student, asked.teacher)
    mapping, sentence = teacher_mapping(asked, teacher, classes, methods)
    said.append(sentence)
    start = None
    if asked.student_weights not in (None, "scratch"):
        file = weights_file(asked.student_weights, student, "student")
        weights_in(file)  # a file that holds none is refused before a teacher is trained
        start = TeacherMapping(file=str(file), classes=0)
        said.append(f"Student: starts from {file}; its classifier is new where the classes are others.")
    counts = {part: len(data.entries(part)) for part in ("train", "test")}
    options = {"image_size": side, "n_train": asked.train_images, "expected": {"classes": classes, **counts}}
    used = {"student": fitted(recipes.student, (asked.train_images or 0) * classes or counts["train"])}
    if mapping.recipe is not None:
        used[mapping.recipe] = fitted(getattr(recipes, mapping.recipe) or recipes.student, counts["train"])
    if used["student"].batch_size != recipes.student.batch_size:
        said.append(f"Batches: of {used['student'].batch_size}, so that an epoch of so few images has {STEPS} steps.")
    profile = Profile(
        name=name,
        title="images and models of one's own",
        by_value=False,
        seeds=asked.seeds,
        data={
            DATA: DataMapping(
                name=data.name,
                options={key: value for key, value in options.items() if value is not None},
                teacher_options={} if asked.train_images is None else {"n_train": None},
                path=str(data.folder),
                stand_in=None,
            )
        },
        models={student_slug: asked.student, teacher_slug: asked.teacher, **({START: asked.student} if start else {})},
        sizes={} if asked.image_size is None else dict.fromkeys((student_slug, teacher_slug, START), asked.image_size),
        teachers={teacher_slug: mapping, **({START: start} if start else {})},
        students={student_slug: "student"},
        recipes=used,
        margins={"top1": 1.0},
        captions=tuple(said),
    )
    columns = [Column(method=ALONE, label="alone", teacher=False)]
    columns += [Column(method=method, label=method, gain_over=ALONE) for method in methods]
    row = Row(
        row=f"{student_slug}-from-{teacher_slug}",
        student=student_slug,
        teacher=teacher_slug,
        label=(asked.teacher, asked.student),
        starts_from=START if start else None,
    )
    table = Table(
        id=name,
        paper=name,
        title=f"{asked.student} from {asked.teacher} on {data.folder.name}",
        data=DATA,
        strategy="advanced",
        columns=tuple(columns),
        rows=(row,),
    )
    split = {part: [entry.name for entry in entries] for part, entries in data.held.items()}
    return Own(file=write(table, profile, split, places.tables(name)), said=tuple(said))


# -- parts of it ---------------------------------------------------------------------------------------------------


def methods_of(names: Sequence[str]) -> tuple[str, ...]:
    """The methods that are asked for, `all` as those of ours; each once.

    Raises:
        UserError: an unknown one, or one that does not train a classifier.
    """
    if "all" in names:
        return tuple(dict.fromkeys((*CHEAP_FIRST, *(name for name in names if name not in ("all", ALONE)))))
    for name in names:
        lookup("method", name, METHODS)
        if name in LABEL_FREE | SEVERAL_TEACHERS:
            does = "pre-trains without labels" if name in LABEL_FREE else "asks several teachers"
            raise UserError(
                f"Method '{name}' {does}, and `hkd distill` compares methods that train a classifier with one teacher, "
                f"such as {', '.join(CHEAP_FIRST)}."
            )
    return tuple(dict.fromkeys(name for name in names if name != ALONE))


def load_recipe(name: str, epochs: int | None) -> RecipeFile:
    """A recipe of experiments/recipes, or of a file, with other epochs for students if they are given.

    Raises:
        UserError: there is none, it is not one, or no epochs.
    """
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    path = RECIPES / f"{name}.yaml" if name in known else places.file(name)
    if name not in known and not path.is_file():
        raise UserError(f"There is no recipe '{name}', nor a file of that name.{nearest(name, known)} Known: "
                        f"{', '.join(known)}.")  # fmt: skip
    held = schema.parsed(path, str(path))
    content = schema.plain(held)

    def refused(loc: schema.Loc, message: str) -> UserError:
        return UserError(f"{path}:{schema.line_of(held, loc)}: {schema.named(loc)}: {message}")

    if not isinstance(content, dict):
        raise UserError(f"{path}:1: keys are expected, such as `student: {{epochs: 20, batch_size: 64}}`.")
    if "student" not in content:  # the fields of one recipe, for all
        content = {"student": content}
    found = schema.validated(RecipeFile, content, refused)
    if epochs is None:
        return found
    if not 1 <= epochs <= MOST:
        raise UserError(f"--epochs is {epochs}; it must be from 1 to {MOST}.")
    shorter = {
        part: dict_of(recipe) | {"epochs": epochs, "warmup_epochs": min(recipe.warmup_epochs, epochs / 10)}
        for part in ("student", "teacher", "tune")
        if (recipe := getattr(found, part)) is not None
    }
    return RecipeFile.model_validate({"about": found.about, **shorter})


def fitted(recipe: Recipe, images: int) -> Recipe:
    """The recipe with batches small enough for an epoch of at least `STEPS` steps.

    Args:
        recipe: as it is written.
        images: of training, at least two of them.
    """
    most = max(2, images // STEPS)
    return recipe if recipe.batch_size <= most else Recipe(**{**dict_of(recipe), "batch_size": most})


def dict_of(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe."""
    return {name: getattr(recipe, name) for name in Recipe.__dataclass_fields__}


def examined(folder: Path, side: int, train_images: int | None) -> OwnFolder:
    """The images of a folder, all of them looked at.

    Raises:
        UserError: no folder, no images, one class, an empty class, or images that cannot be read.
    """
    path = places.folder(folder, "--data")
    data = OwnFolder({"image_size": side, **({} if train_images is None else {"n_train": train_images})}, path)
    data.present()
    assert data.held
    if corrupt := data.corrupt():
        raise UserError(unreadable(corrupt))
    there = Counter(entry.label for entry in data.entries("train"))
    label, fewest = min(there.items(), key=lambda item: item[1])
    if train_images is not None and train_images > fewest:
        raise UserError(
            f"--train-images is {train_images} of each class, and '{data.class_names[label]}' has {fewest} to train "
            "on: ask for no more."
        )
    return data


def images_said(data: OwnFolder) -> str:
    """How many images there are of how many classes, and who cut them."""
    counts = {part: len(data.entries(part)) for part in ("train", "val", "test") if part in data.held}
    words = {"train": "to train", "val": "to validate", "test": "to test"}
    parts = ", ".join(f"{count} {words[part]}" for part, count in counts.items())
    options = data.options
    by = (
        "as its folders have them"
        if data.is_cut
        else f"cut within each class, {options.val_share:.0%} and {options.test_share:.0%} apart, by seed "
        f"{options.split_seed}"
    )
    return (
        f"Data: {data.folder}, {data.num_classes} classes, {sum(counts.values())} images: {parts} ({by}), "
        f"{data.image_size} px."
    )


def slug_of(text: str) -> str:
    """A text as a name without dots, spaces and capitals."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:100] or "own"


def slugs_of(student: str, teacher: str) -> tuple[str, str]:
    """Names of two models in a table: different ones for different models, however alike they are as slugs."""
    one, other = slug_of(student), slug_of(teacher)
    if one == other and student != teacher:
        one, other = f"{one[:90]}-student", f"{other[:90]}-teacher"
    one, other = (f"{slug}-model" if slug == START else slug for slug in (one, other))
    return one, other


def teacher_mapping(asked: Asked, card: ModelCard, classes: int, methods: Sequence[str]) -> tuple[TeacherMapping, str]:
    """How the teacher comes to know these classes, and that as a sentence.

    Raises:
        UserError: its weights are not there, or a method compares classes that it has not.
    """
    given = asked.teacher_weights
    if given == "random":
        return TeacherMapping(random=True), "Teacher: random weights, as asked; it knows nothing."
    if given == "scratch" or (given is None and card.pretrained is None):
        why = "" if given else ", since nobody published weights of it"
        return TeacherMapping(recipe="teacher"), f"Teacher: trained on these training images first{why}."
    file = weights_file(given or "pretrained", card, "teacher")
    known = classes_in(file, card)
    if known in (classes, None) and asked.tune is not True:
        return TeacherMapping(file=str(file)), f"Teacher: {file} as it is; its accuracy on the test images is measured."
    if asked.tune is False:
        if copying := [method for method in methods if method in COPIES_OUTPUTS]:
            others = ", ".join(
                method for method in METHODS if method not in COPIES_OUTPUTS | LABEL_FREE | SEVERAL_TEACHERS | {ALONE}
            )
            raise UserError(
                f"Method '{copying[0]}' compares scores of classes, and the teacher has {known} classes where the data "
                f"has {classes}: leave out --no-tune, so that it is tuned to them first, or take methods that read "
                f"features alone ({others})."
            )
        headless = without_classifier(file, card)
        return (
            TeacherMapping(file=str(headless), classes=0, probe=DATA),
            f"Teacher: {file} as it is, without its classifier of {known} classes; what its features know of these "
            "classes is measured by a linear probe.",
        )
    other = f" ({known} classes there, {classes} here)" if known != classes else ""
    return (
        TeacherMapping(recipe="tune", file=str(file)),
        f"Teacher: {file}, tuned to these training images first{other}.",
    )


def weights_file(given: str, card: ModelCard, who: str) -> Path:
    """The file that somebody's weights are in: a path, or where the published ones are on this machine.

    Raises:
        UserError: there is none; the sentence says how to get it.
    """
    if given != "pretrained":
        path = Path(os.path.realpath(places.file(given)))
        if not path.is_file():
            raise UserError(
                f"--{who}-weights is {given}, which is no file; give a .safetensors or .pth file, `pretrained`, or "
                f"`scratch`{' or `random`' if who == 'teacher' else ''}."
            )
        return path
    if card.pretrained is None:
        raise UserError(f"Nobody published weights of {card.name} that are known here: give --{who}-weights FILE.")
    from experiments.weights import on_this_machine

    found, looked = on_this_machine(card)
    if found is None:
        raise UserError(
            f"The published weights of the {who}, {card.pretrained}, are not on this machine (looked for {looked}): "
            f"get them with `hkd weights fetch {card.name}`, or give --{who}-weights FILE, or `scratch` to train it "
            "on these images."
        )
    return found


def weights_in(file: Path) -> "Mapping[str, Tensor]":
    """What a weights file holds, by name; torch takes a second to import."""
    from hkd.models.convert.files import read_weights

    return read_weights(file)


def classes_in(file: Path, card: ModelCard) -> int | None:
    """Size of the classifier in a weights file; None where its model does not tell which of its weights that is."""
    from hkd.models.convert.files import classes_of

    names = classifier(card)
    return classes_of(weights_in(file).get(names[0])) if names else None


def classifier(card: ModelCard) -> list[str]:
    """Names of the weights of a model's classifier."""
    from hkd.models.families.base import family_of
    from hkd.tasks.train import classifier_names

    return classifier_names(family_of(card.family).build(card, 2))


def without_classifier(file: Path, card: ModelCard) -> Path:
    """Weights without those of the classifier, in a file of their own among the weights of this machine."""
    from hkd.models.weights import save_weights

    path = places.runs() / ".weights" / f"{slug_of(card.name)}-features-{sha256(file)[:16]}.safetensors"
    held = {name: tensor for name, tensor in weights_in(file).items() if name not in classifier(card)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(held, path)
    return path


# -- its file ------------------------------------------------------------------------------------------------------


def write(table: Table, profile: Profile, split: Mapping[str, Sequence[str]], folder: Path) -> Path:
    """Write table and profile as one YAML file, and the cut of the images beside it; the path of the former.

    Args:
        table, profile: of one name.
        split: images by part.
        folder: that they are written to; made if needed.

    Raises:
        UserError: they cannot be written.
    """
    path, cut = folder / f"{table.id}.yaml", folder / f"{table.id}.split.csv"
    drop = {"id", "paper"}  # which the name of the file says
    document = table.model_dump(mode="json", exclude_defaults=True, exclude=drop)
    document["profile"] = profile.model_dump(mode="json", exclude_defaults=True, exclude={"name", "by_value"})
    yaml = YAML()
    yaml.width = 4096
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write("# A table of one's own as it was asked for; to run it again: hkd distill FILE\n")
            yaml.dump(document, stream)
        with atomic_write(cut) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(
                [("part", "image"), *((part, image) for part, images in split.items() for image in images)]
            )
    except OSError as error:
        raise UserError(
            f"Cannot write {path} ({error.strerror}); make that folder writable, or name another with --results."
        ) from None
    for cached in (schema.read, schema.document, data_facts, num_classes):  # of an earlier one in this process
        cached.cache_clear()
    return path


def read(path: Path) -> Own:
    """A table of one's own from its file.

    Raises:
        UserError: there is none, or it is not one.
    """
    made = Own(file=path)
    return Own(file=path, said=made.profile.captions)
