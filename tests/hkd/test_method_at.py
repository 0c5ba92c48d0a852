"""Attention transfer: values by hand, a form with loops, what cancels, and refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.errors import Refused
from hkd.methods.at import AT, ATConfig, at_loss, top_share
from hkd.options import OptionError
from tests.hkd.sides import method_of, run

EYE, ONES = [[[1.0, 0.0], [0.0, 1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]
TOP = [[[2.0, 1.0], [0.0, 0.0]]]


def build(shapes_s, shapes_t, **options) -> AT:
    return method_of(AT, ATConfig(**options), shapes_s, shapes_t)


def map_of(channels) -> torch.Tensor:
    return torch.tensor([channels], dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("s", "t", "p", "value"),
    [
        (EYE, ONES, 2, 0.146447),
        (EYE, [[[0.0, 0.0], [0.0, 0.0]]], 2, 0.25),
        ([[[1.0, 2.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]], TOP, 2, 0.257464),
        (TOP, ONES, 4, 0.234892),
    ],
    ids=["diagonal", "zeros", "channels", "fourth power"],
)
def test_the_loss_has_its_hand_values(s, t, p, value):
    assert at_loss(map_of(s), map_of(t), p=p).item() == pytest.approx(value, abs=1e-6)
    assert at_loss(map_of(s), map_of(t), p=p, reduce="sum").item() == pytest.approx(4 * value, abs=4e-6)


@settings(max_examples=15)
@given(scale=st.floats(0.1, 100), p=st.sampled_from([2, 4]))
def test_scale_signs_and_copies_of_channels_cancel(scale, p):
    s = random(2, 3, 2, 2)
    for t in (scale * s, -s, torch.cat([s, s], dim=1), s.flip(1)):
        assert at_loss(s, t, p=p).item() == pytest.approx(0, abs=1e-12)


def test_a_stage_agrees_with_loops_over_positions_pooled_before_the_power():
    maps_s, maps_t = {2: random(2, 3, 4, 4).float()}, {2: random(2, 5, 2, 2, seed=1).float()}
    method = build({2: (3, 4, 4)}, {2: (5, 2, 2)}, stages=(2,), weight=10.0)
    expected = 0.0
    for b in range(2):
        a_s, a_t = np.zeros(4), np.zeros(4)
        for i in range(2):
            for j in range(2):
                coarse = maps_s[2][b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(1, 2))
                a_s[2 * i + j], a_t[2 * i + j] = (coarse**2).sum(), (maps_t[2][b, :, i, j] ** 2).sum()
        expected += ((a_s / np.linalg.norm(a_s) - a_t / np.linalg.norm(a_t)) ** 2).sum() / (2 * 4)
    losses = run(method, maps_s, maps_t)
    assert list(losses) == ["task", "at_s2"]
    assert losses["at_s2"].item() == pytest.approx(10 * expected, rel=1e-4)


@pytest.mark.parametrize(("reduce", "bound"), [("mean", 2 / 9), ("sum", 2.0)])
def test_the_loss_is_bounded_by_the_grid(reduce, bound):
    s, t = torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    s[:, :, 0, 0], t[:, :, 2, 2] = 5, 7
    assert at_loss(s, t, reduce=reduce).item() == pytest.approx(bound)


def test_after_a_layer_norm_without_scale_nothing_is_left_to_transfer():
    s = F.layer_norm(random(2, 9, 6), (6,), eps=0).mT.unflatten(2, (3, 3)).requires_grad_()
    t = torch.ones(2, 1, 3, 3, dtype=torch.float64)
    loss = at_loss(s, t)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert s.grad.abs().max() < 1e-9


def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher():
    s, t = random(2, 3, 2, 2).requires_grad_(), random(2, 4, 2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: at_loss(s, t), s)
    at_loss(s, t).backward()
    assert t.grad is None


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_constant_and_large_maps_are_finite(size):
    s = torch.full((1, 2, 2, 2), size, requires_grad=True)
    loss = at_loss(s, torch.full((1, 3, 2, 2), -size))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert s.grad.isfinite().all()


def test_squares_beyond_half_precision_are_finite_under_autocast():
    method = build({1: (2, 2, 2)}, {1: (2, 2, 2)}, stages=(1,))
    maps = {1: torch.tensor([[[[3e3, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]])}
    other = {1: torch.ones(1, 2, 2, 2)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(method, {1: maps[1].half()}, {1: other[1].half()})["at_s1"]
    assert half.dtype == torch.float32
    assert half.item() == run(method, maps, other)["at_s1"].item()


def test_the_largest_channels_share_of_the_teacher_is_recorded_while_training():
    alike, one = torch.ones(1, 4, 2, 2), torch.tensor([[[[3.0]], [[1.0]]]])
    assert top_share(alike).item() == pytest.approx(0.25)
    assert top_share(one).item() == pytest.approx(0.9)
    assert top_share(torch.zeros(1, 4, 2, 2)).item() == 0
    method = build({1: (2, 2, 2)}, {1: (4, 2, 2)}, stages=(1,)).train()
    run(method, {1: torch.ones(1, 2, 2, 2)}, {1: alike})
    assert method.diagnostics() == pytest.approx({"top_share_s1": 0.25})
    assert method.diagnostics() == {}
    run(method.eval(), {1: torch.ones(1, 2, 2, 2)}, {1: alike})
    assert method.diagnostics() == {}


def test_maps_that_meet_on_one_position_are_refused():
    with pytest.raises(Refused, match="at stage 4 the maps meet on a grid of 1x1"):
        build({3: (2, 2, 2), 4: (2, 1, 1)}, {3: (2, 2, 2), 4: (2, 7, 7)}, stages=(3, 4))


@pytest.mark.parametrize("p", [1, 3, 0, 2.5])
def test_a_power_that_sees_signs_is_refused(p):
    with pytest.raises(OptionError, match="p must"):
        ATConfig(p=p)
