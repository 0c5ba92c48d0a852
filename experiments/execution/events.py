"""What happens while a plan is executed, as it is told to whoever watches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.records.store import Record


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened while a plan is executed.

    scheduled: facts todo (keys), reused (count). workers: facts count. lost: the scheduler went away, another one is
    waited for, and what was under way is started again. The others are about one run: started (twice if its worker
    died), progress (epoch, epochs, loss, perhaps top1), finished (status, reason, seconds, root: not merely given up
    because of another run, lost: how many are given up because of this one).
    """

    kind: Literal["scheduled", "workers", "lost", "started", "progress", "finished"]
    key: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that came back: with its record, or with why its worker gave none. killed: its worker process died."""

    key: str
    record: Record | None = None
    reason: str | None = None
    killed: bool = False
