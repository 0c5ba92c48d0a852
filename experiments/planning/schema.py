"""Papers, tables and profiles as YAML, read strictly: a mistake is one sentence with its place and the nearest name."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError
from ruamel.yaml import YAML, resolver
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from experiments import places
from experiments.documents import Document, content
from experiments.drawings import DRAWINGS
from experiments.kept import Kept
from experiments.planning import again, quick
from experiments.planning.declared import WORDS, options_of
from experiments.planning.own import OWN, Own, know, known_name
from hkd.errors import UserError
from hkd.options import (
    Count,
    Few,
    NotNegative,
    Number,
    OptionError,
    Positive,
    Size,
    Switch,
    Whole,
    Workers,
    configured,
    fault,
    inside,
    shown,
)
from hkd.outside import found_outside
from hkd.registry import lookup, nearest
from hkd.spec import ModelCard, Recipe
from hkd.training.job import Accelerator
from hkd.units import KINDS

HERE = Path(__file__).resolve().parents[1]  # experiments/
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]  # no dots: DVC reads them as nesting
TeacherName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*(@[a-z0-9][a-z0-9_-]*)?$")]  # slug or slug@data
WeightsName = Annotated[str, Field(min_length=1), AfterValidator(inside)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Options = dict[str, Any]
Seeds = Annotated[int, Strict(), Field(ge=1, le=1000)]  # per cell: seeds from 1000 on choose settings
CONFIDENCE = ("high", "medium", "low")  # in a published value, best first


class Stage(Document):
    """One run of a student: what it is trained or measured by, and what its weights start from.

    Chains (pre-train, then fine-tune, then detect) are stages after stages: `after` is run first, and its checkpoint
    initialises this one.
    """

    method: str
    options: Options = {}  # of the method; what makes a variant wins over row settings and profile
    data: Slug | None = None  # the paper's data set; None: the row's or the table's
    strategy: Slug | None = None  # which recipe of the student; None: the table's
    trains: Switch = True  # False: the task needs no recipe (an evaluation, an analysis)
    task: str = "train"
    task_options: Options = {}
    teacher: bool | Slug | dict[str, Slug] = True  # True: the row's; False: none; or others, by role
    after: "Stage | None" = None
    starts_from: Slug | None = None  # instead of `after`: a teacher of the profile whose weights the row's model takes


class Column(Stage):
    """One printed column: a method, possibly a variant of it.

    Its published value stands in the table's own published table, or in that of `source`, which may be another paper's
    (a method is printed by every paper that compares with it). The row's `published` and the column's `select` together
    say which row of it; `select` wins. A field that is null there selects rows without it.
    """

    label: str
    variant: Slug | Literal[""] = ""
    metrics: tuple[str, ...] | None = None  # those of this column; None: the table's
    published: str | dict[str, str] | None = None  # key into the published row's values, or one per metric
    source: str | None = None  # `<paper>/<table>` of the published value; None: the table's
    select: Options = {}  # fields that select its published row, beside the row's
    added: Switch = False  # not in the paper
    quoted: Switch = False  # printed from the paper, nothing to run
    gain_over: str | None = None  # method (or variant's `method/variant`) of the same row; a row's own comes first


class Row(Document):
    """One printed row. `published` selects a row of the published table by its fields."""

    row: Slug
    student: Slug
    teacher: Slug | dict[str, Slug] | None = None  # one teacher, or teachers by role
    label: tuple[str, str]  # teacher, student as printed
    published: Options | None = None
    settings: dict[str, Options] = {}  # per method: the paper's settings for this pair
    columns: tuple[Column, ...] | None = None  # instead of the table's
    metrics: tuple[str, ...] | None = None  # of columns that have none of their own, instead of the table's
    data: Slug | None = None
    after: Stage | None = None  # what every column that starts from nothing else starts from
    starts_from: Slug | None = None  # likewise: a teacher of the profile
    gain_over: Slug | None = None  # another row: gains are over the same column there

    @property
    def teachers(self) -> dict[str, str]:
        """Teacher slugs by role; a single teacher has the role "teacher"."""
        if self.teacher is None:
            return {}
        return {"teacher": self.teacher} if isinstance(self.teacher, str) else dict(self.teacher)


class Again(Document):
    """What a table without rows of its own measures again: the finished classifiers of another one, by a task."""

    of: str
    task: Slug = "robustness"
    task_options: Options = {}


class Table(Document):
    """A table (or figure) of a paper: which cells it has. Where they are measured is the profile's business."""

    id: Slug
    paper: Slug
    title: str
    kind: Literal["table", "figure"] = "table"
    drawing: Slug | None = None  # of a figure: file in drawings/; None: the one that has the table's name
    published: str | None = None  # id of the table in published/<paper>.yaml
    data: Slug
    metrics: tuple[str, ...] = ("top1",)
    strategy: Slug = "advanced"
    again: Again | None = None  # rows and columns are another table's, whose runs are measured again
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...]
    captions: tuple[str, ...] = ()
    finding: dict[Slug, str] = {}  # by profile: what came out there, in a sentence or two
    profile: str | Options | None = None  # of a user's own table: one of ours, a file beside it, or the profile itself


