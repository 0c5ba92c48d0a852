"""The files of results/<profile>/<table>/: layout, values, bytes, and that a reader never sees half a table."""

import csv
import json
import math
from dataclasses import replace

import pandas as pd
import pytest

from experiments.planning.plan import Published
from experiments.planning.plan import plan as planned
from experiments.results import caption, render
from experiments.results.compare import COLUMNS, compare
from hkd.errors import UserError

FILES = {
    "table.csv",
    "cost.csv",
    "gains.csv",
    "curves.tsv",
    "table.md",
    "metrics.json",
    "runs.json",
    "comparison.png",
}
ROW = "swin_l-mobilenet_v1"


def curves_of(plan):
    return {
        key: [{"epoch": e, "loss": 2.0 / (e + 1), "train_top1": 50.0 + e, "lr": 0.1} for e in range(3)]
        for cell in plan.cells
        for key in cell.runs
    }


def write(plan, records, folder):
    render.write_table(plan, records, compare(plan, records), folder, curves=curves_of(plan))
    return folder


@pytest.fixture(scope="module")
def written(synthetic, tmp_path_factory):
    """The full table, once for all tests that read it."""
    plan = synthetic.plan()
    return write(plan, synthetic.records(plan), tmp_path_factory.mktemp("results") / "scalekd_table3")


def test_a_table_has_all_its_files_and_nothing_is_left_beside_it(written):
    assert {path.name for path in written.iterdir()} == FILES
    assert [path.name for path in written.parent.iterdir()] == ["scalekd_table3"]


def test_equal_inputs_give_equal_bytes_and_replace_the_old_table(synthetic, tmp_path):
    plan = synthetic.plan(pairs=2, seeds=2)
    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "of_old.txt").write_text("old")
    first = {path.name: path.read_bytes() for path in write(plan, synthetic.records(plan), folder).iterdir()}
    second = {path.name: path.read_bytes() for path in write(plan, synthetic.records(plan), folder).iterdir()}
    assert first == second
    assert set(first) == FILES


def test_a_failure_while_writing_leaves_the_old_table(synthetic, tmp_path, monkeypatch):
    plan = synthetic.plan(pairs=1, seeds=2)
    folder = write(plan, synthetic.records(plan), tmp_path / "table")
    before = (folder / "table.md").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "draw", full)
    with pytest.raises(UserError, match=r"Cannot write .*No space left on device"):
        write(plan, synthetic.records(plan, draw=1), folder)
    assert (folder / "table.md").read_bytes() == before


