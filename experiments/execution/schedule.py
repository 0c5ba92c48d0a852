"""From planned runs to records: what is missing is executed, on this machine's cores or on a cluster.

One process (the one the user started) schedules; workers train and write their own records. A run starts when the
runs it needs are done and a worker is free, the one with the longest way to the end of the graph first.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import Timeout

from experiments.execution.events import Event, Finished
from experiments.execution.graph import Graph
from experiments.execution.pools import Pool, SchedulerLost, await_scheduler, pool_for
from experiments.execution.run import sources
from experiments.execution.storage import check_writable, not_written
from experiments.planning.estimate import Durations
from experiments.planning.plan import Plan, PlannedRun
from experiments.records.environment import cores, device, gpus
from experiments.records.live import PLANS, announced
from experiments.records.store import ENDED, FINAL, Record, Store
from hkd.errors import UserError
from hkd.files import sweep
from hkd.methods import METHODS
from hkd.options import configured
from hkd.registry import load, lookup
from hkd.training.job import Runtime

CACHE_LIMIT = 2 * 2**30  # bytes of teacher outputs kept between plans


@dataclass(frozen=True, kw_only=True)
class ExecutionReport:
    """What one call did: keys of runs executed now by status, and all records of the plan as they are afterwards."""

    records: dict[str, Record]
    executed: dict[str, str]  # key -> status of runs that were tried now (not among them: runs refused or given up)
    failed: dict[str, str]  # key -> reason; with runs that could not start for lack of data or weights
    seconds: float

    @property
    def trained(self) -> tuple[str, ...]:
        """Keys of runs that were carried out to their end now."""
        return tuple(key for key, status in self.executed.items() if status == "done")


def run_plan(
    plan: Plan,
    store: Store,
    *,
    workers: int | None = None,
    scheduler_file: Path | None = None,
    runtime: Runtime,
    on_event: Callable[[Event], None] = lambda event: None,
    known: Mapping[str, Record] | None = None,
) -> ExecutionReport:
    """Execute what has no final record; start nothing (nor import torch or dask) if everything has.

    Runs that lack data or weights, and those that need them, are left without a record while the others are done.

    Args:
        plan: the table's runs, dependencies before dependents.
        store: where records are; shared with every worker.
        workers: processes; None for one per core, or per GPU where runs use GPUs; 0 for this process.
        scheduler_file: of a running dask scheduler to use instead of own workers.
        runtime: device, data and caches.
        on_event: told what happens, in the calling thread.
        known: records from elsewhere; runs with a final one are done only where another needs their weights.

    Raises:
        UserError: nothing can start for lack of data or weights, an option is wrong, or the results cannot be written.
        KeyboardInterrupt: after the workers were ended; finished runs are kept, the others resume later.
    """
    began = time.monotonic()
    records = store.load_all(plan.runs)
    todo = unfinished(plan, records, known or {})
    left_out = lacking(todo)
    if left_out and len(left_out) == len(plan.runs):
        raise UserError(f"None of the {len(left_out)} runs can start: {next(iter(left_out.values()))}")
    todo = {key: run for key, run in todo.items() if key not in left_out}
    execution = _Execution(plan, store, records, todo, on_event, reused=len(plan.runs) - len(todo) - len(left_out))
    if todo:
        check_writable(store)
    # Of finished runs too: another machine may have finished what was killed here.
    for folder in (store.root / ".cache", store.root / PLANS, *map(store.folder, plan.runs)):
        sweep(folder)
    if todo:
        execution.refuse()
    if execution.graph.ready:
        count = min(default_workers(runtime) if workers is None else workers, len(todo))
        check_gpus(runtime, scheduler_file, count)
        with announced(store, plan.table, plan.profile, len(plan.runs), execution.lengths):
            execution.carry_out(lambda: pool_for(store, runtime, count, scheduler_file, on_event), scheduler_file)
        if runtime.cache_dir is not None:
            bound(runtime.cache_dir, CACHE_LIMIT)
    return ExecutionReport(
        records=records,
        executed=execution.executed,
        failed={**left_out, **execution.failed},
        seconds=time.monotonic() - began,
    )


def unfinished(plan: Plan, own: Mapping[str, Record], known: Mapping[str, Record]) -> dict[str, PlannedRun]:
    """The runs of a plan that are to be done, in its order.

    Args:
        own: records of this machine, beside which the weights are.
        known: records from elsewhere, without weights.
    """
    todo = {key: run for key, run in plan.runs.items() if key not in own or own[key].status not in FINAL}
    wanted = [key for key in todo if key not in known or known[key].status not in FINAL]
    found: set[str] = set()
    while wanted:
        key = wanted.pop()
        if key not in found:
            found.add(key)
            wanted += [need for need in todo[key].needs if need in todo]
    return {key: run for key, run in todo.items() if key in found}


def default_workers(runtime: Runtime) -> int:
    """One process per core; where runs use GPUs, one per GPU (or group of `devices`)."""
    if device(runtime.accelerator) == "cuda" and gpus():
        return max(1, len(gpus()) // runtime.devices)
    return cores()


def check_gpus(runtime: Runtime, scheduler_file: Path | None, workers: int) -> None:
    """Refuse runs that need more GPUs than there are, where so many workers would carry them out on this machine."""
    if scheduler_file is not None or runtime.num_nodes > 1 or device(runtime.accelerator) != "cuda":
        return
    there = len(gpus())
    if there == 0:  # none of NVIDIA's tools can say so of others' GPUs
        import torch

        there = torch.cuda.device_count()
    if there < runtime.devices:
        count = f"{runtime.devices} GPUs" if runtime.devices > 1 else "a GPU"
        raise UserError(
            f"Each run takes {count} (machine.devices of the profile), and this machine has {there or 'none'}: give a "
            "profile that extends it and asks for what is here, or --scheduler-file."
        )
    if there < workers * runtime.devices:
        raise UserError(
            f"{workers} workers with {runtime.devices} GPUs each would share the {there} of this machine: give "
            f"--workers {there // runtime.devices} at most."
        )


def lacking(todo: Mapping[str, PlannedRun]) -> dict[str, str]:
    """Runs that cannot start, and why: they lack data or weights, or need a run that does. In the plan's order."""
    found: dict[str, str] = {}
    for key, run in todo.items():  # what a run needs comes before it
        need = next((need for need in run.needs if need in found), None)
        if run.missing:
            found[key] = run.missing
        elif need is not None:
            found[key] = found[need]
    return found


