"""Executing plans: with fake tasks, in this process and in worker processes."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dask
import distributed
import pytest
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError
from filelock import FileLock

from experiments.execution import pools, schedule
from experiments.execution.events import Event, Finished
from experiments.execution.graph import Graph
from experiments.execution.pools import Pool, SchedulerLost, Workers, choose_gpus, local_cluster, refuse_threads
from experiments.execution.run import log_to, write_live
from experiments.execution.schedule import bound, run_plan
from experiments.execution.storage import StorageError, disk_error
from experiments.planning.plan import Expected, plan
from experiments.records import environment
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.methods import METHODS
from hkd.tasks import TASKS
from hkd.training.job import Runtime
from tests.experiments.fake_tasks import fake_plan, fake_run

RUNTIME = Runtime(accelerator="cpu")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setitem(METHODS, "fake", "tests.experiments.fake_tasks:FakeMethod")
    monkeypatch.setitem(TASKS, "fake", "tests.experiments.fake_tasks:task")
    with dask.config.set({"distributed.worker.preload": ["tests.experiments.fake_tasks"]}):
        yield


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def execute(store, *runs, workers=0, on_event=lambda event: None):
    return run_plan(fake_plan(*runs), store, workers=workers, runtime=RUNTIME, on_event=on_event)


def statuses(report):
    return {key: record.status for key, record in report.records.items()}


# -- before anything starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("there", "said"), [(("H200",), "has 1"), ((), "has none")])
def test_more_gpus_than_there_are_is_said_before_anything_starts(store, monkeypatch, there, said):
    monkeypatch.setattr(schedule, "gpus", lambda: there)
    runtime = Runtime(accelerator="cuda", devices=8)
    with pytest.raises(UserError, match=f"Each run takes 8 GPUs .*, and this machine {said}: .*--scheduler-file"):
        run_plan(fake_plan(fake_run("a")), store, workers=1, runtime=runtime)
    assert not [*store.keys()]


def test_gpus_of_other_machines_are_not_counted_here(monkeypatch):
    monkeypatch.setattr(schedule, "gpus", lambda: ())
    schedule.check_gpus(Runtime(accelerator="cuda", devices=8), Path("scheduler.json"), 2)
    schedule.check_gpus(Runtime(accelerator="cuda", devices=8, num_nodes=2), None, 2)
    schedule.check_gpus(Runtime(accelerator="cpu", devices=8), None, 2)


def test_workers_that_would_share_gpus_are_refused(store, monkeypatch):
    monkeypatch.setattr(schedule, "gpus", lambda: ("H200",) * 5)
    monkeypatch.setattr(schedule, "device", lambda accelerator: "cuda")
    runtime = Runtime(accelerator="cuda", devices=2)
    runs = [fake_run(name) for name in "abc"]
    with pytest.raises(UserError, match="3 workers with 2 GPUs each would share the 5 of this machine: give --w"):
        run_plan(fake_plan(*runs), store, workers=3, runtime=runtime)
    schedule.check_gpus(runtime, None, 2)


@pytest.mark.parametrize(
    ("kind", "asked", "there", "said"),
    [
        ("cpu", {"accelerator": "auto"}, ("H200",), "would carry out on 'cuda' what was planned for 'cpu'"),
        ("cuda", {"accelerator": "auto"}, (), "would carry out on 'cpu' what was planned for 'cuda'"),
        ("cuda-ddp", {"accelerator": "cuda", "devices": 8}, ("H200",), "has 1 of the 8 GPUs that each run takes"),
        ("cuda-ddp", {"accelerator": "cuda", "devices": 2}, ("H200",) * 2, None),
        ("cuda", {"accelerator": "cuda"}, (), None),  # of other makers, which none of NVIDIA's tools can count
        ("cpu", {"accelerator": "auto"}, (), None),
    ],
)
def test_a_worker_of_another_kind_or_with_too_few_gpus_is_refused(monkeypatch, kind, asked, there, said):
    monkeypatch.setattr(pools, "gpus", lambda: there)
    monkeypatch.setattr(environment, "gpus", lambda: there)
    refused = pytest.raises(UserError, match=said) if said else nullcontext()
    with refused:
        pools.check_device("Worker w", kind, Runtime(**asked))


# -- a teacher that is not the published one ------------------------------------------------------------------


def taught_plan(top1):
    """A teacher that is measured at 50 % and a student of it; top1: what is published of the teacher."""
    plan = fake_plan(fake_run("teacher"), fake_run("student", needs=("teacher",)), fake_run("alone"))
    known = Expected(teacher="swin_l", file="swin_l.safetensors", top1=top1, source="its paper")
    return replace(plan, expected={"teacher": known})


def test_a_teacher_far_below_its_published_accuracy_teaches_nobody_and_the_reason_is_said(store):
    report = run_plan(taught_plan(86.24), store, workers=0, runtime=RUNTIME)
    assert statuses(report) == {"teacher": "done", "alone": "done", "student": "failed"}
    assert report.failed["student"].startswith(
        "teacher 'swin_l' reaches 50.0 % here, where 86.24 % is published (its paper): swin_l.safetensors"
    )
    again = run_plan(taught_plan(86.24), store, workers=0, runtime=RUNTIME)  # its record is there already
    assert again.failed == report.failed
    assert again.executed == {}


def test_a_teacher_near_its_published_accuracy_teaches(store):
    assert set(statuses(run_plan(taught_plan(54.9), store, workers=0, runtime=RUNTIME)).values()) == {"done"}


def test_only_weights_from_files_at_the_papers_own_scale_are_held_against_what_is_published():
    found = plan("scalekd_table3", "paper", 1).expected
    assert {(each.teacher, each.top1) for each in found.values()} == {("swin_l", 86.24), ("eva_l14", 88.576)}
    assert not plan("scalekd_table3", "laptop", 1).expected
    assert not plan("hcd_cifar100", "paper", 1).expected  # fine-tuned here


# -- records from elsewhere -----------------------------------------------------------------------------------


def test_a_run_with_a_record_elsewhere_is_done_only_where_its_weights_are_needed(store, tmp_path):
    runs = [
        fake_run("teacher"),
        fake_run("student", needs=("teacher",)),
        fake_run("new", needs=("teacher",)),
        fake_run("alone"),
        fake_run("failed"),
    ]
    elsewhere = Store(tmp_path / "elsewhere")
    known = dict(execute(elsewhere, *runs[:2], *runs[3:]).records)
    known["failed"] = replace(known["failed"], status="failed")
    report = run_plan(fake_plan(*runs), store, workers=0, runtime=RUNTIME, known=known)
    assert set(report.executed) == {"teacher", "new", "failed"}
    assert not report.failed
    again = run_plan(fake_plan(*runs), store, workers=0, runtime=RUNTIME, known=known)
    assert again.executed == {}
    assert set(run_plan(fake_plan(*runs), store, workers=0, runtime=RUNTIME).executed) == {"student", "alone"}


# -- one process ----------------------------------------------------------------------------------------------


def test_a_run_leaves_a_record_with_metrics_cost_environment_and_hashed_artifacts(store):
    report = execute(store, fake_run("a"))
    record = store.load("a")
    assert report.trained == ("a",)
    assert (record.status, record.metrics, record.cost) == ("done", {"top1": 50.0}, {"wall_s": 0.1})
    assert list(record.artifacts) == ["student.safetensors"]
    assert record.environment["device"] == "cpu"
    assert record.environment["versions"]["torch"]
    assert 0 < record.started <= record.finished


def test_curves_become_dvclive_files_with_one_line_per_epoch(store):
    execute(store, fake_run("a"))
    lines = (store.folder("a") / "live/plots/metrics/loss.tsv").read_text().splitlines()
    assert lines == ["step\tloss", "0\t2.0", "1\t1.0"]


def test_warnings_and_messages_of_a_run_go_to_its_log(store):
    logging.captureWarnings(True)
    try:
        execute(store, fake_run("a", do="warn"))
    finally:
        logging.captureWarnings(False)
    log = (store.folder("a") / "run.log").read_text()
    assert "something to know" in log
    assert "fake a, key a" in log


def test_a_run_with_a_record_is_not_done_again(store):
    execute(store, fake_run("a"))
    report = execute(store, fake_run("a"), fake_run("b"))
    assert report.trained == ("b",)
    assert (store.folder("a") / "attempts").read_text().count("\n") == 1


def test_a_student_reads_what_its_teacher_wrote(store):
    execute(store, fake_run("t"), fake_run("s", teacher="t"))
    assert (store.folder("s") / "student.safetensors").read_bytes() == b"weights of sweights of t"


def test_a_teacher_file_that_is_not_what_its_run_wrote_fails_the_student(store):
    execute(store, fake_run("t"))
    (store.folder("t") / "student.safetensors").write_bytes(b"other")
    report = execute(store, fake_run("t"), fake_run("s", teacher="t"))
    assert report.failed["s"].startswith(str(store.folder("t") / "student.safetensors"))


def test_a_failed_teacher_fails_its_students_with_its_reason_while_others_go_on(store):
    report = execute(
        store, fake_run("t", do="complain"), fake_run("s", teacher="t"), fake_run("s2", needs=("s",)), fake_run("other")
    )
    assert statuses(report) == {"t": "failed", "s": "failed", "s2": "failed", "other": "done"}
    assert report.failed["t"] == "image 17 is corrupt"
    assert report.failed["s2"] == "needs 'fake t', which failed: image 17 is corrupt"


def test_a_failed_run_is_tried_again_with_all_that_needs_it(store, tmp_path):
    runs = fake_run("t", do="crash_until_file", file=str(tmp_path / "file")), fake_run("s", teacher="t")
    assert statuses(execute(store, *runs)) == {"t": "failed", "s": "failed"}
    (tmp_path / "file").touch()
    report = execute(store, *runs)
    assert statuses(report) == {"t": "done", "s": "done"}
    assert report.trained == ("t", "s")


def test_a_diverged_run_is_final_and_what_needs_it_is_refused_for_good(store):
    runs = fake_run("t", do="diverge"), fake_run("s", teacher="t")
    report = execute(store, *runs)
    assert statuses(report) == {"t": "diverged", "s": "refused"}
    assert "step 7: task=nan" in store.load("s").reason
    assert execute(store, *runs).executed == {}


def test_a_new_student_of_a_diverged_teacher_is_refused_without_a_run(store):
    execute(store, fake_run("t", do="diverge"))
    report = execute(store, fake_run("t", do="diverge"), fake_run("s", teacher="t"))
    assert (report.executed, statuses(report)["s"]) == ({}, "refused")


def test_a_method_that_cannot_serve_the_pair_is_refused_before_anything_starts(store):
    report = execute(store, fake_run("a", do="refuse"))
    assert store.load("a").reason == "a fake cannot serve this pair"
    assert report.executed == {}


def test_a_crash_is_one_sentence_with_the_place_of_its_traceback(store):
    reason = execute(store, fake_run("a", do="crash")).failed["a"]
    assert reason == f"RuntimeError: it broke (traceback in {store.folder('a') / 'run.log'})"
    assert "in two lines" in (store.folder("a") / "run.log").read_text()


def test_out_of_memory_says_what_to_change(store):
    assert "--workers" in execute(store, fake_run("a", do="run_out_of_memory")).failed["a"]


def test_a_full_disk_stops_everything_and_keeps_what_is_finished(store):
    with pytest.raises(StorageError, match="No space left on device"):
        execute(store, fake_run("a"), fake_run("full", needs=("a",), do="fill_disk"))
    assert list(store.keys()) == ["a"]


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"Cannot write to .*: Permission denied"):
        execute(Store(tmp_path / "runs"), fake_run("a"))


def test_a_folder_of_the_store_that_cannot_be_written_stops_everything(store):
    with pytest.raises(StorageError, match="Permission denied"):
        execute(store, fake_run("a", do="store_not_writable"), fake_run("b"))
    assert list(store.keys()) == []


def test_a_store_that_goes_away_in_the_middle_stops_everything(store, tmp_path):
    runs = fake_run("a", do="lose_store_once", file=str(tmp_path / "lost")), fake_run("b")
    with pytest.raises(StorageError, match=r"Cannot write to .*a.student.safetensors: No such file or directory\."):
        execute(store, *runs)
    assert not store.root.exists()
    assert execute(store, *runs).trained == ("a", "b")


def test_a_lock_that_cannot_be_made_stops_everything(store):
    (store.folder("b") / "lock").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"Cannot write to .*b.lock: Is a directory"):
        execute(store, fake_run("a"), fake_run("b"))
    assert [*store.keys()] == ["a"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_librarys_own_error_of_a_disk_is_known_by_the_systems_words(tmp_path, code):
    error = disk_error(RuntimeError(f"PytorchStreamWriter failed writing file: {os.strerror(code)}"), tmp_path)
    assert (error.errno, error.filename) == (code, str(tmp_path))
    assert disk_error(RuntimeError("shapes do not match"), tmp_path) is None


def test_a_log_that_takes_no_line_prints_no_traceback(tmp_path, capsys):
    (tmp_path / "run.log").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"), log_to(tmp_path / "run.log"):  # what is left is written at its end
        logging.getLogger("hkd").info("something")
    assert capsys.readouterr().err == ""


def test_a_record_that_another_command_wrote_meanwhile_is_not_written_over(store):
    done = execute(store, fake_run("t")).records["t"]

    def other_command_is_faster(event):
        if event.kind == "finished" and event.key == "t":
            store.write(replace(done, key="s", label="fake s"))

    (store.folder("t") / "record.json").unlink()
    report = execute(store, fake_run("t", do="complain"), fake_run("s", teacher="t"), on_event=other_command_is_faster)
    assert statuses(report) == {"t": "failed", "s": "done"}
    assert store.load("s").status == "done"


def test_a_run_that_another_command_is_doing_gets_no_record_of_failure(store):
    with FileLock(store.lock("s").lock_file):
        report = execute(store, fake_run("t", do="complain"), fake_run("s", teacher="t"))
    assert statuses(report) == {"t": "failed", "s": "failed"}
    assert store.load("s") is None


def test_a_data_file_that_cannot_be_read_fails_only_its_run(store, tmp_path):
    report = execute(store, fake_run("a", do="data_not_readable", file=str(tmp_path / "1.png")), fake_run("b"))
    assert statuses(report) == {"a": "failed", "b": "done"}
    assert "PermissionError" in report.failed["a"]


def test_a_refusal_while_building_is_final(store):
    runs = fake_run("t", do="refuse_late"), fake_run("s", teacher="t")
    report = execute(store, *runs)
    assert (statuses(report), report.failed) == ({"t": "refused", "s": "refused"}, {})
    assert store.load("t").reason == "3 heads do not divide the width 8"
    assert execute(store, *runs).executed == {}


def test_nothing_that_can_start_is_one_sentence(store):
    with pytest.raises(UserError, match=r"^None of the 2 runs can start: no images in /data"):
        execute(store, fake_run("t", missing="no images in /data"), fake_run("s", teacher="t"))
    assert list(store.keys()) == []


def test_missing_data_of_some_runs_leaves_the_others_to_be_done(store):
    events: list[Event] = []
    runs = fake_run("a"), fake_run("t", missing="no images in /data"), fake_run("s", teacher="t")
    report = execute(store, *runs, on_event=events.append)
    assert statuses(report) == {"a": "done"}
    assert report.failed == dict.fromkeys("ts", "no images in /data")
    assert events[0].facts == {"todo": ("a",), "reused": 0}
    assert execute(store, *runs).failed == report.failed  # nor does the second time stop at it


def test_every_run_computes_with_one_thread(store):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        execute(store, fake_run("a"))
        assert torch.get_num_threads() == 1
        assert store.load("a").environment["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_workers_with_several_threads_are_refused():
    refuse_threads({"tcp://a": {"nthreads": 1}})
    with pytest.raises(UserError, match=r"^Worker tcp://b has 4 threads, not one; use workers of `hkd worker`\.$"):
        refuse_threads({"tcp://a": {"nthreads": 1}, "tcp://b": {"nthreads": 4}})


def test_teacher_outputs_are_kept_up_to_a_limit_the_latest_first(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(b"0" * 10)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    bound(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    bound(tmp_path / "none", 25)


def test_an_unknown_option_names_the_nearest(store):
    with pytest.raises(UserError, match=r"has no option 'secnods'\. Did you mean 'seconds'"):
        execute(store, fake_run("a", secnods=1.0))


def test_an_impossible_option_is_the_users_mistake(store):
    with pytest.raises(UserError, match="Method 'fake': seconds must be greater than or equal to 0, got -1"):
        execute(store, fake_run("a", seconds=-1.0))


def test_events_tell_the_story_of_a_run_in_order(store):
    events: list[Event] = []
    execute(store, fake_run("a"), on_event=events.append)
    assert [event.kind for event in events] == ["scheduled", "workers", "started", "progress", "finished"]
    assert events[0].facts == {"todo": ("a",), "reused": 0}
    assert events[3].facts == {"epoch": 1, "epochs": 2, "loss": 1.5, "top1": 10.0}
    assert events[4].facts["status"] == "done"


def test_nothing_is_imported_when_every_record_exists(store):
    execute(store, fake_run("a"))
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tests.experiments.fake_tasks import fake_plan, fake_run\n"
        "from experiments.execution.schedule import run_plan\n"
        "from experiments.records.store import Store\n"
        "from hkd.training.job import Runtime\n"
        f"run_plan(fake_plan(fake_run('a')), Store(Path({str(store.root)!r})), runtime=Runtime())\n"
        "print([name for name in ('torch', 'distributed', 'dvclive', 'pandas') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert ran.stdout.strip() == "[]"


# -- the graph --------------------------------------------------------------------------------------------------


def test_the_longest_way_to_the_end_starts_first():
    runs = {run.key: run for run in (fake_run("alone"), fake_run("t"), fake_run("s", teacher="t"))}
    graph = Graph(runs, {"alone": 3.0, "t": 1.0, "s": 2.5})
    assert (graph.next(), graph.next(), graph.next()) == ("t", "alone", None)
    graph.done("t")
    assert graph.next() == "s"


def test_a_run_waits_for_all_that_it_needs():
    runs = {run.key: run for run in (fake_run("a"), fake_run("b"), fake_run("c", needs=("a", "b", "elsewhere")))}
    graph = Graph(runs, dict.fromkeys(runs, 1.0))
    assert (graph.next(), graph.next()) == ("a", "b")
    graph.done("a")
    assert graph.next() is None
    graph.done("b")
    assert graph.next() == "c"


def test_local_workers_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setenv("HKD_VISIBLE_GPUS", "4,5,6,7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    chosen = []
    for name in range(3):
        choose_gpus(name, 2)
        chosen.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert chosen == ["4,5", "6,7", "4,5"]


class Dying(Pool):
    """A pool whose workers die, each after some steps from where the last one was saved."""

    def __init__(self, steps):
        self.steps, self.begun = iter(steps), []

    def slots(self):
        return 1

    def start(self, run, weights):
        self.begun.append(run.key)

    def wait(self):
        key, step = self.begun[-1], next(self.steps)
        return [Event(kind="progress", key=key, facts={"step": step}), Finished(key=key, killed=True)]


def test_a_run_whose_workers_die_goes_on_as_long_as_it_gets_further(store, monkeypatch):
    pool = Dying([10, 15, 40, 41, 38])
    monkeypatch.setattr(schedule, "pool_for", lambda *given: nullcontext(pool))
    report = execute(store, fake_run("a"), workers=1)
    assert len(pool.begun) == 5  # the fifth had reached 38, and the fourth 41
    assert "killed twice without getting further" in report.failed["a"]


# -- worker processes -------------------------------------------------------------------------------------------


def test_two_workers_share_the_runs_and_report_progress(store):
    events: list[Event] = []
    runs = [fake_run("t"), *(fake_run(f"s{i}", teacher="t", seconds=0.4) for i in range(4))]
    report = execute(store, *runs, workers=2, on_event=events.append)
    assert set(statuses(report).values()) == {"done"}
    pids = {(store.folder(run.key) / "attempts").read_text() for run in runs}
    assert len(pids) == 2
    assert {event.key for event in events if event.kind == "progress"} >= {"s0", "s1", "s2", "s3"}
    assert store.load("s0").environment["threads"] == 1


def test_workers_that_are_killed_before_they_are_ready_are_one_sentence(store, monkeypatch):
    def killed(**options):
        raise RuntimeError("Nanny failed to start.") from RuntimeError("Nanny failed to start worker process")

    monkeypatch.setattr("distributed.LocalCluster", killed)
    with pytest.raises(UserError, match=r"could not be started \(RuntimeError: Nanny failed to start worker process\)"):
        execute(store, fake_run("a"), workers=2)
    assert [*store.keys()] == []


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_one_that_always_dies_fails_only_its_run(store):
    report = execute(
        store, fake_run("once", do="kill_worker_once"), fake_run("always", do="kill_worker"), fake_run("x"), workers=2
    )
    assert statuses(report) == {"once": "done", "always": "failed", "x": "done"}
    assert "killed twice" in json.loads((store.folder("always") / "record.json").read_text())["reason"]
    assert len((store.folder("always") / "attempts").read_text().split()) == 2


@pytest.mark.slow
def test_a_full_disk_in_a_worker_stops_everything(store):
    with pytest.raises(StorageError, match="No space left on device"):
        execute(store, fake_run("full", do="fill_disk"), fake_run("long", seconds=60.0), workers=2)


def test_workers_write_their_live_curves_in_turns(tmp_path):
    folder = tmp_path / "runs" / "a" / "live"
    folder.mkdir(parents=True)
    worker = threading.Thread(target=write_live, args=(folder, [{"epoch": 1, "loss": 0.5}]))
    with FileLock(tmp_path / "runs" / ".live.lock"):
        worker.start()
        worker.join(0.5)
        assert worker.is_alive()
        assert not (folder / "plots").exists()
    worker.join(60)
    assert (folder / "plots" / "metrics" / "loss.tsv").is_file()


class Cut:
    """A dask client whose scheduler goes away at one of its calls."""

    status = "running"

    def __init__(self, at):
        self.at = at

    def subscribe_topic(self, *_):
        if self.at == "subscribe":
            raise CommClosedError("closed")

    def scheduler_info(self, **_):
        if self.at == "info":
            raise TimeoutError
        return {} if self.at == "identity" else {"workers": {}}

    def submit(self, *_, **__):
        raise ClosedClientError("Client is closed")


@pytest.mark.parametrize("at", ["subscribe", "info", "identity", "submit"])
def test_a_scheduler_that_goes_away_at_any_call_is_known_as_lost(tmp_path, at):
    run = next(iter(plan("scalekd_table3", "smoke").runs.values()))

    def go():
        pool = Workers(Cut(at), Store(tmp_path), Runtime(accelerator="cpu"), own=False)
        assert pool.slots() == 0
        pool.start(run, {})

    with pytest.raises(SchedulerLost, match="went away"):
        go()


@pytest.mark.parametrize("gone", [False, True], ids=["worker", "no worker"])
@pytest.mark.parametrize("why", [KeyboardInterrupt(), UserError("the reason")], ids=["Ctrl-C", "an error"])
def test_why_a_cluster_was_left_is_not_lost_when_a_busy_machine_cannot_close_it_in_time(monkeypatch, why, gone):
    worker = subprocess.Popen(["sleep", "600"])
    if gone:
        worker.kill()
        worker.wait()
    nanny = SimpleNamespace(process=SimpleNamespace(process=SimpleNamespace(pid=worker.pid)), auto_restart=True)
    limits = []

    class Busy:
        workers = {0: nanny}

        def __init__(self, *args, **kwargs):
            pass

        def close(self, timeout=None):
            limits.append(timeout)
            raise TimeoutError(f"timed out after {timeout} s.")

    monkeypatch.setattr(distributed, "LocalCluster", Busy)
    monkeypatch.setattr(distributed, "Client", Busy)
    try:
        with pytest.raises(type(why)) as left, local_cluster(1):
            raise why
        assert left.value is why
        assert worker.wait(timeout=10) == -signal.SIGKILL
        assert not nanny.auto_restart
        assert len(limits) == 2  # client and cluster,
        assert None not in limits  # neither waited for without end
    finally:
        worker.kill()


@pytest.mark.parametrize("why", [KeyboardInterrupt(), UserError("the reason")], ids=["Ctrl-C", "an error"])
def test_why_a_joined_scheduler_was_left_is_not_lost_either(tmp_path, monkeypatch, why):
    class Busy:
        def subscribe_topic(self, topic, handler):
            pass

        def close(self, timeout=None):
            raise TimeoutError(f"timed out after {timeout} s.")

    monkeypatch.setattr(pools, "connected", lambda scheduler_file: Busy())
    pool = pools.pool_for(Store(tmp_path), Runtime(accelerator="cpu"), 2, tmp_path / "scheduler.json", print)
    with pytest.raises(type(why)) as left, pool:
        raise why
    assert left.value is why
