"""Checkpoints of OpenMMLab and OFA-KD: every name comes to timm's, and down-sampling joins the same pixels."""

import re
import sys
import types

import pytest
import torch
from torch import nn

from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.files import read_weights
from hkd.models.convert.foreign import OFA_BLOCKS, renamed
from hkd.models.convert.legacy import modernise
from hkd.models.families.base import family_of

UNFOLD = {0: 0, 1: 2, 2: 1, 3: 3}  # a neighbour of timm -> its place row by row


def build(card, classes=10):
    return family_of(ZOO[card].family).build(ZOO[card], classes)


def openmmlab(name, value, rules):
    """A name of timm as mmcls has it, by the first rule that matches."""
    for pattern, new in rules:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, new, name), value
    raise AssertionError(name)


def of_vit(name, value):
    return openmmlab(
        name,
        value,
        [
            (r"head\.(\w+)", r"head.layers.head.\1"),
            (r"norm\.(\w+)", r"backbone.ln1.\1"),
            (r"patch_embed\.proj\.(\w+)", r"backbone.patch_embed.projection.\1"),
            (r"blocks\.(\d+)\.norm(\d)\.(\w+)", r"backbone.layers.\1.ln\2.\3"),
            (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"backbone.layers.\1.ffn.layers.0.0.\2"),
            (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"backbone.layers.\1.ffn.layers.1.\2"),
            (r"blocks\.(\d+)\.attn\.(.+)", r"backbone.layers.\1.attn.\2"),
            (r"(pos_embed|cls_token)", r"backbone.\1"),
        ],
    )


def of_mixer(name, value):
    return openmmlab(
        name,
        value,
        [
            (r"head\.(\w+)", r"head.fc.\1"),
            (r"norm\.(\w+)", r"backbone.ln1.\1"),
            (r"stem\.proj\.(\w+)", r"backbone.patch_embed.projection.\1"),
            (r"blocks\.(\d+)\.norm(\d)\.(\w+)", r"backbone.layers.\1.ln\2.\3"),
            (r"blocks\.(\d+)\.mlp_tokens\.fc1\.(\w+)", r"backbone.layers.\1.token_mix.layers.0.0.\2"),
            (r"blocks\.(\d+)\.mlp_tokens\.fc2\.(\w+)", r"backbone.layers.\1.token_mix.layers.1.\2"),
            (r"blocks\.(\d+)\.mlp_channels\.fc1\.(\w+)", r"backbone.layers.\1.channel_mix.layers.0.0.\2"),
            (r"blocks\.(\d+)\.mlp_channels\.fc2\.(\w+)", r"backbone.layers.\1.channel_mix.layers.1.\2"),
        ],
    )


def of_swin(name, value):
    if found := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name):
        apart = value.unflatten(-1, (4, -1))  # timm: neighbours outermost
        joined = torch.stack([apart[..., place, :] for place in (UNFOLD[k] for k in range(4))], -1).flatten(-2)
        return f"backbone.stages.{int(found[1]) - 1}.downsample.{found[2]}", joined
    return openmmlab(
        name,
        value,
        [
            (r"head\.fc\.(\w+)", r"head.fc.\1"),
            (r"norm\.(\w+)", r"backbone.norm3.\1"),
            (r"patch_embed\.proj\.(\w+)", r"backbone.patch_embed.projection.\1"),
            (r"patch_embed\.norm\.(\w+)", r"backbone.patch_embed.norm.\1"),
            (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.(.+)", r"backbone.stages.\1.blocks.\2.attn.w_msa.\3"),
            (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"backbone.stages.\1.blocks.\2.ffn.layers.0.0.\3"),
            (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"backbone.stages.\1.blocks.\2.ffn.layers.1.\3"),
            (r"layers\.(\d+)\.blocks\.(\d+)\.(norm\d\.\w+)", r"backbone.stages.\1.blocks.\2.\3"),
        ],
    )


def of_resnet(name, value):
    return (name.replace("fc.", "head.fc.") if name.startswith("fc.") else f"backbone.{name}"), value


def of_ofa(name, value):
    parts = {"conv_dw": "0", "bn1": "1", "conv_pw": "3", "bn2": "4"}
    if found := re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name):
        number = OFA_BLOCKS.index((int(found[1]), int(found[2]))) + 1
        return f"model.{number}.{parts[found[3]]}.{found[4]}", value
    name = re.sub(r"^conv_stem\.", "model.0.0.", name)
    return re.sub(r"^classifier\.", "fc.", re.sub(r"^bn1\.", "model.0.1.", name)), value


