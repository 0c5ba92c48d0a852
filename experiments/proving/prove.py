"""`hkd numerics prove`: the library as it is edited now against a commit, by the same small runs on both sides.

A unit whose code changed keeps its version if every canary that enters it gives equal bits on both sides and every
statement that changed has run in one of them. What differed first is said otherwise; `accept` raises the version.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments import places
from experiments.planning.code import Code
from experiments.planning.lock import PATH, Entry, Lock, read_lock
from experiments.proving.canaries import Canary, canaries
from experiments.proving.changes import Change, changed
from experiments.proving.samples import write_samples
from experiments.proving.trace import Say, Side, Trace, traced
from experiments.records.environment import git
from hkd.errors import UserError

LOCK = Path("hkd") / PATH.name
SEARCHED = 200  # commits back that are looked through for one whose digests are all listed
REMOVED = " (removed)"  # after a place of the old code
MEMORY = Path("/dev/shm")  # canaries write a checkpoint at every step, which on a disk would take most of the time


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a proof says of one unit whose code changed.

    status: proved, new (no unit before), unreached (equal, but changed statements did not run), differs, or untested
    (no canary enters it). differences: what differed first in each canary that differs. unreached: places that no
    canary ran, of the new code, and of the old one where something was removed.
    """

    unit: str
    status: str
    canaries: int = 0
    differences: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Verdicts on all units that changed, by unit, the lock that follows from them, and what it was shown with."""

    base: str
    verdicts: dict[str, Verdict]
    lock: Lock
    raised: tuple[str, ...] = ()
    canaries: int = 0
    seconds: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every unit is listed now."""
        return all(is_settled(verdict, self.raised) for verdict in self.verdicts.values())


def is_settled(verdict: Verdict, raised: tuple[str, ...]) -> bool:
    """Whether a unit's code may be listed: proved, or every run that may have other numbers enters a raised unit."""
    if verdict.unit in raised or verdict.status in ("proved", "new"):
        return True
    return verdict.status == "differs" and bool(raised) and not verdict.unreached


def prove(
    base: str | None = None,
    *,
    device: str = "cpu",
    accept: bool = False,
    unreached: str | None = None,
    tables: tuple[str, ...] = (),
    root: Path | None = None,
    say: Say = lambda sentence: None,
) -> Proof:
    """Compare the checkout's library with that of a commit; writes nothing.

    Args:
        base: a git revision whose digests its own lock lists; None: the last such one.
        device: cpu or cuda.
        accept: where numbers differ, raise versions instead of refusing.
        unreached: why changed statements that no canary runs move no digit; kept in the lock.
        tables: take the canaries of these tables alone (a quick look: other units stay unproved).
        root: the checkout; None: this one.
        say: told what happens.

    Raises:
        UserError: no such commit, or one whose own code its lock does not list; a library that does not import.
    """
    began = time.monotonic()
    root = root or places.repository()
    with (
        tempfile.TemporaryDirectory(prefix="hkd-prove-", dir=MEMORY if MEMORY.is_dir() else None) as scratch,
        base_checkout(base, device, root) as (name, old_root),
    ):
        new, old = side(root), side(old_root)
        lock = replace(read_lock(old.root / LOCK), unreached=read_lock(root / LOCK).unreached)
        entries = read_lock(root / LOCK).entries
        moved = [
            unit for unit in new.units if not (unit in entries and entries[unit].holds(new.digest(unit) or "", device))
        ]
        say(f"{len(moved)} of {len(new.units)} units have code that is not proved on {device}; compared with {name}.")
        if not moved:
            return Proof(base=name, verdicts={}, lock=Lock(entries=entries, unreached=lock.unreached))
        known = {unit for unit in moved if unit in old.units}
        samples = Path(scratch) / "samples"
        write_samples(samples)
        flock = needed(shared(canaries(samples, device, tables), set(old.units)), known)
        say(f"{len(flock)} canaries enter them.")
        traces = traced(flock, (new, old), Path(scratch), samples, say)
        flock = {name: canary for name, canary in flock.items() if not unreadable(traces[1].results.get(name))}
        differences = compare(flock, *traces)
        verdicts = judge(moved, flock, new, old, traces, unreached)
        raised = raised_units(verdicts, flock, differences) if accept else ()
        return Proof(
            base=name,
            verdicts=verdicts,
            lock=locked(lock, entries, verdicts, raised, new, device, name, unreached),
            raised=raised,
            canaries=len(flock),
            seconds=time.monotonic() - began,
        )


# -- the two sides -------------------------------------------------------------------------------------------------


def side(root: Path) -> Side:
    """A checkout with its units, which its own library names."""
    program = "import json; from hkd.units import units; print(json.dumps(units()))"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    asked = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    if asked.returncode != 0:
        last = asked.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UserError(f"The library in {root} cannot be asked for its units: {last[0]}.")
    return Side(root, Code(root), json.loads(asked.stdout))


