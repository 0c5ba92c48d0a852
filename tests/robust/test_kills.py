"""A few kills at random moments; `python -m tests.robust.kills` does many, of more kinds of runs."""

import pytest

from tests.robust.kills import Trial

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]


def test_a_table_that_was_killed_three_times_has_the_digits_of_one_that_was_not(tmp_path):
    trial = Trial(tmp_path, seed=0, tables=("kills_one",))
    life = trial.life(0, kills=3)
    assert life.kills > 0
    assert life.found == []
