"""H-GKD: its losses, what every option switches, what moves and what does not, pairs that it cannot serve."""

import copy
import math
import socket
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.base import Method, Samples
from hkd.methods.hgkd import (
    HGKD,
    HGKDConfig,
    distribution,
    effective_entries,
    feature_loss,
    normalise,
    pearson,
    similarity_loss,
)
from hkd.methods.parts.unet import UNetDecoder
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.spec import Recipe
from hkd.training.recipe import make_optimizer
from hkd.training.step import TapStep

RECIPE = Recipe(epochs=1, batch_size=4)
SHAPES = {1: (8, 16, 16), 2: (12, 8, 8), 3: (16, 4, 4), 4: (20, 4, 4)}
INFO = TapInfo(classes=0, pooled=20, final=(20, 4, 4), stages=SHAPES)
SMALL = {"queue_size": 6, "width": 16}
AGREE = torch.tensor([[0.9, 0.1, -0.3, 0.2]]), torch.tensor([[0.8, 0.3, -0.1, 0.1]])
VISIBLE = {"teacher_view": "visible", "positions": "visible"}
DIFFER = torch.tensor([[0.9, 0.1, -0.3, 0.2]]), torch.tensor([[0.2, -0.3, 0.1, 0.9]])


class Side(Teacher):
    """What a method sees of a teacher, where its outputs come as taps: shapes."""

    def __init__(self, width=10, grid=8):
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=0, pooled=width, final=(width, grid, grid), stages={})


def build(teacher=None, info=INFO, **options) -> HGKD:
    torch.manual_seed(0)
    return HGKD(HGKDConfig(**SMALL | options), info, {"teacher": teacher or Side()}, F.cross_entropy)


def inputs(method: HGKD, count=3, seed=0):
    """A batch with masks, and taps as a sparse student and a teacher would have them."""
    torch.manual_seed(seed)
    batch = Batch(x=torch.rand(count, 3, 32, 32), y=torch.zeros(count, 0), index=torch.arange(count) + 10 * seed)
    visible = method.student_inputs(batch, {})["visible"]
    maps = {stage: torch.randn(count, *shape) for stage, shape in SHAPES.items()}
    if method.config.conv == "sparse":
        maps = {stage: map_ * repeated(visible, map_.shape[-1]) for stage, map_ in maps.items()}
    maps = {stage: map_.requires_grad_() for stage, map_ in maps.items()}
    nothing = torch.zeros(count, 0)
    taps_s = Taps(logits=nothing, pooled=torch.zeros(count, 20), final=maps[4], stages=maps)
    taps_t = Taps(logits=nothing, pooled=torch.zeros(count, 10), final=torch.randn(count, 10, 8, 8))
    return batch, taps_s, {"teacher": taps_t}


def repeated(visible: torch.Tensor, side: int) -> torch.Tensor:
    cell = side // visible.shape[-1]
    return visible.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def vector(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


# --- correlation and similarity


@pytest.mark.parametrize(
    ("a", "b", "value"),
    [
        (vector(1, 2, 3), vector(1, 3, 2), 0.5),
        (vector(1, 2, 4), -vector(1, 2, 4), -1.0),
        (vector(1, 2, 4), 5 * vector(1, 2, 4) - 7, 1.0),
        (vector(3, 3, 3), vector(1, 2, 4), 0.0),
        (vector(2, 0, 0).softmax(1), vector(0, 0, 2).softmax(1), -0.5),
    ],
)
def test_the_correlation_has_its_hand_values(a, b, value):
    assert pearson(a, b).item() == pytest.approx(value, abs=1e-7)
    assert pearson(b.float(), a.float()).item() == pytest.approx(value, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 9))
def test_the_correlation_is_scipys(seed, count):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, count, generator=generator, dtype=torch.float64)
    lengths = count * a.std(1, unbiased=False) * b.std(1, unbiased=False)  # next to which 1e-8 may be felt
    expected = [scipy.stats.pearsonr(x, y).statistic for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(pearson(a, b), expected * (lengths / (lengths + 1e-8)).numpy(), atol=1e-9)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6, 7e-9])
@pytest.mark.parametrize("count", [1, 3, 1001])
def test_a_constant_vector_correlates_with_nothing(value, count):
    constant = torch.full((1, count), value).requires_grad_()
    other = torch.randn(1, count).requires_grad_()
    found = pearson(constant, other)
    found.sum().backward()
    assert found.item() == 0
    assert constant.grad.isfinite().all()
    assert other.grad.isfinite().all()


