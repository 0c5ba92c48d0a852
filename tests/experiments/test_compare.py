"""Statuses, verdicts and gains as the house defines them, on a made-up Table 3."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from experiments.planning.plan import Published
from experiments.records.committed import Records
from experiments.records.store import Store
from experiments.results.caption import caption, teachers
from experiments.results.compare import COLUMNS, compare, sources
from experiments.results.stats import Estimate
from experiments.results.verdicts import BY_DIRECTION, CANNOT_TELL, UNVERIFIED, verdict
from hkd.errors import UserError

ROW = "swin_l-mobilenet_v1"


def changed(plan, method, **fields):
    """The plan with fields of the first row's cell of a method replaced."""
    cells = tuple(replace(cell, **fields) if (cell.row, cell.method) == (ROW, method) else cell for cell in plan.cells)
    return replace(plan, cells=cells)


def line(comparison, method="scalekd"):
    frame = comparison.frame
    return frame[(frame["row"] == ROW) & (frame["method"] == method)].iloc[0]


def test_the_frame_has_one_line_per_row_method_and_metric_and_exactly_the_columns(synthetic):
    plan = synthetic.plan()
    frame = compare(plan, synthetic.records(plan)).frame
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) == 33
    assert list(frame["method"][:3]) == ["supervised", "kd", "scalekd"]
    assert set(frame["status"]) == {"done"}
    assert set(frame["n_seeds"]) == {5}


def test_a_line_holds_the_mean_and_the_paired_gain(synthetic):
    plan = synthetic.plan(pairs=1, seeds=3)
    values = {"supervised": [80.0, 81.0, 82.0], "kd": [80.0, 81.0, 83.0], "scalekd": [82.0, 84.0, 84.0]}
    found = line(compare(plan, synthetic.with_values(plan, values)))
    assert found["measured"] == pytest.approx(250 / 3)
    assert found["gain"] == pytest.approx(7 / 3)
    half = 4.302652730 * math.sqrt(1 / 3) / math.sqrt(3)
    assert (found["gain_ci_low"], found["gain_ci_high"]) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert found["published_gain"] == pytest.approx(3.05)


@pytest.mark.parametrize(
    ("scalekd", "expected"),
    [
        ([82.0, 84.0, 84.0], "holds"),
        ([80.5, 80.5, 82.0], "too noisy"),
        ([78.0, 78.0, 79.5], "contradicted"),
    ],
)
def test_other_profiles_are_judged_by_direction(synthetic, scalekd, expected):
    plan = synthetic.plan(pairs=1, seeds=3)
    values = {"supervised": [80.0, 81.0, 82.0], "kd": [80.0, 81.0, 83.0], "scalekd": scalekd}
    assert line(compare(plan, synthetic.with_values(plan, values)))["verdict"] == expected


def test_a_published_loss_is_confirmed_by_a_measured_loss(synthetic):
    plan = changed(synthetic.plan(pairs=1, seeds=3), "scalekd", published=Published(value=70.0, source="x"))
    values = {"supervised": [80.0, 81.0, 82.0], "kd": [80.0, 81.0, 83.0], "scalekd": [78.0, 78.0, 79.5]}
    assert line(compare(plan, synthetic.with_values(plan, values)))["verdict"] == "holds"


def test_one_seed_is_too_noisy_for_a_direction(synthetic):
    plan = synthetic.plan(pairs=1, seeds=1)
    values = {"supervised": [80.0], "kd": [81.0], "scalekd": [90.0]}
    assert line(compare(plan, synthetic.with_values(plan, values)))["verdict"] == "too noisy"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([75.6, 75.61, 75.62], "reproduced"),  # 0.46 points off, within 0.5
        ([75.7, 75.71, 75.72], "not reproduced"),  # 0.56 points off, a narrow interval
        ([75.0, 76.0, 78.0], "reproduced"),  # 1.18 points off, but the interval is wider
    ],
)
def test_the_paper_profile_is_judged_by_value_within_the_larger_of_half_a_point_and_the_interval(
    synthetic, values, expected
):
    plan = synthetic.plan(pairs=1, seeds=3, by_value=True)
    records = synthetic.with_values(
        plan, {"supervised": [72.1, 72.0, 72.2], "kd": [73.0, 73.1, 73.3], "scalekd": values}
    )
    assert line(compare(plan, records))["verdict"] == expected


