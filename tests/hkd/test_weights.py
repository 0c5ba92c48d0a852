"""Loading and saving weights: round trips, and each way a file can be wrong."""

import argparse
import contextlib
import hashlib
import os
import pickle
import random
import zipfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.files import bare, classes_of, read_weights
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights, save_weights


def build(name="resnet18_mini", classes=10):
    return TapModel(ZOO[name], classes).net


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def saved(tmp_path):
    """A network and the file its weights were saved to."""
    net, path = build(), tmp_path / "net.safetensors"
    save_weights(net.state_dict(), path)
    return net, path


@pytest.mark.parametrize("name", [name for name in ZOO if name.endswith("_mini")])
def test_round_trip_gives_the_same_bytes_for_every_family(tmp_path, name):
    net, other, path = build(name), build(name), tmp_path / "net.safetensors"
    save_weights(net.state_dict(), path)
    assert load_weights(other, path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert equal(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_pytorch_files_load_wrapped_or_not(tmp_path, suffix, wrapper):
    net, other, path = build(), build(), tmp_path / f"net{suffix}"
    torch.save({wrapper: net.state_dict(), "epoch": 3} if wrapper else net.state_dict(), path)
    load_weights(other, path)
    assert equal(net.state_dict(), other.state_dict())


def test_equal_states_give_equal_files(saved, tmp_path):
    net, path = saved
    save_weights(dict(reversed(net.state_dict().items())), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_shared_and_strided_tensors_are_saved_as_their_values(tmp_path):
    base = torch.randn(4, 6)
    save_weights({"a": base, "b": base, "c": base.T, "d": base[:, ::2]}, tmp_path / "x.safetensors")
    found = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert equal(found, {"a": base, "b": base, "c": base.T, "d": base[:, ::2]})


def test_channels_last_weights_are_saved_as_timm_saves_them(tmp_path):
    net, path = build("resnet50_mini"), tmp_path / "net.safetensors"
    save_weights(net.state_dict(), path)
    plain = build("resnet50_mini").to(memory_format=torch.contiguous_format)
    load_weights(plain, path)
    assert equal(plain.state_dict(), net.state_dict())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"There is no weights file .*absent\.pt"):
        load_weights(build(), tmp_path / "absent.pt")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_truncated_safetensors_is_refused(saved, keep):
    _, path = saved
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        load_weights(build(), path)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_truncated_pytorch_file_is_refused(tmp_path, keep):
    path = tmp_path / "net.pt"
    torch.save(build().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match=r"truncated|damaged"):
        load_weights(build(), path)


def test_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "net.npz"
    path.write_bytes(b"anything")
    with pytest.raises(UserError, match=r"it takes \.safetensors, \.pt, \.pth"):
        load_weights(build(), path)


def test_other_hash_is_refused_before_anything_is_read(saved):
    _, path = saved
    path.write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"has SHA-256 .* but 0000 was asked for"):
        load_weights(build(), path, expected_sha256="0000")


def test_expected_hash_is_accepted_in_any_case(saved):
    net, path = saved
    other = build()
    load_weights(other, path, expected_sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())
    assert equal(net.state_dict(), other.state_dict())


def test_other_architecture_is_refused_naming_first_missing_and_unexpected(saved):
    _, path = saved
    with pytest.raises(UserError, match=r"another architecture than this VisionTransformer .*missing: .*unexpected: "):
        load_weights(build("vit_s16_mini"), path)


def test_other_width_is_refused_naming_both_shapes(saved):
    _, path = saved
    with pytest.raises(UserError, match=r"of another shape: .* instead of .* and \d+ more"):
        load_weights(build("resnet50_mini"), path)


def test_other_number_of_classes_is_refused(saved):
    _, path = saved
    with pytest.raises(UserError, match=r"fc\.weight \(10, 96\) instead of \(7, 96\)"):
        load_weights(build(classes=7), path)


def test_refused_file_leaves_the_network_as_it_was(saved):
    _, path = saved
    net = build(classes=7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(net, path)
    assert equal(before, net.state_dict())


def test_patch_size_is_never_bridged(tmp_path):
    save_weights(build("vit_b16_mini").state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=r"patch_embed\.proj\.weight"):
        load_weights(build("vit_b14_mini"), tmp_path / "net.safetensors")


@pytest.mark.parametrize("name", ["eva_l14_mini", "vit_s16_mini"])
def test_positions_of_another_grid_are_resampled(tmp_path, name):
    card = ZOO[name]
    larger = type(build(name))(**card.kwargs | {"img_size": card.kwargs["patch_size"] * 7, "num_classes": 10})
    save_weights(larger.state_dict(), tmp_path / "net.safetensors")
    net = build(name)
    load_weights(net, tmp_path / "net.safetensors")
    prefix = net.num_prefix_tokens
    assert torch.equal(net.pos_embed[:, :prefix], larger.pos_embed[:, :prefix])
    torch.testing.assert_close(
        net.pos_embed[:, prefix:].mean(), larger.pos_embed[:, prefix:].mean(), rtol=0.2, atol=3e-3
    )
    assert torch.equal(net.blocks[0].attn.qkv.weight, larger.blocks[0].attn.qkv.weight)


def test_buffers_that_swin_derives_itself_are_ignored(tmp_path):
    net = build("swin_s_mini")
    state = dict(net.state_dict())
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
    state["layers.1.blocks.0.attn_mask"] = torch.zeros(1, 16, 16)
    save_weights(state, tmp_path / "net.safetensors")
    load_weights(build("swin_s_mini"), tmp_path / "net.safetensors")


class Intruder:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a weights file was run')",)


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Intruder()}, tmp_path / "net.pt")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Intruder()))
    for name in ("net.pt", "bare.pth"):
        with pytest.raises(UserError, match="holds pickled code, which is never run"):
            load_weights(build(), tmp_path / name)


