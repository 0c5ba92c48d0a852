"""Somebody else's results against ours, cell by cell, by the statistics of the regression check.

Read are committed records (TABLE.json.xz), folders of tables as `hkd run` writes them (runs.json), and stores of runs
(KEY/record.json). A cell whose run has our key is the same training, so its seeds are paired; other keys are other
code, settings or data, and compared unpaired, by Welch's test. Differences count in both directions.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.documents import read_json
from experiments.planning.asked import planned
from experiments.planning.own import is_path
from experiments.planning.schema import table_ids
from experiments.records import committed
from experiments.records.store import Record, Store
from experiments.results import regression
from experiments.results.regression import CELL_LEVEL, MARGIN, MeasuredCell, Reference
from hkd.errors import UserError

APART = 10**6  # added to seeds that are not to be paired
LOWER, HIGHER, AGREES, EQUAL, UNTOLD = "lower", "higher", "agrees", "every digit", "cannot tell: one seed"


@dataclass(frozen=True, kw_only=True)
class Against:
    """One table of theirs against ours. cells: a line per cell that both have. alone: cells that only one side has."""

    table: str
    profile: str
    cells: pd.DataFrame
    alone: int
    rekeyed: int
    reasons: tuple[str, ...] = ()

    @property
    def differs(self) -> int:
        """Cells that differ by more than the margin."""
        return int(self.cells["finding"].isin((LOWER, HIGHER)).sum())

    def markdown(self) -> str:
        """The outcome, what to know of it, and a line per cell."""
        counts = Counter(self.cells["finding"])
        said = ", ".join(f"{counts[name]} {name}" for name in (LOWER, HIGHER, AGREES, EQUAL, UNTOLD) if counts[name])
        lines = [f"{self.table} ({self.profile}): {len(self.cells)} cells compared{': ' + said if said else ''}"]
        if self.rekeyed:
            lines.append(f"- other code, settings or data: {self.rekeyed} cells have other runs, and are not paired")
        if self.alone:
            lines.append(f"- {self.alone} cells have values on one side alone")
        lines += [f"- {reason}" for reason in self.reasons]
        if len(self.cells):
            text = self.cells.map(lambda value: f"{value:.3g}" if isinstance(value, float) else str(value))
            lines += ["", text.replace("nan", "").to_markdown(index=False, disable_numparse=True)]
        return "\n".join(lines)


def against(place: Path, store: Store, references: Path, tables: Iterable[str] = ()) -> list[Against]:
    """Every table that a folder, or a file of committed records, has values of, against ours.

    Args:
        place: theirs.
        store: of our runs.
        references: our committed records, where a run is not in the store.
        tables: only these; all when none is named.

    Raises:
        UserError: nothing is there that is a table of this suite.
    """
    wanted = set(tables)
    found = [theirs for theirs in read(place, wanted) if not wanted or theirs.table in wanted]
    if not found:
        raise UserError(
            f"{place} holds no results of {', '.join(sorted(wanted)) or 'a table of this suite'}: TABLE.json.xz as in "
            "results/reference, runs.json as `hkd run` writes it, or records of runs."
        )
    return [compared(theirs, store, references) for theirs in found]


def read(place: Path, wanted: set[str]) -> Iterator[Reference]:
    """What is in a folder, or in a file, table by table."""
    if not place.exists():
        raise UserError(f"There is no {place}; give a folder of results, or a file TABLE.json.xz.")
    files = [place] if place.is_file() else sorted(place.rglob(f"*{committed.SUFFIX}"))
    for file in files:
        yield regression.load_reference(file)
    folders = [] if place.is_file() else sorted(place.rglob("runs.json"))
    for file in folders:
        yield of_table_folder(file)
    if not files and not folders and any(place.glob("*/record.json")):
        theirs = Store(place)
        for name in sorted(wanted) or table_ids():
            plan = planned(name, shown_from=theirs)
            values = regression.measured_values(plan, theirs.load_all(plan.runs))
            if any(cell.values() for cell in values.cells):
                yield values


def of_table_folder(path: Path) -> Reference:
    """The runs.json of a table's folder. Raises UserError where it is something else."""
    try:
        document = read_json(path)
        runs = document["runs"]
        records = {
            key: Record(
                key=key,
                label=str(run["label"]),
                status=run["status"],
                spec=run.get("spec", {}),
                metrics={name: float(value) for name, value in run.get("metrics", {}).items()},
                environment=run.get("environment", {}),
            )
            for key, run in runs.items()
            if run["status"] != "not run"
        }
        cells = [
            committed.Cell(
                row=cell["row"],
                method=cell["method"],
                variant=cell["variant"],
                metric=metric,
                runs={int(runs[key]["seed"]): key for key in cell["runs"]},
            )
            for cell in document["cells"]
            for metric in sorted({name for key in cell["runs"] if key in records for name in records[key].metrics})
        ]
        data = {
            (str(record.spec["data"]["name"]), str(record.spec["data"]["fingerprint"])) for record in records.values()
        }
        table, profile = document["table"], document["profile"]
        if not (isinstance(table, str) and isinstance(profile, str)):
            raise TypeError("table and profile are names")
        return regression.reference(table, profile, data, cells, records)
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{path} is not what `hkd run` writes ({what}).") from None


