"""Decided gains that were trained again: what the docs say of them is what the committed records hold."""

import pytest

from experiments import places
from experiments.records.store import Store
from experiments.results.again import Again, joined, trained_again

GAIN = Again(
    row="a",
    label="KD",
    metric="top1",
    gain=2.0,
    there=-1.0,
    seeds=(0, 1),
    tables=("t",),
    others=("u",),
)


def test_a_gain_turns_round_where_its_means_have_other_signs():
    assert GAIN.turned
    assert not Again(**{**vars(GAIN), "there": 0.5}).turned
    assert str(GAIN) == "turned  a KD top1: +2.0 / -1.0 (t / u)"


def test_a_gain_of_several_tables_is_one():
    assert joined(GAIN, Again(**{**vars(GAIN), "tables": ("v",), "others": ("u", "w")})) == Again(
        **{**vars(GAIN), "tables": ("t", "v"), "others": ("u", "w")}
    )


@pytest.mark.slow
def test_the_docs_count_and_list_the_gains_that_turned_round(tmp_path):
    found = trained_again("laptop", Store(tmp_path))
    turned = [again for again in found if again.turned]
    text = (places.repository() / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert f"`laptop` {len(found)} were trained again that way, with three of their seeds each" in text
    assert {len(again.seeds) for again in found} == {3}
    assert len(turned) == 3
    for again in turned:
        gain, there = (f"{value:+.1f}".replace("-", "−") for value in (again.gain, again.there))
        assert f"| {gain} | {there} |" in text
        assert all(f"`{table}`" in text for table in (*again.tables, *again.others))
