"""A record that was written before a field existed is of the same run as one that says the field's default."""

import copy
from dataclasses import asdict, replace

import pytest

from experiments.planning.asked import planned
from experiments.planning.recorded import complete, identity, read_spec, setting_of, siblings
from experiments.records.store import Record

LATER = (("recipe", "validate_every"), ("recipe", "weight_decay_end"), ("student", "source"))


@pytest.fixture(scope="module")
def spec():
    plan = planned("scalekd_table3", "smoke")
    return asdict(next(run.spec for run in plan.runs.values() if run.spec.task == "train" and run.spec.teachers))


def older(spec, **changes):
    """As it was written before some fields existed."""
    found = copy.deepcopy(spec) | changes
    for part, name in LATER:
        assert found[part].pop(name, "absent") is None
    return found


def record(spec):
    return Record(key="0" * 16, label="a", status="done", spec=spec, metrics={"top1": 50.0})


def test_what_was_not_written_is_the_default(spec):
    assert older(spec) != spec
    assert identity(older(spec)) == identity(spec)
    assert complete(older(spec)) == complete(spec)
    assert read_spec(older(spec)) == read_spec(spec)
    assert setting_of(record(older(spec))) == setting_of(record(spec))


def test_other_settings_are_others(spec):
    other = copy.deepcopy(spec)
    other["recipe"]["epochs"] += 1
    assert setting_of(record(other)) != setting_of(record(spec))
    assert identity(spec | {"seed": 7}) != identity(spec)
    assert setting_of(record(spec | {"seed": 7})) == setting_of(record(spec))


def test_what_cannot_be_read_stays_as_it_is():
    foreign = {"task": "train", "seed": 3, "of": "another program"}
    assert read_spec(foreign) is None
    assert identity(foreign) == complete(foreign) == foreign


def test_siblings_are_finished_runs_at_other_seeds_whenever_they_were_written(spec):
    mine, old = record(spec), record(older(spec, seed=2))
    failed = replace(record(spec | {"seed": 1}), status="failed", reason="it broke")
    other = copy.deepcopy(spec)
    other["recipe"]["epochs"] += 1
    found = siblings(mine, [old, failed, record(other | {"seed": 3})])
    assert found == {spec["seed"]: mine, 2: old}
    assert list(found) == sorted(found)
