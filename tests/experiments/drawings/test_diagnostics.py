"""Diagnostics of training: shares of terms in the gradient, and agreement with teachers beyond training alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.drawings.diagnostics import MEASURES, PANELS, agreement, kind_of, moments, of_terms, term_sizes
from experiments.planning.plan import plan
from experiments.records.store import Record, Store


@pytest.fixture(scope="module")
def table():
    """One row of a table: a teacher and three students, two seeds."""
    whole = plan("scalekd_table3", "smoke", 2)
    row = next(cell.row for cell in whole.cells if cell.runs)
    return replace(whole, cells=tuple(cell for cell in whole.cells if cell.row == row))


@pytest.fixture
def store(tmp_path, table, synthetic):
    """Records whose teacher always says 1; students agree at 0, 2, 3 of 4 images by method, one more at seed 1."""
    store = Store(tmp_path)
    agreeing = {"supervised": 0, "kd": 2, "scalekd": 3}
    for cell in table.cells:
        for seed, key in enumerate(cell.runs):
            run = table.runs[key]
            store.folder(key).mkdir(parents=True, exist_ok=True)
            count = agreeing[cell.method] + (seed if cell.method == "kd" else 0)
            prediction = np.where(np.arange(4) < count, 1, 0)
            arrays = {"row": np.arange(4), "label": np.ones(4, int), "prediction": prediction}
            np.savez(store.folder(key) / "predictions.npz", **arrays)
            lines = [{"epoch": 1, "loss/task": 2.0, "loss/kd": 1.0, "grad_norm/task": 3.0, "grad_norm/kd": 1.0 + seed}]
            if cell.method == "kd":
                (store.folder(key) / "curves.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
            synthetic.seal(store, Record(key=key, label=run.label, status="done", spec={}))
            for need in run.needs:
                store.folder(need).mkdir(parents=True, exist_ok=True)
                arrays = {"row": np.arange(4), "label": np.ones(4, int), "prediction": np.ones(4, int)}
                np.savez(store.folder(need) / "predictions.npz", **arrays)
                synthetic.seal(store, Record(key=need, label="teacher", status="done", spec={}))
    return store


def test_shares_and_ratios_of_gradients_by_hand():
    line = {"loss/task": 2.0, "loss/kd": 1.0, "grad_norm/task": 3.0, "grad_norm/kd": 1.0, "lr": 0.1}
    assert of_terms(line) == {"task": (2.0, 3.0, 0.75, 3.0), "kd": (1.0, 1.0, 0.25, 1 / 3)}
    assert of_terms({"loss/task": 2.0, "grad_norm/task": 3.0}) == {}
    assert of_terms({"grad_norm/a": 0.0, "grad_norm/b": 0.0}) == {}


@pytest.mark.parametrize(
    ("term", "kind"),
    [("task", "labels"), ("box_reg", "labels"), ("tckd", "logits"), ("feat_s3_orig", "features"), ("late", "relations"),
     ("orthogonal", "regularisers"), ("unheard_of", "other")],
)  # fmt: skip
def test_a_term_has_the_colour_of_what_it_compares(term, kind):
    assert kind_of(term) == kind


def test_the_middle_of_five_measurements_is_the_third():
    assert [(when, line["epoch"]) for when, line in moments([{"epoch": e} for e in range(1, 6)])] == [
        ("first", 1), ("middle", 3), ("last", 5),
    ]  # fmt: skip
    assert moments([]) == []


def test_terms_are_means_over_runs(table, store):
    found = {(term.term, term.when): term for term in term_sizes([table], store)}
    assert found["task", "last"].share == pytest.approx((3 / 4 + 3 / 5) / 2)
    assert (found["kd", "first"].method, found["kd", "first"].runs, found["kd", "first"].norm) == ("kd", 2, 1.5)


def test_terms_of_a_detector_are_not_those_of_the_method_that_trains_it_alone(table, store):
    runs = {key: replace(run, spec=replace(run.spec, task="detect")) for key, run in table.runs.items()}
    assert {term.method for term in term_sizes([replace(table, runs=runs)], store)} == {"detect"}


def test_agreement_is_over_the_student_that_is_trained_alone(table, store):
    found = agreement([table], store)
    assert found.keys() == {"kd", "scalekd"}
    assert found["kd"].mean == pytest.approx(100 * (2 / 4 + 3 / 4) / 2)
    assert (found["scalekd"].mean, found["scalekd"].n) == (75.0, 2)


def test_other_images_are_not_compared(table, store, synthetic):
    for cell in table.cells:
        for key in cell.runs:
            path = store.folder(key) / "predictions.npz"
            np.savez(path, row=np.arange(4) + 1, label=np.ones(4, int), prediction=np.ones(4, int))
            synthetic.seal(store, store.load(key))
    assert agreement([table], store) == {}


def test_what_runs_did_not_write_does_not_count(table, store):
    before = term_sizes([table], store)
    cells = [cell for cell in table.cells if cell.method == "kd"]
    path = store.folder(cells[0].runs[0]) / "curves.jsonl"
    path.write_text(path.read_text().replace("3.0", "9.0"))
    found = term_sizes([table], store)
    assert [term.runs for term in before] == [2 * term.runs for term in found]
    for cell in cells:
        for key in cell.runs:
            changed = {"row": np.arange(4), "label": np.ones(4, int), "prediction": np.ones(4, int)}
            np.savez(store.folder(key) / "predictions.npz", **changed)
    assert agreement([table], store).keys() == {"scalekd"}


def test_every_measure_of_the_teachers_has_a_panel():
    assert set(MEASURES.values()) == set(PANELS)
