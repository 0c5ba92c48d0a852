"""Loading and saving weights: round trips, and each way a file can be wrong."""

import hashlib
import pickle

import pytest
import safetensors.torch
import torch
from torch import nn

from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
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