class DataMapping(Document):
    """What stands for one of the paper's data sets: a data set here, its options, and what teachers see of it."""

    name: str
    options: Options = {}
    teacher_options: Options = {}  # on top of options, for the training of teachers
    path: str | None = None  # the folder that it is in, where that is not below the data root; never identity
    instead: dict[Slug, Slug] = {}  # student or teacher -> another data set of `data`, for rows that have it
    stand_in: str | None = None  # what it is, in a few words; None: the paper's data set itself
    note: str = ""  # for captions


class TeacherMapping(Document):
    """Where a teacher comes from: trained by a run (recipe), a weights file, or random (asked for by name).

    A recipe and a weights file together: fine-tuned from the file. The training is supervised unless a method is given.
    A teacher without a classifier has no accuracy of its own; `probe` names labelled data on which a linear classifier
    on its frozen features is measured before it teaches.
    """

    recipe: str | None = None
    seed: Whole = 0
    task: str = "train"
    method: str = "supervised"
    options: Options = {}
    weights: WeightsName | None = None  # file name in the weights folder
    file: str | None = None  # instead: a path of a weights file that is elsewhere
    random: Switch = False
    data: Slug | None = None  # the paper's data set it is trained on; None: the student's
    classes: Whole | None = None  # of its classifier; None: the data's; 0: none, and then it has no accuracy to measure
    probe: Slug | None = None  # the paper's data set of a linear probe


class Machine(Document):
    """How one run uses machines; never part of a run's identity. The fields of `hkd.training.job.Runtime`."""

    accelerator: Accelerator = "auto"
    devices: Few = 1
    num_nodes: Few = 1
    loader_workers: Workers = 0
    micro_batch: Count | None = None  # images of one forward pass on a device, at most; the rest is accumulated
    checkpoint_every_s: NotNegative = 5.0
    tf32: Switch = False
    cudnn_benchmark: Switch = False
    channels_last: Switch = False
    compile: Switch = False


Points = Annotated[float, Strict(), Field(gt=0, le=100)]  # of a metric in percent


class Assay(Document):
    """What a set-up must show of itself before gains that are measured on it say anything (results/assay.py).

    The student alone lies between `chances` times chance (see `assay.least`) and `ceiling`; a teacher is `lead` better
    than a student that copies its outputs; at least one of the columns that are known to help elsewhere (`controls`, by
    `method/variant` or `method`; `table_controls` for single tables) has a decided mean gain; metrics of dense tasks
    reach `floors`.
    """

    chances: Annotated[float, Field(ge=1)] = 3.0
    ceiling: Points = 97.0
    lead: Annotated[float, Field(ge=0)] = 2.0
    controls: tuple[str, ...] = ()
    table_controls: dict[Slug, tuple[str, ...]] = {}
    floors: dict[str, Points] = {}

    def controls_of(self, table: str) -> tuple[str, ...]:
        """Positive control columns of a table; some of them may not be in it."""
        return self.table_controls.get(table, self.controls)


class Profile(Document):
    """The scale at which tables are reproduced: maps the paper's data, models and recipes to concrete ones.

    A teacher that is another one on another data set has an entry for it, `slug@data`; elsewhere it is `slug`.
    """

    name: Slug
    extends: str | None = None  # another profile, in which what is said here is changed: see `joined`
    alone: tuple[str, ...] = ()  # keys of which nothing is taken from that profile
    title: str
    by_value: Switch  # compare values (the paper's setting) or only directions
    seeds: Seeds  # per cell
    table_seeds: dict[Slug, Seeds] = {}  # of these tables instead
    table_rows: dict[Slug, tuple[Slug, ...]] = {}  # that these tables have here; others have all their models allow
    table_devices: dict[Slug, Few] = {}  # of a run of these tables, of one node, instead of the machine's
    data: dict[Slug, DataMapping]
    models: dict[Slug, str]  # the paper's model -> a name that hkd.models.cards.named knows, or of a card of its own
    sizes: dict[Slug, Size] = {}  # side in px of the images of these, where they take any
    cards: dict[str, ModelCard] = {}  # of its own, by name
    model_kind: str | None = None  # what the models are that stand in ("miniature"); None: the paper's own
    heads: dict[str, str] = {}  # a head that papers name -> what stands in for it
    teachers: dict[TeacherName, TeacherMapping]
    students: dict[Slug, str | dict[Slug, str]]  # the paper's student -> recipe, or one per strategy
    recipes: dict[str, Recipe]
    override: Options = {}  # recipe fields that replace those of every recipe
    methods: dict[str, Options] = {}  # settings of methods at this scale
    tasks: dict[str, Options] = {}  # settings of tasks at this scale
    machine: Machine = Machine()
    captions: tuple[str, ...] = ()
    margins: dict[str, Points] = {}  # by metric: effects inside ± this are none that matters
    assay: Assay = Assay()
    chosen: str = ""  # how settings were chosen, as a sentence for captions

    def entry(self, data: str, models: Iterable[str]) -> str:
        """The entry of `data` for a row of these models: `data` itself, unless that names another for one of them."""
        instead = self.data[data].instead if data in self.data else {}
        return next((instead[model] for model in models if model in instead), data)

    def machine_of(self, table: str) -> Machine:
        """How the runs of a table use machines."""
        devices = self.table_devices.get(table)
        return self.machine if devices is None else self.machine.model_copy(update={"devices": devices, "num_nodes": 1})

    def teacher(self, slug: str, data: str) -> TeacherMapping | None:
        """The teacher of students of a data set (the paper's slug), if this profile has it."""
        return self.teachers.get(f"{slug}@{data}", self.teachers.get(slug))


