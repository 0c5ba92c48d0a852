"""Checkpoints of older layouts: renamed exactly, or refused in one sentence."""

import argparse
import hashlib
import re

import pytest
import safetensors
import torch
from torch import nn

from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.legacy import convert, modernise
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights

SWINS = [name for name, card in ZOO.items() if card.family == "swin" and name.endswith("_mini")]


def build(name="swin_t_mini", classes=10):
    return TapModel(ZOO[name], classes).net


def old_swin(net):
    """The state as timm 0.6.5 saved it: down-sampling one stage earlier, `head`, and the derived buffers."""
    state = {}
    for name, value in net.state_dict().items():
        name = re.sub(r"layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        state[name.replace("head.fc.", "head.")] = value
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    state["layers.1.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return state


def old_convnext(net):
    """The state as ConvNeXt's authors saved it: layers numbered, down-sampling apart from the stages."""
    state = {}
    for name, value in net.state_dict().items():
        name = re.sub(r"stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2", name)
        name = re.sub(r"stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", name)
        name = name.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        state[name.replace("head.norm.", "norm.").replace("head.fc.", "head.")] = value
    return state


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", SWINS)
def test_old_swins_come_back_as_they_were(name):
    net = build(name)
    old = old_swin(net)
    assert old.keys() != net.state_dict().keys()
    assert "layers.0.downsample.reduction.weight" in old
    assert equal(modernise(old, build(name)), net.state_dict())


def test_convnext_of_its_authors_comes_back_as_it_was():
    net = build("convnext_t_ofa_mini")
    assert equal(modernise(old_convnext(net), build("convnext_t_ofa_mini")), net.state_dict())


@pytest.mark.parametrize("name", [name for name in ZOO if name.endswith("_mini")])
def test_todays_layout_of_every_family_is_left_alone(name):
    net = build(name)
    assert equal(modernise(net.state_dict(), build(name)), net.state_dict())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_of_a_wrapped_model_lose_their_prefix(prefix):
    net = build()
    wrapped = {f"{prefix}{name}": value for name, value in old_swin(net).items()}
    assert equal(modernise(wrapped, build()), net.state_dict())


def test_down_sampling_joins_neighbours_in_the_order_of_old_checkpoints():
    """timm 0.6.5 concatenated (even, even), (odd, even), (even, odd), (odd, odd) rows and columns."""
    merge = build().layers[1].downsample
    x = torch.randn(2, 4, 6, merge.dim, dtype=torch.float64)
    parts = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    joined = nn.functional.layer_norm(
        torch.cat(parts, -1), (4 * merge.dim,), merge.norm.weight.double(), merge.norm.bias.double()
    )
    wanted = joined @ merge.reduction.weight.double().T
    torch.testing.assert_close(merge.double()(x), wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("resnet18_mini", "swin_t_mini"), ("vit_s16_mini", "convnext_t_mini"), ("swin_t_mini", "resnet18_mini")],
)
def test_weights_of_another_architecture_are_refused_in_one_sentence(given, wanted):
    with pytest.raises(
        UserError, match=r"another architecture than \w+: it (lacks|also has) \S+ and \d+ more\."
    ) as error:
        modernise(build(given).state_dict(), build(wanted))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("lost", "sentence"), [(True, r"it lacks norm\.weight\.$"), (False, r"it also has extra\.$")])
def test_one_name_too_few_or_too_many_is_told(lost, sentence):
    old = old_swin(build())
    if lost:
        del old["norm.weight"]
    else:
        old["extra"] = torch.zeros(3)
    with pytest.raises(UserError, match=sentence):
        modernise(old, build())


def test_other_classes_or_widths_are_refused_naming_both_shapes():
    with pytest.raises(UserError, match=r"for other classes: head\.fc\.weight is \(7, 48\) instead of \(10, 48\)"):
        modernise(old_swin(build(classes=7)), build())
    with pytest.raises(UserError, match="weights of another"):
        modernise(old_swin(build("swin_b_mini")), build())


def test_batch_norms_without_counters_count_from_zero():
    net = build("resnet18_mini")
    old = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert equal(modernise(old, build("resnet18_mini")), net.state_dict())


def test_nothing_is_resized_silently():
    old = old_swin(build())
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    old[table] = torch.zeros(13 * 13, old[table].shape[1])
    with pytest.raises(UserError, match=f"{table} would have to be resized"):
        modernise(old, build())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_conversion_gives_a_file_the_suite_loads_and_says_where_it_came_from(tmp_path, suffix):
    net, source, target = build(), tmp_path / f"old{suffix}", tmp_path / "weights" / "swin.safetensors"
    if suffix == ".pth":
        arguments = argparse.Namespace(model="swin", lr=0.1)  # timm's training script saves it beside the weights
        torch.save({"epoch": 9, "arch": "swin", "state_dict": old_swin(net), "args": arguments}, source)
    else:
        safetensors.torch.save_file({name: value.clone() for name, value in old_swin(net).items()}, source)
    digest = convert(source, ZOO["swin_t_mini"], 10, target)
    other = build()
    assert load_weights(other, target, expected_sha256=digest) == digest
    assert equal(other.state_dict(), net.state_dict())
    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == {"source_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(other.eval()(x), net.eval()(x))


def test_equal_sources_give_equal_files(tmp_path):
    torch.save(old_swin(build()), tmp_path / "old.pth")
    digests = {convert(tmp_path / "old.pth", ZOO["swin_t_mini"], 10, tmp_path / f"{i}.safetensors") for i in range(3)}
    assert len(digests) == 1


def refused(source, target, classes=10):
    with pytest.raises(UserError) as error:
        convert(source, ZOO["swin_t_mini"], classes, target)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_conversion_refuses_what_it_cannot_do_and_writes_nothing(tmp_path):
    source, target = tmp_path / "old.pth", tmp_path / "new.safetensors"
    assert "There is no weights file" in refused(source, target)
    source.write_bytes(b"garbage")
    assert re.search("truncated|damaged", refused(source, target))
    torch.save(build("resnet18_mini").state_dict(), source)
    assert f"{source} is not for swin_t_mini with 10 classes. These are weights of another" in refused(source, target)
    torch.save(old_swin(build()), source)
    assert "for other classes" in refused(source, target, classes=7)
    assert "must end in .safetensors" in refused(source, tmp_path / "new.pth")
    assert list(tmp_path.iterdir()) == [source]
    target.write_bytes(b"mine")
    assert "is there already" in refused(source, target)
    (tmp_path / "file").write_bytes(b"")
    assert "could not be written" in refused(source, tmp_path / "file" / "new.safetensors")


class Intruder:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a weights file was run')",)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "args": argparse.Namespace(a=Intruder())}, tmp_path / "net.pth")
    assert "holds pickled code, which is never run" in refused(tmp_path / "net.pth", tmp_path / "new.safetensors")
