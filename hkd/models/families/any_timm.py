"""timm models that no other family is made for."""

from typing import Any, ClassVar

from torch import Tensor, nn

from hkd.models.families.base import Family


class TimmFamily(Family):
    """Any timm CNN that no other family runs."""

    name: ClassVar[str] = "timm"

    def head(self, net: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        """As `Family.head`; classifiers that are no linear map (a 1x1 convolution, two of them) are timm's to call."""
        if isinstance(net.get_classifier(), nn.Linear | nn.Identity):
            return super().head(net, features)
        return net.forward_head(features, pre_logits=True).flatten(1), net.forward_head(features)

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        """`forward_features` as [B, D, H, W]."""
        return features.permute(0, 3, 1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else features
