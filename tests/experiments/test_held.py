"""What is held of each paper's numbers: every table and every one not found stands in the list, with counts by hand."""

import pytest

from experiments import cli
from experiments.planning import replications, schema
from experiments.results import held


def hkd(*arguments):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments])
    return left.value.code


def test_every_published_table_and_every_missing_one_is_listed():
    for paper in held.papers():
        published = schema.load_published(paper)
        found = held.held(paper)
        expected = [
            *(table.id for table in published.tables),
            *(group.id for group in getattr(replications.load(), f"{paper}_tables", ())),
            *(str(each["id"]) for each in published.missing_tables),
        ]
        assert [each.table for each in found] == expected
    assert set(held.papers()) == {"hcd", "hgkd", "hybrid", "ofakd", "scalekd"}


def test_values_are_counted():
    found = {each.table: each for each in held.held("scalekd")}
    assert found["model_zoo"] == held.Held("model_zoo", held.WHOLE, 11, 0, found["model_zoo"].what)
    assert (found["table6"].values, found["table6"].doubted) == (18, 0)  # six lines of two values and a gain
    assert found["text_claims"].state == held.PART
    assert found["table15"].state == held.VAIN
    assert "V100" in found["table15"].what
    replicated = [each.table for each in held.held("ofakd") if each.state == held.REPLICATED]
    assert replicated == ["cifar100_user_replications", "cifar100_not_reproduced"]


def test_the_list_is_printed_and_asked_for_alone(capsys):
    assert hkd("tables", "--published") == 0
    printed = capsys.readouterr().out
    for words in ("ScaleKD: Strong Vision Transformers", "table16", "not found", "replicated", "in part"):
        assert words in printed
    assert hkd("tables", "scalekd_table3", "--published") == 2
    assert "give it alone" in capsys.readouterr().err


@pytest.mark.parametrize("paper", held.papers())
def test_what_is_not_found_says_what_it_is(paper):
    assert all(each.what for each in held.held(paper))
