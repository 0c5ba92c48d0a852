"""Plain vision transformers that take a mask: the encoder of MAE (He et al. 2022, arXiv:2111.06377).

Any ViT of timm serves; the same weights run in the family `vit`. Deviation: position embeddings are what the card's
model has, which is learned ones in timm; MAE's checkpoints hold their fixed ones under the same name. Patch dropping
(`patch_drop_rate`) has no effect on a masked pass.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from hkd.models.families.masked_tokens import MaskedTokens
from hkd.models.families.vit import ViTFamily


class MimViTFamily(MaskedTokens, ViTFamily):
    """`ViTFamily`, which also takes `visible` and `mask_token` (see `MaskedTokens`)."""

    name = "mim_vit"
    accepts = ViTFamily.accepts | MaskedTokens.accepts

    def position(self, net: Any, embedded: Tensor) -> Float[Tensor, "B M D"]:
        return net.norm_pre(net._pos_embed(embedded))

    def block_functions(self, net: Any, kept: Int[Tensor, "B M"] | None) -> Sequence[Callable[[Tensor], Tensor]]:
        return list(net.blocks)