class Params(Document):
    """params.yaml. seeds: per cell, None takes the profile's. recipe: fields to override in every student's recipe."""

    profile: Annotated[str, Strict(), Field(min_length=1)] = "laptop"
    seeds: Seeds | None = None
    recipe: Options = {}


class Names(Document):
    """Names in print of data sets and models, and sizes of models that stand in for the papers' own.

    data: the name of each of the papers' data sets, then other names that titles and labels have for it. parts: names
        of what is used of them under a slug of its own. heads: that titles and labels name, and their data set.
    """

    data: dict[Slug, Annotated[tuple[str, ...], Field(min_length=1)]]
    parts: dict[Slug, str]
    heads: dict[str, Slug]
    models: dict[Slug, str]
    parameters: dict[str, Positive]  # name of a card, the zoo's or a profile's -> millions, without a classifier


class TeacherEntry(Document):
    """A teacher as it is published. Weights are timm's `name.tag`; None: made here from those of the slug alone."""

    weights: str | None = None
    licence: str | None = None
    sha256: Sha256 | None = None  # of the file that `hkd weights fetch` writes; None: never fetched
    published: Annotated[Number, Field(ge=0, le=100)] | None = None  # top-1 in percent
    source: str | None = None  # of the published accuracy


class Manifest(Document):
    """All teachers, by slug or `slug@data`."""

    teachers: dict[TeacherName, TeacherEntry]


class PublishedRow(BaseModel):
    """A published row: `values` are numbers, `source` says where they were read, other fields select the row."""

    model_config = ConfigDict(extra="allow", frozen=True)
    values: dict[str, Number | None]
    source: str
    confidence: Literal["high", "medium", "low"] = "high"
    note: str | None = None

    def matches(self, fields: Options) -> bool:
        """Whether every given field has the given value here."""
        return all((self.model_extra or {}).get(name) == value for name, value in fields.items())


class PublishedTable(BaseModel):
    """A published table; `complete: false` where only some of its cells were found, so that cells may have no row."""

    model_config = ConfigDict(extra="allow", frozen=True)
    id: str
    title: str
    rows: tuple[PublishedRow, ...]
    complete: Switch = False


class Published(BaseModel):
    """All published values of one paper."""

    model_config = ConfigDict(extra="allow", frozen=True)
    paper: dict[str, Any]
    tables: tuple[PublishedTable, ...]
    missing_tables: tuple[dict[str, Any], ...] = ()
    recipes: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def table(self, name: str) -> PublishedTable:
        """The table with this id; UserError with the nearest id otherwise."""
        return lookup("published table", name, {table.id: table for table in self.tables})


# By key of a profile: what makes an entry a whole one, which takes the place of the extended profile's (see `joined`).
WHOLE: dict[str, tuple[frozenset[str], ...]] = {
    "data": (frozenset({"name"}),),
    "cards": (frozenset({"family", "arch"}),),
    "teachers": tuple(frozenset({origin}) for origin in ("recipe", "weights", "file", "random")),
}
MOST_NUMBER = 1e300  # and least, with a minus; whoever reads the number has bounds of its own
MOST_DEPTH = 40  # of mappings and lists in a file
MOST_VALUES = 200_000  # in a file
MOST_TEXT = 2**20  # characters of a file
NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # characters that cannot be printed, or written
T = TypeVar("T", bound=BaseModel)
Loc = tuple[str | int, ...]  # keys and places from the top of a document


def table_ids() -> list[str]:
    """Ids of all tables and figures, sorted."""
    return names("tables")


def names(folder: str) -> list[str]:
    """Stems of the YAML files in a folder of this package, sorted."""
    place = HERE / folder
    return list(_stems(place, place.stat().st_mtime_ns) if place.is_dir() else ())


@cache
def _stems(place: Path, changed: int) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in place.glob("*.yaml")))


def load_table(name: str) -> Table:
    """experiments/tables/<name>.yaml, or a file of the user's own, with its methods and their options checked."""
    name = known_name("tables", name, names("tables"))
    table: Table = read("table", "tables", name, Table)
    if table.id != name:
        raise UserError(f"{where('tables', name)}: id is '{table.id}', but the file is named '{name}'.")
    slugs = [row.row for row in table.rows]
    for i, slug in enumerate(slugs):
        if slug in slugs[:i]:
            raise complaint("tables", name, ("rows", i, "row"), f"row '{slug}' appears twice.")
    for loc, stage in stages(table):
        check_options("tables", name, (*loc, "options"), "method", stage.method, stage.options)
        check_options("tables", name, (*loc, "task_options"), "task", stage.task, stage.task_options)
    for i, row in enumerate(table.rows):
        for method, options in row.settings.items():
            check_options("tables", name, ("rows", i, "settings", method), "method", method, options)
    if table.kind == "figure":
        checked("tables", name, ("drawing",), "drawing", table.drawing or name, DRAWINGS)
    check_references(table)
    return table


