"""Two sets of results beside each other: which cells moved, by how much, which gains changed sides, and with what.

The first set is committed records (those of this checkout, or of another folder), the second what this report shows;
where that is the same, it is this machine's runs alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import places
from experiments.records import committed
from experiments.records.store import Record, spent
from experiments.report.gather import Entry, Findings
from experiments.results import stats
from experiments.results.caption import LOSSES, metric_name
from experiments.results.regression import MeasuredCell, load_reference, measured_values
from experiments.results.stats import EQUAL, Estimate
from hkd.errors import UserError

SIDES = {1: "above 0", -1: "below 0", 0: "includes 0"}
CellId = tuple[str, str, str, str]  # row, method, variant, metric


@dataclass
class Compared:
    """What two sets differ in. tables, cells: lines as the page has them; versions, problems: sentences."""

    tables: list[dict[str, Any]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def compared_sets(findings: Findings, against: Path | None = None) -> dict[str, Any]:
    """What the page of the comparison is given.

    Args:
        findings: of this report.
        against: folder of committed records, laid out as results/reference; None: those of this checkout, and then
            the second set is this machine's runs alone.
    """
    references = against or places.references()
    names = (f"{against.name if against else 'committed'}", "this report" if against else "this machine")
    found = Compared()
    for entry in findings.entries:
        path = committed.path_of(references, entry.profile, entry.name)
        records = {key: r for key, r in entry.records.items() if against is not None or key in entry.own}
        if not path.is_file() or not records or entry.plan is None:
            continue
        try:
            compare_table(entry, path, records, found)
        except UserError as error:
            found.problems.append(str(error))
    choices: dict[str, Any] = {"table": (0, list(dict.fromkeys(line["table"] for line in found.cells)))}
    choices["flip"] = (5, list(dict.fromkeys(line["flip"] for line in found.cells if line["flip"])))
    return {
        "sentence": sentence(found, names),
        "problems": found.problems,
        "versions": list(found.versions),
        "tables": found.tables,
        "cells": found.cells,
        "choices": choices,
        "first": names[0],
        "second": names[1],
    }


def sentence(found: Compared, names: tuple[str, str]) -> str:
    """What is compared, and what came out."""
    if not found.tables:
        return (
            "There is one set of results only: nothing that is committed was also run on this machine. Run a table "
            "(dvc repro TABLE), or name the records of another checkout (hkd report --against FOLDER), to see two."
        )
    common = sum(line["common"] for line in found.tables)
    flips = sum(line["flipped"] for line in found.tables)
    return (
        f"{names[0].capitalize()} against {names[1]}: {common} cells are in both, {len(found.cells)} differ, and the "
        f"gain of {flips} changed its place beside 0."
    )


def compare_table(entry: Entry, path: Path, records: Mapping[str, Record], found: Compared) -> None:
    """Add what differs in one table."""
    assert entry.plan is not None
    first, second = load_reference(path), measured_values(entry.plan, records)
    before, after = by_id(first.cells), by_id(second.cells)
    for name in sorted(first.versions.keys() | second.versions.keys()):
        was, now = (", ".join(versions.get(name, ["not recorded"])) for versions in (first.versions, second.versions))
        if was != now:
            found.versions[f"{name}: {was} → {now}"] = None
    lines = []
    for result in entry.cells:
        cell = result.cell
        this: CellId = (*cell.id, cell.metric)
        a, b = before.get(this, {}), after.get(this, {})
        delta = stats.paired_gain(b, a)
        if not delta.n:
            continue
        base: CellId | None = (*cell.baseline, cell.metric) if cell.baseline else None
        lines.append(
            {
                "table": entry.page,
                "cell": f"{cell.row}, {cell.label}, {metric_name(cell.metric)}",
                "href": f"t/{entry.page}.html#{cell.row}.{cell.method}.{cell.variant}.{cell.metric}",
                "before": mean(a),
                "after": mean(b),
                "delta": delta,
                "flip": flip(before, after, this, base),
                "moved": any(abs(a[seed] - b[seed]) > EQUAL for seed in a.keys() & b.keys()) or a.keys() != b.keys(),
                "unit": "loss" if cell.metric in LOSSES else "points",
            }
        )
    moved = [line for line in lines if line["moved"]]
    found.cells += sorted(moved, key=lambda line: -abs(line["delta"].mean))
    file = committed.read(path)
    kept = [record for key in file.by_key if (record := file.record(key)) is not None]
    found.tables.append(
        {
            "page": entry.page,
            "title": entry.title,
            "common": len(lines),
            "changed": len(moved),
            "flipped": sum(bool(line["flip"]) for line in lines),
            "spent": [spent(record.cost for record in each) for each in (kept, records.values())],
        }
    )


def by_id(cells: tuple[MeasuredCell, ...]) -> dict[CellId, dict[int, float]]:
    """Values by cell and seed."""
    return {cell.id: cell.values() for cell in cells}


def mean(values: Mapping[int, float]) -> float:
    """Mean over seeds."""
    return sum(values.values()) / len(values)


def flip(before: Mapping[CellId, Any], after: Mapping[CellId, Any], this: CellId, base: CellId | None) -> str:
    """`includes 0 → above 0` where the gain's interval changed its place; "" where it did not, or one set has none."""
    if base is None:
        return ""
    gains = [stats.paired_gain(values.get(this, {}), values.get(base, {})) for values in (before, after)]
    if any(has_none(gain) for gain in gains) or gains[0].sign == gains[1].sign:
        return ""
    return " → ".join(SIDES[gain.sign] for gain in gains)


def has_none(gain: Estimate) -> bool:
    """Whether a gain has no interval."""
    return math.isnan(gain.low)