def test_baselines_and_added_rows_get_no_verdict(synthetic):
    for by_value in (True, False):
        plan = synthetic.plan(by_value=by_value)
        frame = compare(plan, synthetic.records(plan)).frame
        assert set(frame[frame["method"] != "scalekd"]["verdict"]) == {""}
        assert "" not in set(frame[frame["method"] == "scalekd"]["verdict"])


def test_published_gains_under_a_fifth_of_a_point_get_no_verdict(synthetic):
    plan = changed(synthetic.plan(pairs=1), "scalekd", published=Published(value=72.29, source="x"))
    assert line(compare(plan, synthetic.records(plan)))["verdict"] == ""
    plan = changed(plan, "scalekd", published=Published(value=72.30, source="x"))
    assert line(compare(plan, synthetic.records(plan)))["verdict"] in BY_DIRECTION


def test_low_confidence_is_unverified_and_medium_counts(synthetic):
    for confidence, expected in (("low", {"unverified"}), ("medium", set(BY_DIRECTION))):
        published = Published(value=75.15, source="x", confidence=confidence)
        plan = changed(synthetic.plan(pairs=1), "scalekd", published=published)
        assert line(compare(plan, synthetic.records(plan)))["verdict"] in expected


def test_a_doubtful_published_baseline_makes_the_direction_unverified(synthetic):
    low = Published(value=72.1, source="x", confidence="low")
    plan = changed(synthetic.plan(pairs=1), "supervised", published=low)
    comparison = compare(plan, synthetic.records(plan))
    assert line(comparison)["verdict"] == "unverified"
    assert line(comparison, "supervised")["verdict"] == ""


def test_nothing_measured_gives_status_not_run_no_verdict_and_exit_status_one(synthetic):
    plan = synthetic.plan()
    comparison = compare(plan, {})
    assert set(comparison.frame["status"]) == {"not run"}
    assert set(comparison.frame["verdict"]) == {""}
    assert comparison.frame["measured"].isna().all()
    assert comparison.exit_status == 1


def test_fewer_seeds_are_partial_and_the_gain_uses_the_seeds_that_are_there(synthetic):
    plan = synthetic.plan(pairs=1)
    records = synthetic.records(plan)
    for seed in (1, 3):
        del records[f"{ROW}/scalekd/{seed}"]
    comparison = compare(plan, records)
    found = line(comparison)
    assert (found["status"], found["n_seeds"]) == ("partial", 3)
    expected = [
        records[f"{ROW}/scalekd/{s}"].metrics["top1"] - records[f"{ROW}/supervised/{s}"].metrics["top1"]
        for s in (0, 2, 4)
    ]
    assert found["gain"] == pytest.approx(np.mean(expected))
    assert comparison.exit_status == 1
    assert comparison.cells[2].reasons == ("seeds 1, 3: not run",)


@pytest.mark.parametrize(("state", "exit_status"), [("diverged", 0), ("refused", 0), ("failed", 1)])
def test_a_cell_whose_runs_all_ended_badly_says_how_and_only_failures_ask_for_another_attempt(
    synthetic, state, exit_status
):
    plan = synthetic.plan()
    records = synthetic.records(plan)
    for seed in range(5):
        key = f"{ROW}/scalekd/{seed}"
        records[key] = replace(records[key], status=state, metrics={}, reason="the reason")
    comparison = compare(plan, records)
    word = {"refused": "not applicable"}.get(state, state)
    assert line(comparison)["status"] == word
    assert line(comparison)["n_seeds"] == 0
    assert comparison.exit_status == exit_status
    assert comparison.cells[2].reasons == (f"{word} (the reason)",)


def test_one_diverged_seed_is_partial_and_no_reason_to_try_again(synthetic):
    plan = synthetic.plan()
    records = synthetic.records(plan)
    key = f"{ROW}/scalekd/2"
    records[key] = replace(records[key], status="diverged", metrics={}, reason="not finite at step 7")
    comparison = compare(plan, records)
    assert line(comparison)["status"] == "partial"
    assert comparison.exit_status == 0


