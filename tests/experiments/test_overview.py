"""The line of each table: own results first, else what is committed, which follows from the committed records."""

import json

import pytest

from experiments import places
from experiments.planning import schema
from experiments.planning.plan import plan
from experiments.results.overview import SUMMARY, Line, Summary, committed, compared_runs, here, lines, summarised
from experiments.until import as_committed
from hkd.errors import UserError

PROFILES = sorted(path.name for path in places.references().iterdir() if path.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_the_committed_summary_is_what_the_committed_records_say(profile):
    assert committed(profile) == summarised(profile, as_committed), "write it again with `hkd reference update`"


def test_what_several_tables_print_is_counted_in_one_of_them():
    """The four pairs of the core table are among the twelve, MAE and CLIP beside CLIP stand in Tables 1 and 9, and
    no collection has a comparison of its own."""
    laptop = committed("laptop")
    assert laptop["hcd_cifar100_core"].again == laptop["hcd_cifar100_core"].verdicts
    assert laptop["hybrid_ablations"].again == laptop["hybrid_ablations"].verdicts
    assert not laptop["hcd_cifar100"].again
    assert not laptop["hybrid_table1"].again
    assert laptop["hybrid_table9"].again["contradicted"] == 1
    for each in laptop.values():
        assert all(number <= each.verdicts[name] for name, number in each.again.items())


def test_one_comparison_is_known_by_the_runs_of_its_first_seed_on_both_sides():
    whole, core = (plan(name, "laptop") for name in ("hcd_cifar100", "hcd_cifar100_core"))
    pair = [
        {compared_runs(cell, table.cells) for cell in table.cells if cell.baseline and cell.runs}
        for table in (whole, core)
    ]
    assert pair[1] < pair[0]
    assert len({runs for _, *both in pair[0] for runs in both}) > len(pair[0])  # different sides


DONE = {"status": "done", "cost": {"cpu_s": 90.0}}


def own(folder, verdicts, costs):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"verdicts": verdicts}))
    (folder / "runs.json").write_text(json.dumps({"runs": {str(i): run for i, run in enumerate(costs)}}))


def test_own_results_come_before_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path))
    name = "scalekd_table3"
    before = lines("laptop", [name])[name]
    assert before.state == "committed"
    own(places.tables("laptop") / name, {"no_effect_seen": 2}, [DONE, {"status": "not run"}])
    said = Summary(verdicts={"no effect seen": 2}, runs=1, seconds=90.0, counted=1)
    assert lines("laptop", [name])[name] == Line("here", said)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"verdicts": 3}', '{"verdicts": {"holds": "x"}}'])
def test_own_results_that_are_something_else_are_left_aside(tmp_path, text):
    own(tmp_path / "t", {}, [DONE])
    (tmp_path / "t" / "metrics.json").write_text(text)
    assert here(tmp_path / "t") is None


def test_a_table_that_was_never_run_says_so():
    name = next(name for name in schema.table_ids() if schema.load_table(name).kind == "figure")
    line = lines("paper", [name])[name]
    assert (line.state, line.verdicts(), line.minutes()) == ("not run", "", "")


def test_a_line_in_words():
    line = Line("committed", Summary(verdicts={"holds": 6, "contradicted": 1}, runs=3, seconds=1272.0, counted=3))
    assert (line.verdicts(), line.minutes()) == ("6 holds, 1 contradicted", "21")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"verdicts": 3}}', '{"a": {"verdicts": {}, "runs": 1}}'])
def test_a_summary_that_is_something_else_is_one_sentence(tmp_path, monkeypatch, text):
    monkeypatch.setattr(places, "references", lambda: tmp_path)
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / SUMMARY).write_text(text)
    with pytest.raises(UserError, match="is no summary of tables"):
        committed("laptop")
