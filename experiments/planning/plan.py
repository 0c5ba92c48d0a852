"""From a table and a profile to runs: which cells the paper prints, and which runs each cell is measured by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from experiments import places
from experiments.planning import schema, standins, tuning
from experiments.planning.declared import settled
from experiments.planning.keys import device_kind, run_key
from experiments.planning.replications import Replicated, replicated
from experiments.planning.schema import Assay, Column, Profile, Row, Stage, Table, TeacherMapping
from experiments.planning.whole import piece
from experiments.records import committed
from experiments.records.environment import device
from hkd.data import DATASETS
from hkd.data.kept import keep_also_in
from hkd.errors import UserError
from hkd.files import weights_sha256
from hkd.models.cards.named import card_of
from hkd.options import OptionError, configured
from hkd.registry import load, lookup
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights

GUESSES = {"top1": 1, "top5": 5}  # classes that a metric lets a model name
MEASURED_ON = "imagenet1k"  # the data set that accuracies in the manifest are of, unless an entry names another
FAR = 5.0  # points below its published accuracy from which a teacher is not the one that was published
SELECTION_SEED = 1000  # seeds from here on choose settings, on validation rows; reported seeds stay below


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a plan.

    needs: keys of the runs that must be done first (teachers, their evaluation, init).
    files: (id, path) of weights that come from files. missing: why it cannot start on this machine, or None; its key is
    that of the committed records then, where they know what is missing.
    """

    key: str
    spec: RunSpec
    needs: tuple[str, ...] = ()
    label: str = ""  # "scalekd-resnet50_from_swin_l seed 0": for people
    files: tuple[tuple[str, str], ...] = ()
    missing: str | None = None
    kind: str = "cpu"  # of device that the key is for, as `device_kind` names it
    data_root: str | None = None  # folder of its data, where that is not the data root of this machine


