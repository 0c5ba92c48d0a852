import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM

from analysis.looking.attention import attention_layers, observed
from analysis.measure import Measurement, measure
from analysis.measures.attention_distance import attention_distance
from analysis.measures.attention_nmi import attention_nmi
from analysis.measures.parts.heads import HeadResult
from hkd.errors import Refused, UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel

STREAMED = ["attention_distance", "attention_nmi", "fourier", "dct_spectrum"]
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}
IMAGES = torch.rand(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit(**options):
    torch.manual_seed(0)
    net = VisionTransformer(**VIT | options)
    for block in net.blocks:  # far from uniform attention
        block.attn.qkv.weight.data.mul_(30)
    return net


def same(found, expected, rel=1e-5):
    assert found.keys() == expected.keys()
    for name, result in found.items():
        for key, value in result.arrays().items():
            other = expected[name].arrays()[key]
            if value.dtype.kind == "f":
                np.testing.assert_allclose(value, other, rtol=rel, atol=1e-6)
            else:
                assert (value == other).all()


def test_three_lines_measure_a_model():
    found = measure(vit(), IMAGES)
    assert list(found) == STREAMED
    assert found["attention_distance"].mean.shape == found["attention_nmi"].mean.shape == (3, 3)
    assert found["attention_distance"].names == tuple(f"blocks.{index}.attn" for index in range(3))
    assert found["attention_distance"].patch.tolist() == [8] * 3
    assert found["fourier"].names == ("embedding", "blocks.0", "blocks.1", "blocks.2")
    assert found["fourier"].relative.shape == (4, 2)
    assert found["dct_spectrum"].unscaled.shape == (24, 4, 4)
    assert {result.images for result in found.values()} == {7}


def test_values_are_those_of_the_maps_of_normalised_images():
    net = vit().eval()
    net.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    maps = []
    with torch.no_grad(), observed(attention_layers(net, (32, 32)), 7, lambda seen: maps.append(seen.maps.clone())):
        final = net.forward_features(
            (IMAGES - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
        )
    found = measure(net, IMAGES)
    distance = np.array([attention_distance(layer, (4, 4)).mean(0).tolist() for layer in maps])
    nmi = np.array([attention_nmi(layer).mean(0).tolist() for layer in maps])
    assert found["attention_distance"].mean == pytest.approx(distance, rel=1e-5)
    assert found["attention_nmi"].mean == pytest.approx(nmi, rel=1e-4)
    assert found["attention_distance"].std.min() > 0.01
    assert found["dct_spectrum"].unscaled[:, 0, 0] == pytest.approx(
        (final[:, 1:].mean(1).abs().mean(0) * 4 * 16).numpy(), rel=1e-4
    )
    other = measure(net, IMAGES, ["attention_distance"], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert not np.allclose(other["attention_distance"].mean, found["attention_distance"].mean)


def test_batches_of_any_size_and_form_give_the_same():
    net, whole = vit(), measure(vit(), IMAGES)
    same(measure(net, IMAGES, batch_size=3), whole)
    same(measure(net, iter(IMAGES.split(2))), whole)
    same(measure(net, [(part, torch.zeros(len(part))) for part in IMAGES.split(4)], batch_size=3), whole)


def test_measurements_of_processes_merge():
    net, whole = vit(), measure(vit(), IMAGES)
    left, right = Measurement(net), Measurement(net)
    left.update(IMAGES[:3])
    right.update(IMAGES[3:])
    left.merge(pickle.loads(pickle.dumps(right)))
    same(left.compute(), whole)


def test_the_model_is_left_as_it_was():
    net = vit(drop_path_rate=0.5, attn_drop_rate=0.5).train()
    net.blocks[1].eval()
    first = measure(net, IMAGES, ["attention_distance", "fourier"])
    same(measure(net, IMAGES, ["attention_distance", "fourier"]), first, rel=1e-12)
    assert net.training
    assert net.blocks[0].training
    assert not net.blocks[1].training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_grids_that_are_not_square():
    net, images = vit(img_size=(32, 48)), torch.rand(3, 3, 32, 48)
    found = measure(net, images)
    assert found["attention_distance"].mean.max() < math.hypot(4, 6)
    assert found["fourier"].relative.shape == (4, 2)
    assert found["dct_spectrum"].unscaled.shape == (24, 4, 6)


def test_rows_that_are_not_renormalised_give_smaller_distances():
    with_, without = (
        measure(vit(), IMAGES, ["attention_distance"], renormalise=value)["attention_distance"]
        for value in (True, False)
    )
    assert (without.mean < with_.mean).all()


def test_dynamic_image_sizes():
    found = measure(vit(dynamic_img_size=True), torch.rand(2, 3, 48, 64))
    assert found["dct_spectrum"].unscaled.shape == (24, 6, 8)


def test_swin_is_measured_within_its_windows():
    net = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=12, depths=(2, 2), num_heads=(2, 3), window_size=4, num_classes=0
    )
    found = measure(net, IMAGES)
    assert found["attention_distance"].mean.shape == (4, 3)
    assert np.isnan(found["attention_distance"].mean[:2, 2]).all()
    assert found["attention_distance"].patch.tolist() == [2, 2, 4, 4]
    assert found["attention_distance"].mean[0, 0] == pytest.approx(1.93, abs=0.1)  # nearly uniform on 4x4
    assert found["fourier"].names[:2] == ("embedding", "layers.0.blocks.0")
    assert found["fourier"].relative.shape == (5, 8)
    assert found["dct_spectrum"].unscaled.shape == (24, 8, 8)


@pytest.mark.parametrize(
    ("net", "layers", "shape"),
    [
        (ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 16, 24, 32), num_classes=5), 5, (32, 1, 1)),
        (ConvNeXt(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), patch_size=2, num_classes=5), 4, (32, 1, 1)),
        (MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=5), 3, (16, 4, 4)),
    ],
)
def test_models_without_attention_have_spectra_and_say_so_of_the_rest(net, layers, shape):
    found = measure(net, IMAGES, ["fourier", "dct_spectrum"])
    assert len(found["fourier"].names) == layers
    assert found["dct_spectrum"].unscaled.shape == shape
    with pytest.raises(Refused, match=f"{type(net).__name__} has no blocks with one self-attention"):
        measure(net, IMAGES)