@pytest.mark.parametrize(("sims", "value"), [(AGREE, 1.8e-5), (DIFFER, 1.332)])
def test_the_similarity_loss_has_its_hand_values(sims, value):
    assert similarity_loss(sims[1], sims[0], tau=0.1).item() == pytest.approx(value, rel=0.01)


def test_similar_views_of_the_queue_cost_nothing_and_raw_ones_ignore_the_temperature():
    sims = torch.randn(4, 9, dtype=torch.float64)
    assert similarity_loss(sims, sims, tau=0.1).item() == pytest.approx(0, abs=1e-6)
    raw = [similarity_loss(DIFFER[1], DIFFER[0], tau=tau, space="raw").item() for tau in (0.1, 5.0)]
    assert raw[0] == raw[1]
    assert raw[0] == pytest.approx(1 - np.corrcoef(DIFFER[0][0], DIFFER[1][0])[0, 1], abs=1e-6)


@pytest.mark.parametrize("space", ["softmax", "raw"])
def test_entries_that_do_not_count_might_as_well_not_be_there(space):
    sims_s, sims_t = torch.randn(2, 4, 7, dtype=torch.float64)
    keep = torch.ones(4, 7, dtype=torch.bool)
    keep[:, 2] = False
    found = similarity_loss(sims_s, sims_t, tau=0.5, space=space, keep=keep)
    rest = [0, 1, 3, 4, 5, 6]
    expected = similarity_loss(sims_s[:, rest], sims_t[:, rest], tau=0.5, space=space)
    assert found.item() == pytest.approx(expected.item(), abs=1e-9)
    p = distribution(sims_t, tau=0.5, keep=keep)
    torch.testing.assert_close(p[:, rest], (sims_t[:, rest] / 0.5).softmax(1))
    assert (p[:, 2] == 0).all()


@pytest.mark.parametrize("space", ["softmax", "raw"])
def test_a_row_of_which_nothing_counts_is_finite(space):
    sims = torch.randn(2, 3, requires_grad=True)
    keep = torch.tensor([[False] * 3, [True] * 3])
    loss = similarity_loss(sims, torch.randn(2, 3), tau=0.1, space=space, keep=keep)
    loss.backward()
    assert loss.isfinite()
    assert sims.grad.isfinite().all()
    assert (sims.grad[0] == 0).all()
    assert effective_entries(distribution(sims, tau=0.1, keep=keep))[0] == 0


@pytest.mark.parametrize("size", [0.0, 1e-6, 1.0, 1e4])
@pytest.mark.parametrize("tau", [1e-4, 0.1, 1e3])
def test_extreme_similarities_are_finite(size, tau):
    sims_s, sims_t = (size * torch.randn(2, 3, 50)).unbind()
    sims_s.requires_grad_()
    loss = similarity_loss(sims_s, sims_t, tau=tau)
    loss.backward()
    assert 0 <= loss <= 2
    assert sims_s.grad.isfinite().all()


def test_the_effective_number_of_entries_is_one_for_a_peak_and_all_for_a_constant():
    p = torch.stack([F.one_hot(torch.tensor(2), 5).float(), torch.full((5,), 0.2), torch.tensor([0.5, 0.5, 0, 0, 0])])
    torch.testing.assert_close(effective_entries(p), torch.tensor([1.0, 5.0, 2.0]))


# --- features


def test_the_feature_loss_is_a_mean_over_batch_positions_and_channels():
    predicted, target = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    assert feature_loss(predicted, target).item() == pytest.approx(((predicted - target) ** 2).mean().item())
    selected = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    selected[0, 0, 1, 2] = selected[1, 0, 3, 3] = True
    expected = ((predicted[0, :, 1, 2] - target[0, :, 1, 2]) ** 2).sum()
    expected = (expected + ((predicted[1, :, 3, 3] - target[1, :, 3, 3]) ** 2).sum()) / 6
    assert feature_loss(predicted, target, selected).item() == pytest.approx(expected.item())


