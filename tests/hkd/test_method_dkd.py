"""Decoupled knowledge distillation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.dkd import DKD, DKDConfig, dkd_losses
from hkd.methods.kd import kd_loss
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

S, T = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]])
ZERO = torch.tensor([0])


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, classes=3):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=classes, pooled=4, final=(4, 2, 2), stages={})


def build(classes=3, classes_t=3, **options) -> DKD:
    return DKD(DKDConfig(**options), Side(classes).info, {"teacher": Side(classes_t)}, F.cross_entropy)


def taps(logits: torch.Tensor) -> Taps:
    return Taps(logits=logits, pooled=torch.zeros(len(logits), 4), final=torch.zeros(len(logits), 4, 2, 2))


def batch(y: torch.Tensor) -> Batch:
    return Batch(x=torch.zeros(len(y), 3, 8, 8), y=y, index=torch.arange(len(y)))


def test_both_parts_have_their_hand_values():
    tckd, nckd = dkd_losses(S, T, ZERO, tau=1.0)
    assert tckd.item() == pytest.approx(1.302854, abs=2e-6)
    assert nckd.item() == pytest.approx(0.502282, abs=2e-6)


@pytest.mark.parametrize(("tau", "beta", "value"), [(1.0, 2.0, 2.307419), (4.0, 8.0, 9.904502)])
def test_the_weighted_sum_has_its_hand_value(tau, beta, value):
    losses = build(tau=tau, beta=beta)(batch(ZERO), taps(S), {"teacher": taps(T)})
    assert list(losses) == ["task", "tckd", "nckd"]
    assert (losses["tckd"] + losses["nckd"]).item() == pytest.approx(value, abs=5e-6)
    assert losses["task"].item() == pytest.approx(0.239545, abs=1e-6)


@given(seed=st.integers(0, 10**6), tau=st.floats(0.5, 8))
def test_the_parts_add_up_to_the_divergence_they_were_taken_from(seed, tau):
    torch.manual_seed(seed)
    logits_s, logits_t = 3 * torch.randn(2, 1, 6, dtype=torch.float64)
    target = torch.randint(6, (1,))
    tckd, nckd = dkd_losses(logits_s, logits_t, target, tau=tau)
    p_target = (logits_t / tau).softmax(1)[0, target]
    assert (tckd + (1 - p_target) * nckd).item() == pytest.approx(kd_loss(logits_s, logits_t, tau=tau).item(), abs=1e-9)


def test_the_losses_agree_with_a_loop_over_classes():
    torch.manual_seed(0)
    logits_s, logits_t = torch.randn(2, 4, 5, dtype=torch.float64)
    target, tau = torch.tensor([0, 4, 2, 2]), 2.0
    tckd = nckd = 0.0
    for row_s, row_t, y in zip(logits_s.tolist(), logits_t.tolist(), target.tolist(), strict=True):
        e_s, e_t = ([math.exp(z / tau) for z in row] for row in (row_s, row_t))
        b_s, b_t = e_s[y] / sum(e_s), e_t[y] / sum(e_t)
        tckd += tau**2 / 4 * (b_t * math.log(b_t / b_s) + (1 - b_t) * math.log((1 - b_t) / (1 - b_s)))
        for k in set(range(5)) - {y}:
            q_s, q_t = e_s[k] / (sum(e_s) - e_s[y]), e_t[k] / (sum(e_t) - e_t[y])
            nckd += tau**2 / 4 * q_t * math.log(q_t / q_s)
    found = dkd_losses(logits_s, logits_t, target, tau=tau)
    assert [value.item() for value in found] == pytest.approx([tckd, nckd])


def test_gradients_agree_with_finite_differences_and_spare_the_teacher():
    torch.manual_seed(0)
    logits_s, logits_t = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda s: dkd_losses(s, logits_t, target, tau=3.0), logits_s)
    sum(dkd_losses(logits_s, logits_t, target, tau=3.0)).backward()
    assert logits_t.grad is None


@pytest.mark.parametrize("target", [0, 1, 2])
def test_extreme_logits_are_finite(target):
    logits_s = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = sum(dkd_losses(logits_s, logits_s.detach().flip(1), torch.tensor([target]), tau=1.0))
    loss.backward()
    assert loss.isfinite()
    assert logits_s.grad.isfinite().all()


def test_two_classes_have_no_others_to_compare():
    assert dkd_losses(S[:, :2], T[:, :2], ZERO, tau=1.0)[1].item() == 0


def test_half_precision_logits_are_compared_in_single_precision():
    assert dkd_losses(S.bfloat16(), T.bfloat16(), ZERO, tau=1.0)[0].dtype == torch.float32


def test_a_soft_target_counts_as_its_most_probable_class():
    soft = batch(torch.tensor([[0.6, 0.3, 0.1]]))
    losses = build()(soft, taps(S), {"teacher": taps(T)})
    assert losses["tckd"].item() == pytest.approx(1.302854, abs=2e-6)


@pytest.mark.parametrize(("classes", "sentence"), [(5, "teacher has 3 classes and the data 5")])
def test_other_classes_are_refused(classes, sentence):
    with pytest.raises(Refused, match=sentence):
        build(classes=classes)


def test_a_single_class_is_refused():
    with pytest.raises(Refused, match="at least 2 classes"):
        build(classes=1, classes_t=1)
