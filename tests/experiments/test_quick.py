"""The quick reader of YAML: the same values as the one with positions, and never in doubt."""

import pytest

from experiments.planning import quick, schema

DOCUMENTS = sorted(path for path in schema.HERE.rglob("*.yaml") if path.parent.name != "starters")


def test_every_document_of_this_package_has_the_same_values_both_ways():
    assert len(DOCUMENTS) > 50
    for path in DOCUMENTS:
        slow, fast = schema.plain(schema.parsed(path, path.name)), quick.read(path.read_text("utf-8-sig"))
        assert repr(schema.plain(fast)) == repr(slow), path  # types too, and the order of keys


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "a: [1",
        "a: b: c",
        "a: !!python/name:os.system",
        "<<: [1]\n",
        "<<: a\n",
        "<<: {a: 1}\n<<: {b: 1}\n",
    ],
)
def test_what_is_doubtful_is_left_to_the_other_reader(text):
    with pytest.raises(quick.Doubtful):
        quick.read(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, y: 2}\nb: {<<: *a, z: 3, x: 5}\n",
        "a: &a {x: 1, y: 2}\nb: {z: 3, <<: *a, w: 4}\n",
        "a: &a {x: 1, y: 2}\nb: {z: 1, <<: [*a, {q: 9, x: 0}], y: 7}\n",
        "a: &a {x: 1}\nb: &b {<<: *a, y: 2}\nc: {z: 3, <<: *b}\nd: {<<: *b, x: 4}\n",
        "<<: {a: 1}\nb: 2\n",
    ],
)
def test_merged_keys_stand_behind_own_ones_as_the_other_reader_has_them(text, tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    assert repr(schema.plain(quick.read(text))) == repr(schema.plain(schema.parsed(path, "d.yaml")))


def test_scalars_are_those_of_yaml_1_2():
    assert quick.read("[1e-3, on, no, ~, true]") == [1e-3, "on", "no", None, True]
