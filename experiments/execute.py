"""From planned runs to records: what is missing is executed, on this machine's cores or on a cluster.

One process (the one the user started) schedules; workers train and write their own records. A run starts when the
runs it needs are done and a worker is free, the one with the longest way to the end of the graph first. dask only
carries a run to a worker and brings it back when a worker dies; which run is next is decided here, so that the same
code serves one process, the cores of a laptop and a cluster.
"""

import errno
import logging
import math
import os
import queue
import shutil
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from experiments.environment import cores, device, environment, gpus, source_digest
from experiments.estimate import Durations
from experiments.plan import Plan, PlannedRun
from experiments.planning import keys
from experiments.store import Record, Store
from hkd.errors import Diverged, Refused, UserError, sentence_of
from hkd.files import sha256
from hkd.methods import METHODS
from hkd.options import configured
from hkd.registry import load, lookup
from hkd.tasks import TASKS
from hkd.training.job import Job, Runtime

FINAL = ("done", "diverged", "refused")  # statuses that are never tried again
TOPIC = "hkd-progress"
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
READING_TOO = {errno.EACCES, errno.EPERM, errno.ENOTDIR}  # those that reading a data file may also end with
CACHE_LIMIT = 2 * 2**30  # bytes of teacher outputs kept between plans
# Large pages for torch's buffers, also in the worker's thread: small pages made steps up to twice as slow in a virtual
# machine (benchmarks/test_page_speed.py). Other C libraries than glibc ignore it.
LARGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
Report = Callable[[dict[str, Any]], None]


class StorageError(UserError):
    """Results cannot be written; nothing else can succeed until that is put right."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened while a plan is executed.

    scheduled: facts todo (keys), reused (count). workers: facts count. The others are about one run: started (twice
    if its worker died), progress (epoch, epochs, loss, perhaps top1), finished (status, reason, seconds, root: not
    merely given up because of another run, lost: how many are given up because of this one).
    """

    kind: Literal["scheduled", "workers", "started", "progress", "finished"]
    key: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


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


# -- one run, in whatever process ---------------------------------------------------------------------------


def execute_run(
    run: PlannedRun,
    weights: Mapping[str, str],
    store_root: Path,
    runtime: Runtime,
    report: Report,
    source: str | None = None,
) -> Record:
    """Carry out one run and write its record, unless another process has done so.

    Args:
        run: what to do.
        weights: Weights.id -> path, for every teacher and the initial weights.
        store_root: folder of the store.
        runtime: device, data and caches; not part of the run's identity.
        report: called with progress ({"epoch", "epochs", "loss", ...}) a few times a second.
        source: digest of the sources that the run's key was computed from; None if nobody edits them.

    Raises:
        StorageError: the store cannot be written to.
    """
    store = Store(store_root)
    try:
        with store.lock(run.key):
            record = store.load(run.key)
            if record is not None and record.status in FINAL:
                return record
            folder = store.folder(run.key)
            with log_to(folder / "run.log"):
                files = {name: Path(path) for name, path in weights.items()}
                record = carry_out(run, files, store, runtime, report, source)
            store.write(record)
            return record
    except OSError as error:
        raise storage_error(error, store_root) from error


def carry_out(
    run: PlannedRun,
    weights: Mapping[str, Path],
    store: Store,
    runtime: Runtime,
    report: Report,
    source: str | None,
) -> Record:
    """The record of a run after doing it; every failure but that of the storage becomes its status and reason."""
    log = logging.getLogger(__name__)
    folder, started = store.folder(run.key), time.time()
    log.info("%s, key %s", run.label, run.key)
    facts: dict[str, Any]
    try:
        check_code(run, source)
        check_sources(run, weights, store)
        task = load(lookup("task", run.spec.task, TASKS))
        one_thread()
        outcome = task(Job(run.spec, weights, folder, runtime, report))
        check_code(run, source)
        write_live(folder / "live", outcome.curves)
        facts = {
            "status": "done",
            "metrics": outcome.metrics,
            "cost": {name: value for name, value in outcome.cost.items() if math.isfinite(value)},
            "artifacts": {path.name: sha256(path) for path in artifacts(folder)},
        }
    except Diverged as error:
        log.error("%s", error)
        facts = {"status": "diverged", "reason": str(error)}
    except UserError as error:
        log.error("%s", error)
        status = "refused" if isinstance(error, Refused) else "failed"
        facts = {"status": status, "reason": sentence_of(error)}
    except Exception as error:
        if not isinstance(error, OSError) and disk_full(error, folder):  # torch and safetensors have their own errors
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        if isinstance(error, OSError) and storage_failed(error, store.root):
            raise
        log.exception("the run stopped")
        facts = {"status": "failed", "reason": sentence(error, folder)}
    log.info("%s after %.1f s", facts["status"], time.time() - started)
    return Record(
        key=run.key,
        label=run.label,
        spec=asdict(run.spec),
        environment=environment(runtime.accelerator),
        started=started,
        finished=time.time(),
        **facts,
    )


