"""Committed records: what a file keeps, in equal bytes; what is refused; and that own records come before them."""

import json
import lzma
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from experiments import places
from experiments.planning.asked import planned as planned_here
from experiments.planning.plan import plan as planned
from experiments.records import committed
from experiments.records.committed import Records, compact, path_of, processor, read, thinned, unpacked, write
from experiments.records.store import Record, Store, canonical
from experiments.results.compare import compare
from experiments.results.regression import measured_values
from experiments.until import narrowed
from hkd.errors import UserError
from hkd.spec import RunSpec

ROOT = Path(__file__).parents[2]
DAY = datetime(2026, 11, 22, 13, 45, tzinfo=UTC).timestamp()
LABELS = np.arange(300) % 7


@pytest.fixture(scope="module")
def plan(synthetic):
    return synthetic.plan(pairs=2, seeds=2)


@pytest.fixture
def store(synthetic, plan, tmp_path):
    """Records of a whole table, with the curves and predictions of every run but the teacher's."""
    store, rng = Store(tmp_path / "runs"), np.random.default_rng(0)
    for key, record in synthetic.records(plan).items():
        cost = {"wall_s": 12.3456789, "steps": 1800}
        store.folder(key).mkdir(parents=True)
        if not key.startswith("teacher"):
            prediction = np.where(rng.random(300) < 0.8, LABELS, 9)
            np.savez(store.folder(key) / "predictions.npz", row=np.arange(300), label=LABELS, prediction=prediction)
            lines = [{"epoch": epoch, "loss": 1 / epoch, "seconds": 2.5} for epoch in range(1, 101)]
            (store.folder(key) / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        synthetic.seal(store, replace(record, started=DAY, finished=DAY + 60, cost=cost))
    return store


@pytest.fixture
def file(plan, store):
    return compact(plan, Records(plan, store, None))


@pytest.fixture
def references(plan, file, tmp_path):
    write(file, path_of(tmp_path / "reference", plan.profile, plan.table))
    return tmp_path / "reference"


# -- what a file keeps ---------------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was_written_and_equal_content_is_equal_bytes(plan, store, file, tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    for path in paths:
        write(compact(plan, Records(plan, store, None)), path)
    assert read(paths[0]) == file
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_runs_that_another_table_has_committed_are_taken_as_they_stand_there(plan, store, references, file, tmp_path):
    other = replace(plan, table="other_table")
    ours, theirs = next(key for key in plan.runs if key.startswith("teacher")), list(plan.runs)[-1]
    little = Store(tmp_path / "little")
    shutil.copytree(store.folder(ours), little.folder(ours))
    assert list(Records(other, little, references)) == [ours]  # nothing is committed for the table itself
    found = Records(other, little, references, ["none_such", plan.table])
    assert list(found) == list(plan.runs)
    assert (found[ours].committed, found[theirs].committed) == (None, "committed 2026-11-22, A processor")
    again = compact(other, found)
    assert {key: as_it_stands(again, key) for key in again.by_key} == {
        key: as_it_stands(file, key) for key in file.by_key
    }
    assert np.array_equal(again.predictions(theirs)["correct"], file.predictions(theirs)["correct"])


def as_it_stands(file, key):
    """A run with what it refers to in its file."""
    held = file.by_key[key]
    return held.model_copy(update={"environment": 0, "correct": None}), file.environments[held.environment]


def test_of_a_record_all_is_kept_but_artifacts_the_time_of_day_and_digits_of_costs(plan, store, references):
    found = Records(plan, Store(store.root / "none"), references)
    midnight = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
    assert list(found) == list(plan.runs)
    for key, record in found.items():
        assert record == replace(
            store.load(key),
            cost={"wall_s": 12.35, "steps": 1800},
            artifacts={},
            started=midnight,
            finished=midnight,
            committed="committed 2026-11-22, A processor",
        )


def test_values_keep_every_bit(plan, store, references):
    own, kept = (Records(plan, each, references) for each in (store, Store(store.root / "none")))
    assert all(own[key].metrics["top1"].hex() == kept[key].metrics["top1"].hex() for key in plan.runs)
    assert measured_values(plan, own) == measured_values(plan, kept)


def test_it_is_known_which_images_a_run_got_right(plan, store, references):
    keys = [*plan.runs]
    own, kept = (Records(plan, each, references).predictions(keys) for each in (store, Store(store.root / "none")))
    assert own.keys() == kept.keys() == {key for key in keys if not key.startswith("teacher")}
    for key in own:
        assert all(np.array_equal(own[key][name], kept[key][name]) for name in ("row", "label", "correct"))
    assert 0.7 < np.mean(kept[plan.cells[0].runs[0]]["correct"]) < 0.9


def test_a_table_from_committed_records_is_the_table_but_for_its_source(plan, store, references):
    frames = []
    for each in (store, Store(store.root / "none")):
        records = Records(plan, each, references)
        frames.append(compare(plan, records, records.predictions(plan.runs)).frame)
    assert frames[0].drop(columns="source").equals(frames[1].drop(columns="source"))
    assert set(frames[1]["source"]) == {"committed 2026-11-22, A processor"}


def test_images_and_environments_stand_once_in_a_file(file, plan):
    assert (len(file.environments), len(file.images)) == (1, 1)
    assert len(file.runs[1].correct.bits) == 52  # 300 bits, 38 bytes, in base64


def test_the_file_knows_the_data_of_the_plan(file):
    assert file.fingerprint("digits", {}) == "feed"
    assert file.fingerprint("digits", {"n_train": 3}) is None


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, ""),
        ({"cpu": "Intel(R) Xeon(R) Processor", "device": "cpu", "gpu": ["A GPU"]}, "Intel Xeon Processor"),
        ({"cpu": "Intel(R) Xeon(R) Processor", "device": "cuda", "gpu": ["A GPU", "A GPU"]}, "A GPU"),
    ],
)
def test_a_source_names_what_computed(environment, text):
    assert processor(environment) == text