@dataclass(frozen=True, kw_only=True)
class Published:
    """A value as the paper or its official repository prints it."""

    value: float
    source: str
    confidence: str = "high"  # high, medium, low
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed (or added) cell: a row, a method with its variant, and a metric."""

    row: str  # slug without dots
    teacher: str  # slug; "" where the row has none
    student: str
    method: str
    variant: str  # "" for the method's own defaults
    metric: str
    label: str  # column label, as printed; of data and heads that were not used it says what stood in
    row_label: tuple[str, str]  # (teacher, student), likewise
    printed_label: str = ""  # the column label of the paper itself; "": `label`
    added: bool = False  # not in the paper
    quoted: bool = False  # printed from the paper, nothing to run
    published: Published | None = None
    baseline: tuple[str, str, str] | None = (
        None  # (row, method, variant) that this cell's gain is over; None for baselines
    )
    runs: tuple[str, ...] = ()  # keys, one per seed, in seed order
    refused: str | None = None  # why nothing can be run for this cell
    replicated: tuple[Replicated, ...] = ()  # what third parties measured of the published value
    instead: str = ""  # what its data are, where the profile has others for this row than for its table
    chance: float | None = None  # percent that guessing gives; None where the metric has no such value

    @property
    def pair(self) -> str:
        """Teacher and student as printed, or what a row that has none is called."""
        return " → ".join(filter(None, self.row_label)) or self.row

    @property
    def id(self) -> tuple[str, str, str]:
        return self.row, self.method, self.variant


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A table at a profile, ready to be executed and compared."""

    table: str
    title: str
    paper: str
    profile: str
    by_value: bool  # True: the runs are in the paper's setting, so values are compared; else directions
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    runs: dict[str, PlannedRun]  # by key, dependencies before dependents
    here: str = ""  # what stood in for the paper's data and models, as a sentence; "" where nothing did
    marks: dict[str, tuple[str, str]] = field(default_factory=dict)  # as `standins.model_marks`
    captions: tuple[str, ...] = ()  # sentences that go under the table
    teachers: dict[str, str] = field(default_factory=dict)  # slug@data -> key of the run that measures its accuracy
    kind: str = "cpu"  # of device that its keys are for
    overridden: tuple[str, ...] = ()  # recipe fields replaced for this plan, with their values: "epochs 1"
    margins: dict[str, float] = field(default_factory=dict)  # points, by metric; as `Profile.margins`
    assay: Assay | None = None  # None: cells are judged whatever the set-up
    chosen: str = ""  # as `Profile.chosen`
    expected: dict[str, "Expected"] = field(default_factory=dict)  # by key of the run that measures it
    finding: str = ""  # what came out of the committed records, in a sentence

    @property
    def heading(self) -> str:
        """Title of a picture: the table's, and what stood in on the next line."""
        return "\n".join(filter(None, (self.title, self.here)))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A teacher of published weights, and the top-1 accuracy in percent that is published of them, with its source."""

    teacher: str
    file: str
    top1: float
    source: str

    def refusal(self, top1: float) -> str | None:
        """Why a teacher of this accuracy must not teach, or None."""
        if top1 >= self.top1 - FAR:
            return None
        return (
            f"teacher '{self.teacher}' reaches {top1:.1f} % here, where {self.top1:g} % is published ({self.source}): "
            f"{self.file}, or the images and the order of their classes, is not what it should be."
        )


def plan(
    table_id: str,
    profile: str,
    seeds: int | None = None,
    *,
    recipe: Mapping[str, Any] | None = None,
    select: bool = False,
    kind: str | None = None,
) -> Plan:
    """Plan one table. Imports no torch.

    Args:
        table_id: file name in experiments/tables.
        profile: file name in experiments/profiles.
        seeds: number of seeds; None takes the profile's.
        recipe: fields of every student's recipe to override (None values are ignored); the table is marked by them,
            and values are then not compared.
        select: choose settings: seeds from 1000 on, measured on validation rows.
        kind: of device that keys are for, as `device_kind` names it; None: that of this machine.

    Raises:
        UserError: unknown names or options (with file and line), or no seeds.
    """
    table, chosen = schema.load_table(table_id), schema.load_profile(profile)
    for row in chosen.table_rows.get(table.id, ()):
        schema.checked("profiles", chosen.name, ("table_rows", table.id), "row", row, [each.row for each in table.rows])
    trained = table.id if table.again is None else table.again.of
    count = chosen.table_seeds.get(table.id, chosen.table_seeds.get(trained, chosen.seeds)) if seeds is None else seeds
    if not 1 <= count <= SELECTION_SEED:
        raise UserError(f"seeds must be at least 1 and at most {SELECTION_SEED}, got {count} (params.yaml or --seeds).")
    first = SELECTION_SEED if select else 0
    return plan_with(table, chosen, tuple(range(first, first + count)), recipe=recipe, select=select, kind=kind)


def plan_with(
    table: Table,
    profile: Profile,
    seeds: tuple[int, ...],
    *,
    recipe: Mapping[str, Any] | None = None,
    select: bool = False,
    kind: str | None = None,
) -> Plan:
    """Plan a table at a profile that are both given as documents; otherwise as `plan`."""
    return _Planner(table, profile, seeds, dict(recipe or {}), select, kind).plan()


class _NoMapping(Exception):
    """The profile has nothing to stand for something the table names; the cell is refused with this reason."""


@dataclass
class _Facts:
    """What a run needs beside its spec, collected while the spec is put together."""

    needs: list[str] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    missing: str | None = None
    data_root: str | None = None


@dataclass
class _Teacher:
    """A teacher as it is planned once and asked for by many cells.

    runs: that train it or measure its accuracy. facts: its own; needs are what a student of it waits for. key: of the
    run whose accuracy is the teacher's, or None. expected: as Plan.expected.
    """

    spec: TeacherSpec
    runs: list[PlannedRun]
    facts: _Facts
    key: str | None
    expected: dict[str, Expected]


class _Planner:
    """Collects runs while it walks a table's cells; every run is planned once."""

    def __init__(
        self,
        table: Table,
        profile: Profile,
        seeds: tuple[int, ...],
        recipe: dict[str, Any],
        select: bool,
        kind: str | None = None,
    ):
        self.table, self.profile, self.seeds, self.select = table, profile, seeds, select
        self.split: Literal["test", "val"] = "val" if select else "test"
        self.overrides = {key: value for key, value in recipe.items() if value is not None}
        self.runs: dict[str, PlannedRun] = {}
        self.teachers: dict[str, str] = {}  # as Plan.teachers
        self.tuning = None if select else tuning.load(table.id)  # trials of settings see none that were chosen
        self.expected: dict[str, Expected] = {}  # as Plan.expected
        self.planned_teachers: dict[tuple[str, str], _Teacher] = {}
        self.planned_recipes: dict[tuple[str, str], Recipe] = {}
        self.data_root, self.weights = places.data(), places.weights()  # found once: hundreds of cells ask
        machine = profile.machine_of(table.id)
        self.kind = kind or device_kind(device(machine.accelerator), machine.devices * machine.num_nodes)

    @cached_property
    def known(self) -> committed.Committed | None:
        """The table's committed records: they know data and weights that are not on this machine."""
        path = committed.path_of(places.references(), self.profile.name, self.table.id)
        return committed.read(path) if path.is_file() else None

    @cached_property
    def stated(self) -> dict[str | None, str]:
        """Names (SHA-256) of published weights, by what timm or their authors call them."""
        entries = schema.load_manifest().teachers.values()
        return {entry.weights: entry.sha256 for entry in entries if entry.weights and entry.sha256}

    def plan(self) -> Plan:
        cells = tuple(
            cell
            for row in self.table.rows
            for column in (self.table.columns if row.columns is None else row.columns)
            for cell in self.cells(row, column)
        )
        overridden = self.overridden()
        fewer = self.profile.table_rows.get(self.table.id, ())
        notes = (
            f"{len(fewer)} of its {len(self.table.rows)} rows" if 0 < len(fewer) < len(self.table.rows) else "",
            f"overridden: {', '.join(overridden)}" if overridden else "",
        )
        return Plan(
            table=self.table.id,
            finding=self.table.finding.get(self.profile.name, ""),
            title=standins.titled(self.table.title, self.profile) + "".join(f" ({note})" for note in notes if note),
            paper=self.table.paper,
            profile=self.profile.name,
            by_value=self.profile.by_value and not self.select and not overridden,
            metrics=self.table.metrics,
            seeds=self.seeds,
            cells=cells,
            runs=self.runs,
            here=self.here(cells),
            marks=standins.model_marks(self.profile, self.models()),
            captions=self.table.captions + self.tuned() + self.profile.captions + self.data_notes(),
            teachers=dict(sorted(self.teachers.items())),
            kind=self.kind,
            overridden=overridden,
            expected=self.expected,
            margins=dict(self.profile.margins),
            # Whether a set-up can show a gain is asked where its students are trained; here a lower value may be one.
            assay=self.profile.assay if self.table.again is None else None,
            chosen=self.profile.chosen,
        )

    def overridden(self) -> tuple[str, ...]:
        """Recipe fields that the user replaces, or a profile that is to have the paper's recipes."""
        own = self.profile.override if self.profile.by_value else {}
        return tuple(f"{name} {value}" for name, value in {**own, **self.overrides}.items())

    def here(self, cells: Sequence[Cell]) -> str:
        """What stood in for the data that cells with runs are measured on, and for the models of all runs."""
        if not self.runs:
            return f"Nothing of this table is in profile {self.profile.name}."
        run = {cell.id for cell in cells if cell.runs}
        measured = (
            (self.papers_data(row, column), (row.student, *row.teachers.values()))
            for row in self.table.rows
            for column in (self.table.columns if row.columns is None else row.columns)
            if (row.row, column.method, column.variant) in run
        )
        specs = [run.spec for run in self.runs.values()]
        students = {spec.student.name for spec in specs}
        teachers = {teacher.model.name for spec in specs for teacher in spec.teachers.values()}
        return standins.used(self.profile, measured, students | teachers)

    def models(self) -> list[str]:
        """Students and teachers of the rows, by slug."""
        return list(dict.fromkeys(slug for row in self.table.rows for slug in (row.student, *row.teachers.values())))

    def tuned(self) -> tuple[str, ...]:
        """How loss weights were tuned, where the table has such a file."""
        taught = {tuning.name_of(column): column.label for column in self.table.columns if column.teacher}
        said = tuning.sentence(self.tuning, self.profile.name, taught)
        return () if said is None else (said,)

    def data_notes(self) -> tuple[str, ...]:
        """What stands for each of the paper's data sets, as sentences."""
        stages = [(row, stage) for row in self.table.rows for stage in (row.columns or self.table.columns)]
        slugs = list(dict.fromkeys(self.data_of(row, stage) for row, stage in stages))
        mapped = [self.profile.data[slug] for slug in slugs if slug in self.profile.data]
        return tuple(data.note for data in mapped if data.note)

    def cells(self, row: Row, column: Column) -> list[Cell]:
        """One cell per metric; all share the runs."""
        keys: list[str] = []
        refused = None
        if not column.quoted:
            before = dict(self.runs), dict(self.teachers), dict(self.expected)
            try:
                if row.row not in self.profile.table_rows.get(self.table.id, (row.row,)):
                    raise _NoMapping(f"profile '{self.profile.name}' leaves this row out")
                keys = [self.run(row, column, seed) for seed in self.seeds]
            except _NoMapping as reason:
                refused = str(reason)
                self.runs, self.teachers, self.expected = before  # what only led up to this cell is not run for nothing
            except OptionError as error:
                place = f"Table '{self.table.id}' at profile '{self.profile.name}', row '{row.row}', '{column.label}'"
                raise UserError(f"{place}: {error}") from None
        shared: dict[str, Any] = {
            "row": row.row,
            "teacher": "+".join(row.teachers.values()),
            "student": row.student,
            "method": column.method,
            "variant": column.variant,
            "label": standins.named(column.label, self.profile),
            "printed_label": column.label,
            "row_label": tuple(standins.named(label, self.profile) for label in row.label),
            "added": column.added,
            "quoted": column.quoted,
            "baseline": self.baseline(row, column),
            "runs": tuple(keys),
            "refused": refused,
            "instead": self.instead(row, column),
        }
        return [
            Cell(
                metric=metric,
                published=self.printed(row, column, metric),
                replicated=self.replicated(row, column, metric),
                chance=self.chance(metric, keys),
                **shared,
            )
            for metric in column.metrics or row.metrics or self.table.metrics
        ]

    def instead(self, row: Row, column: Column) -> str:
        """What the data of a cell are where they are not those that the table's other rows have; else ""."""
        paper = self.papers_data(row, column)
        entry = self.data_of(row, column)
        return "" if entry == paper else self.profile.data[entry].stand_in or standins.data_name(entry)

    def chance(self, metric: str, keys: Sequence[str]) -> float | None:
        """Percent that guessing gives; None where the metric has no such value, or nothing is run."""
        if metric not in GUESSES or not keys:
            return None
        run = self.runs[keys[0]]
        root = self.data_root if run.data_root is None else Path(run.data_root)
        classes = num_classes(run.spec.data.name, json.dumps(run.spec.data.options, sort_keys=True), root)
        return 100 * min(1.0, GUESSES[metric] / classes)

    def baseline(self, row: Row, column: Column) -> tuple[str, str, str] | None:
        """Which cell the gain of this one is over."""
        if row.gain_over is not None:
            return row.gain_over, column.method, column.variant
        if column.gain_over is None:
            return None
        method, _, variant = column.gain_over.partition("/")
        return row.row, method, variant

    def printed(self, row: Row, column: Column, metric: str) -> Published | None:
        """The published value of a cell, if the paper's file has it."""
        found = schema.published_row(self.table, row, column)
        if found is None or column.published is None:
            return None
        key = column.published if isinstance(column.published, str) else column.published.get(metric)
        value = found.values.get(key) if key else None
        if value is None:
            return None
        return Published(value=value, source=found.source, confidence=found.confidence, note=found.note)

    def replicated(self, row: Row, column: Column, metric: str) -> tuple[Replicated, ...]:
        """What third parties measured of a cell's published value."""
        table, found = schema.published_table(self.table, column), schema.published_row(self.table, row, column)
        if table is None or found is None:
            return ()
        return replicated(schema.source_of(self.table, column)[0], table, found, metric)

    # -- runs ---------------------------------------------------------------------------------------------

    def run(self, row: Row, column: Column, seed: int) -> str:
        """The key of one cell's run; what it needs is planned before it."""
        stage: Stage = column
        if column.after is None and column.starts_from is None:
            stage = column.model_copy(update={"after": row.after, "starts_from": row.starts_from})
        return self.stage(row, stage, column.variant, seed)

    def stage(self, row: Row, stage: Stage, variant: str, seed: int) -> str:
        """Plan the run of a column, or of a stage before it, with its teachers and what it starts from."""
        data = self.data_of(row, stage)
        facts = _Facts()
        init = None
        if stage.after is not None:
            # What only measures is of the variant that it measures.
            key = self.stage(row, stage.after, "" if stage.trains else variant, seed)
            facts.needs.append(key)
            init = Weights(kind="run", id=key)
        elif stage.starts_from is not None:
            init = self.teacher(stage.starts_from, data, facts).weights
        roles = row.teachers if stage.teacher is True else roles_of(stage.teacher)
        teachers = {role: self.teacher(slug, data, facts) for role, slug in roles.items()}
        spec = RunSpec(
            task=stage.task,
            data=self.data(data, facts, teacher=False),
            student=self.model(row.student),
            method=MethodSpec(
                name=stage.method, options=settled("method", stage.method, self.options(row, stage, variant))
            ),
            recipe=self.student_recipe(row.student, stage.strategy or self.table.strategy) if stage.trains else None,
            teachers=teachers,
            init=init,
            seed=seed,
            evaluate_on=self.split,
            task_options=settled("task", stage.task, {**self.profile.tasks.get(stage.task, {}), **stage.task_options}),
        )
        source = "_from_" + "+".join(roles.values()) if teachers else ""
        return self.add(
            spec, f"{stage.method}{'/' + variant if variant else ''}-{row.student}{source} seed {seed}", facts
        )

    def data_of(self, row: Row, stage: Stage) -> str:
        """Which entry of the profile's data a stage is trained and measured on."""
        return self.profile.entry(self.papers_data(row, stage), (row.student, *row.teachers.values()))

    def papers_data(self, row: Row, stage: Stage) -> str:
        """The paper's data set of a stage."""
        return stage.data or row.data or self.table.data

    def teacher(self, slug: str, data: str, facts: "_Facts") -> TeacherSpec:
        """A teacher; the run that trains it or measures its accuracy is planned and added to what is needed first."""
        if (slug, data) not in self.planned_teachers:
            self.planned_teachers[slug, data] = self.new_teacher(slug, data)
        found = self.planned_teachers[slug, data]
        for run in found.runs:
            self.runs.setdefault(run.key, run)
        self.expected.update(found.expected)
        if found.key is not None:
            self.teachers[f"{slug}@{data}"] = found.key
        facts.needs += found.facts.needs
        facts.files += found.facts.files
        facts.missing = facts.missing or found.facts.missing
        return found.spec

    def new_teacher(self, slug: str, data: str) -> _Teacher:
        """A teacher that no cell has asked for yet."""
        card, mapping = self.model(slug), self.profile.teacher(slug, data)
        if mapping is None:
            raise _NoMapping(f"profile '{self.profile.name}' says nothing of teacher '{slug}'")
        own, runs, expected = _Facts(), [], {}
        weights = self.given_weights(slug, card, mapping, own)
        key = None
        if mapping.recipe:
            spec = RunSpec(
                task=mapping.task,
                data=self.data(mapping.data or data, own, teacher=True),
                student=card,
                method=MethodSpec(name=mapping.method, options=settled("method", mapping.method, mapping.options)),
                recipe=self.recipe(mapping.recipe, self.profile.override),
                init=weights,
                seed=mapping.seed,
                evaluate_on=self.split,
            )
            runs.append(self.run_of(spec, f"teacher {slug}", own))
            key = runs[-1].key
            weights = Weights(kind="run", id=key)
            own.needs.append(key)
        if mapping.probe is not None or (not mapping.recipe and mapping.classes != 0):
            task = "evaluate" if mapping.probe is None else "probe"
            spec = RunSpec(
                task=task,
                data=self.data(mapping.probe or mapping.data or data, own, teacher=mapping.probe is not None),
                student=card,
                method=MethodSpec(name="supervised"),
                init=weights,
                evaluate_on=self.split,
            )
            runs.append(self.run_of(spec, f"{task} {slug}", own))
            key = runs[-1].key
            own.needs.append(key)
            if task == "evaluate" and (known := self.published_of(slug, mapping, data)):
                expected[key] = known
        assert weights is not None
        teacher = TeacherSpec(model=card, weights=weights, classes=mapping.classes)
        return _Teacher(teacher, runs, own, key, expected)

    def published_of(self, slug: str, mapping: TeacherMapping, data: str) -> Expected | None:
        """What is published of a teacher whose weights are a file, where it is measured on the paper's own data."""
        data = mapping.data or data
        file = mapping.file or mapping.weights
        if not self.profile.by_value or self.profile.data[data].stand_in or mapping.recipe or file is None:
            return None
        known = schema.load_manifest().teachers
        entry = known.get(f"{slug}@{data}", known.get(slug) if data == MEASURED_ON else None)
        if entry is None or entry.published is None:
            return None
        return Expected(teacher=slug, file=file, top1=entry.published, source=entry.source or "its authors")

    def given_weights(self, slug: str, card: ModelCard, mapping: TeacherMapping, facts: "_Facts") -> Weights | None:
        """Weights that no run here makes: a file, or random ones where the profile asks for them by name."""
        if mapping.random:
            return Weights(kind="random", id=str(mapping.seed))
        if (named := mapping.file or mapping.weights) is None:
            return None
        path = self.weights / named  # a path that is whole stays what it is
        if path.is_file():
            name = cached_sha256(path)
        else:
            known = self.known.weights if self.known else {}
            name = known.get(committed.weights_name(path), f"{committed.UNKNOWN}{path.name}")
        weights = Weights(kind="file", id=name)
        facts.files.append((weights.id, str(path)))
        stated = self.stated.get(card.pretrained) if path == self.weights / f"{card.name}.safetensors" else None
        if stated is not None and path.is_file() and name != stated:
            facts.missing = (
                f"teacher '{slug}' needs the weights {card.pretrained}, and {path} is another file than "
                f"experiments/manifests/teachers.yaml states (SHA-256 {name[:12]}, not {stated[:12]}); delete it and "
                f"run: {how_to_get(card, path)}."
            )
        if not path.is_file():
            facts.missing = f"teacher '{slug}' needs {path}, which is not there; to get it: {how_to_get(card, path)}."
        return weights

    def add(self, spec: RunSpec, label: str, facts: "_Facts") -> str:
        """Plan a run unless it is planned already."""
        run = self.run_of(spec, label, facts)
        self.runs.setdefault(run.key, run)
        return run.key

    def run_of(self, spec: RunSpec, label: str, facts: "_Facts") -> PlannedRun:
        """A run, with what it needs beside its spec."""
        return PlannedRun(
            key=run_key(spec, self.kind),
            spec=spec,
            needs=tuple(facts.needs),
            label=label,
            files=tuple(facts.files),
            missing=facts.missing,
            kind=self.kind,
            data_root=facts.data_root,
        )

    # -- what the profile puts in place of the paper's names ------------------------------------------------

    def model(self, slug: str) -> ModelCard:
        if slug not in self.profile.models:
            raise _NoMapping(f"profile '{self.profile.name}' has no model for '{slug}'")
        name = self.profile.models[slug]
        if name in self.profile.cards:
            return self.profile.cards[name]
        return card_of(name, self.profile.sizes.get(slug))

    def data(self, slug: str, facts: "_Facts", *, teacher: bool) -> DataSpec:
        if slug not in self.profile.data:
            raise _NoMapping(f"profile '{self.profile.name}' has no data for '{slug}'")
        mapping = self.profile.data[slug]
        options = settled("data", mapping.name, mapping.options | (mapping.teacher_options if teacher else {}))
        root = self.data_root if mapping.path is None else Path(mapping.path)
        whole = self.profile.by_value and mapping.stand_in is None
        fingerprint, missing = data_facts(mapping.name, json.dumps(options, sort_keys=True), root, whole)
        facts.data_root = mapping.path
        if missing and self.known:
            fingerprint = self.known.fingerprint(mapping.name, options)
        facts.missing = facts.missing or missing
        return DataSpec(name=mapping.name, options=options, fingerprint=fingerprint)

    def student_recipe(self, student: str, strategy: str) -> Recipe:
        names = self.profile.students.get(student)
        name = names.get(strategy) if isinstance(names, dict) else names
        if name is None:
            raise _NoMapping(f"profile '{self.profile.name}' has no '{strategy}' recipe for '{student}'")
        return self.recipe(name, {**self.profile.override, **self.overrides})

    def recipe(self, name: str, overrides: Mapping[str, Any]) -> Recipe:
        """A recipe of the profile with some fields replaced."""
        asked = name, json.dumps(overrides, sort_keys=True, default=str)
        if asked not in self.planned_recipes:
            self.planned_recipes[asked] = self.new_recipe(name, overrides)
        return self.planned_recipes[asked]

    def new_recipe(self, name: str, overrides: Mapping[str, Any]) -> Recipe:
        """A recipe that no cell has asked for yet."""
        what = f"Recipe '{name}' of profile '{self.profile.name}'" + (f" with {dict(overrides)}" if overrides else "")
        return configured(Recipe, what, {**asdict(self.profile.recipes[name]), **overrides})

    def options(self, row: Row, stage: Stage, variant: str) -> dict[str, Any]:
        """Settings of the pair, then of the profile, then as tuned, then of the variant: the later one wins."""
        column = f"{stage.method}/{variant}".rstrip("/")
        return {
            **row.settings.get(stage.method, {}),
            **self.profile.methods.get(stage.method, {}),
            **tuning.options(self.tuning, self.profile.name, column),
            **stage.options,
        }


