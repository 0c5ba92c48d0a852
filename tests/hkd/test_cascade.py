"""Cascade heads: refinement of boxes by hand, stricter overlaps, weights of the stages, the mean at test."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

from hkd.downstream.cascade import LOSSES, CascadeRoIHeads, SharedPredictor

CLASSES, WIDTH, SIDE = 3, 4, 32


def make_heads(**more):
    torch.manual_seed(0)
    options = {
        "batch_size_per_image": 16,
        "positive_fraction": 0.5,
        "score_thresh": 0.0,
        "nms_thresh": 1.0,
        "detections_per_img": 100,
        "mask_roi_pool": MultiScaleRoIAlign(["0"], 4, 2),
        "mask_head": MaskRCNNHeads(WIDTH, [5], 1),
        "mask_predictor": MaskRCNNPredictor(5, 5, CLASSES + 1),
    }
    return CascadeRoIHeads(
        partial(TwoMLPHead, WIDTH * 9, 8),
        partial(SharedPredictor, 8, CLASSES),
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 2),
        **options | more,
    )


def constant(heads, biases, deltas=(0.0, 0.0, 0.0, 0.0)):
    """Make the stages predict the same for every box: logits biases[stage]."""
    for predictor, bias in zip(heads.predictors, biases, strict=True):
        for linear, value in ((predictor.cls_score, bias), (predictor.bbox_pred, deltas)):
            nn.init.zeros_(linear.weight)
            with torch.no_grad():
                linear.bias.copy_(torch.tensor(value))


def features(count=1):
    return {"0": torch.rand(count, WIDTH, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(1))}


def objects(*boxes, labels=None):
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [1] * len(boxes), dtype=torch.int64),
        "masks": masks,
    }


def test_a_box_is_refined_by_the_weights_of_its_stage_and_clipped():
    heads = make_heads()
    boxes = [torch.tensor([[10.0, 10.0, 20.0, 30.0]])]
    deltas = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).repeat(1, CLASSES + 1)
    for stage, weight in enumerate((10.0, 20.0, 30.0)):  # a tenth, a twentieth, a thirtieth of width and height
        [refined] = heads.refine(stage, deltas, boxes, [(SIDE, SIDE)])
        x, y = 10.0 / weight, 20.0 / weight
        torch.testing.assert_close(refined, torch.tensor([[10.0 + x, 10.0 + y, 20.0 + x, min(30.0 + y, 32.0)]]))
    wider = torch.tensor([[0.0, 0.0, 5.0 * math.log(4.0), 0.0]]).repeat(1, CLASSES + 1)
    torch.testing.assert_close(heads.refine(0, wider, boxes, [(SIDE, 25)])[0], torch.tensor([[0.0, 10.0, 25.0, 30.0]]))


def test_no_gradient_flows_through_refined_boxes():
    heads = make_heads()
    deltas = torch.rand(1, 4 * (CLASSES + 1), requires_grad=True)
    assert not heads.refine(0, deltas, [torch.tensor([[1.0, 1.0, 9.0, 9.0]])], [(SIDE, SIDE)])[0].requires_grad


def test_later_stages_call_an_object_what_overlaps_it_more():
    heads = make_heads()
    target = objects([0.0, 0.0, 20.0, 10.0], labels=[2])
    boxes = [torch.tensor([[0.0, 0.0, width, 10.0] for width in (20.0, 13.0, 11.0, 9.0)])]  # overlaps 1, .65, .55, .45
    for stage, expected in enumerate(([2, 2, 2, 0], [2, 2, 0, 0], [2, 0, 0, 0])):
        _, _, [labels] = heads.match(stage, boxes, [target["boxes"]], [target])
        assert labels.tolist() == expected
    assert heads.proposal_matcher.high_threshold == 0.5


def test_boxes_without_area_leave_the_cascade():
    heads = make_heads()
    target = objects([0.0, 0.0, 20.0, 10.0])
    boxes, matched, labels = heads.match(
        1, [torch.tensor([[5.0, 5.0, 5.0, 9.0], [0.0, 0.0, 20.0, 10.0]])], [target["boxes"]], [target]
    )
    assert [len(part[0]) for part in (boxes, matched, labels)] == [1, 1, 1]


def test_losses_of_the_stages_are_weighted():
    heads = make_heads()
    constant(heads, [[0.0] * (CLASSES + 1)] * 3)
    proposals = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 20.0, 20.0], [2.0, 9.0, 30.0, 31.0]])]
    _, losses = heads(features(), proposals, [(SIDE, SIDE)], [objects([4.0, 4.0, 21.0, 19.0])])
    losses = {name: loss.detach() for name, loss in losses.items()}
    for stage, weight in enumerate(LOSSES, 1):  # uniform: the cross-entropy is log(C + 1) whatever the labels
        assert float(losses[f"loss_classifier_{stage}"]) == pytest.approx(weight * math.log(CLASSES + 1))
        assert 0 < float(losses[f"loss_box_reg_{stage}"]) < math.inf
    assert set(losses) == {f"loss_{kind}_{n}" for kind in ("classifier", "box_reg") for n in (1, 2, 3)} | {"loss_mask"}


def test_every_stage_and_the_masks_learn():
    heads = make_heads()
    proposals = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 20.0, 20.0]])]
    _, losses = heads(features(), proposals, [(SIDE, SIDE)], [objects([4.0, 4.0, 21.0, 19.0])])
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in heads.parameters())


def test_an_image_without_objects_gives_finite_losses():
    heads = make_heads()
    proposals = [torch.tensor([[0.0, 0.0, 8.0, 8.0], [4.0, 4.0, 20.0, 20.0]])]
    _, losses = heads(features(), proposals, [(SIDE, SIDE)], [objects()])
    losses = {name: loss.detach() for name, loss in losses.items()}
    assert all(math.isfinite(float(loss)) for loss in losses.values())
    assert all(float(losses[f"loss_box_reg_{stage}"]) == 0 for stage in (1, 2, 3))


def test_scores_are_the_mean_of_three_softmaxes_and_boxes_those_of_the_last_stage():
    heads = make_heads().eval()
    biases = [[2.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 100.0]]
    constant(heads, biases, deltas=(1.0, 0.0, 0.0, 0.0))
    [found], _ = heads(features(), [torch.tensor([[2.0, 4.0, 12.0, 14.0]])], [(SIDE, SIDE)])
    expected = torch.stack([torch.tensor(bias).softmax(0) for bias in biases]).mean(0)
    assert found["labels"].tolist() == expected[1:].argsort(descending=True).add(1).tolist()
    torch.testing.assert_close(found["scores"], expected[1:].sort(descending=True).values)
    shift = 1.0 + 0.5 + 1 / 3  # of a width of 10
    torch.testing.assert_close(found["boxes"], torch.tensor([[2.0 + shift, 4.0, 12.0 + shift, 14.0]]).repeat(3, 1))
    assert found["masks"].shape == (3, 1, 8, 8)


def test_an_image_without_proposals_has_no_detections():
    heads = make_heads().eval()
    [found], _ = heads(features(), [torch.zeros(0, 4)], [(SIDE, SIDE)])
    assert len(found["boxes"]) == len(found["masks"]) == 0
