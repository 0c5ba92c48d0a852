"""MobileNet-V2: Sandler et al. 2018, arXiv:1801.04381, as timm's EfficientNet class builds it."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from hkd.models.families.mobilenet import MobileNetFamily


class MobileNetV2Family(MobileNetFamily):
    """Keys in `ModelCard.kwargs` as `MobileNetFamily`'s.

    The network ends in a 1x1 convolution behind its blocks; index `HEAD` of a card's stages means the map after it
    (1280 channels in the paper's size), which is `forward_features`.
    """

    name = "mobilenet_v2"
    HEAD: ClassVar[int] = 5

    def intermediates(
        self, net: Any, x: Tensor, indices: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        inner = [index for index in indices if index != self.HEAD]
        # Asked for no map at all, timm would return all of them.
        features, maps = super().intermediates(net, x, inner)[:2] if inner else (net.forward_features(x), {})
        return features, maps | {index: features for index in indices if index == self.HEAD}, {}
