"""What third parties measured with the official code: a kind of number of its own, with its source and who measured it.

Read from experiments/published/replications.yaml; its key `<paper>_tables` extends the tables of that paper.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from experiments.planning import schema
from experiments.planning.schema import PublishedRow, PublishedTable

FILE = "replications"
SCRATCH = "from scratch"
FEW = 0.5  # points: a value that falls short by more did not reach the published one


@dataclass(frozen=True, kw_only=True)
class Replicated:
    """One attempt at a published value: in the metric's unit, or None where it is only said that it was not reached."""

    value: float | None
    published: float | None
    source: str
    who: str

    @property
    def short(self) -> bool:
        """Whether the published value was not reached."""
        return self.value is None or (self.published is not None and self.value < self.published - FEW)


class Row(BaseModel):
    """One attempt, or several pairs that could not be reached."""

    model_config = ConfigDict(extra="allow", frozen=True)
    values: dict[str, float | None] = {}
    source: str
    confidence: Literal["high", "medium", "low"] = "high"
    who: str = ""
    teacher: str | None = None
    student: str | None = None
    method: str | None = None
    pairs: tuple[str, ...] = ()


class Group(BaseModel):
    """Attempts at one published table."""

    model_config = ConfigDict(extra="allow", frozen=True)
    id: str
    dataset: str
    metric: str
    setting: dict[str, Any] = {}
    rows: tuple[Row, ...]


class Replications(BaseModel):
    """The whole file; of its other keys (claims, recipes, notes) nothing is printed in tables."""

    model_config = ConfigDict(extra="allow", frozen=True)
    ofakd_tables: tuple[Group, ...] = ()


@cache
def load() -> Replications:
    """experiments/published/replications.yaml."""
    return schema.read("paper", "published", FILE, Replications)


def replicated(paper: str, table: PublishedTable, row: PublishedRow, metric: str) -> tuple[Replicated, ...]:
    """Attempts at a published value.

    Args:
        paper: that the value stands in.
        table: of the paper.
        row: of the table.
        metric: of the value.
    """
    facts = {**(table.model_extra or {}), **(row.model_extra or {})}
    groups: tuple[Group, ...] = getattr(load(), f"{paper}_tables", ())
    found = []
    for group in groups:
        if (group.dataset, group.metric) != (facts.get("dataset"), metric):
            continue
        for each in group.rows:
            if is_of(each, group, facts) and ("replicated" in each.values or each.pairs):
                found.append(
                    Replicated(
                        value=each.values.get("replicated"),
                        published=each.values.get("published"),
                        source=each.source,
                        who=each.who,
                    )
                )
    return tuple(found)


def is_of(row: Row, group: Group, facts: dict[str, Any]) -> bool:
    """Whether an attempt is at the value of these facts: teacher, student and method."""
    teacher, student = facts.get("teacher"), facts.get("student")
    method = facts.get("method", SCRATCH if teacher is None else None)
    if row.pairs:
        return method == group.setting.get("method") and f"{teacher} > {student}" in row.pairs
    return (row.teacher, row.student, row.method) == (teacher, student, method)


def not_reached(attempts: tuple[Replicated, ...]) -> int:
    """How many independent people fell short of a published value."""
    return len({(each.source, each.who) for each in attempts if each.short})