@pytest.mark.parametrize(
    ("card", "head", "as_theirs"),
    [
        ("vit_s16_mini", "head", of_vit),
        ("mixer_s16_mini", "head", of_mixer),
        ("swin_t_mini", "head.fc", of_swin),
        ("resnet18_mini", "fc", of_resnet),
        ("mobilenet_v1", "classifier", of_ofa),
    ],
)
def test_every_name_comes_to_timms(card, head, as_theirs):
    net = build(card)
    own = net.state_dict()
    theirs = dict(as_theirs(name, value) for name, value in own.items())
    assert theirs.keys() != own.keys()
    found = renamed(theirs, head)
    assert "made timm's" in found.told[0]
    state = modernise(found.state, build(card))
    assert all(torch.equal(state[name], own[name]) for name in own)


def test_swins_neighbours_are_those_of_unfold():
    merge = build("swin_t_mini").layers[1].downsample.double()
    x = torch.randn(2, 4, 6, merge.dim, dtype=torch.float64)
    _, weight = of_swin("layers.1.downsample.reduction.weight", merge.reduction.weight)
    _, scale = of_swin("layers.1.downsample.norm.weight", merge.norm.weight)
    _, shift = of_swin("layers.1.downsample.norm.bias", merge.norm.bias)
    joined = nn.Unfold(2, stride=2)(x.permute(0, 3, 1, 2)).transpose(1, 2)  # what mmcls does
    wanted = nn.functional.layer_norm(joined, (4 * merge.dim,), scale, shift) @ weight.T
    torch.testing.assert_close(merge(x).flatten(1, 2), wanted)


def test_mobilenet_v2_of_openmmlab_has_a_name_for_every_tensor():
    own = build("mobilenet_v2").state_dict()
    theirs = {}
    for name, value in own.items():
        if found := re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)", name):
            stage, block, part, kind = found.groups()
            parts = ("conv_dw", "conv_pw") if stage == "0" else ("conv_pw", "conv_dw", "conv_pwl")
            place = parts.index(part) if part in parts else int(part[-1]) - 1
            unit = "conv" if part in parts else "bn"
            theirs[f"backbone.layer{int(stage) + 1}.{block}.conv.{place}.{unit}.{kind}"] = value
        else:
            stem = {"conv_stem": "conv1.conv", "bn1": "conv1.bn", "conv_head": "conv2.conv", "bn2": "conv2.bn"}
            module, _, kind = name.rpartition(".")
            theirs[f"backbone.{stem[module]}.{kind}" if module in stem else f"head.fc.{kind}"] = value
    found = renamed(theirs, "classifier").state
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)


def test_of_a_distillation_the_student_is_taken_and_the_rest_is_named():
    net = build("resnet18_mini")
    theirs = {f"student.{key}": value for key, value in (of_resnet(*item) for item in net.state_dict().items())}
    found = renamed(theirs | {"teacher.backbone.norm3.bias": torch.ones(1), "linear.bias": torch.ones(1)}, "fc")
    assert found.told[0] == (
        "The file is of a distillation: `student.` is taken, and left are teacher (1 tensors), linear (1 tensors)."
    )
    assert found.state.keys() == net.state_dict().keys()


def test_names_of_timm_are_left_alone():
    state = build("resnet18_mini").state_dict()
    found = renamed(state, "fc")
    assert not found.told
    assert found.state.keys() == state.keys()


def test_what_openmmlabs_training_keeps_beside_its_weights_is_passed_over(tmp_path, monkeypatch):
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.methods = {"min": HistoryBuffer.minimum}
            self.history = [1.0]

        def minimum(self):
            return min(self.history)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    HistoryBuffer.minimum.__qualname__ = "HistoryBuffer.minimum"
    HistoryBuffer.minimum.__module__ = module.__name__
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "epoch_300.pth.tar"
    torch.save({"state_dict": {"fc.bias": torch.ones(3)}, "message_hub": {"loss": HistoryBuffer()}}, path)
    assert torch.equal(read_weights(path)["fc.bias"], torch.ones(3))
    with pytest.raises(UserError, match=r"it takes .*\.pth\.tar"):
        read_weights(tmp_path / "weights.bin")
