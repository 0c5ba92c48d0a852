"""Records of runs: written once, atomically, sealed by a digest, shared by every table that needs them."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from experiments.documents import read_json
from hkd.errors import UserError
from hkd.files import atomic_write, sha256

MOST = 1e15  # of a measured number, a time among them
FINAL = ("done", "diverged", "refused")  # statuses that are never tried again
ENDED = {"failed": "failed", "diverged": "diverged", "refused": "was refused"}  # as sentences say them


def canonical(value: Any) -> bytes:
    """One byte string per JSON value: sorted keys, no spaces, no NaN; tuples as lists."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any, size: int = 16) -> str:
    """BLAKE2b of the canonical form, as `2 * size` hexadecimal digits."""
    return hashlib.blake2b(canonical(value), digest_size=size).hexdigest()


def step_ms(cost: Mapping[str, float]) -> float:
    """Median time of a run's steps in ms; nan where it is not recorded, or where other work was timed with it.

    Older records have time of the clock. On a CPU all steps together take no longer than the process did: where they
    seem to, the run waited for its cores.

    Args:
        cost: of a record.
    """
    step, seconds = cost.get("step_ms", math.nan), cost.get("cpu_s", math.nan)
    waited = not cost.get("gpu_s") and step * cost.get("steps", math.nan) > 1000 * seconds
    return math.nan if waited else step


@dataclass(frozen=True)
class Spent:
    """Time that runs took. seconds: of CPUs and GPUs. counted: of how many runs they are. runs: how many there are."""

    seconds: float
    counted: int
    runs: int

    @property
    def minutes(self) -> float:
        """Minutes, nan where fewer than half of the runs were counted: their sum says nothing of all."""
        return self.seconds / 60 if self.counted and 2 * self.counted >= self.runs else math.nan

    def __str__(self) -> str:
        """`247`; `> 247` where some runs were not counted; "" where most were not."""
        if math.isnan(self.minutes):
            return ""
        return f"{'> ' if self.counted < self.runs else ''}{self.minutes:.0f}"


def spent(costs: Iterable[Mapping[str, float]]) -> Spent:
    """What runs with these costs took; older records have none."""
    costs = list(costs)
    counted = [cost for cost in costs if "cpu_s" in cost]
    return Spent(sum(cost["cpu_s"] + cost.get("gpu_s", 0.0) for cost in counted), len(counted), len(costs))


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished run left. Stored as record.json in the run's folder, with a digest over all fields.

    status: done, diverged, refused or failed.
    metrics: e.g. {"top1": 87.3} in percent. cost: wall_s, cpu_s, gpu_s, step_ms (median), steps,
    extra_params_m, peak_memory_mib. artifacts: file name -> SHA-256. started, finished: Unix seconds.
    environment: versions, cpu, gpu, threads, commit, dirty, device.
    former_key: what named the run before `hkd runs rekey`; stored where there is one.
    committed: of a record that was read from results/reference/, when and on what it was made ("committed 2026-11-22,
    Intel Xeon"); never stored. Of such a record only the day is known: started and finished are its beginning.
    """

    key: str
    label: str
    status: str
    spec: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: float = 0.0
    finished: float = 0.0
    reason: str | None = None  # of diverged, refused, failed
    former_key: str | None = None
    committed: str | None = None

    def stored(self) -> dict[str, Any]:
        """The fields as they are stored; those that came later only where they say something, so that digests hold."""
        fields = asdict(self)
        del fields["committed"]
        if self.former_key is None:
            del fields["former_key"]
        return fields


class Altered(UserError):
    """A file beside a record is not the one that its run left."""


class Store:
    """A folder with one sub-folder per run, named by the run's key.

    Args:
        root: the folder; created when the first record is written.
    """

    def __init__(self, root: Path):
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        """Where a run keeps its record, weights, curves and checkpoint."""
        return self.root / key

    def keys(self) -> Iterator[str]:
        """Keys of all runs that have a record, sorted."""
        yield from sorted(path.parent.name for path in self.root.glob("*/record.json"))

    def load(self, key: str) -> Record | None:
        """The record of a run, or None if it has none.

        Raises:
            UserError: the file is not what was written (edited by hand, or cut short).
        """
        return self.read(key, key)

    def load_all(self, keys: Iterable[str]) -> dict[str, Record]:
        """The records that exist of some runs, by key."""
        return {key: record for key in keys if (record := self.load(key)) is not None}

    def read(self, name: str, key: str | None = None) -> Record | None:
        """The record in a run's folder, whatever run it is of unless a key is given, or None if there is none.

        Raises:
            UserError: the file is not what was written.
        """
        path = self.folder(name) / "record.json"
        try:
            document = read_json(path)
            sealed = document.pop("digest")
            record = Record(**document)
            same = sealed == digest(document)
            possible = is_possible(record)
        except FileNotFoundError:
            return None
        except OSError as error:  # a folder in its place, or not ours to read
            raise UserError(f"{path} cannot be read ({error.strerror}); move it away, or make it readable.") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            same = possible = False
            sealed = None
        if sealed is None or (same and not possible):
            raise UserError(f"{path} is not a record of a run; delete it to have the run done again.")
        if not same or key not in (None, record.key):
            raise UserError(
                f"{path} was changed after it was written (its digest does not match); "
                "restore it, or delete it to have the run done again."
            )
        return record

    def kept(self, record: Record, name: str) -> Path | None:
        """A file that a run left beside its record, or None if it left none of this name or it is gone.

        Runs that did not end well listed no files before they were verified; theirs are taken as they are.

        Raises:
            Altered: the file is not what the run wrote.
        """
        path = self.folder(record.key) / name
        if not path.is_file():
            return None
        if record.status != "done" and not record.artifacts:
            return path
        try:
            same = sha256(path) == record.artifacts.get(name)
        except OSError:
            same = False
        if not same:
            raise Altered(
                f"{path} is not what its run wrote, and is not used; restore it, or delete {path.parent} to have "
                "the run done again."
            )
        return path

    def write(self, record: Record, name: str | None = None) -> None:
        """Seal and store a record atomically; an interrupted write leaves the old one or none.

        Args:
            record: of the run.
            name: of the folder; None: the record's key.
        """
        document = record.stored()
        document["digest"] = digest(document)
        folder = self.folder(name or record.key)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n"
        with atomic_write(folder / "record.json") as temporary:
            temporary.write_text(text, encoding="utf-8")

    def lock(self, key: str) -> FileLock:
        """A lock that one process at a time can hold on a run."""
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(os.fspath(folder / "lock"))


def is_possible(record: Record) -> bool:
    """Whether the fields of a record, which JSON gave, are of the kinds that runs write."""
    numbers = (record.metrics, record.cost, {"started": record.started, "finished": record.finished})
    environment = record.environment
    texts = (record.key, record.label, record.reason or "", record.former_key or "")
    return (
        all(isinstance(text, str) for text in texts)
        and record.status in (*FINAL, "failed")
        and isinstance(record.spec, dict)
        and isinstance(environment, dict)
        and isinstance(environment.get("versions", {}), dict)
        and isinstance(environment.get("gpu", []), list)
        and isinstance(record.artifacts, dict)
        and all(isinstance(each, dict) and all(map(is_number, each.values())) for each in numbers)
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number that something can have measured."""
    return type(value) in (int, float) and abs(value) <= MOST
