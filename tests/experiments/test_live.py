"""What watchers see of a store that others write: runs and tables under way, torn files, and the time left."""

import io
import json
import os
import time
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.execution import run
from experiments.execution.events import Event
from experiments.execution.progress import Progress
from experiments.execution.run import execute_run
from experiments.execution.schedule import run_plan
from experiments.records import live
from experiments.records.live import Told, announced, left_by_rate, look
from experiments.records.store import Store
from experiments.tracking.sparkline import sparkline
from experiments.tracking.watch import frame
from hkd.methods import METHODS
from hkd.tasks import TASKS
from hkd.training.job import Runtime
from tests.experiments.fake_tasks import fake_plan, fake_run, register

RUNTIME = Runtime(accelerator="cpu")


@pytest.fixture
def store(tmp_path, monkeypatch):
    for place in (METHODS, TASKS):  # what was there is there again afterwards
        monkeypatch.setitem(place, "fake", None)
    monkeypatch.setattr(run, "is_ours", run.is_ours)
    register()
    return Store(tmp_path / "runs")


def leave(store, key, *, at=10.0, step=20, host=live.HOST, pid=None, curves=(), **facts):
    """A run that began at 0 s and stood at `step` of 80 at `at` seconds."""
    folder = store.folder(key)
    folder.mkdir(parents=True)
    note = {"label": f"kd of {key}", "host": host, "pid": os.getpid() if pid is None else pid, "started": 0.5, "at": at}
    note |= {
        "epoch": 1 + step // 20,
        "epochs": 4,
        "step": step,
        "steps": 80,
        "from_step": 0,
        "from_at": 0.0,
        "loss": 2.0,
    }
    (folder / "progress.json").write_text(json.dumps(note | facts))
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curves))


def printed(sight, store, width=80, most=12):
    console = Console(file=io.StringIO(), width=width)
    console.print(frame(sight, store, console, most))
    return console.file.getvalue()


def files(store):
    return sorted((str(path), path.stat().st_mtime_ns) for path in store.root.rglob("*"))


def test_a_sparkline_is_low_where_the_values_are_and_as_wide_as_asked():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, float("nan"), 1.0], 20) == "█ ▁"
    assert sparkline([2.0, 2.0], 20) == "▁▁"
    assert len(sparkline(list(range(1000)), 18)) == 18
    assert sparkline([0.0, 0.0, 8.0, 8.0], 2) == "▁█"  # means of neighbours
    assert sparkline([], 5) == ""


def test_a_run_under_way_is_seen_with_its_curves_and_the_time_left_at_its_own_pace(store):
    curves = [{"epoch": i, "loss": 3.0 - i, "train_top1": 10.0 * i, "val_top1": 20.0 * i} for i in (1, 2)]
    leave(store, "aaaa", curves=curves)
    before = files(store)
    sight = look(store, now=12.0)
    assert files(store) == before  # watching writes nothing
    assert [run.left for run in sight.runs] == [30.0]  # 20 of 80 steps in 10 s
    text = printed(sight, store)
    assert "1 run under way, 0 ended" in text
    assert "kd of aaaa" in text
    assert "epoch 2/4, about 30 s to go" in text
    assert "loss █▁ 2.000 → 1.000   val top-1 ▁█ 20.0 → 40.0" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_resumed_run_is_judged_by_the_pace_of_this_attempt(store):
    leave(store, "aaaa", at=10.0, step=60, from_step=40, from_at=0.0)
    assert look(store, now=10.0).runs[0].left == 10.0  # 20 steps in 10 s, 20 left


@pytest.mark.parametrize("note", ["", "{", "[1]", '{"at": "x", "step": null, "steps": [], "host": 3, "label": 4}'])
def test_torn_and_foreign_files_are_passed_over(note, store):
    leave(store, "aaaa", curves=[{"epoch": 1, "loss": 2.0}])
    with open(store.folder("aaaa") / "curves.jsonl", "a") as file:
        file.write('{"epoch": 2, "lo')
    folder = store.folder("bbbb")
    folder.mkdir()
    (folder / "progress.json").write_text(note)
    (folder / "record.json").write_text("{torn")
    (store.root / live.PLANS).mkdir()
    (store.root / live.PLANS / "x.json").write_text(note)
    sight = look(store, now=12.0)
    assert [run.key for run in sight.runs] == ["aaaa"]
    assert len(sight.runs[0].curves) == 1
    assert "kd of aaaa" in printed(sight, store)


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63, 1e308, float("nan"), True, -1])
@pytest.mark.parametrize("name", ["pid", "started", "at", "step", "steps", "from_step", "epoch", "epochs"])
def test_numbers_beyond_reason_in_a_note_end_nothing(name, value, store):
    leave(store, "aaaa", curves=[{"epoch": 1, "loss": value}])
    note = store.folder("aaaa") / "progress.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {name: value}))
    assert printed(look(store, now=20.0), store)


