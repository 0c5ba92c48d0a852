"""Masked autoencoder: mask, loss, decoder, picture, training and resumption."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.mae import MAE, MAEConfig
from hkd.methods.parts.masks import random_visible
from hkd.methods.parts.patches import mae_loss, patchify, unpatchify
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import TapInfo
from hkd.spec import ModelCard, Recipe
from hkd.training.recipe import make_optimizer
from hkd.training.step import TapStep

CARD = ModelCard(
    name="tiny",
    family="mim_vit",
    arch="timm.models.vision_transformer:VisionTransformer",
    kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
    image_size=16,
    stages=(0, 0, 1, 1),
)
SMALL = {"image_size": 16, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
RECIPE = Recipe(epochs=1, batch_size=4)


def build(**options):
    """A training step on a student without classifier."""
    torch.manual_seed(0)
    student = TapModel(CARD, 0)
    config = MAEConfig(**SMALL | options)
    method = MAE(config, student.info, {}, lambda *_: torch.zeros(()))
    return TapStep(student, method, method.needs(config)).train()


def batch_of(x):
    return Batch(x=x, y=torch.zeros(len(x), 0), index=torch.arange(len(x)))


def images(count=4, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_patches_are_read_row_by_row_with_channels_last():
    x = images(2)
    patches = patchify(x, 4, 4)
    for b, row, column, y, z, c in [(0, 0, 0, 0, 0, 0), (1, 2, 3, 1, 2, 1), (0, 3, 1, 3, 0, 2)]:
        assert patches[b, 4 * row + column, (4 * y + z) * 3 + c] == x[b, c, 4 * row + y, 4 * column + z]
    assert torch.equal(unpatchify(patches, 4, 4), x)


def test_images_of_another_size_are_resized_as_the_student_sees_them():
    x, step = images(side=23), build()
    seen = []
    step.student.net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    step.student.net.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    step.student(x)
    pixels = unpatchify(step.method.patches(batch_of(x)), 4, 4)
    torch.testing.assert_close(step.student.prepare(pixels), seen[-1])


@settings(deadline=None, max_examples=30)
@given(grid=st.integers(2, 9), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 999))
def test_every_image_shows_the_same_number_of_patches(grid, ratio, seed):
    torch.manual_seed(seed)
    shown = max(1, round(grid**2 * (1 - ratio)))
    visible = random_visible(5, grid, shown, torch.device("cpu"))
    assert visible.shape == (5, 1, grid, grid)
    assert visible.sum((1, 2, 3)).tolist() == [shown] * 5


def test_masks_of_the_papers_ratio_show_49_of_196_patches_everywhere_equally_often():
    info = TapInfo(classes=0, pooled=8, final=(8, 14, 14), stages={})
    method = MAE(MAEConfig(**SMALL | {"image_size": 28}), info, {}, lambda *_: torch.zeros(()))
    torch.manual_seed(0)
    visible = method.student_inputs(batch_of(torch.zeros(2000, 3, 2, 2)), {})["visible"]
    assert set(visible.sum((1, 2, 3)).tolist()) == {49}
    assert (visible.float().mean(0) - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 2000)


def test_a_new_mask_is_drawn_for_every_image_and_step():
    method, batch = build().method, batch_of(images())
    first = method.student_inputs(batch, {})["visible"]
    assert batch.extra["visible"] is first
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, method.student_inputs(batch, {})["visible"])


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_agrees_with_a_loop_over_pixels(norm_pix):
    torch.manual_seed(0)
    predicted, patches = torch.randn(2, 4, 12).double(), torch.rand(2, 4, 12).double()
    visible = torch.tensor([[True, False, False, True], [False, True, False, True]]).view(2, 1, 2, 2)
    errors = []
    for b in range(2):
        for i in range(4):
            if visible[b].flatten()[i]:
                continue
            values = patches[b, i].tolist()
            if norm_pix:
                mean = sum(values) / 12
                variance = sum((value - mean) ** 2 for value in values) / 11
                values = [(value - mean) / math.sqrt(variance + 1e-6) for value in values]
            errors.append(sum((p - v) ** 2 for p, v in zip(predicted[b, i].tolist(), values, strict=True)) / 12)
    assert len(errors) == 4
    assert mae_loss(predicted, patches, visible, norm_pix=norm_pix).item() == pytest.approx(sum(errors) / 4)


def test_the_loss_has_its_hand_value_and_is_zero_at_the_target():
    patches = torch.tensor([[[0.0, 1.0], [0.5, 0.5], [0.2, 0.8], [1.0, 1.0]]])
    visible = torch.tensor([True, False, False, True]).view(1, 1, 2, 2)
    predicted = torch.tensor([[[9.0, 9.0], [0.5, 0.7], [0.2, 0.4], [9.0, 9.0]]])
    loss = mae_loss(predicted, patches, visible, norm_pix=False)
    assert loss.item() == pytest.approx((0.02 + 0.08) / 2)
    assert mae_loss(patches, patches, visible, norm_pix=False).item() == 0
    # (0.2, 0.8): mean .5, variance .18, so that normalised pixels are -+1/sqrt(2); a flat patch is zero.
    target = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [-(0.5**0.5), 0.5**0.5], [0.0, 0.0]]])
    assert mae_loss(target, patches, visible, norm_pix=True).item() == pytest.approx(0, abs=1e-10)


def test_gradients_of_the_loss_are_right_and_only_of_hidden_patches():
    torch.manual_seed(0)
    predicted = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    patches = torch.rand(1, 4, 6).double()
    visible = torch.tensor([True, False, False, True]).view(1, 1, 2, 2)
    assert torch.autograd.gradcheck(lambda p: mae_loss(p, patches, visible, norm_pix=True), (predicted,))
    (grad,) = torch.autograd.grad(mae_loss(predicted, patches, visible, norm_pix=True), predicted)
    assert grad.abs().sum(2)[0].gt(0).tolist() == [False, True, True, False]


def test_the_decoder_reads_visible_tokens_and_the_mask_token_in_place():
    """Gathered, embedded and scattered by hand."""
    method, batch = build().method.eval(), batch_of(images())
    visible = method.student_inputs(batch, {})["visible"]
    final = torch.randn(4, 24, 4, 4)
    rows = []
    for b in range(4):
        tokens = [
            method.embed(final[b, :, i // 4, i % 4]) if visible[b].flatten()[i] else method.mask_token
            for i in range(16)
        ]
        rows.append(torch.stack(tokens) + method.positions)
    expected = method.predict(method.norm(method.blocks(torch.stack(rows))))
    torch.testing.assert_close(method.decode(final, visible), expected)
    hidden = torch.where(visible, final, 1e3)
    assert torch.equal(method.decode(hidden, visible), method.decode(final, visible))


def test_positions_are_fixed_sines_and_cosines_of_row_and_column():
    positions = build().method.positions
    assert "positions" not in build().method.state_dict()
    waves = [1 / 10000 ** (k / 4) for k in range(4)]
    row, column = 2, 3
    expected = {f(place * w) for place in (row, column) for w in waves for f in (math.sin, math.cos)}
    assert sorted(positions[4 * row + column].tolist()) == pytest.approx(
        sorted(f(place * w) for place in (row, column) for w in waves for f in (math.sin, math.cos)), abs=1e-6
    )
    assert len(expected) == 16
    assert len({tuple(position.tolist()) for position in positions}) == 16


def test_one_step_trains_every_parameter_of_encoder_and_decoder():
    step = build()
    start = {name: value.detach().clone() for name, value in step.named_parameters()}
    optimizer = torch.optim.AdamW(step.parameters(), lr=1e-2, weight_decay=0.0)
    losses = step(batch_of(images()), {})
    assert list(losses) == ["pixels"]
    losses["pixels"].backward()
    optimizer.step()
    for name, value in step.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), name  # noqa: PT018
        assert not torch.equal(value, start[name]), name


def test_the_mask_token_is_exempt_from_decay():
    step = build()
    optimizer = make_optimizer(replace(RECIPE, decay_1d=True), step.student.net, step.method)
    group = [
        group
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter is step.method.mask_token
    ]
    assert [g["weight_decay"] for g in group] == [0.0]


def test_a_few_images_are_learned():
    """Stripes of several directions, whose hidden parts follow from the visible ones."""
    place = torch.arange(16.0)
    waves = [torch.sin(0.8 * (c * place[:, None] + (1 - c) * place)) for c in (0.0, 0.3, 0.7, 1.0)]
    step, batch = build(mask_ratio=0.5), batch_of(torch.stack(waves)[:, None].expand(-1, 3, -1, -1) / 2 + 0.5)
    optimizer = torch.optim.AdamW(step.parameters(), lr=5e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(160):
        optimizer.zero_grad()
        loss = step(batch, {})["pixels"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_a_resumed_run_goes_on_bit_for_bit():
    def go(step, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            step(batch_of(images()), {})["pixels"].backward()
            optimizer.step()

    whole = build()
    adam = torch.optim.AdamW(whole.parameters(), lr=1e-3)
    torch.manual_seed(5)
    go(whole, adam, 2)
    saved = copy.deepcopy((whole.student.net.state_dict(), whole.method.state_dict(), adam.state_dict()))
    rng = torch.get_rng_state()
    go(whole, adam, 2)
    resumed = build()
    again = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    resumed.student.net.load_state_dict(saved[0])
    resumed.method.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    torch.set_rng_state(rng)
    go(resumed, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_picture_keeps_visible_patches_and_paints_hidden_ones(norm_pix):
    step, batch = build(norm_pix=norm_pix), batch_of(images())
    taps = step.student(batch.x, **step.method.student_inputs(batch, {}))
    picture = step.method.picture(batch, taps)
    shown = batch.extra["visible"].repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(batch.x)
    assert picture.shape == batch.x.shape
    assert torch.equal(picture[shown], batch.x[shown])
    assert not torch.equal(picture[~shown], batch.x[~shown])
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_the_picture_of_a_perfect_prediction_is_the_image(monkeypatch):
    step, batch = build(), batch_of(images())
    taps = step.student(batch.x, **step.method.student_inputs(batch, {}))
    patches = step.method.patches(batch)
    std, mean = torch.std_mean(patches, dim=2, keepdim=True)
    monkeypatch.setattr(step.method, "decode", lambda *_: (patches - mean) / (std**2 + 1e-6).sqrt())
    torch.testing.assert_close(step.method.picture(batch, taps), batch.x, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 16, 16), torch.ones(2, 3, 16, 16), torch.full((2, 3, 16, 16), 1e4)])
def test_flat_and_extreme_images_stay_finite(x):
    step = build()
    loss = step(batch_of(x), {})["pixels"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in step.parameters())


def test_labels_are_not_touched():
    step = build()
    batch = batch_of(images())
    batch.y = torch.full((4, 7), math.nan)
    assert step(batch, {})["pixels"].isfinite()


def test_students_that_cannot_be_masked_are_refused_when_planned():
    config = MAEConfig(**SMALL)
    assert "not 'resnet'" in MAE.refuse(config, ZOO["resnet18_mini"], {}, RECIPE)
    assert MAE.refuse(config, CARD, {}, RECIPE) is None
    assert MAE.refuse(MAEConfig(), CARD, {}, RECIPE).endswith("tiny sees 16 px: set image_size to that.")


@pytest.mark.parametrize(
    ("final", "sentence"),
    [
        ((8, 2, 3), "square grid"),
        ((8, 3, 3), "16 px are no whole number of pixels for each of the student's 3x3 patches"),
        ((8, 1, 1), "would hide all of the 1x1 cells"),
    ],
)
def test_grids_that_cannot_be_masked_are_refused(final, sentence):
    info = TapInfo(classes=0, pooled=8, final=final, stages={})
    with pytest.raises(Refused, match=sentence):
        MAE(MAEConfig(**SMALL), info, {}, lambda *_: torch.zeros(()))
