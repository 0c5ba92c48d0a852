"""`hkd distill`: a user's own student, teacher and images; which method serves them best."""

import math
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.costs import confirm
from experiments.commands.given import Whole
from experiments.commands.printed import out
from experiments.commands.tables import complain
from experiments.execution.events import Event
from experiments.execution.progress import Progress, clock
from experiments.grids import new_table
from experiments.planning.plan import Plan
from experiments.records.committed import Records
from experiments.records.store import Store, step_ms
from experiments.reproduce import Reproduction, expected_here, reproduce
from hkd.errors import UserError

if TYPE_CHECKING:
    from experiments.own import Own

Names = Annotated[list[str], Parameter(consume_multiple=True)]


@app.command
def distill(
    file: Path | None = None,
    *,
    student: str | None = None,
    teacher: str | None = None,
    data: Path | None = None,
    method: Names | None = None,
    recipe: str | None = None,
    seeds: Whole | None = None,
    until: Literal["decided"] | None = None,
    minutes: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    name: str | None = None,
    image_size: Annotated[Whole | None, Parameter(validator=Number(gte=8))] = None,
    epochs: Whole | None = None,
    train_images: Annotated[Whole | None, Parameter(validator=Number(gte=1))] = None,
    student_weights: str | None = None,
    teacher_weights: str | None = None,
    tune: bool | None = None,
    workers: Annotated[Whole | None, Parameter(validator=Number(gte=0))] = None,
    results: Path | None = None,
    yes: Annotated[bool, Parameter(env_var="HKD_YES")] = False,
) -> int:
    """Distil a teacher into a student on your own images, with one method or several, and say which is best.

    Args:
        file: table that an earlier `hkd distill` wrote (results/NAME/NAME.yaml), to be run again; instead of the rest.
        student: a name of timm, of a card of ours (`hkd models`), or a dotted path (my_models:make).
        teacher: likewise.
        data: folder of images: a folder for each class, or train/ and test/ (or val/) of these.
        method: one or several, or `all` for ten that differ in what they read; kd unless it is given.
        recipe: cifar (the default: small images, from scratch), finetune (photographs, published weights), or a YAML
            file.
        seeds: runs of each method; 3 unless it is given.
        until: `decided` runs more seeds, look by look, until every method's gain is decided.
        minutes: of several methods begin none that would not end in time; cheap ones come first.
        name: of the results; made of the models' and the folder's names unless it is given.
        image_size: side in px at which images are loaded; the student's own size unless it is given.
        epochs: of training, instead of the recipe's.
        train_images: per class, drawn by the seed; all unless it is given.
        student_weights: `scratch` (the default), `pretrained` (published ones on this machine), or a file.
        teacher_weights: `pretrained` (the default where there are), `scratch` (trained on your images first), a file,
            or `random`.
        tune: tune a teacher that has weights to your images first; the default does where its classes are others.
        workers: processes; the default is one per core, or per GPU; 0 runs in this process.
        results: folder to write to; the default is $HKD_RESULTS, else results/ of the checkout or of this folder.
        yes: do not ask before many GPU-hours.
    """
    from experiments.own import SEEDS, Asked, checked_seeds, own, read

    if results is not None:
        os.environ["HKD_RESULTS"] = str(places.folder(results, "--results"))
        os.environ.setdefault("HKD_RUNS", str(places.results() / "runs"))
    console = out()
    if until and (seeds is not None or minutes is not None):
        other = "minutes" if seeds is None else "seeds"
        raise UserError(f"--until decided chooses the seeds itself: leave out --{other}.")
    if seeds is not None:
        checked_seeds(seeds)
    if file is not None:
        options: dict[str, object] = {
            "student": student,
            "teacher": teacher,
            "data": data,
            "method": method,
            "recipe": recipe,
            "name": name,
            "image-size": image_size,
            "epochs": epochs,
            "train-images": train_images,
            "student-weights": student_weights,
            "teacher-weights": teacher_weights,
            "tune": tune,
        }
        if stated := [f"--{option}" for option, value in options.items() if value is not None]:
            raise UserError(f"{file} says what to run: leave out {', '.join(stated)}, or say it all without the file.")
        made = read(file)
    else:
        for option, given in (("student", student), ("teacher", teacher), ("data", data)):
            if given is None:
                raise UserError(
                    f"--{option} is missing: hkd distill --student resnet18 --teacher NAME --data FOLDER "
                    "(or the file of an earlier one)."
                )
        assert student is not None and teacher is not None and data is not None  # noqa: PT018
        asked = Asked(
            student=student,
            teacher=teacher,
            data=data,
            methods=tuple(method or ("kd",)),
            recipe="cifar" if recipe is None else recipe,
            seeds=SEEDS if seeds is None else seeds,
            name=name,
            image_size=image_size,
            epochs=epochs,
            student_weights=student_weights,
            teacher_weights=teacher_weights,
            tune=tune,
            train_images=train_images,
        )
        made = own(asked, lambda sentence: console.print(Text(sentence, style="dim")))
    for sentence in made.said:
        console.print(Text(sentence), soft_wrap=True)
    return run_own(made, console, seeds=seeds, until=until, minutes=minutes, workers=workers, yes=yes)