def test_positions_that_are_not_selected_do_not_matter_even_if_infinite():
    predicted, target = torch.zeros(1, 2, 2, 2).requires_grad_(), torch.ones(1, 2, 2, 2)
    target[..., 0, 0] = math.inf
    selected = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    selected[..., 0, 0] = False
    loss = feature_loss(predicted, target, selected)
    loss.backward()
    assert loss.item() == 1
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[..., 0, 0] == 0).all()


def test_teacher_features_are_normalised_position_by_position():
    map_ = 5 + 3 * torch.randn(2, 10, 4, 3)
    token = map_[1, :, 2, 1]
    expected = (token - token.mean()) / token.std(unbiased=False)
    torch.testing.assert_close(normalise(map_)[1, :, 2, 1], expected, atol=1e-5, rtol=1e-5)
    assert normalise(torch.zeros(1, 4, 2, 2)).abs().sum() == 0


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    sims_s, sims_t = torch.randn(2, 3, 5, dtype=torch.float64)
    keep = torch.rand(3, 5) > 0.3
    leaf = sims_s.requires_grad_()
    for space in ("softmax", "raw"):
        for kept in (None, keep):
            assert torch.autograd.gradcheck(lambda s: similarity_loss(s, sims_t, tau=0.5, space=space, keep=kept), leaf)  # noqa: B023
    predicted, target = torch.randn(2, 2, 3, 2, 2, dtype=torch.float64)
    selected = torch.tensor([[[[True, False], [True, True]]]]).repeat(2, 1, 1, 1)
    assert torch.autograd.gradcheck(lambda p: feature_loss(p, target, selected), predicted.requires_grad_())


def test_no_gradient_reaches_the_teachers_side():
    sims_s, sims_t = (torch.randn(2, 4).requires_grad_() for _ in range(2))
    similarity_loss(sims_s, sims_t, tau=0.1).backward()
    assert sims_t.grad is None
    predicted, target = (torch.randn(1, 2, 2, 2).requires_grad_() for _ in range(2))
    feature_loss(predicted, target).backward()
    assert target.grad is None


# --- the method


def test_both_terms_are_the_definition_written_out():
    method = build(w_sim=2.0, w_feat=3.0)
    method(*inputs(method, seed=1))
    batch, taps_s, taps_t = inputs(method, seed=2)
    queue, frozen = method.queue.rows.clone(), copy.deepcopy(method)
    losses = method(batch, taps_s, taps_t)

    visible, final_t = batch.extra["visible"], taps_t["teacher"].final
    z_t = final_t.mean((2, 3))
    z_t = z_t / z_t.norm(dim=1, keepdim=True)
    queue[3:6] = z_t  # the batch is among the entries
    sims = 0.0
    for b in range(3):
        seen = taps_s.final[b][:, visible[b, 0]].mean(1)
        z_s = frozen.embed[0].weight @ seen + frozen.embed[0].bias
        p_s, p_t = (torch.softmax(queue @ z / 0.1, 0) for z in (z_s / z_s.norm(), z_t[b]))
        sims += (1 - torch.corrcoef(torch.stack([p_t, p_s]))[0, 1]) / 3
    predicted = frozen.head(frozen.decoder(taps_s.stages, visible)[-1])
    target = F.layer_norm(final_t.permute(0, 2, 3, 1), (10,)).permute(0, 3, 1, 2)
    assert list(losses) == ["sim", "feat"]
    assert losses["sim"].item() == pytest.approx(2 * sims.item(), abs=1e-5)
    assert losses["feat"].item() == pytest.approx(3 * F.mse_loss(predicted, target).item(), rel=1e-4)
    torch.testing.assert_close(method.queue.rows, queue)


def test_the_queue_holds_the_batch_before_its_loss_or_only_afterwards():
    before, after = build(), build(queue_update="after")
    for method in (before, after):
        batch, taps_s, taps_t = inputs(method)
        loss = method(batch, taps_s, taps_t)["sim"]
        assert (loss > 0) == (method is before)
        loss.backward()
        assert int(method.queue.fill) == 3
    state = after.queue.rows.clone()
    batch, taps_s, taps_t = inputs(after, seed=3)
    seen = after.queue.filled()[0].clone()
    losses = after(batch, taps_s, taps_t)
    z_t = F.normalize(taps_t["teacher"].final.mean((2, 3)), dim=1)
    z_s = F.normalize(after.embed(taps_s.final.sum((2, 3)) / batch.extra["visible"].sum((2, 3))), dim=1)
    expected = similarity_loss(z_s @ seen.T, z_t @ seen.T, tau=0.1)
    assert losses["sim"].item() == pytest.approx(expected.item(), abs=1e-6)
    sum(losses.values()).backward()  # although the queue has moved on
    assert torch.equal(after.queue.rows[:3], state[:3])
    assert int(after.queue.fill) == 6


