import copy
import threading
import weakref
from functools import partial

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from analysis.looking.attention import Layer, Seen, attention_layers, observed, patch_maps
from hkd.errors import Refused

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}
WINDOWS = {"img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3), "num_classes": 0}


def swin_fused():
    net = SwinTransformer(**WINDOWS, window_size=4)
    for layer in net.layers:
        for block in layer.blocks:
            block.attn.fused_attn = True
    return net


def beit_with_separate_bias():
    net = Beit(**SMALL, use_rel_pos_bias=True)
    for block in net.blocks:
        block.attn.qkv_bias_separate = True
    return net


FAMILIES = {
    "vit": partial(VisionTransformer, **SMALL),
    "vit without class token": partial(VisionTransformer, **SMALL, class_token=False, global_pool="avg"),
    "vit with normed queries and keys": partial(VisionTransformer, **SMALL, qk_norm=True),
    "deit with distillation token": partial(VisionTransformerDistilled, **SMALL),
    "beit with biases of blocks": partial(Beit, **SMALL, use_rel_pos_bias=True),
    "beit with a shared bias": partial(Beit, **SMALL, use_shared_rel_pos_bias=True),
    "beit with separate biases": beit_with_separate_bias,
    "eva": partial(Eva, **SMALL),
    "eva02": partial(Eva, **SMALL, use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True, scale_mlp=True),
    "eva with rotations of halves": partial(
        Eva, **SMALL, use_rot_pos_emb=True, qk_norm=True, rope_rotate_half=True, num_reg_tokens=2, attn_type="rope"
    ),
    "clip": partial(VisionTransformer, **SMALL, pre_norm=True),
    "dinov2 with registers": partial(VisionTransformer, **SMALL, reg_tokens=4, no_embed_class=True, init_values=0.1),
    "relative positions": partial(VisionTransformerRelPos, **SMALL),
    "grid that is not square": partial(VisionTransformer, **SMALL | {"img_size": (32, 48)}),
    "swin": partial(SwinTransformer, **WINDOWS, window_size=4),
    "swin, fused": swin_fused,
    "swin with oblong windows": partial(SwinTransformer, **WINDOWS | {"img_size": (32, 64)}, window_size=(4, 8)),
    "swin v2": partial(SwinTransformerV2, **WINDOWS, window_size=4),
}


def built(name):
    """A random model whose attention is far from uniform, and images for it."""
    torch.manual_seed(0)
    net = FAMILIES[name]().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    size = (32, {"grid that is not square": 48, "swin with oblong windows": 64}.get(name, 32))
    return net, torch.randn(3, 3, *size)


def recovered(net, images, **options):
    layers = attention_layers(net, tuple(images.shape[2:]))
    found = [[] for _ in layers]
    with observed(layers, len(images), lambda seen: found[seen.layer].append(seen.maps.clone()), **options):
        output = net.forward_features(images)
    return layers, [torch.cat(maps) for maps in found], output


def unfused(net, images):
    """What every attention module's softmax gives, in a copy without fused attention."""
    net, maps = copy.deepcopy(net), []
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "attn_drop") and isinstance(module.attn_drop, nn.Module):
            module.attn_drop.register_forward_pre_hook(lambda module, args: maps.append(args[0]))
    net.forward_features(images)
    return maps


@pytest.mark.parametrize("name", FAMILIES)
def test_recovered_attention_equals_that_of_the_unfused_model(name):
    net, images = built(name)
    layers, maps, output = recovered(net, images)
    expected = unfused(net, images)
    assert len(maps) == len(expected) == len(layers)
    for layer, ours, full in zip(layers, maps, expected, strict=True):
        patches = full[:, :, layer.prefix :, layer.prefix :]
        torch.testing.assert_close(ours, patches / patches.sum(-1, keepdim=True), rtol=0, atol=1e-5)
        assert ours.std() > 0.01  # far from uniform: the test would see a missing bias
    torch.testing.assert_close(output, net.forward_features(images), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["deit with distillation token", "dinov2 with registers", "beit with biases of blocks"]
)
def test_rows_may_keep_what_prefix_tokens_take_from_them(name):
    net, images = built(name)
    layers, maps, _ = recovered(net, images, renormalise=False)
    for layer, ours, full in zip(layers, maps, unfused(net, images), strict=True):
        torch.testing.assert_close(ours, full[:, :, layer.prefix :, layer.prefix :], rtol=0, atol=1e-5)


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_module_without_fused_attention_gives_the_same_maps(renormalise):
    net, images = built("dinov2 with registers")
    _, fused, _ = recovered(net, images, renormalise=renormalise)
    for block in net.blocks:
        block.attn.fused_attn = False
    _, maps, _ = recovered(net, images, renormalise=renormalise)
    torch.testing.assert_close(maps, fused, rtol=0, atol=1e-6)


def test_fused_attention_stays_on():
    net, images = built("vit")
    calls = []
    net.blocks[0].attn.attn_drop.register_forward_hook(lambda *_: calls.append(1))
    recovered(net, images)
    assert net.blocks[0].attn.fused_attn
    assert not calls  # dropout runs in the unfused path alone


def test_layers_know_their_grids_prefixes_and_patches():
    vit = attention_layers(*sized("grid that is not square"))
    assert [(layer.name, layer.grid, layer.prefix, layer.patch) for layer in vit] == [
        (f"blocks.{index}.attn", (4, 6), 1, 8.0) for index in range(2)
    ]
    swin = attention_layers(*sized("swin"))
    assert [(layer.grid, layer.patch) for layer in swin] == [((4, 4), 2.0)] * 2 + [((4, 4), 4.0)] * 2


