"""Putting runs away: never one that something else stands on."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from experiments.records import committed
from experiments.records.live import look
from experiments.records.store import Store
from experiments.tracking.facts import inner
from hkd.errors import UserError

ASIDE = ".removed."  # what the name of a folder begins with once it is no run any more


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What is to be removed. sizes: bytes by key. reasons: why a run must stay, by key. unread: damaged records, of
    which nobody knows what they need.
    """

    sizes: dict[str, int]
    reasons: dict[str, str]
    unread: tuple[str, ...] = ()


def considered(store: Store, keys: Sequence[str], references: Path) -> Removal:
    """Ask of every run whether it may go: no other run, no committed record and no process needs it.

    Args:
        store: of the runs.
        keys: of the runs to be removed, all at once: those that need each other may go together.
        references: folder of the committed records.
    """
    needed: dict[str, list[str]] = {}
    unread = []
    for name in [*store.keys()]:
        try:
            record = store.read(name)
        except UserError:
            unread.append(name)
            continue
        if record is not None and name not in keys:
            for key in needs(record.spec):
                needed.setdefault(key, []).append(record.label)
    held = committed_in(references)
    under_way = {run.key for run in look(store).runs}
    reasons = {}
    for key in keys:
        users = needed.get(key, [])
        if key in under_way:
            reasons[key] = "it is being carried out now"
        elif users:
            reasons[key] = f"{len(users)} other run{'s' if len(users) > 1 else ''} started from it, such as {users[0]}"
        elif key in held:
            reasons[key] = f"{held[key]} names it, and `hkd check` compares it with that"
    return Removal(
        sizes={key: size_of(store.folder(key)) for key in keys}, reasons=reasons, unread=tuple(set(unread) - {*keys})
    )


def needs(spec: Mapping[str, Any]) -> set[str]:
    """Keys of the runs whose weights a run used: its teachers', and those it started from."""
    teachers = inner(spec, "teachers")
    weights = [inner(inner(teachers, role), "weights") for role in teachers] + [inner(spec, "init")]
    return {str(each["id"]) for each in weights if each.get("kind") == "run" and "id" in each}


def committed_in(references: Path) -> dict[str, Path]:
    """The file of committed records that names a run, by key."""
    found: dict[str, Path] = {}
    for path in sorted(references.glob(f"*/*{committed.SUFFIX}")):
        found |= dict.fromkeys(committed.read(path).by_key, path)
    return found


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def remove(store: Store, keys: Sequence[str]) -> None:
    """Remove runs for good. A folder is renamed first, so that an interrupted removal leaves no half of a run.

    Raises:
        UserError: another process holds a run, or a folder cannot be removed.
    """
    for left_over in store.root.glob(f"{ASIDE}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    for key in keys:
        folder = store.folder(key)
        aside = folder.with_name(f"{ASIDE}{key}")
        try:
            with store.lock(key).acquire(timeout=0):
                os.rename(folder, aside)
        except Timeout:
            raise UserError(f"{folder} is in use by another process; wait for it to end.") from None
        except OSError as error:
            raise UserError(f"{folder} cannot be removed ({error.strerror}); make it writable.") from None
        shutil.rmtree(aside, ignore_errors=True)
