"""What another training of the teacher changes: the component by hand, by simulation, and the plans it needs."""

import numpy as np
import pytest

from experiments.planning.plan import plan
from experiments.planning.schema import load_profile
from experiments.teacher_variance import component, plans, with_teacher_seed
from hkd.errors import UserError


def test_a_component_by_hand():
    # Teachers differ by 2 throughout; seeds by 0, 1, 2 under both: nothing is left over.
    found = component([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 3.0, 1: 4.0, 2: 5.0}])
    assert (found.gain, found.teachers, found.seeds) == (3.0, 2, 3)
    assert found.over_teachers == pytest.approx(np.std([2.0, 4.0], ddof=1))
    assert found.rest == pytest.approx(1.0)


def test_teachers_that_differ_no_more_than_chance_have_no_component():
    assert component([{0: 1.0, 1: -1.0}, {0: -1.0, 1: 1.0}]).over_teachers == 0


def test_one_teacher_or_one_common_seed_says_nothing():
    assert component([{0: 1.0, 1: 2.0}]) is None
    assert component([{0: 1.0, 1: 2.0}, {1: 2.0, 2: 3.0}]) is None
    assert component([]) is None


def test_the_component_is_the_variance_that_was_drawn():
    rng, found = np.random.default_rng(0), []
    for _ in range(2000):
        table = rng.normal(0, 1, (3, 1)) + rng.normal(0, 2, (1, 5)) + rng.normal(0, 0.5, (3, 5))
        found.append(component([dict(enumerate(row)) for row in table]).over_teachers ** 2)
    assert np.mean(found) == pytest.approx(1.0, rel=0.1)


def test_other_teachers_are_other_runs_and_the_students_alone_the_same():
    chosen = plan("scalekd_table9", "laptop", 2)
    first, second, third = plans(chosen, 3)
    assert first is chosen
    alone = [cell.runs for each in (first, second, third) for cell in each.cells if cell.method == "supervised"]
    assert len(set(alone)) == 1
    taught = {cell.runs for each in (first, second, third) for cell in each.cells if cell.variant == "cap"}
    assert len(taught) == 3
    assert all(not set(a.teachers.values()) & set(b.teachers.values()) for a, b in ((first, second), (second, third)))


def test_only_teachers_that_are_trained_here_have_a_seed():
    paper = load_profile("paper")
    from_files = {slug for slug, mapping in paper.teachers.items() if not mapping.recipe and not mapping.random}
    assert from_files
    moved = with_teacher_seed(paper, 1)
    assert all(moved.teachers[slug] == paper.teachers[slug] for slug in from_files)


def test_what_cannot_be_repeated_is_refused():
    chosen = plan("scalekd_table9", "laptop", 1)
    with pytest.raises(UserError, match="needs at least 2"):
        plans(chosen, 1)
    with pytest.raises(UserError, match="no gains"):
        plans(plan("hybrid_fig1", "laptop", 1), 3)
