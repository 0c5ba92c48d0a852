"""A finished run as modules again: student and method with the weights that the run left, for looking at them."""

from collections.abc import Mapping
from pathlib import Path

import torch

from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights, read_weights
from hkd.spec import Recipe, RunSpec
from hkd.tasks.train import make_frozen, make_method
from hkd.training.inputs import open_data
from hkd.training.runtime import Runtime
from hkd.training.step import Step


def restore(spec: RunSpec, weights: Mapping[str, Path], folder: Path, runtime: Runtime) -> Step:
    """Student, method and teachers of a finished training in evaluation mode; the teachers are `step.method.teachers`.

    Args:
        spec: of the run.
        weights: local file of every teacher, by the id of its `Weights`.
        folder: where the run left student.safetensors and adapters.safetensors.
        runtime: places; everything is put on the CPU.

    Raises:
        UserError: files or data are missing or are not what the spec needs.
    """
    classes = open_data(spec.data, runtime)[0].num_classes
    student = TapModel(spec.student, classes)
    load_weights(student.net, folder / "student.safetensors")
    teachers = make_frozen(spec, classes, weights, torch.device("cpu"))
    recipe = spec.recipe or Recipe(epochs=1, batch_size=1)
    method, needs = make_method(spec.method, student, teachers, recipe)
    adapters = folder / "adapters.safetensors"
    if adapters.is_file():
        method.load_state_dict(read_weights(adapters))
    return Step(student, method, needs).eval()
