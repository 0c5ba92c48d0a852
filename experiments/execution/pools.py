"""Where runs are carried out: in this process, on this machine's cores, or on a cluster.

dask only carries a run to a worker and brings it back when a worker dies; which run is next is decided by the schedule,
so that the same code serves one process, the cores of a laptop and a cluster.
"""

import logging
import multiprocessing
import os
import queue
import re
import socket
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from experiments.documents import read_json
from experiments.execution.events import Event, Finished
from experiments.execution.run import execute_run
from experiments.planning.keys import device_kind
from experiments.planning.plan import PlannedRun
from experiments.records.environment import device, gpus, source_digest
from experiments.records.store import Record, Store
from hkd.errors import UserError
from hkd.training.job import Runtime

TOPIC = "hkd-progress"
ANSWER_S = 10.0  # within which a scheduler answers
BACK_S = 300.0  # that a scheduler which went away is waited for
WENT_AWAY = "The dask scheduler went away; finished runs are kept: run the command again."
WRITTEN_S = 2.0  # within which it writes its file
# Large pages for torch's buffers, also in the worker's thread: small pages made steps up to twice as slow in a virtual
# machine (benchmarks/test_page_speed.py). Other C libraries than glibc ignore it.
LARGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


class SchedulerLost(UserError):
    """The dask scheduler went away, or nobody answers at its address."""


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
        with asked_of_scheduler():
            client.subscribe_topic(TOPIC, self.progress)

    def slots(self) -> int:
        if time.monotonic() - self.asked > 2:
            self.asked, workers = time.monotonic(), self.joined()
            refuse_threads(workers)
            self.count = sum(self.capacity(worker) for worker in workers.values())
            self.declared = any("GPU" in worker.get("resources", {}) for worker in workers.values())
        return self.count

    def joined(self) -> dict[str, Any]:
        """The workers that the scheduler has, by address.

        Raises:
            SchedulerLost: it is gone.
        """
        if self.client.status in ("closing", "closed"):  # dask gave up to reach it
            raise SchedulerLost(WENT_AWAY)
        with asked_of_scheduler():
            info = self.client.scheduler_info(n_workers=-1)
        if "workers" not in info:  # in the moment in which dask has noticed that it is gone, it knows of none
            raise SchedulerLost(WENT_AWAY)
        return dict(info["workers"])

    def capacity(self, worker: Mapping[str, Any]) -> int:
        """Runs a worker takes at once: one, or none where it declares fewer GPUs than a run needs."""
        return int(worker.get("resources", {}).get("GPU", self.runtime.devices) >= self.runtime.devices)

    def start(self, run: PlannedRun, weights: Mapping[str, str]) -> None:
        with asked_of_scheduler():
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
            self.happened.put(SchedulerLost(WENT_AWAY))

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


@contextmanager
def asked_of_scheduler() -> Iterator[None]:
    """Whatever dask raises because its scheduler is gone, as `SchedulerLost`."""
    from distributed.client import ClosedClientError

    try:
        yield
    except (ClosedClientError, OSError, TimeoutError) as error:  # of connections that were closed, or are not answered
        raise SchedulerLost(WENT_AWAY) from error