@contextmanager
def base_checkout(base: str | None, device: str, root: Path) -> Iterator[tuple[str, Path]]:
    """A worktree of the commit to compare with, gone afterwards, and the commit's short name."""
    if git("rev-parse", "HEAD", folder=root) is None:
        raise UserError("A proof compares with a commit, and this is no git checkout.")
    names = [base] if base else (git("rev-list", f"--max-count={SEARCHED}", "HEAD", folder=root) or "").split()
    with tempfile.TemporaryDirectory(prefix="hkd-base-") as scratch:
        for number, revision in enumerate(names):
            place = Path(scratch) / str(number)
            if git("worktree", "add", "--detach", str(place), revision, folder=root) is None:
                raise UserError(f"There is no commit '{revision}' to compare with; `git log` names them.")
            try:
                found = side(place) if (place / LOCK).is_file() else None
                listed = read_lock(place / LOCK).entries if found else {}
                if found and all(
                    unit in listed and listed[unit].holds(found.digest(unit) or "", device) for unit in found.units
                ):
                    yield (git("rev-parse", "--short", revision, folder=root) or revision, place)
                    return
                if base:
                    raise UserError(f"The lock of {base} does not list its own code on {device}: prove that first.")
                if not found:
                    break
            finally:
                git("worktree", "remove", "--force", str(place), folder=root)
    raise UserError(
        f"None of the last commits lists all of its code as proved on {device}; name one that does, or begin with "
        "`git checkout -- hkd/numerics.lock`."
    )


def shared(flock: Mapping[str, Canary], units: set[str]) -> dict[str, Canary]:
    """The canaries that both sides can carry out: the old side has all of their units, and of those whose weights they
    take. What is new is compared with nothing.
    """
    found: dict[str, Canary] = {}
    for name, canary in flock.items():  # each after those whose weights it takes
        if canary.units <= units and found.keys() >= set(canary.weights.values()):
            found[name] = canary
    return found


def needed(flock: Mapping[str, Canary], units: set[str]) -> dict[str, Canary]:
    """The canaries that enter one of the units, and those whose weights they take, in order."""
    wanted = {name for name, canary in flock.items() if canary.units & units}
    for name in reversed(list(flock)):
        if name in wanted:
            wanted |= set(flock[name].weights.values())
    return {name: canary for name, canary in flock.items() if name in wanted}


# -- comparing -----------------------------------------------------------------------------------------------------


def compare(flock: Mapping[str, Canary], new: Trace, old: Trace) -> dict[str, str]:
    """What differs first in each canary that differs."""
    found = {}
    for name in flock:
        if name in new.results and name in old.results:
            difference = first_difference(new.results[name], old.results[name])
            if difference:
                found[name] = difference
    return found


def unreadable(result: Mapping[str, Any] | None) -> bool:
    """Whether a side could not read a canary's spec: it sets a field that the side's code has not, as no run of that
    code did, so that there is nothing to compare."""
    reason = str((result or {}).get("reason") or "")
    return re.match(r"ValidationError: \d+ validation errors? for RunSpec\b", reason) is not None


def first_difference(new: dict[str, Any], old: dict[str, Any]) -> str | None:
    """What differs first between two results: step, term and tensor; None where they are equal.

    The wording of a refusal is no number: that both refuse is enough.
    """
    if not new or not old:
        return None
    step = 0
    for a, b in zip(new["events"], old["events"], strict=False):
        if a != b:
            return f"{place_of(a, step)}: {detail(a, b)}"
        step += a[0] == "parameters"
    if len(new["events"]) != len(old["events"]):
        return f"after step {step}: {len(new['events'])} events instead of {len(old['events'])}"
    for name in ("status", "reason", "facts", "files"):
        refused = name == "reason" and new["status"] not in ("done", "error")
        if new[name] != old[name] and not refused:
            return f"{name}: {inner(new[name], old[name])}"
    return None


def place_of(event: list[Any], step: int) -> str:
    """Where an event stands, for people."""
    return {"losses": "losses", "gradients": "gradients", "parameters": "parameters after the update"}.get(
        event[0], event[0]
    ) + f" of step {step}"


def detail(a: list[Any], b: list[Any]) -> str:
    """How two events differ."""
    if a[0] != b[0]:
        return f"{a[0]} instead of {b[0]}"
    if a[0] == "losses":
        terms = [name for name in {**b[1], **a[1]} if a[1].get(name) != b[1].get(name)]
        shown = [f"{name} {value(a[1].get(name))} instead of {value(b[1].get(name))}" for name in terms]
        return ", ".join(shown)
    if len(a) > 1:
        other = len([digest for digest in a[1] if digest not in b[1]])
        return (
            f"{other} of {len(a[1])} tensors differ"
            if len(a[1]) == len(b[1])
            else f"{len(a[1])} tensors, not {len(b[1])}"
        )
    return "differ"


def value(text: str | None) -> str:
    """A number of a trace, for people."""
    return "none" if text is None else f"{float.fromhex(text):.9g}"