def run_own(
    made: "Own",
    console: Console,
    *,
    seeds: int | None,
    until: str | None,
    minutes: float | None,
    workers: int | None,
    yes: bool,
) -> int:
    """Run a table of one's own, and print what came out."""
    store = Store(places.runs())
    began = time.monotonic()
    left_out: list[str] = []
    if until:
        done, note = decided(made, store, console, workers, yes)
    else:
        plan = made.plan(seeds)
        confirm(plan, store.load_all(plan.runs), yes)
        if minutes is None:
            done = executed(plan, store, console, workers)
        else:
            done, left_out = within(made, seeds, store, console, minutes, workers)
        note = ""
    tell(done, console)
    if left_out:
        console.print(Text(f"Left out for the {minutes:g} minutes: {', '.join(left_out)}."))
    if note:
        console.print(Text(note))
    show_where(made, done, store, console, time.monotonic() - began)
    return complain(done) if done.report is not None else 0


def executed(plan: Plan, store: Store, console: Console, workers: int | None, *, began: bool = False) -> Reproduction:
    """The runs of a plan; the first student's result is told as soon as it is there, unless others `began` before."""
    records = Records(plan, store, None)
    with Progress(plan, records, console) as progress:
        listener = progress if began else First(plan, store, console, progress)
        return reproduce(plan, store, workers=workers, on_event=listener)


class First:
    """Passes events on, and tells the first result of a student."""

    def __init__(self, plan: Plan, store: Store, console: Console, listener: Progress):
        self.plan, self.store, self.console, self.listener = plan, store, console, listener
        self.began, self.told = time.monotonic(), False

    def __call__(self, event: Event) -> None:
        self.listener(event)
        if self.told or event.kind != "finished" or event.facts["status"] != "done":
            return
        cell = next((cell for cell in self.plan.cells if event.key in cell.runs), None)
        record = self.store.load(event.key)
        if cell is not None and record is not None:
            self.told = True
            seed = cell.runs.index(event.key)
            value = record.metrics[cell.metric]
            took = clock(time.monotonic() - self.began)
            self.console.print(Text(f"First result, after {took}: {cell.label}, seed {seed}: {value:.1f} % top-1."))


def within(
    made: "Own", seeds: int | None, store: Store, console: Console, minutes: float, workers: int | None
) -> tuple[Reproduction, list[str]]:
    """Method after method while the time lasts, and those that were left out.

    The first method is always tried; then as many at once as should end in time by what is known so far, again and
    again.
    """
    end, waiting = time.monotonic() + 60 * minutes, list(made.methods)
    tried, before = waiting[:1], dict[str, str]()  # status of the runs of all batches, by key
    del waiting[:1]
    while True:
        done = executed(made.plan(seeds, tried), store, console, workers, began=bool(before))
        assert done.report is not None
        before |= done.report.executed
        done = replace(done, report=replace(done.report, executed=dict(before)))
        fitting = 0
        for count in range(1, len(waiting) + 1):
            more = made.plan(seeds, [*tried, *waiting[:count]])
            expected = expected_here(more, Records(more, store, None))
            if expected is None or time.monotonic() + expected > end:
                break
            fitting = count
        if not fitting:
            return done, waiting
        tried += waiting[:fitting]
        del waiting[:fitting]