def test_a_run_whose_process_is_gone_is_told_as_stopped(store):
    process = os.fork()
    if not process:
        os._exit(0)
    os.waitpid(process, 0)
    leave(store, "aaaa", pid=process)
    leave(store, "bbbb", host="another-machine", at=10.0)
    sight = look(store, now=20.0)
    assert [run.key for run in sight.runs] == ["bbbb"]
    assert "kd of aaaa: epoch 2/4, 10 s ago" in printed(sight, store)
    assert not look(store, now=10.0 + live.SILENT_S).runs  # of another machine nothing was heard for long


def test_an_empty_store_and_one_that_is_not_there_are_watched_too(store):
    assert "0 runs under way, 0 ended" in printed(look(store), store)
    assert not store.root.exists()


def test_a_tables_time_left_is_by_the_rate_at_which_its_runs_finished(store):
    run_plan(fake_plan(fake_run("a")), store, workers=0, runtime=RUNTIME)
    with announced(store, "t", "laptop", 5, {"a": 1.0, "b": 1.0, "c": 2.0}):
        note = next((store.root / live.PLANS).iterdir())
        facts = json.loads(note.read_text())
        began = store.folder("a").joinpath("record.json").stat().st_mtime - 1
        note.write_text(json.dumps(facts | {"began": began}))
        plan = look(store, now=began + 60).plans[0]
        assert (plan.runs, plan.todo, plan.ended) == (5, 3, 1)
        assert plan.left == pytest.approx(180.0)  # a quarter of the work took 60 s
        text = printed(look(store, now=began + 60), store)
        assert "t (laptop): 3 of 5 runs done, 0 running, about 3 min 00 s to go" in " ".join(text.split())
        leave(store, "c", step=40, at=began + 50, started=began + 1)
        assert look(store, now=began + 60).plans[0].left == pytest.approx(60.0)  # half of c is done, too
    assert not look(store).plans


def test_a_rate_is_none_before_anything_is_done():
    assert left_by_rate(0.0, 10.0, 5.0) is None
    assert left_by_rate(5.0, 10.0, 5.0) == 5.0
    assert left_by_rate(10.0, 10.0, 5.0) == 0.0


def test_a_run_leaves_its_progress_while_it_goes_on_and_nothing_after(store):
    seen = []

    def report(facts):
        seen.append(look(store).runs)

    execute_run(fake_run("a"), {}, store.root, RUNTIME, report)
    assert [run.label for run in seen[0]] == ["fake a"]
    assert not (store.folder("a") / live.PROGRESS).exists()
    assert look(store).records == 1


def test_progress_is_written_at_most_once_a_second_and_the_first_step_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 3600.0)
    told = Told(tmp_path, "a run", lambda facts: None)
    for step in (7, 8, 9):
        told({"epoch": 1, "epochs": 2, "step": step, "steps": 20, "loss": 1.0})
    assert "step" not in json.loads((tmp_path / live.PROGRESS).read_text())
    told.write()
    assert json.loads((tmp_path / live.PROGRESS).read_text())["from_step"] == 7


def test_a_note_that_the_disk_takes_no_more_of_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(
        live.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    Told(tmp_path, "a run", lambda facts: None)  # no error: what matters will meet the disk next
    assert not [*tmp_path.iterdir()]


def test_the_time_left_follows_runs_that_finish_more_slowly_than_foretold(monkeypatch):
    """Foretold 10 s each; four of ten took 100 s each beside a busy process: 10 minutes are left, not one."""
    runs = [fake_run(f"r{i}") for i in range(10)]
    plan = fake_plan(*(replace(run, spec=replace(run.spec, seed=i)) for i, run in enumerate(runs)))
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(plan, {}, Console(file=io.StringIO()))
    progress(Event(kind="scheduled", facts={"todo": tuple(plan.runs), "reused": 0}))
    progress(Event(kind="workers", facts={"count": 1}))
    for key in list(plan.runs)[:4]:
        progress(Event(kind="started", key=key))
        now[0] += 100.0
        progress(Event(kind="finished", key=key, facts={"status": "done", "seconds": 10.0, "root": True, "lost": 0}))
    assert progress.time_left() == pytest.approx(600.0)
