"""Which pairs of a plan no method will serve, before anything is run.

The methods are asked as a run would ask them, around models without numbers (torch's meta device), so that what the
shapes of their taps forbid is seen too. Imports torch: planning itself does without.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from experiments import places
from experiments.planning.plan import Plan, PlannedRun
from hkd.data import DATASETS
from hkd.errors import UserError
from hkd.models.tap_model import TapModel, Teacher
from hkd.registry import load, lookup
from hkd.spec import DataSpec, ModelCard
from hkd.tasks.train import make_method


def refused_cells(plan: Plan) -> dict[str, list[tuple[str, str]]]:
    """Pairs that would be refused: {reason: [(row, column), ...]}, in the order of the table.

    Args:
        plan: any; cells that it refuses itself (nothing stands for them at this profile) are not asked about.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    reasons = refusals(plan.runs.values())
    for cell in plan.cells:
        behind = [key for run in cell.runs for key in with_needs(plan, run)]
        for reason in dict.fromkeys(reasons[key] for key in behind if key in reasons):
            pair = (cell.row, cell.label)
            if pair not in found.setdefault(reason, []):
                found[reason].append(pair)
    return found


def with_needs(plan: Plan, key: str) -> list[str]:
    """A run, and all that must be done before it."""
    return [key, *(other for need in plan.runs[key].needs for other in with_needs(plan, need))]


def refusals(runs: Iterable[PlannedRun]) -> dict[str, str]:
    """Why a run would be refused, by its key; runs that differ by seed alone are asked about once."""
    asked: dict[str, str | None] = {}
    found: dict[str, str] = {}
    models: dict[str, TapModel] = {}
    for run in runs:
        if run.spec.recipe is None:
            continue
        facts = {**asdict(run.spec), "seed": 0, "init": None}
        for teacher in facts["teachers"].values():
            teacher["weights"] = None
        question = as_text(facts)
        if question not in asked:
            asked[question] = refusal(run, models)
        if (reason := asked[question]) is not None:
            found[run.key] = reason
    return found


def refusal(run: PlannedRun, models: dict[str, TapModel]) -> str | None:
    """What building the method of one run says against it, or None.

    Args:
        run: one with a recipe.
        models: those that were built before; new ones are added.
    """
    spec = run.spec
    assert spec.recipe is not None
    classes = class_count(spec.data)
    if classes is None:
        return None
    with torch.device("meta"), torch.random.fork_rng():
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
            # A method that looks at numbers while it is built, which a meta tensor has not: asked when the run starts.
            if "meta tensor" not in str(error) and "meta device" not in str(error):
                raise
    return None


def shaped(kind: type[TapModel], card: ModelCard, classes: int, models: dict[str, TapModel]) -> TapModel:
    """A model without numbers, from `models` if it is there."""
    name = as_text([kind.__name__, card.identity(), classes])
    if name not in models:
        models[name] = kind(card, classes)
    return models[name]


def class_count(data: DataSpec) -> int | None:
    """Classes of a data set; None if only its files tell, and they are not here (which the plan says)."""
    found: Any = load(lookup("data set", data.name, DATASETS))(data.options, places.data())
    try:
        return found.num_classes
    except (UserError, OSError):
        return None


def as_text(value: Any) -> str:
    """A value as JSON, to compare by."""
    return json.dumps(value, sort_keys=True, default=str)
