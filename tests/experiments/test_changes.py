"""What counts as a change of code that must have run."""

import pytest

from experiments.planning.code import Code
from experiments.proving.changes import changed

BEFORE = '''
"""A module."""
import math

EPS = 1e-5
UNUSED = 3


class Thing:
    weight: float = 1.0

    def value(self, x, scale=2.0):
        """Doc."""
        total = 0.0
        for item in x:
            if item > 0:
                total = total + item * self.weight
        if total > 100:
            raise ValueError(f"{total} is too large")
        return total / scale if scale else math.inf


def other(x):
    return x + EPS
'''


@pytest.fixture
def lines(tmp_path):
    """Call with an edit (old, new): lines of the edited file that must have run, as text."""

    def edit(*edits, **files):
        roots = []
        for name, changes in (("old", ()), ("new", edits)):
            text = BEFORE
            for old, new in changes:
                assert old in text
                text = text.replace(old, new)
            folder = tmp_path / name / "hkd"
            folder.mkdir(parents=True)
            (folder / "m.py").write_text(text)
            roots.append(Code(tmp_path / name))
        found = changed(roots[1], roots[0], ["hkd.m"], ["hkd.m"])
        shown = (tmp_path / "new" / "hkd" / "m.py").read_text().splitlines()
        return [shown[change.place.shown - 1].strip() for change in found]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        ('"""Doc."""', '"""Another."""'),
        ("total", "amount"),
        ("is too large", "is larger than 100"),
        ("def other(x):", "def other(x: float) -> float:"),
        ("def other(x):\n    return x + EPS\n", "def other(x):\n\n    # a comment\n    return x + EPS\n"),
        ("UNUSED = 3", "UNUSED = 4"),
    ],
    ids=["docstring", "local name", "error text", "annotation", "layout", "constant that nobody reads"],
)
def test_what_cannot_move_a_number_is_no_change(lines, edit):
    assert lines(edit) == []


def test_a_changed_statement_counts_and_its_neighbours_do_not(lines):
    assert lines(("item * self.weight", "item + self.weight")) == ["total = total + item + self.weight"]


def test_a_condition_counts_without_its_body(lines):
    assert lines(("if item > 0:", "if item >= 0:")) == ["if item >= 0:"]


def test_a_removed_statement_shows_at_what_follows(lines):
    assert lines(("        total = 0.0\n", "        pass\n")) == ["pass"]


def test_a_constant_counts_for_every_statement_that_reads_it(lines):
    assert lines(("EPS = 1e-5", "EPS = 1e-6")) == ["return x + EPS"]


def test_a_field_counts_for_every_statement_that_reads_it(lines):
    assert lines(("weight: float = 1.0", "weight: float = 2.0")) == ["total = total + item * self.weight"]


def test_a_default_counts_for_the_beginning_of_the_body(lines):
    assert lines(("scale=2.0", "scale=3.0")) == ["total = 0.0"]


def test_a_side_of_a_conditional_expression_counts_for_itself(lines):
    found = lines(("else math.inf", "else -math.inf"))
    assert found == ["return total / scale if scale else -math.inf"] * 2  # the statement, and the side that changed


def test_a_function_that_moves_as_it_is_is_no_change(tmp_path):
    for name, modules in {
        "old": {
            "a": "from hkd.b import g\n\n\ndef f(x):\n    return g(x)\n\n\ndef h(x):\n    return x\n",
            "b": "def g(x):\n    return 2 * x\n",
        },
        "new": {
            "a": "from hkd.b import g, h\n\n\ndef f(x):\n    return g(x)\n",
            "b": "def g(x):\n    return 2 * x\n\n\ndef h(x):\n    return x\n",
        },
    }.items():
        (tmp_path / name / "hkd").mkdir(parents=True)
        for module, text in modules.items():
            (tmp_path / name / "hkd" / f"{module}.py").write_text(text)
    new, old = Code(tmp_path / "new"), Code(tmp_path / "old")
    assert changed(new, old, ["hkd.a"], ["hkd.a"]) == []
    assert new.digest(["hkd.a"]) != old.digest(["hkd.a"])
