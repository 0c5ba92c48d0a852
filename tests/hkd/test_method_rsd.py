"""Redundancy suppression: values by hand, a form with loops, and what the projector's norm hides."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.rsd import RSD, RSDConfig, rsd_loss, standardised
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

F_T = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, pooled, classes=2):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=classes, pooled=pooled, final=(4, 1, 1), stages={})


def build(width_s=5, width_t=3, classes_t=2, **options) -> RSD:
    torch.manual_seed(0)
    sides = Side(width_s).info, {"teacher": Side(width_t, classes_t)}
    return RSD(RSDConfig(**options), *sides, F.cross_entropy)


def run(method, features_s, features_t, logits_s=None, logits_t=None):
    count = len(features_s)
    zeros = torch.zeros(count, 2)
    taps_s, taps_t = (
        Taps(logits=zeros if logits is None else logits, pooled=features, final=torch.zeros(count, 4, 1, 1))
        for features, logits in ((features_s, logits_s), (features_t, logits_t))
    )
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 2), 0.5), index=torch.arange(count))
    return method(batch, taps_s, {"teacher": taps_t})


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("f_s", "value"),
    [
        (F_T.flip(1), 2.019999),
        (-F_T, 7.999774),
        (torch.ones(4, 2, dtype=torch.float64), 2.0),
        (F_T[:, :1].expand(4, 2), 1.009999),
    ],
    ids=["swapped", "negative", "constant", "copies"],
)
def test_the_loss_has_its_hand_values(f_s, value):
    assert rsd_loss(f_s, F_T, kappa=0.01).item() == pytest.approx(value, abs=1e-6)


def test_features_that_agree_up_to_scale_and_shift_cost_nothing():
    assert rsd_loss(F_T, F_T, kappa=0.01).item() < 1e-8
    assert rsd_loss(5 * F_T + 2, F_T, kappa=0.01).item() < 1e-8


@settings(max_examples=15)
@given(scale=st.floats(0.5, 100), shift=st.floats(-10, 10))
def test_scale_and_shift_of_a_channel_cancel(scale, shift):
    f_s, f_t = random(6, 4), random(6, 4, seed=1)
    changed = f_s * torch.tensor([scale, 1, 1, 1]) + torch.tensor([shift, 0, 0, 0])
    assert rsd_loss(changed, f_t, kappa=0.1).item() == pytest.approx(rsd_loss(f_s, f_t, kappa=0.1).item(), rel=1e-3)


def test_the_loss_agrees_with_loops_over_channels():
    f_s, f_t = random(7, 3), random(7, 3, seed=1)
    expected = 0.0
    for i in range(3):
        for j in range(3):
            a, b = f_t[:, i].numpy(), f_s[:, j].numpy()
            r = (((a - a.mean()) / (a.std() + 1e-5)) * ((b - b.mean()) / (b.std() + 1e-5))).mean()
            expected += (r - 1) ** 2 if i == j else 0.3 * r**2
    assert rsd_loss(f_s, f_t, kappa=0.3).item() == pytest.approx(expected)


def test_kappa_leaves_the_diagonal_alone():
    f_s, f_t = random(6, 4), random(6, 4, seed=1)
    own = sum(rsd_loss(f_s[:, i : i + 1], f_t[:, i : i + 1], kappa=9.0).item() for i in range(4))
    assert rsd_loss(f_s, f_t, kappa=0.0).item() == pytest.approx(own)


def test_channels_are_standardised_by_the_biased_deviation():
    found = standardised(random(5, 3))
    torch.testing.assert_close(found.square().mean(dim=0), torch.ones(3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher():
    f_s, f_t = random(5, 3).requires_grad_(), random(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: rsd_loss(f, f_t, kappa=0.01), f_s)
    rsd_loss(f_s, f_t, kappa=0.01).backward()
    assert f_t.grad is None


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_constant_features_are_finite(size):
    f_s = torch.full((3, 2), size, requires_grad=True)
    loss = rsd_loss(f_s, torch.full((3, 2), -size), kappa=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(2)
    assert f_s.grad.isfinite().all()


def test_the_projector_has_the_sources_shape_and_its_norm_hides_the_students_scale():
    method = build(width_s=512, width_t=768)
    assert sum(p.numel() for p in method.parameters()) == 512 * 1024 + 2 * 1024 + 1024 * 768  # 1.31 M
    method = build().train()
    f_s, f_t = torch.randn(8, 5), torch.randn(8, 3)
    losses = run(method, f_s, f_t)
    assert list(losses) == ["task", "rsd"]
    assert losses["rsd"].item() == pytest.approx(run(method, 1e3 * f_s, f_t)["rsd"].item(), rel=1e-2)
    losses["rsd"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_the_other_projectors():
    method = build(projector="linear")
    assert {name: tuple(p.shape) for name, p in method.named_parameters()} == {"projector.0.weight": (3, 5)}
    method = build(width_s=2, width_t=2, projector="none", weight=0.5, w_task=0.0)
    assert not list(method.parameters())
    assert run(method, F_T.flip(1), F_T)["rsd"].item() == pytest.approx(0.5 * 2.019999, abs=1e-6)
    with pytest.raises(Refused, match="the student has 5 and the teacher 3: set projector"):
        build(projector="none")


def test_logits_may_be_correlated_and_distilled_besides():
    method = build(tap="logits", projector="none", w_kd=2.0)
    losses = run(method, torch.zeros(4, 5), torch.zeros(4, 3), F_T.flip(1).float(), F_T.float())
    assert list(losses) == ["task", "rsd", "kd"]
    assert losses["rsd"].item() == pytest.approx(0.2019999, abs=1e-6)
    log_p_s, log_p_t = F_T.flip(1).log_softmax(1), F_T.log_softmax(1)
    expected = 2 * (log_p_t.exp() * (log_p_t - log_p_s)).sum(1).mean()
    assert losses["kd"].item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(Refused, match="7 classes"):
        build(w_kd=1.0, classes_t=7)


def test_autocast_does_not_round_the_correlations():
    f_s, f_t = torch.randn(8, 3), torch.randn(8, 3)
    method = build(width_s=3, projector="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(method, f_s, f_t)["rsd"]
    assert half.dtype == torch.float32
    assert half.item() == run(method, f_s, f_t)["rsd"].item()


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match="'rsd' compares samples"):
        run(build(), torch.randn(1, 5), torch.randn(1, 3))