def sentence(error: Exception, folder: Path) -> str:
    """One sentence for a crash, with where to read more."""
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "can't allocate memory" in str(error):
        return (
            "Out of memory: use fewer workers (--workers), or a smaller recipe.batch_size (which makes it another run)."
        )
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first_line} (traceback in {folder / 'run.log'})"


def storage_error(error: OSError, root: Path) -> OSError | StorageError:
    """A full disk or a read-only folder as one sentence; other errors as they are."""
    if error.errno not in STORAGE_ERRORS:
        return error
    return StorageError(
        f"Cannot write to {error.filename or root}: {error.strerror}. Finished runs are kept; "
        "make room or give another folder in HKD_RUNS, and run the same command again."
    )


def storage_failed(error: OSError, root: Path) -> bool:
    """Whether a run ended for lack of a place to write: what only reading meets counts for files of the store alone."""
    if error.errno not in READING_TOO:
        return error.errno in STORAGE_ERRORS
    name = error.filename
    return isinstance(name, str | os.PathLike) and Path(name).resolve().is_relative_to(root.resolve())


def one_thread() -> None:
    """Have torch compute with one thread, as in workers: sums in another order would be other digits.

    Left alone where no task imported torch, which takes a second.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def disk_full(error: Exception, folder: Path) -> bool:
    """Whether an error of any type came from a full disk."""
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < 2**16


def check_code(run: PlannedRun, source: str | None) -> None:
    """Refuse a result whose code was edited between planning and its end: it would stand under the wrong key."""
    if source is None or source_digest() == source:
        return
    keys.forget()
    if keys.run_key(run.spec, run.kind) != run.key:
        raise UserError("its code was edited after it was planned; run the same command again.")


def check_sources(run: PlannedRun, weights: Mapping[str, Path], store: Store) -> None:
    """Refuse checkpoints of other runs that are missing or no longer what those runs wrote."""
    for source in sources(run):
        if source.kind != "run":
            continue
        path, record = weights[source.id], store.load(source.id)
        if record is None or not path.is_file() or sha256(path) != record.artifacts.get(path.name):
            raise UserError(
                f"{path} is not what its run wrote; delete {store.folder(source.id)} to have that run done again."
            )


def sources(run: PlannedRun) -> list[Any]:
    """The Weights of every teacher, and the initial ones."""
    return [teacher.weights for teacher in run.spec.teachers.values()] + ([run.spec.init] if run.spec.init else [])


def artifacts(folder: Path) -> list[Path]:
    """What a finished run keeps: weights, predictions, curves."""
    return sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".npz", ".jsonl"))


def write_live(folder: Path, curves: list[dict[str, Any]]) -> None:
    """Curves as DVCLive files, for `dvc plots`.

    Args:
        folder: DVCLive's, inside the run's.
        curves: one dict per epoch; entries that are not finite numbers are left out.
    """
    if not curves:
        return
    from dvclive import Live

    class RunCurves(Live):
        """A run is not a DVC experiment; DVCLive would look for (and make) a DVC repository around the worker."""

        def _init_dvc(self) -> None:
            self._save_dvc_exp = False

        def _init_studio(self) -> None:
            self._studio_events_to_skip.update(("start", "data", "done"))

    # DVCLive tells editors of each step by one file of the repository, which it looks for, then removes: workers take
    # turns, or one removes what another has just looked for, and a run that is done fails.
    turn = FileLock(folder.parent.parent / ".live.lock")
    # Not resumed: the curves are complete, so files of an earlier attempt are replaced rather than continued.
    options: dict[str, Any] = {"dvcyaml": None, "save_dvc_exp": False, "report": None, "monitor_system": False}
    with turn, RunCurves(dir=str(folder), **options) as live:
        for point in curves:
            for name, value in point.items():
                if name != "epoch" and type(value) in (int, float) and math.isfinite(value):
                    live.log_metric(
                        name.replace("/", "_"), value
                    )  # a slash nests: "loss" could not stand beside "loss/kd"
            live.next_step()


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Send what the library and Python's warnings say to a run's log file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("hkd", "experiments", "py.warnings")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        handler.close()


# -- the graph ----------------------------------------------------------------------------------------------


class Graph:
    """Which run may start next: one whose needs are done, with the longest way to the end of the graph.

    Args:
        runs: the runs to do, by key; needs outside of these count as done.
        length: how long each takes, in any one unit.
    """

    def __init__(self, runs: Mapping[str, PlannedRun], length: Mapping[str, float]):
        self.runs = dict(runs)
        self.dependents: dict[str, list[str]] = {key: [] for key in runs}
        self.waiting = {key: {need for need in run.needs if need in runs} for key, run in runs.items()}
        for key, needs in self.waiting.items():
            for need in needs:
                self.dependents[need].append(key)
        self.rank: dict[str, float] = {}
        for key in reversed(list(runs)):  # dependents come after what they need, so their ranks are known
            self.rank[key] = length[key] + max((self.rank[other] for other in self.dependents[key]), default=0.0)
        self.ready = [key for key in runs if not self.waiting[key]]

    def next(self) -> str | None:
        """Take the run to start now, or None while all that is left waits for others."""
        if not self.ready:
            return None
        key = max(self.ready, key=lambda key: self.rank[key])  # the first of equals: the plan's order
        self.ready.remove(key)
        return key

    def done(self, key: str) -> None:
        """A run has what its dependents need."""
        for other in self.dependents[key]:
            waits = self.waiting[other]
            waits.discard(key)
            if not waits and other not in self.ready:
                self.ready.append(other)

    def drop(self, key: str) -> None:
        """A run will not be started."""
        if key in self.ready:
            self.ready.remove(key)

    def unreachable(self, key: str) -> list[str]:
        """Every run that needs, directly or not, one that has no result; in the plan's order."""
        lost, front = set(), [key]
        while front:
            for other in self.dependents[front.pop()]:
                if other not in lost:
                    lost.add(other)
                    front.append(other)
        return [other for other in self.runs if other in lost]


