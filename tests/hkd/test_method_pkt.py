"""Probabilistic knowledge transfer: values by hand, a form with loops, what cancels, and rows of zeros."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.methods.pkt import PKT, PKTConfig, neighbourhoods, pkt_loss
from hkd.models.taps import TapInfo, Taps

F_S, F_T = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2)


def run(features_s, features_t, **options):
    count = len(features_s)
    taps_s, taps_t = (
        Taps(logits=torch.zeros(count, 2), pooled=features, final=torch.zeros(count, 4, 1, 1))
        for features in (features_s, features_t)
    )
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 2), 0.5), index=torch.arange(count))
    info = TapInfo(classes=2, pooled=2, final=(4, 1, 1), stages={})
    return PKT(PKTConfig(**options), info, {}, F.cross_entropy)(batch, taps_s, {"teacher": taps_t})


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_loss_has_its_hand_values():
    assert pkt_loss(F_S.double(), F_T.double()).item() == pytest.approx(0.016686, abs=1e-6)
    f_s = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    f_t = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert pkt_loss(f_s, f_t).item() == pytest.approx(0.346573, abs=1e-6)
    losses = run(F_S, F_T, weight=2.0, w_task=0.5)
    assert list(losses) == ["task", "pkt"]
    assert losses["pkt"].item() == pytest.approx(2 * 0.016686, abs=2e-6)
    assert losses["task"].item() == pytest.approx(0.5 * math.log(2))


@settings(max_examples=15)
@given(first=st.floats(0.1, 100), second=st.floats(0.1, 100), angle=st.floats(-3, 3))
def test_a_factor_per_sample_and_a_rotation_cancel(first, second, angle):
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    scaled = F_S.double() * torch.tensor([[first], [second]]) @ turn.double()
    assert pkt_loss(scaled, F_S.double()).item() == pytest.approx(0, abs=1e-6)


def test_the_loss_agrees_with_loops_over_samples():
    f_s, f_t, e = random(5, 3), random(5, 4, seed=1), 1e-7
    expected = 0.0
    for i in range(5):
        rows = []
        for f in (f_s, f_t):
            unit = [f[j] / (f[j].norm() + e) for j in range(5)]
            row = [((unit[i] @ unit[j] + 1) / 2).item() for j in range(5)]
            rows.append([k / sum(row) for k in row])
        expected += sum(t * math.log((t + e) / (s + e)) for s, t in zip(*rows, strict=True)) / 25
    assert pkt_loss(f_s, f_t).item() == pytest.approx(expected)


def test_every_row_is_a_distribution_that_counts_the_sample_itself():
    q = neighbourhoods(random(6, 3))
    torch.testing.assert_close(q.sum(dim=1), torch.ones(6, dtype=torch.float64))
    assert (q.diagonal()[:, None] >= q - 1e-9).all()


def test_a_batch_of_twice_the_samples_counts_half():
    f_s, f_t = random(4, 3), random(4, 3, seed=1)
    once, twice = pkt_loss(f_s, f_t), pkt_loss(f_s.repeat(2, 1), f_t.repeat(2, 1))
    assert twice.item() == pytest.approx(once.item() / 2, rel=1e-4)


def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher():
    f_s, f_t = random(4, 3).requires_grad_(), random(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: pkt_loss(f, f_t), f_s)
    pkt_loss(f_s, f_t).backward()
    assert f_t.grad is None


def test_a_feature_of_zeros_gets_no_gradient_and_spoils_no_other():
    f_s = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    loss = pkt_loss(f_s, torch.eye(3))
    loss.backward()
    assert loss.isfinite()
    assert f_s.grad[0].tolist() == [0, 0]
    assert f_s.grad.isfinite().all()
    assert f_s.grad[2].abs().sum() > 0


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_opposite_features_of_any_size_are_finite(size):
    f_s = (size * torch.randn(1, 2048, generator=torch.Generator().manual_seed(0))).repeat(4, 1)
    f_s = (f_s * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])).requires_grad_()
    loss = pkt_loss(f_s, torch.eye(4))
    loss.backward()
    assert loss.isfinite()
    assert f_s.grad.isfinite().all()


def test_autocast_does_not_round_the_products():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(F_S, F_T)["pkt"]
    assert half.dtype == torch.float32
    assert half.item() == run(F_S, F_T)["pkt"].item()


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match="'pkt' compares samples"):
        run(torch.randn(1, 2), torch.randn(1, 2))