def sized(name):
    net, images = built(name)
    return net, tuple(images.shape[2:])


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_images_are_handed_over_in_order_whatever_the_chunk(name, monkeypatch):
    net, images = built(name)
    _, whole, _ = recovered(net, images)
    monkeypatch.setattr("analysis.looking.attention.CHUNK", 1)
    firsts = []
    layers = attention_layers(net, (32, 32))
    parts = [[] for _ in layers]

    def receive(seen: Seen) -> None:
        parts[seen.layer].append(seen.maps.clone())
        firsts.append(seen.first)

    with observed(layers, len(images), receive):
        net.forward_features(images)
    assert firsts == [0, 1, 2] * len(layers)
    torch.testing.assert_close([torch.cat(maps) for maps in parts], whole, rtol=0, atol=1e-6)


def test_half_precision_models_give_maps_in_single_precision():
    net, images = built("vit")
    _, maps, _ = recovered(net.bfloat16(), images.bfloat16())
    assert maps[0].dtype == torch.float32
    torch.testing.assert_close(maps[0].sum(-1), torch.ones(3, 3, 16))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", "ResNet has no blocks with one self-attention"),
        ("mixer_s32_224", "MlpMixer has no blocks with one self-attention"),
        ("convnext_atto", "ConvNeXt has no blocks with one self-attention"),
        ("efficientnet_b0", "EfficientNet has no blocks with one self-attention"),
        ("cait_xxs24_224", r"blocks.0.attn is timm.models.cait.TalkingHeadAttn"),
        ("xcit_nano_12_p16_224", "Xcit has no blocks with one self-attention"),
        ("samvit_base_patch16", "blocks.0.attn is timm.models.vision_transformer_sam.Attention"),
        ("vit_small_patch16_18x2_224", "VisionTransformer has no blocks with one self-attention"),
        ("convit_tiny", r"blocks.0.attn is timm.models.convit.GPSA"),
    ],
)
def test_models_that_cannot_be_served_are_refused_by_name_and_reason(name, reason):
    with torch.device("meta"):
        net = timm.create_model(name)
    with pytest.raises(Refused, match=reason):
        attention_layers(net, (224, 224))


def test_windows_over_padding_are_refused():
    with torch.device("meta"):
        net = timm.create_model("swin_tiny_patch4_window7_224", img_size=256)
    with pytest.raises(Refused, match="pads the 64x64 grid of stage 0 to whole windows of 7x7"):
        attention_layers(net, (256, 256))


def test_a_patch_is_as_large_as_it_is_where_patches_do_not_fill_the_image():
    net = VisionTransformer(**SMALL | {"img_size": 35, "num_heads": 2})
    layer = attention_layers(net, (35, 35))[0]
    assert layer.patch == net.patch_embed.patch_size[0] != 35 / layer.grid[0]


def test_differential_attention_is_refused():
    net = VisionTransformer(**SMALL | {"num_heads": 2}, attn_layer="diff")
    with pytest.raises(Refused, match=r"blocks.0.attn is timm.layers.diff_attention.DiffAttention"):
        attention_layers(net, (32, 32))


class Twice(nn.Module):
    def forward(self, x):
        return x.softmax(dim=-1).softmax(dim=-1)


@pytest.mark.parametrize(("module", "seen"), [(nn.Identity(), 0), (Twice(), 2)])
def test_a_layer_without_one_visible_map_is_refused(module, seen):
    layer = Layer("decoder.0", module, (2, 2))
    with observed([layer], 1, lambda seen: None), pytest.raises(Refused, match=f"decoder.0 .* made {seen} attention"):
        module(torch.zeros(1, 1, 4, 4))


def test_tokens_that_do_not_lie_on_the_grid_are_refused():
    net, images = built("vit")
    layer = Layer("blocks.0.attn", net.blocks[0].attn, (4, 4), prefix=0)
    with observed([layer], 3, lambda seen: None), pytest.raises(Refused, match="attends 17x17"):
        net.forward_features(images)


def test_hooks_are_gone_after_an_error_and_other_threads_are_not_seen():
    net, images = built("vit")
    layers = attention_layers(net, (32, 32))

    def fail(seen: Seen) -> None:
        raise RuntimeError("receiver")

    with pytest.raises(RuntimeError, match="receiver"), observed(layers, 3, fail):
        net.forward_features(images)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    with observed(layers, 3, fail):
        thread = threading.Thread(target=net.forward_features, args=(images,))
        thread.start()
        thread.join()


def test_maps_are_not_kept():
    net, images = built("vit")
    maps = []
    with observed(attention_layers(net, (32, 32)), 3, lambda seen: maps.append(weakref.ref(seen.maps))):
        net.forward_features(images)
        assert maps
        assert not any(map_() is not None for map_ in maps)


def test_a_class_token_that_takes_half_of_the_mass_is_renormalised_away():
    # Four patches and a class token; every row gives half to it and an eighth to each patch.
    scores = torch.tensor([4.0, 1, 1, 1, 1]).log().expand(1, 1, 5, 5)
    torch.testing.assert_close(patch_maps(scores, 1), torch.full((1, 1, 4, 4), 0.25))
    torch.testing.assert_close(patch_maps(scores, 1, renormalise=False), torch.full((1, 1, 4, 4), 0.125))
