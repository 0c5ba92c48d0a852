"""Cascade R-CNN: three box heads, each refining the boxes of the one before against a stricter overlap.

Source: Cai and Vasconcelos 2018, arXiv:1712.00726, section 4; its form with masks as in arXiv:1906.09756. Boxes are
refined without regard to their class. Deviations: one mask head, trained on the proposals of the first stage.
Shapes: R boxes of all images of a batch, C classes without the background, which is class 0 here.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

OVERLAPS = (0.5, 0.6, 0.7)  # from which on a box is an object's, by stage
CODERS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))  # weights of x, y, width, height
LOSSES = (1.0, 0.5, 0.25)  # weights of the stages


class SharedPredictor(nn.Module):
    """Class scores [R, C + 1] and one box refinement [R, 4] for all classes, repeated for each: [R, 4 (C + 1)]."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4)

    def forward(self, x: Float[Tensor, "R width"]) -> tuple[Tensor, Tensor]:
        scores = self.cls_score(x)
        return scores, self.bbox_pred(x).repeat(1, scores.shape[1])


class CascadeRoIHeads(RoIHeads):
    """torchvision's heads, with three of those for boxes.

    Training: the first stage samples proposals; later ones take all boxes of the one before, decoded, clipped and
    detached. Test: the boxes of the last stage, with the mean of the three softmaxes.

    Args:
        make_head: a box head, from pooled maps to [R, width].
        make_predictor: as `SharedPredictor`.
        options: of `RoIHeads`, but for head and predictor, overlaps and weights of refinements.
    """

    def __init__(
        self, make_head: Callable[[], nn.Module], make_predictor: Callable[[], nn.Module], **options: Any
    ) -> None:
        super().__init__(
            box_head=None,
            box_predictor=None,
            fg_iou_thresh=OVERLAPS[0],
            bg_iou_thresh=OVERLAPS[0],
            bbox_reg_weights=CODERS[-1],  # what is decoded at last
            **options,
        )
        self.heads = nn.ModuleList(make_head() for _ in OVERLAPS)
        self.predictors = nn.ModuleList(make_predictor() for _ in OVERLAPS)
        self.coders = [BoxCoder(weights) for weights in CODERS]
        self.matchers = [Matcher(overlap, overlap, allow_low_quality_matches=False) for overlap in OVERLAPS]

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As `RoIHeads.forward`; losses are `loss_classifier_<stage>`, `loss_box_reg_<stage>` and `loss_mask`."""
        if self.training:
            assert targets is not None
            proposals, matched, labels, _ = self.select_training_samples(list(proposals), targets)
            losses = self.box_losses(features, proposals, matched, labels, image_shapes, targets)
            if self.mask_roi_pool is not None:
                losses["loss_mask"] = self.mask_loss(features, proposals, matched, labels, image_shapes, targets)
            return [], losses
        boxes, scores, found = self.detect(features, proposals, image_shapes)
        results = [
            {"boxes": box, "scores": score, "labels": label}
            for box, score, label in zip(boxes, scores, found, strict=True)
        ]
        if self.mask_roi_pool is not None:
            logits = self.mask_logits(features, boxes, image_shapes)
            for result, masks in zip(results, maskrcnn_inference(logits, found), strict=True):
                result["masks"] = masks
        return results, {}

    def stage(
        self, number: int, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class logits and refinements of one stage."""
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        return self.predictors[number](self.heads[number](pooled))

    def refine(
        self, number: int, deltas: Tensor, boxes: list[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Boxes of each image after a stage: decoded, clipped to the image, detached."""
        decoded = self.coders[number].decode(deltas.detach()[:, :4], boxes).reshape(-1, 4)
        parts = decoded.split([len(part) for part in boxes])
        return [clip_boxes_to_image(part, shape) for part, shape in zip(parts, image_shapes, strict=True)]

    def box_losses(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Weighted losses of the stages, from the sampled boxes of the first, their objects and their labels."""
        truth = [target["boxes"] for target in targets]
        losses = {}
        for number, weight in enumerate(LOSSES):
            if number:
                boxes, matched, labels = self.match(number, boxes, truth, targets)
            logits, deltas = self.stage(number, features, boxes, image_shapes)
            wanted = self.coders[number].encode(
                [objects_of(*pair, like=part) for *pair, part in zip(truth, matched, boxes, strict=True)], boxes
            )
            classification, regression = fastrcnn_loss(logits, deltas, labels, wanted)
            losses[f"loss_classifier_{number + 1}"] = weight * classification
            losses[f"loss_box_reg_{number + 1}"] = weight * regression
            boxes = self.refine(number, deltas, boxes, image_shapes)
        return losses

    def match(
        self, number: int, boxes: list[Tensor], truth: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes of positive area, the object of each, and its label by the overlap that the stage asks for."""
        boxes = [part[(part[:, 2:] > part[:, :2]).all(dim=1)] for part in boxes]
        self.proposal_matcher = self.matchers[number]
        matched, labels = self.assign_targets_to_proposals(boxes, truth, [target["labels"] for target in targets])
        self.proposal_matcher = self.matchers[0]
        return boxes, matched, labels

    def detect(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels of each image."""
        logits, deltas = self.stage(0, features, boxes, image_shapes)
        probabilities = [logits.softmax(dim=1)]
        for number in range(1, len(OVERLAPS)):
            boxes = self.refine(number - 1, deltas, boxes, image_shapes)
            logits, deltas = self.stage(number, features, boxes, image_shapes)
            probabilities.append(logits.softmax(dim=1))
        mean = torch.stack(probabilities).mean(dim=0)
        # The base takes a softmax, which of the logarithms of probabilities gives these back.
        return self.postprocess_detections(mean.log(), deltas, boxes, image_shapes)

    def mask_logits(
        self, features: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Mask logits of each box and class."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))

    def mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        matched: list[Tensor],
        labels: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        """Loss of the masks of the sampled boxes that are an object's."""
        found = [torch.where(label > 0)[0] for label in labels]
        boxes = [part[kept] for part, kept in zip(proposals, found, strict=True)]
        objects = [part[kept] for part, kept in zip(matched, found, strict=True)]
        logits = self.mask_logits(features, boxes, image_shapes)
        truth, classes = ([target[name] for target in targets] for name in ("masks", "labels"))
        return maskrcnn_loss(logits, boxes, truth, classes, objects)


def objects_of(truth: Tensor, matched: Tensor, *, like: Tensor) -> Tensor:
    """The box of the object of each of an image's boxes; zeros where the image has no objects."""
    return truth[matched] if len(truth) else torch.zeros_like(like)
