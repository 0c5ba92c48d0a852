"""Hostile inputs of every kind, each tried in a child process that may crash or hang: `python -m tests.robust.fuzz`.

An input is clear if it is refused by a `UserError` of one line, or accepted where that is right. All else is a
failure: another exception, a refusal of several lines, a signal, more than `HANG` seconds, or the acceptance of what
cannot be (the kind checks that). Each input follows from (seed, kind, index) alone: `--only images:17` tries one
again, in this process, with its traceback.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import iter_modules

from hkd.errors import UserError

from . import kinds as kinds_package

HANG = 30.0  # seconds, of a machine that does nothing else
MEMORY = 16 * 2**30  # bytes of address space for a child; torch alone maps several GiB


@dataclass(frozen=True)
class Input:
    """One hostile input.

    Args:
        shown: what it is, in one line.
        attempt: tries it; raises UserError where it is refused, AssertionError where what cannot be was accepted.
    """

    shown: str
    attempt: Callable[[], object]


Kind = Callable[[random.Random, Path], Input]  # makes an input, whose files lie in the (empty) folder


@dataclass(frozen=True)
class Outcome:
    kind: str
    index: int
    shown: str
    word: str  # refused, accepted, or what went wrong
    said: str

    @property
    def clear(self) -> bool:
        return self.word in {"refused", "accepted"}


def all_kinds() -> dict[str, Kind]:
    """Every kind by name: each module of tests/robust/kinds lists its own in KINDS."""
    modules = [
        import_module(f"{kinds_package.__name__}.{module.name}") for module in iter_modules(kinds_package.__path__)
    ]
    return {name: kind for module in modules for name, kind in module.KINDS.items()}


def made(kind: Kind, rng: random.Random, folder: Path) -> Input:
    """An input; it may hold numbers that Python writes and reads only where it is told to, which is undone here."""
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return kind(rng, folder)
    finally:
        sys.set_int_max_str_digits(digits)


def tried(name: str, kind: Kind, seed: int, index: int) -> Outcome:
    """One input, tried in this process."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    rng = random.Random(f"{seed}/{name}/{index}")
    shown = "while it was made"
    try:
        given = made(kind, rng, folder)
        shown = given.shown
        given.attempt()
    except UserError as error:
        word, said = ("refused" if "\n" not in str(error).strip() else "several lines"), str(error)
    except AssertionError as error:
        word, said = "accepted wrongly", str(error)
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        word, said = type(error).__name__, f"{error} ({last.filename}:{last.lineno})"
    else:
        word, said = "accepted", ""
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
    return Outcome(name, index, shown, word, said)


def child(pipe: Connection, name: str, seed: int, indices: Iterator[int]) -> None:
    """Tries inputs until the parent has enough; says what it is about to try, then what came out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    kind = all_kinds()[name]
    for index in indices:
        outcome = tried(name, kind, seed, index)
        pipe.send((outcome.index, outcome.shown, outcome.word, outcome.said))


def patience() -> float:
    """Seconds after which no answer is a hang: longer where other processes keep the cores busy."""
    return HANG * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def outcomes(name: str, seed: int, count: int, until: float) -> Iterator[Outcome]:
    """What came of inputs 0, 1, ... of a kind, at most `count`; only the first is begun after the monotonic `until`."""
    fork = multiprocessing.get_context("fork")
    done = 0
    while done < count and (done == 0 or time.monotonic() < until):
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=child, args=(there, name, seed, iter(range(done, count))), daemon=False)
        process.start()
        there.close()
        try:
            while done < count and (done == 0 or time.monotonic() < until):
                if not here.poll(limit := patience()):
                    yield Outcome(name, done, "", "hang", f"no answer within {limit:.0f} s")
                    done += 1
                    break
                try:
                    index, shown, word, said = here.recv()
                except EOFError:
                    process.join()
                    code = process.exitcode or 0
                    word = signal.Signals(-code).name if code < 0 else f"exit {code}"
                    yield Outcome(name, done, "", word, "the process ended")
                    done += 1
                    break
                yield Outcome(name, index, shown, word, said)
                done = index + 1
        finally:
            process.kill()
            process.join()
            here.close()


def run(names: list[str], seed: int, count: int, minutes: float) -> list[Outcome]:
    """Up to `count` inputs of each kind, with an equal share of the minutes each; prints failures as they come."""
    found, started = [], time.monotonic()
    for place, name in enumerate(names):
        until = started + 60 * minutes * (place + 1) / len(names)
        for outcome in outcomes(name, seed, count, until):
            found.append(outcome)
            if not outcome.clear:
                print(f"{name}:{outcome.index} {outcome.word} | {outcome.shown} | {outcome.said}"[:600], flush=True)
    return found


def summary(found: list[Outcome]) -> str:
    """One line a kind: tried, refused, accepted, not clear."""
    words = Counter((outcome.kind, outcome.word if outcome.clear else "wrong") for outcome in found)
    names = dict.fromkeys(outcome.kind for outcome in found)
    lines = [
        f"{name:24}{sum(words[name, word] for word in ('refused', 'accepted', 'wrong')):8}"
        + "".join(f"{words[name, word]:10}" for word in ("refused", "accepted", "wrong"))
        for name in names
    ]
    wrong = sum(not outcome.clear for outcome in found)
    head = f"{'kind':24}{'tried':>8}{'refused':>10}{'accepted':>10}{'wrong':>10}"
    return "\n".join([head, *lines, f"{len(found)} inputs, {len(found) - wrong} clear"])


def main() -> None:
    available = all_kinds()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--count", type=int, default=10_000, help="inputs of each kind, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(available), default=list(available))
    parser.add_argument("--only", metavar="KIND:INDEX", help="one input, in this process, with its traceback")
    given = parser.parse_args()
    if given.only:
        name, index = given.only.split(":")
        folder = Path(tempfile.mkdtemp(prefix="hostile-"))
        hostile = made(available[name], random.Random(f"{given.seed}/{name}/{int(index)}"), folder)
        print(json.dumps({"shown": hostile.shown, "folder": str(folder)}))
        print("accepted:", hostile.attempt())
        return
    found = run(given.kinds, given.seed, given.count, given.minutes)
    print(summary(found))
    raise SystemExit(any(not outcome.clear for outcome in found))


if __name__ == "__main__":
    main()