# -- curves --------------------------------------------------------------------------------------------------------


def lines(count):
    """A loss in every epoch, a gradient's norm in the first, the middle one and the last."""
    found = [{"epoch": epoch, "loss": 100 / 3 + epoch, "hits": 7, "seconds": 2.0} for epoch in range(1, count + 1)]
    for i in (0, count // 2, count - 1):
        found[i]["grad_norm/kd"] = 1 / 7
    return found


def series(found):
    """Epochs and values by name."""
    return {name: (group.epoch, values) for group in found for name, values in group.series.items()}


@pytest.mark.parametrize("count", [61, 100, 1000])
def test_long_curves_keep_sixty_points_evenly_spaced_with_both_ends(count):
    found = series(thinned(lines(count)))
    epochs, values = found["loss"]
    assert (len(epochs), epochs[0], epochs[-1]) == (60, 1, count)
    steps = np.diff(epochs)
    assert 1 <= steps.min() <= steps.max() <= steps.min() + 1
    assert values[0] == 34.333
    assert set(found["hits"][1]) == {7}


def test_short_curves_keep_all_points_and_rare_series_all_of_theirs():
    assert series(thinned(lines(60)))["loss"][0] == tuple(range(1, 61))
    assert series(thinned(lines(1000)))["grad_norm/kd"] == ((1, 501, 1000), (0.14286,) * 3)


def test_what_is_no_finite_number_and_the_seconds_are_left_out():
    odd = [{"epoch": 1, "loss": float("nan"), "lr": 0.5, "note": "x", "flag": True, "none": None, "seconds": 1.0}]
    assert series(thinned(odd)) == {"lr": ((1,), (0.5,))}
    assert thinned([]) == ()


def test_curves_come_back_as_lines_by_epoch(plan, store, references, synthetic):
    key = plan.cells[0].runs[0]
    (store.folder(key) / "curves.jsonl").write_text("\n".join(map(json.dumps, lines(3))) + "\n")
    synthetic.seal(store, store.load(key))
    records = Records(plan, store, None)
    assert records.curves([key]) == {key: lines(3)}
    write(compact(plan, records), path_of(references, plan.profile, plan.table))
    found = Records(plan, Store(store.root / "none"), references).curves([key])[key]
    assert found[0] == {"epoch": 1, "loss": 34.333, "hits": 7, "grad_norm/kd": 0.14286}
    assert [line["epoch"] for line in found] == [1, 2, 3]
    assert Records(plan, store, references).curves(["teacher/swin_l"]) == {}


# -- what is refused -----------------------------------------------------------------------------------------------


def packed(content):
    return lzma.compress(content, lzma.FORMAT_XZ)


def document(file, **changes):
    """A file's content, with other parts."""
    return packed(canonical(file.model_dump(exclude_defaults=True) | {"format": 1} | changes))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda file, good: b"", "it is cut short"),
        (lambda file, good: b"{}", "cannot be decompressed"),
        (lambda file, good: good[:-20], "cannot be decompressed"),
        (lambda file, good: good + good, "something follows its end"),
        (lambda file, good: good[:60] + bytes([good[60] ^ 1]) + good[61:], "cannot be decompressed"),
        (lambda file, good: packed(b"[" * 100_000), "it holds something else (ValueError)"),
        (lambda file, good: packed(b"[3]"), "it holds something else"),
        (lambda file, good: packed(b'{"cells": 3}'), "it holds something else (KeyError)"),
        (lambda file, good: packed(b'{"format": NaN}'), "it holds something else"),
        (lambda file, good: document(file, format=2), "it has format 2, and this version reads 1"),
        (lambda file, good: document(file, more=1), "more: Extra inputs are not permitted"),
        (lambda file, good: document(file, environments=[]), "has no environment"),
        (lambda file, good: document(file, images=[]), "has no images"),
        (lambda file, good: document(file, images=[{"row": [1], "label": [1]}]), "has not one bit for each image"),
        (lambda file, good: document(file, images=[{"row": [1], "label": []}]), "images and labels differ"),
    ],
)
def test_what_is_not_such_a_file_is_one_sentence(change, why, file, plan, references):
    path = path_of(references, plan.profile, plan.table)
    path.write_bytes(change(file, path.read_bytes()))
    with pytest.raises(UserError) as refused:
        Records(plan, Store(references / "none"), references)
    sentence = str(refused.value)
    assert sentence.startswith(f"{path} is no file of committed records: ")
    assert why in sentence
    assert sentence.endswith("; restore it from git.")
    assert "\n" not in sentence


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"no reference .*none; save one .* `hkd reference update TABLE`"):
        read(tmp_path / "none")


