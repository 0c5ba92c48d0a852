"""Kills at random moments: tables killed again and again by signal 9 must end with the digits of undisturbed ones.

`python -m tests.robust.kills --kills 100 --seed 0` copies the sources into a temporary checkout with a profile of a
few steps a run, a checkpoint after every step, and two tables that share runs: a teacher, supervised, KD and ScaleKD;
masked image modelling with its probe, fine-tuned, and a detector on it. The tables are made once undisturbed. Then, in
lives of some kills each, two `hkd run` with two worker processes each make them at once in one store, the second under
another host name where the system lets us (as a second machine on a shared disk would), while a client, a worker or a
whole process group is killed every few seconds and what ended is started again. A life ends with both tables made, and
then

- every run has the status, metrics, curves, weights and predictions of the undisturbed one, and so have the tables;
- asked for once more, the tables execute nothing;
- no temporary, damaged or half-made file, held lock, process or shared memory is left (but for the semaphores of
  32 bytes of Python's queues where their resource tracker was killed too; they are counted);
- no traceback was printed, but for those of Python's own resource tracker after it was itself killed.

One line is printed for a kill and one for a life; the exit code is 1 if anything was found.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from experiments.records.store import Store
from hkd.files import sha256

ROOT = Path(__file__).parents[2]
MARK = "HKD_TEST_KILLS"  # environment variable by which the processes of a client are known
TABLES = ("kills_one", "kills_two")
EARLY = 0.2  # share of kills that do not wait for a write in the store: they hit what is starting
QUIET_S = 60.0  # without a write in the store until the next kill comes anyway
SPREAD_S = 3.0  # between a write and the kill, at most
GONE_S = 60.0  # until the processes of a killed client have noticed, on a machine that is busy with others
LIFE_S = 1800.0  # a life that takes longer hangs
TRACEBACK = re.compile(r"^Traceback .*\n(.*)", re.MULTILINE)  # and the first place of it
SEMAPHORE = "sem."  # of Python's queues: 32 bytes each, deleted by its resource tracker, which a group's kill ends too
SHARES = {"worker": 0.55, "client": 0.25, "group": 0.2}  # of what is killed
PROFILE = """
name: kills
extends: smoke
alone: [data, models, teachers, students, recipes, override]
title: a few steps of everything, to be killed
seeds: 1
data:
  imagenet1k: {name: digits, options: {n_train: 50}, teacher_options: {n_train: 100}, stand_in: digits, note: digits}
  imagenet1k_unlabelled: {name: digits_unlabelled, stand_in: digits, note: digits}
  imagenet1k_all: {name: digits, options: {n_train: 100}, stand_in: digits, note: digits}
  coco: {name: scenes, options: {pool: 24, n_train: 24, n_test: 8}, stand_in: scenes, note: scenes}
models: {swin_s: swin_s_mini, mixer_s16: mixer_s16_mini, mae_b16: mae_b16_mini}
teachers:
  swin_s: {recipe: teacher}
  mae_b16:
    recipe: teacher_mim
    task: pretrain
    method: mae
    options: {image_size: 32, decoder_width: 32, decoder_depth: 1, decoder_heads: 2, norm_pix: false}
    data: imagenet1k_unlabelled
    classes: 0
    probe: imagenet1k_all
students: {mixer_s16: mixer, mae_b16: {finetune: masked_tune_vit, detect: scenes_vit}}
recipes:
  teacher: {epochs: 2, batch_size: 25, optimizer: adamw, lr: 0.003, shift: 1}
  teacher_mim: {epochs: 1, batch_size: 147, optimizer: adamw, lr: 0.002, shift: 1}
  mixer: {epochs: 4, batch_size: 10, optimizer: adamw, lr: 0.003, shift: 1, views: 2}
  masked_tune_vit: {epochs: 4, batch_size: 10, optimizer: adamw, lr: 0.001, shift: 1}
  scenes_vit: {epochs: 2, batch_size: 8, optimizer: adamw, lr: 0.002}
override: {}
captions: []
table_seeds: {}
"""
SHARED = """
  - row: mixer
    teacher: swin_s
    student: mixer_s16
    label: [Swin-S, Mixer-S/16]
    columns:
      - {method: kd, label: KD}