def profile_for(name: str) -> str | None:
    """The profile that a user's own table names or holds; None where it leaves that open, as ours do.

    Raises:
        UserError: the table cannot be read, or its profile file is not there.
    """
    name = known_name("tables", name, names("tables"))
    table, file = read("table", "tables", name, Table), OWN.get(("tables", name))
    if table.profile is None:
        return None if table.again is None else profile_for(table.again.of)
    if file is None:
        raise complaint("tables", name, ("profile",), "tables of the suite are for all profiles; leave this out.")
    if isinstance(table.profile, str):
        try:
            return known_name("profiles", table.profile, names("profiles"), file.path)
        except UserError as error:
            raise complaint("tables", name, ("profile",), str(error)) from None
    if name in names("profiles"):
        raise complaint("tables", name, ("profile",), "the suite has a profile of this name; rename the file.")
    know("profiles", name, Own(file.path, file.shown, "profile"))
    return name


def check_references(table: Table) -> None:
    """Refuse names that lead nowhere: models, data, baselines and published values that do not exist anywhere.

    A user's own table may also use what its profile and others of the user's own, that were asked for, have.
    """
    profiles = [read_profile(profile) for profile in names("profiles")]
    if ("tables", table.id) in OWN:
        mine = [profile_for(table.id), *(name for folder, name in OWN if folder == "profiles")]
        profiles += [read_profile(profile) for profile in dict.fromkeys(mine) if profile is not None]
    models = {slug for profile in profiles for slug in profile.models}
    data = {slug for profile in profiles for slug in profile.data}
    checked("tables", table.id, ("data",), "data set", table.data, data)
    for i, row in enumerate(table.rows):
        for slug in (row.student, *row.teachers.values()):
            checked("tables", table.id, ("rows", i), "model", slug, models)
        if row.gain_over is not None:
            checked("tables", table.id, ("rows", i, "gain_over"), "row", row.gain_over, [r.row for r in table.rows])
        columns = table.columns if row.columns is None else row.columns
        cells = {f"{column.method}/{column.variant}".removesuffix("/") for column in columns}
        for j, column in enumerate(columns):
            loc = ("columns", j) if row.columns is None else ("rows", i, "columns", j)
            if column.gain_over:
                checked("tables", table.id, (*loc, "gain_over"), "baseline", column.gain_over, cells)
            check_published(table, row, column, ("rows", i, "published"), loc)
        papers = {source_of(table, column)[0] for column in columns if column.published}
        known = [r for paper in sorted(papers) for each in load_published(paper).tables for r in each.rows]
        check_selected(table, ("rows", i, "published"), (row.published or {}) if papers else {}, known)


def check_published(table: Table, row: Row, column: Column, row_loc: Loc, loc: Loc) -> None:
    """Refuse sources, selections and keys of published values that lead nowhere."""
    try:
        printed = published_table(table, column)
        found = published_row(table, row, column)
    except UserError as error:
        raise complaint("tables", table.id, (*loc, "source") if column.source else row_loc, str(error)) from None
    if printed is None or row.published is None or column.published is None:
        return
    check_selected(table, (*loc, "select"), column.select, list(printed.rows))
    keys = {key for r in ([found] if found else printed.rows) for key in r.values}
    for key in [column.published] if isinstance(column.published, str) else column.published.values():
        checked("tables", table.id, (*loc, "published"), "published value", key, keys)


def check_selected(table: Table, loc: Loc, fields: Options, rows: "list[PublishedRow]") -> None:
    """Refuse what no published row has: an incomplete table may lack a cell, but a name that it never has is a typo."""
    for name, value in fields.items():
        if not any(row.matches({name: value}) for row in rows):
            known = [str(row.model_extra[name]) for row in rows if row.model_extra and name in row.model_extra]
            raise complaint(
                "tables", table.id, (*loc, name), f"no published row has {name} '{value}'.{nearest(str(value), known)}"
            )


def source_of(table: Table, column: Column) -> tuple[str, str | None]:
    """(paper, id of its published table) that a column's values stand in; no id where nothing is published."""
    if column.source is None:
        return table.paper, table.published
    paper, _, name = column.source.partition("/")
    return paper, name


def published_table(table: Table, column: Column) -> "PublishedTable | None":
    """The published table of a column, if there is one; UserError for a paper or table that does not exist."""
    paper, name = source_of(table, column)
    return None if name is None else load_published(paper).table(name)


def published_row(table: Table, row: Row, column: Column) -> "PublishedRow | None":
    """The published row that a cell's value stands in; None if nothing is published for the cell.

    Of several rows the one of highest confidence counts: papers that copy from one another disagree.

    Raises:
        UserError: a complete table has no such row, or several are equally good.
    """
    printed = published_table(table, column)
    if printed is None or row.published is None or column.published is None:
        return None
    fields = {**row.published, **column.select}
    found = [r for r in printed.rows if r.matches(fields)]
    best = min((CONFIDENCE.index(r.confidence) for r in found), default=0)
    found = [r for r in found if CONFIDENCE.index(r.confidence) == best]
    if len(found) > 1 or (printed.complete and not found):
        raise UserError(
            f"row '{row.row}' selects {len(found) or 'no'} rows of published table '{printed.id}' by {fields}; "
            f"it must select one."
        )
    return found[0] if found else None


