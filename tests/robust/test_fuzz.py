"""Hostile inputs of every kind are refused in a sentence, or accepted where that is right; the fuzzer tells if not."""

import os
import signal
import time

import pytest

from hkd.errors import UserError
from tests.robust import fuzz
from tests.robust.fuzz import Input, all_kinds, outcomes, run, summary, tried

FEW, SECONDS = 25, 14.0  # inputs of each kind, and for all of them


def kind_of(attempt):
    return lambda rng, folder: Input("an input", attempt)


def refuse(sentence):
    def attempt():
        raise UserError(sentence)

    return attempt


def accept_wrongly():
    raise AssertionError("a width of -1")


def break_down():
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("attempt", "word", "clear"),
    [
        (lambda: None, "accepted", True),
        (refuse("No such table."), "refused", True),
        (accept_wrongly, "accepted wrongly", False),
        (break_down, "KeyError", False),
    ],
)
def test_an_input_is_clear_if_it_is_refused_in_a_line_or_accepted_rightly(attempt, word, clear):
    outcome = tried("a kind", kind_of(attempt), 0, 0)
    assert (outcome.word, outcome.clear) == (word, clear)


@pytest.mark.parametrize(
    ("attempt", "word"), [(lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"), (lambda: time.sleep(60), "hang")]
)
def test_a_crash_and_a_hang_are_found_and_the_next_input_is_tried(monkeypatch, attempt, word):
    monkeypatch.setattr(fuzz, "patience", lambda: 1.0)
    monkeypatch.setattr(fuzz, "all_kinds", lambda: {"a kind": kind_of(attempt)})
    found = list(outcomes("a kind", 0, 2, time.monotonic() + 60))
    assert [outcome.word for outcome in found] == [word, word]
    assert not any(outcome.clear for outcome in found)


def test_an_input_follows_from_its_seed_kind_and_number_alone():
    kinds = all_kinds()
    for name in ("lock", "options", "holders"):
        first, again = (tried(name, kinds[name], 3, 7) for _ in range(2))
        assert (first.shown.partition("/tmp")[0], first.word) == (again.shown.partition("/tmp")[0], again.word)


def test_a_few_inputs_of_every_kind_are_clear():
    """The same ones in every run: as many of each kind as its share of the time allows, and at least one."""
    kinds = all_kinds()
    tried("claims", kinds["claims"], 0, 0)  # what the committed files hold is known to the processes that try the rest
    found = [outcome for name in kinds for outcome in outcomes(name, 0, FEW, time.monotonic() + SECONDS / len(kinds))]
    assert {outcome.kind for outcome in found} == set(kinds)
    assert all(outcome.clear for outcome in found), summary(found)


@pytest.mark.slow
@pytest.mark.long
def test_as_many_inputs_as_five_minutes_take_are_clear():
    found = run(list(all_kinds()), seed=1, count=10_000, minutes=5)
    assert {outcome.kind for outcome in found} == set(all_kinds())
    assert all(outcome.clear for outcome in found), summary(found)
