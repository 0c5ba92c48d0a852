"""A table from end to end: plan, execute what is missing, compare, write. What `hkd run` does, as one call."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from experiments import places
from experiments.documents import read_json
from experiments.execution.events import Event
from experiments.execution.progress import time_left
from experiments.execution.schedule import ExecutionReport, default_workers, run_plan, unfinished
from experiments.execution.storage import not_written
from experiments.planning import schema
from experiments.planning.estimate import Durations
from experiments.planning.plan import Plan
from experiments.records.committed import Records
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.training.job import Runtime

if TYPE_CHECKING:  # pandas takes a second to import, and planning does without
    from experiments.results.compare import Comparison
    from experiments.results.sequential import Design


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A table as it stands: its plan, the records, what was compared, and where it was written (None: it was not)."""

    plan: Plan
    records: Records
    comparison: "Comparison"
    folder: Path | None = None
    report: ExecutionReport | None = None

    def markdown(self, finding: str = "") -> str:
        """The table in the paper's layout; a finding, if given, under its title."""
        from experiments.results.render import markdown

        return markdown(self.plan, self.records, self.comparison, finding)


def runtime_for(profile: str, table: str) -> Runtime:
    """How runs of a table use this machine at a profile."""
    machine = schema.load_profile(profile).machine_of(table).model_dump(exclude_unset=True)
    return Runtime(**machine, data_root=places.data(), cache_dir=places.runs() / ".cache")


def reproduce(
    plan: Plan,
    store: Store,
    *,
    workers: int | None = None,
    scheduler_file: Path | None = None,
    runtime: Runtime | None = None,
    looks: "Design | None" = None,
    new_only: bool = False,
    on_event: Callable[[Event], None] = lambda event: None,
    wait: bool = True,
    on_wait: Callable[[str], None] = lambda sentence: None,
) -> Reproduction:
    """Execute what is missing of a table and write its folder, holding the table's lock.

    Args:
        plan: the table at a profile.
        store: where records are.
        workers, scheduler_file, on_event: as for `run_plan`.
        runtime: None takes the profile's.
        looks: that are taken with this one, where seeds are bought; it counts only if no run failed.
        new_only: runs of which a record is committed are not done here again, unless another needs their weights.
        wait: for another process that is at this table; False refuses.
        on_wait: told who holds the table before waiting.

    Raises:
        UserError: bad input, results that cannot be written, or a table that is held by another process.
    """
    with table_lock(plan.profile, plan.table, wait=wait, on_wait=on_wait):
        report = run_plan(
            plan,
            store,
            workers=workers,
            scheduler_file=scheduler_file,
            runtime=runtime or runtime_for(plan.profile, plan.table),
            on_event=on_event,
            known=Records(plan, store, places.references()) if new_only else None,
        )
        folder = places.tables(plan.profile) / plan.table
        if looks is not None and report.failed:
            looks = looks.model_copy(update={"taken": looks.taken - 1}) if looks.taken > 1 else None
        from experiments.results import sequential

        done, path = compared(plan, store, looks), sequential.path_of(folder.parent, plan.table)
        if looks is None:
            done = replace(done, comparison=replace(done.comparison, bought=sequential.stored(path)))
        else:
            sequential.store(looks, path)
        from experiments.drawings.base import drawing
        from experiments.results.render import write_table

        write_table(
            plan,
            done.records,
            done.comparison,
            folder,
            curves=done.records.curves(measured_runs(plan)),
            draw=drawing(plan, done.records.own, store, runtime or runtime_for(plan.profile, plan.table)),
        )
    return replace(done, folder=folder, report=report)


def compared(plan: Plan, store: Store, looks: "Design | None" = None) -> Reproduction:
    """A table from the records that are stored here or else committed; nothing is executed or written.

    Args:
        plan: the table at a profile.
        store: where records are.
        looks: that were taken, where its seeds were bought.
    """
    from experiments.results.compare import compare

    found = Records(plan, store, places.references())
    comparison = compare(plan, found, found.predictions(measured_runs(plan)), looks)
    return Reproduction(plan=plan, records=found, comparison=comparison)


def expected_here(plan: Plan, records: Records, *, new_only: bool = False) -> float | None:
    """Seconds that the rest of a table should take with the default workers, going by own records and committed ones.

    None if nothing similar was ever run. new_only: as for `reproduce`.
    """
    todo = unfinished(plan, records.own, records if new_only else {})
    return time_left(
        todo, {}, {}, Durations(records, plan.runs), default_workers(runtime_for(plan.profile, plan.table)), 0.0
    )


def measured_runs(plan: Plan) -> list[str]:
    """Keys of the runs that cells are measured by."""
    return list(dict.fromkeys(key for cell in plan.cells for key in cell.runs))


@contextmanager
def table_lock(profile: str, table: str, *, wait: bool, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold a table at a profile: of two processes that make the same one, the second waits or is told who has it."""
    folder = places.results() / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock, holder = FileLock(folder / f"{profile}.{table}.lock"), folder / f"{profile}.{table}.json"
        try:
            lock.acquire(timeout=0)
        except Timeout:
            sentence = f"Table '{table}' at profile '{profile}' is being made by {described(holder)}"
            if not wait:
                raise UserError(f"{sentence}; wait for it, or end it.") from None
            on_wait(f"{sentence}; waiting for it to end.")
            lock.acquire()
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    except OSError as error:
        raise not_written(error, folder) from None
    try:
        yield
    finally:
        with suppress(OSError):  # a note for others, on a disk that may have become read-only
            holder.unlink(missing_ok=True)
        lock.release()


def described(holder: Path) -> str:
    """`process 123 on laptop`, as the holder wrote it."""
    try:
        facts = read_json(holder)
        said = f"process {facts['pid']} on {facts['host']}"
        return "".join(filter(str.isprintable, said))[:100]
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