def stages(table: Table) -> list[tuple[Loc, Stage]]:
    """Every stage that a table file asks to be run, with its place."""
    found: list[tuple[Loc, Stage]] = []

    def visit(stage: Stage | None, loc: Loc) -> None:
        if stage is not None and not getattr(stage, "quoted", False):
            found.append((loc, stage))
            visit(stage.after, (*loc, "after"))

    for i, column in enumerate(table.columns):
        visit(column, ("columns", i))
    for i, row in enumerate(table.rows):
        visit(row.after, ("rows", i, "after"))
        for j, column in enumerate(row.columns or ()):
            visit(column, ("rows", i, "columns", j))
    return found


FOUND_RIGHT: dict[str, Profile] = {}  # profiles that were checked, as they were read


def load_profile(name: str) -> Profile:
    """experiments/profiles/<name>.yaml, with recipes, models and all options checked."""
    name = known_name("profiles", name, names("profiles"))
    profile = read_profile(name)
    if FOUND_RIGHT.get(name) is not profile:
        check_profile(name, profile)
        FOUND_RIGHT[name] = profile
    return profile


def check_profile(name: str, profile: Profile) -> None:
    """Refuse a profile that names what there is not, or gives it options that it cannot have."""
    from hkd.models.cards.zoo import ZOO

    for slug, card in profile.cards.items():
        checked("profiles", name, ("cards", slug, "family"), "model family", card.family, KINDS["family"])
    for key in ("table_seeds", "table_rows", "table_devices"):
        for table in getattr(profile, key):
            checked("profiles", name, (key, table), "table", table, table_ids())
    for table in profile.assay.table_controls:
        checked("profiles", name, ("assay", "table_controls", table), "table", table, table_ids())
    for key, columns in [("controls", profile.assay.controls), *profile.assay.table_controls.items()]:
        for column in columns:
            check_unit("profiles", name, ("assay", key), "method", column.partition("/")[0])
    for method, options in profile.methods.items():
        check_options("profiles", name, ("methods", method), "method", method, options)
    for task, options in profile.tasks.items():
        check_options("profiles", name, ("tasks", task), "task", task, options)
    check_recipe(profile.override, lambda loc, message: complaint("profiles", name, ("override", *loc), message))
    for slug, model in profile.models.items():
        if ("profiles", name) not in OWN:  # whose models may be timm's, or made by a factory: seen when it is planned
            checked("profiles", name, ("models", slug), "model", model, {**ZOO, **profile.cards})
    check_stand_ins(profile)
    for slug, data in profile.data.items():
        check_unit("profiles", name, ("data", slug, "name"), "data", data.name)
        for key in ("options", "teacher_options"):
            check_options("profiles", name, ("data", slug, key), "data", data.name, getattr(data, key))
        for model, other in data.instead.items():
            checked("profiles", name, ("data", slug, "instead", model), "model", model, profile.models)
            checked("profiles", name, ("data", slug, "instead", model), "data set", other, profile.data)
    for slug, recipes in profile.students.items():
        for recipe in [recipes] if isinstance(recipes, str) else recipes.values():
            checked("profiles", name, ("students", slug), "recipe", recipe, profile.recipes)
    for slug, teacher in profile.teachers.items():
        if "@" in slug:
            checked("profiles", name, ("teachers", slug), "data set", slug.partition("@")[2], profile.data)
        file = teacher.weights or teacher.file
        if not (teacher.recipe or file or teacher.random) or (teacher.random and file):
            raise complaint("profiles", name, ("teachers", slug), "give a recipe, a weights file, or random: true.")
        check_options("profiles", name, ("teachers", slug, "options"), "method", teacher.method, teacher.options)
        checked("profiles", name, ("teachers", slug, "task"), "task", teacher.task, KINDS["task"])
        for key in ("data", "probe"):
            if (other := getattr(teacher, key)) is not None:
                checked("profiles", name, ("teachers", slug, key), "data set", other, profile.data)
        if teacher.recipe:
            checked("profiles", name, ("teachers", slug, "recipe"), "recipe", teacher.recipe, profile.recipes)


def check_stand_ins(profile: Profile) -> None:
    """Refuse data and models that stand in for the paper's own without words for it, and words where nothing does.

    The paper's own are those of the profiles whose values are compared. A user's own profile may have data and models
    that no paper has; of those nothing is said.
    """
    known = load_names()
    own_file = ("profiles", profile.name) in OWN
    own = [each for each in map(read_profile, names("profiles")) if each.by_value]

    def refused(loc: tuple[str, ...], message: str) -> UserError:
        return complaint("profiles", profile.name, loc, message)

    for slug, data in profile.data.items():
        if own_file and not any(slug in each.data for each in own):
            continue
        if profile.by_value and slug not in {**known.data, **known.parts}:
            raise refused(("data", slug), "this data set has no name in experiments/manifests/names.yaml.")
        same = [each.data[slug] for each in own if slug in each.data]
        is_own = any((data.name, data.options) == (each.name, each.options) for each in same)
        if data.stand_in is None and not is_own:
            raise refused(("data", slug), "say in stand_in what stands in for the paper's data set.")
        if data.stand_in is not None and is_own:
            raise refused(("data", slug, "stand_in"), "this is the paper's data set itself; leave stand_in out.")
    others = [
        (slug, model)
        for slug, model in profile.models.items()
        if all(each.models.get(slug) != model for each in own)
        and not (own_file and not any(slug in each.models for each in own))
    ]
    for slug, model in others:
        if profile.model_kind is None:
            raise refused(("models", slug), f"'{model}' is not the paper's model: say in model_kind what it is.")
        if model not in known.parameters and not own_file:
            raise refused(("models", slug), f"'{model}' has no size in experiments/manifests/names.yaml.")
    if profile.model_kind is not None and not others and not own_file:
        raise refused(("model_kind",), "all models are the paper's; leave model_kind out.")
    for head in profile.heads:
        checked("profiles", profile.name, ("heads", head), "head", head, known.heads)
    if profile.by_value and profile.heads:
        raise refused(("heads",), "values are compared at this profile: nothing may stand in.")


