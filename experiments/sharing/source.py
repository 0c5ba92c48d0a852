"""Which run is meant: a key, or a cell of a table; with the same run at other seeds, whose spread its card tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from experiments.planning.asked import planned
from experiments.planning.plan import Cell
from experiments.planning.recorded import siblings
from experiments.planning.schema import table_ids
from experiments.records.store import ENDED, Record, Store
from hkd.errors import UserError
from hkd.registry import nearest
from hkd.spec import RunSpec

WEIGHTS = "student.safetensors"
CLASSIFIERS = ("train", "evaluate", "pretrain")  # tasks that leave one timm model
FORM = "TABLE/ROW/METHOD[/VARIANT][/SEED]"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run that left weights.

    name: as it was asked for. weights: file of the student. record: of the run. spec: of the record.
    seeds: records of the same run at all seeds that are done, itself among them, by seed. cell: of the table, if one
    was named. title: of the table.
    """

    name: str
    weights: Path
    record: Record
    spec: RunSpec
    seeds: dict[int, Record]
    cell: Cell | None = None
    title: str = ""


def found(name: str, store: Store, profile: str | None = None) -> Found:
    """The run of a key (or enough of its beginning), or of a cell: the first of its seeds unless one is named.

    Args:
        name: a key, or `scalekd_table3/swin_l-resnet50/scalekd`, with `/VARIANT` and `/SEED` behind it.
        store: of the runs.
        profile: of the table; the default is in params.yaml.

    Raises:
        UserError: nothing of this name, or nothing that can be exported.
    """
    parts = [part for part in name.split("/") if part]
    if len(parts) > 1:
        return of_cell(name, parts, store, profile)
    keys = list(store.keys())
    matching = [name] if name in keys else [key for key in keys if key.startswith(name)]
    if len(matching) == 1:
        record = store.load(matching[0])
        assert record is not None
        spec = spec_of(record)
        return Found(
            name=record.key,
            weights=weights_of(record, spec, store),
            record=record,
            spec=spec,
            seeds=siblings(record, store.load_all(keys).values()),
        )
    if matching:
        raise UserError(f"'{name}' is the beginning of {len(matching)} runs; give more of it.")
    if name in table_ids():
        raise UserError(f"'{name}' is a table; name one of its cells, as {FORM}: `hkd show {name}` prints them.")
    guess = nearest(name, [*keys, *table_ids()])
    raise UserError(f"There is no run '{name}' in {store.root}.{guess} Give a run's key, or a cell as {FORM}.")


def of_cell(name: str, parts: Sequence[str], store: Store, profile: str | None) -> Found:
    """The run of a cell, as `found`."""
    table, *place = parts
    if table not in table_ids():
        raise UserError(f"Unknown table '{table}' in '{name}'.{nearest(table, table_ids())} A cell is {FORM}.")
    seed = int(place.pop()) if len(place) > 2 and place[-1].isdecimal() else None
    plan = planned(table, profile, shown_from=store)
    if seed is not None and seed not in plan.seeds:
        plan = planned(table, profile, seed + 1, shown_from=store)
    row, column = place[0], "/".join(place[1:])
    rows = list(dict.fromkeys(cell.row for cell in plan.cells))
    if row not in rows:
        raise UserError(f"'{table}' has no row '{row}'.{nearest(row, rows)} Its rows: {', '.join(rows)}.")
    cells = {column_of(cell): cell for cell in plan.cells if cell.row == row}
    if column not in cells:
        what = f"no column '{column}'" if column else "several columns, of which one must be named"
        raise UserError(f"'{table}/{row}' has {what}.{nearest(column, cells)} Its columns: {', '.join(cells)}.")
    cell = cells[column]
    keys = dict(zip(plan.seeds, cell.runs, strict=False))
    if not keys:
        why = cell.refused or "it is printed from the paper"
        raise UserError(f"Nothing is run for '{table}/{row}/{column}': {why.rstrip('.')}.")
    records = store.load_all(keys.values())
    chosen = next((s for s in keys if keys[s] in records), plan.seeds[0]) if seed is None else seed
    record = records.get(keys[chosen])
    asked = f"{table}/{row}/{column}/{chosen}"
    if record is None:
        raise UserError(
            f"There are no weights of '{asked}' (run {keys[chosen]}) in {store.root}: records that are committed "
            f"have none; `hkd run {table} --profile {plan.profile}` trains it here."
        )
    spec = spec_of(record)
    return Found(
        name=asked,
        weights=weights_of(record, spec, store),
        record=record,
        spec=spec,
        seeds={s: records[key] for s, key in keys.items() if key in records and records[key].status == "done"},
        cell=cell,
        title=plan.title,
    )


def column_of(cell: Cell) -> str:
    """A column as cells name it: `scalekd`, `hcd/no_fc`."""
    return "/".join(filter(None, (cell.method, cell.variant)))


def spec_of(record: Record) -> RunSpec:
    """The spec of a record. Raises UserError where this version does not read it."""
    try:
        return TypeAdapter(RunSpec).validate_python(record.spec)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"Run {record.key} has a spec that this version does not read ({where}).") from None


def weights_of(record: Record, spec: RunSpec, store: Store) -> Path:
    """The file of a run's student.

    Raises:
        UserError: the run did not end well, is none that leaves one, or left none; or the file was altered.
    """
    if record.status != "done":
        why = f" ({record.reason.rstrip('.')})" if record.reason else ""
        raise UserError(f"Run {record.key} {ENDED[record.status]}{why}, and left no weights to export.")
    if spec.task not in CLASSIFIERS:
        raise UserError(
            f"Run {record.key} is a '{spec.task}', which leaves no plain timm model; export the run it started from"
            + (f", {spec.init.id}." if spec.init is not None and spec.init.kind == "run" else ".")
        )
    path = store.kept(record, WEIGHTS)
    if path is None:
        raise UserError(f"Run {record.key} has no {WEIGHTS} in {store.folder(record.key)}; have it done again.")
    return path
