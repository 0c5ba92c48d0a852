"""Semantic segmentation heads on the four maps of a backbone.

UperNet: Xiao et al. 2018, arXiv:1807.10221, in transformers' form, with the usual auxiliary FCN head. FPN: lateral 1x1
convolutions, sums from coarse to fine, then 3x3, group norm and GELU in every level and one linear classifier over all
of them, as in Panoptic FPN (Kirillov et al. 2019, arXiv:1901.02446) but for its deeper upsampling and its sum. Linear:
batch norm and one linear classifier of the four maps, what DINOv2 reads frozen backbones with (Oquab et al. 2023,
arXiv:2304.07193, section 7.4).

A plain transformer has four maps of one size; `Rescale` first makes them a pyramid, as BEiT's UperNet does (Bao et al.
2022, arXiv:2106.08254, appendix). Shapes: B batch, C classes, D width, h w the finest map, H W the image, in px.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hkd.data.dense import IGNORE
from hkd.data.loading.dense import DenseBatch
from hkd.downstream.backbone import STAGES, Backbone
from hkd.errors import Refused, UserError

FACTORS = (4.0, 2.0, 1.0, 0.5)  # that a map can be rescaled by
GROUPS = 32  # of group norm, where the width is a multiple of it
AUXILIARY_WIDTH = 256  # at most
AUXILIARY_MAP = 2  # the third map
TINY = 1e-12  # keeps the loss of a batch without labelled pixels at zero


class Segmenter(nn.Module):
    """A head of one kind with its losses: what is trained beside the backbone.

    Args:
        backbone: whose maps it takes.
        classes: C.
        head: upernet, fpn or linear.
        width: channels of the head; without effect on a linear one.
        pool_scales: sides of UperNet's pooled maps; FPN has none.
        pyramid: what the four equal maps of a plain transformer are rescaled by; other backbones and a linear head keep
            theirs.
        auxiliary: weight of the auxiliary head's loss; 0 leaves the head out.
        dropout: of whole channels before the classifiers.
        class_weights: of the cross-entropy [C]; None: all one.

    Raises:
        Refused: not four maps, or not one factor for each.
    """

    class_weights: Tensor

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        head: Literal["upernet", "fpn", "linear"],
        width: int,
        pool_scales: Sequence[int],
        pyramid: Sequence[float],
        auxiliary: float,
        dropout: float,
        class_weights: Float[Tensor, " C"] | None = None,
    ):
        super().__init__()
        channels = backbone.channels
        if len(channels) != STAGES:
            raise Refused(f"A segmentation head needs {STAGES} maps, and {backbone.card.name} has {len(channels)}.")
        plain = len(set(backbone.strides)) == 1 and head != "linear"
        self.rescale: nn.Module = Rescale(channels, pyramid) if plain else nn.Identity()
        self.head: nn.Module
        if head == "upernet":
            self.head = UperNet(channels, classes, width=width, pool_scales=pool_scales, dropout=dropout)
        elif head == "linear":
            self.head = Linear(channels, classes, dropout=dropout)
        else:
            self.head = FPN(channels, classes, width=width, dropout=dropout)
        self.auxiliary_weight = auxiliary
        third = channels[AUXILIARY_MAP]
        self.auxiliary = FCN(third, classes, min(width, AUXILIARY_WIDTH), dropout) if auxiliary else None
        weights = torch.ones(classes) if class_weights is None else class_weights
        self.register_buffer("class_weights", weights, persistent=False)  # derived from the data

    def logits(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C h w"]:
        """Logits of the head at the finest map."""
        return self.head(self.rescale(maps))

    def forward(self, maps: Sequence[Tensor], batch: DenseBatch) -> dict[str, Tensor]:
        """Weighted losses: `segmentation`, and `auxiliary` where there is that head.

        Args:
            maps: of the backbone.
            batch: with maps of classes from 0 [B, H, W], where `IGNORE` is not counted.
        """
        assert batch.maps is not None
        maps = self.rescale(maps)
        terms = {"segmentation": pixel_loss(self.head(maps), batch.maps, self.class_weights)}
        if self.auxiliary is not None:
            loss = pixel_loss(self.auxiliary(maps[AUXILIARY_MAP]), batch.maps, self.class_weights)
            terms["auxiliary"] = self.auxiliary_weight * loss
        return terms


def pixel_loss(
    logits: Float[Tensor, "B C h w"], target: Int64[Tensor, "B H W"], weights: Float[Tensor, " C"]
) -> Float[Tensor, ""]:
    r"""Cross-entropy in nats of logits that are upsampled bilinearly to the target, weighted by class.

    .. math:: L = \frac{\sum_p w_{y_p} (-\log softmax(z_p)_{y_p})}{\sum_p w_{y_p}}

    over the labelled pixels p of the batch; zero, with zero gradients, where there is none.
    """
    logits = resized(logits.float(), target.shape[-2:])
    total = F.cross_entropy(logits, target, weight=weights, ignore_index=IGNORE, reduction="sum")
    labelled = target != IGNORE
    return total / (weights[target.where(labelled, 0)] * labelled).sum().clamp_min(TINY)


def root_weights(counts: Int64[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Weights f^(-1/2) of classes with pixel frequencies f, scaled to a mean of 1 over the classes that occur.

    Args:
        counts: pixels of each class. A class without any has the weight 1, which nothing will use.

    Raises:
        UserError: no pixel has a class.
    """
    seen = counts > 0
    if not seen.any():
        raise UserError("No pixel of the training maps has a class, so there is nothing to learn: check the maps.")
    roots = (counts.double() / counts.sum()).rsqrt()
    return torch.where(seen, roots / roots[seen].mean(), 1.0).float()


