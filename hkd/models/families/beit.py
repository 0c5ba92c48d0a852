"""BEiT: Bao et al. 2022, arXiv:2106.08254, as timm's class Beit; also the encoder of CAE (Chen et al. 2022,
arXiv:2202.03026), which is the same class with absolute positions, no relative bias and LayerScale from .1.

A relative position bias lies between two tokens of the full grid, so a pass over visible tokens alone takes the rows
and columns of the tokens that are there. CAE's official code has a second encoder for hidden patches, which shares its
weights with the first: here one network looks twice. With `use_fc_norm` timm norms after pooling and `final` holds
un-normed tokens; encoders that teach by their tokens, as BEiT's and CAE's pre-trained ones do, are built without it.
Shapes: B batch, D width, H heads, M tokens that go through, N patch tokens, P = 1 class token.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hkd.models.families.isotropic import IsotropicFamily
from hkd.models.families.masked_tokens import MaskedTokens
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard


@dataclass(kw_only=True)
class AlignedTaps(Taps):
    """Taps of the visible patches, and `hidden`, the last map of a pass over the others, without gradients; each is
    zero where the other is not."""

    hidden: Float[Tensor, "B Df H W"]


def bias_between(owner: Any, places: Int[Tensor, "b M"]) -> Float[Tensor, "b H M M"]:
    """Relative position bias between the tokens at some places of the full sequence (0: the class token).

    Args:
        owner: a timm module with a table of biases and the full index into it.
        places: of each image, or one row for all.
    """
    index = owner.relative_position_index[places[:, :, None], places[:, None, :]]
    return owner.relative_position_bias_table[index].permute(0, 3, 1, 2).contiguous()


def without_own_bias(block: Any) -> Any:
    """A view of a block, with the same parameters, that adds only the bias it is given.

    A block's own bias is always that of the full sequence, and changing the block itself would not be thread-safe.
    """
    attention, view = copy.copy(block.attn), copy.copy(block)
    attention._parameters = attention._parameters | {"relative_position_bias_table": None}
    view._modules = view._modules | {"attn": attention}
    return view


def run_block(block: Any, places: Tensor, shared: Tensor | None, tokens: Tensor) -> Tensor:
    """A block on the tokens at these places; `shared`: the bias between them that all blocks have."""
    if block.attn.relative_position_bias_table is None:
        return block(tokens, shared_rel_pos_bias=shared)
    own = bias_between(block.attn, places)
    return without_own_bias(block)(tokens, shared_rel_pos_bias=own if shared is None else own + shared)


class BeitFamily(MaskedTokens, IsotropicFamily):
    """timm's class Beit, whose `forward` also takes `aligned` in the place of `visible`."""

    name = "beit"
    accepts = IsotropicFamily.accepts | MaskedTokens.accepts | {"aligned"}
    timm_files = ("beit",)

    def forward(
        self,
        net: Any,
        card: ModelCard,
        x: Float[Tensor, "B 3 Hi Wi"],
        want: Want,
        *,
        aligned: Bool[Tensor, "B 1 g g"] | None = None,
        **options: Any,
    ) -> Taps:
        """Run the model once on normalised images, or twice: on what is visible of them and on what is hidden.

        Args:
            net, card, x, want, options: as `Family.forward`.
            aligned: True where a patch is visible, at equally many places of each image, but not at all.

        Returns:
            `AlignedTaps` with such a mask.

        Raises:
            UserError: a mask that does not fit, or shows none or all of an image.
        """
        if aligned is None:
            return super().forward(net, card, x, want, **options)
        taps = super().forward(net, card, x, want, visible=aligned, **options)
        with torch.no_grad():
            hidden = super().forward(net, card, x, Want(), visible=~aligned, **options).final
        return AlignedTaps(**vars(taps), hidden=hidden)

    def position(self, net: Any, embedded: Tensor) -> Float[Tensor, "B M D"]:
        tokens = torch.cat([net.cls_token.expand(len(embedded), -1, -1), embedded], dim=1)
        return net.pos_drop(tokens if net.pos_embed is None else tokens + net.pos_embed)

    def block_functions(self, net: Any, kept: Int[Tensor, "B M"] | None) -> Sequence[Callable[[Tensor], Tensor]]:
        if kept is None:
            shared = None if net.rel_pos_bias is None else net.rel_pos_bias()
            return [partial(block, shared_rel_pos_bias=shared) for block in net.blocks]
        shared = None if net.rel_pos_bias is None else bias_between(net.rel_pos_bias, kept)
        return [partial(run_block, block, kept, shared) for block in net.blocks]

    def last_blocks(self, net: Any, count: int, tokens: Tensor) -> list[Any]:
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)[None]
        return list(self.block_functions(net, places))[-count:]
