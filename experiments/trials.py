r"""Trials of settings: cells of a table on validation rows, seeds from 1000 on, with any value of the profile changed.

    python -m experiments.trials hcd_cifar100_core --row swin_t-resnet18 --column supervised \
        --set recipes.numbers_cnn.epochs=30 --set data.cifar100.options.noise=0.1 --seeds 2

prints one line of a Markdown table for each cell: what was set, top-1 on validation rows by seed, training top-1 of the
last epoch, process CPU seconds of a run. With `-` for a table, such arguments are read from standard input, one trial a
line. With `--lengths numbers_cnn=10,20,40` a recipe's epochs are chosen by the rule of docs/laptop-settings.md, which
holds every trial. Runs go to the store ($HKD_RUNS), so that a trial that was made already is only printed.
"""

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from statistics import fmean
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from experiments import places
from experiments.execution.schedule import run_plan
from experiments.planning import schema
from experiments.planning.plan import SELECTION_SEED, Plan, plan_with
from experiments.planning.schema import Profile, Table
from experiments.records.store import Record, Store
from experiments.reproduce import runtime_for
from hkd.errors import UserError
from hkd.registry import lookup

LONGER, NEAR = 3, 1.5  # the rule for lengths: at most NEAR points behind a schedule LONGER times as long


def changed(profile: Profile, settings: Mapping[str, Any]) -> Profile:
    """A profile with other values at dotted places: {"recipes.numbers_cnn.epochs": 30}.

    Raises:
        UserError: a place that no profile has, or a value that it cannot have.
    """
    content = profile.model_dump(exclude_unset=True)
    for place, value in settings.items():
        *way, last = place.split(".")
        inner = content
        for part in way:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            raise UserError(f"'{place}' cannot be set: something on its way holds no further values.")
        inner[last] = value

    def refused(loc: tuple[str | int, ...], message: str) -> UserError:
        return UserError(f"Profile '{profile.name}' as changed: {'.'.join(map(str, loc))}: {message}")

    return schema.validated(Profile, content, refused)


def part(table: Table, rows: Sequence[str], columns: Sequence[str]) -> Table:
    """A table with some of its rows and columns only; none named: all. A column is `method` or `method/variant`.

    Raises:
        UserError: a name that the table does not have.
    """
    names = {f"{column.method}/{column.variant}".rstrip("/"): column for column in table.columns}
    by_row = {row.row: row for row in table.rows}
    return table.model_copy(
        update={
            "rows": tuple(lookup("row", name, by_row) for name in rows or by_row),
            "columns": tuple(lookup("column", name, names) for name in columns or names),
        }
    )


def only_teachers(plan: Plan) -> Plan:
    """The runs that train and measure a plan's teachers, without the students'."""
    needed = set(plan.teachers.values())
    needed |= {key for name in plan.teachers.values() for key in plan.runs[name].needs}
    return replace(plan, runs={key: run for key, run in plan.runs.items() if key in needed})


def trial(plan: Plan, store: Store) -> dict[str, list[Record]]:
    """The records of each cell in the order of seeds, or of each teacher where the plan has no more than those.

    What is missing is executed in this process.

    Raises:
        UserError: a run failed.
    """
    report = run_plan(plan, store, workers=0, runtime=runtime_for(plan.profile, plan.table))
    for key, reason in report.failed.items():
        raise UserError(f"{plan.runs[key].label} failed: {reason}")
    records = store.load_all(plan.runs)
    wanted = {
        f"{cell.row}, {cell.label}": cell.runs for cell in plan.cells if cell.runs and set(cell.runs) <= set(records)
    }
    wanted = wanted or {name: (key,) for name, key in plan.teachers.items()}
    return {name: [records[key] for key in keys] for name, keys in wanted.items()}


def shortest(top1: Callable[[int], float], lengths: Sequence[int]) -> int | None:
    """The first of some lengths that is at most `NEAR` points behind one `LONGER` times as long; None: none is.

    Args:
        top1: accuracy in percent of a length in epochs.
        lengths: in epochs.
    """
    return next((length for length in sorted(lengths) if top1(LONGER * length) - top1(length) <= NEAR), None)


def line(what: str, settings: str, records: Sequence[Record], store: Store) -> str:
    """A row of a Markdown table."""
    last = [json.loads(text) for text in (last_line(store, record) for record in records) if text]
    train = " ".join(f"{epoch['train_top1']:.1f}" for epoch in last if "train_top1" in epoch)
    values = [record.metrics.get("top1") for record in records]
    top1 = " ".join(
        record.status if value is None else f"{value:.1f}" for value, record in zip(values, records, strict=True)
    )
    seconds = sum(record.cost.get("cpu_s", 0.0) for record in records) / max(len(records), 1)
    return f"| {what} | {settings} | {top1} | {train} | {seconds:.0f} |"


