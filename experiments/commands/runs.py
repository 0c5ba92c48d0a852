"""`hkd runs`: the records of runs."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from experiments import places
from experiments.commands.app import runs_app
from experiments.commands.given import Whole
from experiments.commands.printed import is_wide, out
from experiments.execution.progress import clock
from experiments.grids import new_table
from experiments.records.store import Record, Store
from hkd.errors import UserError

KEY = 8  # of a key's letters, where there is little room


@runs_app.command(name="list")
def list_runs(
    *,
    filter: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    sort: str | None = None,
    limit: Annotated[Whole | None, Parameter(validator=Number(gte=1))] = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """List runs that have a record: all, the latest last, unless it is said which and in what order.

    Args:
        filter: conditions that must all hold: `method=kd,student=resnet*,seed!=0,top1>80,recipe.epochs=40`.
        sort: by a metric, the best first, or by any other fact.
        limit: the first so many only.
        as_json: print all facts of the runs as a JSON list.
    """
    from experiments.tracking.facts import chosen, conditions, facts, ordered

    store, console = Store(places.runs()), out()
    records = sorted(store.load_all([*store.keys()]).values(), key=lambda record: record.finished)
    metrics = {name for record in records for name in record.metrics}
    runs = chosen([facts(record) for record in records], conditions(filter or ()))
    runs = ordered(runs, sort, metrics) if sort is not None and runs else runs
    of = len(runs)
    runs = runs[:limit]
    if as_json:
        print(json.dumps(runs, indent=1))
        return 0
    by_key = {record.key: record for record in records}
    print_runs([by_key[run["key"]] for run in runs], console)
    if filter or limit:
        console.print(Text(f"{len(runs)} shown of {of} that fit, {len(records)} in all: {store.root}"))
    return 0


def print_runs(records: list[Record], console: Console) -> None:
    """A line for each run; on a narrow terminal without its times and with the beginning of its key."""
    wide = is_wide(console)
    shown = new_table("key", "status", "run", "metrics", *(("took", "finished") if wide else ()))
    for record in records:
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in record.metrics.items()) or record.reason or ""
        line = [record.key if wide else record.key[:KEY], record.status, record.label, metrics]
        if wide:
            finished = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
            line += [clock(record.finished - record.started), finished]
        shown.add_row(*map(Text, line))
    console.print(shown)


@runs_app.command(name="show")
def show_run(key: str) -> int:
    """Print the record of a run as JSON.

    Args:
        key: of the run, or enough of its beginning to be the only one.
    """
    from experiments.tracking.facts import record_called

    store = Store(places.runs())
    record = record_called(store, key)
    print(json.dumps(record.stored(), indent=2))
    print(f"files: {store.folder(record.key)}", file=sys.stderr)
    return 0


@runs_app.command(name="compare")
def compare_runs(first: str, second: str, *, to: Path | None = None) -> int:
    """Compare two runs: metrics with intervals, settings that differ, curves.

    Args:
        first, second: keys, or enough of their beginnings.
        to: PNG to which the curves are drawn (an SVG is written beside it).
    """
    from experiments.tracking.comparing import compare, curve_pairs, draw
    from experiments.tracking.facts import record_called
    from experiments.tracking.printing import pair_lines

    if to is not None and to.suffix.lower() != ".png":
        raise UserError(f"--to is {to}; name a file that ends in .png.")
    store, console = Store(places.runs()), out()
    pair = compare(store, record_called(store, first), record_called(store, second))
    for part in pair_lines(pair, console):
        console.print(part)
    if to is not None and not curve_pairs(pair):
        raise UserError("Neither run has kept curves, so there is nothing to draw: leave out --to.")
    if to is not None:
        draw(pair, to)
        console.print(Text(f"The curves are in {to}"))
    return 0


@runs_app.command(name="remove")
def remove_runs(*key: str, yes: bool = False) -> int:
    """Remove runs with their weights and curves. Without --yes it is only said what would be freed.

    Refused as a whole if another run started from one of them, if committed records name one, or if one is being
    carried out.

    Args:
        key: of the runs, or enough of their beginnings.
        yes: really do it.
    """
    from experiments.tracking.facts import full_key
    from experiments.tracking.removing import considered, remove

    if not key:
        raise UserError("Name the runs to be removed: `hkd runs remove KEY`; `hkd runs list` lists them.")
    store, console = Store(places.runs()), out()
    keys = list(dict.fromkeys(full_key(store, each) for each in key))
    found = considered(store, keys, places.references())
    if found.reasons:
        told = "; ".join(f"{name}: {reason}" for name, reason in found.reasons.items())
        raise UserError(f"Nothing was removed: {told}.")
    for name in found.unread:
        console.print(Text(f"The record of {name} cannot be read: nobody knows what it needs."))
    for name, size in found.sizes.items():
        console.print(Text(f"{name}  {decimal(size)}"))
    total = decimal(sum(found.sizes.values()))
    if not yes:
        console.print(Text(f"{total} would be freed; add --yes to remove. A table that asks for them runs them again."))
        return 0
    remove(store, keys)
    console.print(Text(f"{len(keys)} run{'s' if len(keys) > 1 else ''} removed, {total} freed."))
    return 0


@runs_app.command(name="export")
def export_runs(
    *key: str, tensorboard: Path | None = None, mlflow: Path | None = None, wandb: Path | None = None
) -> int:
    """Write curves, metrics and settings of runs as another tool reads them; nothing is sent anywhere.

    Args:
        key: of the runs, or enough of their beginnings.
        tensorboard: folder for event files: `tensorboard --logdir FOLDER`.
        mlflow: folder for a local store: `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`.
        wandb: folder for offline runs of Weights & Biases: `wandb sync FOLDER/wandb/offline-run-*`.
    """
    from experiments.records.committed import kept_curves
    from experiments.tracking.exporters import EXPORTERS
    from experiments.tracking.facts import record_called

    asked = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}
    wanted = {name: places.folder(path, f"--{name}") for name, path in asked.items() if path is not None}
    if not key or not wanted:
        raise UserError("Name runs and a tool: `hkd runs export KEY --tensorboard FOLDER` (or --mlflow, --wandb).")
    store, console = Store(places.runs()), out()
    records = [record_called(store, each) for each in key]
    for name, folder in wanted.items():
        for record in records:
            where = EXPORTERS[name](record, kept_curves(store, record) or [], folder)
            console.print(Text(f"{record.label}: {where}"))
    return 0


@runs_app.command(name="rekey")
def rekey_runs() -> int:
    """Rename runs that were made before hkd/numerics.lock, so that today's tables find them; nothing is run or lost."""
    from experiments.planning.rekey import rekey

    out().print(Text(rekey(Store(places.runs())).sentence()))
    return 0
