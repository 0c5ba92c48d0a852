"""Which pairs of a plan no method will serve, before anything is run.

The methods are asked as a run would ask them, around models without numbers, so that what the shapes of their taps
forbid is seen too (`building`, which imports torch). What they answered is kept for the next command, which then needs
no torch, until code that a run enters changes.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments import places
from experiments.kept import Kept
from experiments.planning import code
from experiments.planning.plan import Plan, PlannedRun
from hkd.data import DATASETS
from hkd.errors import UserError
from hkd.registry import load, lookup
from hkd.spec import DataSpec
from hkd.units import units_of

ENTERED = ("hkd.models.tap_model", "hkd.tasks.train")  # by every run that is asked about, beside its own units
LIBRARIES = ("torch", "timm")


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
    answers = Kept(places.cache(), "refusals", [Path(__file__), Path(__file__).with_name("building.py")])
    found: dict[str, str] = {}
    models: dict[str, Any] = {}
    for run in runs:
        if run.spec.recipe is None or (classes := class_count(run.spec.data)) is None:
            continue
        question = question_of(run, classes)
        if (answer := answers.get(question)) is None:
            from experiments.planning import building  # imports torch, which takes seconds

            answer = {"refused": building.refusal(run, classes, models)}
            answers.put(question, answer)
        if (reason := answer["refused"]) is not None:
            found[run.key] = reason
    answers.write()
    return found


def question_of(run: PlannedRun, classes: int) -> bytes:
    """All that the answer hangs on: the run but for its seed and weights, classes of its data, code and libraries."""
    facts = {**asdict(run.spec), "seed": 0, "init": None}
    for teacher in facts["teachers"].values():
        teacher["weights"] = None
    entered = code.own_code().digest({*units_of(run.spec).values(), *ENTERED})
    asked = [facts, classes, entered, *versions()]
    return json.dumps(asked, sort_keys=True, default=str).encode()


@cache
def versions() -> tuple[str, ...]:
    """Of the libraries that models are built with."""
    return tuple(map(version, LIBRARIES))


def class_count(data: DataSpec) -> int | None:
    """Classes of a data set; None if only its files tell, and they are not here (which the plan says)."""
    found: Any = load(lookup("data set", data.name, DATASETS))(data.options, places.data())
    try:
        return found.num_classes
    except (UserError, OSError):
        return None
