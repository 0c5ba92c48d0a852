"""What is held of each paper's numbers: tables whole or in part, third parties' values, and what was not found."""

from dataclasses import dataclass
from typing import Any

from experiments.planning import replications, schema

WHOLE, PART, REPLICATED, VAIN = "complete", "in part", "replicated", "not found"


@dataclass(frozen=True)
class Held:
    """A table of a paper.

    state: `complete`; `in part`; `replicated`, by third parties; or `not found`, looked for in vain.
    values: numbers that are held. doubted: how many of them have a source of medium or low confidence.
    what: its title, or what is known of it.
    """

    table: str
    state: str
    values: int
    doubted: int
    what: str


def papers() -> list[str]:
    """Papers with published values, by the name of their file."""
    return [name for name in schema.names("published") if name != replications.FILE]


def held(paper: str) -> list[Held]:
    """What is held of a paper: its tables, then what others give of its protocol, then what was not found."""
    published = schema.load_published(paper)
    tables = [(table.id, WHOLE if table.complete else PART, table.title, table.rows) for table in published.tables]
    for group in getattr(replications.load(), f"{paper}_tables", ()):
        facts = group.model_extra or {}
        tried = any("replicated" in row.values or row.pairs for row in group.rows)
        tables.append(
            (group.id, REPLICATED if tried else WHOLE if facts["complete"] else PART, facts["title"], group.rows)
        )
    found = []
    for name, state, what, rows in tables:
        doubted = (row for row in rows if row.confidence != schema.CONFIDENCE[0])
        found.append(Held(name, state, sum(map(count, rows)), sum(map(count, doubted)), what))
    return found + [Held(str(each["id"]), VAIN, 0, 0, each["what"]) for each in published.missing_tables]


def title(paper: str) -> str:
    """A paper's title and year."""
    facts: dict[str, Any] = schema.load_published(paper).paper
    return f"{facts['title']} ({facts['venue']} {facts['year']})" if "venue" in facts else str(facts["title"])


def count(row: Any) -> int:
    """Numbers that a row has."""
    return sum(value is not None for value in row.values.values())