"""
ONE = f"""
id: kills_one
paper: scalekd
title: killed, first table
data: imagenet1k
rows:{SHARED}      - {{method: supervised, label: Baseline, teacher: false}}
      - {{method: scalekd, label: ScaleKD}}
"""
TWO = f"""
id: kills_two
paper: scalekd
title: killed, second table
data: imagenet1k
rows:{SHARED}  - row: tuned
    student: mae_b16
    starts_from: mae_b16
    label: ["", MAE]
    columns:
      - {{method: supervised, label: fine-tuned, teacher: false, strategy: finetune}}
      - method: supervised
        variant: coco
        label: detector
        teacher: false
        task: detect
        data: coco
        strategy: detect
        metrics: [ap_box]
"""


def checkout(folder: Path, profile: str, *tables: str) -> Path:
    """A copy of the sources with a profile `kills` and tables, whose runs write a checkpoint after every step."""
    for name in ("hkd", "analysis", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    data = folder / "experiments"
    (data / "profiles" / "kills.yaml").write_text(profile)
    for text in tables:
        name = re.search(r"^id: (\w+)$", text, re.MULTILINE)
        assert name is not None
        (data / "tables" / f"{name[1]}.yaml").write_text(text)
    job = folder / "hkd" / "training" / "job.py"
    text = job.read_text()
    for name, value in (("checkpoint_every_s", "5.0"), ("report_every_s", "0.25")):
        assert text.count(f"{name}: NotNegative = {value}") == 1
        text = text.replace(f"{name}: NotNegative = {value}", f"{name}: NotNegative = 0.0")
    job.write_text(text)
    return folder


def renaming() -> list[str]:
    """What starts a command under another host name, or nothing where this system does not let us."""
    words = ["unshare", "--uts", "sh", "-c", 'hostname another-machine && exec "$@"', "sh"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def start(command: Sequence[str], sources: Path, place: Path, mark: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a command of a checkout on the store of a place, in a session of its own; its output goes to the log."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HKD_", "DVC_"))}
    environment |= {
        "HKD_RUNS": str(place / "runs"),
        "HKD_RESULTS": str(place / "results"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONPATH": str(sources),
        "OMP_NUM_THREADS": "1",
        MARK: mark,
    }
    with open(log, "ab") as file:
        return subprocess.Popen(command, cwd=sources, env=environment, stdout=file, stderr=file, start_new_session=True)


class Client:
    """One `hkd run` of a table, started again whenever it was killed.

    Args:
        sources: the checkout.
        place: of the store, the results and the temporary files.
        table: which to make.
        prefix: words before the command.
        options: behind it.
    """

    def __init__(
        self, sources: Path, place: Path, table: str, prefix: list[str], options: Sequence[str] = ("--workers", "2")
    ):
        self.sources, self.place, self.table, self.prefix, self.options = sources, place, table, prefix, options
        self.mark = f"{place}:{table}"
        self.codes: list[int] = []
        self.log = place / f"{table}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command in a session of its own."""
        command = [sys.executable, "-m", "experiments.cli", "run", self.table, "--profile", "kills", *self.options]
        self.process = start([*self.prefix, *command], self.sources, self.place, self.mark, self.log)

    def ended(self) -> bool:
        """Whether the command was through by itself, all runs having results; one that ended otherwise is started."""
        if self.process is None:
            return True
        code = self.process.poll()
        if code is None:
            return False
        self.codes.append(code)
        if code == 0:
            self.process = None
            return True
        self.start()
        return False

    def processes(self) -> list[psutil.Process]:
        """All that live of this client and its earlier starts."""
        return list(marked(self.mark))


def marked(text: str) -> Iterator[psutil.Process]:
    """Processes whose mark begins like this."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(text) and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def role(process: psutil.Process) -> str:
    """What a process is for."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "gone"
    for sign, name in (("spawn_main", "worker"), ("resource_tracker", "tracker"), ("experiments.cli", "client")):
        if sign in words:
            return name
    return words[:40]


@dataclass
class Life:
    """What came of one store that was killed in again and again."""

    kills: int = 0
    semaphores: int = 0
    found: list[str] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)


