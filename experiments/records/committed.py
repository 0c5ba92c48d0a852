"""What was measured, as it lives in the repository: one file of compact records per profile and table.

`results/reference/<profile>/<table>.json.xz` is canonical JSON, compressed: equal records give equal bytes. It holds
what the runs behind a table left but their weights, as far as it is known and in few bytes: curves of at most `POINTS`
epochs a series, and of predictions whether they were right. `Records` reads a plan's records from the store of this
machine and, where a run is not in it, from the file.
"""

import base64
import json
import logging
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from experiments import places
from experiments.documents import Document, Finite, content, json_of
from experiments.records.store import Altered, Record, Store, canonical
from hkd.errors import UserError
from hkd.files import atomic_write

if TYPE_CHECKING:  # a plan asks for fingerprints of data that is not here
    from experiments.planning.plan import Plan

log = logging.getLogger(__name__)

FORMAT: Final = 1
SUFFIX = ".json.xz"
POINTS = 60  # of a series of a curve
CURVE_DIGITS = 5  # significant, of curves
COST_DIGITS = 4  # significant, of costs
LIMIT = 256 * 2**20  # bytes of JSON that are read at most
MEMORY = 128 * 2**20  # bytes that decompression may take
CHUNK = 2**20
UNKNOWN = "missing "  # what the id of weights begins with where neither the file nor its committed id is there
PRESET = 6 | lzma.PRESET_EXTREME  # its window of 8 MB holds whole tables

Curves = list[dict[str, Any]]  # one dict per epoch
Predictions = Mapping[str, np.ndarray]  # row, label, correct: [N] each, one entry per test image
Complaint = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # what reading something else ends with


# -- the format ----------------------------------------------------------------------------------------------------


class Data(Document):
    """A data set with the options of a profile, and the fingerprint of its content."""

    name: str
    options: dict[str, Any]
    fingerprint: str


class Images(Document):
    """The test images that several runs were measured on: `row` and `label` as in predictions.npz."""

    row: tuple[int, ...]
    label: tuple[int, ...]


class Correct(Document):
    """Which test images a run got right: the number of its `Images` in the file, and a bit each, packed, in base64."""

    images: int
    bits: str


class Series(Document):
    """Curves that have the same epochs, by name."""

    epoch: tuple[int, ...]
    series: dict[str, tuple[int | float, ...]]


class Cell(Document):
    """One measured cell: key of its run by seed."""

    row: str
    method: str
    variant: str
    metric: str
    runs: dict[int, str]


class Run(Document):
    """One run, as `Record` has it. environment: its number in the file. date: UTC, of its end."""

    key: str
    label: str
    status: Annotated[str, Field(pattern="^(done|diverged|refused|failed)$")]
    reason: str | None = None
    spec: dict[str, Any]
    metrics: dict[str, Finite]
    cost: dict[str, Finite]
    environment: int
    date: str
    former_key: str | None = None
    curves: tuple[Series, ...] = ()
    correct: Correct | None = None