@pytest.mark.parametrize("name", ["vit_s16_mini", "swin_s_mini", "resnet50_mini"])
def test_models_of_the_suite_normalise_and_resize_themselves(name):
    model = TapModel(ZOO[name], 10).eval()
    measures = ["fourier", "dct_spectrum"] if name.startswith("resnet") else STREAMED
    found = measure(model, torch.rand(3, 3, 40, 50), measures)
    assert list(found) == measures
    assert found["dct_spectrum"].unscaled.shape == model.info.final
    with pytest.raises(UserError, match="normalises images itself"):
        measure(model, IMAGES, mean=(0, 0, 0))


def test_maps_with_channels_last_are_told_from_maps_with_channels_first():
    net = VisionTransformerSAM(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=0, neck_chans=12
    )
    found = measure(net, IMAGES, ["fourier", "dct_spectrum"])
    assert found["fourier"].relative.shape == (2, 2)
    assert found["dct_spectrum"].unscaled.shape == (12, 4, 4)


def test_an_untrained_vit_attends_everywhere():
    """The mandatory control: 116 px and no information."""
    found = measure(
        timm.create_model("vit_tiny_patch16_224", depth=1),
        torch.rand(2, 3, 224, 224),
        ["attention_distance", "attention_nmi"],
    )
    assert found["attention_distance"].pixels().layer == pytest.approx([116.5], abs=0.1)
    assert found["attention_nmi"].layer == pytest.approx([0], abs=2e-3)


def test_one_image_is_measured_with_a_warning():
    with pytest.warns(UserWarning, match="One image was measured, so no value has an interval"):
        found = measure(vit(), IMAGES[:1])
    assert np.isfinite(found["attention_distance"].mean).all()
    assert np.isnan(found["attention_distance"].mean_half).all()


@pytest.mark.parametrize("images", [[], IMAGES[:0], iter(())])
def test_no_images_is_an_error(images):
    with pytest.raises(UserError, match="No images were measured: give at least one"):
        measure(vit(), images)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(3, 32, 32), r"torch.float32 of shape \(3, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32), r"torch.float32 of shape \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
        ([np.zeros((2, 3, 32, 32))], "ndarray"),
    ],
)
def test_images_of_another_form_are_refused(images, got):
    with pytest.raises(UserError, match=rf"floats in \[0, 1\]; got {got}"):
        measure(vit(), images)