def read_profile(name: str) -> Profile:
    """experiments/profiles/<name>.yaml, its names unchecked."""
    return read("profile", "profiles", name, Profile)


def load_names() -> Names:
    """experiments/manifests/names.yaml."""
    return read("manifest", "manifests", "names", Names)


def load_published(paper: str) -> Published:
    """experiments/published/<paper>.yaml."""
    return read("paper", "published", paper, Published)


def load_manifest() -> Manifest:
    """experiments/manifests/teachers.yaml."""
    return read("manifest", "manifests", "teachers", Manifest)


@cache
def read(kind: str, folder: str, name: str, model: type[T]) -> T:
    """A YAML file of this package, or one of the user's own that was named before, as a validated document."""
    file = OWN.get((folder, name))
    if name not in names(folder) and file is None and not without_file(folder, name):
        known = ", ".join(names(folder))
        raise UserError(f"Unknown {kind} '{name}'.{nearest(name, names(folder))} Known: {known}.")
    content = contents(folder, name)
    if file is not None and isinstance(content, dict):
        content = completed(folder, name, content)
    if isinstance(content, dict) and isinstance(content.get("extends"), str):
        check_extends(folder, name)
        base = read(kind, folder, content["extends"], model).model_dump(exclude_unset=True, exclude={"alone"})
        alone = content.get("alone")
        for i, key in enumerate(alone if isinstance(alone, list) else ()):
            checked(folder, name, ("alone", i), "key", str(key), model.model_fields)
            base.pop(key, None)
        content = joined(base, content)
    if folder == "tables" and isinstance(content, dict) and "again" in content:
        content = measured_again(name, content)
    return validated(model, content, lambda loc, message: complaint(folder, name, loc, message))


def without_file(folder: str, name: str) -> bool:
    """Whether a name is that of a table without a file, which measures again what another one has trained."""
    base = again.base_of(name) if folder == "tables" else None
    known = lambda each: each in names(folder) or (folder, each) in OWN  # noqa: E731
    return base is not None and known(base) and not known(name)


def measured_again(name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A table's document with the rows of the table that it measures again.

    Raises:
        UserError: no such table, one that measures again itself or trains no classifier, or rows of its own.
    """

    def refused(loc: Loc, message: str) -> UserError:
        if without_file("tables", name):
            return UserError(f"Table {message}")
        return complaint("tables", name, loc, message)

    asked: Again = validated(Again, content["again"], lambda loc, message: refused(("again", *loc), message))
    if own := [key for key in ("rows", "columns") if key in content]:
        raise refused((own[0],), f"rows and columns are those of '{asked.of}'; leave this out.")
    file = OWN.get(("tables", name))
    try:
        of = known_name("tables", asked.of, names("tables"), file.path if file else None)
        base: Table = read("table", "tables", of, Table)
    except UserError as error:
        raise refused(("again", "of"), str(error)) from None
    if base.again is not None:
        raise refused(("again", "of"), f"'{of}' measures again itself; name the table that trains.")
    found = again.expanded(content, base)
    if not found["rows"]:
        raise refused(("again", "of"), f"'{of}' trains no classifier, and of others no robustness is measured.")
    for i, metric in enumerate(found["metrics"] if asked.task == "robustness" else ()):
        checked("tables", name, ("metrics", i), "metric", metric, again.METRICS)
    return found


def joined(base: Mapping[str, Any], own: Mapping[str, Any], loc: tuple[str, ...] = ()) -> dict[str, Any]:
    """A document with what another changes in it: mappings are joined at every depth, all else is replaced.

    An entry that is whole by itself (`WHOLE`: data with a name, a teacher with an origin, a card with an architecture)
    is another one, of which nothing of the extended document's is kept.

    Args:
        base: the document that is extended.
        own: what is said anew.
        loc: keys from the top of both.
    """
    found = dict(base)
    for key, value in own.items():
        held = found.get(key)
        whole = isinstance(value, dict) and len(loc) == 1 and any(each <= {*value} for each in WHOLE.get(loc[0], ()))
        both = isinstance(held, dict) and isinstance(value, dict) and not whole
        found[key] = joined(held, value, (*loc, key)) if both else value  # type: ignore[arg-type]
    return found


def completed(folder: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
    """A user's own document with what its file says by its name, or ours alone need to say."""
    if folder == "tables":
        return {"id": name, "paper": name, **content}
    if isinstance(cards := content.get("cards"), str):
        beside = OWN[folder, name].path.parent / cards
        cards = plain(parsed(beside, str(beside)))
    if isinstance(cards, dict):
        cards = {key: {"name": key, **card} if isinstance(card, dict) else card for key, card in cards.items()}
    mine = {
        "name": name,
        "title": name,
        "by_value": False,
        "chosen": "",
        "alone": ["table_seeds", "table_rows"],
        "captions": [],
    }
    return mine | content | ({} if cards is None else {"cards": cards})


def check_extends(folder: str, name: str) -> None:
    """Refuse a document that extends itself, through others or not."""
    line = [name]
    while isinstance(held := contents(folder, line[-1]), dict) and held.get("extends") in names(folder):
        line.append(held["extends"])
        if line[-1] in line[:-1]:
            chain = "' extends '".join(line[line.index(line[-1]) :])
            raise complaint(folder, name, ("extends",), f"'{chain}': one of them must extend nothing.")


def load_params(path: Path | None = None) -> Params:
    """The parameters in the repository's params.yaml (or another file); null, or no such file: the defaults.

    Raises:
        UserError: not YAML, an unknown key (the sentence has the line and the nearest key), or a value that cannot be.
    """
    path = path or places.repository() / "params.yaml"
    if not os.path.lexists(path):
        return Params()
    try:
        changed = path.stat()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}).") from error
    held = _params(path, changed.st_mtime_ns, changed.st_size)
    if not isinstance(held, dict):
        raise UserError(f"{path.name}:1: keys are expected, such as `profile: laptop`.")

    def refused(loc: Loc, message: str) -> UserError:
        return UserError(f"{path.name}:{line_of(held, loc)}: {named(loc)}: {message}")

    found = validated(Params, {key: value for key, value in plain(held).items() if value is not None}, refused)
    check_recipe(found.recipe, lambda loc, message: refused(("recipe", *loc), message))
    return found