def test_a_refusal_that_came_from_what_runs_need_is_said_once_for_all_seeds(synthetic):
    plan = synthetic.plan()
    records = synthetic.records(plan)
    for seed in plan.seeds:
        key = f"{ROW}/scalekd/{seed}"
        reason = f"needs 'scalekd-resnet18 seed {seed}', which was refused: no tail that takes tokens."
        records[key] = replace(records[key], status="refused", metrics={}, reason=reason)
    comparison = compare(plan, records)
    found = next(each for each in comparison.cells if each.cell.id == (ROW, "scalekd", ""))
    assert found.status == "not applicable"
    assert found.reasons == ("not applicable (no tail that takes tokens)",)


def test_refused_and_quoted_cells_have_no_runs_and_ask_for_none(synthetic):
    plan = changed(synthetic.plan(), "scalekd", runs=(), refused="no mapping for 'mobilenet_v1'")
    plan = changed(plan, "kd", runs=(), quoted=True)
    comparison = compare(plan, synthetic.records(plan))
    assert line(comparison)["status"] == "not in this profile"
    assert line(comparison, "kd")["status"] == "quoted"
    assert comparison.exit_status == 0


def test_students_of_a_failed_teacher_have_its_state_and_name_it(synthetic):
    plan = synthetic.plan()
    records = {"teacher/swin_l": replace(synthetic.records(plan)["teacher/swin_l"], status="diverged", metrics={})}
    comparison = compare(plan, records)
    assert line(comparison)["status"] == "diverged"
    assert line(comparison, "supervised")["status"] == "not run"
    assert comparison.cells[2].reasons == ("diverged (needs teacher swin_l, which diverged)",)


def test_a_finished_run_without_the_metric_counts_as_failed(synthetic):
    plan = synthetic.plan(pairs=1)
    records = synthetic.records(plan)
    for seed in range(5):
        key = f"{ROW}/scalekd/{seed}"
        records[key] = replace(records[key], metrics={"top5": 99.0})
    comparison = compare(plan, records)
    assert line(comparison)["status"] == "failed"
    assert comparison.exit_status == 1


def test_a_cell_mixing_library_versions_or_devices_is_marked(synthetic):
    plan = synthetic.plan(pairs=2)
    records = synthetic.records(plan)
    key = f"{ROW}/scalekd/2"
    other = {**records[key].environment, "versions": {"torch": "2.14.0", "timm": "1.0.31"}, "device": "cuda"}
    records[key] = replace(records[key], environment=other)
    marks = [result.marks for result in compare(plan, records).cells]
    assert marks[2] == ("mixes torch 2.14.0 and 2.15.0", "mixes device types cpu and cuda")
    assert not any(marks[:2] + marks[3:])


def test_a_table_with_the_same_cell_twice_is_refused(synthetic):
    plan = synthetic.plan(pairs=1)
    with pytest.raises(UserError, match="stand there once"):
        compare(replace(plan, cells=(*plan.cells, plan.cells[0])), synthetic.records(plan))


def test_pooled_gains_cover_each_method_and_scalekd_minus_kd(synthetic):
    plan = synthetic.plan()
    pooled = compare(plan, synthetic.records(plan)).pooled
    assert [(p.method, p.over) for p in pooled] == [("kd", ""), ("scalekd", ""), ("scalekd", "kd")]
    assert pooled[2].pooled.estimate.mean == pytest.approx(
        pooled[1].pooled.estimate.mean - pooled[0].pooled.estimate.mean
    )
    assert pooled[1].published == pytest.approx(3.941, abs=1e-3)  # the paper's text: 3.94
    assert math.isnan(pooled[0].published)
    assert len(pooled[1].pooled.rows) == 11


def test_the_order_of_gains_is_compared_over_pairs(synthetic):
    plan = synthetic.plan()
    ranks = compare(plan, synthetic.records(plan)).ranks
    assert [(r.label, r.correlation.n) for r in ranks] == [("ScaleKD", 11)]