def test_images_of_another_size_are_refused_before_the_model_asserts():
    with pytest.raises(UserError, match=r"VisionTransformer takes images of 32x32 pixels, got 40x32"):
        measure(vit(), torch.zeros(2, 3, 40, 32))


def test_images_that_are_not_finite_are_named():
    images = IMAGES.clone()
    images[4, 0, 3, 3] = torch.nan
    with pytest.raises(UserError, match=r"Image 4 \(counted from 0\) holds values that are not finite"):
        measure(vit(), images, batch_size=3)


def test_images_whose_sum_half_precision_cannot_hold_are_measured():
    bright = torch.full((1, 3, 224, 224), 0.9, dtype=torch.float16)
    assert bright.sum().isinf()
    assert (
        measure(timm.create_model("resnet10t").half(), bright.repeat(2, 1, 1, 1), "dct_spectrum")["dct_spectrum"].images
        == 2
    )


def test_images_of_another_size_than_before_are_refused_and_change_nothing():
    measurement = Measurement(resnet := timm.create_model("resnet10t"), ("fourier", "dct_spectrum"))
    measurement.update(torch.rand(2, 3, 64, 64))
    before = measurement.compute()["dct_spectrum"].unscaled
    with pytest.raises(UserError, match="96x64 px follow images of 64x64 px"):
        measurement.update(torch.rand(2, 3, 96, 64))
    other = Measurement(resnet, ("fourier", "dct_spectrum"))
    other.update(torch.rand(2, 3, 96, 96))
    with pytest.raises(UserError, match="96x96 px follow images of 64x64 px"):
        measurement.merge(other)
    assert measurement.images == 2
    assert (measurement.compute()["dct_spectrum"].unscaled == before).all()


def test_features_that_are_several_tensors_are_refused():
    with pytest.raises(Refused, match="CrossVit gives list of features"):
        measure(timm.create_model("crossvit_tiny_240"), torch.rand(1, 3, 240, 240), "dct_spectrum")


@pytest.mark.parametrize("measures", [["attention_distance"], ["fourier"], ["dct_spectrum"], STREAMED])
def test_features_that_are_not_finite_name_their_layer(measures):
    net = vit()
    net.blocks[1].mlp.fc1.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"first layer of VisionTransformer with such an output is blocks.1.mlp.fc1"):
        measure(net, IMAGES, measures)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_a_batch_that_fails_leaves_nothing_behind():
    measurement = Measurement(vit(), ["fourier", "dct_spectrum"])
    measurement.update(IMAGES)
    before = measurement.compute()
    scale = measurement.net.norm.weight
    scale.data.fill_(torch.inf)
    with pytest.raises(UserError, match="is norm"):
        measurement.update(IMAGES)
    same(measurement.compute(), before, rel=0)


def test_an_unknown_measure_names_the_nearest():
    with pytest.raises(UserError, match=r"Unknown measure 'forier'. Did you mean 'fourier'\?"):
        measure(vit(), IMAGES, ["forier"])
    with pytest.raises(UserError, match="No measure was asked for"):
        measure(vit(), IMAGES, [])
    with pytest.raises(UserError, match="at least one image; got batch_size 0"):
        measure(vit(), IMAGES, batch_size=0)
    with pytest.raises(UserError, match="mean of a normalisation has three values"):
        measure(vit(), IMAGES, mean=(0.5,))


def test_one_name_is_a_measure_too():
    assert isinstance(measure(vit(), IMAGES, "attention_nmi")["attention_nmi"], HeadResult)


@pytest.mark.long
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images():
    code = f"""
import torch
from timm.models.vision_transformer import VisionTransformer
from analysis.measure import Measurement
torch.set_num_threads(1)
measurement, batch = Measurement(VisionTransformer(**{VIT})), torch.rand(100, 3, 32, 32)
for count in (1000, 9000):
    for _ in range(count // 100):
        measurement.update(batch)
    print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    few, many = (int(line) / 2**10 for line in done.stdout.split())
    assert many - few < 4  # MiB
