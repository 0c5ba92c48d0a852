"""Plain vision transformers: ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and DeiT (Touvron et al. 2021,
arXiv:2012.12877), with or without class and distillation tokens."""

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor

from hkd.models.families.isotropic import IsotropicFamily


class ViTFamily(IsotropicFamily):
    """Any VisionTransformer of timm."""

    name = "vit"
    accepts = IsotropicFamily.accepts | {"qkv"}
    timm_files = ("vision_transformer", "deit")

    def head(self, net: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(net, VisionTransformerDistilled):
            return super().head(net, features)
        # Two classifiers on two tokens. The penultimate feature is the tokens' mean, as timm's pre-logits are; with
        # `distilled_training` off, which is timm's default, the logits are the mean of both classifiers.
        tokens = net.head_drop(features[:, 0]), net.head_drop(features[:, 1])
        return (tokens[0] + tokens[1]) / 2, (net.head(tokens[0]) + net.head_dist(tokens[1])) / 2
