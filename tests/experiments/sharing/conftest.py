"""A store with finished runs of students that nobody trained: random weights, which export and verify take as any."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from experiments.records.store import Record, Store
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from tests.experiments.conftest import seal

TEACHER = "7e" * 8
DATA = DataSpec(name="digits", options={"n_train": 100}, fingerprint=None)


def spec_of(card, seed=0, **changes):
    spec = RunSpec(
        task="train",
        data=DATA,
        student=ZOO[card],
        method=MethodSpec(name="kd", options={"tau": 2.0}),
        recipe=Recipe(epochs=1, batch_size=20),
        teachers={"teacher": TeacherSpec(model=ZOO["swin_l_mini"], weights=Weights(kind="run", id=TEACHER))},
        seed=seed,
    )
    return replace(spec, **changes)


class Finished:
    """Makes finished runs in a store; `record` gives what it left."""

    def __init__(self, root):
        self.store = Store(root)

    def run(self, card, key="a" * 16, *, seed=0, classes=10, top1=70.0, spec=None, status="done", trained=True):
        """A run with random weights; 70 of 100 test images right."""
        folder = self.store.folder(key)
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        if trained:
            net = TapModel(ZOO[card], classes).net
            for part in net.modules():  # statistics of a training, or a wrong order of layers could not be seen
                if isinstance(part, torch.nn.BatchNorm2d):
                    part.running_mean.normal_(0, 0.1)
                    part.running_var.uniform_(0.5, 1.5)
            for parameter in net.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
            save_weights(net.state_dict(), folder / "student.safetensors")
            save_weights({"projector": torch.ones(2)}, folder / "adapters.safetensors")
        label = np.arange(100) % 10
        right = np.arange(100) < top1
        np.savez(folder / "predictions.npz", row=np.arange(100), label=label, prediction=np.where(right, label, -1))
        record = Record(
            key=key,
            label=f"kd-{card} seed {seed}",
            status=status,
            spec=json.loads(json.dumps(asdict(spec or spec_of(card, seed)))),
            metrics={"top1": top1},
            cost={"wall_s": 12.5, "cpu_s": 12.0, "step_ms": 3.0, "steps": 5.0, "peak_memory_mib": 700.0},
            environment={"versions": {"torch": "2.15.0"}, "cpu": "A processor", "commit": "c0ffee", "dirty": False},
            started=1.0,
            finished=1_790_000_000.0,
            reason=None if status == "done" else "the loss is not finite",
        )
        return seal(self.store, record)


@pytest.fixture
def finished(tmp_path):
    return Finished(tmp_path / "runs")
