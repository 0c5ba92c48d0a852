"""Claims: files without mistakes, mistakes as sentences, statistics by hand, and verdicts by where an interval lies."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from experiments.planning import schema
from experiments.records.store import Store
from experiments.results.claims import check as checking
from experiments.results.claims import documents, report
from experiments.results.claims.check import Measured, Profile, apart, check
from experiments.results.claims.documents import Claim, Expect, load_claims
from experiments.results.claims.report import interval
from experiments.results.stats import NOTHING, Estimate
from hkd.errors import UserError

TABLE = "scalekd_table3"
ROWS = ("swin_l-resnet50", "swin_l-vit_s16", "swin_l-vit_b16")


def claim(**statistic):
    statistic = {"kind": "difference", "table": TABLE, "column": "scalekd", **statistic}
    return Claim.model_validate({"id": "c", "sentence": "S.", "source": "T", "statistic": statistic})


class Here(Profile):
    """A profile at which nothing is but what is given."""

    def __init__(self, rows=None, figures=None):
        self.name, self.tables = "laptop", {TABLE: Measured(rows or {}, "runs")}
        self.figures = {"scalekd_fig5": (figures or {}, "figure")}


def values(**columns):
    """Column -> values by seed, as a row has them."""
    return {(name, "", "top1"): dict(enumerate(each)) for name, each in columns.items()}


@pytest.fixture
def rows():
    return {
        ROWS[0]: values(supervised=[70.0, 72.0, 71.0], kd=[74.0, 75.0, 73.0], scalekd=[76.0, 75.0, 75.0]),
        ROWS[1]: values(supervised=[60.0, 61.0, 62.0], kd=[64.0, 60.0, 63.0], scalekd=[61.0, 64.0, 63.0]),
    }


@pytest.mark.parametrize("paper", documents.papers())
def test_every_claim_names_tables_rows_and_columns_that_exist(paper):
    found = load_claims(paper)
    assert all(each.sentence.endswith(".") and each.source for each in found.claims)
    assert not set(found.awaited) & set(schema.table_ids())


def test_there_are_claims_of_all_papers():
    counts = {paper: len(load_claims(paper).claims) for paper in documents.papers()}
    assert counts.keys() == {"hcd", "hgkd", "hybrid", "ofakd", "scalekd"}
    assert min(counts.values()) >= 5
    ids = [each.id for paper in counts for each in load_claims(paper).claims]
    assert len(ids) == len(set(ids)) >= 25


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("statistic: {kind: difference, table: scalekd_table8, column: kd}", "unknown table 'scalekd_table8'. Did you"),
        ("statistic: {kind: difference, table: scalekd_table3, column: scaled}", "Did you mean 'scalekd'?"),
        (
            "statistic: {kind: difference, table: scalekd_table3, column: kd, rows: [swin_l-resnet51]}",
            "swin_l-resnet50",
        ),
        ("statistic: {kind: difference, table: scalekd_table3, colunm: kd}", "unknown key 'colunm'. Did you mean"),
        ("statistic: {kind: difference, table: scalekd_table3, column: kd, metric: top5}", "Did you mean 'top1'?"),
        ("statistic: {kind: difference, table: scalekd_table3}", "means no column, or several"),
        ("statistic: {kind: value, figure: scalekd_fig55, value: a}", "unknown figure 'scalekd_fig55'. Did you mean"),
        (
            "statistic: {kind: correlation, table: scalekd_table3, column: kd, order: {swin_l-resnet50: 1}}",
            "three rows",
        ),
        ("statistic: {kind: value, figure: scalekd_fig5, value: a}\n    expect: {above: 0, below: 1}", "give one of"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(tmp_path, monkeypatch, line, sentence):
    (tmp_path / "claims").mkdir()
    text = f"paper: mine\nclaims:\n  - id: a\n    sentence: S.\n    source: T\n    {line}\n"
    (tmp_path / "claims" / "mine.yaml").write_text(text)
    for folder in ("tables", "profiles", "published"):
        (tmp_path / folder).symlink_to(schema.HERE / folder)
    monkeypatch.setattr(schema, "HERE", tmp_path)
    schema.document.cache_clear()
    load_claims.cache_clear()
    with pytest.raises(UserError) as error:
        load_claims("mine")
    assert str(error.value).startswith("experiments/claims/mine.yaml:")
    assert sentence in str(error.value)
    schema.document.cache_clear()
    load_claims.cache_clear()


def test_an_unknown_paper_is_told_with_the_nearest_name():
    with pytest.raises(UserError, match="Did you mean 'hybrid'"):
        load_claims("hibrid")


def test_a_gain_is_paired_by_seed_and_averaged_over_rows(rows):
    found = check(claim(over="supervised"), "scalekd", Here(rows))
    gains = np.array([[6, 3, 4], [1, 3, 1]]).mean(axis=0)
    low, high = scipy_stats.t.interval(0.95, 2, gains.mean(), scipy_stats.sem(gains))
    assert (found.estimate.mean, found.estimate.n) == (gains.mean(), 3)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high))
    assert (found.verdict, found.rows, found.over, found.basis) == ("holds", ROWS[:2], "seeds", "runs")


def test_of_several_others_the_worst_one_counts(rows):
    alone = check(claim(over="supervised"), "scalekd", Here(rows))
    both = check(claim(over=["supervised", "kd"]), "scalekd", Here(rows))
    assert (alone.verdict, both.verdict) == ("holds", "undecided")
    assert both.estimate.mean == np.mean([[2, 0, 2], [-3, 4, 0]])


def test_what_is_shown_of_several_others_has_the_verdict():
    row = values(supervised=[70.0, 70.1, 70.0], kd=[60.0, 75.0, 65.0], scalekd=[70.2, 70.31, 70.19])
    found = check(claim(over=["supervised", "kd"]), "scalekd", Here({ROWS[0]: row}))
    assert found.verdict == "undecided"
    assert found.estimate.low < 0 < found.estimate.high


def test_rows_without_values_are_counted_where_none_is_named(rows):
    found = check(claim(over="supervised"), "scalekd", Here(rows))
    assert report.sample(found) == "3 seeds, 2 of 11 rows"


def test_rows_are_compared_with_rows_and_with_their_other_columns(rows):
    found = check(claim(over="supervised", rows=[ROWS[0]], against=[ROWS[1]]), "scalekd", Here(rows))
    assert found.estimate.mean == pytest.approx(np.mean([6 - 1, 3 - 3, 4 - 1]))
    other = claim(rows=[ROWS[1]], against=[ROWS[0]], against_column="supervised")
    assert check(other, "scalekd", Here(rows)).estimate.mean == pytest.approx(np.mean([61 - 70, 64 - 72, 63 - 71]))


def test_rows_that_are_named_must_all_be_measured(rows):
    found = check(claim(over="supervised", rows=list(ROWS)), "scalekd", Here(rows))
    assert (found.verdict, found.estimate) == ("untested", NOTHING)
    assert found.reason == "scalekd_table3 lacks values that this needs"
    assert check(claim(over="supervised"), "scalekd", Here()).reason == "nothing of scalekd_table3 is measured"


def test_a_rank_correlation_is_taken_for_each_seed(rows):
    rows = rows | {ROWS[2]: values(supervised=[50.0, 50.0, 50.0], scalekd=[50.5, 50.0, 60.0])}
    order = {ROWS[2]: 1.0, ROWS[1]: 2.0, ROWS[0]: 3.0}
    found = check(claim(kind="correlation", over="supervised", order=order), "scalekd", Here(rows))
    per_seed = [scipy_stats.spearmanr([1, 2, 3], gains).statistic for gains in ([0.5, 1, 6], [0, 3, 3], [10, 1, 4])]
    assert found.estimate.mean == pytest.approx(np.mean(per_seed))
    assert found.verdict == "undecided"


@pytest.mark.parametrize(
    ("expect", "low", "high", "verdict"),
    [
        ({"above": 0.0}, 0.1, 2.0, "holds"),
        ({"above": 0.0}, -2.0, -0.1, "fails"),
        ({"above": 0.0}, -1.0, 1.0, "undecided"),
        ({"above": 0.0}, 0.0, 1.0, "undecided"),
        ({"below": -0.5}, -2.0, -1.0, "holds"),
        ({"below": -0.5}, -0.4, 1.0, "fails"),
        ({"within": 0.5}, -0.4, 0.4, "holds"),
        ({"within": 0.5}, 0.6, 0.9, "fails"),
        ({"within": 0.5}, -0.9, -0.6, "fails"),
        ({"within": 0.5}, -0.9, 0.9, "undecided"),
        ({"above": 0.0}, float("nan"), float("nan"), "undecided"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(expect, low, high, verdict):
    centre = 0.5 if np.isnan(low) else (low + high) / 2
    assert Expect.model_validate(expect).verdict(Estimate(mean=centre, low=low, high=high, n=3)) == verdict


def test_without_values_there_is_nothing_to_test():
    assert Expect(above=0.0).verdict(NOTHING) == "untested"


def test_numbers_of_figures_are_compared_over_seeds_where_there_are_any():
    trained = {"value": 3.0, "half": 0.1, "images": 9, "seeds": {"0": 3.0, "1": 4.0, "2": 5.0}}
    fixed = {"value": 1.0, "half": 0.1, "images": 9, "seeds": {}}
    estimate, over = apart(trained, fixed)
    assert (estimate.mean, estimate.n, over) == (3.0, 3, "seeds")
    again, _ = apart(fixed, trained)
    assert (again.mean, again.low) == pytest.approx((-estimate.mean, -estimate.high))
    other = {**trained, "seeds": {"0": 1.0, "1": 2.0, "2": 3.5}}
    assert apart(trained, other)[0].mean == pytest.approx(np.mean([2, 2, 1.5]))


def test_numbers_without_seeds_are_compared_over_images():
    a, b = ({"value": value, "half": half, "images": 9, "seeds": {}} for value, half in ((3.0, 0.3), (1.0, 0.4)))
    estimate, over = apart(a, b)
    assert (estimate.mean, estimate.n, over) == (2.0, 9, "images")
    assert (estimate.low, estimate.high) == pytest.approx((1.5, 2.5))
    nothing = apart(a, {**b, "half": None})[0]
    assert np.isnan(nothing.low)
    assert nothing.reason == "no interval was measured"


def test_a_number_that_a_figure_has_not_is_told_with_the_nearest():
    number = {"value": 0.7, "half": 0.01, "images": 9, "seeds": {}}
    here = Here(figures={"dct_energy/swin_l": number})
    document = {"kind": "value", "figure": "scalekd_fig5", "value": "dct_energy/swin_l"}
    base = {"id": "c", "sentence": "S.", "source": "T", "expect": {"above": 0.5}}
    assert check(Claim.model_validate(base | {"statistic": document}), "scalekd", here).verdict == "holds"
    wrong = Claim.model_validate(base | {"statistic": document | {"value": "dct_energy/swin_k"}})
    found = check(wrong, "scalekd", here)
    assert found.verdict == "untested"
    assert found.reason == "scalekd_fig5 has no number 'dct_energy/swin_k'. Did you mean 'dct_energy/swin_l'?"


def test_figures_of_another_profile_do_not_count(tmp_path):
    number = {"value": 0.7, "half": 0.01, "images": 9, "seeds": {}}
    drawn, kept = tmp_path / "results" / "smoke" / "scalekd_fig5", tmp_path / "references" / "laptop"
    for place, profile in ((drawn, "smoke"), (kept, "laptop")):
        place.mkdir(parents=True)
        name = checking.MEASURES if profile == "smoke" else f"scalekd_fig5.{checking.MEASURES}"
        document = {"profile": profile, "images": "Nine.", "values": {"a": number}}
        (place / name).write_text(json.dumps(document))
    here = Profile("laptop", Store(tmp_path / "none"), tmp_path / "results", tmp_path / "references")
    assert here.figure("scalekd_fig5")[1] == "committed"
    there = Profile("smoke", Store(tmp_path / "none"), tmp_path / "results", tmp_path / "references")
    assert there.figure("scalekd_fig5")[1] == "figure"


NUMBERS = '{"profile": "laptop", "values": {"a": %s}}'


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "",
        "[" * 100_000,
        NUMBERS % "1.0",
        NUMBERS % '{"value": NaN}',
        NUMBERS % '{"value": 1e400}',
        NUMBERS % '{"value": "1"}',
        NUMBERS % '{"value": true}',
        NUMBERS % '{"value": 1.0, "half": -1.0}',
        NUMBERS % '{"value": 1.0, "images": 1.5}',
        NUMBERS % '{"value": 1.0, "seeds": {"first": 1.0}}',
        NUMBERS % '{"value": 1.0, "seeds": {"0": null}}',
    ],
)
def test_a_broken_file_of_numbers_is_told(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(UserError, match="is not a figure's numbers"):
        checking.read_measures(tmp_path / "m.json")


def test_committed_values_are_read_where_there_are_no_runs(tmp_path):
    from experiments import places

    here = Profile("laptop", Store(tmp_path / "none"), tmp_path, places.references())
    found = check(claim(over="supervised"), "scalekd", here)
    assert (found.basis, found.verdict) == ("committed", "holds")


def test_what_is_written_can_be_read_again(rows, tmp_path):
    found = [check(claim(over=over), "scalekd", Here(rows)) for over in ("supervised", "kd")]
    found.append(replace(found[0], profile="cifar", verdict="untested", estimate=NOTHING, reason="nothing"))
    report.write(found, tmp_path)
    with open(tmp_path / "claims.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["verdict"] for line in lines] == ["holds", "undecided", "untested"]
    assert float(lines[0]["effect"]) == 3.0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["laptop"]["scalekd"] == {"holds": 1, "fails": 0, "undecided": 1, "untested": 0}
    text = (tmp_path / "claims.md").read_text()
    assert "## Profile laptop: holds 1, undecided 1" in text
    assert "nothing" not in text


def test_an_interval_reads_with_a_minus_sign():
    assert interval(Estimate(mean=-1.25, low=-2.5, high=0.0, n=3)) == "−1.25 [−2.50, 0.00]"
    assert interval(NOTHING) == ""


def test_checking_claims_imports_no_torch():
    code = (
        "import sys\n"
        "from experiments.results.claims.check import check_all\n"
        "from experiments.records.store import Store\n"
        "from pathlib import Path\n"
        "assert check_all(['smoke'], Store(Path('/nonexistent')))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=schema.HERE.parent)


def test_a_claim_on_the_gain_of_one_cell_stands_on_the_interval_that_judges_it(rows):
    judged = {
        (ROWS[0], ("scalekd", "", "top1"), ("supervised", "", "top1")): Estimate(mean=4.3, low=3.9, high=4.7, n=3)
    }
    here = Here(rows)
    here.tables[TABLE] = Measured(rows, "runs", judged=judged)
    assert check(claim(over="supervised", rows=(ROWS[0],)), "scalekd", here).estimate.low == 3.9
    assert check(claim(over="kd", rows=(ROWS[0],)), "scalekd", here).estimate.low != 3.9  # another contrast
    assert check(claim(over="supervised", rows=ROWS[:2]), "scalekd", here).estimate.low != 3.9  # a mean


def test_rows_of_other_data_are_in_no_mean_over_rows(rows):
    here = Here(rows)
    here.tables[TABLE] = Measured(rows, "runs", apart=frozenset({ROWS[1]}))
    found = check(claim(over="supervised"), "scalekd", here)
    assert found.rows == (ROWS[0],)
    assert check(claim(over="supervised", rows=(ROWS[1],)), "scalekd", here).rows == (ROWS[1],)
