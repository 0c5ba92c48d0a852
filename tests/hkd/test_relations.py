"""Token relations: hand values, timm's own attention, regrouped heads, and which models can be compared."""

import math

import pytest
import torch
from timm.layers import Attention, LayerNorm

from hkd.methods.parts.relations import (
    SCALED,
    Shape,
    attended,
    before_affine,
    first_tokens,
    projected,
    refuse_relations,
    regroup,
    relations,
    shape_of,
)
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import Teacher
from hkd.spec import ModelCard

VIT = "timm.models.vision_transformer:VisionTransformer"
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def card(family="vit", **kwargs):
    return ModelCard(
        name="small",
        family=family,
        arch=VIT,
        kwargs=SIZES | kwargs,
        image_size=16,
        stages=(0, 1, 1, 2),
        mean=(0.5,) * 3,
    )


def test_hand_values_of_the_specification():
    q, k = torch.tensor([[[[1.0, 0], [0, 2]]]]), torch.tensor([[[[1.0, 1], [0, 3]]]])
    assert relations(q, k).tolist() == [[[[1.0, 0.0], [2.0, 6.0]]]]
    weights = relations(q, k, scale=SCALED).softmax(dim=3)
    torch.testing.assert_close(weights[0, 0], torch.tensor([[0.6698, 0.3302], [0.0558, 0.9442]]), atol=1e-4, rtol=0.0)


def test_relations_are_those_of_plain_loops():
    q, k = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    found = relations(q, k)
    for place in torch.cartesian_prod(*(torch.arange(size) for size in (2, 3, 4, 4))).tolist():
        b, h, i, j = place
        expected = math.fsum(float(q[b, h, i, c]) * float(k[b, h, j, c]) for c in range(5))
        assert found[b, h, i, j].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_scaled_relations_are_the_logits_of_timms_unfused_attention(qk_norm):
    torch.manual_seed(0)
    attention = Attention(24, num_heads=3, qkv_bias=True, qk_norm=qk_norm, norm_layer=LayerNorm).eval()
    torch.nn.init.normal_(attention.qkv.bias)
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))
    attention.proj.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    x = draw(2, 7, 24)
    with torch.no_grad():
        attention(x)
        q, k, v = projected(attention, x)
        torch.testing.assert_close(relations(q, k, scale=SCALED).softmax(dim=3), seen[0], atol=1e-5, rtol=0.0)
        torch.testing.assert_close(attended(q, k, v), seen[1], atol=1e-5, rtol=0.0)


def test_with_fused_attention_the_dropout_of_weights_is_never_called():
    attention = Attention(24, num_heads=3).eval()
    calls = []
    attention.attn_drop.register_forward_hook(lambda *_: calls.append(1))
    attention(draw(1, 4, 24))
    assert attention.fused_attn
    assert not calls


def test_the_sum_over_heads_is_the_relation_of_the_full_width():
    q, k = draw(2, 4, 6, 3), draw(2, 4, 6, 3, seed=1)
    torch.testing.assert_close(relations(q, k, groups=1)[:, 0], relations(q, k).sum(dim=1))
    torch.testing.assert_close(relations(q, k, groups=4), relations(q, k))


def test_regrouped_heads_hold_neighbouring_channels_and_are_scaled_by_their_width():
    q, k = draw(1, 4, 5, 3), draw(1, 4, 5, 3, seed=1)
    assert torch.equal(regroup(q, 2)[0, 1, 3], torch.cat([q[0, 2, 3], q[0, 3, 3]]))
    torch.testing.assert_close(relations(q, k, groups=2, scale=SCALED), relations(q, k, groups=2) / math.sqrt(6))


def test_permuted_tokens_permute_both_axes_and_gathering_first_is_gathering_both():
    q, k, order = draw(1, 2, 6, 3), draw(1, 2, 6, 3, seed=1), torch.tensor([4, 0, 5, 2])
    torch.testing.assert_close(relations(q[:, :, order], k[:, :, order]), relations(q, k)[:, :, order][:, :, :, order])
    q = torch.arange(4.0)[None, None, :, None]  # R[i, j] = 4 i + j
    q, k = torch.cat([q, torch.ones_like(q)], dim=3), torch.cat([torch.full_like(q, 4.0), q], dim=3)
    assert relations(q, k).flatten().tolist() == list(range(16))
    assert relations(q[:, :, [0, 3]], k[:, :, [0, 3]]).tolist() == [[[[0.0, 3.0], [12.0, 15.0]]]]


def test_a_norm_without_its_affine_part_is_the_plain_norm():
    norm = LayerNorm(8)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    torch.nn.init.normal_(norm.bias)
    x = 3 * draw(2, 4, 8) + 1
    torch.testing.assert_close(before_affine(norm, norm(x)), torch.nn.functional.layer_norm(x, (8,), eps=1e-6))


@pytest.mark.parametrize("kwargs", [{}, {"class_token": False, "global_pool": "avg"}, {"pre_norm": True}])
def test_first_tokens_are_what_the_first_block_is_given(kwargs):
    torch.manual_seed(0)
    teacher, seen = Teacher(card(**kwargs), 0), []
    teacher.net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    teacher(x)
    assert torch.equal(first_tokens(teacher, x), seen[0][:, teacher.info.prefix :])


def test_shapes_are_read_from_cards_without_numbers():
    assert shape_of(card()) == Shape(depth=3, width=24, heads=2, grid=(4, 4), prefix=1)
    assert shape_of(ZOO["mae_b16"]) == Shape(depth=12, width=768, heads=12, grid=(14, 14), prefix=1)
    assert shape_of(ZOO["swin_t_mini"]) is None
    beit = shape_of(ZOO["beit_b16_mini"])
    assert beit is not None
    assert not beit.plain


def test_what_cannot_be_compared_is_told_with_the_option_that_resolves_it():
    a, b = Shape(12, 768, 12, (14, 14), 1), Shape(12, 384, 6, (14, 14), 1)
    assert refuse_relations("t", a, a, None, "raw") is None
    assert "12 heads, the student 6: set relation_heads" in refuse_relations("t", a, b, None, "raw")
    assert "relation_heads=5 does not divide" in refuse_relations("t", a, b, 5, SCALED)
    assert "set relation_scale to 1/sqrt(d)" in refuse_relations("t", a, b, 1, "raw")
    assert refuse_relations("t", a, b, 1, SCALED) is None
