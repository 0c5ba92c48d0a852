"""A disk that is full, read-only or failing at each write in turn: finished runs stay, and the next start goes on."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cli, reproduce
from experiments.commands import tables as commands
from experiments.execution.schedule import run_plan
from experiments.planning import schema
from experiments.planning.plan import Cell
from experiments.records.store import Store
from hkd import files
from hkd.methods import METHODS
from hkd.tasks import TASKS
from hkd.training.job import Runtime
from tests.experiments.fake_tasks import fake_plan, fake_run
from tests.robust import kills
from tests.robust.disk import Disk

NAMES = ("one", "two")
OPTIONAL = ("hkd_runs/.cache", "hkd_runs/.cache/teacher.safetensors")  # what is computed again where it cannot be kept
REAL = """
id: disk_table
paper: scalekd
title: written to a disk that fails
data: imagenet1k
rows:
  - row: mixer
    teacher: swin_s
    student: mixer_s16
    label: [Swin-S, Mixer-S/16]
    columns:
      - {method: supervised, label: Baseline, teacher: false}
      - {method: kd, label: KD}
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of two fake runs, in this process."""
    monkeypatch.setitem(METHODS, "fake", "tests.experiments.fake_tasks:FakeMethod")
    monkeypatch.setitem(TASKS, "fake", "tests.experiments.fake_tasks:task")
    for name in ("HKD_RUNS", "HKD_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    cells = [
        Cell(row=name, teacher="", student="student", method="fake", variant="", metric="top1", label="Fake",
             row_label=("", name), runs=(name,))
        for name in NAMES
    ]  # fmt: skip
    plan = replace(fake_plan(*map(fake_run, NAMES)), cells=tuple(cells))
    monkeypatch.setattr(commands, "planned", lambda table, profile=None, seeds=None, **rest: plan)
    monkeypatch.setattr("experiments.drawings.base.drawing", lambda *arguments: None)  # it has no file
    return plan


def failing(monkeypatch, call, number, code):
    """Have the call of this number (from 0) of `os.<call>` by atomic writes fail; returns how many there were."""
    real, calls = getattr(os, call), []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == number + 1:
            raise OSError(code, os.strerror(code), str(arguments[-1]) if call == "replace" else None)
        return real(*arguments)

    class Failing:
        """os as hkd.files sees it."""

        def __getattr__(self, name):
            return counted if name == call else getattr(os, name)

    monkeypatch.setattr(files, "os", Failing())
    return calls


def hkd(*arguments):
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments])
    return left.value.code


def finished(store):
    return {key: record for key in NAMES if (record := store.load(key)) is not None and record.status == "done"}


FAULTS = (("replace", errno.ENOSPC), ("replace", errno.EROFS), ("replace", errno.EIO), ("replace", errno.EDQUOT),
          ("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("fsync", errno.EDQUOT), ("fsync", errno.EFBIG))  # fmt: skip


@pytest.mark.parametrize(("call", "code"), FAULTS)
@pytest.mark.parametrize("number", [0, 1])
def test_a_write_that_fails_loses_no_finished_run_and_the_next_start_goes_on(
    table, tmp_path, monkeypatch, capsys, call, code, number
):
    store = Store(tmp_path / "hkd_runs")
    with monkeypatch.context() as patched:
        calls = failing(patched, call, number, code)
        assert hkd("run", "fake_table", "--workers", "0") == 2
        assert len(calls) > number
    told = capsys.readouterr().err
    assert told.startswith(f"Cannot write to {store.folder(NAMES[number]) / 'record.json'}: {os.strerror(code)}. ")
    assert len(told.splitlines()) == 1
    kept = finished(store)
    assert len(kept) == number  # those before the write that failed
    assert not [*tmp_path.rglob(".*.tmp")]
    assert hkd("run", "fake_table", "--workers", "0") == 0
    assert finished(store).keys() == {*NAMES}
    assert all(store.load(key) == record for key, record in kept.items())
    assert (tmp_path / "hkd_results" / "laptop" / "fake_table" / "table.md").is_file()


def test_a_table_that_cannot_take_its_place_leaves_the_one_before_it(table, tmp_path, monkeypatch, capsys):
    assert hkd("run", "fake_table", "--workers", "0") == 0
    folder = tmp_path / "hkd_results" / "laptop" / "fake_table"
    before = (folder / "table.md").read_bytes()
    rename = Path.rename

    def fails(self, target):
        if self.name.endswith(".new"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        assert hkd("run", "fake_table", "--workers", "0") == 2
    assert "Cannot write" in capsys.readouterr().err
    assert (folder / "table.md").read_bytes() == before
    assert hkd("run", "fake_table", "--workers", "0") == 0


def test_what_a_killed_process_was_writing_is_swept_at_the_next_start(table, tmp_path):
    store = Store(tmp_path / "hkd_runs")
    store.folder("one").mkdir(parents=True)
    (tmp_path / "hkd_runs" / ".cache").mkdir()
    script = (
        "import os, sys; from pathlib import Path; from hkd.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary: temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    for path in (store.folder("one") / "checkpoint.pt", tmp_path / "hkd_runs" / ".cache" / "teacher-1"):
        subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert len([*tmp_path.rglob(".*.tmp")]) == 2
    ours = store.folder("one") / f".curves.jsonl.{files.HOST}.{os.getpid()}.tmp"
    elsewhere = store.folder("one") / ".curves.jsonl.another-machine.999999999.tmp"
    for path in (ours, elsewhere):
        path.write_text("being written")
    run_plan(table, store, workers=0, runtime=Runtime(data_root=tmp_path))
    assert {*tmp_path.rglob(".*.tmp")} == {ours, elsewhere}


def test_a_clock_that_is_set_moves_no_duration(table, tmp_path, monkeypatch):
    ticks = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr("experiments.execution.run.time.time", lambda: float(next(ticks)))
    done = run_plan(table, Store(tmp_path / "hkd_runs"), workers=0, runtime=Runtime(data_root=tmp_path))
    assert all(0 <= record.finished - record.started < 60 for record in done.records.values())
    assert 0 <= done.seconds < 60


SHORT = kills.PROFILE.replace("override: {}", "override: {epochs: 1, batch_size: 25, warmup_epochs: 0.0}")
MOUNTED = r"""
step() {
    "$@" > "$PLACE/$NAME.out" 2> "$PLACE/$NAME.err"
    echo $? > "$PLACE/$NAME.code"
}
mount -t tmpfs -o size=2500k none "$HKD_RUNS"
NAME=small step "$@"
mount -o remount,size=100m "$HKD_RUNS"
NAME=larger step "$@"
cp -r "$HKD_RUNS" "$PLACE/kept"
mount -o remount,ro "$HKD_RUNS"
NAME=finished step "$@"
mount --bind "$HKD_RESULTS" "$HKD_RESULTS"
mount -o remount,bind,ro "$HKD_RESULTS"
NAME=results step "$@"
mount -t tmpfs -o ro none "$HKD_RUNS"
umount "$HKD_RESULTS"
NAME=readonly step "$@"
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0 if shutil.which("unshare")
    else True, reason="this system lets us mount nothing",
)  # fmt: skip
def test_disks_that_are_small_or_read_only_are_one_sentence_from_two_workers(tmp_path):
    sources = kills.checkout(tmp_path / "sources", SHORT, REAL)
    environment = {**os.environ, "PYTHONPATH": str(sources), "PLACE": str(tmp_path)}
    for name in ("HKD_RUNS", "HKD_RESULTS"):
        environment[name] = str(tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    command = [sys.executable, "-m", "experiments.cli", "run", "disk_table", "--profile", "kills", "--workers", "2"]
    script = ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", *command]
    subprocess.run(script, cwd=sources, env=environment, check=True)
    expected = {
        "small": (2, "Cannot write to .*hkd_runs.*: No space left on device"),
        "larger": (0, None),
        "finished": (0, None),  # a store that nothing is written to may be read-only
        "results": (2, "Cannot write to .*hkd_results.*: Read-only file system"),
        "readonly": (2, "Cannot write to .*hkd_runs.*: Read-only file system"),
    }
    for name, (code, says) in expected.items():
        told = (tmp_path / f"{name}.err").read_text()
        assert (tmp_path / f"{name}.code").read_text().strip() == str(code), (name, told)
        assert len(told.splitlines()) == (says is not None), (name, told)
        assert says is None or re.search(says, told), (name, told)
    assert not [*(tmp_path / "kept").rglob("*.tmp")]
    assert len([*(tmp_path / "kept").glob("*/record.json")]) == 3


@pytest.fixture
def real(tmp_path, monkeypatch):
    """A table of a teacher and two students with a step or two each, in this process; a checkpoint after each."""
    papers = tmp_path / "papers"
    for name in ("tables", "profiles", "published", "manifests"):
        shutil.copytree(schema.HERE / name, papers / name)
    (papers / "tables" / "disk_table.yaml").write_text(REAL)
    (papers / "profiles" / "kills.yaml").write_text(SHORT)
    monkeypatch.setattr(schema, "HERE", papers)
    for cached in (schema.read, schema.document):
        cached.cache_clear()
    plain = reproduce.runtime_for
    often = {"checkpoint_every_s": 0.0, "report_every_s": 0.0}
    monkeypatch.setattr(reproduce, "runtime_for", lambda *of: replace(plain(*of), **often))
    yield tmp_path
    for cached in (schema.read, schema.document):
        cached.cache_clear()


def placed(monkeypatch, folder):
    """Put store and results there; a call that makes the real table."""
    for name in ("HKD_RUNS", "HKD_RESULTS"):
        monkeypatch.setenv(name, str(folder / name.lower()))
    return lambda: hkd("run", "disk_table", "--profile", "kills", "--workers", "0")


def records(folder):
    """Content of the records of runs that are done."""
    paths = (folder / "hkd_runs").glob("*/record.json")
    return {path: text for path in paths if json.loads(text := path.read_text())["status"] == "done"}


def digits(folder):
    """What must not depend on faults."""
    return kills.facts(folder / "hkd_runs", folder / "hkd_results" / "kills")


def each_write_fails(real, monkeypatch, capsys, often, first):
    """Make the table on a disk on which each write fails in turn; how often which did."""
    make, calm = placed(monkeypatch, real / "calm"), real / "calm"
    assert make() == 0, capsys.readouterr().err
    make, place = placed(monkeypatch, real / "faulty"), real / "faulty"
    place.mkdir()
    disk = Disk(place, often, first)
    while True:
        capsys.readouterr()
        before = records(place)
        with disk:
            code = make()
        told = capsys.readouterr().err
        after = records(place)
        assert {path: after.get(path) for path in before} == before, disk.fault  # nothing that was finished is lost
        if disk.fault is None:
            break
        path = disk.fault[1]
        name = disk.named(path)
        assert "Traceback" not in told, (disk.fault, told)
        if name in OPTIONAL or name.removesuffix(" (temporary)") in OPTIONAL:
            assert code == 0, (disk.fault, told)
            shutil.rmtree(place / "hkd_results")  # the next call writes the table again
        else:
            assert code in (1, 2), (disk.fault, code, told)
            lines = told.strip().splitlines()
            assert len(lines) == 1, (disk.fault, told)
            assert str(place) in lines[0], (disk.fault, told)
    assert code == 0, told
    assert not [*place.rglob(".*.tmp"), *place.rglob("checkpoint.pt*"), *place.rglob("*.new"), *place.rglob("*.old")]
    assert digits(place) == digits(calm)
    return disk.calls


@pytest.mark.long
@pytest.mark.slow
def test_each_write_of_a_whole_table_fails_in_turn_and_its_digits_stay(real, monkeypatch, capsys):
    calls = each_write_fails(real, monkeypatch, capsys, often=1, first=0)
    failed = {(what, Path(name).name) for what, name in calls}
    for name in ("checkpoint.pt", "curves.jsonl", "student.safetensors", "predictions.npz", "record.json"):
        assert {("open", f"{name} (temporary)"), ("os.rename", f"{name} (temporary)")} <= failed
        assert ("fsync", f"{name} (temporary)") in failed
    for name in ("lock", "run.log", "table.md", "table.csv", "cost.csv", "metrics.json"):
        assert ("open", name) in failed


@pytest.mark.long
@pytest.mark.parametrize("first", range(1, 6))
def test_each_write_of_a_whole_table_fails_in_every_way(real, monkeypatch, capsys, first):
    each_write_fails(real, monkeypatch, capsys, often=2, first=first)
