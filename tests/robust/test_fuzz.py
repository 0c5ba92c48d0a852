"""Hostile inputs of every kind are refused in a sentence, or accepted where that is right; the fuzzer tells if not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hkd.errors import UserError
from tests.robust import fuzz
from tests.robust.fuzz import Input, all_kinds, outcomes, tried

FEW, SECONDS = 12, 3.0  # inputs of each kind, and for all of them


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


def fuzzed(*arguments):
    """The fuzzer as its users start it, in a process that no other test has changed: what it printed, and its code."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.robust.fuzz", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    return done.stdout + done.stderr, done.returncode


def test_a_few_inputs_of_every_kind_are_clear():
    """As many of each kind as its share of the time allows, and at least one."""
    said, code = fuzzed("--seed", 0, "--count", FEW, "--minutes", SECONDS / 60)
    assert code == 0, said
    assert all(f"\n{name} " in said for name in all_kinds()), said


@pytest.mark.slow
@pytest.mark.long
def test_as_many_inputs_as_five_minutes_take_are_clear():
    said, code = fuzzed("--seed", 1, "--minutes", 5)
    assert code == 0, said
