"""Transformers that take a mask of their patches: hidden patches are left out, or replaced by a mask token.

Shapes: B batch, C classes, D width, H W grid, N = H * W patch tokens, P prefix tokens, n visible patches, M = P + n,
g cells of the mask a side.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hkd.devices import sent
from hkd.errors import UserError
from hkd.models.families.base import Encoded, Family
from hkd.models.masks import gather_tokens, visible_tokens, with_prefix
from hkd.models.taps import tokens_to_map


class MaskedTokens(Family):
    """What the families of masked image modelling share: `encode` with a mask. Mixed in before another family."""

    accepts = frozenset({"visible", "mask_token"})

    def encode(
        self,
        net: Any,
        x: Tensor,
        indices: Sequence[int],
        *,
        visible: Bool[Tensor, "B 1 g g"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
    ) -> Encoded:
        """The images, or some patches of them, through all blocks.

        Args:
            net, x, indices: as `Family.encode`.
            visible: which patches are seen; None: all, and the taps are those of `Family`, bit for bit. Alone: only
                they and the prefix tokens go through the blocks (MAE); maps are zero at hidden positions, and the
                pooled feature is of the tokens that went through.
            mask_token: with `visible`: all tokens go through, and hidden ones are this vector before position
                embeddings are added (BEiT).

        Raises:
            UserError: a mask token without a mask, or what `visible_tokens` raises for.
        """
        if visible is None:
            if mask_token is not None:
                raise UserError("A mask_token was given without `visible`, so nothing is hidden: give both or neither.")
            return super().encode(net, x, indices)
        grid, prefix = net.patch_embed.dynamic_feat_size(x.shape[-2:]), net.num_prefix_tokens
        shown = visible_tokens(visible, grid)
        embedded = net.patch_embed(x)
        kept: Tensor | None = None
        if mask_token is None:
            kept = sent(with_prefix(shown, prefix), x.device)
            tokens = gather_tokens(self.position(net, embedded), kept)
        else:
            # The grid is not flattened in models of dynamic size.
            seen = sent(shown, x.device).view(*embedded.shape[:-1], 1)
            tokens = self.position(net, torch.where(seen, embedded, mask_token.to(embedded.dtype)))
        wanted: dict[int, Tensor] = {}
        for index, block in enumerate(self.block_functions(net, kept)):
            tokens = block(tokens)
            if index in indices:
                wanted[index] = tokens
        features = net.norm(tokens)

        def as_map(these: Tensor) -> Tensor:
            patches = these[:, prefix:]
            if kept is not None:
                places = (kept[:, prefix:, None] - prefix).expand(-1, -1, these.shape[2])
                patches = these.new_zeros(len(these), grid[0] * grid[1], these.shape[2]).scatter(1, places, patches)
            return tokens_to_map(patches, grid)

        return Encoded(
            features,
            as_map(features),
            {index: as_map(inner) for index, inner in wanted.items()},
            {index: inner[:, :prefix] for index, inner in wanted.items() if prefix},
        )

    @abstractmethod
    def position(self, net: Any, embedded: Tensor) -> Float[Tensor, "B M D"]:
        """Embedded patches, as `net.patch_embed` gives them, as the tokens that enter the first block, prefix first."""

    @abstractmethod
    def block_functions(self, net: Any, kept: Int[Tensor, "B M"] | None) -> Sequence[Callable[[Tensor], Tensor]]:
        """The blocks in order; `kept` holds the places of their tokens among all (prefix first), None: all in order."""
