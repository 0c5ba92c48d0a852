"""Plain vision transformers: ViT (Dosovitskiy et al. 2021, arXiv:2010.11929) and DeiT (Touvron et al. 2021,
arXiv:2012.12877), with or without class and distillation tokens."""

from typing import Any

from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from hkd.models.families.base import Family, Tail, isotropic_tail, tokens_to_map


class ViTFamily(Family):
    """The tail is the last two blocks (unless told otherwise) and the final norm, on patch tokens only."""

    name = "vit"
    has_tail = True

    def head(self, net: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        if not isinstance(net, VisionTransformerDistilled):
            return super().head(net, features)
        # Two classifiers on two tokens. The penultimate feature is the tokens' mean, as timm's pre-logits are; with
        # `distilled_training` off, which is timm's default, the logits are the mean of both classifiers.
        tokens = net.head_drop(features[:, 0]), net.head_drop(features[:, 1])
        return (tokens[0] + tokens[1]) / 2, (net.head(tokens[0]) + net.head_dist(tokens[1])) / 2

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        return tokens_to_map(features[:, net.num_prefix_tokens :], net.patch_embed.dynamic_feat_size(x.shape[-2:]))

    def attention_modules(self, net: Any) -> list[nn.Module]:
        return [block.attn for block in net.blocks]

    def tail(self, net: Any, blocks: int | None = None) -> Tail:
        return isotropic_tail(net, blocks)