def test_too_much_is_refused_before_it_is_all_there(tmp_path, monkeypatch):
    path = tmp_path / "zeros"
    path.write_bytes(packed(bytes(50 * 2**20)))  # 7.5 kB
    with pytest.raises(lzma.LZMAError, match="more than 4 MiB"):
        unpacked(path, 4 * 2**20)
    monkeypatch.setattr(committed, "CHUNK", 2**12)
    taken = []
    monkeypatch.setattr(committed.lzma, "LZMADecompressor", lambda *args, **kw: Counting(taken, *args, **kw))
    with pytest.raises(lzma.LZMAError):
        unpacked(path, 2**20)
    assert 2**20 < sum(taken) <= 2**20 + 2**12


class Counting:
    """A decompressor that tells how much it gave."""

    def __init__(self, taken, *args, **kwargs):
        self.taken, self.inner = taken, REAL(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def decompress(self, data, max_length):
        found = self.inner.decompress(data, max_length)
        self.taken.append(len(found))
        return found


REAL = lzma.LZMADecompressor


# -- own before committed ------------------------------------------------------------------------------------------


def test_own_records_curves_and_predictions_come_before_committed_ones(plan, store, references, tmp_path):
    here, key, other = Store(tmp_path / "here"), plan.cells[0].runs[0], plan.cells[0].runs[1]
    own = replace(store.load(key), metrics={"top1": 12.5})
    here.write(own)
    records = Records(plan, here, references)
    assert records[key] == own
    assert records.own == {key: own}
    assert (records[other].committed, records[key].committed) == ("committed 2026-11-22, A processor", None)
    # Of a run that was done here, curves and predictions of another machine would be of other digits.
    assert list(records.curves([key, other])) == list(records.predictions([key, other])) == [other]


@pytest.mark.parametrize("name", ["predictions.npz", "curves.jsonl"])
def test_a_file_that_was_altered_counts_as_absent_and_is_named(plan, store, caplog, name):
    key, other = plan.cells[0].runs
    path = store.folder(key) / name
    if name == "predictions.npz":
        np.savez(path, row=np.arange(300), label=LABELS, prediction=LABELS)
    else:
        path.write_text(path.read_text().replace("1.0", "2.0"))
    records = Records(plan, store, None)
    found = records.predictions([key, other]) if name == "predictions.npz" else records.curves([key, other])
    assert list(found) == [other]
    (sentence,) = (record.message for record in caplog.records)
    assert sentence.startswith(f"{path} is not what its run wrote")
    assert f"delete {path.parent} to have the run done again" in sentence


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("predictions.npz", b"no archive"),
        ("predictions.npz", {"row": [0, 1], "label": [0, 1]}),
        ("predictions.npz", {"row": [0, 1], "label": [0, 1], "prediction": [0]}),
        ("predictions.npz", {"row": [0, 1], "label": [0, 1], "prediction": [0.5, 1.0]}),
        ("predictions.npz", {"row": [[0, 1]], "label": [[0, 1]], "prediction": [[0, 1]]}),
        ("curves.jsonl", b'{"epoch": 1}\n{"epoch'),
        ("curves.jsonl", b'{"epoch": 1}\n[1]\n'),
        ("curves.jsonl", b'{"loss": 1.0}\n'),
        ("curves.jsonl", b'{"epoch": 1, "loss": NaN}\n'),
        ("curves.jsonl", b"[" * 100_000),
        ("curves.jsonl", b"\xff"),
        ("curves.jsonl", None),
    ],
)
def test_what_a_run_left_that_listed_no_files_counts_as_absent_where_it_is_something_else(
    plan, store, tmp_path, caplog, name, content
):
    key, here = plan.cells[0].runs[0], Store(tmp_path / "here")
    here.write(replace(store.load(key), status="failed", artifacts={}))
    path = here.folder(key) / name
    if isinstance(content, dict):
        np.savez(path, **{field: np.array(values) for field, values in content.items()})
    elif content is None:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content)
    records = Records(plan, here, None)
    assert (records.predictions([key]), records.curves([key])) == ({}, {})
    assert [record.message for record in caplog.records] == (
        [] if content is None else [f"{path} does not hold {path.stem}, and is not used; delete it"]
    )


