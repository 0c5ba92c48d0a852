"""Plain vision transformers as the students of Hybrid Distill (arXiv:2306.15876) begin.

The network is timm's and its taps are those of `mim_vit`. Fresh ones are drawn as in the code base that the paper
builds on: Xavier-uniform linear maps (the patch embedding is one too) with zero biases, fixed sine-cosine positions,
class token of deviation .02. The channels of fresh positions are in timm's order (sines of row and column, then cosines
of row and column), where MAE has sines and cosines of the column, then of the row: the same numbers, permuted; weights
of MAE bring their own. Positions are a buffer of the name that timm's parameter has, so weights load either way;
in this family they are never trained.
"""

from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import nn

from hkd.models.families.mim_vit import MimViTFamily

CLASS_STD = 0.02  # of the class token's entries


class HybridViTFamily(MimViTFamily):
    """`MimViTFamily` with other initial weights."""

    name = "hybrid_vit"

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        net = super().construct(arch, kwargs)
        initialise(net)
        return net


@torch.no_grad()
def initialise(net: Any) -> None:
    """Draw a plain transformer's patch embedding, blocks and class token afresh, and fix its positions."""
    projection = net.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
    linears = [module for module in net.blocks.modules() if isinstance(module, nn.Linear)]
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
    for module in (projection, *linears):
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if net.cls_token is not None:
        nn.init.normal_(net.cls_token, std=CLASS_STD)
    if net.pos_embed is not None:
        _, length, width = net.pos_embed.shape
        positions = build_sincos2d_pos_embed(list(net.patch_embed.grid_size), width).to(net.pos_embed)
        prefix = positions.new_zeros(length - len(positions), width)  # a class token has no place
        del net.pos_embed
        net.register_buffer("pos_embed", torch.cat([prefix, positions])[None])
