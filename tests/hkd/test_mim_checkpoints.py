"""Published checkpoints of masked image modelling: small files of the same layout, renamed exactly or refused."""

import argparse
import hashlib

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer

from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.mim_checkpoints import convert, convert_file, load_encoder, recognise, trained_as
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights
from hkd.spec import ModelCard

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
NO_RELATIVE = {"init_values": 0.1, "use_fc_norm": False}
KINDS = ("mae", "beit", "cae")


def build(kind, seed=0, **kwargs):
    torch.manual_seed(seed)
    if kind == "mae":
        return VisionTransformer(**SIZES | kwargs)
    if kind == "beit":
        kwargs = {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": False} | kwargs
    net = Beit(**SIZES | NO_RELATIVE | kwargs)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net


def encoder(kind, seed=1):
    return dict(build(kind, seed).state_dict())


def decoder(prefix, width=8):
    names = ("norm1.weight", "attn.qkv.weight", "attn.proj.bias", "mlp.fc1.weight")
    return {f"{prefix}.{index}.{name}": torch.randn(width) for index in range(2) for name in names}


def full_mae():
    """As MAE's pre-training saves it, decoder and all."""
    extra = {"mask_token": torch.randn(1, 1, 8), "decoder_pos_embed": torch.randn(1, 17, 8)}
    for name in ("decoder_embed", "decoder_norm", "decoder_pred"):
        extra |= {f"{name}.weight": torch.randn(8), f"{name}.bias": torch.randn(8)}
    return encoder("mae") | extra | decoder("decoder_blocks")


def pretrained_beit():
    index = torch.zeros(17, 17, dtype=torch.long)
    extra = {
        "mask_token": torch.randn(1, 1, 16),
        "lm_head.weight": torch.randn(32, 16),
        "lm_head.bias": torch.randn(32),
    }
    return encoder("beit") | extra | {"rel_pos_bias.relative_position_index": index}


def official_cae():
    """As the repository's code of today names it."""
    inner = encoder("cae")
    both = {f"{part}.{name}": value for part in ("encoder", "alignment_encoder") for name, value in inner.items()}
    extra = {"mask_token": torch.randn(1, 1, 8), "rd_pos_embed": torch.randn(1, 17, 8)}
    for name in ("encoder_to_regresser", "encoder_to_regresser_norm", "decoder.norm", "decoder.head", "regresser.norm"):
        extra |= {f"{name}.weight": torch.randn(8), f"{name}.bias": torch.randn(8)}
    return both | extra | decoder("decoder.decoder_blocks") | decoder("regresser.regresser_blocks")


def older_cae():
    inner = encoder("cae")
    both = {f"{part}.{name}": value for part in ("encoder", "teacher") for name, value in inner.items()}
    extra = {"mask_token": torch.randn(1, 1, 16)}
    for name in ("pretext_neck.norm", "pretext_neck.norm2", "pretext_neck.head", "encoder_to_decoder"):
        extra |= {f"{name}.weight": torch.randn(8), f"{name}.bias": torch.randn(8)}
    return both | extra | decoder("pretext_neck.regressor_blocks") | decoder("pretext_neck.decoder_blocks")


LAYOUTS = {
    "mae": ("mae", lambda: encoder("mae")),
    "mae_full": ("mae", full_mae),
    "beit": ("beit", pretrained_beit),
    "cae": ("cae", official_cae),
    "cae_older": ("cae", older_cae),
    "cae_encoder": ("cae", lambda: encoder("cae")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_recognised_and_gives_exactly_the_encoder(layout):
    kind, make = LAYOUTS[layout]
    state, net = make(), build(kind)
    assert recognise(state) == kind == trained_as(net)
    converted, expected = convert(state, net, kind), encoder(kind)
    assert list(converted) == list(net.state_dict())
    assert all(torch.equal(converted[name], expected[name]) for name in expected)
    net.load_state_dict(converted, strict=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_as_authors_save_them_load_with_their_hash(tmp_path, layout):
    kind, make = LAYOUTS[layout]
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": make(), "epoch": 7, "args": argparse.Namespace(lr=1e-3)}, path)
    net, x = build(kind).eval(), torch.rand(2, 3, 16, 16)
    digest = load_encoder(net, path, kind)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    source = build(kind)
    source.load_state_dict(encoder(kind))
    assert torch.equal(net(x), source.eval()(x))


def test_names_of_a_distributed_model_lose_their_prefix():
    state = {f"module.{name}": value for name, value in official_cae().items()}
    assert recognise(state) == "cae"
    assert torch.equal(convert(state, build("cae"), "cae")["norm.weight"], encoder("cae")["norm.weight"])


def test_a_shared_table_goes_to_every_block_of_a_model_that_has_one_each():
    per_block = {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True}
    net, shared = build("beit", **per_block).eval(), build("beit").eval()
    state = pretrained_beit()
    net.load_state_dict(convert(state, net, "beit"))
    shared.load_state_dict(convert(state, shared, "beit"))
    x = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(net(x), shared(x))


def test_a_fine_tuned_beit_keeps_its_classifier():
    kwargs = {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True, "use_fc_norm": True, "num_classes": 3}
    state = dict(build("beit", 1, **kwargs).state_dict())
    state["blocks.0.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    net = build("beit", **kwargs)
    converted = convert(state, net, "beit")
    assert torch.equal(converted["head.weight"], state["head.weight"])
    assert list(converted) == list(net.state_dict())


def test_files_with_timms_names_pass_as_they_are():
    state = build("mae", 1, num_classes=3).state_dict()
    assert recognise(state) == "timm"
    converted = convert(state, build("mae", num_classes=3), "mae")
    assert all(torch.equal(converted[name], value) for name, value in state.items())


@pytest.mark.parametrize("expected", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_of_another_family_is_named(layout, expected):
    kind, make = LAYOUTS[layout]
    if kind == expected:
        return
    names = {"mae": "MAE", "beit": "BEiT", "cae": "CAE"}
    with pytest.raises(UserError, match=f"checkpoint of {names[kind]}, and one of {names[expected]} was asked for"):
        convert(make(), build(expected), expected)


@pytest.mark.parametrize(
    ("names", "origin"),
    [
        (["encoder.mask_token", "encoder.layers.0.blocks.0.norm1.weight", "decoder.0.weight"], "simmim"),
        (["sparse_encoder.sp_cnn.conv1.weight", "dense_decoder.proj.weight", "mask_tokens.0"], "spark"),
        (["blocks.0.attn.q_bias", "cls_pt_layers.0.norm1.weight", "lm_head.weight", "mask_token"], "beit2"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "unknown"),
        ([], "unknown"),
    ],
)
def test_others_are_told_apart_and_refused(names, origin):
    state = {name: torch.zeros(1) for name in names}
    assert recognise(state) == origin
    with pytest.raises(UserError, match="By its names this is a checkpoint of"):
        convert(state, build("mae"), "mae")


@pytest.mark.parametrize("name", [name for name in ZOO if name.endswith("_mini")])
def test_no_model_of_the_zoo_without_masks_is_taken_for_a_pretrained_beit_or_cae(name):
    if ZOO[name].family not in ("beit", "hybrid_beit", "mim_vit"):
        assert recognise(TapModel(ZOO[name], 3).net.state_dict()) in ("timm", "unknown", "mae")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda state: state.pop("blocks.1.norm2.bias"), r"lacks blocks\.1\.norm2\.bias"),
        (lambda state: state.update({"surprise": torch.zeros(1)}), r"also has surprise"),
        (lambda state: state.update({"pos_embed": torch.zeros(1, 26, 16)}), r"pos_embed"),
        (lambda state: state.update({"norm.weight": torch.zeros(8)}), r"norm\.weight is \(8,\) instead of \(16,\)"),
    ],
)
def test_what_does_not_fit_exactly_is_refused(change, sentence):
    state = full_mae()
    change(state)
    with pytest.raises(UserError, match=sentence):
        convert(state, build("mae"), "mae")


def test_a_model_with_a_classifier_or_another_norm_is_told_how_to_build_it():
    with pytest.raises(UserError, match="build the model with 0 classes"):
        convert(full_mae(), build("mae", num_classes=5), "mae")
    with pytest.raises(UserError, match="fc_norm\\) False"):
        convert(pretrained_beit(), build("beit", use_fc_norm=True), "beit")


def card():
    kwargs = {key: value for key, value in SIZES.items() if key != "num_classes"} | NO_RELATIVE
    return ModelCard(
        name="cae_tiny", family="beit", arch="timm.models.beit:Beit", kwargs=kwargs, image_size=16, stages=(0, 0, 1, 1)
    )


def test_a_converted_file_is_a_weights_file_of_this_suite(tmp_path):
    source, target = tmp_path / "cae.pth", tmp_path / "deep" / "cae.safetensors"
    torch.save({"model": official_cae()}, source)
    digest = convert_file(source, card(), 0, target)
    net = TapModel(card(), 0).net
    assert load_weights(net, target) == digest
    assert torch.equal(net.state_dict()["norm.weight"], encoder("cae")["norm.weight"])
    with safetensors.safe_open(target, "pt") as file:
        assert file.metadata() == {"source_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    with pytest.raises(UserError, match="is there already"):
        convert_file(source, card(), 0, target)


def test_files_that_cannot_be_are_refused(tmp_path):
    path = tmp_path / "mae.safetensors"
    with pytest.raises(UserError, match="There is no weights file"):
        load_encoder(build("mae"), path, "mae")
    save_file(encoder("mae"), path)
    with pytest.raises(UserError, match="get that file again"):
        load_encoder(build("mae"), path, "mae", expected_sha256="0" * 64)
    with pytest.raises(UserError, match=r"mae\.safetensors cannot be loaded\. .* checkpoint of MAE"):
        load_encoder(build("cae"), path, "cae")
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        convert_file(path, card(), 0, tmp_path / "out.pt")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_prefixes_and_records_are_taken_as_by_the_other_loaders(tmp_path, prefix):
    state = {f"{prefix}{name}": value for name, value in encoder("mae").items()}
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1), "loss": np.float32(0.4)}, tmp_path / "mae.pth")
    net = build("mae")
    load_encoder(net, tmp_path / "mae.pth", "mae")
    assert all(torch.equal(value, encoder("mae")[name]) for name, value in net.state_dict().items())


def test_a_refused_file_leaves_the_model_as_it_was(tmp_path):
    path, net = tmp_path / "mae.pth", build("mae")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = full_mae()
    del state["cls_token"]
    torch.save(state, path)
    with pytest.raises(UserError):
        load_encoder(net, path, "mae")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
