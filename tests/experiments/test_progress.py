"""What is shown while runs are carried out, and the time that is said to be left."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from experiments.execution.events import Event
from experiments.execution.progress import Progress, UnderWay, clock, time_left
from experiments.planning.estimate import Durations
from experiments.records.store import Record
from tests.experiments.fake_tasks import STUDENT, fake_plan, fake_run


def kinds(*runs):
    """The runs by key, each of a kind of its own (its student's name is its key)."""
    named = [replace(run, spec=replace(run.spec, student=replace(STUDENT, name=run.key))) for run in runs]
    return {run.key: run for run in named}


def known(runs, **seconds):
    """Durations that have seen runs of these kinds."""
    durations = Durations({}, runs)
    for key, taken in seconds.items():
        durations.learn(runs[key], taken)
    return durations


def left(runs, durations, *, workers=2, ended=(), under_way=None, now=0.0):
    return time_left(runs, dict.fromkeys(ended, "done"), under_way or {}, durations, workers, now)


def test_time_left_plays_the_graph_through_with_the_longest_way_first():
    runs = kinds(fake_run("t"), fake_run("s", teacher="t"), fake_run("a"), fake_run("b"))
    durations = known(runs, t=10.0, s=20.0, a=12.0, b=8.0)
    # t (10) then s (20) on one worker; a (12) and b (8) on the other.
    assert left(runs, durations) == pytest.approx(30.0)
    assert left(runs, durations, workers=1) == pytest.approx(50.0)


def test_time_left_counts_only_what_is_not_ended():
    runs = kinds(fake_run("t"), fake_run("s", teacher="t"))
    assert left(runs, known(runs, t=10.0, s=20.0), ended=["t"]) == pytest.approx(20.0)


def test_time_left_of_a_run_under_way_follows_its_own_pace():
    runs = kinds(fake_run("a"))
    under_way = {"a": UnderWay(since=0.0, facts={"epoch": 1, "epochs": 4, "step": 20, "steps": 80})}
    assert left(runs, known(runs, a=10.0), under_way=under_way, now=5.0) == pytest.approx(15.0)


def test_time_left_of_a_run_that_tells_nothing_is_what_remains_of_its_expected_time():
    runs = kinds(fake_run("a"))
    assert left(runs, known(runs, a=10.0), under_way={"a": UnderWay(since=0.0)}, now=4.0) == pytest.approx(6.0)


def test_time_left_follows_the_pace_of_now():
    """On a machine that is busy now, kinds that have not finished yet take as much longer as those that have."""
    runs = kinds(fake_run("a"), fake_run("b"), fake_run("c"))
    records = {
        key: Record(key=key, label=key, status="done", spec={}, started=100.0, finished=100.0 + seconds)
        for key, seconds in {"a": 10.0, "b": 20.0, "c": 30.0}.items()
    }
    durations = Durations(records, runs)
    assert durations.pace == 1.0
    assert left(runs, durations, workers=1) == pytest.approx(60.0)
    durations.learn(runs["a"], 50.0)
    assert durations.pace == pytest.approx(5.0)
    assert left(runs, durations, workers=1, ended=["a"]) == pytest.approx(250.0)


def test_a_run_that_is_late_is_not_said_to_end_at_once():
    runs = kinds(fake_run("a"))
    assert left(runs, known(runs, a=10.0), under_way={"a": UnderWay(since=0.0)}, now=100.0) == pytest.approx(10.0)


def test_a_committed_record_tells_its_seconds_by_its_clock_or_its_processor():
    day = {"started": 86400.0, "finished": 86400.0, "committed": "committed 1970-01-02", "status": "done"}
    clocked = Record(key="a", label="", spec={}, cost={"wall_s": 9.0, "cpu_s": 8.0}, **day)
    runs = kinds(fake_run("a"), fake_run("b"))
    counted = Record(key="b", label="", spec={}, cost={"cpu_s": 8.0}, **day)
    durations = Durations({"a": clocked, "b": counted}, runs)
    assert durations.expect(runs["a"]) == 9.0
    assert durations.expect(runs["b"]) == 8.0


def test_time_left_is_unknown_before_anything_is():
    runs = kinds(fake_run("a"), fake_run("b"))
    assert left(runs, known(runs)) is None


def test_a_kind_never_seen_is_expected_at_the_rate_of_its_method():
    runs = kinds(fake_run("a"), fake_run("b"))
    assert left(runs, known(runs, a=10.0), ended=["a"]) == pytest.approx(10.0)


def test_records_of_earlier_commands_teach_the_durations():
    runs = kinds(fake_run("a"))
    record = Record(key="a", label="", status="done", spec={}, started=100.0, finished=107.0)
    assert Durations({"a": record}, runs).expect(runs["a"]) == pytest.approx(7.0)


def test_clock_reads_as_people_say_it():
    assert [clock(seconds) for seconds in (4.4, 200.0, 7500.0)] == ["4 s", "3 min 20 s", "2 h 05 min"]


def told(*events, terminal=False):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=100)
    plan = fake_plan(fake_run("a"), fake_run("b", teacher="a"))
    with Progress(plan, {}, console) as progress:
        for event in events:
            progress(event)
    return text.getvalue()


SCHEDULED = Event(kind="scheduled", facts={"todo": ("a", "b"), "reused": 0})
WORKERS = Event(kind="workers", facts={"count": 2})
STARTED = Event(kind="started", key="a")
MOVED = Event(kind="progress", key="a", facts={"epoch": 1, "epochs": 2, "loss": 1.5, "top1": 12.0})


def finished(key, status, reason=None, root=True, lost=0):
    facts = {"status": status, "reason": reason, "seconds": 1.0, "root": root, "lost": lost}
    return Event(kind="finished", key=key, facts=facts)


def test_without_a_terminal_many_events_make_few_lines():
    lines = told(SCHEDULED, WORKERS, STARTED, *[MOVED] * 500, finished("a", "done")).splitlines()
    assert lines == [
        "fake_table (laptop): 0 of 2 runs done, 0 running, 2 left, starting",
        "fake_table (laptop): 1 of 2 runs done, 0 running, 1 left, about 1 s to go",
    ]


def test_a_line_names_what_is_under_way(monkeypatch):
    monkeypatch.setattr("experiments.execution.progress.QUIET_S", 0.0)
    lines = told(SCHEDULED, WORKERS, STARTED, MOVED).splitlines()
    assert lines[3].endswith("[fake a epoch 1/2  loss 1.500  top1 12.0]")


def test_a_failure_is_told_at_once_and_what_it_takes_along_is_counted():
    reason = "needs 'fake a', which failed: it broke"
    output = told(SCHEDULED, finished("a", "failed", "it broke", lost=1), finished("b", "failed", reason, root=False))
    assert "failed: fake a: it broke (1 runs need it)" in output
    assert "which failed" not in output


def test_a_terminal_gets_a_live_display_of_the_runs_under_way():
    output = told(SCHEDULED, WORKERS, STARTED, MOVED, terminal=True)
    assert "fake a" in output
    assert "epoch 1/2  loss 1.500  top1 12.0" in output


def test_nothing_to_do_says_nothing():
    assert told(Event(kind="scheduled", facts={"todo": (), "reused": 2})) == ""
