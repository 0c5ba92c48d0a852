"""`hkd bench gpu`: every measurement is kept when it is done, and the same command goes on with what is missing."""

import pytest
import torch

from experiments import gpu_bench
from experiments.gpu_bench import Scale, bench, lines, measurements

TOY = Scale("cpu", toy=True)


@pytest.fixture
def made(monkeypatch):
    """Three measurements, one of which this device cannot; the names of those that were made, in order."""
    names = []

    def measure(name):
        names.append(name)
        if name == "second":
            raise RuntimeError("no kernel for this\nin two lines")
        return {"ms": 3.14159, "ratio": 0.5}

    fakes = [(name, lambda name=name: measure(name)) for name in ("first", "second", "third")]
    monkeypatch.setattr(gpu_bench, "measurements", lambda scale: iter(fakes))
    return names


def call(folder, minutes=10.0):
    told = []
    return bench(TOY, folder, minutes=minutes, tell=told.append), told


def test_what_a_device_cannot_do_is_a_result_and_the_others_go_on(made, tmp_path):
    left, told = call(tmp_path)
    assert left == []
    assert told == [
        "first: ms 3.14; ratio 0.5",
        "second: why not RuntimeError: no kernel for this",
        "third: ms 3.14; ratio 0.5",
    ]
    table = (tmp_path / "bench.md").read_text()
    assert table.startswith("one thread of a CPU with ")
    assert "| second | why not RuntimeError: no kernel for this |" in table


def test_the_same_call_goes_on_where_it_was_cut_off(made, tmp_path):
    call(tmp_path)
    file = tmp_path / "bench.jsonl"
    whole = file.read_text().splitlines()
    file.write_text("\n".join([whole[0], whole[1][:20]]) + "\n")
    made.clear()
    assert call(tmp_path)[0] == []
    assert made == ["second", "third"]
    assert [line["name"] for line in lines(tmp_path)] == ["first", "second", "third"]


def test_nothing_begins_that_might_not_end_in_time(made, tmp_path):
    assert call(tmp_path, minutes=1.0)[0] == ["first", "second", "third"]
    assert made == []


def test_other_versions_or_another_device_are_measured_anew(made, tmp_path, monkeypatch):
    call(tmp_path)
    made.clear()
    monkeypatch.setattr(torch, "__version__", "9.9")
    call(tmp_path)
    assert made == ["first", "second", "third"]
    assert "third" in (tmp_path / "bench.md").read_text()


def test_every_paper_has_its_pair_and_every_question_a_line():
    kinds = [name.partition(":")[0] for name, _ in measurements(Scale("cuda", toy=False))]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "step": 8, "loader": 2, "sparse": 4, "teacher": 1, "layout": 4, "graph": 4, "compile": 4
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
def test_every_measurement_runs_at_toy_size(tmp_path):
    found = {name: measure() for name, measure in measurements(TOY) if not name.startswith("compile")}
    assert {name for name, facts in found.items() if "why not" in facts} == {
        name for name in found if name.startswith("graph")
    }