def test_altered_predictions_change_no_interval(plan, store):
    """The interval over images is that of a store in which the file was deleted, not one of the altered file."""
    key = plan.cells[0].runs[0]
    path = store.folder(key) / "predictions.npz"
    np.savez(path, row=np.arange(300), label=LABELS, prediction=np.full(300, 9))
    keys = [key for cell in plan.cells for key in cell.runs]

    def shown():
        records = Records(plan, store, None)
        return [each.pooled for each in compare(plan, records, records.predictions(keys)).pooled]

    altered = shown()
    path.unlink()
    assert altered == shown()


def test_an_interrupted_run_is_not_taken_for_a_record(plan, store, references, tmp_path):
    here, key = Store(tmp_path / "here"), plan.cells[0].runs[0]
    here.folder(key).mkdir(parents=True)
    (here.folder(key) / "curves.jsonl").write_text('{"epoch": 1, "loss": 9.0}\n')
    assert len(Records(plan, here, references).curves([key])[key]) == 60


def test_a_file_is_not_looked_at_where_all_is_measured_here(plan, store, references):
    path_of(references, plan.profile, plan.table).write_bytes(b"")
    assert not Records(plan, store, references).holders


def test_without_a_file_there_are_own_records_alone(plan, store, tmp_path):
    assert dict(Records(plan, Store(tmp_path / "no"), tmp_path)) == {}
    assert len(Records(plan, store, tmp_path)) == len(plan.runs)


# -- the repository's own ------------------------------------------------------------------------------------------

