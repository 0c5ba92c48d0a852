"""One file each is enough: a method, a measure, a figure, a data set, a model family and a task, added to a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {
    "hkd/methods/dummy.py": '''
"""Supervised training by another name."""

from dataclasses import dataclass

from hkd.methods.base import Method, Needs
from hkd.spec import FORBID


@dataclass(frozen=True, kw_only=True)
class DummyConfig:
    """Nothing to set."""

    __pydantic_config__ = FORBID


class Dummy(Method):
    Config = DummyConfig

    @classmethod
    def needs(cls, config):
        return Needs()

    def forward(self, batch, taps_s, taps_t):
        return {"dummy": self.criterion(taps_s.logits, batch.y)}
''',
    "hkd/models/families/dummy.py": '''
"""ResNets by another name."""

from hkd.models.families.resnet import ResNetFamily


class DummyFamily(ResNetFamily):
    name = "dummy"
''',
    "hkd/data/dummy.py": '''
"""Digits by another name."""

from typing import ClassVar

from hkd.data.digits import Digits


class Dummy(Digits):
    name: ClassVar[str] = "dummy"
''',
    "hkd/tasks/dummy.py": '''
"""A task that knows the answer."""

from hkd.options import NoOptions
from hkd.tasks.launch import task
from hkd.training.job import Job, Outcome


@task(NoOptions)
def dummy(job: Job) -> Outcome:
    return Outcome(metrics={"answer": 42.0}, cost={})
''',
    "analysis/measures/dummy.py": '''
"""How many images there were."""

from dataclasses import dataclass

from analysis.measures.base import Measure, Result, line


@dataclass(frozen=True)
class DummyResult(Result):
    images: int


class Dummy(Measure):
    sees = "final"
    title = "images"

    def __init__(self):
        self.images = 0

    def final(self, map_):
        self.images += len(map_)

    def merge(self, other):
        self.images += other.images

    def compute(self):
        return DummyResult(self.images)

    @classmethod
    def rows(cls, result):
        yield line("count", "images", result.images, 0)

    @classmethod
    def table(cls, results):
        return ["model", "count"], [[model, str(result.images)] for model, result in results.items()]
''',
    "experiments/drawings/dummy_fig1.py": '''
"""Names of the rows."""


def draw(finished, folder):
    (folder / "rows.txt").write_text(" ".join(finished.rows.values()))
''',
    "experiments/tables/dummy_fig1.yaml": """
id: dummy_fig1
paper: scalekd
title: "Dummy Figure 1"
kind: figure
data: imagenet1k
columns:
  - {method: supervised, label: Teacher, task: evaluate, trains: false, teacher: false}
rows:
  - {row: swin_l, student: swin_l, label: ["", Swin-L], starts_from: swin_l}
""",
}
USE = """
import sys
from dataclasses import replace
from pathlib import Path

import torch

import hkd
from analysis.measure import analyse
from experiments.drawings.base import drawing
from experiments.planning.plan import plan
from experiments.records.store import Record, Store
from hkd.models.cards.zoo import ZOO
from hkd.registry import load, lookup
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec
from hkd.tasks import TASKS
from hkd.training.job import Job, Runtime
from hkd.units import units_of

folder = Path(sys.argv[1])
assert Path(hkd.__file__).is_relative_to(Path.cwd()), hkd.__file__
spec = RunSpec(
    task="train",
    data=DataSpec(name="dummy", options={"n_train": 20}),
    student=replace(ZOO["resnet18_mini"], family="dummy"),
    method=MethodSpec(name="dummy"),
    recipe=Recipe(epochs=1, batch_size=10),
)
assert {"data/dummy", "family/dummy", "method/dummy"} < units_of(spec).keys()
runtime = Runtime(accelerator="cpu")
for task in ("train", "dummy"):
    job = Job(replace(spec, task=task), {}, folder / task, runtime, lambda news: None)
    print(task, *load(lookup("task", task, TASKS))(job).metrics)

found = analyse("resnet18_mini", torch.rand(3, 3, 32, 32), "dummy", random=True)
print(*found.table()["value"])
found.save(folder)
print((folder / "table.md").read_text().splitlines()[0])

figure = plan("dummy_fig1", "smoke")
records = {key: Record(key=key, label="", status="done", spec={}) for key in figure.runs}
drawing(figure, records, Store(folder / "runs"), runtime)(folder)
print((folder / "rows.txt").read_text())
"""


@pytest.mark.slow
def test_one_file_adds_a_method_a_measure_a_figure_a_data_set_a_family_and_a_task(tmp_path):
    copy, made = tmp_path / "copy", tmp_path / "made"
    for package in ("hkd", "analysis", "experiments"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", copy)
    for name, text in FILES.items():
        assert not (copy / name).exists()
        (copy / name).write_text(text.lstrip())
    made.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", USE, str(made)],
        capture_output=True,
        text=True,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HKD_RUNS": str(made / "store")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["train top1", "dummy answer", "3.0", "## dummy (images)", "Swin-L"]