class Trial:
    """The undisturbed tables, and lives that are compared with them.

    Args:
        folder: an empty one.
        seed: of the moments and the victims.
        tables: which clients there are.
        shares: how often what is killed.
    """

    def __init__(self, folder: Path, seed: int, tables: tuple[str, ...] = TABLES):
        self.folder, self.rng, self.tables = folder, random.Random(seed), tables
        self.sources = checkout(folder / "sources", PROFILE, ONE, TWO)
        self.elsewhere = renaming()
        self.memory = shared_memory()
        calm = self.place("calm")
        for table in tables:
            client = Client(self.sources, calm, table, [])
            client.start()
            assert client.process is not None
            assert client.process.wait() == 0, client.log.read_text()
        self.expected = facts(calm / "runs", calm / "results" / "kills")

    def place(self, name: str) -> Path:
        """A folder for one store."""
        made = self.folder / name
        (made / "tmp").mkdir(parents=True)
        return made

    def life(self, number: int, kills: int) -> Life:
        """Make the tables in a new store while so many kills come; fewer if the tables are made before."""
        place, life = self.place(f"life{number}"), Life()
        machines = [[], self.elsewhere]
        clients = [Client(self.sources, place, table, machines[i % 2]) for i, table in enumerate(self.tables)]
        for client in clients:
            client.start()
        began = time.monotonic()
        try:
            while True:
                alive = [client for client in clients if not client.ended()]
                if not alive:
                    break
                if time.monotonic() - began > LIFE_S:
                    life.found.append(f"still not made after {LIFE_S:.0f} s")
                    break
                if life.kills < kills:
                    self.wait(place)
                    victim = self.rng.choice(alive)
                    print(f"life {number} kill {life.kills + 1}: {self.kill(victim)} of {victim.table}", flush=True)
                    life.kills += 1
                else:
                    time.sleep(0.2)
            life.found += again(clients)
            life.found += left(place, time.monotonic() + GONE_S)
        finally:
            for process in marked(f"{place}:"):
                process.kill()
        life.codes.update(code for client in clients for code in client.codes)
        life.found += different(self.expected, facts(place / "runs", place / "results" / "kills"))
        for client in clients:
            told = TRACEBACK.findall(client.log.read_text(errors="replace"))
            life.found += [f"a traceback in {client.log}"] * any("resource_tracker.py" not in line for line in told)
        left_over = sorted(shared_memory() - self.memory - mapped_memory())
        life.semaphores = sum(name.startswith(SEMAPHORE) for name in left_over)
        life.found += [f"shared memory {name}" for name in left_over if not name.startswith(SEMAPHORE)]
        self.memory |= {*left_over}
        return life

    def wait(self, place: Path) -> None:
        """Wait for the next write in the store, then for a random time."""
        before = latest(place)
        until = time.monotonic() + (0.0 if self.rng.random() < EARLY else QUIET_S)
        while latest(place) == before and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(self.rng.uniform(0, SPREAD_S))

    def kill(self, client: Client) -> str:
        """Kill something of a client; what it was."""
        what = self.rng.choices(list(SHARES), list(SHARES.values()))[0]
        assert client.process is not None
        own = client.process.pid
        if what == "worker":
            others = sorted((p for p in client.processes() if p.pid != own), key=lambda process: process.pid)
            if others:
                victim = self.rng.choice(others)
                name = role(victim)
                try:
                    victim.kill()
                except psutil.Error:
                    return f"{name} {victim.pid}, gone before"
                return f"{name} {victim.pid}"
            what = "client"  # nothing else is there yet
        if what == "client":
            client.process.kill()
            client.process.wait()
            return f"client {own}"
        for process in client.processes():  # the whole session, whatever groups it made
            try:
                process.kill()
            except psutil.Error:
                continue
        client.process.wait()
        return f"group {own}"


def again(clients: list[Client]) -> list[str]:
    """Ask for made tables once more; sentences on what was executed again. What was left by a killed process goes."""
    told = []
    for client in clients:
        client.start()
        assert client.process is not None
        code = client.process.wait()
        if code or not re.search(r"^0 of \d+ runs executed", client.log.read_text(errors="replace"), re.MULTILINE):
            told.append(f"{client.table} was not found finished (exit code {code})")
    return told