def decided(made: "Own", store: Store, console: Console, workers: int | None, yes: bool) -> tuple[Reproduction, str]:
    """More seeds, look by look, until every gain is decided; and how that stands."""
    from experiments.results import sequential
    from experiments.until import buy, looks_of, state

    kept = looks_of(made.plan(1))
    looks = sequential.design(None).model_copy(update={"margins": dict(made.profile.margins)}) if kept is None else kept
    whole = replace(made.plan(looks.looks[-1]), margins=looks.margins)
    confirm(whole, store.load_all(whole.runs), yes)
    bought = buy(
        whole,
        looks,
        store,
        tell=lambda sentence: console.print(Text(sentence)),
        watch=lambda plan, note: Progress(plan, Records(plan, store, None), console, note),
        workers=workers,
    )
    note = state(bought.done.comparison.judgement, bought.looks)
    return bought.done, note + (f". No further look: {bought.stopped}" if bought.stopped else "") + "."


def tell(done: Reproduction, console: Console) -> None:
    """The finding first, then a line for each method, then what must be known of the set-up."""
    from experiments.results.choice import choice_of

    plan, comparison = done.plan, done.comparison
    choice = choice_of(comparison)
    console.print()
    console.print(Text(plan.title, style="bold"))
    if choice is not None:
        console.print(Text(choice.sentence()), soft_wrap=True)
    table = new_table()
    table.add_column("method", no_wrap=True)
    for column in ("top-1", "95 %", "over alone", "95 %", "rank", "step"):
        table.add_column(column, justify="right", no_wrap=True)
    order = {name: place for place, name in enumerate(choice.means)} if choice else {}
    results = sorted(comparison.cells, key=lambda each: order.get(each.cell.label, len(order)))
    alone = next((step_of(done, each.cell.runs) for each in comparison.cells if each.cell.baseline is None), None)
    for each in results:
        step = step_of(done, each.cell.runs)
        gain = each.shown_gain.shown
        rank = choice.ranks[each.cell.label].shown if choice and each.cell.label in choice.ranks else None
        measured = each.measured.shown
        table.add_row(
            each.cell.label,
            number(measured.mean, ".1f") or each.status,
            span(measured.low, measured.high, ".1f"),
            number(gain.mean, "+.1f") if each.cell.baseline else "",
            span(gain.low, gain.high, "+.1f") if each.cell.baseline else "",
            f"{rank.mean:.1f} {span(rank.low, rank.high, '.1f')}".strip() if rank is not None else "",
            f"x {step / alone:.2f}" if step and alone else "",
        )
    console.print(table)
    teachers = {
        f"{done.records[key].metrics['top1']:.1f} %"
        for key in plan.teachers.values()
        if key in done.records and "top1" in done.records[key].metrics
    }
    if teachers:
        of_seeds = "of one seed" if len(plan.seeds) == 1 else f"means over {len(plan.seeds)} seeds"
        console.print(Text(f"The teacher has {', '.join(sorted(teachers))}. Values are {of_seeds}."))
    doubts = dict.fromkeys(each.judged.cannot_tell for each in comparison.cells if each.judged.cannot_tell)
    for doubt in doubts:
        console.print(Text(f"This set-up tells little: {doubt}."), soft_wrap=True)
    for reason in dict.fromkeys(reason for each in comparison.cells for reason in each.reasons):
        console.print(Text(reason), soft_wrap=True)


def number(value: float, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value != value else format(value, form)


def span(low: float, high: float, form: str) -> str:
    """An interval, or nothing where there is none."""
    return "" if low != low else f"[{low:{form}}, {high:{form}}]"


def step_of(done: Reproduction, runs: Sequence[str]) -> float | None:
    """Median time of a training step in ms over the runs of a cell."""
    from statistics import median

    steps = [step_ms(done.records[key].cost) for key in runs if key in done.records]
    held = [step for step in steps if not math.isnan(step)]
    return median(held) if held else None


def show_where(made: "Own", done: Reproduction, store: Store, console: Console, seconds: float) -> None:
    """Write the pages of the table, and say where everything is."""
    from experiments.report.build import build_one  # imports jinja2 and matplotlib

    tried = len(done.report.executed) if done.report is not None else 0
    console.print(Text(f"{tried} of {len(done.plan.runs)} runs executed in {clock(seconds)}; records in {store.root}"))
    if done.folder is not None:
        report = build_one(done.folder.with_name(f"{done.plan.table}.report"), store, made.table, done.plan)
        console.print(Text(f"Table, costs, curves and figures: {done.folder}"), soft_wrap=True)
        console.print(Text(f"Pages, to be opened in a browser: {report.start}"), soft_wrap=True)
    console.print(Text(f"To run it again: hkd distill {shlex.quote(str(made.file))}"), soft_wrap=True)