def refuse_threads(workers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse workers (by address) that take several runs at once: these would share one stream of random numbers."""
    for address, worker in workers.items():
        if worker["nthreads"] != 1:
            raise UserError(f"Worker {address} has {worker['nthreads']} threads, not one; use workers of `hkd worker`.")


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
    if runtime.loader_workers and multiprocessing.current_process().daemon:
        raise UserError(
            f"Worker {worker.address} may not start the {runtime.loader_workers} loader workers of this profile; "
            "start workers with `hkd worker` instead of `dask worker`."
        )
    if not own:
        check_device(f"Worker {worker.address}", run.kind, runtime)
    if not Path(root).parent.is_dir():
        raise UserError(
            f"Worker {worker.address} does not see {Path(root).parent}; put HKD_RUNS on a shared file system."
        )

    def report(facts: dict[str, Any]) -> None:
        worker.log_event(TOPIC, {"key": run.key, **facts})

    return execute_run(run, weights, Path(root), runtime, report, source)


def check_device(who: str, kind: str, runtime: Runtime) -> None:
    """Refuse a run whose key is for another kind of device than this machine's, or that needs more GPUs than it has.

    Args:
        who: begins the sentence.
        kind: of device that the run's key is for, as `device_kind` names it.
        runtime: of the profile.
    """
    here = device_kind(device(runtime.accelerator), runtime.processes)
    if here != kind:
        raise UserError(
            f"{who} would carry out on '{here}' what was planned for '{kind}', on a machine of another kind: give the "
            "command on one like the workers', or set machine.accelerator in a profile that extends this one."
        )
    if here.startswith("cuda") and 0 < len(gpus()) < runtime.devices:
        raise UserError(
            f"{who} has {len(gpus())} of the {runtime.devices} GPUs that each run takes (machine.devices of the "
            "profile): give each worker so many."
        )


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
    import distributed  # noqa: F401 (its defaults: read within the settings below, they would be lost with them)

    for name in ("distributed", "distributed.client"):  # what matters comes back as events; the rest breaks the display
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with dask.config.set(dask_settings()):
        if scheduler_file is not None:
            client = connected(scheduler_file)
            try:
                yield Workers(client, store, runtime, own=False)
            finally:
                with suppress(TimeoutError):  # it must not hide why the pool was left
                    client.close()
        else:
            with local_cluster(workers) as client:
                yield Workers(client, store, runtime, own=True)


def connected(scheduler_file: Path) -> Any:
    """A client of a running scheduler.

    Raises:
        UserError: there is no such file, it is not one, or nobody answers at its address.
    """
    address = scheduler_address(scheduler_file)
    reach(address, scheduler_file)
    from distributed import Client

    clients: list[Any] = []

    def ask() -> None:
        with suppress(OSError, ValueError, TypeError):
            clients.append(Client(address, set_as_default=False, timeout=ANSWER_S))

    asking = threading.Thread(target=ask, daemon=True)  # of something that listens and says nothing, dask never tires
    asking.start()
    asking.join(2 * ANSWER_S)
    if not clients:
        raise silent(address, scheduler_file)
    return clients[0]


def reach(address: str, scheduler_file: Path) -> None:
    """Refuse an address at which nobody is: dask would try for long to reach it."""
    met = re.fullmatch(r"[a-z]+://\[?(?P<host>[^\[\]]+)\]?:(?P<port>[0-9]{1,5})", address)
    if met:
        try:
            socket.create_connection((met["host"], int(met["port"])), timeout=ANSWER_S).close()
        except (OSError, OverflowError, UnicodeError):
            raise silent(address, scheduler_file) from None


def await_scheduler(scheduler_file: Path) -> None:
    """Wait until somebody is at the address in a scheduler's file, which one that is started again writes anew.

    Raises:
        UserError: nobody within `BACK_S`.
    """
    until = time.monotonic() + BACK_S
    while True:
        try:
            return reach(scheduler_address(scheduler_file), scheduler_file)
        except UserError:
            if time.monotonic() > until:
                raise
        time.sleep(1)


def silent(address: str, scheduler_file: Path) -> SchedulerLost:
    """That nobody answers there."""
    return SchedulerLost(f"The dask scheduler of {scheduler_file} does not answer at {address}; start it again.")


def scheduler_address(scheduler_file: Path) -> str:
    """The address in a file that `dask scheduler --scheduler-file` wrote.

    Raises:
        UserError: there is no such file, or it is not one.
    """
    start = f"dask scheduler --scheduler-file {scheduler_file}"
    try:
        return str(read_json(scheduler_file)["address"])
    except FileNotFoundError:
        raise UserError(f"There is no scheduler file {scheduler_file}; start one with `{start}`.") from None
    except OSError as error:
        raise UserError(f"The scheduler file {scheduler_file} cannot be read ({error.strerror}).") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{scheduler_file} is not a scheduler file; have `{start}` write it again.") from None


@contextmanager
def local_cluster(workers: int) -> Iterator[Any]:
    """A client of worker processes on this machine, which are gone when the context is left, however it is left.

    Raises:
        UserError: they could not be started, or one was killed before it was ready.
    """
    from distributed import Client, LocalCluster

    try:
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
    except (RuntimeError, OSError) as error:
        why = error.__cause__ or error
        raise UserError(
            f"The worker processes could not be started ({type(why).__name__}: {why}); run the same command again, "
            "with fewer of them (--workers) if memory is short."
        ) from error
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
                with suppress(ProcessLookupError):
                    os.kill(nanny.process.process.pid, 9)
        # No process is left. A busy machine may not close the connections in time: that must not hide why it ended.
        with suppress(TimeoutError):
            client.close(timeout=1)
        with suppress(TimeoutError):
            cluster.close(timeout=5)
        raise


def serve(scheduler_file: Path, options: Sequence[str] = ()) -> None:
    """Be a worker of a dask scheduler, with the settings of own workers, until it is told to stop.

    Args:
        scheduler_file: of the scheduler; waited for if it is not there yet.
        options: more options of `dask worker`.

    Raises:
        UserError: an option that `dask worker` does not have, a file that is not a scheduler's, or nobody at its
            address.
    """
    address = awaited(scheduler_file)
    reach(address, scheduler_file)
    import dask
    from click import ClickException
    from distributed.cli.dask_worker import main

    own = ["--scheduler-file", str(scheduler_file), "--nthreads", "1", "--memory-limit", "0"]
    with dask.config.set(dask_settings()):
        try:
            main([*own, *options], prog_name="hkd worker", standalone_mode=False)
        except ClickException as error:
            raise UserError(f"hkd worker: {error.format_message()} `dask worker --help` lists the options.") from None
        except (RuntimeError, OSError):  # something that listens there and is no scheduler, or stopped being one
            raise silent(address, scheduler_file) from None


def awaited(scheduler_file: Path) -> str:
    """The address in a scheduler's file, once it is there and, for a scheduler is writing it, whole."""
    while not scheduler_file.exists():
        time.sleep(0.5)
    until = time.monotonic() + WRITTEN_S
    while True:
        try:
            return scheduler_address(scheduler_file)
        except UserError:
            if time.monotonic() > until:
                raise
        time.sleep(0.1)


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
