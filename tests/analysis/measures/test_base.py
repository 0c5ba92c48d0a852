"""A measure that forgets what it must define is refused where it is defined, before any image is seen."""

import pytest

from analysis.measures.base import SEEN, Measure, all_measures


def defined(**held):
    """A measure class of these attributes, with all that every measure must have."""
    return type("Mine", (Measure,), {"merge": lambda self, other: None, "compute": lambda self: None, **held})


def see(self, *seen):
    """See anything."""


@classmethod
def table(cls, results):
    """A table without lines."""
    return ["model"], []


@pytest.mark.parametrize("seen", SEEN)
def test_a_measure_has_the_method_of_what_it_sees(seen):
    with pytest.raises(TypeError, match=f"Mine sees {seen} and has no method '{seen}'"):
        defined(sees=seen, **{other: see for other in SEEN if other != seen})
    assert defined(sees=seen, **{seen: see}).sees == seen


@pytest.mark.parametrize(("held", "given"), [({}, "None"), ({"sees": "tokens"}, "'tokens'")])
def test_a_measure_says_what_it_sees(held, given):
    with pytest.raises(TypeError, match=f"sees is {given}; it must be one of attention, features, final"):
        defined(**held)


def test_a_title_stands_above_a_table():
    with pytest.raises(TypeError, match="Mine has a title and no class method 'table'"):
        defined(sees="final", final=see, title="px")
    assert defined(sees="final", final=see, title="px", table=table).table({}) == (["model"], [])


def test_what_a_kind_of_measures_defines_is_inherited():
    class Kind(Measure):  # abstract: it says neither what it sees nor what comes out
        title = "px"

    class Whole(Kind):
        sees, features, table = "features", see, table
        merge, compute = see, see

    assert Whole().features(0, "blocks.0", None) is None
    for kind in all_measures().values():
        assert getattr(kind, kind.sees) is not getattr(Measure, kind.sees)