# -- where runs are carried out -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that came back: with its record, or with why its worker gave none. killed: its worker process died."""

    key: str
    record: Record | None = None
    reason: str | None = None
    killed: bool = False


class Pool(ABC):
    """Where runs are carried out. `wait` returns what happened since, blocking until something did."""

    @abstractmethod
    def slots(self) -> int:
        """Runs that can be under way at once; may change as workers join or leave."""

    @abstractmethod
    def start(self, run: PlannedRun, weights: Mapping[str, str]) -> None:
        """Begin a run."""

    @abstractmethod
    def wait(self) -> list[Event | Finished]:
        """What happened; possibly nothing, after a second or so."""


class Here(Pool):
    """This process, one run at a time: for tests and debugging."""

    def __init__(self, store: Store, runtime: Runtime, on_event: Callable[[Event], None]):
        self.store, self.runtime, self.on_event = store, runtime, on_event
        self.begun: list[tuple[PlannedRun, Mapping[str, str]]] = []

    def slots(self) -> int:
        return 1

    def start(self, run: PlannedRun, weights: Mapping[str, str]) -> None:
        self.begun.append((run, weights))

    def wait(self) -> list[Event | Finished]:
        run, weights = self.begun.pop(0)

        def report(facts: dict[str, Any]) -> None:
            self.on_event(Event(kind="progress", key=run.key, facts=facts))

        return [Finished(key=run.key, record=execute_run(run, weights, self.store.root, self.runtime, report))]