def test_whole_pickled_module_is_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(UserError, match="holds pickled code"):
        load_weights(build(), tmp_path / "net.pt")


def test_file_without_tensors_by_name_is_refused(tmp_path):
    torch.save({"epoch": 3, "names": ["a"]}, tmp_path / "net.pt")
    with pytest.raises(UserError, match="holds no tensors by name"):
        load_weights(build(), tmp_path / "net.pt")


def test_failed_save_keeps_the_old_file_and_leaves_nothing_beside_it(saved, monkeypatch):
    net, path = saved
    old = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_weights({name: value + 1 for name, value in net.state_dict().items()}, path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


# --- what others wrote


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_all_names_goes(tmp_path, prefix):
    net, other = build(), build()
    torch.save({f"{prefix}{name}": value for name, value in net.state_dict().items()}, tmp_path / "net.pth")
    load_weights(other, tmp_path / "net.pth")
    assert equal(net.state_dict(), other.state_dict())


def test_names_of_which_only_some_have_a_prefix_are_not_touched():
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert list(bare(state)) == ["module.a", "b"]
    assert bare({}) == {}


def test_counters_that_old_batch_norms_did_not_have_are_zero(tmp_path):
    net, other = build(), build()
    other.bn1.num_batches_tracked.fill_(7)
    old = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "net.pth")
    load_weights(other, tmp_path / "net.pth")
    assert other.bn1.num_batches_tracked == 0
    assert torch.equal(other.bn1.running_var, net.bn1.running_var)
    del old["bn1.running_mean"]
    torch.save(old, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"missing: bn1\.running_mean, bn1\.num_batches_tracked"):
        load_weights(other, tmp_path / "net.pth")


def test_records_beside_the_weights_are_passed_over_unread(tmp_path):
    net, other = build(), build()
    beside = {
        "args": argparse.Namespace(lr=0.1),
        "folder": Path("out"),
        "metric": np.float64(71.0),
        "history": np.arange(3.0),
    }
    torch.save({"state_dict": net.state_dict(), **beside}, tmp_path / "net.pth")
    load_weights(other, tmp_path / "net.pth")
    assert equal(net.state_dict(), other.state_dict())