class Rescale(nn.Module):
    """Four maps of one size as a pyramid: transposed convolutions up (x4: two, with batch norm and GELU between), max
    pooling down.

    Raises:
        Refused: not one factor for each map, or one that is none of `FACTORS`.
    """

    def __init__(self, channels: Sequence[int], factors: Sequence[float]):
        super().__init__()
        if len(factors) != len(channels) or not set(factors) <= set(FACTORS):
            raise Refused(f"The pyramid must be {len(channels)} of {list(FACTORS)}, got {list(factors)}.")
        self.steps = nn.ModuleList(self._step(*pair) for pair in zip(channels, factors, strict=True))

    @staticmethod
    def _step(width: int, factor: float) -> nn.Module:
        def up() -> nn.Module:
            return nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)

        if factor == 4:
            return nn.Sequential(up(), nn.BatchNorm2d(width), nn.GELU(), up())
        # A grid of an odd side keeps its last row when halved.
        return up() if factor == 2 else nn.Identity() if factor == 1 else nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [step(map_) for step, map_ in zip(self.steps, maps, strict=True)]


class UperNet(nn.Module):
    """transformers' head, whose class is not public; imported here because that takes seconds.

    A pooled map of one position has one value per image and channel, which batch norm cannot normalise while training
    on a single image, unless it is shared with other processes: UserError.
    """

    def __init__(
        self, channels: Sequence[int], classes: int, *, width: int, pool_scales: Sequence[int], dropout: float
    ):
        super().__init__()
        from transformers.models.upernet.modeling_upernet import UperNetHead

        # All that the head reads of a configuration, which by itself would also describe a backbone.
        config = SimpleNamespace(hidden_size=width, num_labels=classes, pool_scales=list(pool_scales))
        self.net = UperNetHead(config, in_channels=list(channels))
        self.net.add_module("classifier", nn.Sequential(nn.Dropout2d(dropout), self.net.classifier))

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C h w"]:
        alone = any(type(module) is nn.BatchNorm2d for module in self.net.modules())
        if self.training and alone and len(maps[0]) == 1:
            raise UserError("UperNet's batch norm needs at least 2 images per process: raise batch_size.")
        return self.net(list(maps))


class FPN(nn.Module):
    """Feature pyramid head.

    The classifier of all levels, upsampled to the finest and concatenated, is a sum of one classifier per level. As it
    is linear and so is upsampling, each runs at its own level and the few channels of its logits are upsampled.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, width: int, dropout: float):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(depth, width, kernel_size=1) for depth in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
                nn.GroupNorm(math.gcd(width, GROUPS), width),
                nn.GELU(),
                nn.Dropout2d(dropout),
            )
            for _ in channels
        )
        self.classifiers = nn.ModuleList(
            nn.Conv2d(width, classes, kernel_size=1, bias=level == 0) for level in range(len(channels))
        )

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C h w"]:
        levels = [lateral(map_) for lateral, map_ in zip(self.laterals, maps, strict=True)]
        for level in range(len(levels) - 1, 0, -1):
            levels[level - 1] = levels[level - 1] + resized(levels[level], levels[level - 1].shape[-2:])
        logits = [
            classify(smooth(level))
            for classify, smooth, level in zip(self.classifiers, self.smooth, levels, strict=True)
        ]
        return logits[0] + sum(resized(coarse, logits[0].shape[-2:]) for coarse in logits[1:])


class Linear(nn.Module):
    """Batch norm and one linear classifier of all maps, upsampled to the finest and concatenated.

    As in `FPN`, that is a sum of one classifier per map, each at its own size.
    """

    def __init__(self, channels: Sequence[int], classes: int, *, dropout: float):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(depth) for depth in channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifiers = nn.ModuleList(
            nn.Conv2d(depth, classes, kernel_size=1, bias=level == 0) for level, depth in enumerate(channels)
        )

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C h w"]:
        logits = [
            classify(self.dropout(norm(map_)))
            for classify, norm, map_ in zip(self.classifiers, self.norms, maps, strict=True)
        ]
        return logits[0] + sum(resized(coarse, logits[0].shape[-2:]) for coarse in logits[1:])


class FCN(nn.Sequential):
    """The auxiliary head: 3x3 convolution, batch norm, ReLU, classifier."""

    def __init__(self, channels: int, classes: int, width: int, dropout: float):
        super().__init__(
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout2d(dropout),
            nn.Conv2d(width, classes, kernel_size=1),
        )


def resized(map_: Float[Tensor, "B D h w"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "B D H W"]:
    """A map at another height and width, bilinearly; itself where it has them."""
    if map_.shape[-2:] == size:
        return map_
    return F.interpolate(map_, size=tuple(size), mode="bilinear", align_corners=False)
