"""Plain ViTs that give tokens, queries and keys: the network stays timm's, also of kept tokens alone."""

import math

import pytest
import timm
import torch
from timm.layers import build_sincos2d_pos_embed

from hkd.errors import Refused
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import ModelCard

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
VIT = "timm.models.vision_transformer:VisionTransformer"
AVERAGE = {"class_token": False, "global_pool": "avg", "fc_norm": False}
KINDS = pytest.mark.parametrize("kwargs", [{}, AVERAGE, {"reg_tokens": 2, "no_embed_class": True}, {"qk_norm": True}])


def build(kwargs=None, family="hybrid_vit", classes=0):
    torch.manual_seed(0)
    card = ModelCard(
        name="small", family=family, arch=VIT, kwargs=SIZES | (kwargs or {}), image_size=32, stages=(0, 1, 1, 2)
    )
    return TapModel(card, classes).eval()


def images(count=3):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mask(count=3, shown=5):
    places = torch.rand(count, 16, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :shown]
    return torch.zeros(count, 16, dtype=torch.bool).scatter_(1, places, True).view(count, 1, 4, 4)


def test_a_fresh_one_is_drawn_as_the_specification_says():
    net = build().net
    qkv = net.blocks[1].attn.qkv
    bound = math.sqrt(6 / (24 + 72))
    assert 0.95 * bound < qkv.weight.abs().max() <= bound
    assert not qkv.bias.any()
    assert not net.patch_embed.proj.bias.any()
    assert net.patch_embed.proj.weight.abs().max() <= math.sqrt(6 / (24 + 192))
    assert 0.01 < net.cls_token.std() < 0.03
    assert "pos_embed" not in dict(net.named_parameters())
    assert net.pos_embed.shape == (1, 17, 24)
    assert not net.pos_embed[:, 0].any()
    assert net.pos_embed[0, 1:].unique(dim=0).shape[0] == 16


def test_its_weights_are_a_timm_models():
    model = build(classes=5)
    plain = timm.models.vision_transformer.VisionTransformer(**SIZES, num_classes=5).eval()
    plain.load_state_dict(model.net.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images()).logits, plain(model.prepare(images())))


@KINDS
def test_taps_are_those_of_the_masked_family_and_the_pass_is_the_plain_one(kwargs):
    model, other = build(kwargs), build(kwargs, family="mim_vit")
    other.net.load_state_dict(model.net.state_dict())
    want = Want(stages=(1, 4))
    with torch.no_grad():
        for extra in ({}, {"visible": mask()}):
            found, expected = model(images(), want, **extra), other(images(), want, **extra)
            for name in ("logits", "pooled", "final", "stages", "prefix"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0.0, atol=0.0)


@KINDS
def test_kept_tokens_are_a_run_on_the_gathered_embeddings_with_their_own_positions(kwargs):
    model, visible = build(kwargs), mask()
    net, prefix = model.net, model.net.num_prefix_tokens
    with torch.no_grad():
        found = model(images(), Want(qkv=(1,), outputs=(0, 2)), visible=visible)
        x = net._pos_embed(net.patch_embed(model.prepare(images())))
        for image in range(3):
            places = [*range(prefix), *(prefix + visible[image].flatten().nonzero()[:, 0])]
            tokens = net.norm_pre(x[image : image + 1, [int(place) for place in places]])
            first = net.blocks[0](tokens)
            torch.testing.assert_close(found.outputs[0][image : image + 1], first)
            attention = net.blocks[1].attn
            qkv = attention.qkv(net.blocks[1].norm1(first)).view(1, len(places), 3, 2, 12)
            for part, norm in enumerate((attention.q_norm, attention.k_norm, lambda value: value)):
                for head in range(2):
                    torch.testing.assert_close(found.qkv[1][part][image, head], norm(qkv[0, :, part, head]))
            last = net.blocks[2](net.blocks[1](first))
            torch.testing.assert_close(found.outputs[2][image : image + 1], last)
            torch.testing.assert_close(found.tokens[image : image + 1], net.norm(last))


def test_dropped_pixels_do_not_matter():
    model, visible = build(), mask()
    other = torch.where(visible.repeat_interleave(8, 2).repeat_interleave(8, 3), images(), 0.5)
    with torch.no_grad():
        first, second = (model(x, Want(qkv=(0, 2)), visible=visible) for x in (images(), other))
    assert torch.equal(first.tokens, second.tokens)
    assert all(torch.equal(a, b) for a, b in zip(first.qkv[2], second.qkv[2], strict=True))


def test_a_mask_of_everything_is_no_mask():
    model = build()
    with torch.no_grad():
        want = Want(qkv=(1,))
        whole, all_ = model(images(), want), model(images(), want, visible=mask(shown=16))
    torch.testing.assert_close(all_.tokens, whole.tokens)
    torch.testing.assert_close(all_.qkv[1], whole.qkv[1])


def test_no_hook_stays_and_a_missing_block_is_refused_by_its_number():
    model = build()
    model(images(), Want(qkv=(0,), outputs=(1,)))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(Refused, match=r"Block 3 was asked of small, which has blocks 0 to 2\."):
        model(images(), Want(qkv=(3,)))


def test_positions_are_those_of_mae_with_their_channels_in_another_order():
    width, side = 16, 3
    found = build_sincos2d_pos_embed([side, side], width)
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    angles = [place[:, None] / 10000 ** (torch.arange(width // 4) / (width // 4)) for place in (row, column)]
    torch.testing.assert_close(found, torch.cat([*(x.sin() for x in angles), *(x.cos() for x in angles)], 1))
    of_mae = torch.cat([part for x in reversed(angles) for part in (x.sin(), x.cos())], 1)
    sine_row, sine_column, cosine_row, cosine_column = found.chunk(4, 1)
    torch.testing.assert_close(of_mae, torch.cat([sine_column, cosine_column, sine_row, cosine_row], 1))