def test_code_that_a_file_asks_for_is_named(tmp_path):
    torch.save({"state_dict": build().state_dict(), "when": timedelta(1)}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"never run; convert it to tensors\. It asks for datetime\.timedelta"):
        load_weights(build(), tmp_path / "net.pth")


def refusal(path, content):
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_plain_tensor_under_a_string_is_named(tmp_path):
    path, plain = tmp_path / "net.pt", torch.zeros(2, 2)
    assert "names a tensor 3, which is no string" in refusal(path, {3: plain})
    assert "a is sparse (torch.sparse_coo)" in refusal(path, {"a": plain.to_sparse()})
    assert "a is of the type torch.complex64" in refusal(path, {"a": plain.to(torch.complex64)})
    assert "a is without values" in refusal(path, {"a": plain.to("meta")})
    assert "a is one value shown many times, (1000000000000,)" in refusal(path, {"a": torch.zeros(1).expand(10**12)})


def test_a_file_that_unpacks_to_more_than_it_has_is_refused_before_it_is_read(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as source, zipfile.ZipFile(tmp_path / "bomb.pt", "w", 8) as bomb:
        for name in source.namelist():
            bomb.writestr(name, source.read(name))
    monkeypatch.setattr("torch.load", None)
    with pytest.raises(UserError, match=r"bomb\.pt has \d+ bytes and would unpack to \d{6}"):
        read_weights(tmp_path / "bomb.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_larger_than_memory_is_refused_before_it_is_hashed(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"net{suffix}"
    path.touch()
    os.truncate(path, 2**43)  # holds nothing, and takes no room
    monkeypatch.setattr("hkd.models.weights.weights_sha256", None)
    with pytest.raises(UserError, match=r"has 8192\.0 GiB, and this machine"):
        load_weights(build(), path)


def test_whole_numbers_are_no_weights(tmp_path):
    state = {name: value.int() for name, value in build().state_dict().items()}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(UserError, match=r"of another type: conv1\.0\.weight torch\.int32 instead of torch\.float32"):
        load_weights(build(), tmp_path / "net.pt")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_are_a_sentence(tmp_path, seed):
    path = tmp_path / "net.pt"
    torch.save({"a": torch.arange(6.0), "b": {"c": 1}}, path, _use_new_zipfile_serialization=seed % 2 == 0)
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(3):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_weights(path)


def test_classes_are_told_by_a_classifiers_rows():
    assert [classes_of(torch.zeros(shape)) for shape in ((7, 3), (7, 3, 1, 1), (10**12, 0), ())] == [7, 7, 0, 0]
    assert classes_of(None) == 0


@pytest.mark.parametrize("kind", [b"torch\nFloatStorage", b"torch\nDoubleStorage", b"torch\nUnknownStorage"])
def test_an_old_file_that_claims_a_huge_storage_is_refused_before_torch_reads_it(tmp_path, monkeypatch, kind):
    path = tmp_path / "old.pt"
    torch.save({"a": torch.zeros(4, 4)}, path, _use_new_zipfile_serialization=False)
    assert read_weights(path)["a"].shape == (4, 4)
    content = path.read_bytes().replace(b"torch\nFloatStorage", kind)
    place = content.index(b"K\x10", content.index(b"cpu"))
    path.write_bytes(content[:place] + b"J\xff\xff\xff\x7f" + content[place + 2 :])
    monkeypatch.setattr("torch.load", None)
    with pytest.raises(UserError, match=r"old\.pt has \d+ bytes and claims to hold tensors of \d{10}"):
        read_weights(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_refused(saved, value):
    net, path = saved
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state["conv1.0.weight"][0] = value
    save_weights(state, path)
    with pytest.raises(UserError, match=r"conv1\.0\.weight holds NaN or infinities"):
        load_weights(build(), path)