def inner(a: Any, b: Any) -> str:
    """The first entry by which two values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        name = next(name for name in {**b, **a} if a.get(name) != b.get(name))
        return f"{name}: {inner(a.get(name), b.get(name))}"
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        at = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return f"{at}: {inner(a[at], b[at])}"
    return f"{str(a)[:200]} instead of {str(b)[:200]}"


def judge(
    moved: Iterable[str],
    flock: Mapping[str, Canary],
    new: Side,
    old: Side,
    traces: Sequence[Trace],
    reason: str | None = None,
) -> dict[str, Verdict]:
    """Verdicts on units whose code changed, from the traces of new and old code."""
    differences = compare(flock, *traces)
    return {unit: judged(unit, flock, differences, new, old, traces, reason) for unit in moved}


def judged(
    unit: str,
    flock: Mapping[str, Canary],
    differences: Mapping[str, str],
    new: Side,
    old: Side,
    traces: Sequence[Trace],
    reason: str | None,
) -> Verdict:
    """The verdict on one unit."""
    if unit not in old.units:
        return Verdict(unit=unit, status="new")
    own = {name for name, canary in flock.items() if unit in canary.units}
    if not own:
        return Verdict(unit=unit, status="untested")
    different = tuple(f"{flock[name].label} ({name}): {differences[name]}" for name in own if name in differences)
    sides = ((new, old, traces[0], ""), (old, new, traces[1], REMOVED))
    missed = tuple(
        dict.fromkeys(
            f"{change.place}{note}"
            for ours, theirs, trace, note in sides
            for change in changed(ours.code, theirs.code, [ours.units[unit]], [theirs.units[unit]])
            if not has_run(change, trace, own)
        )
    )
    status = "differs" if different else "unreached" if missed and not reason else "proved"
    return Verdict(unit=unit, status=status, canaries=len(own), differences=different, unreached=missed)


def has_run(change: Change, trace: Trace, own: set[str]) -> bool:
    """Whether a change has run in a canary of the unit; in that of another, where no canary of the unit enters its
    function at all (a module is imported whole, for one function of it).
    """
    if trace.reached(change.place, own):
        return True
    entered = any(trace.reached(place, own) for place in change.function)
    return not entered and trace.reached(change.place, set(trace.results))


def raised_units(
    verdicts: Mapping[str, Verdict], flock: Mapping[str, Canary], differences: Mapping[str, str]
) -> tuple[str, ...]:
    """Units whose versions rise so that every run that may have other numbers has another key.

    Those all of whose canaries differ come first; if they do not cover every difference, all that have one follow.
    """
    different = {unit for unit, verdict in verdicts.items() if verdict.status == "differs"}
    wholly = {
        unit for unit in different if all(name in differences for name, canary in flock.items() if unit in canary.units)
    }
    uncovered = {name for name in differences if not flock[name].units & wholly}
    rest = {unit for unit in different if any(unit in flock[name].units for name in uncovered)}
    return tuple(sorted(wholly | rest))


def locked(
    lock: Lock,
    entries: Mapping[str, Entry],
    verdicts: Mapping[str, Verdict],
    raised: tuple[str, ...],
    new: Side,
    device: str,
    base: str,
    reason: str | None,
) -> Lock:
    """The lock with what was proved."""
    found = {unit: entry for unit, entry in entries.items() if unit in new.units and unit not in verdicts}
    places: list[str] = []
    for unit, verdict in verdicts.items():
        digest = new.digest(unit)
        assert digest is not None
        now, before = entries.get(unit, Entry()), lock.entries.get(unit, Entry())
        if unit in raised:  # above every version that uncommitted code has had, too
            found[unit] = Entry(version=max(now.version, before.version) + 1, proved={digest: (device,)})
        elif is_settled(verdict, raised):
            found[unit] = (now if now.version == before.version else before).adding(digest, device)
            places += verdict.unreached
        elif unit in entries:
            found[unit] = now
    notes = [(base, lines, reason) for lines in by_file(places)] if reason else []
    return Lock(entries=found, unreached=(*lock.unreached, *notes))


def by_file(places: Iterable[str]) -> list[str]:
    """`hkd/files.py:3-5,9,-12` for each file of places such as `hkd/files.py:3`; the minus is of removed lines."""
    lines: dict[str, set[int]] = {}
    for place in places:
        file, _, line = place.removesuffix(REMOVED).rpartition(":")
        lines.setdefault(file, set()).add(-int(line) if place.endswith(REMOVED) else int(line))
    return [f"{file}:{','.join(ranges(sorted(found, key=lambda n: (n < 0, abs(n)))))}" for file, found in lines.items()]


def ranges(lines: Iterable[int]) -> Iterator[str]:
    """Lines in their order, those that follow each other as `first-last`."""
    for _, group in itertools.groupby(enumerate(lines), key=lambda item: (item[1] < 0, item[0] - abs(item[1]))):
        first, *_, last = [*(line for _, line in group)] * 2
        yield str(first) if first == last else f"{first}-{abs(last)}"
