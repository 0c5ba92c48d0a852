"""What transformers of one grid share: blocks of equal width over the prefix and patch tokens of an image."""

from typing import Any

from torch import Tensor, nn

from hkd.errors import Refused
from hkd.models.families.base import Family, Tail, first_blocks
from hkd.models.taps import tokens_to_map
from hkd.spec import ModelCard

TAIL = 2  # blocks, unless a number is given


class IsotropicFamily(Family):
    """The tail is the last two blocks (unless a number is given) and the final norm, on patch tokens only."""

    accepts = frozenset({"attention", "outputs", "tail"})
    block_layout = "tokens"

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        return tokens_to_map(features[:, net.num_prefix_tokens :], net.patch_embed.dynamic_feat_size(x.shape[-2:]))

    def attention_modules(self, net: Any) -> list[nn.Module]:
        return [block.attn for block in net.blocks]

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """Before the block behind the previous tap."""
        return {stage: net.blocks[index] for stage, index in first_blocks(card).items()}

    def tail(self, net: Any, blocks: int | None = None) -> Tail:
        count, grid = TAIL if blocks is None else blocks, net.patch_embed.grid_size
        if not 1 <= count <= len(net.blocks):
            raise Refused(
                f"A tail of {count} blocks was asked of a model with {len(net.blocks)}; take 1 to all of them."
            )

        def run(tokens: Tensor) -> Tensor:
            for block in self.last_blocks(net, count, tokens):
                tokens = block(tokens)
            return tokens_to_map(net.norm(tokens), grid)

        return Tail(net.embed_dim, grid, net.embed_dim, grid, run)

    def last_blocks(self, net: Any, count: int, tokens: Tensor) -> list[Any]:
        """The last blocks as functions of patch tokens alone."""
        return list(net.blocks)[-count:]