FILES = sorted(places.references().glob(f"*/*{committed.SUFFIX}"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name.partition('.')[0]}")
def test_committed_files_are_those_of_todays_plans(path, monkeypatch, tmp_path):
    """Planned without the data sets, whose fingerprints the file knows: every key is that of a run in the plan."""
    monkeypatch.setenv("HKD_DATA", str(tmp_path))
    file = read(path)
    assert (file.profile, file.table) == (path.parent.name, path.name.partition(".")[0])
    seeds = {cell.row: len(cell.runs) for cell in file.cells}  # rows differ where seeds were bought
    plan = narrowed(planned(file.table, file.profile, max(seeds.values())), seeds)
    assert committed.cells_of(plan) == file.cells
    assert list(file.by_key) == [key for key in plan.runs if key in file.by_key]
    assert {key for cell in file.cells for key in cell.runs.values()} <= file.by_key.keys()
    decode = TypeAdapter(RunSpec).validate_python  # fields that came to specs since have their defaults
    assert all(canonical(asdict(decode(run.spec))) == canonical(asdict(plan.runs[run.key].spec)) for run in file.runs)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("profile", sorted({path.parent.name for path in FILES}))
def test_a_teacher_that_is_committed_for_one_table_is_for_all_that_ask_whether_it_could_teach(profile):
    """So that no table leaves that question out which another answers: `hkd reference update TABLE --also OTHERS`."""
    files = {path.name.partition(".")[0]: read(path) for path in FILES if path.parent.name == profile}
    teachers = {run.key for file in files.values() for run in file.runs if run.label.startswith(("teacher ", "probe "))}
    lacking = {
        name: [plan.runs[key].label for key in (plan.runs.keys() & teachers) - file.by_key.keys()]
        for name, file in files.items()
        for plan in [planned(name, profile)]
    }
    assert not {name: labels for name, labels in lacking.items() if labels}


def test_committed_files_are_small():
    assert sum(path.stat().st_size for path in FILES) < 8_000_000


def test_a_machine_of_another_kind_that_ran_nothing_shows_what_is_committed(tmp_path, monkeypatch):
    """Code is proved on CPUs: on a machine with a GPU the same runs have other keys."""
    monkeypatch.setattr("experiments.planning.plan.device", lambda accelerator: "cuda")
    store = Store(tmp_path)
    own = planned_here("scalekd_table1", "laptop")
    shown = planned_here("scalekd_table1", "laptop", shown_from=store)
    assert (own.kind, shown.kind) == ("cuda", "cpu")
    assert len(Records(own, store, places.references())) == 0
    assert {key for cell in shown.cells for key in cell.runs} <= set(Records(shown, store, places.references()))
    key, run = next(iter(own.runs.items()))
    store.write(Record(key=key, label=run.label, status="done", spec={}))
    assert planned_here("scalekd_table1", "laptop", shown_from=store).kind == "cuda"


def fresh(command, tmp_path):
    """What the command prints in a fresh interpreter with no runs and no data, and which heavy packages it took."""
    script = (
        "import sys; from experiments import cli\n"
        f"try: cli.main({command!r})\n"
        "except SystemExit as left:\n"
        "    names = [name for name in ('torch', 'timm', 'distributed', 'matplotlib') if name in sys.modules]\n"
        "    print(left.code, names)"
    )
    homes = {f"HKD_{name}": str(tmp_path / name.lower()) for name in ("RUNS", "RESULTS", "DATA", "WEIGHTS")}
    environment = {**os.environ, **homes}
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    *output, last = ran.stdout.splitlines()
    assert ran.stderr == ""
    return output, last


@pytest.mark.parametrize(("table", "profile"), [("scalekd_table3", "laptop"), ("hcd_cub200", "cub_subset")])
def test_a_fresh_clone_shows_a_table_without_runs_data_or_torch(table, profile, tmp_path):
    output, last = fresh(["show", table, "--profile", profile], tmp_path)
    assert last == "0 []"
    text = "\n".join(output)
    assert "not run" not in text
    assert output[2] == planned(table, profile).finding  # what came out stands first
    assert output[2]
    assert "was measured here: they are from results/reference/ (committed 2026-11-" in text
    assert not any(tmp_path.iterdir())


def test_a_fresh_clone_checks_claims_without_torch(tmp_path):
    output, last = fresh(["claims", "--profile", "laptop"], tmp_path)
    assert last == "0 []"
    assert any("committed |" in line and "| holds |" in line for line in output)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "table.json.xz")
    with pytest.raises(UserError, match="it is no file; restore it from git"):
        committed.read(tmp_path / "table.json.xz")