def compared(theirs: Reference, store: Store, references: Path) -> Against:
    """One table of theirs against ours."""
    if theirs.table not in table_ids():
        raise UserError(f"Their table '{theirs.table}' is none of this suite; `hkd tables` lists them.")
    if is_path(theirs.profile):  # whose code, which a profile may name, would be run
        raise UserError(f"Their profile '{theirs.profile}' is a path, and no file is read because results name it.")
    mine = own(theirs, store, references)
    ours, other = ({cell.id: cell for cell in side.cells} for side in (mine, theirs))
    both = [which for which in ours if which in other and ours[which].values() and other[which].values()]
    valued = {which for side in (ours, other) for which, cell in side.items() if cell.values()}
    rekeyed = [which for which in both if regression.rekeyed(ours[which], other[which])]
    before = {which: ours[which] for which in both}
    now = {which: apart(other[which]) if which in rekeyed else other[which] for which in both}
    reasons = []
    if mine.data != theirs.data:
        reasons.append(f"other data: {regression.changed(theirs.data, mine.data)}")
    if mine.versions != theirs.versions:
        reasons.append(f"library versions or devices differ: {regression.changed(theirs.versions, mine.versions)}")
    return Against(
        table=theirs.table,
        profile=theirs.profile,
        cells=lines(before, now),
        alone=len(valued) - len(both),
        rekeyed=len(rekeyed),
        reasons=tuple(reasons),
    )


def own(theirs: Reference, store: Store, references: Path) -> Reference:
    """Our values of a table: this machine's if there are any, else those that are committed, whatever their keys."""
    seeds = max((seed for cell in theirs.cells for seed in cell.runs), default=0) + 1
    plan = planned(theirs.table, theirs.profile, seeds, shown_from=store)
    found = regression.measured_values(plan, store.load_all(plan.runs))
    path = committed.path_of(references, theirs.profile, theirs.table)
    if any(cell.values() for cell in found.cells) or not path.is_file():
        return found
    return regression.load_reference(path)


def apart(cell: MeasuredCell) -> MeasuredCell:
    """A cell whose seeds are paired with nobody's."""
    return replace(cell, runs={seed + APART: run for seed, run in cell.runs.items()})


def lines(ours: Mapping[tuple, MeasuredCell], theirs: Mapping[tuple, MeasuredCell]) -> pd.DataFrame:
    """A line per cell: both means, the difference with its interval, the test's finding; largest difference first."""
    fell = {line["what"]: line for line in regression.cell_lines(theirs, ours)}
    rose = {line["what"]: line for line in regression.cell_lines(ours, theirs)}
    rows: list[dict[str, Any]] = []
    for which, cell in ours.items():
        old, new = cell.values(), theirs[which].values()
        row: dict[str, Any] = {
            "cell": cell.name,
            "ours": float(np.mean([*old.values()])),
            "theirs": float(np.mean([*new.values()])),
        }
        row |= {"seeds": f"{len(old)}, {len(new)}", "difference": row["theirs"] - row["ours"]}
        down = fell.get(cell.name)
        if down is None:
            rows.append(row | {"difference": 0.0, "low": math.nan, "high": math.nan, "finding": EQUAL})
            continue
        up = rose[cell.name]
        # Two one-sided tests, so each at half of the level.
        finding = LOWER if down["p"] < CELL_LEVEL / 2 else HIGHER if up["p"] < CELL_LEVEL / 2 else AGREES
        finding = UNTOLD if math.isnan(down["p"]) else finding
        rows.append(row | {"difference": -down["drop"], "low": -down["high"], "high": -down["low"], "finding": finding})
    rows.sort(key=lambda row: -abs(row["difference"]))
    return pd.DataFrame(rows, columns=["cell", "ours", "theirs", "seeds", "difference", "low", "high", "finding"])


def reading() -> str:
    """How the findings are to be read."""
    return (
        f"lower, higher: by more than {MARGIN:g} point at {CELL_LEVEL:.0%} over all cells of a table (Holm); agrees: "
        "not shown to differ by that much; differences are theirs minus ours with 95 % intervals."
    )
