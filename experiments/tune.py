"""The search for a table's loss weights: trials are runs on validation rows, seeds from 1000 on.

The rule is that of experiments/planning/tuning.py, the same for every method. Runs go to the store, so that a search
continues where it was stopped, and a larger budget begins with the trials of a smaller one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from experiments.execution.events import Event
from experiments.execution.schedule import run_plan
from experiments.planning import schema, tuning
from experiments.planning.plan import SELECTION_SEED, Plan, plan_with
from experiments.planning.schema import Profile, Table
from experiments.planning.tuning import Tuned, Tuning
from experiments.records.store import Record, Store
from experiments.reproduce import runtime_for
from experiments.trials import part
from hkd.errors import UserError
from hkd.files import atomic_write


def plans(table: Table, profile: Profile, found: Tuning, rows: Sequence[str], trials: int, seeds: int) -> list[Plan]:
    """One plan a factor: the tuned columns on the chosen rows, their weights times that factor.

    Raises:
        UserError: no trials, a row that the table has not, or columns that are not there.
    """
    order, chosen = tuning.factors(trials), part(table, rows, list(found.weights))
    made = []
    for factor in order:
        columns = [
            column.model_copy(
                update={"options": {**column.options, **tuning.scaled(found.weights[tuning.name_of(column)], factor)}}
            )
            for column in chosen.columns
        ]
        changed = chosen.model_copy(update={"columns": tuple(columns)})
        many = tuple(range(SELECTION_SEED, SELECTION_SEED + seeds))
        made.append(plan_with(changed, profile, many, select=True))
    return made


def joined(each: Sequence[Plan]) -> Plan:
    """All runs of several plans as one, those that are shared once."""
    return replace(each[0], runs={key: run for plan in each for key, run in plan.runs.items()})


def value(records: Sequence[Record | None]) -> float | None:
    """Mean top-1 of a trial over its seeds; None where one diverged or was not made."""
    values = [None if record is None else record.metrics.get("top1") for record in records]
    held = [found for found in values if found is not None]
    return round(fmean(held), 2) if held and len(held) == len(values) else None


def outcome(each: Sequence[Plan], records: Mapping[str, Record], rows: Sequence[str], seeds: int) -> Tuned:
    """What was tried and what is taken. A row that a method does not serve is none of its; a method without one is not
    tuned.
    """
    log: dict[str, dict[str, tuple[float | None, ...]]] = {}
    for number, plan in enumerate(each):
        for cell in plan.cells:
            held = [records.get(key) for key in cell.runs]
            if not held or any(record is not None and record.status == "refused" for record in held):
                continue
            of_row = log.setdefault(f"{cell.method}/{cell.variant}".rstrip("/"), {})
            of_row[cell.row] = (*of_row.get(cell.row, ()), value(held))
            assert len(of_row[cell.row]) == number + 1
    order = tuning.factors(len(each))
    return Tuned(
        trials=len(each),
        seeds=seeds,
        rows=tuple(rows),
        factors={column: tuning.best(tried, order) for column, tried in log.items()},
        log=log,
    )


def search(
    table: Table,
    profile: Profile,
    rows: Sequence[str],
    trials: int,
    seeds: int,
    store: Store,
    *,
    workers: int | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Tuned:
    """Make the trials that are missing, and choose.

    Raises:
        UserError: a table whose weights are not listed, a budget of no trials, rows that no method serves, or runs
            that failed.
    """
    found = listed(table)
    each = plans(table, profile, found, rows, trials, seeds)
    whole = joined(each)
    report = run_plan(whole, store, workers=workers, runtime=runtime_for(profile.name, table.id), on_event=on_event)
    for key, reason in report.failed.items():
        raise UserError(f"{whole.runs[key].label} failed: {reason}")
    tuned = outcome(each, store.load_all(whole.runs), rows, seeds)
    if served := [row for row in rows if not any(row in tried for tried in tuned.log.values())]:
        raise UserError(f"No method of '{table.id}' serves {', '.join(served)} at profile '{profile.name}'.")
    return tuned


def listed(table: Table) -> Tuning:
    """The weights of a table that are tuned. Raises UserError where it has no such file."""
    found = tuning.load(table.id)
    if found is None:
        known = ", ".join(schema.names(tuning.FOLDER))
        raise UserError(f"Table '{table.id}' has no weights to tune; experiments/tuning/ has those of {known}.")
    tuning.check(found, table.id)
    return found


def inline(value: Any) -> CommentedMap | CommentedSeq:
    """A mapping or list that YAML writes on one line."""
    made = CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value)
    made.fa.set_flow_style()
    return made


def write(table: Table, profile: Profile, tuned: Tuned) -> None:
    """Put the choice of a profile into the table's file; comments and other profiles stay."""
    path = schema.HERE / tuning.FOLDER / f"{table.id}.yaml"
    yaml = YAML(typ="rt")
    yaml.width = 4096
    held = yaml.load(path.read_text(encoding="utf-8"))
    document = tuned.model_dump(mode="json")
    held.setdefault("profiles", {})[profile.name] = {
        **document,
        "rows": inline(document["rows"]),
        "factors": inline(document["factors"]),
        "log": {column: inline(rows) for column, rows in document["log"].items()},
    }
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.dump(held, file)
    schema.read.cache_clear()
    schema.document.cache_clear()
