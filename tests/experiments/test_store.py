"""Records: sealed, atomic, and refused when somebody edits them."""

import json

import pytest

from experiments.records.store import Record, Store
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
