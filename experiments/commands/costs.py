"""What runs cost, as `hkd plan` prints it and `hkd run` asks about."""

import sys
from collections.abc import Iterable

from rich.filesize import decimal
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from experiments.commands.printed import new_table
from experiments.planning.estimate import Cost, cost, total
from experiments.planning.plan import Plan, PlannedRun
from experiments.records.store import FINAL, Record
from hkd.errors import UserError

EXPENSIVE = 10.0  # GPU-hours from which `hkd run` asks first


def cost_table(first: str) -> Table:
    """A table of costs; the last three columns are of what is left to do."""
    table = new_table(first)
    for column in ("runs", "done", "epochs", "FLOPs", "GPU-hours", "disk", "left: runs", "GPU-hours", "disk"):
        table.add_column(column, justify="right")
    return table


def add_cost(table: Table, name: str, runs: Iterable[PlannedRun], done: set[str]) -> None:
    """One line of a cost table."""
    all_runs = list(runs)
    whole, left = total(all_runs), total(run for run in all_runs if run.key not in done)
    table.add_row(
        name,
        str(whole.runs),
        str(whole.runs - left.runs),
        str(whole.epochs),
        f"{whole.flops:.2e}",
        hours(whole),
        decimal(round(whole.disk)),
        str(left.runs),
        hours(left),
        decimal(round(left.disk)),
    )


def by_kind(plan: Plan, done: set[str]) -> Table:
    """The runs of one plan, those that differ by seed alone on one line."""
    kinds: dict[str, list[PlannedRun]] = {}
    for run in plan.runs.values():
        kinds.setdefault(run.label.partition(" seed ")[0], []).append(run)
    table = cost_table("run")
    for label, runs in kinds.items():
        add_cost(table, label, runs, done)
    return table


def hours(cost: Cost) -> str:
    """GPU-hours with three digits that matter."""
    return f"{cost.gpu_hours:,.0f}" if cost.gpu_hours >= 100 else f"{cost.gpu_hours:.3g}"


def confirm(plan: Plan, records: dict[str, Record], yes: bool) -> None:
    """Ask before many GPU-hours; without somebody to ask, refuse."""
    left = sum(
        cost(run).gpu_hours for key, run in plan.runs.items() if key not in records or records[key].status not in FINAL
    )
    if yes or left < EXPENSIVE:
        return
    question = (
        f"'{plan.table}' at profile '{plan.profile}' takes about {left:,.0f} GPU-hours (see `hkd plan {plan.table}`)"
    )
    if not sys.stdin.isatty():
        raise UserError(f"{question} (`hkd plan` tells more); say --yes to start it.")
    try:
        agreed = Confirm.ask(Text(f"{question}. Start?"), default=False)
    except EOFError:  # nobody answers
        agreed = False
    if not agreed:
        raise UserError("Not started.")
