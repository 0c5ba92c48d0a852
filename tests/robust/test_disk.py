"""A disk that is full, read-only or failing at each write in turn: finished runs stay, and the next start goes on."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import cli
from experiments.commands import tables as commands
from experiments.execution.schedule import run_plan
from experiments.planning.plan import Cell
from experiments.records.store import Store
from hkd import files
from hkd.methods import METHODS
from hkd.tasks import TASKS
from hkd.training.job import Runtime
from tests.experiments.fake_tasks import fake_plan, fake_run

NAMES = ("one", "two")


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


FAULTS = (("replace", errno.ENOSPC), ("replace", errno.EROFS), ("replace", errno.EIO), ("fsync", errno.EIO),
          ("fsync", errno.ENOSPC))  # fmt: skip


@pytest.mark.parametrize(("call", "code"), FAULTS)
@pytest.mark.parametrize("number", [0, 1])
def test_a_write_that_fails_loses_no_finished_run_and_the_next_start_goes_on(
    table, tmp_path, monkeypatch, capsys, call, code, number
):
    store = Store(tmp_path / "hkd_runs")
    with monkeypatch.context() as patched:
        calls = failing(patched, call, number, code)
        assert hkd("run", "fake_table", "--workers", "0") in (1, 2)
        assert len(calls) > number
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.strip()
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
