"""Decided gains of committed tables whose runs stand in another committed table too, trained again on another CPU.

    python -m experiments.results.again [PROFILE]

prints a line for each, those that turn round first. docs/statistics.md says what came out.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from experiments import places
from experiments.planning.plan import plan
from experiments.records import committed
from experiments.records.committed import Committed, Records
from experiments.records.store import Store
from experiments.results.compare import CellResult, compare
from experiments.results.verdicts import DECIDED


@dataclass(frozen=True, kw_only=True)
class Again:
    """A gain in points, with the mean over the same seeds in both tables.

    tables: that judge it. others: that hold its runs with other digits. seeds: that both have.
    """

    row: str
    label: str
    metric: str
    gain: float
    there: float
    seeds: tuple[int, ...]
    tables: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def turned(self) -> bool:
        """Whether the means have opposite signs."""
        return self.gain * self.there < 0

    def __str__(self) -> str:
        turned = "turned  " if self.turned else "        "
        where = f"{', '.join(self.tables)} / {', '.join(self.others)}"
        return f"{turned}{self.row} {self.label} {self.metric}: {self.gain:+.1f} / {self.there:+.1f} ({where})"


def trained_again(profile: str, store: Store) -> list[Again]:
    """Every decided gain of a profile of which at least two seeds were trained again, once.

    Args:
        profile: whose committed tables are read.
        store: an empty one takes nothing but committed records.
    """
    folder = places.references() / profile
    files = {path.name.removesuffix(committed.SUFFIX): path for path in sorted(folder.glob(f"*{committed.SUFFIX}"))}
    held = {table: committed.read(path) for table, path in files.items()}
    found: dict[tuple[str, ...], Again] = {}
    for table in held:
        for cell in decided(table, profile, store):
            for keys, again in of_cell(cell, table, held):
                before = found.get(keys)
                found[keys] = again if before is None else joined(before, again)
    return sorted(found.values(), key=lambda again: not again.turned)


def decided(table: str, profile: str, store: Store) -> Iterator["Judged"]:
    """The decided gains of a table, with the runs of both of their sides."""
    made = plan(table, profile)
    for result in compare(made, Records(made, store, places.references())).cells:
        if result.verdict in DECIDED:
            base = next(
                cell
                for cell in made.cells
                if (cell.row, cell.method, cell.variant) == result.cell.baseline and cell.metric == result.cell.metric
            )
            yield Judged(result, dict(zip(made.seeds, zip(result.cell.runs, base.runs, strict=False), strict=False)))


@dataclass(frozen=True)
class Judged:
    """A decided gain, and by seed the keys of the run and of the one that it is over."""

    result: CellResult
    runs: Mapping[int, tuple[str, str]]


def of_cell(judged: Judged, table: str, held: Mapping[str, Committed]) -> Iterator[tuple[tuple[str, ...], Again]]:
    """A gain in each other table that has two of its seeds with other digits; before it, the keys of its runs."""
    result, metric = judged.result, judged.result.cell.metric
    for other, file in held.items():
        there: dict[int, float] = {}
        for seed, keys in judged.runs.items():
            both = [file.by_key.get(key) for key in keys]
            values = [run.metrics.get(metric) for run in both if run is not None and run.status == "done"]
            if len(values) == 2 and None not in values and seed in result.gains:
                there[seed] = values[0] - values[1]  # type: ignore[operator]
        if other == table or len(there) < 2 or all(there[seed] == result.gains[seed] for seed in there):
            continue
        runs = (metric, *(key for seed in there for key in judged.runs[seed]))
        yield (
            runs,
            Again(
                row=result.cell.row,
                label=result.cell.label,
                metric=metric,
                gain=fmean(result.gains[seed] for seed in there),
                there=fmean(there.values()),
                seeds=tuple(there),
                tables=(table,),
                others=(other,),
            ),
        )


def joined(one: Again, two: Again) -> Again:
    """The same gain in other tables: it is listed once."""
    names = [tuple(dict.fromkeys((*a, *b))) for a, b in ((one.tables, two.tables), (one.others, two.others))]
    return Again(**{**vars(one), "tables": names[0], "others": names[1]})


if __name__ == "__main__":
    for line in trained_again(next(iter(sys.argv[1:]), "laptop"), Store(places.runs())):
        print(line)