class Committed(Document):
    """The file of a table at a profile.

    kind: of device that the keys are for. data, weights: what the plan used, so that a machine without them plans the
    same keys: fingerprints by data set and options, ids of weight files by name. runs: all that have a record, in the
    order of the plan.
    """

    format: Literal[1] = FORMAT
    table: str
    profile: str
    kind: str
    data: tuple[Data, ...]
    weights: dict[str, str]
    environments: tuple[dict[str, Any], ...]
    images: tuple[Images, ...]
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]

    @model_validator(mode="after")
    def whole(self) -> "Committed":
        """Raises ValueError where parts of the file do not fit each other."""
        if len(self.by_key) != len(self.runs):
            raise ValueError("a run stands in it twice")
        if any(len(images.row) != len(images.label) for images in self.images):
            raise ValueError("images and labels differ in number")
        for run in self.runs:
            date.fromisoformat(run.date)
            if not 0 <= run.environment < len(self.environments):
                raise ValueError(f"run {run.key} has no environment")
            if any(len(values) != len(group.epoch) for group in run.curves for values in group.series.values()):
                raise ValueError(f"curves of run {run.key} differ in length")
            if run.correct and not 0 <= run.correct.images < len(self.images):
                raise ValueError(f"run {run.key} has no images")
            if run.correct and len(base64.b64decode(run.correct.bits, validate=True)) != (self.count(run) + 7) // 8:
                raise ValueError(f"run {run.key} has not one bit for each image")
        return self

    @cached_property
    def by_key(self) -> dict[str, Run]:
        """Runs by key."""
        return {run.key: run for run in self.runs}

    @cached_property
    def arrays(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows and labels of the test images."""
        return [(np.array(images.row), np.array(images.label)) for images in self.images]

    def count(self, run: Run) -> int:
        """How many test images a run was measured on."""
        return len(self.images[run.correct.images].row) if run.correct else 0

    def record(self, key: str) -> Record | None:
        """The record of a run, or None if it is not in the file."""
        run = self.by_key.get(key)
        if run is None:
            return None
        environment, day = self.environments[run.environment], datetime.fromisoformat(run.date).replace(tzinfo=UTC)
        return Record(
            key=key,
            label=run.label,
            status=run.status,
            spec=run.spec,
            metrics=run.metrics,
            cost=run.cost,
            environment=environment,
            started=day.timestamp(),
            finished=day.timestamp(),
            reason=run.reason,
            former_key=run.former_key,
            committed=", ".join(filter(None, (f"committed {run.date}", processor(environment)))),
        )

    def curves(self, key: str) -> Curves | None:
        """The curves of a run, or None if the file has none."""
        run = self.by_key.get(key)
        if run is None or not run.curves:
            return None
        lines: dict[int, dict[str, Any]] = {}
        for group in run.curves:
            for i, epoch in enumerate(group.epoch):
                line = lines.setdefault(epoch, {"epoch": epoch})
                line.update({name: values[i] for name, values in group.series.items()})
        return [lines[epoch] for epoch in sorted(lines)]

    def predictions(self, key: str) -> Predictions | None:
        """Which test images a run got right, or None if the file does not say."""
        run = self.by_key.get(key)
        if run is None or run.correct is None:
            return None
        row, label = self.arrays[run.correct.images]
        packed = np.frombuffer(base64.b64decode(run.correct.bits), dtype=np.uint8)
        return {"row": row, "label": label, "correct": np.unpackbits(packed, count=len(row)).astype(bool)}

    def fingerprint(self, name: str, options: Mapping[str, Any]) -> str | None:
        """The fingerprint of a data set with these options, or None if the file does not know it."""
        return next((each.fingerprint for each in self.data if (each.name, each.options) == (name, options)), None)


def processor(environment: Mapping[str, Any]) -> str:
    """What a run was computed on, as it names itself, without trade marks; "" where that is not known."""
    on_gpu = environment.get("device", "cpu") != "cpu"
    names = environment.get("gpu", ()) if on_gpu else [environment.get("cpu", "")]
    return ", ".join(dict.fromkeys(re.sub(r"\((R|TM)\)", "", str(name)) for name in names))


# -- the file ------------------------------------------------------------------------------------------------------


def path_of(references: Path, profile: str, table: str) -> Path:
    """Where the records of a table are committed."""
    return references / profile / f"{table}{SUFFIX}"


def kind_of(plan: "Plan") -> str:
    """The kind of device that a table's committed keys are for; the plan's if there are none."""
    path = path_of(places.references(), plan.profile, plan.table)
    return read(path).kind if path.is_file() else plan.kind


def write(file: Committed, path: Path) -> None:
    """Store a file, atomically; equal content gives equal bytes."""
    content = canonical(file.model_dump(exclude_defaults=True) | {"format": file.format})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_bytes(lzma.compress(content, lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, preset=PRESET))


def read(path: Path) -> Committed:
    """A file as it was written.

    Raises:
        UserError: there is none, or it is not one; JSON of more than `LIMIT` bytes is not held to find that out.
    """
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise UserError(
            f"There is no reference {path}; save one of a finished table with `hkd reference update TABLE`."
        ) from None
    if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
        raise UserError(f"{path} is no file of committed records: it is no file; restore it from git.")
    return read_state(path, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=4)
def read_state(path: Path, mtime_ns: int, size: int) -> Committed:
    """A file as it is since a time: one command asks for it several times."""
    found: Any = None
    try:
        document = json_of(unpacked(path))
        found = document["format"]
        if found == FORMAT:
            return Committed.model_validate(document)
        why = f"it has format {found!r}, and this version reads {FORMAT}"
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        why = f"{place}: {first['msg']}".removeprefix(": ").replace("Value error, ", "")
    except lzma.LZMAError as error:
        why = f"it cannot be decompressed ({error})"
    except Complaint as error:
        why = f"it holds something else ({type(error).__name__})"
    raise UserError(f"{path} is no file of committed records: {why.rstrip('.')}; restore it from git.") from None


def unpacked(path: Path, limit: int = LIMIT) -> bytes:
    """A decompressed file.

    Raises:
        LZMAError: it is not one xz stream, is cut short, or would take more than `limit` bytes.
    """
    stream, parts, size = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY), [], 0
    with open(path, "rb") as file:
        while not stream.eof:
            packed = file.read(CHUNK) if stream.needs_input else b""
            if stream.needs_input and not packed:
                raise lzma.LZMAError("it is cut short")
            parts.append(stream.decompress(packed, max_length=CHUNK))
            size += len(parts[-1])
            if size > limit:
                raise lzma.LZMAError(f"it holds more than {limit / 2**20:.0f} MiB")
        if stream.unused_data or file.read(1):
            raise lzma.LZMAError("something follows its end")
    return b"".join(parts)


# -- from records to a file ----------------------------------------------------------------------------------------


class Records(Mapping[str, Record]):
    """The records of a plan's runs, by key: those of this machine, else those that the repository holds.

    Curves and predictions come from where the record of the run does.

    Args:
        plan: of a table at a profile.
        store: of this machine.
        references: folder of the committed files; None: this machine's records alone.
        tables: whose committed records are read, the first that has a run; None: the plan's own table.

    Raises:
        UserError: a record, or a file, is not what was written.
    """

    def __init__(self, plan: "Plan", store: Store, references: Path | None, tables: Sequence[str] | None = None):
        self.store = store
        self.own = store.load_all(plan.runs)
        self.holders: dict[str, Committed] = {}  # of runs that are not this machine's
        if references is not None and len(self.own) < len(plan.runs):
            for table in (plan.table,) if tables is None else tables:
                if (path := path_of(references, plan.profile, table)).is_file():
                    file = read(path)
                    for key in file.by_key.keys() & (plan.runs.keys() - self.own.keys()):
                        self.holders.setdefault(key, file)
        self.found: dict[str, Record] = {}
        for key in plan.runs:
            record = self.own.get(key) or (self.holders[key].record(key) if key in self.holders else None)
            if record is not None:
                self.found[key] = record

    def __getitem__(self, key: str) -> Record:
        return self.found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    def predictions(self, keys: Iterable[str]) -> dict[str, Predictions]:
        """Which test images runs got right, by key, where that was kept; a file that was altered is left out."""
        found: dict[str, Predictions] = {}
        for key in dict.fromkeys(keys):
            kept: Predictions | None = None
            if key not in self.own:
                kept = self.holders[key].predictions(key) if key in self.holders else None
            elif arrays := kept_predictions(self.store, self.own[key]):
                row, label = arrays["row"], arrays["label"]
                kept = {"row": row, "label": label, "correct": arrays["prediction"] == label}
            if kept is not None:
                found[key] = kept
        return found

    def curves(self, keys: Iterable[str]) -> dict[str, Curves]:
        """The curves of runs, by key, where they were kept; a file that was altered is left out."""
        found: dict[str, Curves] = {}
        for key in dict.fromkeys(keys):
            if key not in self.own:
                kept = self.holders[key].curves(key) if key in self.holders else None
            else:
                kept = kept_curves(self.store, self.own[key])
            if kept is not None:
                found[key] = kept
        return found


def kept_predictions(store: Store, record: Record) -> dict[str, np.ndarray] | None:
    """row, label and prediction of every test image, as a run of this machine left them.

    None where it left none, and, with a warning, where the file is not what the run wrote.
    """
    path = verified(store, record, "predictions.npz")
    if path is None:
        return None
    try:
        return predictions_in(path)
    except (*Complaint, OSError, EOFError, zipfile.BadZipFile, zlib.error):  # of a run that listed no files
        log.warning("%s does not hold predictions, and is not used; delete it", path)
        return None


def predictions_in(path: Path) -> dict[str, np.ndarray]:
    """row, label and prediction, [N] whole numbers each. Raises ValueError, among others, where they are not there."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("row", "label", "prediction")}
    if any(array.ndim != 1 or array.dtype.kind not in "iu" for array in arrays.values()):
        raise ValueError("predictions are rows of whole numbers")
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError("predictions differ in number")
    return arrays


def kept_curves(store: Store, record: Record) -> Curves | None:
    """One dict per epoch, as a run of this machine left them; None as for `kept_predictions`."""
    path = verified(store, record, "curves.jsonl")
    if path is None:
        return None
    try:
        return curves_in(path)
    except (*Complaint, OSError):  # of a run that did not end well, and listed no files
        log.warning("%s does not hold curves, and is not used; delete it", path)
        return None


def curves_in(path: Path) -> Curves:
    """One dict per epoch, which names it. Raises OSError, and ValueError where the file holds something else."""
    lines = [json_of(line) for line in content(path, LIMIT).decode().split("\n") if line.strip()]
    if any(not isinstance(line, dict) or type(line.get("epoch")) is not int for line in lines):
        raise ValueError("curves have a line for each epoch")
    return lines


def verified(store: Store, record: Record, name: str) -> Path | None:
    """A file of a run, or None if there is none, or, with a warning, if it was changed."""
    try:
        return store.kept(record, name)
    except Altered as error:
        log.warning("%s", error)
        return None


def compact(plan: "Plan", records: Records) -> Committed:
    """What a plan's records hold, as it is committed."""
    environments: dict[bytes, int] = {}
    images: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
    curves, predictions = records.curves(records), records.predictions(records)
    runs = []
    for key, record in records.items():
        correct = None
        if key in predictions:
            row, label, right = (predictions[key][name] for name in ("row", "label", "correct"))
            number = images.setdefault((tuple(row.tolist()), tuple(label.tolist())), len(images))
            correct = Correct(images=number, bits=base64.b64encode(np.packbits(right).tobytes()).decode())
        runs.append(
            Run(
                key=key,
                label=record.label,
                status=record.status,
                reason=record.reason,
                spec=record.spec,
                metrics=record.metrics,
                cost={name: rounded(value, COST_DIGITS) for name, value in record.cost.items()},
                environment=environments.setdefault(canonical(record.environment), len(environments)),
                date=datetime.fromtimestamp(record.finished, UTC).date().isoformat(),
                former_key=record.former_key,
                curves=thinned(curves.get(key, ())),
                correct=correct,
            )
        )
    return Committed(
        table=plan.table,
        profile=plan.profile,
        kind=plan.kind,
        data=data_of(plan),
        weights=weights_of(plan),
        environments=tuple(json.loads(each) for each in environments),
        images=tuple(Images(row=row, label=label) for row, label in images),
        cells=cells_of(plan),
        runs=tuple(runs),
    )


def data_of(plan: "Plan") -> tuple[Data, ...]:
    """The data sets that a plan's runs see, where they are known."""
    specs = [run.spec.data for run in plan.runs.values() if run.spec.data.fingerprint is not None]
    found = {canonical([spec.name, spec.options]): spec for spec in specs}
    return tuple(
        Data(name=spec.name, options=spec.options, fingerprint=str(spec.fingerprint))
        for _, spec in sorted(found.items())
    )


def weights_of(plan: "Plan") -> dict[str, str]:
    """Ids of the weight files that a plan's runs read, by name, where they are known."""
    files = dict.fromkeys(file for run in plan.runs.values() for file in run.files)
    return {weights_name(Path(path)): name for name, path in files if not name.startswith(UNKNOWN)}


def weights_name(path: Path) -> str:
    """A weight file as every machine names it: relative to the folder of weights."""
    root = places.weights()
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def cells_of(plan: "Plan") -> tuple[Cell, ...]:
    """The cells that are measured."""
    return tuple(
        Cell(
            row=cell.row,
            method=cell.method,
            variant=cell.variant,
            metric=cell.metric,
            runs=dict(zip(plan.seeds, cell.runs, strict=False)),
        )
        for cell in plan.cells
        if cell.runs
    )


def thinned(lines: Sequence[Mapping[str, Any]]) -> tuple[Series, ...]:
    """Curves in few numbers: of every series at most `POINTS` of its points, evenly spaced, with the first and last.

    Series keep their own points, as some are measured at few epochs. What is no finite number is left out, and so are
    the seconds of an epoch, which costs sum up.
    """
    points: dict[str, list[tuple[int, int | float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in ("epoch", "seconds") and type(value) in (int, float) and abs(value) < float("inf"):
                points.setdefault(name, []).append((line["epoch"], rounded(value, CURVE_DIGITS)))
    groups: dict[tuple[int, ...], dict[str, tuple[int | float, ...]]] = {}
    for name, whole in points.items():
        last = len(whole) - 1
        kept = whole if last < POINTS else [whole[round(i * last / (POINTS - 1))] for i in range(POINTS)]
        epochs, values = zip(*kept, strict=True)
        groups.setdefault(epochs, {})[name] = values
    return tuple(Series(epoch=epochs, series=series) for epochs, series in groups.items())


def rounded(value: int | float, digits: int) -> int | float:
    """A number with so many significant digits; whole numbers stay."""
    return value if type(value) is int else float(f"{value:.{digits}g}")