def test_an_empty_queue_costs_nothing_and_leaves_every_parameter_in_the_graph():
    method = build(queue_update="after")
    losses = method(*inputs(method))
    assert losses["sim"].item() == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_a_dual_queue_compares_the_student_with_its_own_past():
    method = build(queue_content="dual")
    method(*inputs(method, seed=1))
    batch, taps_s, taps_t = inputs(method, seed=2)
    losses = method(batch, taps_s, taps_t)
    pooled = taps_s.final.sum((2, 3)) / batch.extra["visible"].sum((2, 3))
    z_s = F.normalize(method.embed(pooled), dim=1)
    z_t = F.normalize(taps_t["teacher"].final.mean((2, 3)), dim=1)
    torch.testing.assert_close(method.queue_s.rows[3:], z_s.detach())
    torch.testing.assert_close(method.queue.rows[3:], z_t)
    expected = similarity_loss(z_s @ method.queue_s.rows.T, z_t @ method.queue.rows.T, tau=0.1)
    assert losses["sim"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.equal(method.queue_s.samples, method.queue.samples)


def test_own_entries_are_left_out_also_those_of_earlier_epochs():
    method = build(exclude_self=True)
    batch, taps_s, taps_t = inputs(method)
    method(batch, taps_s, taps_t)
    losses = method(batch, taps_s, taps_t)  # each sample has two of six entries now
    z_t = F.normalize(taps_t["teacher"].final.mean((2, 3)), dim=1)
    z_s = F.normalize(method.embed(taps_s.final.sum((2, 3)) / batch.extra["visible"].sum((2, 3))), dim=1)
    expected = 0.0
    for b in range(3):
        rest = [place for place in range(6) if place % 3 != b]
        rows = method.queue.rows[rest]
        expected += similarity_loss(z_s[b : b + 1] @ rows.T, z_t[b : b + 1] @ rows.T, tau=0.1).item() / 3
    assert losses["sim"].item() == pytest.approx(expected, abs=1e-6)
    assert method.needs(method.config).index


def test_exclusion_without_indices_is_a_sentence():
    method = build(exclude_self=True)
    batch, taps_s, taps_t = inputs(method)
    batch.index = None
    with pytest.raises(UserError, match=r"Batch\.index"):
        method(batch, taps_s, taps_t)


@pytest.mark.parametrize("positions", ["all", "masked", "visible"])
def test_features_are_compared_where_positions_says(positions):
    method = build(positions=positions, w_sim=0.0, target="raw")
    batch, taps_s, taps_t = inputs(method)
    predicted = method.predict(taps_s, batch.extra["visible"])[0]
    squares = (predicted - taps_t["teacher"].final).square()
    seen = repeated(batch.extra["visible"], 8).expand_as(squares)
    wanted = {"all": squares.flatten(), "masked": squares[~seen], "visible": squares[seen]}[positions]
    assert method(batch, taps_s, taps_t)["feat"].item() == pytest.approx(wanted.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "blocks", "kernel"), [({}, 2, 2), ({"decoder": "short"}, 1, 1), ({"decoder": "none"}, 0, 1)]
)
def test_each_decoder_predicts_on_the_teachers_grid(options, blocks, kernel):
    method = build(**options)
    batch, taps_s, taps_t = inputs(method)
    assert method.predict(taps_s, batch.extra["visible"])[0].shape == (3, 10, 8, 8)
    assert len([part for part in method.modules() if isinstance(part, torch.nn.ConvTranspose2d)]) == blocks
    assert method.head.kernel_size == method.head.stride == (kernel, kernel)
    sum(method(batch, taps_s, taps_t).values()).backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_without_a_decoder_the_last_map_is_enlarged():
    method = build(decoder="none", w_sim=0.0)
    batch, taps_s, _ = inputs(method)
    small = method.head(taps_s.final)
    expected = F.interpolate(small, (8, 8), mode="bilinear")
    torch.testing.assert_close(method.predict(taps_s, batch.extra["visible"])[0], expected)
    assert method.needs(method.config).student == Want()