def test_kept_predictions_give_a_second_interval_over_images(synthetic, tmp_path):
    plan, rng = synthetic.plan(pairs=2, seeds=2), np.random.default_rng(0)
    label = rng.integers(0, 10, 400)
    store, records = Store(tmp_path), synthetic.records(plan)
    for cell in plan.cells:
        for key in cell.runs:
            right = rng.random(400) < {"supervised": 0.8, "kd": 0.82, "scalekd": 0.9}[cell.method]
            store.folder(key).mkdir(parents=True)
            arrays = {"row": np.arange(400), "label": label, "prediction": np.where(right, label, -1)}
            np.savez(store.folder(key) / "predictions.npz", **arrays)
            synthetic.seal(store, records[key])
    predictions = Records(plan, store, None).predictions(plan.runs)
    assert len(predictions) == 12
    gain = compare(plan, records, predictions).pooled[1]
    assert gain.pooled.images.n == 400
    assert gain.pooled.images.low < 10 < gain.pooled.images.high
    assert compare(plan, synthetic.records(plan)).pooled[1].pooled.images is None


def test_images_rendered_from_one_source_count_once(synthetic):
    plan, rng = synthetic.plan(pairs=2, seeds=1), np.random.default_rng(0)
    once = {
        key: {"row": np.arange(200), "label": np.zeros(200), "correct": rng.integers(0, 2, 200) == 0}
        for cell in plan.cells
        for key in cell.runs
    }
    four_times = {key: {name: np.tile(array, 4) for name, array in arrays.items()} for key, arrays in once.items()}
    first, second = (
        compare(plan, synthetic.records(plan), kept).pooled[0].pooled.images for kept in (once, four_times)
    )
    assert first.n == 200
    assert first == second


def test_predictions_of_other_images_give_no_interval(synthetic):
    plan = synthetic.plan(pairs=2, seeds=1)
    arrays = {"row": np.arange(200), "label": np.zeros(200), "correct": np.arange(200) % 2 == 0}
    predictions = {key: arrays for cell in plan.cells for key in cell.runs}
    predictions[plan.cells[-1].runs[0]] = {**arrays, "row": np.arange(1, 201)}
    assert compare(plan, synthetic.records(plan), predictions).pooled[-1].pooled.images is None


def test_every_cell_says_where_its_records_are_from(synthetic):
    plan = synthetic.plan(pairs=1, seeds=2)
    records = synthetic.records(plan)
    assert set(compare(plan, records).frame["source"]) == {"measured here"}
    kept = "committed 2026-11-22, A processor"
    for key in [key for key in records if key.endswith(("supervised/0", "supervised/1", "/kd/1"))]:
        records[key] = replace(records[key], committed=kept)
    del records[plan.cells[2].runs[0]], records[plan.cells[2].runs[1]]
    assert list(compare(plan, records).frame["source"]) == [kept, f"measured here; {kept}", ""]
    assert sources(records.values()) == f"measured here; {kept}"


def test_several_metrics_give_a_line_each(synthetic):
    plan = synthetic.plan(pairs=1)
    cells = tuple(replace(cell, metric=metric) for cell in plan.cells for metric in ("top1", "top5"))
    plan = replace(plan, cells=cells, metrics=("top1", "top5"))
    records = {
        key: replace(record, metrics={**record.metrics, "top5": record.metrics["top1"] + 10})
        for key, record in synthetic.records(plan).items()
    }
    frame = compare(plan, records).frame
    assert len(frame) == 6
    assert list(frame["metric"][:2]) == ["top1", "top5"]
    assert frame["gain"][4] == pytest.approx(frame["gain"][5])


@pytest.mark.parametrize(
    ("low", "high", "published", "expected"),
    [
        (0.5, 2.0, 3.0, "holds"),
        (0.1, 0.9, 3.0, "holds"),  # decided comes before no effect
        (-2.0, -0.5, -3.0, "holds"),
        (0.5, 2.0, -3.0, "contradicted"),
        (-0.9, 0.9, 3.0, "no effect seen"),
        (-0.9, 1.0, 3.0, "too noisy"),
        (-0.5, 9.0, 3.0, "too noisy"),
        (math.nan, math.nan, 3.0, "too noisy"),
        (0.5, 2.0, 0.19, ""),
    ],
)
def test_a_direction_is_judged_by_where_the_interval_lies(synthetic, low, high, published, expected):
    cell = synthetic.plan(pairs=1).cells[2]
    gain = Estimate(mean=(low + high) / 2, low=low, high=high, n=3)
    given = {"by_value": False, "measured": gain, "gain": gain, "published_gain": published}
    judge = partial(verdict, cell, **given, low_confidence=False, margin=1.0)
    assert judge(cannot_tell="") == expected
    assert judge(cannot_tell="chance") == (CANNOT_TELL if expected else "")
    assert verdict(cell, **given, low_confidence=True, cannot_tell="", margin=1.0) == UNVERIFIED
    without = verdict(cell, **given, low_confidence=False, cannot_tell="", margin=None)
    assert without == ("too noisy" if expected == "no effect seen" else expected)


