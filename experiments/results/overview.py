"""What every table says at a profile, a line each, as `hkd tables` prints it: read from what was written before.

A table's own results stand where there are any; else a summary of the committed records, which is committed beside them
(`results/reference/<profile>/tables.json`) because comparing all tables takes seconds. It follows from the records: a
test compares it with them, and `hkd reference update` writes it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from experiments import places
from experiments.documents import Document
from experiments.planning import schema
from experiments.planning.asked import planned
from experiments.planning.plan import Cell, Plan
from experiments.records.committed import Records, path_of
from experiments.records.store import Record, Spent, Store, spent
from hkd.errors import UserError
from hkd.files import atomic_write

if TYPE_CHECKING:
    from experiments.results.compare import Comparison

SUMMARY = "tables.json"
DRAWN_AT = "laptop"  # what figures in docs/pictures are of
Bought = Callable[[Plan, Store], "tuple[Plan, Comparison, Mapping[str, Record]] | None"]


# Collections of what other tables print, and several papers' pairs under a protocol that is none of theirs: what stands
# in another table counts there, whichever name comes first.
COLLECTIONS = ("hcd_cifar100_core", "hybrid_ablations", "ofa_cifar100_controlled")


class Summary(Document):
    """One table.

    verdicts: how many cells have which. again: how many of them are on a comparison that a table before it has (the
    same runs over the same runs, though perhaps with fewer seeds). runs: done, behind it. seconds: of CPUs and GPUs, of
    the runs whose time was counted; older records have none.
    """

    verdicts: dict[str, int]
    again: dict[str, int] = {}
    runs: int
    seconds: float
    counted: int

    @property
    def spent(self) -> Spent:
        """The time behind it."""
        return Spent(self.seconds, self.counted, self.runs)


@dataclass(frozen=True)
class Line:
    """A table at a profile. state: `here`, `committed` or `not run`."""

    state: str
    summary: Summary | None

    def verdicts(self) -> str:
        """`6 holds, 1 contradicted`; "" where there is none."""
        return ", ".join(f"{count} {word}" for word, count in self.summary.verdicts.items()) if self.summary else ""

    def minutes(self) -> str:
        """Minutes of CPUs and GPUs behind it, if they are known."""
        return str(self.summary.spent) if self.summary else ""


def lines(profile: str, tables: list[str]) -> dict[str, Line]:
    """The state of tables by name; nothing is planned or compared.

    Raises:
        UserError: the committed summary is not what was written.
    """
    kept = committed(profile)
    found = {}
    for table in tables:
        own = here(places.tables(profile) / table)
        if own is not None:
            found[table] = Line("here", own)
        elif (
            table in kept
            or (places.references() / profile / f"{table}.measures.json").is_file()
            or drawn(table, profile)
        ):
            found[table] = Line("committed", kept.get(table))
        else:
            found[table] = Line("not run", None)
    return found


def here(folder: Path) -> Summary | None:
    """What a table's own results say; None where there are none that can be read: they are only looked at."""
    try:
        verdicts = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["verdicts"]
        runs: dict[str, Any] = json.loads((folder / "runs.json").read_text(encoding="utf-8"))["runs"]
        counts = {name.replace("_", " "): number for name, number in verdicts.items()}
        costs = [run["cost"] for run in runs.values() if run["status"] == "done"]
        took = spent(costs)
        return Summary(verdicts=counts, runs=took.runs, seconds=took.seconds, counted=took.counted) if costs else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def committed(profile: str) -> dict[str, Summary]:
    """The committed summaries of a profile by table; {} where there are none.

    Raises:
        UserError: the file is not what was written.
    """
    path = places.references() / profile / SUMMARY
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: Summary.model_validate(summary) for name, summary in found.items()}
    except (OSError, ValueError, AttributeError, ValidationError):
        raise UserError(
            f"{path} is no summary of tables: restore it, or write it with `hkd reference update`."
        ) from None


def pictures(table: str) -> list[str]:
    """Names of the docs' pictures of a table, without those of tables whose names go on where its own ends."""
    folder = places.repository() / "docs" / "pictures"
    longer = [name for name in schema.table_ids() if name.startswith(f"{table}_")]
    names = sorted(
        path.name for path in folder.glob(f"{table}*.png") if path.stem == table or path.stem[len(table)] == "_"
    )
    return [name for name in names if not any(name.startswith(other) for other in longer)]


def drawn(table: str, profile: str) -> bool:
    """Whether a figure's pictures are committed, which are those of the default profile: some have nothing but them."""
    return profile == DRAWN_AT and schema.load_table(table).kind == "figure" and bool(pictures(table))


def summarised(profile: str, bought: Bought) -> dict[str, Summary]:
    """What the committed records of a profile say, compared anew; own records are not looked at.

    Args:
        profile: its name.
        bought: what the looks at a table left, or None where none were taken (`experiments.until.as_committed`).
    """
    from experiments.results.compare import compare  # imports pandas

    nothing = Store(places.references() / "no-runs")
    found: dict[str, Summary] = {}
    seen = set[tuple[str, str, str]]()
    for table in in_turn(schema.table_ids()):
        if not path_of(places.references(), profile, table).is_file():
            continue
        plan = planned(table, profile, shown_from=nothing)
        records: Mapping[str, Record] = Records(plan, nothing, places.references())
        plan, comparison, records = bought(plan, nothing) or (plan, compare(plan, records), records)
        took = spent(records[key].cost for key in plan.runs if key in records and records[key].status == "done")
        judged = [
            (result.verdict, compared_runs(result.cell, plan.cells))
            for result in comparison.cells
            if result.verdict and result.cell.runs
        ]
        again = Counter[str](verdict for verdict, runs in judged if runs in seen)
        seen.update(runs for _, runs in judged)
        found[table] = Summary(
            verdicts=comparison.counts("verdict"),
            again=dict(again),
            runs=took.runs,
            seconds=round(took.seconds, 1),
            counted=took.counted,
        )
    return dict(sorted(found.items()))


def in_turn(tables: Iterable[str]) -> list[str]:
    """Tables in the order in which what several of them print is counted."""
    return sorted(tables, key=lambda name: (name in COLLECTIONS, name))


def compared_runs(cell: Cell, cells: Iterable[Cell]) -> tuple[str, str, str]:
    """What a gain compares: its metric, and the run of the first seed of both sides, which all tables have.

    Args:
        cell: with runs.
        cells: of its table.
    """
    over = next((each for each in cells if (each.id, each.metric) == (cell.baseline, cell.metric)), None)
    return cell.metric, cell.runs[0], over.runs[0] if over is not None and over.runs else ""


def write_summary(profile: str, bought: Bought) -> Path:
    """Write the summary of a profile's committed records beside them; arguments as of `summarised`."""
    path = places.references() / profile / SUMMARY
    text = json.dumps({name: each.model_dump() for name, each in summarised(profile, bought).items()}, indent=1)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path