class Workers(Pool):
    """Processes of a dask cluster, each with one thread.

    Args:
        client: connected; its workers see the store under the same path.
        own: whether the workers were started for this command, so that their code is as new as it.
    """

    def __init__(self, client: Any, store: Store, runtime: Runtime, *, own: bool):
        self.client, self.store, self.runtime, self.own = client, store, runtime, own
        self.source = source_digest()
        self.happened: queue.SimpleQueue[Event | Finished | Exception] = queue.SimpleQueue()
        self.futures: dict[str, Any] = {}  # held: dask forgets a run whose future is dropped
        self.asked, self.count, self.declared = 0.0, 0, False
        client.subscribe_topic(TOPIC, self.progress)

    def slots(self) -> int:
        if time.monotonic() - self.asked > 2:
            self.asked, workers = time.monotonic(), self.client.scheduler_info(n_workers=-1)["workers"]
            refuse_threads(workers)
            self.count = sum(self.capacity(worker) for worker in workers.values())
            self.declared = any("GPU" in worker.get("resources", {}) for worker in workers.values())
        return self.count

    def capacity(self, worker: Mapping[str, Any]) -> int:
        """Runs a worker takes at once: one, or none where it declares fewer GPUs than a run needs."""
        return int(worker.get("resources", {}).get("GPU", self.runtime.devices) >= self.runtime.devices)

    def start(self, run: PlannedRun, weights: Mapping[str, str]) -> None:
        future = self.client.submit(
            in_worker,
            run,
            weights,
            str(self.store.root.resolve()),
            self.runtime,
            self.source,
            self.own,
            key=f"run-{run.key}-{time.time_ns()}",  # a failed run that is tried again is another task
            resources={"GPU": self.runtime.devices} if self.declared else None,
            pure=False,
        )
        self.futures[run.key] = future
        future.add_done_callback(lambda future: self.finished(run.key, future))

    def progress(self, event: tuple[float, dict[str, Any]]) -> None:
        """Called by dask, in its own thread."""
        facts = dict(event[1])
        self.happened.put(Event(kind="progress", key=facts.pop("key"), facts=facts))

    def finished(self, key: str, future: Any) -> None:
        """Called by dask, in its own thread."""
        from distributed import KilledWorker

        if future.status == "finished":
            self.happened.put(Finished(key=key, record=future.result()))
        elif future.status == "error":
            error = future.exception()
            if isinstance(error, UserError):
                self.happened.put(error)
            elif isinstance(error, KilledWorker):
                self.asked = 0.0  # there are fewer workers now
                self.happened.put(Finished(key=key, killed=True))
            else:
                self.happened.put(Finished(key=key, reason=f"{type(error).__name__}: {error}"))
        else:
            self.happened.put(UserError("The dask scheduler went away; finished runs are kept: run the command again."))

    def wait(self) -> list[Event | Finished]:
        try:
            items = [self.happened.get(timeout=0.5)]
        except queue.Empty:
            return []
        while not self.happened.empty():
            items.append(self.happened.get())
        told = []
        for item in items:
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Finished):
                del self.futures[item.key]
            told.append(item)
        return told


