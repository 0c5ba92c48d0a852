"""What runs leave and what is committed of it: records, files beside them, committed records, numbers of figures."""

import io
import json
import lzma
import os
import random
import re
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from experiments import cli, places
from experiments.commands import tables
from experiments.drawings.base import Finished
from experiments.execution import pools
from experiments.planning import lock
from experiments.planning.plan import Cell, Plan, plan
from experiments.records import committed
from experiments.records.store import Record, Store, digest
from experiments.reproduce import compared
from experiments.results import regression
from experiments.results.claims import check
from experiments.results.claims.documents import Value, load_claims, papers
from hkd.errors import UserError
from hkd.files import sha256
from hkd.methods import METHODS
from hkd.tasks import TASKS
from hkd.training.job import Runtime
from tests.experiments.fake_tasks import fake_plan, fake_run
from tests.robust.damage import changed, damaged, retyped
from tests.robust.fuzz import Input, Kind

REFERENCES = places.references()
SPECIAL = ("folder", "fifo", "dangling link", "link to zeros", "empty", "null", "deep lists", "deep keys", "not UTF-8",
           "a NaN digest", "1e400", "a huge number", "a list", "NUL")  # fmt: skip
ENVIRONMENT = {"versions": {"torch": "2.15.0"}, "cpu": "A processor", "cores": 2, "device": "cpu", "gpu": []}


def put_special(kind: str, path: Path) -> None:
    """Something else in the place of a file."""
    path.unlink(missing_ok=True)
    content = {
        "empty": b"", "null": b"null", "deep lists": b"[" * 100_000, "deep keys": b'{"a":' * 3000 + b"1" + b"}" * 3000,
        "not UTF-8": b"\xff\xfe{}", "a NaN digest": b'{"digest": NaN}', "1e400": b'{"metrics": {"top1": 1e400}}',
        "a huge number": b"9" * 5000, "a list": b"[1, 2]", "NUL": b"\0" * 1000,
    }  # fmt: skip
    if kind in content:
        path.write_bytes(content[kind])
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "link to zeros" else "nowhere")


def other_json(rng: random.Random, value: object) -> tuple[object, str]:
    """A nested value with one or two places changed."""
    value, shown = rng.choice((changed, retyped, retyped))(rng, value)
    if rng.random() < 0.3 and "deepen" not in shown:
        value, more = rng.choice((changed, retyped))(rng, value)
        shown = f"{shown}, {more}"
    return value, shown


def as_json(value: object) -> bytes:
    """JSON as Python writes it, NaN among it; one that is too deep for that as brackets."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 3000 + b"]" * 3000


# -- a store --------------------------------------------------------------------------------------------------------


def stored(folder: Path, status: str) -> tuple[Plan, Store, Record]:
    """A plan of one run, which is done (or ended otherwise), with curves and predictions beside its record."""
    store, run = Store(folder / "runs"), fake_run("one")
    here = store.folder("one")
    here.mkdir(parents=True)
    rows = np.arange(20)
    np.savez(here / "predictions.npz", row=rows, label=rows % 3, prediction=rows % 2)
    lines = [{"epoch": epoch, "loss": 1 / epoch, "seconds": 1.0} for epoch in (1, 2, 3)]
    (here / "curves.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    listed = {path.name: sha256(path) for path in here.iterdir()} if status == "done" else {}
    record = Record(
        key="one", label="fake one", status=status, spec={"task": "fake", "seed": 0}, artifacts=listed,
        metrics={"top1": 50.0} if status == "done" else {}, cost={"wall_s": 1.0}, environment=ENVIRONMENT,
        started=1000.0, finished=1010.0, reason=None if status == "done" else "it broke",
    )  # fmt: skip
    store.write(record)
    cell = Cell(row="one", teacher="", student="student", method="fake", variant="", metric="top1", label="Fake",
                row_label=("", "one"), runs=("one",))  # fmt: skip
    return replace(fake_plan(run), cells=(cell,)), store, record


def printed(made: Plan, store: Store, *commands: tuple[str, ...]) -> str:
    """What commands print of a store. Raises UserError where one refuses."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(METHODS, fake="tests.experiments.fake_tasks:FakeMethod"),
        patch.dict(TASKS, fake="tests.experiments.fake_tasks:task"),
        patch.object(tables, "planned", lambda *arguments, **rest: made),
        patch.dict(os.environ, HKD_RUNS=str(store.root), HKD_RESULTS=str(store.root.parent / "results")),
        redirect_stdout(out),
        patch("sys.stderr", err),
    ):
        for command in commands:
            try:
                cli.main(list(command))
            except SystemExit as left:
                said = err.getvalue()
                assert "Traceback" not in said, said
                if left.code:
                    raise (UserError if left.code == 2 else RuntimeError)(said) from None
    return out.getvalue()


