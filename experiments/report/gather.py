"""What the report shows, read once: every table at every profile where something was measured, and what is astray.

Committed records and those of this machine; a run's own record takes precedence. What cannot be read is no reason to
stop: it stands on the page of its table as a sentence.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from experiments import places
from experiments.planning import schema
from experiments.planning.asked import planned
from experiments.planning.own import OWN
from experiments.planning.plan import Plan
from experiments.planning.schema import Table, load_params
from experiments.records.committed import SUFFIX, Curves, Records
from experiments.records.live import curves_so_far
from experiments.records.store import Record, Spent, Store, spent
from experiments.results.compare import CellResult, Comparison, compare
from experiments.results.render import costs
from experiments.until import shown
from hkd.errors import UserError

State = tuple[tuple[str, int, int], ...]  # files of runs, with their times (ns) and sizes


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table at a profile.

    name: of the table. page: of its pages, the name alone at the main profile and `name@profile` elsewhere.
    own: keys of runs that this machine has a record of. under_way: runs without one that have begun, with their last
    finished epoch. left: what its runs had left in the store when they were read. problem: why there is no plan, or no
    comparison, as a sentence.
    """

    name: str
    page: str
    profile: str
    table: Table | None = None
    plan: Plan | None = None
    comparison: Comparison | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    curves: Mapping[str, Curves] = field(default_factory=dict)
    under_way: Mapping[str, int] = field(default_factory=dict)
    left: State = ()
    costs: pd.DataFrame | None = None
    problem: str = ""

    @property
    def title(self) -> str:
        """The table's title, with what stood in; its name where it could not be read."""
        return self.plan.title if self.plan else self.table.title if self.table else self.name

    @property
    def paper(self) -> str:
        """The paper's key."""
        return self.table.paper if self.table else self.name.partition("_")[0]

    @property
    def kind(self) -> str:
        """Table or figure."""
        return self.table.kind if self.table else "table"

    @property
    def finding(self) -> str:
        """The sentence that a person wrote of this profile."""
        return self.table.finding.get(self.profile, "") if self.table else ""

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """All cells; none where they could not be compared."""
        return self.comparison.cells if self.comparison else ()

    @cached_property
    def rows(self) -> dict[str, list[CellResult]]:
        """Cells by row, in the table's order."""
        found: dict[str, list[CellResult]] = {}
        for result in self.cells:
            found.setdefault(result.cell.row, []).append(result)
        return found

    @property
    def measured(self) -> bool:
        """Whether anything of it was measured."""
        return any(result.measured.n for result in self.cells) or bool(self.records)

    @property
    def spent(self) -> Spent:
        """The time of its runs."""
        return spent(record.cost for record in self.records.values())


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that the report shows. astray: sentences on records that belong to no page."""

    main: str
    profiles: tuple[str, ...]
    entries: tuple[Entry, ...]
    astray: tuple[str, ...] = ()

    def at(self, profile: str) -> list[Entry]:
        """The entries of a profile."""
        return [entry for entry in self.entries if entry.profile == profile]


def gather(store: Store, *, profile: str | None = None, tables: Sequence[str] | None = None) -> Findings:
    """Read everything.

    Args:
        store: records of this machine.
        profile: the only one; None: that of params.yaml, and all others at which something was measured.
        tables: only these, the user's own among them, which are at their own profile; None: all of the suite.
    """
    own = {name: schema.profile_for(name) for name in tables or () if ("tables", name) in OWN}
    main = profile or next(filter(None, own.values()), load_params().profile)
    schema.load_profile(main)
    others = [] if profile else [name for name in schema.names("profiles") if name != main]
    wanted = [name for name in main_first() if tables is None or name in tables]
    asked = [(profile or at or main, name) for name, at in own.items()] + [(main, name) for name in wanted]
    asked += [(other, name) for other in others for name in wanted if is_somewhere(other, name)]
    entries = [read(name, at, name if at == main else f"{name}@{at}", store) for at, name in asked]
    profiles = tuple(dict.fromkeys(entry.profile for entry in entries)) or (main,)
    return Findings(
        main=main, profiles=profiles, entries=tuple(entries), astray=tuple(astray(store, profiles, entries, tables))
    )


def main_first() -> list[str]:
    """Tables and figures in the order of dvc.yaml, which has the main table of each paper first; others after them."""
    pipeline = places.repository() / "dvc.yaml"
    text = pipeline.read_text(encoding="utf-8") if pipeline.is_file() else ""
    order = {name: place for place, name in enumerate(re.findall(r"^  (\w+):$", text, flags=re.M))}
    return sorted(schema.table_ids(), key=lambda name: order.get(name, len(order)))


def is_somewhere(profile: str, table: str) -> bool:
    """Whether records of a table at a profile are committed, or its folder was written here."""
    return (places.references() / profile / f"{table}{SUFFIX}").is_file() or (places.tables(profile) / table).is_dir()


def read(name: str, profile: str, page: str, store: Store) -> Entry:
    """One table at a profile; what goes wrong becomes its `problem`."""
    facts: dict[str, Any] = {"name": name, "profile": profile, "page": page}
    try:
        facts["table"] = schema.load_table(name)
        return Entry(**facts, **compared(planned(name, profile, shown_from=store), store))
    except UserError as error:
        return Entry(**facts, problem=str(error))


def compared(plan: Plan, store: Store) -> dict[str, Any]:
    """What the records of a plan say: the fields of an `Entry` that change while runs go on, and its plan.

    A table whose seeds were bought has the plan and the judgement that its looks left.
    """
    bought = shown(plan, store)
    plan = plan if bought is None else bought.plan
    left = state(plan, store)  # before they are read: what comes in between is seen at the next look
    records = Records(plan, store, places.references())
    comparison = compare(plan, records) if bought is None else bought.comparison
    begun = under_way(plan, records, store)
    so_far = {key: curves_so_far(store.folder(key)) for key in begun}
    return {
        "plan": plan,
        "left": left,
        "comparison": comparison,
        "records": dict(records),
        "own": frozenset(records.own),
        "curves": records.curves(records) | so_far,
        "under_way": begun,
        "costs": costs(plan, records, comparison),
    }


def state(plan: Plan, store: Store) -> State:
    """What the runs of a table have left so far: their records and curves."""
    found = []
    for key in plan.runs:
        for name in ("record.json", "curves.jsonl"):
            try:
                facts = (store.folder(key) / name).stat()
            except FileNotFoundError:
                continue
            found.append((f"{key}/{name}", facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def under_way(plan: Plan, records: Mapping[str, Record], store: Store) -> dict[str, int]:
    """Runs that have begun and have no record, with the last epoch in their curves."""
    found = {}
    for key in plan.runs:
        path = store.folder(key) / "curves.jsonl"
        if key not in records and path.is_file():
            found[key] = last_epoch(path)
    return found


def last_epoch(path: Path) -> int:
    """The last whole line's epoch; 0 where there is none. A line that is being written is passed over."""
    for line in reversed(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            return int(json.loads(line)["epoch"])
        except (ValueError, TypeError, KeyError):
            continue
    return 0


def astray(store: Store, profiles: Iterable[str], entries: Sequence[Entry], tables: Sequence[str] | None) -> list[str]:
    """Records that no page shows: of tables and profiles that are gone, and runs here that no plan asks for."""
    sentences = []
    known, references = set(schema.table_ids()), places.references()
    for folder in sorted(path for path in references.glob("*") if path.is_dir()):
        if folder.name not in schema.names("profiles"):
            sentences.append(f"Committed records of profile '{folder.name}' are not shown: there is no such profile.")
            continue
        gone = sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))
        for name in (name for name in gone if name not in known):
            sentences.append(
                f"Committed records of {name} at profile {folder.name} are not shown: there is no such table any more."
            )
    if tables is None:
        asked = {key for entry in entries if entry.plan for key in entry.plan.runs}
        foreign = set(store.keys()) - asked
        if foreign:
            one = len(foreign) == 1
            sentences.append(
                f"{len(foreign)} record{'' if one else 's'} of this machine {'is' if one else 'are'} not shown: no "
                f"table at profile {', '.join(profiles)} asks for {'it' if one else 'them'} (other settings, profiles "
                "or versions of the code)."
            )
    return sentences
