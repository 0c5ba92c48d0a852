"""What counts as a regression, what as stale, and how often noise alone raises an alarm."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.records.committed import Records, path_of
from experiments.records.store import Store
from experiments.results import regression
from experiments.results.regression import check, load_reference, measured_values, save_reference
from hkd.errors import UserError

ROW = "swin_l-mobilenet_v1"


def shifted(records, points, where=""):
    """Records with the metric of the matching runs lowered."""
    return {
        key: replace(r, metrics={"top1": r.metrics["top1"] - points}) if where in key else r
        for key, r in records.items()
    }


@pytest.fixture(scope="module")
def plan(synthetic):
    return synthetic.plan()


@pytest.fixture(scope="module")
def records(synthetic, plan):
    return synthetic.records(plan)


@pytest.fixture(scope="module")
def reference(plan, records):
    return measured_values(plan, records)


def test_equal_keys_versions_and_digits_pass(reference):
    report = check(reference, reference)
    assert (report.status, report.exit_code) == ("pass", 0)
    assert len(report.moved) == 0
    assert report.reasons == ("every measured digit equals the reference",)


def test_a_three_point_drop_of_a_method_is_found(plan, reference, synthetic):
    again = shifted(synthetic.records(plan, draw=1), 3.0, "/scalekd/")
    report = check(measured_values(plan, again), reference)
    assert (report.status, report.exit_code) == ("regression", 1)
    assert report.reasons[0].startswith("all rows, scalekd top1 dropped by")
    assert not any("supervised" in reason for reason in report.reasons)


def test_the_same_drop_in_every_run_is_found_though_it_has_no_spread(plan, records, reference):
    assert check(measured_values(plan, shifted(records, 3.0, "/kd/")), reference).status == "regression"


def test_a_drop_of_half_a_point_is_no_regression(plan, records, reference):
    report = check(measured_values(plan, shifted(records, 0.5)), reference)
    assert report.status == "pass"
    assert len(report.moved) > 0


def test_a_gain_of_three_points_is_no_regression_but_is_listed(plan, records, reference):
    report = check(measured_values(plan, shifted(records, -3.0, "/scalekd/")), reference)
    assert report.status == "pass"
    assert report.moved["drop"].iloc[0] == pytest.approx(-3.0)


def test_one_cell_that_collapses_is_found_by_itself(plan, reference, synthetic):
    again = shifted(synthetic.records(plan, draw=1), 30.0, f"{ROW}/kd/")
    report = check(measured_values(plan, again), reference)
    assert report.status == "regression"
    assert any(reason.startswith(f"{ROW} kd top1 dropped by") for reason in report.reasons)


@pytest.mark.slow
@pytest.mark.long
def test_at_most_five_of_a_hundred_reruns_with_other_noise_raise_an_alarm(plan, reference, synthetic):
    alarms = sum(
        check(measured_values(plan, synthetic.records(plan, draw=draw)), reference).status == "regression"
        for draw in range(1, 101)
    )
    assert alarms <= 5


def test_at_most_five_of_a_hundred_alarms_with_few_noisy_seeds_too(synthetic):
    plan = synthetic.plan(pairs=2, seeds=3)
    alarms = 0
    for draw in range(100):
        before, after = (synthetic.records(plan, noise=2.0, draw=2 * draw + i) for i in (0, 1))
        alarms += check(measured_values(plan, after), measured_values(plan, before)).status == "regression"
    assert alarms <= 5


def test_a_reference_with_other_keys_is_stale(plan, reference):
    cell = reference.cells[0]
    runs = {seed: replace(run, key="other") for seed, run in cell.runs.items()}
    report = check(reference, replace(reference, cells=(replace(cell, runs=runs), *reference.cells[1:])))
    assert (report.status, report.exit_code) == ("stale reference", 2)
    assert "other code or settings: the run keys of 1 of 33 cells changed" in report.reasons[0]


def test_a_reference_with_other_data_is_stale(reference):
    report = check(reference, replace(reference, data={"digits": ["beef"]}))
    assert report.exit_code == 2
    assert report.reasons == ("other data: digits beef -> feed",)


def test_a_reference_with_other_cells_is_stale(reference):
    report = check(reference, replace(reference, cells=reference.cells[:-2]))
    assert report.exit_code == 2
    assert "(and 1 more)" in report.reasons[0]


def test_more_seeds_than_the_reference_are_paired_where_both_have_them(synthetic, reference):
    plan = synthetic.plan(seeds=6)
    report = check(measured_values(plan, synthetic.records(plan, draw=3)), reference)
    assert report.status == "pass"


def test_seeds_that_do_not_match_are_compared_by_welch(reference):
    def moved(cell, points):
        runs = {seed + 5: replace(run, key=run.key + "+5", value=run.value - points) for seed, run in cell.runs.items()}
        return replace(cell, runs=runs)

    same = replace(reference, cells=tuple(moved(cell, 0.0) for cell in reference.cells))
    lower = replace(reference, cells=tuple(moved(cell, 3.0) for cell in reference.cells))
    assert check(same, reference).status == "pass"
    assert check(lower, reference).status == "regression"


def test_other_library_versions_with_equal_digits_pass_and_are_named(reference):
    report = check(reference, replace(reference, versions={**reference.versions, "timm": ["1.0.30"]}))
    assert report.status == "pass"
    assert "timm 1.0.30 -> 1.0.31" in report.reasons[-1]


def test_a_cell_that_diverges_now_is_a_regression(plan, records, reference):
    key = f"{ROW}/kd/2"
    now = {**records, key: replace(records[key], status="diverged", metrics={})}
    report = check(measured_values(plan, now), reference)
    assert report.status == "regression"
    assert f"{ROW} kd top1: seeds 2 diverged" in report.reasons[0]


def test_nothing_measured_is_untested(plan, reference):
    report = check(measured_values(plan, {}), reference)
    assert (report.status, report.exit_code) == ("untested", 0)


def test_cells_without_values_yet_are_named_untested(plan, records, reference):
    now = {key: record for key, record in records.items() if f"{ROW}/kd/" not in key}
    report = check(measured_values(plan, now), reference)
    assert report.status == "pass"
    assert f"untested: {ROW} kd top1 has no values yet" in report.reasons


def test_one_seed_decides_nothing(synthetic):
    plan = synthetic.plan(seeds=1)
    records = synthetic.records(plan)
    report = check(measured_values(plan, shifted(records, 9.0, "/kd/")), measured_values(plan, records))
    assert (report.status, report.exit_code) == ("untested", 0)
    assert report.reasons == ("untested: all rows, kd top1 moved by -9.00 points, and one seed gives no interval",)
    assert np.isnan(report.moved["low"]).all()


def test_one_seed_with_equal_digits_passes(synthetic, reference):
    plan = synthetic.plan(seeds=1)
    now = measured_values(plan, synthetic.records(plan))
    same = {cell.id: cell for cell in reference.cells}
    cells = tuple(replace(cell, runs={0: same[cell.id].runs[0]}) for cell in now.cells)
    assert check(replace(now, cells=cells), reference).reasons == ("every measured digit equals the reference",)


def test_a_method_whose_rows_share_no_seed_is_listed_as_untested(plan, records, reference):
    rows = {cell.row: seed % 5 for seed, cell in enumerate(plan.cells[::3])}
    kept = {key for row, seed in rows.items() for key in records if key == f"{row}/kd/{seed}"}
    now = {key: r for key, r in shifted(records, 9.0, "/kd/").items() if "/kd/" not in key or key in kept}
    report = check(measured_values(plan, now), reference)
    assert (report.status, report.exit_code) == ("untested", 0)
    assert "untested: all rows, kd top1 moved, and its rows share no seed" in report.reasons


def stored(plan, records, folder):
    """The records of a plan as they are read from a store."""
    store = Store(folder)
    for record in records.values():
        store.write(record)
    return Records(plan, store, None)


def test_a_reference_comes_back_from_its_file_as_it_was(plan, records, reference, tmp_path):
    path = path_of(tmp_path, "laptop", "scalekd_table3")
    save_reference(plan, stored(plan, records, tmp_path / "runs"), path)
    assert load_reference(path) == reference


def test_the_smoke_profile_and_unfinished_tables_are_never_a_reference(plan, records, tmp_path):
    some = {key: record for key, record in records.items() if not key.endswith("kd/4")}
    found = stored(plan, some, tmp_path / "runs")
    with pytest.raises(UserError, match="never a reference"):
        save_reference(replace(plan, profile="smoke"), found, tmp_path / "r")
    with pytest.raises(UserError, match="lacks 22 runs"):
        save_reference(plan, found, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_reference_of_another_table_is_refused(reference):
    with pytest.raises(UserError, match="of scalekd_table1 at profile laptop"):
        check(reference, replace(reference, table="scalekd_table1"))


def test_the_report_reads_as_a_table(plan, records, reference):
    text = check(measured_values(plan, shifted(records, 3.0, "/kd/")), reference).markdown()
    assert text.startswith("scalekd_table3 (laptop): regression\n- all rows, kd top1 dropped by 3.00 points")
    assert "| what " in text
    assert regression.EXIT["regression"] == 1


def test_other_digits_of_another_cpu_are_named_and_judged_by_their_statistics(plan, records, reference):
    other = {
        key: replace(r, environment={**r.environment, "cpu": "Another processor"})
        for key, r in shifted(records, 0.01).items()
    }
    report = check(measured_values(plan, other), reference)
    assert report.status == "pass"
    assert report.reasons == (
        "same key, other digits: another CPU (A processor -> Another processor); compared by its statistics",
    )
    same = check(measured_values(plan, shifted(records, 0.01)), reference)
    assert not any("another CPU" in reason for reason in same.reasons)
