"""Logit standardisation: values by hand, what cancels, constant logits, and both base methods."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.dkd import dkd_losses
from hkd.methods.kd import kd_loss
from hkd.methods.lskd import LSKD, LSKDConfig, standardised
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

S, T = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64)


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, classes):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=classes, pooled=4, final=(4, 1, 1), stages={})


def build(classes_s=3, classes_t=3, **options) -> LSKD:
    return LSKD(LSKDConfig(**options), Side(classes_s).info, {"teacher": Side(classes_t)}, F.cross_entropy)


def run(method, logits_s, logits_t, y=None):
    count = len(logits_s)
    taps_s, taps_t = (
        Taps(logits=logits, pooled=torch.zeros(count, 4), final=torch.zeros(count, 4, 1, 1))
        for logits in (logits_s, logits_t)
    )
    y = torch.zeros(count, dtype=torch.long) if y is None else y
    return method(Batch(x=torch.zeros(count, 3, 8, 8), y=y, index=torch.arange(count)), taps_s, {"teacher": taps_t})


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_standardised_logits_have_their_hand_value():
    assert standardised(S)[0].tolist() == pytest.approx([1.154700, -0.577350, -0.577350], abs=1e-6)


@pytest.mark.parametrize(("tau", "value"), [(2.0, 1.090043), (4.0, 1.059987)])
def test_the_loss_has_its_hand_values(tau, value):
    assert run(build(weight=1.0, tau=tau), S, T)["kd"].item() == pytest.approx(value, abs=1e-6)
    assert kd_loss(S, T, tau=2.0).item() == pytest.approx(2.261362, abs=1e-6)  # without standardising


def test_the_task_sees_the_logits_as_they_are_and_weights_follow_the_base():
    losses = run(build(), S, T)
    assert list(losses) == ["task", "kd"]
    assert losses["task"].item() == pytest.approx(0.1 * 0.239545, abs=1e-6)
    assert losses["kd"].item() == pytest.approx(9 * 1.090043, abs=1e-5)
    losses = run(build(base="dkd", alpha=0.5), S, T)
    assert list(losses) == ["task", "tckd", "nckd"]
    assert losses["task"].item() == pytest.approx(0.239545, abs=1e-6)
    tckd, nckd = dkd_losses(standardised(S), standardised(T), torch.tensor([0]), tau=2.0)
    assert [losses["tckd"].item(), losses["nckd"].item()] == pytest.approx([4.5 * tckd.item(), 18 * nckd.item()])
    assert run(build(w_task=0.3), S, T)["task"].item() == pytest.approx(0.3 * 0.239545, abs=1e-6)


@settings(max_examples=15)
@given(scale=st.floats(0.1, 50), shift=st.floats(-10, 10))
def test_scale_and_shift_of_a_sample_cancel(scale, shift):
    logits = random(2, 5)
    scaled = torch.cat([scale * logits[:1] + shift, logits[1:]])
    assert run(build(5, 5), scaled, logits)["kd"].item() == pytest.approx(0, abs=1e-9)


def test_the_loss_agrees_with_a_loop_in_numpy():
    logits_s, logits_t = random(4, 6).numpy(), random(4, 6, seed=1).numpy()
    expected = 0.0
    for s, t in zip(logits_s, logits_t, strict=True):
        p_s, p_t = (np.exp((z - z.mean()) / (z.std(ddof=1) + 1e-7) / 3) for z in (s, t))
        p_s, p_t = p_s / p_s.sum(), p_t / p_t.sum()
        expected += 9 / 4 * (p_t * np.log(p_t / p_s)).sum()
    method = build(6, 6, tau=3.0, weight=1.0)
    assert run(method, torch.tensor(logits_s), torch.tensor(logits_t))["kd"].item() == pytest.approx(expected)


def test_gradients_flow_through_mean_and_deviation_and_spare_the_teacher():
    logits_s, logits_t = random(2, 4).requires_grad_(), random(2, 4, seed=1).requires_grad_()
    method = build(4, 4, weight=1.0)
    assert torch.autograd.gradcheck(lambda s: run(method, s, logits_t)["kd"], logits_s)
    run(method, logits_s, logits_t)["kd"].backward()
    assert logits_t.grad is None
    # What is invariant to scale and shift has no gradient along either.
    assert logits_s.grad.sum(dim=1).abs().max() < 1e-9
    assert (logits_s.grad * logits_s.detach()).sum(dim=1).abs().max() < 1e-5


def test_constant_logits_are_finite_and_a_floor_tames_their_gradient():
    sizes = {}
    for floor in (0.0, 0.1):
        logits_s = torch.zeros(4, 5, requires_grad=True)
        loss = run(build(5, 5, std_floor=floor), logits_s, random(4, 5).float())["kd"]
        loss.backward()
        assert loss.isfinite()
        assert logits_s.grad.isfinite().all()
        sizes[floor] = logits_s.grad.abs().max().item()
    assert sizes[0.0] > 1e5
    assert sizes[0.1] == pytest.approx(1e-6 * sizes[0.0], rel=1e-3)


def test_a_floor_below_the_deviation_changes_nothing():
    logits_s, logits_t = random(3, 5), random(3, 5, seed=1)
    plain, floored = (run(build(5, 5, std_floor=floor), logits_s, logits_t)["kd"].item() for floor in (0.0, 0.1))
    assert plain == floored


def test_soft_targets_and_half_precision_are_served():
    y = torch.full((1, 3), 1 / 3)
    half = run(build(base="dkd"), S.bfloat16(), T.bfloat16(), y)
    assert half["tckd"].dtype == half["nckd"].dtype == torch.float32


def test_the_students_deviation_is_recorded_while_training():
    method = build().train()
    run(method, S, T)
    assert method.diagnostics() == pytest.approx({"logit_std": 4 / 12**0.5})
    assert method.diagnostics() == {}


def test_two_classes_or_other_classes_are_refused():
    with pytest.raises(Refused, match="agree below 3 classes, and the data has 2"):
        build(2, 2)
    with pytest.raises(Refused, match="the teacher has 4 classes"):
        build(3, 4)
