"""The quick reader of YAML: the same values as the one with positions, and never in doubt."""

import pytest

from experiments.planning import quick, schema
from hkd.errors import UserError

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


DEEP = {
    "brackets": "[" * 30_000,
    "closed": "[" * 30_000 + "]" * 30_000,
    "braces": "{a: " * 30_000,
    "dashes": "- " * 30_000 + "a",
    "questions": "? " * 30_000 + "a",
    "mixed": "- ? " * 30_000 + "a",
    "quoted ends": "[']', " * 30_000,
    "ends in a comment": "# " + "]" * 60_000 + "\n" + "[" * 30_000,
    "ends in a text before": "a: '" + "]" * 60_000 + "'\nb: " + "[" * 30_000,
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_what_would_end_the_process_is_refused_by_both_readers(text, tmp_path):
    with pytest.raises(quick.Doubtful):
        quick.read(text)
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^d.yaml is nested too deeply or longer than [\d,]+ characters\.$"):
        schema.parsed(path, "d.yaml")


def test_levels_are_counted_as_they_are_open():
    text = "a: [[1], [2], {b: [3]}]\nc: ']'\nd: [4]"  # 4: of a, b's mapping and list
    assert [quick.deeper(text, levels) for levels in (3, 4)] == [True, False]
    assert not quick.deeper("[" * 3 + "\n: ]", 3)  # no YAML after three levels
