"""`hkd runs`: the records of runs."""

import json
import sys
import time

from rich.text import Text

from experiments import places
from experiments.commands.app import runs_app
from experiments.commands.printed import new_table, out
from experiments.execution.progress import clock
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.registry import nearest


@runs_app.command(name="list")
def list_runs() -> int:
    """List all runs that have a record, the latest last."""
    store = Store(places.runs())
    shown = new_table("key", "status", "run", "metrics", "took", "finished")
    records = [record for key in [*store.keys()] if (record := store.load(key)) is not None]
    for record in sorted(records, key=lambda record: record.finished):
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in record.metrics.items()) or record.reason or ""
        finished = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
        shown.add_row(
            record.key, record.status, record.label, metrics, clock(record.finished - record.started), finished
        )
    out().print(shown)
    return 0


@runs_app.command(name="show")
def show_run(key: str) -> int:
    """Print the record of a run as JSON.

    Args:
        key: of the run, or enough of its beginning to be the only one.
    """
    store = Store(places.runs())
    keys = list(store.keys())
    found = [key] if key in keys else [known for known in keys if known.startswith(key)]
    if len(found) != 1:
        many = f"'{key}' is the beginning of {len(found)} runs; give more of it." if found else f"Unknown run '{key}'."
        raise UserError(f"{many}{'' if found else nearest(key, keys)} `hkd runs list` lists all.")
    record = store.load(found[0])
    assert record is not None
    print(json.dumps(record.stored(), indent=2))
    print(f"files: {store.folder(found[0])}", file=sys.stderr)
    return 0


@runs_app.command(name="rekey")
def rekey_runs() -> int:
    """Rename runs that were made before hkd/numerics.lock, so that today's tables find them; nothing is run or lost."""
    from experiments.planning.rekey import rekey

    out().print(Text(rekey(Store(places.runs())).sentence()))
    return 0
