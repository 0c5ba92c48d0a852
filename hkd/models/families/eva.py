"""EVA: Fang et al. 2023, arXiv:2211.07636 (ScaleKD calls EVA-L/14 "BEiT-L/14").

timm builds EVA-L as a VisionTransformer and other EVA models by its Eva class; both are served. `norm` is an Identity:
timm norms after pooling, so `final` holds un-normed tokens, as ScaleKD's `F_T` does.
"""

from typing import Any

from torch import Tensor, nn

from hkd.errors import Refused
from hkd.models.families.base import Family, Tail, isotropic_tail, tokens_to_map


class EvaFamily(Family):
    """The tail is the last two blocks (unless told otherwise), on patch tokens only."""

    name = "eva"
    has_tail = True

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        return tokens_to_map(features[:, net.num_prefix_tokens :], net.patch_embed.dynamic_feat_size(x.shape[-2:]))

    def attention_modules(self, net: Any) -> list[nn.Module]:
        return [block.attn for block in net.blocks]

    def tail(self, net: Any, blocks: int | None = None) -> Tail:
        if getattr(net, "rope", None) is not None:
            raise Refused("An EVA-02 model has no tail (its rotary positions assume the class token); take an EVA one.")
        return isotropic_tail(net, blocks)