@cache
def _params(path: Path, changed: int, size: int) -> Any:
    return parsed(path, path.name) or {}  # once: planning all tables asks for each


def validated(model: type[T], content: Any, refused: Callable[[Loc, str], UserError]) -> T:
    """A document of these contents. refused: makes an error of a place in it and a sentence."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        loc, message = fault(error)
        if error.errors()[0]["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = [key for key in valid_keys(model) if key != loc[-1]]  # a key of another part of the document
            message = f"unknown key '{loc[-1]}'.{nearest(str(loc[-1]), known)}"
        raise refused(loc, message) from None


def contents(folder: str, name: str) -> Any:
    """The YAML document as ordinary dicts, lists and scalars."""
    if (folder, name) not in OWN:
        with suppress(OSError, ValueError, UserError, quick.Doubtful):  # whatever is wrong, `document` says where
            text = content(HERE / folder / f"{name}.yaml", MOST_TEXT)
            if (found := kept().get(text)) is None:
                held = quick.read(text.decode("utf-8-sig"))
                check_content(held, name)
                found = plain(held)
                kept().put(text, found)
            return found
    return plain(document(folder, name))


@cache
def kept() -> Kept:
    """Documents of this package that were read and found sound, which takes longer than planning a table of them."""
    return Kept(places.cache(), "documents", [Path(__file__), Path(quick.__file__), Path(resolver.__file__)])


@cache
def document(folder: str, name: str) -> Any:
    """The YAML document with the positions of its keys."""
    if without_file(folder, name):
        return again.document(name)
    if (file := OWN.get((folder, name))) is None:
        return parsed(HERE / folder / f"{name}.yaml", where(folder, name))
    held = parsed(file.path, file.shown)
    return held[file.part] if file.part else held


def parsed(path: Path, shown: str) -> Any:
    """A YAML file with the positions of its keys: mappings, lists, texts, truth values and finite numbers.

    Args:
        path: of the file.
        shown: what it is called in messages.

    Raises:
        UserError: cannot be opened, not UTF-8, no YAML, nested too deeply, too large once its aliases are followed, or
            a value of another kind, such as a date.
    """
    try:
        text = content(path, 4 * MOST_TEXT).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{shown} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{shown}:{line}: not UTF-8: save it so.") from None
    if len(text) > MOST_TEXT or quick.deeper(text, quick.MOST_LEVELS):  # for which the parser would take minutes
        raise UserError(f"{shown} is nested too deeply or longer than {MOST_TEXT:,} characters.")
    try:
        held = YAML(typ="rt").load(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{shown}:{line}: not valid YAML: it has a character that no text has.") from None
    except MarkedYAMLError as error:
        at = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{shown}:{at}: not valid YAML: {error.problem}.") from None
    except RecursionError:
        raise UserError(f"{shown} is nested too deeply; {MOST_DEPTH} levels are the most.") from None
    except (YAMLError, ValueError, TypeError, AttributeError, NotImplementedError) as error:  # a date of month 13, say
        raise UserError(f"{shown} is not valid YAML: {str(error).partition(chr(10))[0][:120]}.") from error
    check_content(held, shown)
    return held


def check_content(held: Any, name: str) -> None:
    """Refuse what `plain` could not make ordinary in a moment: loops and bombs of aliases, and values of odd kinds."""
    sizes: dict[int, int] = {}  # values in each mapping and list, aliases followed; 0 while it is being counted

    def count(node: Any, loc: Loc) -> int:
        if not isinstance(node, dict | list):
            if not (node is None or isinstance(node, bool | int | float | str)) or (
                isinstance(node, int | float) and not -MOST_NUMBER <= node <= MOST_NUMBER
            ):
                text = shown(node) if isinstance(node, int) else str(node)[:40]
                raise refused(loc, f"{text} is no text, truth value or finite number.")
            if isinstance(node, str) and (odd := NO_TEXT.search(node)):
                raise refused(loc, f"a text has the character U+{ord(odd[0]):04X}, which cannot be printed.")
            return 1
        if len(loc) >= MOST_DEPTH:
            raise refused(loc[:1], f"nested too deeply; {MOST_DEPTH} levels are the most.")
        if id(node) not in sizes:
            sizes[id(node)] = 0
            items = node.items() if isinstance(node, dict) else enumerate(node)
            sizes[id(node)] = 1 + sum(count(item, (*loc, key)) for key, item in items)
            if isinstance(node, dict):
                for key in node:
                    count(key if isinstance(key, str) else None, loc)
        if not 0 < sizes[id(node)] <= MOST_VALUES:
            what = "holds itself" if not sizes[id(node)] else f"has more than {MOST_VALUES:,} values"
            raise refused(loc, f"this {what} once its aliases are followed.")
        return sizes[id(node)]

    def refused(loc: Loc, message: str) -> UserError:
        return UserError(f"{name}:{line_of(held, loc)}: {named(loc)}: {message}")

    count(held, ())


def plain(value: Any) -> Any:
    """A round-trip document as ordinary dicts, lists and scalars."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def where(folder: str, name: str) -> str:
    """The file as people write it."""
    if (file := OWN.get((folder, name))) is not None:
        return file.shown
    return f"experiments/{folder}/{name}.yaml"


