"""Mask R-CNN on a backbone: equal to torchvision's whole model, every backbone learns, empty images, padding."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from hkd.data.loading.dense import DenseBatch
from hkd.downstream.backbone import Backbone
from hkd.downstream.detector import Detections, Detector, DetectorOptions
from hkd.errors import Refused
from hkd.models.cards.zoo import ZOO
from hkd.tasks.dense import DenseStep, freeze_unused

SMALL = DetectorOptions(
    width=16,
    strides=(4, 8),
    pooled_levels=2,
    anchors=(14.0, 22.0),
    rpn_pre_nms=(200, 200),
    rpn_post_nms=(100, 100),
    rpn_samples=64,
    box_samples=32,
    box_roi=5,
    box_width=128,
    mask_roi=7,
    mask_layers=2,
    mask_width=32,
    canonical_scale=28,
    canonical_level=3,
)


def options(**changes):
    return DetectorOptions(**{**SMALL.__dict__, **changes})


def make(card="resnet18_mini", classes=3, **changes):
    torch.manual_seed(0)
    backbone = Backbone(ZOO[card])
    return DenseStep(backbone, Detector(backbone, classes, options(**changes)))


def make_batch(sizes=((64, 64), (64, 64)), boxes=((4, 6, 24, 30), (30, 30, 60, 50)), side=64):
    rng = torch.Generator().manual_seed(2)
    x = torch.zeros(len(sizes), 3, side, side)
    for image, (height, width) in zip(x, sizes, strict=True):
        image[:, :height, :width] = torch.rand(3, height, width, generator=rng)
    objects = []
    for height, width in sizes:
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            mask[y1:y2, x1:x2] = True
        held = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        objects.append({"boxes": held, "labels": torch.arange(len(boxes)), "masks": masks})
    index = torch.arange(len(sizes))
    return DenseBatch(x=x, y=index, index=index, sizes=torch.tensor(sizes), objects=objects)


class Body(nn.Module):
    """Backbone and pyramid as torchvision's models have them."""

    def __init__(self, step):
        super().__init__()
        self.step, self.out_channels = step, 16

    def forward(self, x: torch.Tensor) -> OrderedDict:
        return self.step.method.pyramid(self.step.student(x))


@pytest.mark.parametrize("cascade", [False, True])
def test_detections_are_those_of_torchvisions_model_whose_transform_changes_nothing(cascade):
    step = make(cascade=cascade, score_threshold=0.2).eval()
    batch = make_batch()
    transform = GeneralizedRCNNTransform(64, 64, [0.0] * 3, [1.0] * 3, size_divisible=8)
    whole = GeneralizedRCNN(Body(step), step.method.rpn, step.method.roi_heads, transform).eval()
    with torch.no_grad():
        found, expected = step.method.detect(step.student(batch.x), batch), whole(list(batch.x))
    for one, other in zip(found, expected, strict=True):
        assert len(one.boxes) > 0
        assert torch.equal(one.boxes, other["boxes"])
        assert torch.equal(one.scores, other["scores"])
        assert torch.equal(one.labels, other["labels"] - 1)
        assert torch.equal(one.pasted(64, 64), other["masks"][:, 0] > 0.5)


def test_losses_are_those_of_torchvisions_model():
    step = make()
    batch = make_batch()
    transform = GeneralizedRCNNTransform(64, 64, [0.0] * 3, [1.0] * 3, size_divisible=8, _skip_resize=True)
    whole = GeneralizedRCNN(Body(step), step.method.rpn, step.method.roi_heads, transform).train()
    step.student.eval()  # statistics of the batch are of no interest here
    torch.manual_seed(5)
    losses = step.method(step.student(batch.x), batch)
    torch.manual_seed(5)
    targets = [{**one, "labels": one["labels"] + 1, "masks": one["masks"].byte()} for one in batch.objects]
    expected = whole(list(batch.x), targets)
    assert set(losses) == {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[f"loss_{name}"])


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("card", ["resnet18_mini", "swin_t_mini", "hybrid_b16_mini"])
def test_every_weight_that_is_not_frozen_learns_on_every_backbone(card, cascade):
    step = make(card, cascade=cascade, **({"strides": (4, 8)} if card != "swin_t_mini" else {}))
    freeze_unused(step.student)
    losses = step(make_batch(), {})
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    learning = [name for name, parameter in step.named_parameters() if parameter.requires_grad]
    assert [name for name in learning if step.get_parameter(name).grad is None] == []
    assert len(learning) > 20