def test_more_scales_compare_every_block_with_the_resized_teacher():
    method = build(multi_scale=True, w_sim=0.0, w_feat=2.0, positions="masked")
    batch, taps_s, taps_t = inputs(method)
    losses = method(batch, taps_s, taps_t)
    maps, final_t = method.decoder(taps_s.stages, batch.extra["visible"]), taps_t["teacher"].final
    finer = F.interpolate(final_t, (16, 16), mode="bilinear")
    expected = [
        feature_loss(head(map_), normalise(target), ~repeated(batch.extra["visible"], target.shape[-1]))
        for head, map_, target in zip(method.scale_heads, maps, (final_t, finer), strict=True)
    ]
    assert list(losses) == ["feat", "feat_scales"]
    assert losses["feat_scales"].item() == pytest.approx(sum(expected).item(), rel=1e-4)


@pytest.mark.parametrize(("off", "left"), [("w_sim", "feat"), ("w_feat", "sim")])
def test_a_term_of_weight_zero_has_no_parameters_and_is_not_computed(off, left):
    method = build(**{off: 0.0})
    assert list(method(*inputs(method))) == [left]
    parts = {name.split(".")[0] for name, _ in method.named_parameters()}
    assert parts == ({"decoder", "head"} if off == "w_sim" else {"embed"})


@pytest.mark.parametrize("layers", [1, 3])
def test_the_embedding_head_has_the_depth_that_was_asked_for(layers):
    method = build(head_layers=layers)
    linear = [part for part in method.embed if isinstance(part, torch.nn.Linear)]
    assert [part.in_features for part in linear] == [20] + [10] * (layers - 1)
    assert len(method.embed) == 2 * layers - 1
    assert method(*inputs(method))["sim"].isfinite()


def test_a_dense_student_averages_over_all_positions_and_has_no_mask_tokens():
    method = build(conv="dense")
    batch, taps_s, taps_t = inputs(method)
    assert method.student_inputs(batch, {})["backend"] == "dense"
    assert method.no_weight_decay() == set()
    losses = method(batch, taps_s, taps_t)
    z_s = F.normalize(method.embed(taps_s.final.mean((2, 3))), dim=1)
    z_t = F.normalize(taps_t["teacher"].final.mean((2, 3)), dim=1)
    rows = method.queue.rows[:3]
    assert losses["sim"].item() == pytest.approx(similarity_loss(z_s @ rows.T, z_t @ rows.T, tau=0.1).item(), abs=1e-6)


def test_masks_are_drawn_for_every_batch_and_shared_through_it():
    method = build()
    batch = Batch(x=torch.rand(5, 3, 32, 32), y=torch.zeros(5, 0), index=torch.arange(5))
    found = method.student_inputs(batch, {})
    assert found["visible"] is batch.extra["visible"]
    assert found["backend"] == "auto"
    assert found["visible"].shape == (5, 1, 4, 4)
    assert (found["visible"].flatten(1).sum(1) == 6).all()
    assert not torch.equal(method.student_inputs(batch, {})["visible"], found["visible"])
    assert type(method).teacher_inputs is Method.teacher_inputs  # a full view can be cached


def test_mask_tokens_are_exempt_from_weight_decay():
    method = build()
    names = {f"decoder.densify.{stage}.mask_token" for stage in (1, 2, 4)}
    assert method.no_weight_decay() == names
    decaying = replace(RECIPE, weight_decay=0.1)
    groups = make_optimizer(decaying, torch.nn.Linear(2, 2), method).param_groups
    exempt = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for name, parameter in method.named_parameters():
        assert (id(parameter) in exempt) == (parameter.ndim == 1 or name in names), name


def test_diagnostics_are_means_since_the_last_call():
    method = build()
    assert method.diagnostics() == {}
    for seed in range(3):
        method(*inputs(method, seed=seed))
    resumed = build()
    resumed.load_state_dict(method.state_dict())
    assert resumed.diagnostics()["queue_fill"] == 5  # 3, 6, 6
    found = method.diagnostics()
    assert 1 <= found["queue_entries"] <= 6
    assert method.diagnostics() == {}
    batch, taps_s, taps_t = inputs(method, seed=5)
    method(batch, taps_s, taps_t)
    z_t = F.normalize(taps_t["teacher"].final.mean((2, 3)), dim=1)
    p = (z_t @ method.queue.rows.T / 0.1).softmax(1)
    assert method.diagnostics()["queue_entries"] == pytest.approx((1 / (p**2).sum(1)).mean().item(), rel=1e-5)


