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

from hkd.errors import Refused, UserError
from hkd.models.families.base import Family, recorded_inputs, tokens_to_map
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard


def visible_tokens(visible: Bool[Tensor, "B 1 g g"], grid: tuple[int, int]) -> Bool[Tensor, "B N"]:
    """A mask of cells as one of tokens, row by row: every cell stands for a rectangle of whole tokens.

    Raises:
        UserError: cells that are no whole number of tokens, an image without a visible patch, or images with different
            numbers of them.
    """
    cells, (height, width) = visible.shape[-1], grid
    if height % cells or width % cells:
        raise UserError(
            f"The mask has {cells}x{cells} cells, which does not divide the {height}x{width} tokens of the model; give "
            f"a mask whose side divides both."
        )
    shown = visible.repeat_interleave(height // cells, 2).repeat_interleave(width // cells, 3).flatten(1)
    fewest, most = torch.stack(shown.sum(1).aminmax()).tolist()
    if fewest == 0:
        raise UserError("The mask hides every patch of an image; leave at least one visible in each.")
    if fewest != most:
        raise UserError(
            f"The mask shows {fewest} patches of one image and {most} of another; show equally many of all, so that "
            f"they make one batch."
        )
    return shown


class MaskedTokens(Family):
    """What the families of masked image modelling share: `forward` with a mask. Mixed in before another family."""

    def forward(
        self,
        net: Any,
        card: ModelCard,
        x: Float[Tensor, "B 3 Hi Wi"],
        want: Want,
        *,
        visible: Bool[Tensor, "B 1 g g"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
    ) -> Taps:
        """Run the model once on normalised images, on all of their patches or on some.

        Args:
            net: the timm model.
            card: its card.
            x: normalised images.
            want: taps beside logits, pooled and final feature.
            visible: which patches are seen; None: all, and the taps are those of `Family.forward`, bit for bit. Alone:
                only they and the prefix tokens go through the blocks (MAE); maps are zero at hidden positions, and the
                pooled feature is of the tokens that went through.
            mask_token: with `visible`: all tokens go through, and hidden ones are this vector before position
                embeddings are added (BEiT).

        Raises:
            UserError: a mask token without a mask, or what `visible_tokens` raises for.
            Refused: attention taps of visible tokens alone, which are not [B, P + N, D].
        """
        if visible is None:
            if mask_token is not None:
                raise UserError("A mask_token was given without `visible`, so nothing is hidden: give both or neither.")
            return super().forward(net, card, x, want)
        if want.attention and mask_token is None:
            raise Refused("Attention taps need all tokens; leave `visible` out or give a mask_token with it.")
        grid, prefix = net.patch_embed.dynamic_feat_size(x.shape[-2:]), net.num_prefix_tokens
        shown = visible_tokens(visible, grid)
        embedded = net.patch_embed(x)
        kept: Tensor | None = None
        if mask_token is None:
            tokens = self.position(net, embedded)
            patches = shown.nonzero()[:, 1].view(len(x), -1) + prefix
            kept = torch.cat([torch.arange(prefix, device=x.device).expand(len(x), -1), patches], dim=1)
            tokens = tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
        else:
            seen = shown.view(*embedded.shape[:-1], 1)  # the grid is not flattened in models of dynamic size
            tokens = self.position(net, torch.where(seen, embedded, mask_token.to(embedded.dtype)))
        wanted = {stage: card.stages[stage - 1] for stage in want.stages}
        found: dict[int, Tensor] = {}
        with recorded_inputs(self._wanted_attention(net, want)) as attention:
            for index, block in enumerate(self.block_functions(net, kept)):
                tokens = block(tokens)
                if index in wanted.values():
                    found[index] = tokens
        features = net.norm(tokens)
        pooled, logits = self.head(net, features)

        def as_map(these: Tensor) -> Tensor:
            if kept is not None:
                places = (kept[:, prefix:, None] - prefix).expand(-1, -1, these.shape[2])
                full = these.new_zeros(len(these), grid[0] * grid[1], these.shape[2])
                return tokens_to_map(full.scatter(1, places, these[:, prefix:]), grid)
            return tokens_to_map(these[:, prefix:], grid)

        return Taps(
            logits=logits,
            pooled=pooled,
            final=as_map(features),
            stages={stage: as_map(found[index]) for stage, index in wanted.items()},
            prefix={stage: found[index][:, :prefix] for stage, index in wanted.items() if prefix},
            attention=attention,
        )

    @abstractmethod
    def position(self, net: Any, embedded: Tensor) -> Float[Tensor, "B M D"]:
        """Embedded patches, as `net.patch_embed` gives them, as the tokens that enter the first block, prefix first."""

    @abstractmethod
    def block_functions(self, net: Any, kept: Int[Tensor, "B M"] | None) -> Sequence[Callable[[Tensor], Tensor]]:
        """The blocks in order; `kept` holds the places of their tokens among all (prefix first), None: all in order."""
