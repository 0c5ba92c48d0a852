"""Records: sealed, atomic, and refused when somebody edits them."""

import hashlib
import json
import math
import os
from dataclasses import replace

import pytest

from experiments.records.store import Record, Store, digest, spent, step_ms
from hkd.errors import UserError


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


RECORD = Record(key="abc", label="kd-x seed 0", status="done", spec={"seed": 0}, metrics={"top1": 87.5})


def test_a_record_comes_back_as_it_was_written(store):
    store.write(RECORD)
    assert store.load("abc") == RECORD
    assert list(store.keys()) == ["abc"]


def test_a_run_without_a_record_is_none(store):
    assert store.load("abc") is None
    assert list(store.keys()) == []


def test_a_record_edited_by_hand_is_detected_and_named(store):
    store.write(RECORD)
    path = store.folder("abc") / "record.json"
    document = json.loads(path.read_text())
    document["metrics"]["top1"] = 99.9
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"abc/record\.json was changed after it was written"):
        store.load("abc")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digest": "x"}'])
def test_a_file_that_is_no_record_is_one_sentence(store, text):
    store.folder("abc").mkdir(parents=True)
    (store.folder("abc") / "record.json").write_text(text)
    with pytest.raises(UserError, match="not a record"):
        store.load("abc")


def test_a_record_moved_to_another_run_is_refused(store):
    store.write(RECORD)
    store.folder("abc").rename(store.root / "abd")
    with pytest.raises(UserError, match="digest does not match"):
        store.load("abd")


def test_writing_leaves_no_temporary_file(store):
    store.write(RECORD)
    assert [path.name for path in store.folder("abc").iterdir()] == ["record.json"]


def test_a_run_can_be_held_by_one_process_at_a_time(store):
    with store.lock("abc"):
        assert not (store.folder("abc") / "record.json").exists()
        other = Store(store.root).lock("abc")
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0.01)


# --- files beside a record


def ended(store, status="done", **artifacts):
    record = replace(RECORD, status=status, artifacts=artifacts)
    store.write(record)
    (store.folder("abc") / "curves.jsonl").write_text("{}\n")
    return record


def test_a_file_is_given_only_if_it_is_what_the_run_wrote(store):
    digest = hashlib.sha256(b"{}\n").hexdigest()
    record = ended(store, **{"curves.jsonl": digest})
    path = store.folder("abc") / "curves.jsonl"
    assert store.kept(record, "curves.jsonl") == path
    assert store.kept(record, "predictions.npz") is None
    path.write_text("{ }\n")
    with pytest.raises(UserError, match=r"abc/curves\.jsonl is not what its run wrote.*delete .*abc to have the run"):
        store.kept(record, "curves.jsonl")


def test_a_file_that_a_finished_run_did_not_list_is_not_its_own(store):
    with pytest.raises(UserError, match="is not what its run wrote"):
        store.kept(ended(store), "curves.jsonl")
    # Runs that did not end well listed none before files were verified.
    assert store.kept(ended(store, "diverged"), "curves.jsonl") is not None


# --- records that no run wrote


def sealed(**fields):
    document = RECORD.stored() | fields
    return json.dumps(document | {"digest": digest(document)})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '{"digest": "x", "metrics": {"top1": NaN}, "key": "abc", "label": "", "status": "done", "spec": {}}',
            "is not",
        ),
        (
            '{"digest": "x", "metrics": {"top1": 1e999}, "key": "abc", "label": "", "status": "done", "spec": {}}',
            "is not",
        ),
        ("[" * 100_000, "is not a record"),
        ('{"a":' * 100_000, "is not a record"),
        (b"\xff\xfe\x00", "is not a record"),
        (sealed(metrics=[1.0]), "is not a record"),
        (sealed(metrics={"top1": "high"}), "is not a record"),
        (sealed(status="finished"), "is not a record"),
        (sealed(started="today"), "is not a record"),
        (sealed(label=5), "is not a record"),
        (sealed(finished=1e300), "is not a record"),
        (sealed(cost={"wall_s": 10**400}), "is not a record"),
        (sealed(environment={"versions": ["torch"]}), "is not a record"),
        (sealed(environment={"gpu": 5}), "is not a record"),
        (sealed(metrics={"top1": 88.0}).replace("88.0", "99.0"), "was changed after it was written"),
    ],
)
def test_a_record_that_cannot_be_is_one_sentence(store, text, says):
    store.folder("abc").mkdir(parents=True)
    (store.folder("abc") / "record.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"abc/record\.json {says}"):
        store.load("abc")


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(store):
    store.folder("abc").mkdir(parents=True)
    os.mkfifo(store.folder("abc") / "record.json")
    with pytest.raises(UserError, match=r"abc/record\.json cannot be read \(it is no file\); move it away"):
        store.load("abc")


def test_a_folder_in_the_place_of_a_record_is_one_sentence(store):
    (store.folder("abc") / "record.json").mkdir(parents=True)
    with pytest.raises(UserError, match=r"abc/record\.json cannot be read \(Is a directory\); move it away"):
        store.load("abc")


@pytest.mark.parametrize(
    ("cost", "step"),
    [
        ({"step_ms": 20.0, "steps": 100.0, "cpu_s": 2.5}, 20.0),
        ({"step_ms": 20.0, "steps": 100.0, "cpu_s": 1.9}, math.nan),  # 2 s of steps in a process of 1.9 s
        ({"step_ms": 20.0, "steps": 100.0, "cpu_s": 0.1, "gpu_s": 2.1}, 20.0),  # where the GPU works, the CPU rests
        ({"step_ms": 20.0}, 20.0),
        ({"cpu_s": 1.9}, math.nan),
    ],
)
def test_a_step_that_waited_for_its_cores_has_no_time(cost, step):
    assert step_ms(cost) == pytest.approx(step, nan_ok=True)


@pytest.mark.parametrize(
    ("costs", "said"),
    [
        ([{"cpu_s": 90.0}, {"cpu_s": 20.0, "gpu_s": 100.0}], "4"),  # 210 s
        ([{"cpu_s": 90.0}, {"cpu_s": 150.0}, {}], "> 4"),
        ([{"cpu_s": 90.0}, {}, {"wall_s": 3.0}], ""),  # of one in three no sum of all follows
        ([{}], ""),
        ([], ""),
    ],
)
def test_minutes_are_those_of_all_runs_or_say_that_they_are_not(costs, said):
    assert str(spent(costs)) == said
