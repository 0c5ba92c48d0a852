"""What each side of a proof computes: canaries carried out by the tracer in processes of their own, on all cores.

A trace is kept beside the runs, by everything that it depends on: a proof that was interrupted by a question (why do
changed lines that no canary runs move no digit?) is answered without running anything again, and the base of one
proof is the base of the next.
"""

import ast
import gzip
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any

import hkd
from experiments import places
from experiments.planning.code import Code
from experiments.proving.canaries import Canary
from experiments.proving.changes import Place
from experiments.records.environment import cores, cpu, versions
from experiments.records.store import digest
from hkd.errors import UserError
from hkd.files import atomic_write

TRACER = Path(__file__).with_name("tracer.py")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Side:
    """One side of the comparison: a checkout, its code, and the entry module of each unit."""

    root: Path
    code: Code
    units: Mapping[str, str]

    def digest(self, unit: str) -> str | None:
        """The digest of a unit's code; None if this side has no such unit."""
        return self.code.digest([self.units[unit]]) if unit in self.units else None

    def order(self, canary: Canary) -> dict[str, Any]:
        """What its tracer is told of a canary: without fields of specs that have come since, where nobody set them."""
        told = canary.order()
        return told | {"spec": without_new(told["spec"], fields_of(self.root))}


@cache
def fields_of(root: Path) -> frozenset[str]:
    """Names of all fields of a checkout's specs."""
    tree = ast.parse((root / "hkd" / "spec.py").read_text())
    found = (node.target for node in ast.walk(tree) if isinstance(node, ast.AnnAssign))
    return frozenset(target.id for target in found if isinstance(target, ast.Name))


def without_new(spec: Any, known: frozenset[str]) -> Any:
    """A spec without fields that are None and that a side does not know; its options are nobody's fields."""
    if isinstance(spec, list | tuple):
        return [without_new(item, known) for item in spec]
    if not isinstance(spec, dict):
        return spec
    since = fields_of(Path(hkd.__file__).parents[1]) - known
    return {name: without_new(value, known) for name, value in spec.items() if value is not None or name not in since}


@dataclass
class Trace:
    """What the tracer of one side wrote: results of canaries by id, and which contexts ran each line of a module."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)

    def reached(self, place: Place, contexts: set[str]) -> bool:
        """Whether one of the canaries ran a line of a place."""
        module = self.lines.get(place.module, {})
        return any(module.get(line, set()) & contexts for line in range(place.first, place.last + 1))


def traced(
    flock: Mapping[str, Canary], sides: tuple[Side, Side], scratch: Path, samples: Path, say: Say
) -> list[Trace]:
    """The traces of both sides: those that are kept of earlier proofs, the others made now.

    Args:
        flock: canaries by id, each after those whose weights it takes.
        sides: new and old.
        scratch: an empty folder.
        samples: sample data sets that the canaries read.
        say: told how many are done.

    Raises:
        UserError: a library that does not carry them out.
    """
    paths = [place_of(side, flock) for side in sides]
    missing = {path: side for path, side in zip(paths, sides, strict=True) if not path.is_file()}
    parts = shares(flock, max(1, cores() // max(1, len(missing))))
    jobs = [
        (side, part, scratch / f"{path.name}-{number}")
        for path, side in missing.items()
        for number, part in enumerate(parts)
    ]
    began = told = time.monotonic()
    with running(jobs, samples) as processes:
        while any(process.poll() is None for process in processes):
            time.sleep(0.2)
            if time.monotonic() - told > 20:
                told = time.monotonic()
                done = sum((folder / f"{name}.json").is_file() for _, part, folder in jobs for name in part)
                say(f"{done} of {len(flock) * len(missing)} small runs after {told - began:.0f} s")
    for side, _, folder in jobs:
        if not (folder / "finished").is_file():
            last = (folder / "log").read_text().strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"The library in {side.root} did not carry out the canaries: {last[0]}")
    for path, side in missing.items():
        keep(joined(read_trace(folder, part) for of, part, folder in jobs if of is side), path)
    return [kept(path) for path in paths]


@contextmanager
def running(
    jobs: Iterable[tuple[Side, Mapping[str, Canary], Path]], samples: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Tracers in the background, one a job, of one thread each; none is left afterwards."""
    processes, logs = [], list[IO[bytes]]()
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    try:
        for side, part, folder in jobs:
            folder.mkdir()
            shutil.copytree(samples, folder / "data", copy_function=shutil.copy2)
            runs = [side.order(canary) for canary in part.values()]
            order = {"root": str(side.root), "data": str(folder / "data"), "runs": runs}
            (folder / "order.json").write_text(json.dumps(order))
            logs.append(open(folder / "log", "wb"))  # noqa: SIM115
            command = [sys.executable, str(TRACER), str(folder / "order.json"), str(folder)]
            environment = {**os.environ, **single}
            processes.append(subprocess.Popen(command, env=environment, stdout=logs[-1], stderr=logs[-1], cwd=folder))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()


def shares(flock: Mapping[str, Canary], count: int) -> list[dict[str, Canary]]:
    """Canaries in at most `count` parts of like sizes; those that take weights from each other stay together."""
    group = {name: name for name in flock}

    def first(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for name, canary in flock.items():
        for other in canary.weights.values():
            group[first(name)] = first(other)
    members: dict[str, list[str]] = {}
    for name in flock:
        members.setdefault(first(name), []).append(name)
    parts: list[set[str]] = [set() for _ in range(count)]
    for names in sorted(members.values(), key=len, reverse=True):
        min(parts, key=len).update(names)
    return [{name: canary for name, canary in flock.items() if name in part} for part in parts if part]


def read_trace(folder: Path, flock: Iterable[str]) -> Trace:
    """What the tracer left in a folder."""
    trace = Trace({name: json.loads((folder / f"{name}.json").read_text()) for name in flock})
    if (folder / "lines.json").is_file():
        lines = json.loads((folder / "lines.json").read_text())
        trace.lines = {m: {int(n): set(c) for n, c in found.items()} for m, found in lines.items()}
    return trace


def joined(traces: Iterable[Trace]) -> Trace:
    """Traces of several parts as one."""
    whole = Trace()
    for trace in traces:
        whole.results |= trace.results
        for module, lines in trace.lines.items():
            for line, contexts in lines.items():
                whole.lines.setdefault(module, {}).setdefault(line, set()).update(contexts)
    return whole


# -- kept traces ---------------------------------------------------------------------------------------------------


def place_of(side: Side, flock: Mapping[str, Canary]) -> Path:
    """Where the trace of a side is kept: by its files, the canaries, the tracer, libraries and processor."""
    sources = sorted((side.root / "hkd").rglob("*.py"))
    facts = {
        "code": {str(path.relative_to(side.root)): sha256(path) for path in sources},
        "runs": [side.order(canary) for canary in flock.values()],
        "tracer": sha256(TRACER),
        "versions": versions(),
        "machine": [cpu(), platform.platform()],
    }
    return places.runs() / ".cache" / "proofs" / f"{digest(facts)}.json.gz"


def sha256(path: Path) -> str:
    """Of a file's bytes, as they are: line numbers count."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keep(trace: Trace, path: Path) -> None:
    """Write a trace."""
    lines = {m: {n: sorted(contexts) for n, contexts in found.items()} for m, found in trace.lines.items()}
    content = json.dumps({"results": trace.results, "lines": lines}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(gzip.compress(content, compresslevel=1))


def kept(path: Path) -> Trace:
    """Read a trace."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    lines = {m: {int(n): set(c) for n, c in found.items()} for m, found in document["lines"].items()}
    return Trace(document["results"], lines)
