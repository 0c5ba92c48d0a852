"""What every method of the registry keeps (hkd/contract): a new method is covered by its name.

Every method meets students and teachers of every kind; `-m triples` has all triples.
"""

import pytest

from hkd.contract import checks
from hkd.methods import METHODS

# The papers' own methods, one of logits and one of maps meet every family, the others one of each kind; all of them do
# with -m triples.
EVERYWHERE = {"kd", "fitnet", "ofa", "hcd", "scalekd", "hgkd", "hybrid"}
TELLING = {"resnet", "swin", "vit", "mixer", "distilled", "timm"}
# Of these a step leaves nothing but weights and draws nothing: one stands for all where runs are killed.
STATELESS = {"cc", "dist", "dkd", "fd", "nst", "pkt", "rkd", "rsd", "sp", "supervised", "vid"}


def cases() -> list[pytest.param]:
    """(method, student, teacher): all, of which those that meet the usual partner are fast."""
    found = []
    for name in METHODS:
        kind = checks.method_of(name)
        teachers = checks.MODELS if kind.needs(kind.Config()).teachers else ["swin"]
        for student in checks.MODELS:
            for model in teachers:
                usual = model == "swin" or student == "resnet"
                few = name in EVERYWHERE or {student, model} <= TELLING
                marks = [] if usual and few else [pytest.mark.triples]
                found.append(pytest.param(name, student, model, marks=marks))
    return found


@pytest.mark.parametrize(("name", "student_family", "teacher_family"), cases())
def test_one_step_trains_every_tensor_and_leaves_a_plain_timm_model(name, student_family, teacher_family):
    checks.check_one_step(checks.subject_of(name), student_family, teacher_family)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name in STATELESS else []) for name in METHODS]
)
def test_equal_seeds_give_equal_bytes_also_after_a_kill_in_the_middle(tmp_path, monkeypatch, name):
    checks.few_digits(monkeypatch)
    checks.check_resumption(checks.subject_of(name), tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_drawn_from_the_seed_and_stores_no_teacher(name):
    checks.check_drawing(checks.subject_of(name))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in checks.LABEL_FREE])
def test_a_method_takes_soft_targets_or_says_that_it_needs_labels(name):
    checks.check_soft_targets(checks.subject_of(name))