LOOKS = (("show", "fake_table"), ("runs", "list"), ("runs", "show", "one"), ("plan",))


def record_files(rng: random.Random, folder: Path) -> Input:
    status = rng.choice(("done", "done", "diverged", "failed"))
    made, store, _ = stored(folder, status)
    path = store.folder("one") / "record.json"
    whole = path.read_bytes()
    how = rng.choice(("bytes", "values", "values", "sealed", "sealed", "special"))
    if how == "bytes":
        content, shown = damaged(rng, whole)
        path.write_bytes(content)
    elif how == "special":
        shown = rng.choice(SPECIAL)
        put_special(shown, path)
    else:
        document, shown = other_json(rng, json.loads(whole))
        if how == "sealed" and isinstance(document, dict):  # by somebody who knows how
            document.pop("digest", None)
            try:
                document["digest"] = digest(document)
            except (ValueError, RecursionError, TypeError):
                how = "values"
        path.write_bytes(as_json(document))
    table_ids = patch("experiments.planning.schema.table_ids", lambda: ["fake_table"])

    def attempt() -> None:
        with table_ids:
            after = printed(made, store, *LOOKS)
            if how == "sealed":
                return
            changed_path = path.read_bytes() if path.is_file() else None
            path.unlink(missing_ok=True)
            path.write_bytes(whole)
            assert changed_path is not None, "nothing stood for a record"
            assert after == printed(made, store, *LOOKS), "a changed record was taken for a value"

    return Input(f"record.json of a run that was {status}: {how} {shown}", attempt)


def files_beside(rng: random.Random, folder: Path) -> Input:
    status = rng.choice(("done", "diverged", "failed"))
    made, store, _ = stored(folder, status)
    name = rng.choice(("predictions.npz", "curves.jsonl"))
    path = store.folder("one") / name
    whole = path.read_bytes()
    how = rng.choice(("bytes", "bytes", "values", "special", "arrays"))
    if how == "special":
        shown = rng.choice(SPECIAL)
        put_special(shown, path)
    elif how == "bytes":
        content, shown = damaged(rng, whole)
        path.write_bytes(content)
    elif name == "curves.jsonl":
        document, shown = other_json(rng, [json.loads(line) for line in whole.splitlines()])
        path.write_bytes(b"\n".join(map(as_json, document if isinstance(document, list) else [document])))
    else:
        shown = put_arrays(rng, path)
    same = path.is_file() and not path.is_symlink() and path.read_bytes() == whole

    def attempt() -> None:
        printed(made, store, ("show", "fake_table"))
        found = committed.Records(made, store, None)
        if status == "done" and not same:
            gone = found.predictions(["one"]) if name == "predictions.npz" else found.curves(["one"])
            assert gone == {}, "a changed file was taken for what the run wrote"
        if status != "failed":
            committed.compact(made, found)
        Finished(made, store, Runtime(), {}, {}).curves(made.runs["one"])

    return Input(f"{name} of a run that was {status}: {how} {shown}", attempt)


def put_arrays(rng: random.Random, path: Path) -> str:
    """A whole file of arrays, of other names, shapes or kinds."""
    rows = np.arange(20)
    arrays = {"row": rows, "label": rows % 3, "prediction": rows % 2}
    name = rng.choice(list(arrays))
    how = rng.choice(("short", "deep", "text", "float", "object", "missing", "empty", "negative", "scalar"))
    if how == "missing":
        del arrays[name]
    else:
        arrays[name] = {
            "short": rows[:7], "deep": rows.reshape(4, 5), "text": rows.astype(str), "float": rows * np.nan,
            "object": np.array([{}] * 20, dtype=object), "empty": rows[:0], "negative": -rows - 1, "scalar": rows[0],
        }[how]  # fmt: skip
    np.savez(path, **arrays)
    return f"{name} {how}"