def latest(place: Path) -> tuple[int, float]:
    """Something that changes with every file that is written into the store."""
    times = []
    for path in (place / "runs").glob("*/*"):
        try:
            times.append(path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return len(times), max(times, default=0.0)


def facts(runs: Path, results: Path) -> dict[str, Any]:
    """All that must not depend on how often a table was killed: of every run of a store, and of tables' files."""
    store, told = Store(runs), {}
    for key in [*store.keys()]:
        record = store.load(key)
        assert record is not None
        folder = store.folder(key)
        kept = {path.name: sha256(path) for path in folder.iterdir() if path.suffix in (".safetensors", ".npz")}
        kept["as recorded"] = str(all(sha256(folder / name) == digest for name, digest in record.artifacts.items()))
        curves = [json.loads(line) for line in lines(folder / "curves.jsonl")]
        told[f"{record.label} ({key})"] = {
            "status": record.status,
            "reason": record.reason,
            "metrics": record.metrics,
            "files": kept,
            "curves": [{name: value for name, value in line.items() if name != "seconds"} for line in curves],
        }
    for name in ("table.csv", "gains.csv"):
        for path in results.glob(f"*/{name}"):
            told[f"{path.parent.name}/{name}"] = path.read_text()
    return told


def lines(path: Path) -> list[str]:
    """Lines of a file; none where it is not there."""
    return path.read_text().splitlines() if path.is_file() else []


def different(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Sentences on what is not as expected."""
    told = [f"{name} is missing" for name in expected.keys() - found.keys()]
    told += [f"{name} is there" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        one, other = expected[name], found[name]
        if one != other:
            parts = [part for part in one if one[part] != other[part]] if isinstance(one, dict) else []
            told.append(f"{name} differs{' in ' + ', '.join(parts) if parts else ''}")
    return sorted(told)


def left(place: Path, until: float) -> list[str]:
    """Sentences on what a life left: processes (they have until then to end), files of half-done work, held locks."""
    while (alive := list(marked(f"{place}:"))) and time.monotonic() < until:
        time.sleep(0.2)
    told = [f"process {process.pid} ({role(process)}) is left" for process in alive]
    files = [path for part in ("runs", "results") for path in (place / part).rglob("*")]
    names = ("checkpoint.pt", "launch.json", "outcome.json", "report.json")
    told += [
        f"{path.relative_to(place)} is left"
        for path in files
        if path.suffix in (".tmp", ".damaged", ".new", ".old") or path.name in names or path.name.startswith(".probe")
    ]
    for path in files:
        if path.name == "lock" or path.suffix == ".lock":
            try:
                with FileLock(path, timeout=0):
                    continue
            except Timeout:
                told.append(f"{path.relative_to(place)} is held")
    told += [
        f"{path.relative_to(place)} is left"
        for path in (place / "tmp").rglob("*")
        if path.is_file()
        and not (path.parent.name == "dask-scratch-space" and path.suffix in (".lock", ".dirlock"))  # empty ones
    ]
    return told


def shared_memory() -> set[str]:
    """Names of this machine's shared memory."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def mapped_memory() -> set[str]:
    """Names of shared memory that a process uses: it is not left over, whoever it belongs to."""
    names = set[str]()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names.update(re.findall(r" /dev/shm/(\S+)", (process / "maps").read_text()))
        except OSError:  # gone, or not ours to read
            continue
    return names


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="kills in one store, at most")
    parser.add_argument("--folder", type=Path, help="an empty folder; a temporary one otherwise")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hkd-kills-") as temporary:
        folder, began = given.folder or Path(temporary), time.monotonic()
        trial = Trial(folder, given.seed)
        runs = sum(name.endswith(")") for name in trial.expected)
        print(f"undisturbed: {runs} runs in {time.monotonic() - began:.0f} s; "
              f"{'two host names' if trial.elsewhere else 'one host name'}", flush=True)  # fmt: skip
        kills = lives = failures = 0
        while kills < given.kills:
            since = time.monotonic()
            life = trial.life(lives, min(given.each, given.kills - kills))
            kills, lives, failures = kills + life.kills, lives + 1, failures + len(life.found)
            codes = ", ".join(f"{code}: {count}" for code, count in sorted(life.codes.items()))
            print(f"life {lives - 1}: {life.kills} kills in {time.monotonic() - since:.0f} s, exit codes {{{codes}}}, "
                  f"{life.semaphores} semaphores: "
                  + ("; ".join(life.found) or "digits equal, nothing left"), flush=True)  # fmt: skip
        print(f"{kills} kills in {lives} lives, {time.monotonic() - began:.0f} s: {failures} faults found", flush=True)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