def test_table_csv_has_the_tidy_lines_with_empty_cells_for_what_is_missing(written):
    with open(written / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == 33
    baseline, kd, scalekd = lines[:3]
    assert (baseline["gain"], baseline["verdict"], kd["published"]) == ("", "", "")
    assert float(scalekd["published_gain"]) == 3.05
    assert float(scalekd["gain"]) == pytest.approx(float(scalekd["measured"]) - float(baseline["measured"]), abs=2e-4)


def test_cost_csv_relates_step_times_to_supervised(written):
    costs = pd.read_csv(written / "cost.csv", keep_default_na=False)
    assert len(costs) == 33
    assert list(costs["step_ratio"][:3]) == [1.0, 1.25, 2.25]
    assert list(costs["extra_params_m"][:3]) == [0.0, 0.0, 0.5]


def test_table_md_prints_the_papers_layout_with_added_columns_marked(written):
    lines = (written / "table.md").read_text().splitlines()
    header = [name.strip() for name in lines[2].strip("|").split("|")]
    assert header == [
        "Teacher",
        "Student",
        "Baseline: published",
        "Baseline: measured",
        "KD (not in the paper): measured",
        "KD (not in the paper): gain",
        "ScaleKD: published",
        "ScaleKD: measured",
        "ScaleKD: published gain",
        "ScaleKD: gain",
        "ScaleKD: verdict",
    ]
    students = [line.split("|")[2].strip() for line in lines[4:15]]
    assert students[0] == "MobileNet-V1"
    assert students[-1] == "ViT-B/14"
    assert "72.10" in lines[4]


def test_rows_whose_column_is_named_differently_stand_below_one_another_without_nan(synthetic):
    plan = synthetic.plan(pairs=2, seeds=2)
    own = replace(plan, cells=tuple(cell for cell in plan.cells if cell.method == "supervised"))
    first = own.cells[0].row
    cells = tuple(replace(cell, added=cell.row == first) for cell in own.cells)
    records = synthetic.records(plan)
    for shown, wide in ((own, True), (replace(own, cells=cells), False)):
        comparison = compare(shown, records)
        assert render.is_wide(comparison.cells) is wide
        text = render.markdown(shown, records, comparison)
        assert "nan" not in text
        assert ("Baseline (not in the paper)" in text) is not wide


def test_the_caption_says_what_was_run_and_how_to_read_it(written):
    text = (written / "table.md").read_text()
    for part in (
        "Profile laptop; data: digits; top-1 accuracy in percent",
        "5 seeds (0–4); 40 epochs",
        "Digits stand for ImageNet-1K.",
        "A processor, 2 cores; torch 2.15.0; timm 1.0.31",
        "CPU min",
        "Swin-L 97.50, BEiT-L/14 97.50",
        "by direction only",
        "teacher and test set are fixed",
        "ScaleKD minus KD, mean of 11 pairs: +",
        "Kendall's tau",
    ):
        assert part in text, part


def test_many_or_differing_columns_stand_below_one_another(synthetic):
    plan = synthetic.plan(pairs=2, seeds=2)
    plan = replace(plan, cells=plan.cells[:-1])  # the second row lacks a method
    records = synthetic.records(plan)
    text = render.markdown(plan, records, compare(plan, records))
    assert text.splitlines()[2].startswith("| Teacher   | Student      | Method")


def test_what_was_not_measured_says_so_in_its_place_and_why_below(synthetic):
    plan = synthetic.plan(pairs=2, seeds=3)
    records = synthetic.records(plan)
    del records[f"{ROW}/kd/0"]
    for seed in range(3):
        key = f"{ROW}/scalekd/{seed}"
        records[key] = replace(records[key], status="diverged", metrics={}, reason="not finite at step 7")
    text = render.markdown(plan, records, compare(plan, records))
    assert "(2 of 3 seeds)" in text
    assert "diverged" in text.splitlines()[4]
    assert f"- {ROW} scalekd: diverged (not finite at step 7)." in text
    assert f"- {ROW} kd: seed 0: not run." in text


def test_rows_that_the_profile_does_not_have_are_named_in_a_sentence_and_kept_in_the_csv(synthetic):
    plan = synthetic.plan(pairs=3)
    rows = list(dict.fromkeys(cell.row for cell in plan.cells))

    def without(*absent):
        cells = (replace(cell, runs=(), refused="no model") if cell.row in absent else cell for cell in plan.cells)
        made = replace(plan, cells=tuple(cells))
        found = compare(made, synthetic.records(made))
        return found, render.markdown(made, synthetic.records(made), found)

    found, text = without(rows[1], rows[2])
    names = {cell.row: cell.pair for cell in plan.cells}
    assert found.absent_rows() == {row: names[row] for row in rows[1:]}
    assert f"2 rows are not in this profile: {names[rows[1]]}, {names[rows[2]]}; table.csv" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line for line in lines if "MobileNet-V1" in line]
    assert not [line for line in lines if plan_label(plan, rows[1]) in line]
    assert set(found.frame["row"]) == set(rows)
    assert {result.cell.row for result in found.readable("top1")} == {rows[0]}
    assert f"- {rows[1]}; {rows[2]}: not in this profile: no model." in text
    assert all(gain.pooled.rows == (rows[0],) and not gain.pooled.left_out for gain in found.pooled)
    # A profile that has nothing of the table: its published values are what there is to see.
    found, text = without(*rows)
    assert found.absent_rows() == {}
    assert all(plan_label(plan, row) in text for row in rows)
    assert "rows are not" not in text


def plan_label(plan, row):
    """The student of a row as it is printed."""
    return next(cell.row_label[1] for cell in plan.cells if cell.row == row)


def test_doubtful_published_values_are_marked_where_they_stand(synthetic):
    plan = synthetic.plan(pairs=1, seeds=2)
    marks = {"supervised": "medium", "scalekd": "low"}
    cells = tuple(
        replace(cell, published=Published(value=75.0, source="x", confidence=marks[cell.method]))
        if cell.method in marks
        else cell
        for cell in plan.cells
    )
    plan = replace(plan, cells=cells)
    records = synthetic.records(plan)
    text = render.markdown(plan, records, compare(plan, records))
    assert "75.00 (medium confidence)" in text
    assert "75.00 (unverified)" in text


def test_an_empty_table_is_written_all_the_same(synthetic, tmp_path):
    plan = synthetic.plan(pairs=1, seeds=2)
    folder = tmp_path / "table"
    render.write_table(plan, {}, compare(plan, {}), folder)
    assert {path.name for path in folder.iterdir()} == FILES
    assert "Nothing has been run yet." in (folder / "table.md").read_text()
    assert json.loads((folder / "metrics.json").read_text())["statuses"] == {"not_run": 3}


def test_metrics_json_has_few_leaves_without_dots(written):
    found = json.loads((written / "metrics.json").read_text())
    assert set(found["pairs"][ROW]) == {"baseline", "kd", "scalekd", "gain"}
    assert set(found["pooled_gain"]) == {"kd", "scalekd", "scalekd_minus_kd"}
    assert sum(found["verdicts"].values()) == 11
    assert found["statuses"] == {"done": 33}

    def names(value):
        for name, item in value.items() if isinstance(value, dict) else ():
            yield name
            yield from names(item)

    assert not [name for name in names(found) if "." in name or " " in name]