# -- what is committed ------------------------------------------------------------------------------------------------


@cache
def committed_files() -> list[tuple[str, str, bytes]]:
    """(profile, table, content) of files that are small enough to try often."""
    paths = sorted(REFERENCES.glob(f"*/*{committed.SUFFIX}"))
    return [(path.parent.name, path.name.removesuffix(committed.SUFFIX), path.read_bytes()) for path in paths
            if path.stat().st_size < 7000]  # fmt: skip


@cache
def plan_of(profile: str, table: str) -> Plan:
    return plan(table, profile, None, kind=committed.kind_of(plan(table, profile, 1)))


def committed_records(rng: random.Random, folder: Path) -> Input:
    profile, table, whole = rng.choice(committed_files())
    made = plan_of(profile, table)
    path = committed.path_of(folder, profile, table)
    path.parent.mkdir()
    how = rng.choice(("bytes", "bytes", "values", "values", "values", "plain", "special"))
    if how == "special":
        shown = rng.choice(SPECIAL)
        put_special(shown, path)
    elif how == "bytes":
        content, shown = damaged(rng, whole)
        path.write_bytes(content)
    elif how == "values":
        document, shown = other_json(rng, json.loads(lzma.decompress(whole)))
        path.write_bytes(lzma.compress(as_json(document)))
    else:
        content, shown = damaged(rng, lzma.decompress(whole))
        path.write_bytes(rng.choice((content, lzma.compress(content), lzma.compress(content, lzma.FORMAT_ALONE))))

    def attempt() -> None:
        store = Store(folder / "runs")
        file = committed.read(path)
        if how == "bytes":
            assert file == committed_before(whole), "a damaged file was taken for records"
        for run in file.runs:
            record = file.record(run.key)
            assert record is not None
            assert all(abs(value) <= 1e12 for value in (*record.metrics.values(), *record.cost.values()))
            file.curves(run.key)
            file.predictions(run.key)
        with patch.object(places, "references", lambda: folder):
            compared(made, store).markdown().encode()
            measured = regression.measured_values(made, committed.Records(made, store, folder))
            regression.check(measured, regression.load_reference(path)).markdown().encode()
            plan(table, profile, 1)
            level = check.Profile(profile, store, folder / "results", folder)
            with patch.object(check, "planned", lambda *arguments, **rest: made):
                level.table(table)

    return Input(f"{profile}/{table}.json.xz: {how} {shown}", attempt)


@cache
def committed_before(content: bytes) -> committed.Committed:
    return committed.Committed.model_validate(json.loads(lzma.decompress(content)))


def figure_numbers(rng: random.Random, folder: Path) -> Input:
    source = rng.choice(sorted(REFERENCES.glob(f"*/*.{check.MEASURES}")))
    profile, figure = source.parent.name, source.name.removesuffix(f".{check.MEASURES}")
    in_results = rng.random() < 0.5
    path = folder / profile / figure / check.MEASURES if in_results else folder / profile / source.name
    path.parent.mkdir(parents=True)
    whole = source.read_bytes()
    how = rng.choice(("bytes", "values", "values", "special"))
    if how == "special":
        shown = rng.choice(SPECIAL)
        put_special(shown, path)
    elif how == "bytes":
        content, shown = damaged(rng, whole)
        path.write_bytes(content)
    else:
        document, shown = other_json(rng, json.loads(whole))
        path.write_bytes(as_json(document))

    def attempt() -> None:
        level = check.Profile(profile, Store(folder / "runs"), folder, folder)
        level.figure(figure)
        for paper in papers():
            for claim in load_claims(paper).claims:
                if isinstance(claim.statistic, Value) and claim.statistic.figure == figure:
                    found = check.check(claim, paper, level)
                    assert found.verdict == "untested" or abs(found.estimate.mean) < 1e12

    return Input(f"{profile}/{figure} {path.name}: {how} {shown}", attempt)


# -- lock and scheduler -----------------------------------------------------------------------------------------------

