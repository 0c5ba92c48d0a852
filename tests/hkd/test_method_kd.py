"""Supervised training and logit distillation."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.methods.kd import KD, KDConfig, kd_loss
from hkd.methods.supervised import Supervised
from hkd.models.taps import TapInfo, Taps
from hkd.options import NoOptions

INFO = TapInfo(classes=3, pooled=4, final=(4, 2, 2), stages={})
S, T = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]])


def taps(logits: torch.Tensor) -> Taps:
    return Taps(logits=logits, pooled=torch.zeros(len(logits), 4), final=torch.zeros(len(logits), 4, 2, 2))


def batch(y: torch.Tensor) -> Batch:
    return Batch(x=torch.zeros(len(y), 3, 8, 8), y=y, index=torch.arange(len(y)))


@pytest.mark.parametrize(("tau", "value"), [(1.0, 1.782394), (4.0, 2.295382)])
def test_kd_loss_has_its_hand_value(tau, value):
    assert kd_loss(S, T, tau=tau).item() == pytest.approx(value, abs=2e-6)


def test_kd_loss_averages_over_the_batch():
    logits_s, logits_t = torch.cat([S, T]), torch.cat([T, T])  # the second pair agrees
    assert kd_loss(logits_s, logits_t, tau=1.0).item() == pytest.approx(1.782394 / 2, abs=2e-6)


def test_kd_loss_agrees_with_a_loop_over_classes():
    rng = np.random.default_rng(0)
    logits_s, logits_t, tau = rng.normal(size=(5, 7)), rng.normal(size=(5, 7)), 2.5
    expected = 0.0
    for row_s, row_t in zip(logits_s / tau, logits_t / tau, strict=True):
        p_s, p_t = np.exp(row_s) / np.exp(row_s).sum(), np.exp(row_t) / np.exp(row_t).sum()
        expected += tau**2 / 5 * sum(t * math.log(t / s) for s, t in zip(p_s, p_t, strict=True))
    assert kd_loss(torch.tensor(logits_s), torch.tensor(logits_t), tau=tau).item() == pytest.approx(expected)


@given(shift=st.floats(-50, 50), tau=st.floats(0.5, 8))
def test_kd_loss_is_zero_for_logits_that_agree_up_to_a_constant(shift, tau):
    logits = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    assert kd_loss(logits + shift, logits, tau=tau).item() == pytest.approx(0, abs=1e-9)


def test_kd_gradient_agrees_with_finite_differences_and_spares_the_teacher():
    torch.manual_seed(0)
    logits_s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    logits_t = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, logits_t, tau=3.0), logits_s)
    kd_loss(logits_s, logits_t, tau=3.0).backward()
    assert logits_t.grad is None


def test_kd_is_finite_for_extreme_logits():
    logits_s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = kd_loss(logits_s, logits_s.detach().flip(1), tau=1.0)
    loss.backward()
    assert loss.isfinite()
    assert logits_s.grad.isfinite().all()


def test_kd_returns_both_terms_with_their_weights():
    method = KD(KDConfig(tau=4.0, w_task=0.1, w_kd=0.9), INFO, {}, F.cross_entropy)
    losses = method(batch(torch.tensor([0])), taps(S), {"teacher": taps(T)})
    assert list(losses) == ["task", "kd"]
    assert losses["task"].item() == pytest.approx(0.1 * 0.239545, abs=1e-6)
    assert losses["kd"].item() == pytest.approx(0.9 * 2.295382, abs=1e-6)


def test_kd_takes_soft_targets():
    losses = KD(KDConfig(), INFO, {}, F.cross_entropy)(
        batch(torch.tensor([[0.5, 0.5, 0.0]])), taps(S), {"teacher": taps(T)}
    )
    assert losses["task"].item() == pytest.approx(1.239545, abs=1e-6)


def test_supervised_is_exactly_the_criterion():
    torch.manual_seed(0)
    logits, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = Supervised(NoOptions(), INFO, {}, F.cross_entropy)(batch(y), taps(logits), {})
    assert list(losses) == ["task"]
    assert torch.equal(losses["task"], F.cross_entropy(logits, y))


def test_supervised_needs_no_teacher_and_kd_one():
    assert not Supervised.needs(NoOptions()).teachers
    assert list(KD.needs(KDConfig()).teachers) == ["teacher"]