def test_images_without_objects_train_to_find_nothing():
    losses = make()(make_batch(boxes=()), {})
    assert all(loss.isfinite() for loss in losses.values())
    assert all(losses[name] == 0 for name in ("box_reg", "mask", "rpn_box_reg"))
    assert losses["classifier"] > 0


def test_nothing_is_found_in_the_padding():
    step = make(score_threshold=0.0).eval()
    batch = make_batch(sizes=((20, 64), (64, 33)))
    with torch.no_grad():
        found = step.method.detect(step.student(batch.x), batch)
    for one, (height, width) in zip(found, ((20, 64), (64, 33)), strict=True):
        assert len(one.boxes) > 0
        assert one.boxes[:, 2].max() <= width
        assert one.boxes[:, 3].max() <= height


def test_pools_know_their_strides_whatever_the_first_batch_was():
    step = make().eval()
    with torch.no_grad():
        step.method.detect(step.student(make_batch(sizes=((20, 20),)).x), make_batch(sizes=((20, 20),)))
    for pool in (step.method.roi_heads.box_roi_pool, step.method.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8]
        assert (pool.map_levels.k_min, pool.map_levels.k_max) == (2, 3)


def test_heads_compute_in_single_precision_under_any_autocast():
    step = make().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = step.method.detect(step.student(make_batch().x), make_batch())
    assert found[0].boxes.dtype == found[0].masks.dtype == torch.float32


def test_the_statistics_of_a_pretrained_backbone_stay_where_that_is_asked_for():
    for fixed in (True, False):
        step = make(fixed_statistics=fixed).train()
        before = [buffer.clone() for buffer in step.student.net.buffers()]
        step(make_batch(), {})
        moved = any(not torch.equal(old, new) for old, new in zip(before, step.student.net.buffers(), strict=True))
        assert moved is not fixed


def test_masks_are_pasted_into_images_of_another_size():
    masks = torch.ones(1, 1, 14, 14)
    found = Detections(torch.tensor([[2.0, 4.0, 12.0, 10.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64), masks)
    twice = found.scaled(torch.tensor([2.0, 3.0]))
    assert twice.boxes.tolist() == [[4.0, 12.0, 24.0, 30.0]]
    pasted = twice.pasted(60, 40)[0].numpy()
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    found_at = np.array([rows[0], rows[-1] + 1, columns[0], columns[-1] + 1])
    assert np.abs(found_at - [12, 30, 4, 24]).max() <= 1


def test_no_detections_have_no_masks():
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1, 14, 14))
    assert none.pasted(7, 9).shape == (0, 7, 9)


def test_the_defaults_are_torchvisions():
    """Of `maskrcnn_resnet50_fpn`, built at its size beside ours."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    ours = Detector(Backbone(ZOO["resnet50"]), 3, DetectorOptions())
    shapes = [
        sorted(tuple(parameter.shape) for parameter in module.parameters())
        for module in (
            nn.ModuleList([ours.pyramid, ours.rpn, ours.roi_heads]),
            nn.ModuleList([theirs.backbone.fpn, theirs.rpn, theirs.roi_heads]),
        )
    ]
    assert shapes[0] == shapes[1]
    assert ours.rpn.anchor_generator.sizes == tuple((float(side[0]),) for side in theirs.rpn.anchor_generator.sizes)
    for name in ("_pre_nms_top_n", "_post_nms_top_n", "nms_thresh", "score_thresh"):
        assert getattr(ours.rpn, name) == getattr(theirs.rpn, name)
    for name in ("score_thresh", "nms_thresh", "detections_per_img"):
        assert getattr(ours.roi_heads, name) == getattr(theirs.roi_heads, name)
    assert ours.multiple == 64


def test_a_backbone_without_the_wanted_maps_is_refused():
    with pytest.raises(Refused, match="strides"):
        make("resnet18_mini", strides=(1, 2))
