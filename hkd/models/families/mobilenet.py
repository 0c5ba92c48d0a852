"""MobileNet-V1: Howard et al. 2017, arXiv:1704.04861, as timm's EfficientNet class builds it."""

from functools import partial
from typing import Any

from timm.models._efficientnet_builder import decode_arch_def, round_channels
from torch import nn

from hkd.models.families.base import Family
from hkd.spec import ModelCard


class MobileNetFamily(Family):
    """Keys of its own in `ModelCard.kwargs`.

    stem_stride: stride of the first convolution (2 unless given). blocks: stages in timm's block notation, for cards
    whose `arch` is the class. width: multiplier of all channel counts, with `blocks`.
    """

    name = "mobilenet"
    timm_files = ("efficientnet",)

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        stem_stride, blocks, width = kwargs.pop("stem_stride", 2), kwargs.pop("blocks", None), kwargs.pop("width", 1.0)
        if blocks is not None:
            kwargs["block_args"] = decode_arch_def([list(stage) for stage in blocks])
            kwargs["round_chs_fn"] = partial(round_channels, multiplier=width)
        net = super().construct(arch, kwargs)
        net.conv_stem.stride = (stem_stride, stem_stride)
        return net

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """Before what follows the previous tap, blocks or the last convolution.

        Stage 1 begins behind the tap before its own, or behind the stem.
        """
        first, parts = card.stages[0], [*net.blocks, net.conv_head]
        before = [first - 1 if first else None, *card.stages[:3]]
        starts = [0 if index is None else net.stage_ends[index] for index in before]
        return {stage: parts[start] for stage, start in enumerate(starts, start=1)}
