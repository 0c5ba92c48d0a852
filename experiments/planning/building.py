"""A run's models and method, built without numbers (torch's meta device), to hear what the method says against them.

Imports torch: planning itself does without.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from experiments.planning.plan import PlannedRun
from hkd.errors import UserError
from hkd.models.tap_model import TapModel, Teacher
from hkd.spec import ModelCard
from hkd.tasks.train import make_method

FILLING = {torch.Tensor.clamp_, torch.Tensor.erfinv_, torch.Tensor.normal_, torch.Tensor.uniform_}


class Unfilled(TorchFunctionMode):
    """Where tensors have no numbers, none are filled in: torch would go through Python for each, most of the time that
    building a model takes.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in FILLING and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def refusal(run: PlannedRun, classes: int, models: dict[str, TapModel]) -> str | None:
    """What building the method of one run says against it, or None.

    Args:
        run: one with a recipe.
        classes: of its data.
        models: those that were built before; new ones are added.
    """
    spec = run.spec
    assert spec.recipe is not None
    with Unfilled(), torch.device("meta"), torch.random.fork_rng():
        try:
            student = shaped(TapModel, spec.student, classes, models)
            teachers = {
                role: shaped(Teacher, teacher.model, classes if teacher.classes is None else teacher.classes, models)
                for role, teacher in spec.teachers.items()
            }
            make_method(spec.method, student, teachers, spec.recipe)  # type: ignore[arg-type]
        except UserError as error:
            return str(error)
        except (RuntimeError, TypeError) as error:
            # A method that looks at numbers while it is built: asked when the run starts.
            if not needs_numbers(error):
                raise
    return None


def needs_numbers(error: Exception) -> bool:
    """Whether something failed because a meta tensor has no numbers."""
    return "meta tensor" in str(error) or "meta device" in str(error)


def shaped(kind: type[TapModel], card: ModelCard, classes: int, models: dict[str, TapModel]) -> TapModel:
    """A model without numbers, from `models` if it is there.

    Raises:
        UserError: its class does not take what its card gives it.
    """
    name = json.dumps([kind.__name__, card.identity(), classes], sort_keys=True, default=str)
    if name not in models:
        try:
            models[name] = kind(card, classes)
        except UserError:
            raise
        except Exception as error:  # whatever a class of timm raises at arguments that it was not made for
            if needs_numbers(error):
                raise
            first = next(iter(str(error).strip().splitlines()), "")
            raise UserError(
                f"Model '{card.name}' cannot be built with the arch and kwargs of its card "
                f"({type(error).__name__}: {first.rstrip('.')})."
            ) from error
    return models[name]
