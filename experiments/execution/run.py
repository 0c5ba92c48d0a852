"""One run, in whatever process: from its plan to its record, whatever happens on the way."""

import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.execution.storage import disk_error, not_written, storage_failed
from experiments.planning import keys
from experiments.planning.plan import PlannedRun
from experiments.records.environment import environment, source_digest
from experiments.records.live import Told
from experiments.records.store import FINAL, Record, Store
from hkd.errors import Diverged, Refused, UserError
from hkd.files import sha256, sweep
from hkd.outside import is_ours
from hkd.registry import load, lookup
from hkd.tasks import TASKS
from hkd.training.job import Job, Report, Runtime
from hkd.units import units_of


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
        StorageError: the store cannot be written to: every error of a file that is not one of the run itself.
    """
    store = Store(store_root)
    try:
        with store.lock(run.key):
            record = store.load(run.key)
            if record is not None and record.status in FINAL:
                return record
            folder = store.folder(run.key)
            sweep(folder)
            if run.data_root is not None:
                runtime = replace(runtime, data_root=Path(run.data_root))
            with log_to(folder / "run.log"):
                files = {name: Path(path) for name, path in weights.items()}
                told = Told(folder, run.label, report)
                record = carry_out(run, files, store, runtime, told, source)
            store.write(record)
            told.end()
            return record
    except OSError as error:
        raise not_written(error, store_root) from error


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
    folder, started, began = store.folder(run.key), time.time(), time.monotonic()
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
        left = {path.name: sha256(path) for path in artifacts(folder)}
        facts = {"status": "diverged", "reason": str(error), "artifacts": left}
    except UserError as error:
        log.error("%s", error)
        status = "refused" if isinstance(error, Refused) else "failed"
        facts = {"status": status, "reason": str(error)}
    except Exception as error:
        if isinstance(error, OSError):
            if storage_failed(error, folder, store.root):
                raise
        elif (cause := disk_error(error, folder)) is not None:
            raise cause from error
        log.exception("the run stopped")
        facts = {"status": "failed", "reason": sentence(error, folder)}
    log.info("%s after %.1f s", facts["status"], time.monotonic() - began)
    return Record(
        key=run.key,
        label=run.label,
        spec=asdict(run.spec),
        environment=environment(runtime.accelerator, runtime.settings),
        started=started,
        finished=started + time.monotonic() - began,  # a clock that is set in between moves no duration
        **facts,
    )


def sentence(error: Exception, folder: Path) -> str:
    """One sentence for a crash, with where to read more."""
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "can't allocate memory" in str(error):
        return (
            "Out of memory: use fewer workers (--workers), or fewer images at a time (micro_batch of the profile's "
            "machine, which leaves the run the same)."
        )
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first_line} (traceback in {folder / 'run.log'})"


def one_thread() -> None:
    """Have torch compute with one thread, as in workers: sums in another order would be other digits.

    Left alone where no task imported torch, which takes a second.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def check_code(run: PlannedRun, source: str | None) -> None:
    """Refuse a result whose code was edited between planning and its end: it would stand under the wrong key."""
    if source is None or (source_digest() == source and all(map(is_ours, units_of(run.spec).values()))):
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


class RunLog(logging.FileHandler):
    """A run's log. That a full disk takes no line of it needs no traceback: the next file of the run will say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name that logging calls)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Send what the library and Python's warnings say to a run's log file."""
    handler = RunLog(path, encoding="utf-8")
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
