"""Correlation congruence, both forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.methods.cc import CC, CCConfig, delta_loss, rbf_loss, rbf_similarity
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

ROOT = math.sqrt(0.5)


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, pooled):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=2, pooled=pooled, final=(4, 1, 1), stages={})


def build(width_s=2, width_t=2, plain=False, **options) -> CC:
    """plain: embeddings that change nothing."""
    torch.manual_seed(0)
    method = CC(CCConfig(**options), Side(width_s).info, {"teacher": Side(width_t)}, F.cross_entropy)
    if plain:
        for embed in (method.embed_s, method.embed_t):
            embed.weight.data, embed.bias.data = torch.eye(2), torch.zeros(2)
    return method


def run(method, features_s, features_t):
    count = len(features_s)
    taps_s, taps_t = (
        Taps(logits=torch.zeros(count, 2), pooled=features, final=torch.zeros(count, 4, 1, 1))
        for features in (features_s, features_t)
    )
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 2), 0.5), index=torch.arange(count))
    return method(batch, taps_s, {"teacher": taps_t})


def test_delta_has_its_hand_value_whatever_the_sign():
    features_t = torch.tensor([[4.0, -1.0], [0.5, 2.0]])
    features_s = features_t + torch.tensor([[1.0, -2.0], [3.0, 1.0]])
    assert delta_loss(features_s, features_t).item() == pytest.approx(5)
    losses = run(build(plain=True, dim=2), features_s, features_t)
    assert list(losses) == ["task", "cc"]
    assert losses["cc"].item() == pytest.approx(0.1)


def test_rbf_has_its_hand_values():
    g_s, g_t = torch.tensor([[1.0, 0.0], [ROOT, ROOT]]), torch.eye(2)
    similarity = rbf_similarity(g_s, gamma=0.4)
    assert similarity[0].tolist() == pytest.approx([0.952577, 0.775400], abs=2e-6)
    assert rbf_similarity(g_t, gamma=0.4)[0, 1].item() == pytest.approx(0.449329, abs=2e-6)
    assert rbf_loss(g_s, g_t, gamma=0.4).item() == pytest.approx(0.053161, abs=2e-6)
    assert run(build(plain=True, dim=2, form="rbf"), g_s, g_t)["cc"].item() == pytest.approx(0.053161, abs=2e-6)


def test_rbf_sees_directions_only():
    torch.manual_seed(0)
    g = torch.randn(3, 4)
    assert rbf_loss(g, g * torch.tensor([[2.0], [0.1], [30.0]]), gamma=0.4).item() == pytest.approx(0, abs=1e-10)


def test_delta_agrees_with_a_loop():
    torch.manual_seed(0)
    g_s, g_t = torch.randn(2, 5, 3, dtype=torch.float64)
    expected = sum(
        abs(g_s[b, c] - g_t[b, c]) * abs(g_s[b + 1, c] - g_t[b + 1, c]) / 4 for b in range(4) for c in range(3)
    )
    assert delta_loss(g_s, g_t).item() == pytest.approx(expected.item())


def test_rbf_agrees_with_a_loop():
    torch.manual_seed(0)
    g_s, g_t = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            r = [
                math.exp(-2 * 0.3) * sum((2 * 0.3) ** p / math.factorial(p) * cosine**p for p in range(3))
                for cosine in (F.cosine_similarity(g[i], g[j], dim=0).item() for g in (g_s, g_t))
            ]
            expected += (r[0] - r[1]) ** 2 / 16
    assert rbf_loss(g_s, g_t, gamma=0.3).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [delta_loss, lambda s, t: rbf_loss(s, t, gamma=0.4)], ids=["delta", "rbf"])
def test_gradients_agree_with_finite_differences(loss):
    torch.manual_seed(0)
    g_s, g_t = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(loss, (g_s, g_t))


@pytest.mark.parametrize("form", ["delta", "rbf"])
def test_both_embeddings_learn_and_the_teacher_gets_no_gradient(form):
    torch.manual_seed(0)
    method = build(width_s=5, width_t=3, form=form)
    assert method.embed_s.weight.shape == (128, 5)
    assert method.embed_t.weight.shape == (128, 3)
    features_s, features_t = torch.randn(4, 5, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    run(method, features_s, features_t)["cc"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert features_s.grad.abs().sum() > 0
    assert features_t.grad is None


@pytest.mark.parametrize("form", ["delta", "rbf"])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_constant_features_are_finite(form, size):
    method = build(form=form)
    features = torch.full((3, 2), size, requires_grad=True)
    loss = run(method, features, -features.detach())["cc"]
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("form", ["delta", "rbf"])
def test_embeddings_of_length_zero_are_finite(form):
    g_s = torch.zeros(3, 2, requires_grad=True)
    loss = delta_loss(g_s, torch.zeros(3, 2)) if form == "delta" else rbf_loss(g_s, torch.zeros(3, 2), gamma=0.4)
    loss.backward()
    assert loss.item() == 0
    assert g_s.grad.isfinite().all()


@pytest.mark.parametrize("form", ["delta", "rbf"])
def test_a_batch_of_one_is_refused(form):
    with pytest.raises(UserError, match="'cc' compares samples"):
        run(build(form=form), torch.randn(1, 2), torch.randn(1, 2))


def test_the_weight_follows_the_form_unless_given():
    assert build().weight == 0.02
    assert build(form="rbf").weight == 1.0
    assert build(form="rbf", weight=0.5).weight == 0.5