def how_to_get(card: ModelCard, path: Path) -> str:
    """The step that brings a weights file."""
    if card.pretrained:
        return f"hkd weights fetch {card.name}"
    if card.family in ("mim_vit", "beit"):
        return f"hkd weights convert {card.name} FILE, with its authors' checkpoint for FILE"
    return f"put it at {path}"


def roles_of(teacher: bool | str | dict[str, str]) -> dict[str, str]:
    """Teacher slugs by role as a stage gives them."""
    if isinstance(teacher, dict):
        return teacher
    return {"teacher": teacher} if isinstance(teacher, str) else {}


@cache
def data_facts(name: str, options: str, root: Path, whole: bool) -> tuple[str | None, str | None]:
    """(content fingerprint, None), or (None, what is missing) of a data set on this machine.

    Args:
        name: of the data set.
        options: its options as JSON.
        root: folder of data.
        whole: whether a piece of it is not enough.
    """
    keep_also_in(places.runs() / ".cache")  # where the runs look, too
    data = load(lookup("data set", name, DATASETS))(json.loads(options), root)
    missing = data.missing() or (piece(data) if whole else None)
    return (None, missing) if missing else (data.fingerprint(), None)


@cache
def num_classes(name: str, options: str, root: Path) -> int:
    """Classes of a data set; options as JSON."""
    return load(lookup("data set", name, DATASETS))(json.loads(options), root).num_classes


cached_sha256 = cache(weights_sha256)
