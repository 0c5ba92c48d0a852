"""hkd/numerics.lock: written in one order, read back, and refused where it was edited by hand."""

import pytest

from experiments.planning.code import own_code
from experiments.planning.lock import Entry, Lock, read_lock
from experiments.proving.prove import by_file
from hkd.errors import UserError
from hkd.units import units

A, B, C, D = (letter * 16 for letter in "abcd")
LOCK = Lock(
    entries={
        "task/train": Entry(version=2, proved={A: ("cuda",), B: ("cpu",)}),
        "data/digits": Entry(proved={C: ("cpu",)}),
    },
    unreached=(("abc1234", "hkd/tasks/train.py:3,-7", "only on a GPU"),),
)


def test_a_lock_is_read_as_it_was_written(tmp_path):
    LOCK.write(tmp_path / "lock")
    assert read_lock(tmp_path / "lock") == LOCK
    first = (tmp_path / "lock").read_bytes()
    Lock(entries=dict(reversed(LOCK.entries.items())), unreached=LOCK.unreached * 2).write(tmp_path / "lock")
    assert (tmp_path / "lock").read_bytes() == first


def test_a_new_proof_takes_the_place_of_the_old_one_of_its_kind_only():
    entry = LOCK.entries["task/train"].adding(D, "cpu")
    assert entry.proved == {A: ("cuda",), D: ("cpu",)}
    assert entry.holds(D, "cpu")
    assert not entry.holds(D, "cuda")
    assert entry.adding(D, "cuda").proved == {D: ("cpu", "cuda")}


def test_lines_that_no_canary_ran_are_noted_by_file():
    places = [f"hkd/a.py:{n}" for n in (9, 3, 4, 5)] + [
        "hkd/b.py:7 (removed)",
        "hkd/a.py:6 (removed)",
        "hkd/a.py:7 (removed)",
    ]
    assert by_file(places) == ["hkd/a.py:3-5,9,-6-7", "hkd/b.py:-7"]


@pytest.mark.parametrize(
    "line",
    [
        "task/train",
        f"task/train two {A}=cpu",
        f"task/train 0 {A}=cpu",
        f"task/train 99999 {A}=cpu",
        f"task/train 1 {A}",
        f"task/train 1 {A}=",
        f"task/train 1 {A}=cpu,",
        "task/train 1 abc=cpu",
        f"task/\u00e9 1 {A}=cpu",
        f"! task/train {A}",
    ],
)
def test_a_line_that_is_none_of_the_locks_is_named(tmp_path, line):
    (tmp_path / "lock").write_text(f"# a comment\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match="lock:2: not a line of the lock"):
        read_lock(tmp_path / "lock")


def test_a_unit_that_is_listed_twice_is_named(tmp_path):
    (tmp_path / "lock").write_text(f"task/train 1 {A}=cpu\ntask/train 2 {B}=cpu\n")
    with pytest.raises(UserError, match="lock:2: not a line of the lock"):
        read_lock(tmp_path / "lock")


@pytest.mark.parametrize("place", [b"\xff", None, "nowhere"])
def test_something_else_in_the_locks_place_is_told(tmp_path, place):
    path = tmp_path / "lock"
    if place is None:
        path.mkdir()
    elif place == "nowhere":
        path.symlink_to(place)
    else:
        path.write_bytes(place)
    with pytest.raises(UserError, match=r"lock cannot be read .*; restore it"):
        read_lock(path)


def test_the_lock_of_this_checkout_lists_the_code_of_every_unit():
    lock, code = read_lock(), own_code()
    unlisted = [unit for unit, module in units().items() if not lock.entries[unit].holds(code.digest([module]), "cpu")]
    assert unlisted == [], "run `hkd numerics prove`"
