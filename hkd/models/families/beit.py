"""BEiT: Bao et al. 2022, arXiv:2106.08254, as timm's class Beit; also the encoder of CAE (Chen et al. 2022,
arXiv:2202.03026), which is the same class with absolute positions, no relative bias and LayerScale from .1.

A relative position bias lies between two tokens of the full grid, so a pass over visible tokens alone takes the rows
and columns of the tokens that are there. With `use_fc_norm` timm norms after pooling and `final` holds un-normed
tokens; encoders that teach by their tokens, as BEiT's and CAE's pre-trained ones do, are built without it.
Shapes: B batch, D width, H heads, M tokens that go through, N patch tokens, P = 1 class token.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hkd.models.families.isotropic import IsotropicFamily
from hkd.models.families.masked_tokens import MaskedTokens


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
    """timm's class Beit."""

    name = "beit"
    accepts = IsotropicFamily.accepts | MaskedTokens.accepts
    timm_files = ("beit",)

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
