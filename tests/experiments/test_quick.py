"""The quick reader of YAML: the same values as the one with positions, and never in doubt."""

import pytest

from experiments.planning import quick, schema

DOCUMENTS = sorted(path for path in schema.HERE.rglob("*.yaml") if path.parent.name != "starters")


def test_every_document_of_this_package_has_the_same_values_both_ways():
    assert len(DOCUMENTS) > 50
    for path in DOCUMENTS:
        text = path.read_text("utf-8-sig")
        if "<<:" in text:
            continue
        slow, fast = schema.plain(schema.parsed(path, path.name)), quick.read(text)
        assert repr(schema.plain(fast)) == repr(slow), path  # types too, and the order of keys


@pytest.mark.parametrize(
    "text", ["a: 1\na: 2\n", "a: [1", "a: b: c", "a: !!python/name:os.system", "<<: {a: 1}\nb: 2\n"]
)
def test_what_is_doubtful_is_left_to_the_other_reader(text):
    with pytest.raises(quick.Doubtful):
        quick.read(text)


def test_scalars_are_those_of_yaml_1_2():
    assert quick.read("[1e-3, on, no, ~, true]") == [1e-3, "on", "no", None, True]