def last_line(store: Store, record: Record) -> str:
    """The curves of a run's last epoch as JSON, or nothing."""
    path = store.folder(record.key) / "curves.jsonl"
    return path.read_text(encoding="utf-8").splitlines()[-1] if path.is_file() else ""


def parser() -> argparse.ArgumentParser:
    """Of the arguments above."""
    made = argparse.ArgumentParser(prog="python -m experiments.trials", description=__doc__.partition("\n")[0])
    made.add_argument("table", help="name of a table; - reads trials from standard input, one a line")
    made.add_argument("--profile", default="laptop")
    made.add_argument("--row", action="append", default=[], help="a row of the table; again for more (default: all)")
    made.add_argument("--column", action="append", default=[], help="method or method/variant; likewise")
    made.add_argument("--set", action="append", default=[], metavar="PLACE=VALUE", help="a value of the profile")
    made.add_argument("--seeds", type=int, default=1, help="seeds, from 1000 on")
    made.add_argument("--lengths", metavar="RECIPE=EPOCHS,...", help="epochs among which the rule chooses")
    made.add_argument("--teachers", action="store_true", help="the teachers of these cells instead of the cells")
    return made


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """Places and values of `PLACE=VALUE`, a value as YAML writes it.

    Raises:
        UserError: a text that is not one.
    """
    settings = {}
    for text in texts:
        place, found, value = text.partition("=")
        try:
            settings[place] = YAML(typ="safe").load(value)
        except YAMLError:
            found = ""
        if not found:
            raise UserError(f"'{text}' is no PLACE=VALUE, such as recipes.numbers_cnn.epochs=30.")
    return settings


def seeds_of(count: int) -> tuple[int, ...]:
    """Seeds from 1000 on.

    Raises:
        UserError: none.
    """
    if count < 1:
        raise UserError(f"--seeds must be at least 1, got {count}.")
    return tuple(range(SELECTION_SEED, SELECTION_SEED + count))


def lengths_of(text: str) -> tuple[str, list[int]]:
    """Recipe and epochs of `RECIPE=EPOCHS,...`.

    Raises:
        UserError: a text that is not one.
    """
    recipe, _, numbers = text.partition("=")
    lengths = [int(number) for number in numbers.split(",") if number.isascii() and number.isdigit()]
    if not recipe or not lengths or len(lengths) != len(numbers.split(",")):
        raise UserError(f"'{text}' is no RECIPE=EPOCHS,..., such as numbers_cnn=10,20,40.")
    return recipe, lengths


def carry_out(arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """The trials of parsed arguments; their lines are said as they become known."""
    store = Store(places.runs())

    def tried(*more: str) -> list[Record]:
        """The records of one setting, whose lines are said."""
        texts = [*arguments.set, *more]
        profile = changed(schema.load_profile(arguments.profile), settings_of(texts))
        table = part(schema.load_table(arguments.table), arguments.row, arguments.column)
        plan = plan_with(table, profile, seeds_of(arguments.seeds), select=True)
        found = trial(only_teachers(plan) if arguments.teachers else plan, store)
        for what, records in found.items():
            say(line(what, ", ".join(texts), records, store))
        return [record for records in found.values() for record in records]

    if arguments.lengths is None:
        tried()
        return
    recipe, lengths = lengths_of(arguments.lengths)

    @cache
    def top1(epochs: int) -> float:
        records = tried(f"recipes.{recipe}.epochs={epochs}")
        return fmean(record.metrics.get("top1", math.nan) for record in records)  # nan is near nothing

    chosen = shortest(top1, lengths)
    result = f"none of {arguments.lengths}" if chosen is None else f"{chosen} epochs, {top1(chosen):.1f} %"
    say(f"{recipe}: {result}")


def main() -> int:
    """Entry point. A mistake in one of several trials is said, and the others are made."""
    given = parser().parse_args()
    several = given.table == "-"
    lines = (shlex.split(text, comments=True) for text in sys.stdin) if several else iter([sys.argv[1:]])
    code = 0
    for arguments in lines:
        try:
            if arguments:
                carry_out(parser().parse_args(arguments), partial(print, flush=True))
        except UserError as error:
            print(error, file=sys.stderr, flush=True)
            code = 2
    return code


if __name__ == "__main__":
    sys.exit(main())
