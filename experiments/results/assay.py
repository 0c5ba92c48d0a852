"""Assay sensitivity: could this set-up have shown an effect at all? Asked of every cell before it is judged.

A student at chance or at the ceiling, a teacher no better than the student that copies it, a dense head that detects
nothing, or positive controls without a decided effect: on such a set-up a gain says nothing of its method.
Values are percent, differences points.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from experiments.planning.plan import Cell, Plan
from experiments.planning.schema import Assay
from experiments.records.store import Record
from experiments.results.stats import Estimate

COPIES_OUTPUTS = frozenset(
    {"dist", "dkd", "hcd", "kd", "lskd", "mlkd", "ofa", "pat", "scalekd"}
)  # their loss asks for the teacher's outputs; RSD's may, by options that are off
ALONE = "supervised"
NO_CONTROL = "no positive control"


@dataclass(frozen=True, kw_only=True)
class Control:
    """A positive control column: its mean gain over the rows that could show one."""

    label: str
    metric: str
    data: str  # as Cell.instead
    gain: Estimate

    @property
    def decided(self) -> bool:
        """Whether the interval of its mean gain excludes 0."""
        return self.gain.sign != 0


def column_name(cell: Cell) -> str:
    """`method/variant`, or the method alone."""
    return f"{cell.method}/{cell.variant}".removesuffix("/")


def alone(cell: Cell, cells: Iterable[Cell]) -> Cell | None:
    """The cell whose value is the student's alone: the supervised one of the row, else what the gain is over.

    Args:
        cell: with a baseline.
        cells: of its table.
    """
    of_metric = [other for other in cells if other.metric == cell.metric]
    own = [c for c in of_metric if c.id == (cell.row, ALONE, "")]
    return next((c for c in (*own, *(c for c in of_metric if c.id == cell.baseline)) if c.id != cell.id), None)


def copies_outputs(cell: Cell, plan: Plan) -> bool:
    """Whether a cell's method asks for the teacher's outputs (ScaleKD can do without)."""
    if cell.method not in COPIES_OUTPUTS or not cell.runs:
        return False
    return bool(plan.runs[cell.runs[0]].spec.method.options.get("kd", True))


def teacher_value(cell: Cell, plan: Plan, records: Mapping[str, Record]) -> float:
    """What the best of a cell's teachers measured of its metric; nan where none was measured."""
    needs = {need for key in cell.runs for need in plan.runs[key].needs} & set(plan.teachers.values())
    values = [records[key].metrics[cell.metric] for key in needs if cell.metric in metrics_of(records.get(key))]
    return max(values, default=math.nan)


def metrics_of(record: Record | None) -> Mapping[str, float]:
    """What a run that is done measured."""
    return record.metrics if record is not None and record.status == "done" else {}


def least(chance: float, assay: Assay) -> float:
    """What a student must be above to have learned something, percent: `chances` times what guessing gives.

    Of fewer than ten classes, of which that would be all there is or more, it is as far above chance as of ten, by the
    share of what is left above chance: 61 of two classes and 48 of three, where three times chance is asked of ten.
    """
    return chance + (assay.chances - 1) * min(chance, (100 - chance) / 9)


def cannot_tell(cell: Cell, student: float, teacher: float, assay: Assay, *, copies: bool) -> str:
    """Why a cell's set-up cannot show an effect, in a few words; "" if it could.

    Args:
        cell: with its metric and what guessing gives.
        student: mean of the student alone, nan where it was not measured.
        teacher: value of its teacher, nan where there is none.
        assay: what the profile asks.
        copies: the method asks for the teacher's outputs.
    """
    floor = assay.floors.get(cell.metric)
    if cell.chance is not None and student <= least(cell.chance, assay):
        return f"chance: the student alone has {student:.1f} %, and guessing {cell.chance:.3g} %"
    if cell.chance is not None and student > assay.ceiling:
        return f"ceiling: the student alone has {student:.1f} %, above {assay.ceiling:g} %"
    if floor is not None and student < floor:
        return f"floor: without distillation {cell.metric} is {student:.1f}, below {floor:g}"
    if copies and teacher - student < assay.lead:
        return (
            f"teacher not better: it has {teacher:.1f} %, the student alone {student:.1f} %, "
            f"less than {assay.lead:g} points apart"
        )
    return ""


def collapsed(cell: Cell, values: Mapping[int, float], assay: Assay) -> tuple[int, ...]:
    """Seeds whose run ended at chance: a result, which stays in the mean and is named.

    Args:
        cell: with what guessing gives.
        values: by seed, percent.
        assay: what the profile asks.
    """
    if cell.chance is None:
        return ()
    return tuple(seed for seed, value in values.items() if value <= least(cell.chance, assay))


def no_control(controls: Iterable[Control]) -> str:
    """Why the positive controls of a metric and data say that the set-up cannot tell; "" if one is decided.

    A table without a control column is not refused for it: its caption says that it has none.
    """
    found = list(controls)
    if not found or any(control.decided for control in found):
        return ""
    names = ", ".join(f"{c.label} {c.gain.mean:+.2f}" for c in found)
    return f"{NO_CONTROL}: the mean gain of none is decided ({names})"
