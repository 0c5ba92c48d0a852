"""DIST: correlations of probabilities."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import pearsonr

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.dist import DIST, DISTConfig, dist_losses
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

S, T = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0], [0.0, 2.0, 0.0]])


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, classes=3):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=classes, pooled=4, final=(4, 2, 2), stages={})


def run(logits_s, logits_t, classes=3, **options):
    method = DIST(DISTConfig(**options), Side(classes).info, {"teacher": Side()}, F.cross_entropy)
    count = len(logits_s)
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 3), 1 / 3), index=torch.arange(count))
    pair = [
        Taps(logits=logits, pooled=torch.zeros(count, 4), final=torch.zeros(count, 4, 2, 2))
        for logits in (logits_s, logits_t)
    ]
    return method(batch, pair[0], {"teacher": pair[1]})


def test_both_relations_have_their_hand_values():
    losses = run(S, T)
    assert list(losses) == ["task", "inter", "intra"]
    assert losses["inter"].item() == pytest.approx(0.75, abs=1e-6)
    assert losses["intra"].item() == pytest.approx(1.333333, abs=1e-6)
    assert (losses["inter"] + losses["intra"]).item() == pytest.approx(2.083333, abs=1e-6)


def test_each_relation_has_its_weight():
    losses = run(S, T, beta=2.0, gamma=3.0, w_task=0.0)
    assert [loss.item() for loss in losses.values()] == pytest.approx([0, 1.5, 4], abs=1e-5)


@given(seed=st.integers(0, 10**6), tau=st.floats(0.5, 8))
def test_logits_that_agree_up_to_a_constant_per_sample_are_at_no_distance(seed, tau):
    torch.manual_seed(seed)
    logits = torch.randn(4, 5, dtype=torch.float64)
    found = dist_losses(logits + 10 * torch.randn(4, 1), logits, tau=tau, eps=1e-12)
    assert [value.item() for value in found] == pytest.approx([0, 0], abs=1e-5)


def test_the_losses_agree_with_correlations_by_scipy():
    rng = np.random.default_rng(0)
    logits_s, logits_t, tau = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), 2.0
    p_s, p_t = softmax(logits_s / tau, axis=1), softmax(logits_t / tau, axis=1)
    inter = tau**2 * (1 - np.mean([pearsonr(a, b).statistic for a, b in zip(p_s, p_t, strict=True)]))
    intra = tau**2 * (1 - np.mean([pearsonr(a, b).statistic for a, b in zip(p_s.T, p_t.T, strict=True)]))
    found = dist_losses(torch.tensor(logits_s), torch.tensor(logits_t), tau=tau)
    assert [value.item() for value in found] == pytest.approx([inter, intra], abs=1e-5)


def test_gradients_agree_with_finite_differences_and_spare_the_teacher():
    torch.manual_seed(0)
    logits_s, logits_t = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda s: dist_losses(s, logits_t, tau=2.0), logits_s)
    sum(dist_losses(logits_s, logits_t, tau=2.0)).backward()
    assert logits_t.grad is None


@pytest.mark.parametrize(
    "logits_s",
    [
        pytest.param(torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]]), id="extreme"),
        pytest.param(torch.zeros(2, 3), id="uniform"),
        pytest.param(torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1), id="equal samples"),
    ],
)
def test_extremes_are_finite(logits_s):
    logits_s = logits_s.clone().requires_grad_()
    loss = sum(dist_losses(logits_s, T, tau=1.0))
    loss.backward()
    assert loss.isfinite()
    assert logits_s.grad.isfinite().all()


def test_a_larger_eps_bounds_the_gradient_of_a_classifier_that_starts_at_zero():
    slopes = []
    for eps in (1e-8, 1e-3):
        logits_s = torch.zeros(2, 3, requires_grad=True)
        dist_losses(logits_s, T, tau=1.0, eps=eps)[0].backward()
        slopes.append(logits_s.grad.abs().max().item())
    assert slopes[0] > 1e6
    assert slopes[1] < 1e3


def test_a_batch_of_one_is_refused_unless_samples_are_not_related():
    with pytest.raises(UserError, match="'dist' compares samples"):
        run(S[:1], T[:1])
    assert run(S[:1], T[:1], gamma=0.0)["inter"].item() == pytest.approx(1.5, abs=1e-6)


def test_other_classes_are_refused():
    with pytest.raises(Refused, match="teacher has 3 classes and the data 7"):
        run(S, T, classes=7)
