"""Somebody else's results against ours: equal, lower, higher, unpaired where the runs are others."""

import json
import re
from dataclasses import replace

import pytest

from experiments.records.committed import Records, compact, path_of, write
from experiments.records.store import Store
from experiments.results import others
from experiments.results.render import run_facts, write_json
from hkd.errors import UserError


def shifted(records, points, where):
    return {
        key: replace(r, metrics={"top1": r.metrics["top1"] + points}) if where in key else r
        for key, r in records.items()
    }


@pytest.fixture
def setting(synthetic, tmp_path, monkeypatch):
    """Our store with the synthetic table; (plan, records, store)."""
    plan = synthetic.plan(pairs=2)
    monkeypatch.setattr(others, "planned", lambda *arguments, **rest: plan)
    data = {"data": {"name": "digits", "fingerprint": "feed"}}
    records = {key: replace(r, spec=r.spec | data) for key, r in synthetic.records(plan).items()}
    store = Store(tmp_path / "ours")
    for record in records.values():
        store.write(record)
    return plan, records, store


def compare(setting, theirs, tmp_path, tables=()):
    plan, _, store = setting
    folder = tmp_path / "theirs" / "laptop" / plan.table
    folder.mkdir(parents=True)
    write_json(run_facts(plan, theirs), folder / "runs.json")
    [found] = others.against(tmp_path / "theirs", store, tmp_path / "none", tables)
    return found


def findings(found):
    return dict(zip(found.cells["cell"], found.cells["finding"], strict=True))


def test_equal_results_are_equal_to_every_digit(setting, tmp_path):
    found = compare(setting, setting[1], tmp_path)
    assert set(findings(found).values()) == {"every digit"}
    assert (found.differs, found.alone, found.rekeyed) == (0, 0, 0)
    assert "6 cells compared: 6 every digit" in found.markdown()


@pytest.mark.parametrize(("points", "finding"), [(-4.0, "lower"), (4.0, "higher"), (0.5, "agrees")])
def test_differences_count_in_both_directions(setting, tmp_path, points, finding):
    found = compare(setting, shifted(setting[1], points, "resnet50/kd/"), tmp_path)
    said = findings(found)
    assert said.pop("swin_l-resnet50 kd top1") == finding
    assert set(said.values()) == {"every digit"}
    first = found.cells.iloc[0]
    assert first["difference"] == pytest.approx(points)


def test_other_runs_are_compared_unpaired(setting, tmp_path):
    plan, records, _ = setting
    names = {key: f"other/{key}" for key in plan.runs if "/kd/" in key}
    other = replace(
        plan,
        runs={names.get(key, key): run for key, run in plan.runs.items()},
        cells=tuple(replace(cell, runs=tuple(names.get(key, key) for key in cell.runs)) for cell in plan.cells),
    )
    theirs = {names.get(key, key): replace(record, key=names.get(key, key)) for key, record in records.items()}
    theirs = shifted(theirs, -9.0, "resnet50/kd/")
    found = compare((other, theirs, setting[2]), theirs, tmp_path)
    assert found.rekeyed == 2
    assert findings(found)["swin_l-resnet50 kd top1"] == "lower"
    assert findings(found)["swin_l-mobilenet_v1 kd top1"] == "every digit"


def test_committed_records_are_read_and_ours_too_where_nothing_was_run_here(setting, tmp_path):
    plan, _, store = setting
    path = path_of(tmp_path / "reference", plan.profile, plan.table)
    write(compact(plan, Records(plan, store, None)), path)
    [found] = others.against(path, Store(tmp_path / "empty"), tmp_path / "reference")
    assert len(found.cells) == 6


def test_a_folder_without_results_and_one_that_is_something_else_are_refused(setting, tmp_path):
    with pytest.raises(UserError, match="holds no results of a table"):
        others.against(tmp_path, Store(tmp_path / "empty"), tmp_path)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "runs.json").write_text("[1]")
    with pytest.raises(UserError, match="is not what `hkd run` writes"):
        others.against(tmp_path / "odd", Store(tmp_path / "empty"), tmp_path)
    with pytest.raises(UserError, match="There is no"):
        others.against(tmp_path / "nowhere", Store(tmp_path / "empty"), tmp_path)


@pytest.mark.parametrize(
    ("way", "value", "said"),
    [
        ("profile", None, "table and profile are names"),
        ("profile", ["x"], "table and profile are names"),
        ("profile", "mine.yaml", "'mine.yaml' is a path, and no file is read because results name it"),
        ("table", 3, "table and profile are names"),
        ("runs/0/metrics/top1", 10**400, "is not what `hkd run` writes"),
        ("runs/0/spec", {}, "is not what `hkd run` writes"),
    ],
)
def test_results_of_others_that_are_none_are_one_sentence(way, value, said, setting, tmp_path):
    plan, records, store = setting
    folder = tmp_path / "theirs"
    folder.mkdir()
    (tmp_path / "mine.yaml").write_text("extends: laptop\n")
    write_json(run_facts(plan, records), folder / "runs.json")
    place = document = json.loads((folder / "runs.json").read_text())
    *front, last = way.split("/")
    for part in front:
        place = place[next(iter(place)) if part == "0" else part]
    place[last] = value
    (folder / "runs.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=re.escape(said)):
        others.against(folder, store, tmp_path / "none")
