"""The line of each table: own results first, else what is committed, which follows from the committed records."""

import json

import pytest

from experiments import places
from experiments.planning import schema
from experiments.results.overview import SUMMARY, Line, Summary, committed, here, lines, summarised
from experiments.until import as_committed
from hkd.errors import UserError

PROFILES = sorted(path.name for path in places.references().iterdir() if path.is_dir())


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_the_committed_summary_is_what_the_committed_records_say(profile):
    assert committed(profile) == summarised(profile, as_committed), "write it again with `hkd reference update`"


def own(folder, verdicts, costs):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"verdicts": verdicts}))
    (folder / "runs.json").write_text(json.dumps({"runs": {str(i): run for i, run in enumerate(costs)}}))


def test_own_results_come_before_committed_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path))
    name = "scalekd_table3"
    before = lines("laptop", [name])[name]
    assert before.state == "committed"
    own(places.tables("laptop") / name, {"no_effect_seen": 2}, [{"cost": {"cpu_s": 90.0}}, {"status": "not run"}])
    assert lines("laptop", [name])[name] == Line("here", Summary(verdicts={"no effect seen": 2}, runs=2, cpu_s=90.0))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"verdicts": 3}', '{"verdicts": {"holds": "x"}}'])
def test_own_results_that_are_something_else_are_left_aside(tmp_path, text):
    own(tmp_path / "t", {}, [{"cost": {"cpu_s": 1.0}}])
    (tmp_path / "t" / "metrics.json").write_text(text)
    assert here(tmp_path / "t") is None


def test_a_table_that_was_never_run_says_so():
    name = next(name for name in schema.table_ids() if schema.load_table(name).kind == "figure")
    line = lines("paper", [name])[name]
    assert (line.state, line.verdicts(), line.minutes()) == ("not run", "", "")


def test_a_line_in_words():
    line = Line("committed", Summary(verdicts={"holds": 6, "contradicted": 1}, runs=3, cpu_s=1272.0))
    assert (line.verdicts(), line.minutes()) == ("6 holds, 1 contradicted", "21")


@pytest.mark.parametrize("text", ["{", "[]", '{"a": {"verdicts": 3}}', '{"a": {"verdicts": {}, "runs": 1}}'])
def test_a_summary_that_is_something_else_is_one_sentence(tmp_path, monkeypatch, text):
    monkeypatch.setattr(places, "references", lambda: tmp_path)
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / SUMMARY).write_text(text)
    with pytest.raises(UserError, match="is no summary of tables"):
        committed("laptop")
