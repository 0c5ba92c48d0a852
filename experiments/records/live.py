"""What runs and plans under way leave in the store for whoever watches it, from this process or any other.

A run leaves `progress.json` in its folder beside the curves so far; a plan leaves `.plans/TABLE.PROFILE.HOST.PID.json`.
Neither says anything of a result, and both are gone when what they are about has ended. Readers write nothing, and pass
over what is torn, half there or of another version.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.documents import MOST_JSON, content
from experiments.records.store import Store
from hkd.files import HOST, is_running
from hkd.training.job import Report

PROGRESS, PLANS = "progress.json", ".plans"
EVERY_S = 1.0  # between two writings of a run's progress
MOST_NOTE = 2**20  # bytes
MOST = 1e15  # of the size of a number
SILENT_S = 120.0  # after which a run of another machine, whose processes cannot be asked for, counts as stopped
ENOUGH = 0.02  # of a run or a plan that must be done before its rate is one


class Told:
    """A run's `report` that also leaves its progress in the store.

    Args:
        folder: of the run.
        label: of the run, for people.
        report: called first, with the same facts.
    """

    def __init__(self, folder: Path, label: str, report: Report):
        self.path, self.report, self.written = folder / PROGRESS, report, -math.inf
        self.facts: dict[str, Any] = {"label": label, "host": HOST, "pid": os.getpid(), "started": time.time()}
        self.write()

    def __call__(self, facts: dict[str, Any]) -> None:
        """Take progress in: epoch, epochs, step, steps, loss, top1."""
        self.report(facts)
        if "step" in facts and "from_step" not in self.facts:  # a resumed run begins where it was left
            self.facts |= {"from_step": facts["step"], "from_at": time.time()}
        self.facts.update(facts)
        if time.monotonic() - self.written >= EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what is known, in one piece for readers."""
        self.written = time.monotonic()
        put(self.path, self.facts | {"at": time.time()})

    def end(self) -> None:
        """The run has its record: nothing is under way any more."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


def put(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a note for watchers; a full or read-only disk is told by what matters, which comes next."""
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    with suppress(OSError):
        try:
            temporary.write_text(json.dumps(facts), encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def announced(store: Store, table: str, profile: str, runs: int, lengths: Mapping[str, float]) -> Iterator[None]:
    """Leave, while the block runs, what is to be done for a table.

    Args:
        store: of the runs.
        table, profile: that the runs are for.
        runs: how many the table has in all.
        lengths: of the runs to be done, by key, in any one unit.
    """
    path = store.root / PLANS / f"{table}.{profile}.{HOST}.{os.getpid()}.json"
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        for other in path.parent.glob("*.json"):
            note = read_note(other) or {}
            if note.get("host") == HOST and not is_there(note, 0.0):  # its process was killed
                other.unlink(missing_ok=True)
    facts = {"table": table, "profile": profile, "host": HOST, "pid": os.getpid(), "began": time.time()}
    put(path, {**facts, "runs": runs, "lengths": dict(lengths)})
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


# -- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LiveRun:
    """A run that has begun and has not ended.

    facts: as `Told` has them. curves: one dict per finished epoch. going: whether its process is there, as far as that
    can be told. quiet: seconds since it was last heard of.
    """

    key: str
    facts: Mapping[str, Any]
    curves: tuple[Mapping[str, Any], ...] = ()
    going: bool = True
    quiet: float = 0.0

    @property
    def label(self) -> str:
        """What people call it."""
        return str(self.facts.get("label") or self.key)

    @property
    def share(self) -> float:
        """How much of it is done, in [0, 1]."""
        return part(self.facts, "step")

    @property
    def left(self) -> float | None:
        """Seconds left at its own pace since this attempt began, or None before there is one."""
        begun, step, steps = (number(self.facts.get(name)) for name in ("from_step", "step", "steps"))
        done, spent = step - begun, number(self.facts.get("at")) - number(self.facts.get("from_at"))
        if not done > 0 or not spent > 0 or self.share <= ENOUGH:
            return None
        return spent * (steps - step) / done


@dataclass(frozen=True, kw_only=True)
class LivePlan:
    """A table that is being made: runs in all, to be done when it began, ended since, under way; seconds left or None.

    spent: seconds since it began.
    """

    table: str
    profile: str
    runs: int
    todo: int
    ended: int
    under_way: int
    spent: float
    left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What a store shows at one moment. stopped: runs whose process is gone. records: how many runs have ended."""

    plans: tuple[LivePlan, ...] = ()
    runs: tuple[LiveRun, ...] = ()
    stopped: tuple[LiveRun, ...] = ()
    latest: tuple[str, ...] = field(default=())
    records: int = 0


def look(store: Store, now: float | None = None, latest: int = 3) -> Sight:
    """Read what is under way in a store.

    Args:
        store: that another process may be writing; nothing is written, locked or made here.
        now: Unix seconds; None: the clock's.
        latest: how many keys of the runs that ended last are wanted.
    """
    now = time.time() if now is None else now
    ended: list[tuple[float, str]] = []
    for path in store.root.glob("*/record.json"):
        with suppress(OSError):  # it went away
            ended.append((path.stat().st_mtime, path.parent.name))
    times = {key: at for at, key in ended}
    read = (read_run(path, now) for path in sorted(store.root.glob(f"*/{PROGRESS}")))
    # An older record is of an attempt that failed and is made again.
    runs = [run for run in read if run and times.get(run.key, 0.0) < number(run.facts.get("started"))]
    going = tuple(run for run in runs if run.going)
    notes = sorted(store.root.glob(f"{PLANS}/*.json"))
    plans = [plan for path in notes if (plan := read_plan(path, going, times, now))]
    return Sight(
        plans=tuple(plans),
        runs=going,
        stopped=tuple(run for run in runs if not run.going),
        latest=tuple(key for _, key in sorted(ended, reverse=True)[:latest]),
        records=len(ended),
    )


def read_run(path: Path, now: float) -> LiveRun | None:
    """A run by its progress.json, or None if that cannot be read."""
    facts = read_note(path)
    if facts is None:
        return None
    quiet = max(0.0, now - number(facts.get("at")))
    return LiveRun(
        key=path.parent.name,
        facts=facts,
        curves=tuple(curves_so_far(path.parent)),
        going=is_there(facts, quiet),
        quiet=quiet,
    )


def read_plan(path: Path, runs: tuple[LiveRun, ...], ended_at: Mapping[str, float], now: float) -> LivePlan | None:
    """A plan by its note, or None if that cannot be read or its process is gone."""
    facts = read_note(path)
    if facts is None or not isinstance(facts.get("lengths"), dict):
        return None
    own = any(run.key in facts["lengths"] for run in runs)  # the processes of another machine cannot be asked for
    if not is_there(facts, 0.0 if own else SILENT_S):
        return None
    began = number(facts.get("began"))
    lengths = {key: number(length) for key, length in facts["lengths"].items()}
    if not any(lengths.values()):  # nothing known of them: each counts the same
        lengths = dict.fromkeys(lengths, 1.0)
    ended = {key for key in lengths if ended_at.get(key, -math.inf) >= began - 1}  # file systems round their times
    under_way = {run.key: run.share for run in runs if run.key in lengths and run.key not in ended}
    done = sum(lengths[key] for key in ended) + sum(share * lengths[key] for key, share in under_way.items())
    return LivePlan(
        table=str(facts.get("table")),
        profile=str(facts.get("profile")),
        runs=int(number(facts.get("runs"))),
        todo=len(lengths),
        ended=len(ended),
        under_way=len(under_way),
        spent=now - began,
        left=left_by_rate(done, sum(lengths.values()), now - began),
    )


def left_by_rate(done: float, whole: float, spent: float) -> float | None:
    """Seconds left if work goes on at the rate at which it was done so far; None before that says anything.

    Args:
        done, whole: work, in any one unit.
        spent: seconds that `done` took.
    """
    if whole <= 0 or done / whole <= ENOUGH or spent <= 0:
        return None
    return spent * max(0.0, whole - done) / done


def read_note(path: Path) -> dict[str, Any] | None:
    """A note as a dict, or None if it is gone, torn or something else."""
    try:
        facts = json.loads(content(path, MOST_NOTE).decode())
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


def curves_so_far(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's curves; a line that is being written is passed over."""
    try:
        lines = content(folder / "curves.jsonl", MOST_JSON).decode(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            point = json.loads(line)
            if isinstance(point, dict) and type(point.get("epoch")) is int:
                found.append(point)
    return found


def series(curves: Any, name: str) -> list[float]:
    """The finite values of a curve."""
    values = (point.get(name) for point in curves)
    return [float(value) for value in values if is_number(value)]


def is_there(facts: Mapping[str, Any], quiet: float) -> bool:
    """Whether the process that left a note still runs; of another machine, whether it was heard of lately."""
    if facts.get("host") == HOST:
        pid = facts.get("pid")
        return type(pid) is int and 0 < pid < 2**31 and is_running(pid)
    return quiet < SILENT_S


def part(facts: Mapping[str, Any], at: str) -> float:
    """Steps done over all steps, in [0, 1]; 0 where they are not told."""
    done, whole = number(facts.get(at)), number(facts.get(f"{at}s"))
    return min(1.0, max(0.0, done / whole)) if whole > 0 else 0.0


def number(value: Any) -> float:
    """A number, or 0 for anything else that a damaged file may hold."""
    return float(value) if is_number(value) else 0.0


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number that a run can have: no NaN, nothing beyond reason."""
    return type(value) in (int, float) and -MOST <= value <= MOST