def refuse_threads(workers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse workers (by address) that take several runs at once: these would share one stream of random numbers."""
    for address, worker in workers.items():
        if worker["nthreads"] != 1:
            raise UserError(f"Worker {address} has {worker['nthreads']} threads; start workers with `--nthreads 1`.")


@cache
def source_at_start() -> str:
    """The sources as they were when this process first asked: a worker may be older than the files."""
    return source_digest()


def in_worker(
    run: PlannedRun, weights: Mapping[str, str], root: str, runtime: Runtime, source: str, own: bool
) -> Record:
    """`execute_run` with progress sent through dask; what a worker process is asked to do."""
    from distributed import get_worker

    # Runs of one worker share composed images, which are therefore read-only; torch warns, and nothing writes them.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    worker = get_worker()
    if own:
        choose_gpus(worker.name, runtime.devices)
    elif source != source_at_start():
        raise UserError(f"Worker {worker.address} was started with other code of hkd; restart the workers.")
    if not Path(root).parent.is_dir():
        raise UserError(
            f"Worker {worker.address} does not see {Path(root).parent}; put HKD_RUNS on a shared file system."
        )

    def report(facts: dict[str, Any]) -> None:
        worker.log_event(TOPIC, {"key": run.key, **facts})

    return execute_run(run, weights, Path(root), runtime, report, source)


def choose_gpus(name: Any, devices: int) -> None:
    """Give local worker number `name` GPUs of its own, in turn; effective before its first use of one."""
    given = os.environ.get("HKD_VISIBLE_GPUS", "").split(",")
    if given != [""]:
        chosen = [given[(int(name) * devices + i) % len(given)] for i in range(devices)]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)


@contextmanager
def pool_for(
    store: Store, runtime: Runtime, workers: int, scheduler_file: Path | None, on_event: Callable[[Event], None]
) -> Iterator[Pool]:
    """The pool that was asked for; what it started ends with it."""
    if workers == 0 and scheduler_file is None:
        yield Here(store, runtime, on_event)
        return
    import dask
    from distributed import Client

    for name in ("distributed", "distributed.client"):  # what matters comes back as events; the rest breaks the display
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(dask_settings()):
        if scheduler_file is not None:
            if not scheduler_file.is_file():
                start = f"dask scheduler --scheduler-file {scheduler_file}"
                raise UserError(f"There is no scheduler file {scheduler_file}; start one with `{start}`.")
            try:
                client = Client(scheduler_file=str(scheduler_file), set_as_default=False, timeout="10s")
            except OSError:
                raise UserError(f"The dask scheduler of {scheduler_file} does not answer; start it again.") from None
            with client:
                yield Workers(client, store, runtime, own=False)
        else:
            with local_cluster(workers) as client:
                yield Workers(client, store, runtime, own=True)


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A client of worker processes on this machine, which are gone when the context is left, however it is left."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,
        dashboard_address=None,
        scheduler_kwargs={
            "dashboard_address": "127.0.0.1:0"
        },  # its own port is fixed, and two commands would meet there
        silence_logs=logging.CRITICAL,
    )
    client = Client(cluster, set_as_default=False)
    try:
        yield client
        client.close()
        cluster.close()
    except BaseException:
        # A worker in the middle of a run does not stop when asked: its checkpoint is on disk, so it is ended.
        for nanny in cluster.workers.values():
            if nanny.process is not None and nanny.process.process is not None:
                nanny.auto_restart = False
                os.kill(nanny.process.process.pid, 9)
        client.close(timeout=1)
        cluster.close(timeout=5)
        raise


def dask_settings() -> dict[str, Any]:
    """Few threads, little idle work, no pause or kill by memory use."""
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    single["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", LARGE_PAGES)
    if gpus():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(len(gpus()))))
        single["HKD_VISIBLE_GPUS"] = visible
    return {
        "distributed.worker.daemon": False,  # data loaders are processes of a worker
        "distributed.scheduler.allowed-failures": 0,  # dask would also count runs that only queued at a dead worker
        "distributed.scheduler.worker-ttl": "1 hour",  # a run may hold the interpreter for minutes
        "distributed.worker.profile.enabled": False,
        "distributed.admin.system-monitor.interval": "10s",
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.nanny.pre-spawn-environ": single,
    }


# -- a whole plan -------------------------------------------------------------------------------------------


def run_plan(
    plan: Plan,
    store: Store,
    *,
    workers: int | None = None,
    scheduler_file: Path | None = None,
    runtime: Runtime,
    on_event: Callable[[Event], None] = lambda event: None,
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

    Raises:
        UserError: nothing can start for lack of data or weights, an option is wrong, or the results cannot be written.
        KeyboardInterrupt: after the workers were ended; finished runs are kept, the others resume later.
    """
    began = time.time()
    records = {key: record for key in plan.runs if (record := store.load(key)) is not None}
    todo = {key: run for key, run in plan.runs.items() if key not in records or records[key].status not in FINAL}
    left_out = lacking(todo)
    if left_out and len(left_out) == len(plan.runs):
        raise UserError(f"None of the {len(left_out)} runs can start: {next(iter(left_out.values()))}")
    todo = {key: run for key, run in todo.items() if key not in left_out}
    execution = _Execution(plan, store, records, todo, on_event, reused=len(plan.runs) - len(todo) - len(left_out))
    if todo:
        check_writable(store)
        execution.refuse()
    if execution.graph.ready:
        count = min(default_workers(runtime) if workers is None else workers, len(todo))
        with pool_for(store, runtime, count, scheduler_file, on_event) as pool:
            execution.drive(pool)
        if runtime.cache_dir is not None:
            bound(runtime.cache_dir, CACHE_LIMIT)
    return ExecutionReport(
        records=records,
        executed=execution.executed,
        failed={**left_out, **execution.failed},
        seconds=time.time() - began,
    )


def default_workers(runtime: Runtime) -> int:
    """One process per core; where runs use GPUs, one per GPU (or group of `devices`)."""
    if device(runtime.accelerator) == "cuda" and gpus():
        return max(1, len(gpus()) // runtime.devices)
    return cores()


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


def check_writable(store: Store) -> None:
    """Refuse to begin what cannot be finished: a store that cannot be written."""
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        probe = store.root / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise storage_error(error, store.root) from None


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
        self.killed: set[str] = set()  # runs whose worker died once
        self.lost: set[str] = set()  # runs given up because of another
        durations = Durations(records, plan.runs) if todo else None
        self.graph = Graph(todo, {key: durations.weight(run) if durations else 0.0 for key, run in todo.items()})
        on_event(Event(kind="scheduled", facts={"todo": tuple(todo), "reused": reused}))

    def refuse(self) -> None:
        """Settle, before anything starts, runs that their method refuses or that need a run without a result."""
        for key, run in self.todo.items():
            if key in self.lost:
                continue
            ended = [self.records[need] for need in run.needs if need not in self.todo]
            without = [record for record in ended if record.status != "done"]
            reason = refusal(run) if not without else None
            if without:
                self.give_up([key, *self.graph.unreachable(key)], without[0])
            elif reason:
                self.settle(run, "refused", reason)

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
        if finished.killed and run.key not in self.killed:
            self.killed.add(run.key)
            self.graph.ready.append(run.key)  # it resumes from its checkpoint
            return
        if record is None:
            self.executed[run.key] = "failed"
            self.settle(run, "failed", finished.reason or KILLED)
            return
        self.executed[run.key] = record.status
        self.take(run, record)

    def settle(self, run: PlannedRun, status: str, reason: str) -> None:
        """Write a record that no worker wrote."""
        now = time.time()
        record = Record(
            key=run.key, label=run.label, status=status, spec=asdict(run.spec), started=now, finished=now, reason=reason
        )
        try:
            self.store.write(record)
        except OSError as error:
            raise storage_error(error, self.store.root) from error
        self.take(run, record)

    def take(self, run: PlannedRun, record: Record) -> None:
        """A run has its record: tell, and free or give up the runs that need it."""
        self.records[run.key] = record
        root = run.key not in self.lost
        lost = [] if record.status == "done" or not root else self.graph.unreachable(run.key)
        facts = {"status": record.status, "reason": record.reason, "seconds": record.finished - record.started}
        self.on_event(Event(kind="finished", key=run.key, facts={**facts, "root": root, "lost": len(lost)}))
        if record.status == "failed":
            self.failed[run.key] = record.reason or ""
        if record.status == "done":
            self.graph.done(run.key)
        else:
            self.graph.drop(run.key)
            self.give_up(lost, record)

    def give_up(self, keys: list[str], needed: Record) -> None:
        """Settle runs whose need has no result: refused where that is final, failed where it will be tried again."""
        status = "failed" if needed.status == "failed" else "refused"
        reason = f"needs '{needed.label}', which {ENDED[needed.status]}: {needed.reason}"
        fresh = [key for key in keys if key not in self.lost]
        self.lost.update(fresh)
        for key in fresh:
            self.graph.drop(key)
            self.settle(self.todo[key], status, reason)


KILLED = "its worker process was killed twice (by the system when memory runs out, or by hand)"
ENDED = {"failed": "failed", "diverged": "diverged", "refused": "was refused"}
