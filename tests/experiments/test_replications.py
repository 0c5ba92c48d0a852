"""Third parties' replications: which cells they belong to, and who could not reach a published value."""

import pytest

from experiments.planning import replications, schema
from experiments.planning.plan import plan
from experiments.planning.replications import Replicated, not_reached
from experiments.results.compare import compare
from experiments.results.render import markdown


@pytest.fixture(scope="module")
def core():
    return plan("hcd_cifar100_core", "laptop", 1)


def cell(core, row, method):
    return next(c for c in core.cells if (c.row, c.method, c.variant) == (row, method, ""))


def test_every_attempt_has_a_source_and_names_a_value_or_pairs():
    for group in replications.load().ofakd_tables:
        for row in group.rows:
            assert row.source
            assert row.values or row.pairs
            if "replicated" in row.values or row.pairs:
                assert row.who


def test_attempts_stand_at_the_cells_that_they_are_of(core):
    found = cell(core, "convnext_t-deit_t", "kd").replicated
    assert [each.value for each in found] == [67.94, 70.78]
    assert [each.value for each in cell(core, "convnext_t-deit_t", "supervised").replicated] == [67.0, 51.91]
    assert [each.value for each in cell(core, "swin_t-resnet18", "fitnet").replicated] == [80.49]
    assert [each.value for each in cell(core, "swin_t-resnet18", "ofa").replicated] == [None]
    assert cell(core, "convnext_t-deit_t", "ofa").replicated == ()
    assert cell(core, "convnext_t-deit_t", "hcd").replicated == ()  # its published value is another paper's


def test_attempts_that_quote_a_published_value_quote_the_one_of_their_cell(core):
    for each in core.cells:
        for attempt in each.replicated:
            if attempt.published is not None:
                assert attempt.published == each.published.value


def test_independent_people_who_fell_short_are_counted_once_each():
    short = Replicated(value=70.0, published=72.0, source="a", who="x")
    near = Replicated(value=71.5, published=72.0, source="b", who="y")
    never = Replicated(value=None, published=None, source="c", who="z")
    assert not_reached((short, short, near)) == 1
    assert not_reached((short, near, never)) == 2


def test_the_table_prints_them_in_a_column_of_their_own_and_marks_what_two_could_not_reach(core):
    comparison = compare(core, {})
    text = markdown(core, {}, comparison)
    assert "67.94 (a user of issue 23); 70.78 (the owner of the FBT repository)" in text
    assert "72.99 (medium confidence) (not reached by 2 others)" in text
    assert "80.54 (medium confidence) (not reached" not in text  # one person is not two
    assert "Replicated values are third parties' with the official code" in text
    frame = comparison.frame
    line = frame[(frame["row"] == "swin_t-resnet18") & (frame["method"] == "ofa")].iloc[0]
    assert line["replicated"] == "not reached (a user of issue 44)"


def test_a_table_of_another_paper_has_none():
    published = schema.load_published("scalekd")
    table = published.tables[0]
    assert replications.replicated("scalekd", table, table.rows[0], "top1") == ()
