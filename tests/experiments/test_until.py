"""Buying decisions: looks are taken as planned, stop row by row, and are judged the same again from the records."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from experiments import until
from experiments.execution.schedule import ExecutionReport
from experiments.records import committed
from experiments.records.store import Store
from experiments.reproduce import compared
from experiments.results import caption, regression, sequential
from experiments.results.sequential import Design
from experiments.until import buy, check_asked, forecast, narrowed
from hkd.errors import UserError

EFFECTS = {"swin_l-mobilenet_v1": 6.0, "swin_l-resnet50": 0.0, "swin_l-convnext_t": 1.0}  # points, of both methods
NOISE = {"swin_l-mobilenet_v1": 1.0, "swin_l-resnet50": 0.2, "swin_l-convnext_t": 2.5}


@pytest.fixture
def whole(synthetic):
    return replace(synthetic.plan(pairs=3, seeds=18), margins={"top1": 1.0})


@pytest.fixture
def design():
    return Design(looks=(5, 8, 12, 18), margins={"top1": 1.0})


@pytest.fixture
def records(synthetic, whole):
    """Gains that are large, none, and small beside their noise."""
    rng, found = np.random.default_rng(4), synthetic.records(whole)
    for cell in whole.cells:
        for key in cell.runs:
            noise = rng.normal(0, NOISE[cell.row])
            gain = 0.0 if cell.method == "supervised" else EFFECTS[cell.row] + noise
            found[key] = replace(found[key], metrics={"top1": 80 + gain})
    return found


@pytest.fixture
def world(tmp_path, monkeypatch, records):
    """A store whose runs are done as soon as they are asked for; and what was asked for at each look."""
    store, asked = Store(tmp_path / "runs"), []

    def reproduce(plan, store, *, looks, on_event, failing=False, **how):
        asked.append({cell.row: len(cell.runs) for cell in plan.cells})
        for key in plan.runs:
            if store.load(key) is None:
                store.write(records[key])
        report = ExecutionReport(records={}, executed={}, failed={"x": "it broke"} if failing else {}, seconds=0.0)
        return replace(compared(plan, store, looks), report=report)

    monkeypatch.setattr(until, "reproduce", reproduce)
    monkeypatch.setenv("HKD_RUNS", str(tmp_path / "runs"))
    return store, asked


def bought(whole, design, world, **how):
    store, _ = world
    return buy(whole, design, store, watch=lambda plan, note: nullcontext(lambda event: None), **how)


def test_rows_stop_when_their_cells_are_settled_and_the_others_go_on(whole, design, world):
    found = bought(whole, design, world)
    _, asked = world
    assert asked[0] == dict.fromkeys(EFFECTS, 5)
    assert asked[1]["swin_l-mobilenet_v1"] == 5  # decided at the first look
    assert found.looks.taken == len(asked)
    stops = {which[0][0]: each.stopped for which, each in found.done.comparison.judgement.cells.items()}
    assert stops["swin_l-mobilenet_v1"] == "decided"
    assert stops["swin_l-resnet50"] == "no effect"
    cell = next(r for r in found.done.comparison.cells if r.cell.id == ("swin_l-resnet50", "scalekd", ""))
    assert cell.verdict == "no effect seen"
    assert cell.status == "done"


def test_the_interval_of_a_stopped_cell_is_the_repeated_one_of_its_last_look(whole, design, world):
    found = bought(whole, design, world).done.comparison
    each = found.judgement.cells[("swin_l-mobilenet_v1", "scalekd", ""), "top1"]
    level = sequential.nominal_levels(design.looks)[0]
    assert each.level == level
    half = sequential.boundary(level, each.spread.df) * (each.spread.variance / 5) ** 0.5
    assert each.estimate.half_width == pytest.approx(half)


def test_looks_are_judged_the_same_again_even_when_the_store_has_more_seeds(whole, design, world, records):
    found = bought(whole, design, world)
    store, _ = world
    again = until.judged(whole, found.looks, store)
    for record in records.values():
        store.write(record)
    for judgement in (again, until.judged(whole, found.looks, store)):
        assert judgement.cells == found.done.comparison.judgement.cells
        assert judgement.seeds == found.done.comparison.judgement.seeds


def test_a_second_call_goes_on_where_the_first_stopped(whole, design, world):
    first = bought(whole, design.model_copy(update={"looks": (5, 8, 12, 18)}), world, minutes=1e-9)
    assert (first.looks.taken, first.stopped) == (1, "1e-09 minutes do not reach to 8 seeds")
    second = bought(whole, first.looks, world)
    _, asked = world
    assert asked[1]["swin_l-convnext_t"] == 8
    assert second.stopped is None
    third = bought(whole, second.looks, world)
    assert third.done.report is None  # nothing was open: nothing is run
    assert third.done.comparison.judgement.cells == second.done.comparison.judgement.cells


def test_a_look_with_failed_runs_does_not_count(whole, design, world):
    found = bought(whole, design, world, failing=True)
    assert found.looks.taken == 0
    assert found.stopped == "1 runs failed, and a look needs all of them"


def test_the_caption_says_what_was_bought(whole, design, world):
    done = bought(whole, design, world).done
    text = "\n".join(caption.caption(done.plan, done.records, done.comparison))
    assert "Seeds were bought:" in text
    assert "5 % error over all looks" in text
    assert "Holm" not in text  # p values after looks are not those of a fixed design
    assert "5 to " in text


def test_a_narrowed_plan_has_what_its_seeds_need(whole):
    plan = narrowed(whole, {"swin_l-mobilenet_v1": 5, "swin_l-resnet50": 8, "swin_l-convnext_t": 5})
    assert len(plan.seeds) == 8
    assert len(plan.runs) == 3 * (5 + 8 + 5) + 1
    assert plan.teachers == whole.teachers


def test_a_forecast_goes_by_the_variances_at_hand(whole, design, world, records):
    store, _ = world
    assert forecast(whole, design, store).unknown == 6
    for cell in whole.cells:
        for key in cell.runs[:5]:
            store.write(records[key])
    found = forecast(whole, design, store)
    assert found.cells == 6
    assert found.seeds["swin_l-mobilenet_v1"] == 5
    assert found.settled + found.never == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("decided", 1, None, None), "cannot decide anything of one seed"),
        (("decided", 5, None, None), "give --max-seeds instead of --seeds"),
        (("decided", None, 0.0, None), "--margin is 0 points"),
        (("decided", None, -1.0, None), "--margin is -1 points"),
        (("decided", None, float("nan"), None), "--margin is nan points"),
        ((None, None, 1.0, None), "give --until decided with it"),
        ((None, None, None, 12), "--max-seeds says when"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(given, message):
    with pytest.raises(UserError, match=message):
        check_asked(*given)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path))
    return tmp_path


def test_a_table_without_gains_is_refused(results):
    with pytest.raises(UserError, match=r"'hybrid_fig1' has no gains at profile 'laptop'"):
        until.asked("hybrid_fig1", "laptop", None, None)


def test_the_design_stays_what_it_was_at_the_first_look(results):
    kept = Design(looks=(5, 8), taken=1, margins={"top1": 1.0})
    sequential.store(kept, sequential.path_of(results / "laptop", "scalekd_table9"))
    plan, found = until.asked("scalekd_table9", "laptop", None, None)
    assert found == kept
    assert len(plan.seeds) == 8
    for margin, most in ((2.0, None), (None, 12)):
        with pytest.raises(UserError, match="cannot change after the first look"):
            until.asked("scalekd_table9", "laptop", margin, most)
    assert until.asked("scalekd_table9", "laptop", 1.0, 8)[1] == kept


def test_an_own_margin_holds_for_every_metric(results):
    plan, found = until.asked("scalekd_table9", "laptop", 2.5, 5)
    assert (plan.margins, found.looks) == ({"top1": 2.5}, (5,))


def test_looks_are_committed_with_the_seeds_that_were_bought(whole, design, world, tmp_path, monkeypatch):
    """And a clone without results shows the table as its looks left it."""
    store, _ = world
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("experiments.places.references", lambda: tmp_path / "reference")
    monkeypatch.setattr(until, "planned", lambda table, profile, seeds, **rest: cut(whole, seeds))
    found = bought(whole, design, world)
    here = sequential.path_of(tmp_path / "results" / whole.profile, whole.table)
    sequential.store(found.looks, here)
    plan = until.commit(cut(whole, 5), store)
    path = committed.path_of(tmp_path / "reference", whole.profile, whole.table)
    regression.save_reference(plan, committed.Records(plan, store, None), path)
    assert {cell.row: len(cell.runs) for cell in plan.cells} == found.done.comparison.judgement.seeds
    here.unlink()
    seen = until.shown(plan, Store(tmp_path / "empty"))
    assert [r.verdict for r in seen.comparison.cells] == [r.verdict for r in found.done.comparison.cells]
    assert {r.source.partition(" ")[0] for r in seen.comparison.cells} == {"committed"}


def cut(plan, seeds):
    """A plan of fewer seeds."""
    return replace(narrowed(plan, {cell.row: seeds for cell in plan.cells}))
