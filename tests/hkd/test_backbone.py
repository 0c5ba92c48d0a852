"""Backbones of dense tasks: the maps of the model itself at its own size, positions of other sizes, strict weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table_simple
from timm.models.beit import gen_relative_position_index

from hkd.downstream.backbone import Backbone, load_pretrained
from hkd.errors import Refused, UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import Weights

NAMES = (
    "resnet18_mini",
    "sparse_resnet18_mini",
    "convnext_t_mini",
    "mobilenet_v2_mini",
    "swin_t_mini",
    "vit_s16_mini",
    "deit_t_mini",
    "eva_l14_mini",
    "mae_b16_mini",
    "hybrid_b16_mini",
    "beit_b16_mini",
)


def pair(name, classes=0):
    """The same weights as a backbone and as a model with taps, in evaluation mode."""
    torch.manual_seed(1)
    model = TapModel(ZOO[name], classes).eval()
    backbone = Backbone(ZOO[name]).eval()
    for parameter in model.net.parameters():  # tables of biases begin at zero, which would hide them
        torch.nn.init.normal_(parameter, std=0.2)
    state = model.net.state_dict()
    backbone.net.load_state_dict({key: state[key] for key in backbone.net.state_dict()})
    return backbone, model


def image(height, width, count=2):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NAMES)
def test_at_the_models_own_size_maps_are_its_stages_to_the_bit(name):
    backbone, model = pair(name)
    side = ZOO[name].image_size
    x = image(side, side)
    backbone(image(2 * backbone.multiple, 3 * backbone.multiple))  # another size before leaves nothing behind
    with torch.no_grad():
        maps, stages = backbone(x), model(x, Want(stages=(1, 2, 3, 4))).stages
    assert all(torch.equal(map_, stages[stage]) for stage, map_ in enumerate(maps, 1))
    assert backbone.channels == tuple(map_.shape[1] for map_ in maps)
    assert backbone.net.state_dict().keys() == model.net.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_images_of_any_size_have_maps_of_their_strides(name):
    backbone, _ = pair(name)
    height, width = 2 * backbone.multiple, 6 * backbone.multiple
    maps = backbone(image(height, width))
    assert list(backbone.strides) == sorted(backbone.strides)
    assert backbone.multiple == backbone.strides[-1]
    for map_, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
        assert map_.shape == (2, channels, height // stride, width // stride)


@pytest.mark.parametrize("name", ["vit_s16_mini", "hybrid_b16_mini"])
@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_positions_of_another_grid_are_those_of_timm(name, size):
    backbone, model = pair(name)
    own = model.net.patch_embed.grid_size
    patch = ZOO[name].kwargs["patch_size"]
    grid = (size[0] // patch, size[1] // patch)
    positions = resample_abs_pos_embed(model.net.pos_embed, list(grid), list(own), 0)
    x = image(*size)
    tokens = model.net.patch_embed.proj((x - 0.5) / 0.25).flatten(2).transpose(1, 2) + positions
    for block in model.net.blocks:
        tokens = block(tokens)
    expected = tokens.transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(backbone(x)[3], expected, rtol=1e-4, atol=1e-4)


def test_beits_biases_of_another_grid_are_its_table_resized_and_gradients_reach_it():
    backbone, model = pair("beit_b16_mini")
    net, grid, x = model.net, (16, 8), image(64, 32)
    rows, index = 31 * 15 + 3, gen_relative_position_index(grid)
    tokens = net.patch_embed.proj((x - 0.5) / 0.25).flatten(2).transpose(1, 2)
    tokens = torch.cat([net.cls_token.expand(2, -1, -1), tokens], dim=1)
    for block in net.blocks:
        table = resize_rel_pos_bias_table_simple(block.attn.relative_position_bias_table, grid, (rows, 6))
        block.attn.relative_position_bias_table = None
        tokens = block(tokens, shared_rel_pos_bias=table[index].permute(2, 0, 1)[None])
    expected = tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
    found = backbone(x)[3]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert all(block.attn.relative_position_bias_table.grad.abs().sum() > 0 for block in backbone.net.blocks)


def test_a_beit_with_absolute_positions_and_a_shared_table_serves_other_sizes():
    kwargs = ZOO["beit_b16_mini"].kwargs | {
        "use_abs_pos_emb": True,
        "use_rel_pos_bias": False,
        "use_shared_rel_pos_bias": True,
    }
    backbone = Backbone(replace(ZOO["beit_b16_mini"], kwargs=kwargs))
    backbone(image(64, 48))[3].sum().backward()
    assert backbone.net.pos_embed.grad.abs().sum() > 0
    assert backbone.net.rel_pos_bias.relative_position_bias_table.grad is not None


def test_swin_shifts_its_windows_where_the_map_exceeds_one_and_only_there():
    backbone, _ = pair("swin_t_mini")
    shifted = backbone.net.layers[1].blocks[1]  # 4 x 4 tokens at 32 px: one window
    shifts = []
    for size in ((64, 64), (32, 32), (32, 64)):
        backbone(image(*size))
        shifts.append(shifted.shift_size)
    assert shifts == [(2, 2), (0, 0), (0, 2)]


def test_images_are_normalised_by_the_card():
    plain, _ = pair("resnet18_mini")
    other = Backbone(replace(ZOO["resnet18_mini"], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))).eval()
    other.net.load_state_dict(plain.net.state_dict())
    x = image(32, 32)
    torch.testing.assert_close(plain(x)[3], other((x - 0.5) / 0.25)[3])


def test_gradients_reach_the_weights_at_another_size():
    for name in ("swin_t_mini", "hybrid_b16_mini"):
        backbone, _ = pair(name)
        backbone(image(64, 64))[3].square().mean().backward()
        assert backbone.net.patch_embed.proj.weight.grad.abs().sum() > 0


def test_sides_that_are_no_multiples_are_refused():
    backbone, _ = pair("resnet18_mini")
    with pytest.raises(UserError, match=r"multiples of 16 px, got 40 x 64"):
        backbone(image(64, 40))


def test_models_of_one_image_size_are_refused():
    for name in ("mixer_s16_mini", "resmlp_s12_mini"):
        with pytest.raises(Refused, match=f"{name} mixes the tokens of one image size"):
            Backbone(ZOO[name])


def test_a_model_without_four_taps_is_refused():
    with pytest.raises(Refused, match=r"resnet18_mini has 3 taps: name 4"):
        Backbone(replace(ZOO["resnet18_mini"], stages=(1, 2, 3)))


def test_stochastic_depth_is_taken_from_the_recipe():
    backbone = Backbone(ZOO["vit_s16_mini"], drop_path=0.3).train()
    assert backbone.net.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)


# --- weights


def written(path, state):
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return Weights(kind="run", id="r"), {"r": path}


@pytest.mark.parametrize(
    "name", ["resnet18_mini", "swin_t_mini", "hybrid_b16_mini", "beit_b16_mini", "convnext_t_mini"]
)
@pytest.mark.parametrize("classes", [0, 10])
def test_weights_of_a_student_are_taken_without_its_classifier_and_run_at_another_size(tmp_path, name, classes):
    expected, model = pair(name, classes)
    source, files = written(tmp_path / "student.safetensors", model.net.state_dict())
    torch.manual_seed(5)
    backbone = Backbone(ZOO[name]).eval()
    load_pretrained(backbone, source, files)
    x = image(64, 64)
    assert all(torch.equal(one, other) for one, other in zip(backbone(x), expected(x), strict=True))


def test_missing_and_unexpected_weights_are_named(tmp_path):
    _, model = pair("resnet18_mini")
    state = model.net.state_dict()
    state["stranger.weight"] = state.pop("layer1.0.conv1.weight")
    source, files = written(tmp_path / "student.safetensors", state)
    backbone = Backbone(ZOO["resnet18_mini"])
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    with pytest.raises(UserError, match=r"missing: layer1\.0\.conv1\.weight.*unexpected: stranger\.weight"):
        load_pretrained(backbone, source, files)
    assert all(torch.equal(value, before[key]) for key, value in backbone.net.state_dict().items())


def test_weights_of_another_architecture_and_absent_files_are_refused(tmp_path):
    _, model = pair("vit_s16_mini")
    source, files = written(tmp_path / "student.safetensors", model.net.state_dict())
    with pytest.raises(UserError, match="another architecture"):
        load_pretrained(Backbone(ZOO["hybrid_b16_mini"]), source, files)
    with pytest.raises(UserError, match="No file was given for the weights 'r'"):
        load_pretrained(Backbone(ZOO["vit_s16_mini"]), source, {})
    with pytest.raises(UserError, match="There is no weights file"):
        load_pretrained(Backbone(ZOO["vit_s16_mini"]), source, {"r": tmp_path / "absent.safetensors"})


def test_random_weights_asked_for_by_name_are_those_of_their_seed():
    first, second, other = (Backbone(ZOO["vit_s16_mini"]) for _ in range(3))
    for backbone, seed in ((first, "1"), (second, "1"), (other, "2")):
        load_pretrained(backbone, Weights(kind="random", id=seed), {})
    assert torch.equal(first.net.patch_embed.proj.weight, second.net.patch_embed.proj.weight)
    assert not torch.equal(first.net.patch_embed.proj.weight, other.net.patch_embed.proj.weight)