LOCK_WORDS = ("", " ", "x", "-1", "0", "1", "1e9", "9" * 500, "cpu", "=cpu", "0123456789abcdef=cpu", "=", "a=b=c", "!",
              "! a", "! a b c d", "#", "\0", "é", "\u2028", "method/kd", "٣")  # fmt: skip


def lock_files(rng: random.Random, folder: Path) -> Input:
    path, whole = folder / "numerics.lock", lock.PATH.read_bytes()
    how = rng.choice(("bytes", "words", "words", "lines", "special"))
    lines = whole.decode().splitlines()
    at = rng.randrange(len(lines))
    shown = how
    if how == "bytes":
        content, shown = damaged(rng, whole)
        path.write_bytes(content)
    elif how == "words":
        words = lines[at].split(" ")
        words[rng.randrange(len(words))] = rng.choice(LOCK_WORDS)
        lines[at] = " ".join(words)
        path.write_text("\n".join(lines), encoding="utf-8")
        shown = lines[at][:100]
    elif how == "lines":
        lines.insert(at, " ".join(rng.choices(LOCK_WORDS, k=rng.randint(1, 4))))
        path.write_text("\n".join(lines), encoding="utf-8")
        shown = lines[at][:100]
    else:
        shown = rng.choice(SPECIAL)
        put_special(shown, path)

    def attempt() -> None:
        found = lock.read_lock(path)
        assert path.is_file(), f"no entries in the place of {shown}"
        for unit, entry in found.entries.items():
            assert unit.isprintable()
            assert 1 <= entry.version <= 10_000, f"version {entry.version}"
            for proof, kinds in entry.proved.items():
                assert re.fullmatch("[0-9a-f]{16}", proof), f"digest {proof!r}"
                assert kinds
                assert all(kinds), "a proof on nothing"

    return Input(f"numerics.lock: {how} {shown}", attempt)


ADDRESSES = ("", "x", "tcp://", "tcp://127.0.0.1:1", "tcp://127.0.0.1:99999", "tcp://[::1]:1", "tls://localhost:1",
             "x" * 5000, "inproc://1", "ucx://a:1", "tcp://\ud800:1", "tcp://a\0b:1", "tcp://\n:1", "http://é:1", "tcp://:1",
             "tcp://127.0.0.1:0", "tcp://127.0.0.1:-1", "/dev/zero", "~nouser")  # fmt: skip


def scheduler_files(rng: random.Random, folder: Path) -> Input:
    path = folder / "scheduler.json"
    whole: dict[str, Any] = {"id": "Scheduler-1", "address": rng.choice(ADDRESSES), "services": {"dashboard": 1}}
    how = rng.choice(("bytes", "values", "values", "address", "special"))
    shown = repr(whole["address"])[:50]
    if how == "address":
        path.write_bytes(as_json(whole))
    elif how == "bytes":
        content, shown = damaged(rng, as_json(whole))
        path.write_bytes(content)
    elif how == "values":
        document, shown = other_json(rng, whole)
        path.write_bytes(as_json(document))
    else:
        shown = rng.choice(SPECIAL)
        put_special(shown, path)

    def attempt() -> None:
        with patch.object(pools, "ANSWER_S", 0.2):
            pools.connected(path).close()

    return Input(f"scheduler.json: {how} {shown}", attempt)


def holder_files(rng: random.Random, folder: Path) -> Input:
    """Who holds a table, as another process wrote it."""
    from experiments.reproduce import described

    path = folder / "laptop.table.json"
    how = rng.choice(("bytes", "values", "special"))
    shown = how
    if how == "special":
        shown = rng.choice(SPECIAL)
        put_special(shown, path)
    elif how == "values":
        document, shown = other_json(rng, {"pid": 1, "host": "laptop"})
        path.write_bytes(as_json(document))
    else:
        content, shown = damaged(rng, b'{"pid": 1, "host": "laptop"}')
        path.write_bytes(content)

    def attempt() -> None:
        said = described(path)
        assert said.isprintable(), said[:100]
        assert len(said) < 1000

    return Input(f"holder of a table: {shown}", attempt)


KINDS: dict[str, Kind] = {
    "records": record_files,
    "beside_records": files_beside,
    "committed": committed_records,
    "figure_numbers": figure_numbers,
    "lock": lock_files,
    "scheduler": scheduler_files,
    "holders": holder_files,
}
