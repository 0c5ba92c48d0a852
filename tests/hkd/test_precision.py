"""Losses under mixed precision: what 16-bit features give is what single precision makes of the same features."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hkd.contract.checks import (
    LABEL_FREE,
    batch_of,
    build,
    fresh_student,
    images,
    subject_of,
    teacher,
)
from hkd.methods import METHODS
from hkd.methods.hcd import orthogonality_loss, target_kl
from hkd.methods.kd import kd_loss
from hkd.methods.ofa import ofa_loss
from hkd.methods.scalekd import soft_cross_entropy
from hkd.models.taps import Taps
from hkd.registry import load

NEAR = 1e-2  # of a term, absolute and relative
SLOPE = 2e-2  # of a gradient, relative to its length


def half(value):
    """A tap in 16 bits, as autocast hands it over."""
    if isinstance(value, Tensor):
        return value.detach().bfloat16() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: half(item) for key, item in value.items()}
    return tuple(map(half, value)) if isinstance(value, tuple) else value


def as_leaves(value, dtype, leaves):
    """The same numbers in a type, as leaves of a new graph that are added to a list."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value
        leaves.append(value.to(dtype).clone().requires_grad_())
        return leaves[-1]
    if isinstance(value, dict):
        return {key: as_leaves(item, dtype, leaves) for key, item in value.items()}
    return tuple(as_leaves(item, dtype, leaves) for item in value) if isinstance(value, tuple) else value


def mapped(taps: Taps, function) -> Taps:
    changed = copy.copy(taps)  # taps of views have fewer logits than features, which a new one may not
    vars(changed).update({name: function(value) for name, value in vars(taps).items()})
    return changed


FAST = ("kd", "hcd", "ofa")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow, pytest.mark.long]) for name in METHODS]
)
def test_every_method_compares_16_bit_features_in_single_precision(name):
    kind, config = load(METHODS[name]), subject_of(name).config
    needs = kind.needs(config)
    student = copy.deepcopy(fresh_student(LABEL_FREE.get(name, ({}, "resnet"))[1]))
    model = teacher("hybrid_vit" if name == "hybrid" else "swin")
    teachers = dict.fromkeys(needs.teachers, model)
    method, batch = build(kind, config, student, teachers), batch_of(images())
    # The codebook of a method that names codes is learned from patches, and not from what is compared here.
    method.train()
    with torch.no_grad():
        taps_t = {role: model(batch.x, want) for role, want in needs.teachers.items()}
        taps_s = student(batch.x, needs.student, **method.student_inputs(batch, taps_t))
    taps_s, taps_t = mapped(taps_s, half), {role: mapped(taps, half) for role, taps in taps_t.items()}
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(7)
        leaves = []
        own = copy.deepcopy(method)
        given_s = mapped(taps_s, lambda value, dtype=dtype, leaves=leaves: as_leaves(value, dtype, leaves))
        given_t = {
            role: mapped(taps, lambda value, dtype=dtype: as_leaves(value, dtype, [])) for role, taps in taps_t.items()
        }
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = own(batch, given_s, given_t)
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        sum(losses.values()).backward()
        found[dtype] = losses, given_s.logits.grad
    (whole, slope), (losses, found_slope) = found[torch.float32], found[torch.bfloat16]
    for term, loss in losses.items():
        torch.testing.assert_close(
            loss, whole[term], rtol=NEAR, atol=NEAR, msg=lambda text, term=term: f"{term}: {text}"
        )
    assert (slope is None) == (found_slope is None)
    if slope is not None:
        assert (found_slope.float() - slope).norm() <= SLOPE * slope.norm()


def near_agreement():
    """16-bit logits of a student that is close to its teacher, where 16 bits of a logarithm are not enough."""
    generator = torch.Generator().manual_seed(0)
    logits_t = torch.randn(8, 100, generator=generator) * 3
    return [x.bfloat16() for x in (logits_t + 0.02 * torch.randn(8, 100, generator=generator), logits_t)]


Y = torch.arange(8)
LOSSES = {
    "kd": lambda s, t: kd_loss(s, t, tau=1.0),
    "ofa": lambda s, t: ofa_loss(s[:, None], t, Y, torch.ones(1), tau=1.0, form="code"),
    "hcd": lambda s, t: target_kl(t[:, None], s, tau=1.0),
    "ol": lambda s, t: orthogonality_loss(torch.stack([s, t], 1)[:, None], Y, theta=0.5),
    "scalekd": lambda s, t: soft_cross_entropy(s, t, tau=1.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_near_agreement_a_loss_and_its_gradient_are_those_of_single_precision(name):
    student, target = near_agreement()
    exact = student.float().requires_grad_()
    loss = LOSSES[name](exact, target.float())
    loss.backward()
    given = student.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](given, target)
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-7)
    assert (given.grad.float() - exact.grad).norm() <= SLOPE * exact.grad.norm()
    assert F.cross_entropy(student, Y).dtype == torch.bfloat16  # what a criterion alone would give