def complaint(folder: str, name: str, loc: Loc, message: str) -> UserError:
    """A UserError that starts with file, line and key."""
    line = line_of(document(folder, name), loc)
    part = OWN[folder, name].part if (folder, name) in OWN else ""
    return UserError(f"{where(folder, name)}:{line}: {named((*filter(None, [part]), *loc))}: {message}")


def named(loc: Loc) -> str:
    """A place in a document as sentences name it."""
    return ".".join(map(str, loc)) or "the whole"


def line_of(node: Any, loc: Loc) -> int:
    """The line of a place in a document, from 1."""
    line = 1
    for part in loc:
        try:
            positions: Any = node.lc
            line = (positions.key(part) if isinstance(node, dict) else positions.item(part))[0] + 1
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break  # a missing key has no position; the line of what should hold it stands
    return line


def valid_keys(model: type[BaseModel]) -> list[str]:
    """Keys that are right somewhere in a document: all field names of the models (nearest-name search only)."""
    kinds: list[type[BaseModel]] = [
        model,
        Stage,
        Column,
        Row,
        Again,
        DataMapping,
        TeacherMapping,
        TeacherEntry,
        Machine,
        Assay,
    ]
    return sorted({field for kind in kinds for field in kind.model_fields} | set(Recipe.__dataclass_fields__))


def checked(folder: str, name: str, loc: Loc, kind: str, value: str, known: Any) -> None:
    """Refuse a name that is not among the known ones, with its place in the file."""
    if value not in known:
        raise complaint(folder, name, loc, f"unknown {kind} '{value}'.{nearest(value, known)}")


def check_options(folder: str, name: str, loc: Loc, kind: str, unit: str, options: Options) -> None:
    """Refuse units and options that do not exist, and values that these cannot have, with their place in the file.

    What only goes together with options from elsewhere is refused when a table is planned.
    """
    check_part(
        check_unit(folder, name, loc, kind, unit),
        f"{WORDS[kind]} '{unit}'",
        options,
        lambda place, message: complaint(folder, name, (*loc, *place), message),
    )


def check_unit(folder: str, name: str, loc: Loc, kind: str, unit: str) -> type:
    """The options class of a unit; one that there is not, or that cannot be imported, is refused with its place."""
    if found_outside(WORDS[kind].lower(), unit) is None:
        checked(folder, name, loc, WORDS[kind].lower(), unit, KINDS[kind])
    try:
        return options_of(kind, unit)
    except UserError as error:
        raise complaint(folder, name, loc, str(error)) from None


def check_recipe(recipe: Options, refused: Callable[[Loc, str], UserError]) -> None:
    """Refuse fields that no recipe has, and values that they cannot have; null leaves a field as it is."""
    given = {name: value for name, value in recipe.items() if value is not None}
    check_part(Recipe, "Recipe", {"epochs": 1, "batch_size": 1, **given}, refused)


def check_part(kind: type, what: str, options: Mapping[str, Any], refused: Callable[[Loc, str], UserError]) -> None:
    """Refuse each value that cannot be; whether all go together is seen when others have joined them."""
    try:
        configured(kind, what, options)
    except OptionError as error:
        if error.loc:
            raise refused(error.loc, str(error)) from None