def bound(folder: Path, limit: int) -> None:
    """Delete the oldest files of a folder until the rest takes at most `limit` bytes; others may be deleting too."""
    files = []
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    kept = 0
    for _, size, path in sorted(files, reverse=True):
        kept += size
        if kept > limit:
            path.unlink(missing_ok=True)


def refusal(run: PlannedRun) -> str | None:
    """Why the method cannot serve this run, or None.

    Raises:
        UserError: the method has no such option, or not with this value.
    """
    spec = run.spec
    if spec.recipe is None:
        return None
    method = load(lookup("method", spec.method.name, METHODS))
    return method.refuse(
        configured(method.Config, f"Method '{spec.method.name}'", spec.method.options),
        spec.student,
        {role: teacher.model for role, teacher in spec.teachers.items()},
        spec.recipe,
    )


class _Execution:
    """The state of one `run_plan`."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        records: dict[str, Record],
        todo: dict[str, PlannedRun],
        on_event: Callable[[Event], None],
        reused: int,
    ):
        self.plan, self.store, self.records, self.todo, self.on_event = plan, store, records, todo, on_event
        self.executed: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.under_way: set[str] = set()
        self.steps: dict[str, int] = {}  # by run, how far it got, by any worker
        self.killed: dict[str, int] = {}  # how far a run had got when its worker died last
        self.lost: set[str] = set()  # runs given up because of another
        durations = Durations(records, plan.runs) if todo else None
        self.lengths = {key: durations.weight(run) if durations else 0.0 for key, run in todo.items()}
        self.graph = Graph(todo, self.lengths)
        on_event(Event(kind="scheduled", facts={"todo": tuple(todo), "reused": reused}))

    def refuse(self) -> None:
        """Settle, before anything starts, runs that their method refuses or that need a run without a result."""
        for key, run in self.todo.items():
            if key in self.lost:
                continue
            ended = [self.records[need] for need in run.needs if need not in self.todo]
            without = [record for record in ended if record.status != "done" or self.doubt(record)]
            reason = refusal(run) if not without else None
            if without:
                self.give_up([key, *self.graph.unreachable(key)], without[0])
            elif reason:
                self.settle(run, "refused", reason)

    def carry_out(self, pool: Callable[[], AbstractContextManager[Pool]], scheduler_file: Path | None) -> None:
        """Try every run that can be done; where the scheduler of the file goes away, go on with the next one there.

        Args:
            pool: opens one.
            scheduler_file: None where the workers are this command's own.
        """
        met = False
        while True:
            try:
                with pool() as open_pool:
                    met = True
                    return self.drive(open_pool)
            except SchedulerLost:
                if scheduler_file is None or not met:
                    raise
            self.graph.ready += self.under_way  # from their checkpoints
            self.under_way.clear()
            self.on_event(Event(kind="lost"))
            await_scheduler(scheduler_file)

    def drive(self, pool: Pool) -> None:
        """Keep the pool busy until every run that can be done was tried."""
        shown = -1
        while self.graph.ready or self.under_way:
            slots = pool.slots()
            if slots != shown:
                shown = slots
                self.on_event(Event(kind="workers", facts={"count": slots}))
            while len(self.under_way) < slots and (key := self.graph.next()) is not None:
                self.under_way.add(key)
                self.on_event(Event(kind="started", key=key))
                pool.start(self.todo[key], self.weights(self.todo[key]))
            if self.under_way:
                for item in pool.wait():
                    if isinstance(item, Event):
                        self.steps[item.key] = max(self.steps.get(item.key, 0), item.facts.get("step", 0))
                        self.on_event(item)
                    else:
                        self.returned(item)
            else:
                time.sleep(0.5)  # a cluster whose workers have not joined yet

    def weights(self, run: PlannedRun) -> dict[str, str]:
        """Files of every teacher and of the initial weights, by Weights.id."""
        files = dict(run.files)
        for source in sources(run):
            if source.kind == "run":
                files[source.id] = str(self.store.folder(source.id).resolve() / "student.safetensors")
        return files

    def returned(self, finished: Finished) -> None:
        """A worker is through with a run."""
        run, record = self.todo[finished.key], finished.record
        self.under_way.discard(run.key)
        reached = self.steps.get(run.key, 0)
        if finished.killed and reached > self.killed.get(run.key, -1):
            self.killed[run.key] = reached
            self.graph.ready.append(run.key)  # it resumes from its checkpoint, however often: jobs have an end
            return
        if record is None:
            self.settle(run, "failed", finished.reason or KILLED)
            self.executed[run.key] = self.records[run.key].status
            return
        self.executed[run.key] = record.status
        self.take(run, record)

    def settle(self, run: PlannedRun, status: str, reason: str) -> None:
        """Write a record that no worker wrote, unless another command has done the run, or is doing it now."""
        now = time.time()
        record = Record(
            key=run.key, label=run.label, status=status, spec=asdict(run.spec), started=now, finished=now, reason=reason
        )
        try:
            with self.store.lock(run.key).acquire(timeout=0):
                other = self.store.load(run.key)
                if other is not None and other.status in FINAL:
                    record = other
                else:
                    self.store.write(record)
        except Timeout:  # its own record will say how it ended there
            pass
        except OSError as error:
            raise not_written(error, self.store.root) from error
        self.take(run, record)

    def take(self, run: PlannedRun, record: Record) -> None:
        """A run has its record: tell, and free or give up the runs that need it."""
        self.records[run.key] = record
        root, doubt = run.key not in self.lost, self.doubt(record)
        fit = record.status == "done" and doubt is None
        lost = [] if fit or not root else self.graph.unreachable(run.key)
        facts = {"status": record.status, "reason": record.reason, "seconds": record.finished - record.started}
        self.on_event(Event(kind="finished", key=run.key, facts={**facts, "root": root, "lost": len(lost)}))
        if record.status == "failed":
            self.failed[run.key] = record.reason or ""
        if not fit:
            self.graph.drop(run.key)
            self.give_up(lost, record)
        elif root:
            self.graph.done(run.key)

    def doubt(self, record: Record) -> str | None:
        """Why the teacher that a run has measured must not teach, or None."""
        expected = self.plan.expected.get(record.key)
        return expected.refusal(record.metrics["top1"]) if expected and "top1" in record.metrics else None

    def give_up(self, keys: list[str], needed: Record) -> None:
        """Settle runs whose need has no result, or a teacher that must not teach.

        Refused where that is final, failed where it will be tried again.
        """
        doubt = self.doubt(needed)
        status = "failed" if doubt or needed.status == "failed" else "refused"
        reason = doubt or f"needs '{needed.label}', which {ENDED[needed.status]}: {needed.reason}"
        fresh = [key for key in keys if key not in self.lost]
        self.lost.update(fresh)
        for key in fresh:
            self.graph.drop(key)
            self.settle(self.todo[key], status, reason)


KILLED = "its worker process was killed twice without getting further (by the system when memory runs out, or by hand)"
