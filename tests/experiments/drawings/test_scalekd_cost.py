"""Costs of steps: a run beside itself costs one, more parts cost more, and what is left has names that can be read."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from experiments.drawings import scalekd_cost
from experiments.drawings.base import Finished
from experiments.planning.plan import Cell, Plan, PlannedRun
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.training.job import Runtime

ROW = "swin_s-resnet50"
SCALEKD = {"kd": False, "heads_s3": 4, "heads_s4": 4}
PARTS = {("supervised", ""): {}, ("scalekd", "cap"): {**SCALEKD, "stages": ["s4"], "dfm": "off", "tpp": "off"},
         ("scalekd", "all"): SCALEKD}  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    teacher = TeacherSpec(model=ZOO["swin_s_mini"], weights=Weights(kind="random", id="0"))
    runs = {}
    for (method, variant), options in PARTS.items():
        spec = RunSpec(
            task="train",
            data=DataSpec(name="digits", options={"n_train": 40}),
            student=ZOO["resnet18_mini"],
            method=MethodSpec(name=method, options=options),
            recipe=Recipe(epochs=1, batch_size=20, views=2),
            teachers={} if method == "supervised" else {"teacher": teacher},
        )
        runs[ROW, method, variant] = PlannedRun(key=f"{method}{variant}", spec=spec)
    cells = tuple(
        Cell(row=row, teacher="swin_s", student="resnet50", method=method, variant=variant, metric="top1",
             label=variant or method, row_label=("Swin-S", "ResNet-50"))
        for row, method, variant in runs
    )  # fmt: skip
    plan = Plan(table="scalekd_table15", title="Costs", paper="scalekd", profile="laptop", by_value=False,
                metrics=("top1",), seeds=(0,), cells=cells, runs={run.key: run for run in runs.values()})  # fmt: skip
    return Finished(
        plan, Store(tmp_path / "runs"), Runtime(accelerator="cpu"), {}, {cell: (run,) for cell, run in runs.items()}
    )


@pytest.mark.slow
@pytest.mark.long
def test_parts_cost_memory_and_a_step_of_all_of_them_time(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(scalekd_cost, "ROUNDS", 3)
    monkeypatch.setattr(scalekd_cost, "STEPS", 1)
    threads = torch.get_num_threads()
    folder = tmp_path / "drawn"
    folder.mkdir()
    scalekd_cost.draw(finished, folder)
    assert torch.get_num_threads() == threads
    assert {path.name for path in folder.iterdir()} == {"costs.png", "costs.svg", "costs.csv", "measures.json"}
    document = json.loads((folder / "measures.json").read_text())
    assert document["images"].startswith("Steps of 20 training images on one CPU thread, the teacher on line; 3 rounds")
    values = {name: number["value"] for name, number in document["values"].items()}
    assert set(values) == {f"{what}/scalekd_{part}/swin_s" for what in ("time", "memory") for part in ("cap", "all")}
    assert 1.0 < values["memory/scalekd_cap/swin_s"] < values["memory/scalekd_all/swin_s"]
    assert values["time/scalekd_all/swin_s"] > 1.2  # four projectors, two of them through the teacher's last stage
    with (folder / "costs.csv").open() as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["cap, Swin-S", "all, Swin-S"]


@pytest.mark.slow
def test_a_run_beside_itself_takes_equal_memory(finished, tmp_path):
    run = finished.cells[ROW, "scalekd", "all"][0]
    make = scalekd_cost.maker(finished, run, tmp_path)
    first, second = scalekd_cost.peak(make), scalekd_cost.peak(make)
    assert first == pytest.approx(second, rel=0.01)
    weights = sum(p.numel() * p.element_size() for p in make().run.step.parameters())
    assert first > 3 * weights  # with gradients and the optimiser's two moments, at the least


def test_without_a_supervised_run_it_is_said_in_a_sentence(finished, tmp_path):
    alone = replace(finished, cells={cell: runs for cell, runs in finished.cells.items() if cell[1] != "supervised"})
    with pytest.raises(UserError, match="needs its supervised run, which costs are measured against"):
        scalekd_cost.draw(alone, tmp_path)
