"""hkd/numerics.lock: written in one order, read back, and refused where it was edited by hand."""

import pytest

from experiments.planning.code import own_code
from experiments.planning.lock import Entry, Lock, read_lock
from experiments.proving.prove import by_file
from hkd.errors import UserError
from hkd.units import units

LOCK = Lock(
    entries={
        "task/train": Entry(version=2, proved={"aaaa": ("cuda",), "bbbb": ("cpu",)}),
        "data/digits": Entry(proved={"cccc": ("cpu",)}),
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
    entry = LOCK.entries["task/train"].adding("dddd", "cpu")
    assert entry.proved == {"aaaa": ("cuda",), "dddd": ("cpu",)}
    assert entry.holds("dddd", "cpu")
    assert not entry.holds("dddd", "cuda")
    assert entry.adding("dddd", "cuda").proved == {"dddd": ("cpu", "cuda")}


def test_lines_that_no_canary_ran_are_noted_by_file():
    places = [f"hkd/a.py:{n}" for n in (9, 3, 4, 5)] + [
        "hkd/b.py:7 (removed)",
        "hkd/a.py:6 (removed)",
        "hkd/a.py:7 (removed)",
    ]
    assert by_file(places) == ["hkd/a.py:3-5,9,-6-7", "hkd/b.py:-7"]


@pytest.mark.parametrize("line", ["task/train", "task/train two aaaa=cpu", "task/train 1 aaaa", "! task/train aaaa"])
def test_a_line_that_is_none_of_the_locks_is_named(tmp_path, line):
    (tmp_path / "lock").write_text(f"# a comment\n{line}\n")
    with pytest.raises(UserError, match="lock:2: not a line of the lock"):
        read_lock(tmp_path / "lock")


def test_the_lock_of_this_checkout_lists_the_code_of_every_unit():
    lock, code = read_lock(), own_code()
    unlisted = [unit for unit, module in units().items() if not lock.entries[unit].holds(code.digest([module]), "cpu")]
    assert unlisted == [], "run `hkd numerics prove`"
