"""Hybrid Distill's tables as data: every published cell has its place, and what tables share is one run."""

from functools import cache

import pytest

from experiments.planning.plan import plan
from experiments.planning.schema import load_published
from experiments.results.caption import other_rows

TABLES = [f"hybrid_table{number}" for number in range(1, 14)]


@cache
def planned(table, profile="laptop"):
    return plan(table, profile)


def cells(table, row):
    return [cell for cell in planned(table).cells if cell.row == row]


@pytest.mark.parametrize("table", [table for table in TABLES if table != "hybrid_table12"])
def test_every_published_value_of_a_table_is_printed_once(table):
    printed = sorted(cell.published.value for cell in planned(table).cells if cell.published)
    rows = load_published("hybrid").table(table.removeprefix("hybrid_")).rows
    values = [value for row in rows for name, value in row.values.items() if value is not None and name != "mean"]
    assert printed == sorted(values)


def test_table_12_prints_the_values_of_both_its_halves():
    printed = sorted(cell.published.value for cell in planned("hybrid_table12").cells)
    halves = [load_published("hybrid").table(f"table12{half}").rows for half in "ab"]
    assert printed == sorted(value for rows in halves for row in rows for value in row.values.values())


def test_lines_that_several_tables_print_are_one_run():
    same = [
        ("hybrid_table5", "relation"),
        ("hybrid_table7", "late"),
        ("hybrid_table8", "none"),
        ("hybrid_table12", "deit_1"),
        ("hybrid_table13", "deit_all_100"),
        ("hybrid_ablations", "t3_c_m"),
    ]
    first = cells("hybrid_table3", "c_m")[0].runs
    assert len(first) == 6
    for table, row in same:
        assert cells(table, row)[0].runs == first[:3], (table, row)


def test_the_table_of_frozen_backbones_reads_the_backbones_and_detectors_of_table_3():
    first = {cell.row: cell.runs for cell in planned("hybrid_table3").cells if cell.metric == "ap_box"}
    heads = planned("hybrid_frozen").cells
    seeds = len(heads[0].runs)  # fewer than Table 3 has
    first = {row: keys[:seeds] for row, keys in first.items()}
    assert {cell.row: cell.runs for cell in heads if cell.variant == "tuned"} == first
    runs = planned("hybrid_frozen").runs
    backbones = {row: {runs[key].spec.init for key in keys} for row, keys in first.items()}
    decay = {}
    for cell in heads:
        specs = [runs[key].spec for key in cell.runs]
        assert {spec.init for spec in specs} == backbones[cell.row], (cell.row, cell.variant)
        (decay[cell.variant],) = {spec.recipe.ema_decay for spec in specs}
    # 200 and 100 steps: 1 - 4 / steps averages over about a quarter of them
    assert decay == {
        "tuned": None,
        "averaged": 0.98,
        "frozen": None,
        "segmented": None,
        "segmented_averaged": 0.96,
        "linear": None,
    }


def test_with_alpha_zero_the_line_is_that_of_the_teacher_of_features_alone():
    assert cells("hybrid_table12", "clip_0")[0].runs == cells("hybrid_table4", "c")[0].runs


def test_one_pre_training_serves_all_columns_of_a_row():
    row = cells("hybrid_table1", "hybrid_deit")
    inits = {planned("hybrid_table1").runs[cell.runs[0]].spec.init for cell in row}
    assert {cell.metric for cell in row} == {"top1", "ap_box", "ap_mask", "miou"}
    assert len(inits) == 1


def test_teachers_are_fine_tuned_from_their_own_weights():
    run = planned("hybrid_table1").runs[cells("hybrid_table1", "mae")[1].runs[0]]
    (teacher,) = [key for key in run.needs if planned("hybrid_table1").runs[key].spec.method.name == "mae"]
    assert run.spec.task == "detect"
    assert run.spec.init.id == teacher


def test_gains_of_a_row_are_over_the_same_column_of_the_row_it_names():
    assert {cell.baseline for cell in cells("hybrid_table1", "hybrid_clip")} == {
        ("distill_clip", "supervised", variant) for variant in ("in1k", "coco", "ade20k")
    }
    assert "Gains over the row 'CLIP Distill-CLIP': MAE + CLIP Hybrid Distill." in other_rows(planned("hybrid_table1"))


def test_a_profile_sets_options_of_tasks_and_a_column_adds_to_them():
    key = cells("hybrid_table10", "distill_mae")[0].runs[0]
    options = planned("hybrid_table10").runs[key].spec.task_options
    assert options["cascade"] is True
    assert options["width"] == 48


def test_quoted_rows_and_rows_without_a_twin_run_nothing_and_say_so():
    for cell in cells("hybrid_table1", "cae"):
        assert cell.quoted
        assert not cell.runs
    assert "no model for 'clip_l14'" in cells("hybrid_table1", "hybrid_l")[0].refused


@pytest.mark.parametrize("table", [*TABLES, "hybrid_ablations", "hybrid_frozen", "scalekd_table5", "scalekd_table6"])
def test_the_papers_scale_plans_and_refuses_only_what_has_no_data_or_model_there(table):
    refused = {cell.refused for cell in planned(table, "paper").cells if cell.refused}
    assert refused <= {
        "profile 'paper' has no data for 'imagenet21k_unlabelled'",
        "profile 'paper' has no model for 'mae_b16_weak'",
    }


def test_students_of_scalekd_table_3_are_the_backbones_of_tables_5_and_6():
    trained = {key for cell in plan("scalekd_table3", "laptop").cells for key in cell.runs}
    for table in ("scalekd_table5", "scalekd_table6"):
        for cell in planned(table).cells:
            for key in cell.runs:
                spec = planned(table).runs[key].spec
                assert (key if spec.init is None else spec.init.id) in trained