def test_what_cannot_tell_is_said_before_what_is_unverified(synthetic):
    cell, gain = synthetic.plan(pairs=1).cells[2], Estimate(mean=1.0, low=0.5, high=1.5, n=3)
    given = {"by_value": False, "measured": gain, "gain": gain, "published_gain": 3.0, "margin": 1.0}
    assert verdict(cell, **given, low_confidence=True, cannot_tell="ceiling") == CANNOT_TELL


def test_the_plain_interval_stands_beside_the_one_that_judges(synthetic):
    plan = synthetic.plan(seeds=3)
    comparison = compare(plan, synthetic.records(plan))
    found = line(comparison)
    assert found["judged_by"] == "moderated t"
    plain = comparison.cells[2].gain
    assert (found["gain_ci_low"], found["gain_ci_high"]) == (plain.low, plain.high)
    judged = comparison.cells[2].judged.estimate
    assert (found["judged_gain"], found["judged_ci_low"], found["judged_ci_high"]) == (
        judged.mean,
        judged.low,
        judged.high,
    )
    halves = [(r.judged.estimate.half_width, r.gain.half_width) for r in comparison.cells if r.gain.n]
    assert np.median([a for a, _ in halves]) < 0.7 * np.median([b for _, b in halves])


def test_rows_of_other_data_are_in_no_pool_rank_or_count(synthetic):
    plan = synthetic.plan()
    cells = tuple(replace(cell, instead="single digits" if cell.row == ROW else "") for cell in plan.cells)
    records = synthetic.records(plan)
    comparison = compare(replace(plan, cells=cells), records)
    assert all(ROW not in gain.pooled.rows for gain in comparison.pooled)
    assert {len(gain.pooled.rows) for gain in comparison.pooled} == {10}
    assert comparison.ranks[0].correlation.n == 10
    assert line(comparison)["instead"] == "single digits"
    text = "\n".join(caption(replace(plan, cells=cells), records, comparison))
    assert "On other data than the table (single digits), and in no mean, rank or count over pairs: Swin-L" in text
    assert "Of 20 gains that this set-up can tell of" in text


def test_records_of_two_settings_in_one_cell_are_refused(synthetic):
    plan = synthetic.plan(pairs=1)
    records = synthetic.records(plan)
    key = f"{ROW}/scalekd/3"
    records[key] = replace(records[key], spec={**records[key].spec, "recipe": {"epochs": 12}})
    compare(plan, records)  # the others do not say what theirs was
    other = f"{ROW}/scalekd/1"
    records[other] = replace(records[other], spec={**records[other].spec, "recipe": {"epochs": 60}})
    with pytest.raises(
        UserError, match=r"swin_l-mobilenet_v1/scalekd of 'scalekd_table3' mixes .*recipe.epochs: 60 and 12"
    ):
        compare(plan, records)


def test_a_cell_whose_teacher_crashed_waits_for_it(synthetic):
    plan = synthetic.plan()
    records = {"teacher/swin_l": replace(synthetic.records(plan)["teacher/swin_l"], status="failed", metrics={})}
    comparison = compare(plan, records)
    assert line(comparison)["status"] == "waiting"
    assert line(comparison, "supervised")["status"] == "not run"
    assert comparison.cells[2].reasons == ("waiting (teacher swin_l failed)",)
    assert comparison.exit_status == 1


def test_a_teacher_is_named_without_the_data_of_its_rows(synthetic):
    plan = synthetic.plan(pairs=2)
    cells = tuple(replace(cell, row_label=(f"Swin-L, data {cell.row}", cell.row_label[1])) for cell in plan.cells)
    records = synthetic.records(plan)
    told = teachers(replace(plan, cells=cells), records)[0]
    assert "Swin-L 97.50" in told
    assert "data" not in told
    one_row = tuple(replace(cell, row_label=("Swin-L, distilled", cell.row_label[1])) for cell in cells)
    assert "Swin-L, distilled 97.50" in teachers(replace(plan, cells=one_row), records)[0]
