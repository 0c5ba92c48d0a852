"""How much a gain depends on which training of the teacher taught: a table repeated under teachers of other seeds.

Everything but the teacher's seed stays: student seeds are crossed with teacher seeds, so the spread over teachers is a
component of variance of its own (two-way analysis of variance without replication, negative components as 0).
Gains are in points.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.planning import schema
from experiments.planning.plan import Plan, plan_with
from experiments.planning.schema import Profile
from experiments.records.store import Store
from experiments.reproduce import compared, runtime_for
from hkd.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Component:
    """Spread of one cell's gain: standard deviations over teachers' seeds and of the rest (students' seeds, and both).

    gain: mean over teachers and seeds. teachers, seeds: how many of each.
    """

    gain: float
    over_teachers: float
    rest: float
    teachers: int
    seeds: int


def with_teacher_seed(profile: Profile, shift: int) -> Profile:
    """A profile whose teachers are trained with seeds so much higher; those from files stay the same."""
    teachers = {
        slug: mapping.model_copy(update={"seed": mapping.seed + shift}) if mapping.recipe or mapping.random else mapping
        for slug, mapping in profile.teachers.items()
    }
    return profile.model_copy(update={"teachers": teachers})


def plans(table: Plan, teacher_seeds: int) -> list[Plan]:
    """The plans of a table under teachers of seeds 0, 1, ...; the first is the table itself.

    Raises:
        UserError: fewer than two teacher seeds, no gain to repeat, or no teacher that is trained here.
    """
    if teacher_seeds < 2:
        raise UserError(f"--teacher-seeds is {teacher_seeds}; a spread over teachers needs at least 2.")
    if not any(cell.baseline is not None and cell.runs for cell in table.cells):
        raise UserError(f"Table '{table.table}' has no gains at profile '{table.profile}', so no teacher changes one.")
    document, profile = schema.load_table(table.table), schema.load_profile(table.profile)
    others = [
        plan_with(document, with_teacher_seed(profile, shift), table.seeds, kind=table.kind)
        for shift in range(1, teacher_seeds)
    ]
    if any(other.runs.keys() == table.runs.keys() for other in others):
        raise UserError(f"No teacher of '{table.table}' is trained at profile '{table.profile}': none has a seed.")
    return [table, *others]


def component(gains: list[dict[int, float]]) -> Component | None:
    """The components of one cell; None below two teachers and two seeds that all of them have.

    Args:
        gains: per teacher seed, gain by student seed.
    """
    shared = sorted(set.intersection(*(set(each) for each in gains))) if gains else []
    if len(gains) < 2 or len(shared) < 2:
        return None
    table = np.array([[each[seed] for seed in shared] for each in gains])  # teachers x seeds
    t, s = table.shape
    of_teachers = s * float(table.mean(axis=1).var(ddof=1))
    residual = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    of_rest = float((residual**2).sum()) / ((t - 1) * (s - 1))
    within = float(table.var(axis=1, ddof=1).mean())
    return Component(
        gain=float(table.mean()),
        over_teachers=math.sqrt(max(0.0, (of_teachers - of_rest) / s)),
        rest=math.sqrt(within),
        teachers=t,
        seeds=s,
    )


def components(under: list[Plan], store: Store) -> "pd.DataFrame":
    """Components of every cell with a gain, one line each, from the records that exist."""
    import pandas as pd  # a second to import

    results = [compared(plan, store).comparison.cells for plan in under]
    lines = []
    for cells in zip(*results, strict=True):
        cell = cells[0].cell
        found = component([each.gains for each in cells]) if cell.baseline is not None else None
        if found is not None:
            lines.append(
                {
                    "row": cell.row,
                    "method": cell.method,
                    "variant": cell.variant,
                    "metric": cell.metric,
                    "gain": found.gain,
                    "sd_over_teachers": found.over_teachers,
                    "sd_over_seeds": found.rest,
                    "n_teachers": found.teachers,
                    "n_seeds": found.seeds,
                }
            )
    names = ["row", "method", "variant", "metric", "gain", "sd_over_teachers", "sd_over_seeds", "n_teachers", "n_seeds"]
    return pd.DataFrame(lines, columns=names)


def run_others(under: list[Plan], store: Store, watch: Callable[[Plan], Any], **how: Any) -> dict[str, str]:
    """Execute what is missing under the other teachers; runs that failed, with their reasons."""
    from experiments.execution.schedule import run_plan

    failed: dict[str, str] = {}
    for plan in under[1:]:
        with watch(plan) as listener:
            report = run_plan(plan, store, runtime=runtime_for(plan.profile, plan.table), on_event=listener, **how)
        failed |= report.failed
    return failed
