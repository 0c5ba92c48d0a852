"""Segmentation heads and their losses: shapes, hand values, equal forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hkd.data.dense import IGNORE
from hkd.data.loading.dense import DenseBatch
from hkd.downstream.backbone import Backbone
from hkd.downstream.segmenter import FPN, Rescale, Segmenter, pixel_loss, resized, root_weights
from hkd.errors import Refused, UserError
from hkd.models.cards.zoo import ZOO

OPTIONS = {"width": 16, "pool_scales": (1, 2), "pyramid": (4.0, 2.0, 1.0, 0.5), "auxiliary": 0.4, "dropout": 0.1}


def segmenter(name, head="fpn", classes=5, **options):
    torch.manual_seed(0)
    backbone = Backbone(ZOO[name])
    return backbone, Segmenter(backbone, classes, head=head, **OPTIONS | options)


def batch(maps):
    index = torch.arange(len(maps))
    return DenseBatch(x=torch.rand(len(maps), 3, *maps.shape[1:]), y=index, index=index, maps=maps)


@pytest.mark.parametrize("head", ["fpn", "upernet"])
@pytest.mark.parametrize(
    ("name", "stride"), [("resnet18_mini", 4), ("swin_t_mini", 4), ("hybrid_b16_mini", 1), ("beit_b16_mini", 1)]
)
def test_logits_have_the_size_of_the_finest_map_and_losses_reach_every_weight(name, stride, head):
    backbone, module = segmenter(name, head)
    x = torch.rand(2, 3, 32, 48)
    maps = backbone(x)
    assert module.logits(maps).shape == (2, 5, 32 // stride, 48 // stride)
    losses = module(maps, batch(torch.randint(0, 5, (2, 32, 48))))
    assert set(losses) == {"segmentation", "auxiliary"}
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_without_an_auxiliary_head_there_is_one_loss():
    backbone, module = segmenter("resnet18_mini", auxiliary=0.0)
    assert module.auxiliary is None
    losses = module(backbone(torch.rand(2, 3, 32, 32)), batch(torch.zeros(2, 32, 32, dtype=torch.int64)))
    assert set(losses) == {"segmentation"}


def test_the_auxiliary_loss_is_weighted():
    losses = []
    for weight in (0.4, 0.8):
        backbone, module = segmenter("resnet18_mini", auxiliary=weight, dropout=0.0)
        with torch.no_grad():
            maps = backbone.eval()(torch.ones(2, 3, 32, 32))
            losses.append(module.eval()(maps, batch(torch.ones(2, 32, 32).long())))
    torch.testing.assert_close(losses[1]["auxiliary"], 2 * losses[0]["auxiliary"])
    assert torch.equal(losses[0]["segmentation"], losses[1]["segmentation"])


def test_the_maps_of_a_plain_transformer_become_a_pyramid():
    rescale = Rescale([6] * 4, [4.0, 2.0, 1.0, 0.5])
    sizes = [tuple(map_.shape) for map_ in rescale([torch.rand(2, 6, 8, 6)] * 4)]
    assert sizes == [(2, 6, 32, 24), (2, 6, 16, 12), (2, 6, 8, 6), (2, 6, 4, 3)]
    assert rescale([torch.rand(2, 6, 1, 3)] * 4)[3].shape == (2, 6, 1, 2)


@pytest.mark.parametrize("pyramid", [(2.0, 1.0, 0.5), (4.0, 3.0, 1.0, 0.5)])
def test_a_pyramid_that_cannot_be_is_refused(pyramid):
    with pytest.raises(Refused, match=r"The pyramid must be 4 of \[4.0, 2.0, 1.0, 0.5\], got"):
        segmenter("vit_s16_mini", pyramid=pyramid)


def test_fewer_maps_than_a_head_needs_are_refused():
    backbone = Backbone(ZOO["resnet18_mini"])
    backbone.channels = backbone.channels[:3]
    with pytest.raises(Refused, match="needs 4 maps, and resnet18_mini has 3"):
        Segmenter(backbone, 5, head="fpn", **OPTIONS)


def test_fpns_classifiers_are_one_over_all_levels_upsampled_and_concatenated():
    torch.manual_seed(0)
    fpn = FPN([3, 4, 5, 6], 7, width=8, dropout=0.0)
    maps = [torch.rand(2, depth, 16 >> level, 8 >> level) for level, depth in enumerate((3, 4, 5, 6))]
    levels = [lateral(map_) for lateral, map_ in zip(fpn.laterals, maps, strict=True)]
    for fine in (2, 1, 0):
        up = F.interpolate(levels[fine + 1], scale_factor=2.0, mode="bilinear")
        levels[fine] = levels[fine] + up
    smooth = [
        F.interpolate(step(level), size=(16, 8), mode="bilinear")
        for step, level in zip(fpn.smooth, levels, strict=True)
    ]
    weight = torch.cat([part.weight for part in fpn.classifiers], dim=1)
    expected = F.conv2d(torch.cat(smooth, dim=1), weight, fpn.classifiers[0].bias)
    torch.testing.assert_close(fpn(maps), expected, rtol=1e-4, atol=1e-5)


def test_upernet_says_why_it_cannot_train_on_one_image():
    backbone, module = segmenter("resnet18_mini", "upernet")
    maps = backbone(torch.rand(1, 3, 32, 32))
    with pytest.raises(UserError, match="at least 2 images"):
        module.logits(maps)
    assert module.eval().logits(maps).shape == (1, 5, 8, 8)
    nn.SyncBatchNorm.convert_sync_batchnorm(
        module
    )  # with statistics of other GPUs, one image each is enough; here are none
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        module.train().logits(maps)


def test_dropout_acts_in_training_alone():
    for head in ("fpn", "upernet"):
        backbone, module = segmenter("resnet18_mini", head, dropout=0.5)
        maps = [map_.detach() for map_ in backbone(torch.rand(2, 3, 32, 32))]
        assert not torch.equal(module.logits(maps), module.logits(maps))
        module.eval()
        assert torch.equal(module.logits(maps), module.logits(maps))


# --- the loss


def test_the_loss_is_the_weighted_mean_over_labelled_pixels():
    logits = torch.tensor([[[[0.0, 2.0]], [[1.0, -1.0]]]])
    weights = torch.tensor([1.0, 3.0])
    target = torch.tensor([[[0, 1]]])
    first, second = math.log(1 + math.e), math.log(1 + math.e**3)  # -log softmax of the true class
    assert float(pixel_loss(logits, target, weights)) == pytest.approx((first + 3 * second) / 4)
    target[0, 0, 1] = IGNORE
    assert float(pixel_loss(logits, target, weights)) == pytest.approx(first)


def test_logits_are_upsampled_to_the_target():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 16, 20))
    expected = F.cross_entropy(F.interpolate(logits, size=(16, 20), mode="bilinear"), target)
    torch.testing.assert_close(pixel_loss(logits, target, torch.ones(3)), expected)


def test_a_batch_without_labelled_pixels_has_no_loss_and_no_gradient():
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_loss(logits, torch.full((1, 4, 4), IGNORE), torch.ones(3))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_the_loss_of_extreme_logits_is_finite(size):
    logits = torch.tensor([size, -size]).view(1, 2, 1, 1).requires_grad_()
    loss = pixel_loss(logits, torch.zeros(1, 2, 2, dtype=torch.int64), torch.ones(2))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_root_weights_are_those_of_a_hand_example():
    # frequencies .64, .32, .04: roots 1.25, 1.76777, 5, whose mean is 2.67259
    found = root_weights(torch.tensor([64, 32, 4]))
    torch.testing.assert_close(found, torch.tensor([0.46771, 0.66144, 1.87085]), rtol=0.0, atol=2e-5)


def test_a_class_that_never_occurs_has_the_weight_1_and_counts_in_no_mean():
    found = root_weights(torch.tensor([4, 0, 1]))
    torch.testing.assert_close(found, torch.tensor([2 / 3, 1.0, 4 / 3]))


def test_maps_without_any_class_are_refused():
    with pytest.raises(UserError, match="No pixel of the training maps has a class"):
        root_weights(torch.zeros(3, dtype=torch.int64))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=20))
def test_root_weights_have_the_mean_1_and_fall_with_the_frequency(counts):
    found = root_weights(torch.tensor(counts))
    assert float(found.double().mean()) == pytest.approx(1.0, rel=1e-5)
    order = torch.tensor(counts).argsort()
    assert (found[order].diff() <= 1e-6).all()


def test_a_map_of_the_right_size_is_left_alone():
    map_ = torch.rand(1, 2, 3, 4)
    assert resized(map_, (3, 4)) is map_
    assert resized(map_, (6, 4)).shape == (1, 2, 6, 4)
