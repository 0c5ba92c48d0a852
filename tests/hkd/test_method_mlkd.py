"""MLKD: samples, batch and classes at five temperatures, on two views."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.distiller.module import Distiller
from hkd.errors import Refused, UserError
from hkd.methods.mlkd import MLKD, MLKDConfig, mlkd_losses, not_above_median
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Taps

HAND = {"task": 0.079099, "kd": 8.105741, "cls": 0.119349, "bat": 0.005697}
HAND_S, HAND_T = torch.tensor([[2.0, 0, 0], [0, 1, 0]]), torch.tensor([[0.0, 0, 3], [0, 2, 0]])


def method_of(classes=3, **options):
    student, teacher = TapModel(ZOO["resnet18_mini"], 3), Teacher(ZOO["swin_t_mini"], classes)
    return MLKD(MLKDConfig(**options), student.info, {"teacher": teacher}, F.cross_entropy), student


def taps(logits, second=None):
    empty = torch.zeros(len(logits), 1, 1, 1)
    return Taps(logits=logits, pooled=empty[..., 0, 0], final=empty, second=second)


def test_two_equal_views_have_their_hand_values_with_all_weights():
    method, _ = method_of(views=1)
    batch = Batch(x=torch.zeros(2, 3, 8, 8), y=torch.tensor([0, 1]), index=torch.arange(2))
    losses = method(batch, taps(HAND_S), {"teacher": taps(HAND_T)})
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(HAND, abs=1e-5)
    equal = method(batch, taps(HAND_T), {"teacher": taps(HAND_T)})
    assert [equal[name].item() for name in ("kd", "cls", "bat")] == pytest.approx([0, 0, 0], abs=1e-6)
    assert equal["task"] > 0.01


def naive(weak_s, weak_t, strong_s, strong_t, tau, form):
    """Loops over temperatures, samples and classes, in numpy."""

    def softmax(z, temperature):
        e = np.exp(z / temperature)
        return e / e.sum(axis=1, keepdims=True)

    count, classes = weak_s.shape
    p = softmax(weak_t, 1)
    unsure, rare = p.max(axis=1) <= np.percentile(p.max(axis=1), 50), p.sum(axis=0) <= np.percentile(p.sum(axis=0), 50)
    kd = cls = bat = 0.0

    def kl(s, t, temperature, b):
        ps, pt = softmax(s, temperature)[b], softmax(t, temperature)[b]
        return temperature**2 * sum(pt[k] * np.log(pt[k] / ps[k]) for k in range(classes)) / count

    for temperature in (tau, 3, 5, 2, 6):
        masked = [(float(unsure[b]) if form == "intended" else unsure.mean()) for b in range(count)]
        kd += sum(masked[b] * kl(weak_s, weak_t, temperature, b) for b in range(count))
        swap = form == "released" and temperature in (2, 6)
        second = (weak_s, weak_t) if swap else (strong_s, strong_t)
        kd += sum(kl(*second, temperature, b) for b in range(count))
        for s, t, is_weak in ((weak_s, weak_t, True), (strong_s, strong_t, False)):
            if form == "released" and not is_weak:
                continue
            ps, pt = softmax(s, temperature), softmax(t, temperature)
            for i in range(classes):
                share = 1.0 if not is_weak else float(rare[i]) if form == "intended" else rare.mean()
                cls += share * sum((pt[:, i] @ pt[:, j] - ps[:, i] @ ps[:, j]) ** 2 for j in range(classes)) / classes
            for i in range(count):
                share = 1.0 if not is_weak else masked[i]
                bat += share * sum((pt[i] @ pt[j] - ps[i] @ ps[j]) ** 2 for j in range(count)) / count
    return {"kd": kd, "cls": cls, "bat": bat}


@pytest.mark.parametrize("form", ["released", "intended"])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_losses_agree_with_loops(form, count):
    torch.manual_seed(count)
    logits = 2 * torch.randn(4, count, 3, dtype=torch.float64)
    found = mlkd_losses(*logits, tau=1.5, form=form)
    expected = naive(*logits.numpy(), 1.5, form)
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(expected)


def test_the_median_is_the_mean_of_the_middle_two():
    assert not_above_median(torch.tensor([1.0, 4.0, 2.0, 3.0])).tolist() == [1, 0, 1, 0]
    assert not_above_median(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 1, 0]


@pytest.mark.parametrize("form", ["released", "intended"])
def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher(form):
    torch.manual_seed(0)
    weak_t, strong_t = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_()
    weak_s, strong_s = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def total(weak_s, strong_s):
        return sum(mlkd_losses(weak_s, weak_t, strong_s, strong_t, tau=4.0, form=form).values())

    assert torch.autograd.gradcheck(total, (weak_s, strong_s))
    assert torch.autograd.grad(total(weak_s, strong_s), weak_t, allow_unused=True) == (None,)


def test_inner_products_are_in_single_precision_under_autocast():
    torch.manual_seed(0)
    logits = torch.randn(4, 8, 5)
    expected = mlkd_losses(*logits, tau=4.0, form="released")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(mlkd_losses(*logits, tau=4.0, form="released"), expected)


def test_both_nets_see_a_strong_view_of_the_batch_which_is_drawn_once():
    torch.manual_seed(1)
    student, teacher = TapModel(ZOO["resnet18_mini"], 3).eval(), Teacher(ZOO["swin_t_mini"], 3)
    distiller = Distiller(student, teacher, "mlkd").eval()
    x = torch.rand(2, 3, 32, 32)
    seen = {"student": [], "teacher": []}
    for who, net in (("student", student.net), ("teacher", distiller.teachers["teacher"].net)):
        first = next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
        first.register_forward_pre_hook(lambda _, args, who=who: seen[who].append(args[0]))
    torch.manual_seed(5)
    losses = distiller(x, torch.tensor([0, 1]))
    assert [len(images) for images in seen.values()] == [2, 2]
    assert all(not torch.equal(*images) for images in seen.values())
    torch.manual_seed(5)
    assert all(torch.equal(loss, losses[name]) for name, loss in distiller(x, torch.tensor([0, 1])).items())
    method = distiller.step.method
    torch.manual_seed(5)
    strong = method.second_view(Batch(x=x, y=torch.tensor([0, 1]), index=torch.arange(2)))
    logits = [net(images).logits for images in (x, strong) for net in (student, teacher)]
    expected = mlkd_losses(*logits, tau=4.0, form="released")
    torch.testing.assert_close(losses["kd"], 0.9 * expected["kd"])
    torch.testing.assert_close(
        losses["task"], 0.1 * sum(F.cross_entropy(z, torch.tensor([0, 1])) for z in (logits[0], logits[2]))
    )


def test_one_view_draws_nothing_and_a_view_that_changes_nothing_is_worth_as_much():
    torch.manual_seed(1)
    student, teacher = TapModel(ZOO["resnet18_mini"], 3), Teacher(ZOO["swin_t_mini"], 3)
    x, y = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    state = torch.get_rng_state()
    one = Distiller(copy.deepcopy(student), teacher, "mlkd", views=1).eval()(x, y)
    assert torch.equal(state, torch.get_rng_state())
    same = {"crop": (1.0, 1.0), "jitter": 0.0, "colour": 0.0}
    two = Distiller(student, teacher, "mlkd", **same).eval()(x, y)
    torch.testing.assert_close(one, two)


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(Refused, match="'mlkd' compares logits, but the teacher has 7 classes and the data 3"):
        method_of(classes=7)
    with pytest.raises(UserError, match="views"):
        MLKDConfig(views=3)
