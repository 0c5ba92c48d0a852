"""Neuron selectivity transfer: values by hand, a form with loops over channels, the identity of both forms."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hkd.methods.nst as nst
from hkd.errors import Refused
from hkd.methods.nst import NST, NSTConfig, by_channels, by_positions, nst_loss
from tests.hkd.sides import method_of, run

EYE, OTHER = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]


def build(shapes_s, shapes_t, **options) -> NST:
    return method_of(NST, NSTConfig(**options), shapes_s, shapes_t)


def map_of(*channels) -> torch.Tensor:
    return torch.tensor([channels], dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(map_s, map_t):
    """As the source states it: the kernel of every pair of channels."""
    total = 0.0
    for s, t in zip(map_s.flatten(2), map_t.flatten(2), strict=True):
        x, y = ([c / max(c.norm().item(), 1e-12) for c in channels] for channels in (s, t))

        def mean(a, b):
            return sum((c @ d).item() ** 2 for c in a for d in b) / (len(a) * len(b))

        total += (mean(x, x) + mean(y, y) - 2 * mean(x, y)) / len(map_s)
    return total


@pytest.mark.parametrize(
    ("t", "value"),
    [
        (map_of(EYE, OTHER), 0.5),
        (map_of([[1.0, 1.0], [1.0, 1.0]]), 1.0),
        (2 * map_of(EYE, EYE), 0.0),
    ],
    ids=["one more", "ones", "copies"],
)
def test_the_loss_has_its_hand_values(t, value):
    s = map_of(EYE)
    assert nst_loss(s, t).item() == pytest.approx(value, abs=1e-6)
    assert by_loops(s, t) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("width_s", "width_t", "side"), [(2, 3, 5), (9, 7, 2), (4, 4, 3), (1, 8, 2)])
def test_both_forms_agree_with_loops_over_channels(width_s, width_t, side):
    map_s, map_t = random(2, width_s, side, side), random(2, width_t, side, side, seed=1)
    x, y = (F.normalize(map_.flatten(2), dim=2) for map_ in (map_s, map_t))
    expected = pytest.approx(by_loops(map_s, map_t), abs=1e-12)
    assert by_positions(x, y).item() == expected
    assert by_channels(x, y).item() == expected
    assert nst_loss(map_s, map_t).item() == expected


@pytest.mark.parametrize(
    ("width", "side", "form"), [(4, 8, "by_channels"), (96, 2, "by_positions"), (72, 4, "by_positions")]
)
def test_the_form_that_multiplies_less_is_taken(monkeypatch, width, side, form):
    taken = []
    for name in ("by_channels", "by_positions"):
        monkeypatch.setattr(nst, name, lambda x, y, name=name: taken.append(name) or x.sum())
    nst_loss(random(1, width, side, side), random(1, width, side, side))
    assert taken == [form]


@settings(max_examples=15)
@given(scale=st.floats(0.1, 100))
def test_scale_sign_order_and_copies_of_channels_cancel(scale):
    s = random(2, 3, 2, 2)
    for t in (scale * s, -s, s.flip(1), torch.cat([s, s], dim=1)):
        assert nst_loss(s, t).item() == pytest.approx(0, abs=1e-12)


def test_the_loss_is_not_negative_and_sees_a_dead_channel():
    s, t = random(3, 4, 3, 3), random(3, 6, 3, 3, seed=1)
    assert nst_loss(s, t).item() > 0
    dead = torch.cat([s, torch.zeros(3, 1, 3, 3)], dim=1)
    assert nst_loss(dead, s).item() == pytest.approx(by_loops(dead, s), abs=1e-12)
    assert nst_loss(dead, s).item() > 1e-3


def test_a_stage_is_compared_on_the_coarser_grid():
    map_s, map_t = random(2, 3, 4, 4).float(), random(2, 5, 2, 2, seed=1).float()
    losses = run(build({2: (3, 4, 4)}, {2: (5, 2, 2)}, stages=(2,), weight=7.0), {2: map_s}, {2: map_t})
    assert list(losses) == ["task", "nst_s2"]
    expected = 7 * by_loops(F.avg_pool2d(map_s, 2), map_t)
    assert losses["nst_s2"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("side", [2, 5])
def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher(side):
    s, t = random(2, 3, side, side).requires_grad_(), random(2, 2, side, side, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: nst_loss(s, t), s)
    nst_loss(s, t).backward()
    assert t.grad is None


@pytest.mark.parametrize("side", [2, 5])
@pytest.mark.parametrize("size", [0.0, 1e4])
def test_constant_and_large_maps_are_finite(size, side):
    s = torch.full((1, 2, side, side), size, requires_grad=True)
    loss = nst_loss(s, torch.full((1, 3, side, side), -size))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert s.grad.isfinite().all()


def test_autocast_does_not_round_the_products():
    maps_s, maps_t = {1: random(2, 3, 2, 2).float()}, {1: random(2, 3, 2, 2, seed=1).float()}
    method = build({1: (3, 2, 2)}, {1: (3, 2, 2)}, stages=(1,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = run(method, maps_s, maps_t)["nst_s1"]
    assert half.dtype == torch.float32
    assert half.item() == run(method, maps_s, maps_t)["nst_s1"].item()


def test_maps_that_meet_on_one_position_are_refused():
    with pytest.raises(Refused, match="at stage 4 the maps meet on a grid of 1x1"):
        build({4: (2, 1, 1)}, {4: (2, 7, 7)}, stages=(4,))
