"""Simulated clusters: hand-computed schedules, bounds that hold of every graph, and what cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.commands.costs import cheapest_first
from experiments.execution.makespan import simulate
from hkd.errors import UserError
from tests.experiments.fake_tasks import fake_run

RUNS = {run.key: run for run in (fake_run("t"), fake_run("a", teacher="t"), fake_run("b", teacher="t"), fake_run("c"))}
ONE, TWO = dict.fromkeys(RUNS, 1), dict.fromkeys(RUNS, 2)
LENGTH = {"t": 4.0, "a": 2.0, "b": 3.0, "c": 1.0}


def test_a_schedule_computed_by_hand():
    # Two GPUs: t 0-4 beside c 0-1; b 4-7 and a 4-6. Idle: 3 + 1 of 14.
    made = simulate(RUNS, LENGTH, gpus=2, each=ONE)
    assert made.ends == {"c": 1.0, "t": 4.0, "a": 6.0, "b": 7.0}
    assert (made.total, made.path) == (7.0, ("t", "b"))
    assert made.idle == pytest.approx(4 / 14)
    assert simulate(RUNS, LENGTH, gpus=1, each=ONE).total == 10.0
    assert simulate(RUNS, LENGTH, gpus=64, each=ONE).total == 7.0


def test_what_stands_in_front_goes_first():
    assert simulate(RUNS, LENGTH, gpus=1, each=ONE, order=("c", "t", "a")).ends == {"c": 1, "t": 5, "a": 7, "b": 10}


def test_a_run_of_several_gpus_leaves_those_over_idle():
    made = simulate(RUNS, LENGTH, gpus=3, each=TWO)
    assert made.total == 10.0
    assert made.idle == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="takes 2 GPUs, and --cluster has 1: name at least 2"):
        simulate(RUNS, LENGTH, gpus=1, each=TWO)


def test_runs_of_one_gpu_beside_those_of_two():
    # Two GPUs: t takes both 0-4; of a (2 h, one GPU), b (3 h, both) and c (1 h, one) b goes first, then a beside c.
    made = simulate(RUNS, LENGTH, gpus=2, each=ONE | {"t": 2, "b": 2})
    assert made.ends == {"t": 4.0, "b": 7.0, "c": 8.0, "a": 9.0}
    assert made.idle == pytest.approx(1 / 18)


def test_nothing_takes_no_time():
    assert simulate({}, {}, gpus=1, each={}).total == 0.0


@given(st.lists(st.tuples(st.floats(0.1, 9), st.sets(st.integers(0, 11), max_size=3)), max_size=12), st.integers(1, 5))
def test_no_schedule_beats_the_chain_or_the_work_and_none_is_twice_as_long(drawn, gpus):
    runs, length = {}, {}
    for number, (seconds, needs) in enumerate(drawn):
        runs[str(number)] = fake_run(str(number), needs=tuple(str(need) for need in needs if need < number))
        length[str(number)] = seconds
    made = simulate(runs, length, gpus=gpus, each=dict.fromkeys(runs, 1))
    chain, work = sum(length[key] for key in made.path), sum(length.values())
    assert max(chain, work / gpus) - 1e-9 <= made.total <= work / gpus + chain + 1e-9  # Graham's bound
    for key, run in runs.items():
        assert all(made.ends[need] <= made.ends[key] - length[key] + 1e-9 for need in run.needs)


def test_tables_are_ordered_by_what_each_adds():
    tables = {"large": ["t", "a", "b"], "small": ["t", "c"], "none": []}
    assert cheapest_first(tables, LENGTH) == ["none", "small", "large"]
    assert cheapest_first({"x": ["t", "a"], "y": ["t", "b"], "z": ["c", "t"]}, LENGTH) == ["z", "x", "y"]
