"""A short run with and without `compile` of a profile's machine: `python -m tests.hkd.compiled_run eager FOLDER kd`.

Prints as JSON the curves of both and whether their weights are equal. In a process of its own, as `compiled`.
"""

import json
import sys
import warnings
from pathlib import Path

import torch

from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.train import train
from hkd.training.job import Job, Runtime


def main() -> None:
    """Both runs."""
    backend, folder, method = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    plain = torch.nn.Module.compile
    called = []

    def compile(module: torch.nn.Module, **options: object) -> None:
        called.append(type(module).__name__)
        plain(module, backend=backend, **options)

    torch.nn.Module.compile = compile
    spec = RunSpec(
        task="train",
        data=DataSpec(name="digits", options={"n_train": 20}),
        student=ZOO["resnet18_mini"],
        method=MethodSpec(name=method),
        recipe=Recipe(epochs=2, batch_size=8, lr=1e-3),
        teachers={"teacher": TeacherSpec(model=ZOO["swin_s_mini"], weights=Weights(kind="random", id="7"))},
    )
    found = {}
    for setting in (False, True):
        at = folder / str(setting)
        runtime = Runtime(accelerator="cpu", compile=setting)
        outcome = train(Job(spec, {}, at, runtime, lambda news: None))
        found[str(setting)] = [line["loss"] for line in outcome.curves], (at / "student.safetensors").read_bytes()
    losses = {setting: lines for setting, (lines, _) in found.items()}
    print(json.dumps({"losses": losses, "equal": found["False"][1] == found["True"][1], "compiled": called}))


if __name__ == "__main__":
    main()
