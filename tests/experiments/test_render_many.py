"""Tables of many methods on several pairs: costs per method, ranks, the map of gains. Records are made up."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.planning.plan import plan
from experiments.records.store import Record
from experiments.results import caption, render
from experiments.results.compare import compare

STEP = {"supervised": 4.0, "kd": 4.4, "hcd": 8.0}


def records_of(chosen, refusing=True):
    """A record for every run; HCD is the best and KD the second everywhere."""
    rng = np.random.default_rng(0)
    level = {"supervised": 70.0, "kd": 75.0, "hcd": 80.0, "scalekd": 74.0}
    found = {}
    for key, run in chosen.runs.items():
        name = run.spec.method.name
        refused = refusing and name == "scalekd" and run.spec.teachers["teacher"].model.family not in ("swin", "vit")
        found[key] = Record(
            key=key,
            label=run.label,
            status="refused" if refused else "done",
            reason="no tail" if refused else None,
            spec={},
            metrics={} if refused else {"top1": float(level.get(name, 72.0) + rng.normal(0, 0.2))},
            cost={
                "wall_s": 1.0,
                "cpu_s": 1.0,
                "gpu_s": 0.0,
                "step_ms": STEP.get(name, 5.0),
                "extra_params_m": 0.25 if name == "hcd" else 0.0,
                "peak_memory_mib": 512.0,
            },
            environment={},
            started=0.0,
            finished=1.0,
        )
    return found


@pytest.fixture(scope="module")
def core():
    return plan("hcd_cifar100_core", "laptop")


@pytest.fixture(scope="module")
def written(core, tmp_path_factory):
    records = records_of(core)
    folder = tmp_path_factory.mktemp("results") / core.table
    render.write_table(core, records, compare(core, records), folder)
    return folder


def test_ranks_and_the_map_stand_beside_the_table(written):
    assert {"ranks.csv", "ranking.png", "gains.png", "comparison.png"} <= {path.name for path in written.iterdir()}


def test_ranks_csv_has_the_best_first_and_leaves_out_what_lacks_a_pair(written):
    ranks = pd.read_csv(written / "ranks.csv")
    assert {*ranks["method"][:2]} == {"HCD", "HCD, detached"}
    assert ranks["method"][2] == "KD"
    assert ranks["method"].tolist()[-1] == "From scratch"
    assert ranks["mean_rank"][:2].sum() == pytest.approx(3.0)
    assert ranks["mean_rank"][2] == 3.0
    assert set(ranks["n_pairs"]) == {3}  # the fourth is on other data
    assert ranks["p_over_baseline"][0] == 1.0
    assert ranks["p_over_kd"][0] == 1.0
    assert ranks["share_gain_above_5"][0] == 1.0
    text = (written / "table.md").read_text()
    assert "Methods over pairs (top-1 accuracy; mean ranks" in text
    assert "P over baseline |" in text
    assert "DeiT-T (other data)" in text
    assert set(ranks["n_seeds"]) == {5}
    assert "ScaleKD" not in set(ranks["method"])
    assert len(ranks) == 11


def test_the_cost_of_each_method_stands_under_the_table(written):
    text = (written / "table.md").read_text()
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    cost = {line[0]: line[1:] for line in lines if len(line) == 5 and line[0] in ("From scratch", "KD", "HCD")}
    assert cost == {
        "From scratch": ["1.00", "0.000", "512", "4"],
        "KD": ["1.10", "0.000", "512", "4"],
        "HCD": ["2.00", "0.250", "512", "4"],
    }
    assert next(line for line in lines if line[0].startswith("ScaleKD") and len(line) == 5)[4] == "2"


def test_every_method_of_every_pair_has_its_cost_in_the_csv(written):
    frame = pd.read_csv(written / "cost.csv")
    assert len(frame) == 4 * 12
    assert frame.loc[frame["method"] == "hcd", "step_ratio"].tolist() == [2.0] * 8  # two variants


def test_the_comparison_figure_keeps_to_plain_kd_and_the_papers_method(core, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "analysis.charts.comparison_figure", lambda rows, path, **texts: drawn.update(rows=rows, **texts)
    )
    render.draw(core, compare(core, records_of(core)), tmp_path / "comparison.png", ("top1",))
    assert {row["method"] for row in drawn["rows"]} == {"KD", "HCD"}
    assert sum(row["pooled"] for row in drawn["rows"]) == 2
    assert "gains.png" in drawn["caption"]
    assert all(math.isnan(row["published"]) for row in drawn["rows"] if row["method"] == "HCD")  # unverified


def test_the_comparison_figure_has_students_that_start_from_the_papers_method(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "analysis.charts.comparison_figure", lambda rows, path, **texts: drawn.update(rows=rows, **texts)
    )
    table = plan("hgkd_methods", "laptop")
    render.draw(table, compare(table, records_of(table)), tmp_path / "comparison.png", ("top1",))
    assert {row["method"] for row in drawn["rows"]} == {"KD", "H-GKD, MAE", "H-GKD, labelled teacher"}


def test_the_map_tells_what_was_refused_from_what_is_sure(core, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("analysis.charts.gain_map", lambda cells, path, **texts: drawn.update(cells=cells, **texts))
    render.draw_map(core, compare(core, records_of(core)), tmp_path / "gains.png")
    cells = {(cell["pair"], cell["method"]): cell for cell in drawn["cells"]}
    assert len(cells) == 4 * 11
    assert cells["ConvNeXt-T → DeiT-T (other data)", "ScaleKD"]["refused"]
    assert cells["Swin-T → ResNet-18", "HCD"]["sure"]
    assert "Hatched" in drawn["caption"]
    full = {key: replace(each, metrics={"top1": 99.0}) for key, each in records_of(core).items()}
    render.draw_map(core, compare(core, full), tmp_path / "gains.png")
    assert all(cell["untold"] for cell in drawn["cells"] if not cell["refused"])  # at the ceiling
    assert "Italics: this set-up cannot tell" in drawn["caption"]


def test_a_table_without_records_is_written_too(core, tmp_path):
    render.write_table(core, {}, compare(core, {}), tmp_path / "table")
    assert pd.read_csv(tmp_path / "table" / "ranks.csv").empty


def test_variants_of_one_method_are_neither_ranked_nor_listed_by_cost(tmp_path):
    chosen = plan("hcd_ablations", "laptop", 2)
    assert not render.is_ranked(chosen)
    records = records_of(chosen)
    render.write_table(chosen, records, compare(chosen, records), tmp_path / "table")
    assert not (tmp_path / "table" / "ranks.csv").exists()
    assert "Cost of each method" not in (tmp_path / "table" / "table.md").read_text()


def test_of_many_metrics_gains_over_kd_are_printed_for_the_first_alone():
    again = plan("hcd_robustness", "laptop")
    rng = np.random.default_rng(0)
    records = {
        key: replace(record, metrics={metric: float(rng.normal(70, 1)) for metric in again.metrics})
        for key, record in records_of(again, refusing=False).items()
    }
    comparison = compare(again, records)
    shown = render.pooled_shown(again, comparison)
    assert {gain.metric for gain in shown if gain.over} == {again.metrics[0]}
    assert {gain.metric for gain in shown} == {*again.metrics}
    assert len(shown) < len(comparison.pooled)
    # A difference of negative log-likelihoods is not in points.
    said = [line for line in caption.caption(again, records, comparison) if line.startswith("HCD minus KD (negative")]
    assert len(said) == 1
    assert "points" not in said[0]
