"""Mask R-CNN on the maps of a backbone, from torchvision's parts: pyramid, region proposals, box and mask heads.

Source: He et al. 2017, arXiv:1703.06870, with FPN; defaults are torchvision's, which are those of the paper's "1x"
training. torchvision's own resizing and normalisation are not there: the loader resizes, the backbone normalises.
Heads compute in float32 under any precision: coordinates in 16 bits are pixels off.
Shapes: B batch, K objects or detections of one image, C classes, H W sides of a batch, h w those of an image in it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from hkd.data.loading.dense import DenseBatch
from hkd.downstream.backbone import Backbone
from hkd.downstream.cascade import CascadeRoIHeads, SharedPredictor
from hkd.downstream.pyramid import make_pyramid
from hkd.options import Count, Few, Positive, Share, Size, Switch, Whole, options, together

RATIOS = (0.5, 1.0, 2.0)  # heights of anchors by their widths
SAMPLES = 2  # points per side that RoIAlign reads in a cell


@options
class DetectorOptions:
    """Sizes of a detector. Lengths are in px of the image as it is shown, counts are per image."""

    cascade: Switch = False  # three box heads of rising overlap
    width: Size = 256  # channels of the pyramid
    strides: Annotated[tuple[Size, ...], Field(min_length=1)] = (4, 8, 16, 32, 64)  # of its levels; the last proposes
    pooled_levels: Few = 4  # of these, the finest ones that boxes and masks are read from
    anchors: tuple[Positive, ...] = (32.0, 64.0, 128.0, 256.0, 512.0)  # side of each level's square anchor
    rpn_pre_nms: tuple[Count, Count] = (2000, 1000)  # proposals per level before suppression: training, test
    rpn_post_nms: tuple[Count, Count] = (2000, 1000)  # and in all after it
    rpn_samples: Count = 256  # anchors in the loss
    box_samples: Count = 512  # proposals in the loss of the box head
    box_roi: Few = 7  # side of the grid that a box is read into
    box_width: Size = 1024  # of its two hidden layers
    mask_roi: Few = 14
    mask_layers: Annotated[Whole, Field(le=1024)] = 4  # 3x3 convolutions
    mask_width: Size = 256
    canonical_scale: Size = 224  # side of a box that is read from level log2(stride) = canonical_level
    canonical_level: Annotated[Whole, Field(le=64)] = 4
    score_threshold: Share = 0.05  # detections of a lower score are left out
    nms_threshold: Share = 0.5
    detections: Count = 100  # at most
    fixed_statistics: Switch = False  # batch norms of the backbone keep their statistics, usual with pre-trained ones

    @together
    def _levels(self) -> None:
        if list(self.strides) != [self.strides[0] * 2**k for k in range(len(self.strides))]:
            raise ValueError(f"strides must double from one to the next, got {list(self.strides)}")
        if len(self.anchors) != len(self.strides):
            raise ValueError(f"anchors must be {len(self.strides)} sides, one per stride, got {list(self.anchors)}")
        if self.pooled_levels > len(self.strides):
            raise ValueError(f"pooled_levels must be 1 to {len(self.strides)}, got {self.pooled_levels}")


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the surest first.

    boxes: x1, y1, x2, y2 in px [K, 4]. scores: in [0, 1] [K]. labels: classes from 0 [K]. masks: probabilities within
    each box on a square grid [K, 1, 2 mask_roi, 2 mask_roi]; `pasted` brings them to the image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor

    def scaled(self, factor: Tensor) -> "Detections":
        """On an image of other sides. factor: of width and height [2]."""
        return Detections(self.boxes * factor.repeat(2), self.scores, self.labels, self.masks)

    def pasted(self, height: int, width: int) -> Tensor:
        """Masks where the probability exceeds one half, bool [K, height, width]."""
        if not len(self.boxes):
            return torch.zeros(0, height, width, dtype=torch.bool, device=self.boxes.device)
        return paste_masks_in_image(self.masks, self.boxes, (height, width))[:, 0] > 0.5


class Detector(nn.Module):
    """The head of a detector: from a backbone's maps to losses, or to detections.

    Attributes:
        multiple: what the sides of x must be multiples of, for every level to cover the image evenly.
        fixed_statistics: as in the options.

    Args:
        backbone: read for the shapes of its maps, not kept.
        classes: C.
        options: sizes.

    Raises:
        Refused: a stride that the backbone cannot give.
    """

    def __init__(self, backbone: Backbone, classes: int, options: DetectorOptions):
        super().__init__()
        self.fixed_statistics = options.fixed_statistics
        self.multiple = options.strides[-1]
        self.pyramid = make_pyramid(backbone, options.strides, options.width)
        pooled = [str(level) for level in range(options.pooled_levels)]
        pool = partial(
            MultiScaleRoIAlign,
            featmap_names=pooled,
            sampling_ratio=SAMPLES,
            canonical_scale=options.canonical_scale,
            canonical_level=options.canonical_level,
        )
        box_head = partial(TwoMLPHead, options.width * options.box_roi**2, options.box_width)
        mask_layers = [options.mask_width] * options.mask_layers
        # torchvision's whole model is built for its proposals and heads; its transform and its forward are not used.
        whole = MaskRCNN(
            self.pyramid,
            rpn_anchor_generator=AnchorGenerator(
                tuple((side,) for side in options.anchors), (RATIOS,) * len(options.anchors)
            ),
            rpn_pre_nms_top_n_train=options.rpn_pre_nms[0],
            rpn_pre_nms_top_n_test=options.rpn_pre_nms[1],
            rpn_post_nms_top_n_train=options.rpn_post_nms[0],
            rpn_post_nms_top_n_test=options.rpn_post_nms[1],
            rpn_batch_size_per_image=options.rpn_samples,
            box_roi_pool=pool(output_size=options.box_roi),
            box_head=box_head(),
            box_predictor=FastRCNNPredictor(options.box_width, classes + 1),
            box_score_thresh=options.score_threshold,
            box_nms_thresh=options.nms_threshold,
            box_detections_per_img=options.detections,
            box_batch_size_per_image=options.box_samples,
            mask_roi_pool=pool(output_size=options.mask_roi),
            mask_head=MaskRCNNHeads(options.width, mask_layers, 1),
            mask_predictor=MaskRCNNPredictor([options.width, *mask_layers][-1], options.mask_width, classes + 1),
        )
        self.rpn, self.roi_heads = whole.rpn, whole.roi_heads
        if options.cascade:
            self.roi_heads = cascaded(self.roi_heads, box_head, partial(SharedPredictor, options.box_width, classes))
        for roi_pool in (self.roi_heads.box_roi_pool, self.roi_heads.mask_roi_pool):
            fix_scales(roi_pool, options)

    def forward(self, maps: list[Tensor], batch: DenseBatch) -> dict[str, Tensor]:
        """Named losses of a batch with objects, each a mean: of proposals ("objectness", "rpn_box_reg") and of heads
        ("classifier", "box_reg", "mask"; the first two numbered by stage in a cascade).
        """
        assert batch.objects is not None, "a detector trains on objects"
        targets = [{**one, "labels": one["labels"] + 1} for one in batch.objects]  # 0 is the background here
        _, losses = self._run(maps, batch, targets)
        return {name.removeprefix("loss_"): loss for name, loss in losses.items()}

    def detect(self, maps: list[Tensor], batch: DenseBatch) -> list[Detections]:
        """What is found in each image, in px of the image as it is shown. In evaluation mode."""
        found, _ = self._run(maps, batch, None)
        return [Detections(one["boxes"], one["scores"], one["labels"] - 1, one["masks"]) for one in found]

    def _run(self, maps: list[Tensor], batch: DenseBatch, targets: Any) -> tuple[Any, dict[str, Tensor]]:
        features = self.pyramid(maps)
        sizes = [(height, width) for height, width in batch.sizes.tolist()]
        with torch.autocast(batch.x.device.type, enabled=False):
            features = {name: level.float() for name, level in features.items()}
            proposals, losses = self.rpn(ImageList(batch.x, sizes), features, targets)
            found, more = self.roi_heads(features, proposals, sizes, targets)
        return found, losses | more


def cascaded(heads: RoIHeads, make_head: Any, make_predictor: Any) -> CascadeRoIHeads:
    """A cascade with the pools, the masks and the settings of given heads."""
    return CascadeRoIHeads(
        make_head,
        make_predictor,
        box_roi_pool=heads.box_roi_pool,
        batch_size_per_image=heads.fg_bg_sampler.batch_size_per_image,
        positive_fraction=heads.fg_bg_sampler.positive_fraction,
        score_thresh=heads.score_thresh,
        nms_thresh=heads.nms_thresh,
        detections_per_img=heads.detections_per_img,
        mask_roi_pool=heads.mask_roi_pool,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
    )


def fix_scales(pool: MultiScaleRoIAlign, options: DetectorOptions) -> None:
    """Tell a pool the strides of its levels: left alone it guesses them from the images of the first batch, and a
    batch that is mostly padding makes it guess wrong.
    """
    side = options.strides[-1]
    levels = {
        str(level): torch.zeros(1, 1, side // stride, side // stride) for level, stride in enumerate(options.strides)
    }
    pool(levels, [torch.tensor([[0.0, 0.0, 1.0, 1.0]])], [(side, side)])
