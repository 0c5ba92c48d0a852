"""Similarity preserving: values by hand, a form with loops, rotations, and refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.sp import SP, SPConfig, sp_loss
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps

F_S, F_T = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.eye(2)


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self, stages):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=2, pooled=4, final=(4, 1, 1), stages=stages)


def build(grid_s=(1, 1), grid_t=(1, 1), **options) -> SP:
    shapes = (dict.fromkeys((1, 2, 3, 4), (2, *grid)) for grid in (grid_s, grid_t))
    side_s, side_t = map(Side, shapes)
    return SP(SPConfig(**options), side_s.info, {"teacher": side_t}, F.cross_entropy)


def run(method, maps_s, maps_t, pooled_s=None, pooled_t=None):
    count = len(next(iter(maps_s.values())))
    zeros = torch.zeros(count, 4)
    taps_s, taps_t = (
        Taps(
            logits=torch.zeros(count, 2),
            pooled=zeros if pooled is None else pooled,
            final=torch.zeros(count, 4, 1, 1),
            stages=maps,
        )
        for maps, pooled in ((maps_s, pooled_s), (maps_t, pooled_t))
    )
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 2), 0.5), index=torch.arange(count))
    return method(batch, taps_s, {"teacher": taps_t})


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_loss_has_its_hand_values():
    assert sp_loss(F_S, F_T).item() == pytest.approx(0.199233, abs=1e-6)
    assert sp_loss(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), F_T).item() == pytest.approx(0.25)


@settings(max_examples=15)
@given(scale=st.floats(0.1, 100), angle=st.floats(-3, 3))
def test_a_rotation_and_one_factor_cancel(scale, angle):
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    f = random(4, 2)
    assert sp_loss(f, scale * f @ turn).item() == pytest.approx(0, abs=1e-12)


def test_a_factor_of_one_sample_does_not_cancel():
    f = random(4, 3)
    assert sp_loss(f, f * torch.tensor([[1.0], [1.0], [1.0], [5.0]])).item() > 1e-3


def test_maps_of_other_widths_and_grids_agree_with_loops_over_samples():
    map_s, map_t = random(3, 2, 4, 4), random(3, 5, 2, 2, seed=1)
    expected = 0.0
    for b in range(3):
        rows = []
        for map_ in (map_s, map_t):
            row = np.array([(map_[b] * map_[i]).sum().item() for i in range(3)])
            rows.append(row / np.linalg.norm(row))
        expected += ((rows[0] - rows[1]) ** 2).sum() / 9
    assert sp_loss(map_s, map_t).item() == pytest.approx(expected)
    method = build((4, 4), (2, 2), stages=(4, 2))
    losses = run(method, dict.fromkeys((4, 2), map_s), dict.fromkeys((4, 2), map_t))
    assert list(losses) == ["task", "sp_s4", "sp_s2"]
    assert losses["sp_s2"].item() == pytest.approx(3000 * expected)


def test_the_pooled_features_may_be_compared():
    method = build(tap="pooled", weight=2.0)
    needs = SP.needs(method.config)
    assert needs.student.stages == needs.teachers["teacher"].stages == ()
    losses = run(method, {4: torch.zeros(2, 2, 1, 1)}, {}, F.pad(F_S, (0, 2)), F.pad(F_T, (0, 2)))
    assert list(losses) == ["task", "sp"]
    assert losses["sp"].item() == pytest.approx(2 * 0.199233, abs=2e-6)


def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher():
    f_s, f_t = random(4, 3).requires_grad_(), random(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: sp_loss(f, f_t), f_s)
    sp_loss(f_s, f_t).backward()
    assert f_t.grad is None


@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_constant_and_large_features_are_finite(size):
    f_s = torch.full((3, 2), size, requires_grad=True)
    loss = sp_loss(f_s, torch.full((3, 2), -size))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert f_s.grad.isfinite().all()


def test_products_beyond_half_precision_are_finite_under_autocast():
    maps_s = {4: 600 * F_S[:, :, None, None]}  # whose products are beyond 65504
    maps_t = {4: F_T[:, :, None, None]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(build(), {4: maps_s[4].half()}, {4: maps_t[4].half()})["sp_s4"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(3000 * 0.199233, abs=3e-3)


def test_a_batch_of_one_and_a_map_without_positions_are_refused():
    with pytest.raises(UserError, match="'sp' compares samples"):
        run(build(), {4: torch.zeros(1, 2, 1, 1)}, {4: torch.zeros(1, 2, 1, 1)})
    with pytest.raises(Refused, match="stage 4, where the student's map is 0x0"):
        build((0, 0), (1, 1))
