"""Plain vision transformers whose tokens, queries, keys and values can be had, also of a pass over visible patches.

The students of Hybrid Distill (arXiv:2306.15876). The network is timm's and its taps are those of `mim_vit`; what is
added comes in a `TokenTaps`. Fresh ones are drawn as in the code base that the paper builds on: Xavier-uniform linear
maps (the patch embedding is one too) with zero biases, fixed sine-cosine positions, class token of deviation .02.
Positions are a buffer of the name that timm's parameter has, so weights load either way; in this family they are never
trained. Shapes: B batch, D width, h heads, d = attention width / h, P prefix tokens, M = P + visible patches.
"""

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from hkd.errors import Refused
from hkd.models.families.mim_vit import MimViTFamily
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard

CLASS_STD = 0.02  # of the class token's entries


@dataclass(kw_only=True)
class TokenTaps(Taps):
    """Taps, and the tokens that went through the blocks, prefix first, in the order of the image.

    tokens, raw: after and before the final norm, [B, M, D].
    qkv: queries, keys and values of the wanted blocks as their attention multiplies them, each [B, h, M, d].
    outputs: of the wanted blocks, [B, M, D].
    """

    tokens: Float[Tensor, "B M D"]
    raw: Float[Tensor, "B M D"]
    qkv: dict[int, tuple[Tensor, Tensor, Tensor]]
    outputs: dict[int, Tensor]


def split_heads(attention: Any, projected: Float[Tensor, "B M E"]) -> tuple[Tensor, Tensor, Tensor]:
    """What timm's Attention makes of the output of its `qkv`: queries and keys (normalised, where it does that) and
    values.

    Args:
        attention: the module.
        projected: E = 3 h d.

    Returns:
        Three tensors [B, h, M, d].
    """
    heads = projected.unflatten(2, (3, attention.num_heads, attention.head_dim)).permute(2, 0, 3, 1, 4)
    q, k, v = heads.unbind(0)
    return attention.q_norm(q), attention.k_norm(k), v


@contextmanager
def recorded_outputs(modules: Mapping[Hashable, nn.Module]) -> Iterator[dict[Hashable, Tensor]]:
    """Record the output of each module while the context is open; hooks as those of `recorded_inputs`."""
    found: dict[Hashable, Tensor] = {}
    caller = threading.get_ident()

    def record(key: Hashable, output: Tensor) -> None:
        if threading.get_ident() == caller:
            found[key] = output

    handles = [
        module.register_forward_hook(lambda _module, _args, output, key=key: record(key, output))
        for key, module in modules.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class HybridViTFamily(MimViTFamily):
    """`MimViTFamily`, whose `forward` also takes `qkv` and `outputs` and gives a `TokenTaps`."""

    name = "hybrid_vit"

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        net = super().construct(arch, kwargs)
        initialise(net)
        return net

    def forward(
        self,
        net: Any,
        card: ModelCard,
        x: Float[Tensor, "B 3 Hi Wi"],
        want: Want,
        *,
        visible: Bool[Tensor, "B 1 g g"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        qkv: tuple[int, ...] = (),
        outputs: tuple[int, ...] = (),
    ) -> TokenTaps:
        """Run the model once on normalised images, on all of their patches or on some.

        Args:
            net, card, x, want, visible, mask_token: as `MaskedTokens.forward`.
            qkv: 0-based blocks whose queries, keys and values are wanted; attention stays fused.
            outputs: 0-based blocks whose outputs are wanted.

        Raises:
            Refused: a block that the model does not have; also what `MaskedTokens.forward` raises.
        """
        if unknown := [index for index in (*qkv, *outputs) if not 0 <= index < len(net.blocks)]:
            raise Refused(f"Block {unknown[0]} was asked of {card.name}, which has blocks 0 to {len(net.blocks) - 1}.")
        modules: dict[Hashable, nn.Module] = {"raw": net.blocks[-1], "tokens": net.norm}
        modules |= {("qkv", index): net.blocks[index].attn.qkv for index in qkv}
        modules |= {("output", index): net.blocks[index] for index in outputs}
        with recorded_outputs(modules) as found:
            taps = super().forward(net, card, x, want, visible=visible, mask_token=mask_token)
        return TokenTaps(
            **vars(taps),
            tokens=found["tokens"],
            raw=found["raw"],
            qkv={index: split_heads(net.blocks[index].attn, found["qkv", index]) for index in qkv},
            outputs={index: found["output", index] for index in outputs},
        )


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