def test_in_evaluation_mode_the_queue_is_read_but_does_not_move():
    method = build(exclude_self=True)
    method(*inputs(method))
    method.eval()
    state = copy.deepcopy(method.state_dict())
    losses = method(*inputs(method, seed=4))
    assert losses["sim"] > 0
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())


def test_a_resumed_method_goes_on_as_if_never_stopped():
    method = build(queue_content="dual")
    method(*inputs(method))
    resumed = build(queue_content="dual")
    resumed.load_state_dict(copy.deepcopy(method.state_dict()), strict=True)
    assert {"queue.rows", "queue.pointer", "queue.fill", "queue_s.rows", "sums"} <= set(method.state_dict())
    first, second = (each(*inputs(each, seed=1)) for each in (method, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in method.state_dict().items())


def test_mixed_precision_does_not_round_the_similarities():
    plain, mixed = build(w_feat=0.0), build(w_feat=0.0)
    expected = plain(*inputs(plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixed(*inputs(mixed))
    assert torch.equal(found["sim"], expected["sim"])
    assert torch.equal(mixed.queue.rows, plain.queue.rows)


@pytest.mark.parametrize("size", [0.0, 1e-8, 1e8])
def test_degenerate_features_are_finite(size):
    method = build()
    batch, taps_s, taps_t = inputs(method)
    taps_t["teacher"].final.fill_(size)
    losses = method(batch, taps_s, taps_t)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


# --- with a student and a teacher of the zoo


@pytest.mark.parametrize("options", [{}, VISIBLE, {"conv": "dense"}])
def test_a_step_teaches_the_student_and_leaves_the_teachers_bytes(options):
    torch.manual_seed(0)
    student, teacher = TapModel(ZOO["sparse_resnet50_mini"], 0), Teacher(ZOO["mae_b16_mini"], 0)
    before, start = (copy.deepcopy(model.state_dict()) for model in (teacher, student))
    method = build(teacher, student.info, width=32, **options)
    method.prepare(Samples(labels=torch.zeros(8, 0), classes=0, epochs=1, steps=1))
    needs = method.needs(method.config)
    assert list(needs.teachers) == ([] if "teacher_view" in options else ["teacher"])
    batch = Batch(x=torch.rand(4, 3, 28, 28), y=torch.zeros(4, 0), index=torch.arange(4))
    learning = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    losses = TapStep(student, method, needs)(
        batch, {role: teacher(batch.x, want) for role, want in needs.teachers.items()}
    )
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in learning)
    optimizer.step()
    assert not torch.equal(student.state_dict()["net.conv1.0.weight"], start["net.conv1.0.weight"])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_that_sees_visible_cells_only_is_not_told_the_others():
    torch.manual_seed(0)
    student, teacher = TapModel(ZOO["sparse_resnet50_mini"], 0), Teacher(ZOO["mae_b16_mini"], 0)
    method = build(teacher, student.info, width=32, **VISIBLE).eval()
    method.queue.enqueue(torch.randn(6, 96))
    batch = Batch(x=torch.rand(4, 3, 32, 32), y=torch.zeros(4, 0), index=torch.arange(4))
    inputs_s = method.student_inputs(batch, {})
    other = replace(batch, x=torch.where(repeated(inputs_s["visible"], 32), batch.x, torch.rand(4, 3, 32, 32)))
    student.eval()
    found = [method(each, student(each.x, Want(stages=(1, 2, 3, 4)), **inputs_s), {}) for each in (batch, other)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in ("sim", "feat"))


# --- what is refused


@pytest.mark.parametrize(
    ("options", "teacher", "sentence"),
    [
        ({}, Side(grid=7), "decoder ends at 16x16 and the teacher's grid is 7x7"),
        ({"decoder": "short"}, Side(grid=16), "decoder ends at 8x8 and the teacher's grid is 16x16"),
        ({"grid": 3}, Side(), "mask of 3x3 cells does not fit the student's last map of 4x4"),
        ({"grid": 8}, Side(), "mask of 8x8 cells"),
        ({"mask_ratio": 0.99}, Side(), "would hide all of the 4x4 cells"),
        ({"mask_ratio": 0.0, "positions": "masked"}, Side(), "leaves none"),
        ({"positions": "visible"}, Side(grid=2), "mask of 4x4 cells on the teacher's grid of 2x2"),
        ({"teacher_view": "mim"}, Side(), "decoder or regressor"),
        ({"width": 6}, Side(), "divisible by 4"),
    ],
)
def test_pairs_that_do_not_fit_are_a_sentence(options, teacher, sentence):
    with pytest.raises(Refused, match=sentence) as error:
        build(teacher, **options)
    assert str(error.value).endswith(".")
    assert ". " not in str(error.value)


def test_a_queue_larger_than_the_data_is_a_sentence():
    method = build(queue_size=9)
    with pytest.raises(Refused, match=r"queue of 9 .* 8 training images .* at most 8"):
        method.prepare(Samples(labels=torch.zeros(8, 0), classes=0, epochs=1, steps=1))
    method.prepare(Samples(labels=torch.zeros(9, 0), classes=0, epochs=1, steps=1))


@pytest.mark.parametrize(
    ("options", "student", "teachers", "sentence"),
    [
        ({}, "sparse_resnet50", {"teacher": "mae_b16"}, None),
        ({}, "sparse_mobilenet_v2", {"teacher": "swin_s"}, None),
        (VISIBLE, "sparse_resnet50", {"teacher": "beit_b16"}, None),
        ({}, "resnet50", {"teacher": "mae_b16"}, "'sparse_mobilenet_v2', not 'resnet'"),
        ({}, "mae_b16", {"teacher": "mae_b16"}, "'sparse_mobilenet_v2', not 'mim_vit'"),
        ({}, "sparse_resnet50", {}, "role 'teacher'"),
        (
            VISIBLE,
            "sparse_resnet50",
            {"teacher": "swin_s"},
            "a swin does not",
        ),
        (VISIBLE, "sparse_resnet50", {}, "role 'teacher'"),
        ({"teacher_view": "mim"}, "sparse_resnet50", {"teacher": "mae_b16"}, "decoder or regressor"),
    ],
)
def test_pairs_are_refused_when_a_table_is_planned(options, student, teachers, sentence):
    cards = {role: ZOO[name] for role, name in teachers.items()}
    found = HGKD.refuse(HGKDConfig(**options), ZOO[student], cards, RECIPE)
    assert found is None if sentence is None else sentence in found


def test_the_papers_student_and_teacher_fit_with_the_defaults():
    shapes = {1: (256, 56, 56), 2: (512, 28, 28), 3: (1024, 14, 14), 4: (2048, 7, 7)}
    info = TapInfo(classes=0, pooled=2048, final=shapes[4], stages=shapes)
    with torch.device("meta"):
        method = HGKD(HGKDConfig(), info, {"teacher": Side(768, 14)}, F.cross_entropy)
    assert method.grid == 7
    assert method.queue.rows.shape == (50_000, 768)
    assert isinstance(method.decoder, UNetDecoder)
    assert method.head.weight.shape == (768, 96, 4, 4)


# --- several processes


def part_of_a_batch(rank, port, folder):
    """Two steps of one of two processes, each with its half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    method = build(w_feat=0.0, exclude_self=True)
    losses = []
    for step in range(2):
        batch, taps_s, taps_t = inputs(method, count=4, seed=step)
        mine = slice(2 * rank, 2 * rank + 2)
        part = Batch(batch.x[mine], batch.y[mine], batch.index[mine], extra={"visible": batch.extra["visible"][mine]})
        halves = [
            Taps(logits=t.logits[mine], pooled=t.pooled[mine], final=t.final[mine]) for t in (taps_s, taps_t["teacher"])
        ]
        losses.append(method(part, halves[0], {"teacher": halves[1]})["sim"].item())
    torch.save((method.queue.state_dict(), losses), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_compare_with_the_queue_of_the_whole_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(part_of_a_batch, args=(port, tmp_path), nprocs=2)
    (first, losses), (second, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = build(w_feat=0.0, exclude_self=True)
    expected = [alone(*inputs(alone, count=4, seed=step))["sim"].item() for step in range(2)]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, first[name]) for name, value in alone.queue.state_dict().items())
    assert [(a + b) / 2 for a, b in zip(losses, others, strict=True)] == pytest.approx(expected, abs=1e-6)
