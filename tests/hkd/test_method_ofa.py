"""OFA: enhanced targets on every stage's own logits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.ofa import OFA, OFAConfig, ofa_loss
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

S, T, Y = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([0])
INFO = TapInfo(
    classes=3, pooled=12, final=(12, 2, 2), stages={1: (6, 8, 8), 2: (6, 8, 8), 3: (10, 4, 4), 4: (12, 2, 2)}
)


class Stub(Teacher):
    """A teacher of given shapes without weights."""

    def __init__(self, classes: int = 3, pooled: int = 7) -> None:
        nn.Module.__init__(self)
        self.info = TapInfo(classes=classes, pooled=pooled, final=(pooled, 1, 1), stages={})


def loss(logits_s=S, logits_t=T, y=Y, eps: float = 1.0, tau: float = 1.0, form="code") -> torch.Tensor:
    eps = torch.tensor([eps], dtype=logits_s.dtype)
    return ofa_loss(logits_s[:, None], logits_t, y, eps, tau=tau, form=form)


def taps_s(batch: int = 4, scale: float = 1.0) -> Taps:
    torch.manual_seed(0)
    maps = {stage: scale * torch.randn(batch, *shape) for stage, shape in INFO.stages.items()}
    return Taps(logits=scale * torch.randn(batch, 3), pooled=maps[4].mean((2, 3)), final=maps[4], stages=maps)


def taps_t(batch: int = 4, scale: float = 1.0) -> dict[str, Taps]:
    torch.manual_seed(1)
    return {
        "teacher": Taps(
            logits=scale * torch.randn(batch, 3), pooled=torch.randn(batch, 7), final=torch.randn(batch, 7, 1, 1)
        )
    }


def batch(y: torch.Tensor) -> Batch:
    return Batch(x=torch.zeros(len(y), 3, 8, 8), y=y, index=torch.arange(len(y)))


def method(**options) -> OFA:
    torch.manual_seed(2)
    return OFA(OFAConfig(**options), INFO, {"teacher": Stub()}, F.cross_entropy)


@pytest.mark.parametrize(("eps", "value"), [(1.0, 2.148988), (1.1, 2.103866), (1.5, 1.980359)])
def test_the_codes_form_has_its_hand_values(eps, value):
    assert loss(eps=eps).item() == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize(("eps", "value"), [(1.0, 2.388533), (1.1, 2.389644), (1.5, 2.394138)])
def test_the_papers_form_has_its_hand_values_with_the_task_loss(eps, value):
    assert (loss(eps=eps, form="paper") + F.cross_entropy(S, Y)).item() == pytest.approx(value, abs=2e-6)


@given(seed=st.integers(0, 10**6), tau=st.floats(0.5, 8))
def test_at_eps_1_both_forms_are_plain_soft_cross_entropy(seed, tau):
    generator = torch.Generator().manual_seed(seed)
    logits_s, logits_t = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    y = torch.tensor([0, 4, 2])
    expected = F.cross_entropy(logits_s / tau, (logits_t / tau).softmax(1)).item()
    for form in ("code", "paper"):
        assert loss(logits_s, logits_t, y, tau=tau, form=form).item() == pytest.approx(expected)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_loss_agrees_with_a_loop_over_branches_and_classes(form):
    rng = np.random.default_rng(0)
    logits_s, logits_t, y, eps, tau = (
        rng.normal(size=(4, 3, 5)),
        rng.normal(size=(4, 5)),
        [0, 4, 2, 1],
        [0.7, 1, 1.5],
        2.0,
    )
    expected = 0.0
    for b in range(4):
        p_t = np.exp(logits_t[b] / tau) / np.exp(logits_t[b] / tau).sum()
        for i in range(3):
            p_s = np.exp(logits_s[b, i] / tau) / np.exp(logits_s[b, i] / tau).sum()
            for k in range(5):
                hot = float(k == y[b])
                weight = p_t[k] if form == "paper" and not hot else (p_t[k] + hot) ** eps[i] - hot
                expected -= weight * math.log(p_s[k]) / 4
    ours = ofa_loss(
        torch.tensor(logits_s), torch.tensor(logits_t), torch.tensor(y), torch.tensor(eps).double(), tau=tau, form=form
    )
    assert ours.item() == pytest.approx(expected)


@pytest.mark.parametrize("form", ["code", "paper"])
def test_the_gradient_agrees_with_finite_differences_and_spares_the_teacher(form):
    torch.manual_seed(0)
    logits_s = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    logits_t = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 3])
    assert torch.autograd.gradcheck(lambda s: loss(s, logits_t, y, eps=1.3, form=form), logits_s)
    loss(logits_s, logits_t, y).backward()
    assert logits_t.grad is None


@pytest.mark.parametrize("form", ["code", "paper"])
def test_extreme_logits_are_finite(form):
    logits_s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    value = loss(logits_s, logits_s.detach().flip(1), torch.tensor([0, 1]), eps=0.5, form=form)
    value.backward()
    assert value.isfinite()
    assert logits_s.grad.isfinite().all()


def test_soft_targets_count_by_their_largest_class():
    soft = torch.tensor([[0.2, 0.5, 0.3]])
    assert torch.equal(loss(y=soft, eps=1.5), loss(y=torch.tensor([1]), eps=1.5))
    losses = method()(batch(torch.full((4, 3), 1 / 3)), taps_s(), taps_t())
    assert all(value.isfinite() for value in losses.values())


def test_terms_are_the_sum_over_stages_and_the_same_loss_on_the_final_logits():
    features, teacher, y = taps_s(), taps_t(), torch.tensor([0, 1, 2, 0])
    ours = method(eps=(1.0, 1.1, 1.2, 1.3), eps_logits=1.4, w_task=0.5, w_ofa=2.0, w_kd=3.0)
    losses = ours(batch(y), features, teacher)
    logits_t = teacher["teacher"].logits
    vectors = ours.projectors(features)  # batch statistics again, as in training
    branches = [head(vector) for head, vector in zip(ours.classifiers, vectors, strict=True)]
    expected = sum(loss(z, logits_t, y, eps) for z, eps in zip(branches, (1.0, 1.1, 1.2, 1.3), strict=True))
    assert list(losses) == ["task", "ofa", "kd"]
    torch.testing.assert_close(losses["task"], 0.5 * F.cross_entropy(features.logits, y))
    torch.testing.assert_close(losses["ofa"], 2 * expected)
    torch.testing.assert_close(losses["kd"], 3 * loss(features.logits, logits_t, y, 1.4))


def test_terms_of_weight_zero_are_left_out_with_their_parameters():
    only_logits = method(w_ofa=0.0)
    assert not list(only_logits.parameters())
    assert list(only_logits(batch(torch.zeros(4, dtype=torch.long)), taps_s(), taps_t())) == ["task", "kd"]
    nothing = OFAConfig(stages=(), w_kd=0.0)
    assert not OFA.needs(nothing).teachers
    assert list(OFA(nothing, INFO, {}, F.cross_entropy)(batch(torch.zeros(4, dtype=torch.long)), taps_s(), {})) == [
        "task"
    ]


def test_only_the_stages_asked_for_are_needed_and_built():
    assert OFA.needs(OFAConfig(stages=[4, 2])).student.stages == (2, 4)
    assert list(method(stages=(4, 2)).projectors.projectors) == ["4", "2"]


def test_extreme_features_stay_finite():
    losses = method(eps=(1.5,))(batch(torch.tensor([0, 1, 2, 0])), taps_s(scale=1e4), taps_t(scale=1e4))
    sum(losses.values())
    assert all(value.isfinite() for value in losses.values())


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(Refused, match=r"Method 'ofa' compares logits, but the teacher has 10 classes and the data 3\."):
        OFA(OFAConfig(), INFO, {"teacher": Stub(classes=10)}, F.cross_entropy)
