"""The contract of the method that `--method` names, with every family of students and of teachers."""

import json
from pathlib import Path

import pytest

from hkd.contract import checks


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> checks.Subject:
    """What the options of the command line name."""
    given = request.config.getoption
    if (name := given("--method", default=None)) is None:
        pytest.exit("Name the method: pytest --pyargs hkd.contract --method my_pkg.my_file:MyMethod", returncode=4)
    return checks.Subject(
        name=name,
        options=json.loads(given("--method-options")),
        family=given("--student-family"),
        labels=not given("--label-free"),
    )


@pytest.mark.parametrize("student", checks.MODELS)
def test_one_step_trains_every_tensor_and_leaves_a_plain_timm_model(subject: checks.Subject, student: str) -> None:
    if (reason := checks.check_one_step(subject, student, "swin")) is not None:
        pytest.skip(f"refused: {reason}")


@pytest.mark.parametrize("teacher", checks.MODELS)
def test_it_learns_from_teachers_of_every_family_or_refuses_them(subject: checks.Subject, teacher: str) -> None:
    if not subject.needs.teachers:
        pytest.skip("it has no teacher")
    if (reason := checks.check_one_step(subject, subject.family, teacher)) is not None:
        pytest.skip(f"refused: {reason}")


def test_equal_seeds_give_equal_bytes_also_after_a_kill_in_the_middle(
    subject: checks.Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks.few_digits(monkeypatch)
    checks.check_resumption(subject, tmp_path)


def test_it_is_drawn_from_the_seed_and_stores_no_teacher(subject: checks.Subject) -> None:
    checks.check_drawing(subject)


def test_it_takes_soft_targets_or_says_that_it_needs_labels(subject: checks.Subject) -> None:
    if not subject.labels:
        pytest.skip("it pre-trains without labels")
    checks.check_soft_targets(subject)
