"""A cluster that loses machines: tables made through it must end with the digits of undisturbed ones.

`python -m tests.robust.faults --faults 50 --seed 0` makes the two tables of `tests.robust.kills` through a dask
scheduler and some `hkd worker` processes, as docs/cluster.md says, with two clients at once, while at random moments

- a worker is killed by signal 9, with all its processes;
- the scheduler is killed, and another one started in its place;
- a worker stands still for some seconds, as if its network were gone, and then goes on;
- a client is killed;
- the store is read-only for some seconds (where this system lets us mount; a worker is killed where it is never idle).

What ended is started again, as a batch system would. At the end the digits are compared, the tables asked for once
more must execute nothing, and nothing may be left (see `tests.robust.kills`). One line is printed for a fault and one
for a life; the exit code is 1 if anything was found.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.robust.kills import (
    GONE_S,
    LIFE_S,
    TABLES,
    TRACEBACK,
    Client,
    Life,
    Trial,
    again,
    different,
    facts,
    left,
    marked,
    start,
)

WORKERS = 2
STILL_S = (1.0, 8.0)  # for which a worker stands still
LONG_S = 30.0  # one time in eight
READ_ONLY_S = (0.5, 3.0)
BUSY_S = 5.0  # that a store may be written to without a pause before a worker is killed instead
SHARES = {"worker": 0.35, "scheduler": 0.15, "network": 0.2, "client": 0.15, "read-only": 0.15}


class Part:
    """The scheduler or a worker, started again whenever it ended."""

    def __init__(self, sources: Path, place: Path, name: str, command: list[str]):
        self.sources, self.place, self.name, self.command = sources, place, name, command
        self.log, self.mark = place / f"{name}.log", f"{place}:{name}"
        self.process = self.started()

    def started(self) -> subprocess.Popen[bytes]:
        return start(self.command, self.sources, self.place, self.mark, self.log)

    def keep(self) -> None:
        """Start it if it ended."""
        if self.process.poll() is not None:
            self.process = self.started()

    def signal(self, number: int) -> None:
        """To all its processes."""
        for process in marked(self.mark):
            try:
                process.send_signal(number)
            except psutil.Error:
                continue


class Disturbed(Trial):
    """Lives of a cluster."""

    def parts(self, place: Path) -> tuple[Part, list[Part]]:
        """A scheduler and its workers."""
        file = str(place / "scheduler.json")
        python = [sys.executable, "-m"]
        scheduler = [*python, "distributed.cli.dask_scheduler", "--scheduler-file", file, "--port", "0"]
        worker = [*python, "experiments.cli", "worker", "--scheduler-file", file]
        first = Part(self.sources, place, "scheduler", [*scheduler, "--host", "127.0.0.1", "--dashboard-address", ":0"])
        return first, [Part(self.sources, place, f"worker{number}", worker) for number in range(WORKERS)]

    def life(self, number: int, kills: int) -> Life:
        """Make the tables in a new store while so many faults come; fewer if the tables are made before."""
        place, life = self.place(f"life{number}"), Life()
        (place / "runs").mkdir()
        mounted = (
            subprocess.run(["mount", "--bind", place / "runs", place / "runs"], capture_output=True).returncode == 0
        )
        options = ["--scheduler-file", str(place / "scheduler.json")]
        scheduler, workers = self.parts(place)
        self.at(place)
        clients = [Client(self.sources, place, table, [], options) for table in self.tables]
        for client in clients:
            client.start()
        began = time.monotonic()
        try:
            while alive := [client for client in clients if not client.ended()]:
                for part in (scheduler, *workers):
                    part.keep()
                if time.monotonic() - began > LIFE_S:
                    life.found.append(f"still not made after {LIFE_S:.0f} s")
                    break
                if life.kills < kills:
                    self.wait(place)
                    told = self.disturb(place, scheduler, workers, alive, mounted=mounted)
                    life.kills += 1
                    print(f"life {number} fault {life.kills}: {told}", flush=True)
                else:
                    time.sleep(0.5)
            life.found += again(clients)
            for part in (*workers, scheduler):
                part.signal(signal.SIGTERM)
            life.found += left(place, time.monotonic() + GONE_S)
        finally:
            for process in marked(f"{place}:"):
                process.kill()
            if mounted:
                subprocess.run(["umount", "--lazy", place / "runs"], check=True)
        life.codes.update(code for client in clients for code in client.codes)
        life.found += different(self.expected, facts(place / "runs", place / "results" / "kills"))
        life.found += [
            f"a traceback in {client.log.name}: {told[told.index('Traceback') :]}"
            for client in clients
            if TRACEBACK.search(told := client.log.read_text(errors="replace"))
        ]
        return life

    def at(self, place: Path) -> None:
        """Wait until the scheduler has written its file."""
        until = time.monotonic() + GONE_S
        while not (place / "scheduler.json").exists() and time.monotonic() < until:
            time.sleep(0.1)

    def disturb(
        self, place: Path, scheduler: Part, workers: list[Part], clients: list[Client], *, mounted: bool
    ) -> str:
        """Do one thing to the cluster; what it was."""
        what = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
        worker = self.rng.choice(workers)
        if what == "read-only" and mounted and made_read_only(place / "runs"):
            seconds = self.rng.uniform(*READ_ONLY_S)
            time.sleep(seconds)
            subprocess.run(["mount", "-o", "remount,rw,bind", place / "runs"], check=True)
            return f"the store was read-only for {seconds:.1f} s"
        if what == "network":
            seconds = LONG_S if self.rng.random() < 1 / 8 else self.rng.uniform(*STILL_S)
            worker.signal(signal.SIGSTOP)
            time.sleep(seconds)
            worker.signal(signal.SIGCONT)
            return f"{worker.name} stood still for {seconds:.1f} s"
        if what == "client":
            client = self.rng.choice(clients)
            if client.process is not None:
                os.kill(client.process.pid, signal.SIGKILL)
                client.process.wait()
            return f"the client of {client.table} was killed"
        part = scheduler if what == "scheduler" else worker
        part.signal(signal.SIGKILL)
        part.process.wait()
        return f"{part.name} was killed"


def made_read_only(folder: Path) -> bool:
    """Whether a mounted folder could be made read-only: the kernel refuses it while a file there is being written."""
    command = ["mount", "-o", "remount,ro,bind", folder]
    until = time.monotonic() + BUSY_S
    while subprocess.run(command, capture_output=True).returncode:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="faults in one store, at most")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hkd-faults-") as temporary:
        began = time.monotonic()
        trial = Disturbed(Path(temporary), given.seed, TABLES)
        print(f"undisturbed in {time.monotonic() - began:.0f} s", flush=True)
        faults = lives = found = 0
        while faults < given.faults:
            since = time.monotonic()
            life = trial.life(lives, min(given.each, given.faults - faults))
            faults, lives, found = faults + life.kills, lives + 1, found + len(life.found)
            codes = ", ".join(f"{code}: {count}" for code, count in sorted(life.codes.items()))
            print(f"life {lives - 1}: {life.kills} faults in {time.monotonic() - since:.0f} s, exit codes {{{codes}}}: "
                  + ("; ".join(life.found) or "digits equal, nothing left"), flush=True)  # fmt: skip
        print(f"{faults} faults in {lives} lives, {time.monotonic() - began:.0f} s: {found} found", flush=True)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
