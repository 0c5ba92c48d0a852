"""UNIC: several teachers, of whom the worst never rests."""

import math

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.base import Samples
from hkd.methods.unic import UNIC, Standardise, UNICConfig, averaged, feature_distances, kept
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher

LOSSES = torch.tensor([[1.0, 2.0], [3.0, 1.0]])


def method_of(names=("swin_t_mini", "deit_t_mini"), student="resnet18_mini", steps=10, **options):
    torch.manual_seed(1)
    teachers = {f"t{place}": Teacher(ZOO[name], 5) for place, name in enumerate(names)}
    learning = TapModel(ZOO[student], 5)
    config = UNICConfig(roles=tuple(teachers), hidden=8, **options)
    method = UNIC(config, learning.info, teachers, F.cross_entropy)
    method.prepare(Samples(labels=torch.arange(4), classes=5, epochs=1, steps=steps))
    return method, learning, teachers


def losses_of(method, student, teachers):
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch, needs = Batch(x=x, y=torch.arange(4), index=torch.arange(4)), method.needs(method.config)
    return method(batch, student(x, needs.student), {role: teacher(x) for role, teacher in teachers.items()})


def distance(found, target):
    return feature_distances(torch.tensor([[found]]), torch.tensor([[target]])).item()


def test_distances_have_their_hand_values():
    assert distance([1.0, 0.0], [0.0, 1.0]) == pytest.approx(0.75)
    assert distance([3.0, 0.0], [0.0, 0.0]) == pytest.approx(1.125)
    assert distance([3.0, 1.0], [3.0, 1.0]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("rest", "value"),
    [([[0, 0], [0, 0]], 1.75), ([[1, 1], [1, 1]], 2.5), ([[1, 0], [1, 0]], 2.0), ([[1, 0], [0, 0]], 2.0)],
)
def test_the_worst_teacher_of_an_image_never_rests(rest, value):
    keep = kept(LOSSES, torch.tensor(rest, dtype=torch.bool))
    assert averaged(LOSSES, keep, "kept").item() == pytest.approx(value)
    assert (keep * LOSSES).amax(dim=0).tolist() == [3, 2]


def test_each_image_weighs_the_same_where_that_is_asked_for():
    keep = kept(LOSSES, torch.tensor([[True, False], [True, False]]))
    assert averaged(LOSSES, keep, "per_image").item() == pytest.approx((3 + 1.5) / 2)


def test_distances_agree_with_loops():
    torch.manual_seed(0)
    found, target = torch.randn(2, 2, 3, 4, dtype=torch.float64) * 2
    for b in range(2):
        total = 0.0
        for n in range(3):
            s, t = found[b, n].tolist(), target[b, n].tolist()
            dot = sum(x * y for x, y in zip(s, t, strict=True))
            cosine = dot / math.sqrt(sum(x * x for x in s) * sum(y * y for y in t))
            errors = [abs(x - y) for x, y in zip(s, t, strict=True)]
            smooth = sum(e - 0.5 if e > 1 else e * e / 2 for e in errors) / 4
            total += (1 - cosine + smooth) / 2 / 3
        assert feature_distances(found, target)[b].item() == pytest.approx(total)


def test_targets_are_normed_by_what_was_known_before_the_batch():
    torch.manual_seed(0)
    norm, first, second = Standardise(3), torch.randn(4, 2, 3) * 5 + 2, torch.randn(4, 2, 3)
    torch.testing.assert_close(norm(first, 1.0), first, rtol=1e-5, atol=1e-5)
    mean, std = first.mean(dim=(0, 1)), first.std(dim=(0, 1), correction=0)
    torch.testing.assert_close(norm(second, 0.25), (second - mean) / (std + 1e-6))
    torch.testing.assert_close(norm.mean, 0.75 * mean + 0.25 * second.mean(dim=(0, 1)))
    state = norm.eval().mean.clone()
    norm(second, 1.0)
    assert torch.equal(norm.mean, state)


def test_the_momentum_falls_by_a_cosine_from_1():
    method, student, teachers = method_of(steps=2)
    found = []
    for _ in range(3):
        found.append(method.momentum())
        losses_of(method, student, teachers)
    assert found == pytest.approx([1, 0.5005, 0.001])


def test_two_teachers_of_different_families_are_learned_from_and_stay_as_they_are():
    method, student, teachers = method_of(weight=2.0, w_task=0.5)
    before = {role: {k: v.clone() for k, v in teacher.state_dict().items()} for role, teacher in teachers.items()}
    method.eval()
    losses = losses_of(method, student, teachers)
    assert list(losses) == ["task", "unic"]
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    taps_s = student(x, method.needs(method.config).student)
    each = torch.stack([s(taps_s, t(x), 1.0) for s, t in zip(method.sources, teachers.values(), strict=True)])
    assert losses["unic"].item() == pytest.approx(2 * each.mean().item(), rel=1e-4)
    method.train()
    losses_of(method, student, teachers)["unic"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    for role, teacher in teachers.items():
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(torch.equal(value, before[role][name]) for name, value in teacher.state_dict().items())


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="roles must not name one twice"):
        UNICConfig(roles=("a", "a"))
    method, student, teachers = method_of()
    student.info.stages[4] = (3, 0, 0)
    with pytest.raises(Refused, match="'unic' reads the student's map of stage 4, which has no positions"):
        UNIC(method.config, student.info, teachers, F.cross_entropy)