def test_gains_are_drawn_by_metric_or_together_where_rows_are_metrics():
    assert render.compared_metrics(planned("hybrid_table1", "laptop")) == {
        "comparison.png": ("top1",),
        "comparison_ap_box.png": ("ap_box",),
        "comparison_ap_mask.png": ("ap_mask",),
        "comparison_miou.png": ("miou",),
    }
    assert render.compared_metrics(planned("scalekd_table6", "laptop")) == {"comparison.png": ("miou", "top1")}
    assert render.compared_metrics(planned("scalekd_table3", "laptop")) == {"comparison.png": ("top1",)}


def test_metrics_of_several_measures_are_kept_apart(synthetic):
    plan = synthetic.plan(pairs=1, seeds=2)
    cells = tuple(replace(cell, metric=metric) for cell in plan.cells for metric in ("top1", "top5"))
    plan = replace(plan, cells=cells, metrics=("top1", "top5"))
    records = synthetic.records(plan)
    records = {key: replace(r, metrics={"top1": 80.0, "top5": 99.0}) for key, r in records.items()}
    found = render.metrics(plan, compare(plan, records))
    assert found["pairs"][ROW]["top5"]["baseline"] == 99.0
    assert "## top-5 accuracy" in render.markdown(plan, records, compare(plan, records))


def test_runs_json_names_every_run_behind_every_cell(written):
    found = json.loads((written / "runs.json").read_text())
    assert len(found["cells"]) == 33
    behind = {key for cell in found["cells"] for key in cell["runs"]}
    assert len(behind) == 165
    assert behind < set(found["runs"])
    facts = found["runs"][f"{ROW}/scalekd/3"]
    assert (facts["seed"], facts["status"]) == (3, "done")
    assert facts["spec"]["student"]["name"] == "mobilenet_v1"
    assert {"metrics", "cost", "environment"} <= set(facts)


def test_gains_csv_puts_published_beside_measured(written):
    with open(written / "gains.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["row"] for line in lines[:3]] == [
        "Swin-L → MobileNet-V1, KD, measured",
        "Swin-L → MobileNet-V1, ScaleKD, published",
        "Swin-L → MobileNet-V1, ScaleKD, measured",
    ]
    assert float(lines[1]["gain"]) == 3.05


def test_curves_are_means_per_epoch_and_method(synthetic):
    plan = synthetic.plan(pairs=1, seeds=2)
    curves = {
        f"{ROW}/kd/0": [{"epoch": 0, "loss": 2.0, "train_top1": 40.0}, {"epoch": 1, "loss": 1.0}],
        f"{ROW}/kd/1": [{"epoch": 0, "loss": 4.0, "train_top1": 60.0}, {"epoch": 1, "loss": math.nan}],
    }
    found = render.mean_curves(plan, curves)
    assert list(found.columns) == ["epoch", "kd_loss", "kd_train_top1"]
    assert found["kd_loss"].tolist() == [3.0, 1.0]
    assert found["kd_train_top1"][0] == 50.0


def test_a_caption_says_what_was_not_measured_here_and_nothing_that_is_not_known(synthetic):
    plan = synthetic.plan(pairs=1, seeds=2)
    records = synthetic.records(plan)

    def sentences(found):
        return caption.caption(plan, found, compare(plan, found))

    assert not any("not measured here" in each or "results/reference" in each for each in sentences(records))
    kept = {key: replace(record, committed="committed 2026-11-22, A processor") for key, record in records.items()}
    some = records | {key: kept[key] for key in plan.cells[1].runs}
    where = "those are from results/reference/ (committed 2026-11-22, A processor)."
    assert f"2 of the 7 runs were not measured here: {where}" in sentences(some)
    assert any(each.startswith("None of the 7 runs was measured here: they are") for each in sentences(kept))
    assert not any("wall time" in each for each in sentences(some))  # of committed records only the day is known
    assert any("7 runs behind this table, teachers included: 1.4 CPU min." in each for each in sentences(kept))
    older = {**kept, plan.cells[1].runs[0]: replace(kept[plan.cells[1].runs[0]], cost={})}
    counted = next(each for each in sentences(older) if "behind this table" in each)
    assert counted.endswith("teachers included: 1.2 CPU min of 6 of them, the others were not counted.")
    bare = {key: replace(kept[key], cost={}, environment={}) for key in kept if not key.startswith("teacher")}
    assert "6 runs behind this table." in sentences(bare)
    assert any("Swin-L not in the committed records" in each for each in sentences(bare))


def test_wall_time_is_the_length_of_the_union_of_the_runs():
    assert caption.union_seconds([(0, 10), (5, 12), (20, 25), (21, 22)]) == 17
    assert caption.union_seconds([]) == 0


def test_seeds_are_printed_as_spans():
    assert caption.spans((0, 1, 2, 3, 4)) == "0–4"
    assert caption.spans((1002, 1000, 1001, 7)) == "7, 1000–1002"


def test_a_table_compared_by_value_says_so(synthetic):
    plan = synthetic.plan(pairs=1, seeds=2, by_value=True)
    records = synthetic.records(plan)
    sentences = caption.caption(plan, records, compare(plan, records))
    assert any(sentence.startswith("Compared by value") for sentence in sentences)
    assert not any("direction only" in sentence for sentence in sentences)
