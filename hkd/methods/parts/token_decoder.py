"""A narrow transformer on a student's tokens, between them and what they are to predict; dropped after training.

As MAE's decoder: a linear map to its width, fixed sine-cosine positions, blocks, a norm, a linear map to the target's
width. The channels of the positions are MAE's in another order, timm's: see hkd/methods/mae.py.
Shapes: B batch, P prefix tokens, N = H * W patches, n visible ones, D width in, E width, T width out.
"""

import torch
from jaxtyping import Bool, Float
from timm.layers import LayerNorm, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hkd.devices import sent
from hkd.methods.parts.initialisers import SPREAD, xavier
from hkd.models.masks import with_prefix
from hkd.options import Few, Size, options, together


@options
class DecoderConfig:
    """Options of methods that have such a decoder."""

    decoder_width: Size = 512
    decoder_heads: Few = 16

    @together
    def _heads(self) -> None:
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width must be a multiple of 4 and of decoder_heads, got {self.decoder_width} and "
                f"{self.decoder_heads}"
            )


class TokenDecoder(nn.Module):
    """Blocks over the tokens that the student saw or, with a mask token, over all places."""

    positions: Tensor

    def __init__(
        self, width_in: int, width_out: int, grid: int, prefix: int, *, depth: int, width: int, heads: int, fills: bool
    ) -> None:
        """Build and draw it.

        Args:
            width_in, width_out: D and T.
            grid: patches a side.
            prefix: P.
            depth: blocks.
            width: E, a multiple of 4 and of `heads`.
            heads: of each block.
            fills: hidden patches take part, as a learned mask token.
        """
        super().__init__()
        self.embed = nn.Linear(width_in, width)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)))
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, width_out)
        self.prefix = prefix
        positions = build_sincos2d_pos_embed([grid, grid], width)
        self.register_buffer("positions", torch.cat([positions.new_zeros(prefix, width), positions]), persistent=False)
        self.apply(xavier)
        self.mask_token = nn.Parameter(torch.empty(width)) if fills else None
        if self.mask_token is not None:
            nn.init.normal_(self.mask_token, std=SPREAD)

    def forward(
        self, tokens: Float[Tensor, "B M D"], visible: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B M2 T"]:
        """Predictions at the student's places, or at all with a mask token.

        Args:
            tokens: M = P + n, prefix first, patches in the order of the image.
            visible: which patches they are; None: all.
        """
        x = self.embed(tokens)
        if visible is None:
            return self.predict(self.norm(self.blocks(x + self.positions)))
        places = sent(with_prefix(visible, self.prefix), tokens.device)
        if self.mask_token is None:
            positions = self.positions[places]
        else:
            full = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1)
            x, positions = full.scatter(1, places[:, :, None].expand(-1, -1, x.shape[2]), x), self.positions
        return self.predict(self.norm(self.blocks(x + positions)))
