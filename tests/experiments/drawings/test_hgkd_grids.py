"""Grids of H-GKD: options behind a probe become its place, numbers are written by seed, lines are drawn as asked."""

import json
from types import SimpleNamespace

import pytest
from matplotlib.axes import Axes

from experiments.drawings import hgkd_grids
from experiments.drawings.base import Finished
from experiments.drawings.hgkd_grids import Point
from experiments.planning.plan import plan
from experiments.results import stats

DATA = "stand-in for ImageNet-1K"  # never the name of data that was not used


@pytest.fixture(scope="module")
def finished():
    """The table as planned, every probe measured: 90 % on all seeds, 2, 3 and 4 more where half or less is hidden."""
    planned, cells, metrics = plan("hgkd_grids", "laptop", 3), {}, {}
    for cell in planned.cells:
        runs = tuple(planned.runs[key] for key in cell.runs)
        cells[cell.id] = runs
        for seed, run in enumerate(runs):
            metrics[run.key] = 90.0 + seed + ((2.0 + seed) if cell.variant == "ratio_40" else 0.0)
    store = SimpleNamespace(load=lambda key: SimpleNamespace(metrics={"top1": metrics[key]}))
    rows = Finished.rows.fget(SimpleNamespace(plan=planned))
    return SimpleNamespace(plan=planned, cells=cells, store=store, rows=rows)


def test_options_of_the_pre_training_say_where_a_probe_stands(finished):
    points = hgkd_grids.points_of(finished)
    assert [(p.data, p.ratio, p.queue, p.tau) for p in points[:4]] == [
        (DATA, 0.6, 1000, 0.1),
        (DATA, 0.4, 1000, 0.1),
        (DATA, 0.9, 1000, 0.1),
        (DATA, 0.6, 1000, 0.03),
    ]
    assert {(p.queue, p.tau) for p in points if p.ratio == 0.6 and p.data == DATA} == {
        (queue, tau) for queue in (100, 1000) for tau in (0.03, 0.1, 0.3)
    }
    assert len(points) == 11
    assert points[1].top1 == {0: 92.0, 1: 94.0, 2: 96.0}


def test_the_grid_is_of_at_most_forty_pre_trainings(finished):
    made = [run for run in finished.plan.runs.values() if run.spec.method.name == "hgkd"]
    assert len(made) == 33


def test_pictures_and_numbers_are_written_and_gains_are_paired(finished, tmp_path, monkeypatch):
    drawn = []
    kept = Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda axes, x, y, **rest: (drawn.append((x, y, rest)), kept(axes, x, y, **rest))
    )
    hgkd_grids.draw(finished, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"grids.png", "grids.svg", "grids.csv", "measures.json"}
    values = json.loads((tmp_path / "measures.json").read_text())["values"]
    assert values["top1/imagenet1k/0.4/1000/0.1"]["seeds"] == {"0": 92.0, "1": 94.0, "2": 96.0}
    by_label = {rest["label"]: (x, y, rest["yerr"]) for x, y, rest in drawn}
    assert set(by_label) == {DATA, "stand-in for CIFAR-100", "queue 1,000", "queue 100"}
    _, gains, spans = by_label[DATA]
    assert gains == pytest.approx([3.0, 0.0])
    assert spans[0][0] == pytest.approx(stats.mean([2.0, 3.0, 4.0]).half_width)
    assert by_label["queue 100"][1] == pytest.approx([91.0, 91.0, 91.0])


def test_one_data_set_alone_is_drawn(tmp_path):
    points = [Point("a", "A", ratio, 10, 0.1, {0: 50.0, 1: 51.0, 2: 50.5}) for ratio in (0.6, 0.4)]
    hgkd_grids.grids_figure(points, tmp_path / "grids", title="T\nhere")
    assert (tmp_path / "grids.png").stat().st_size > 0
