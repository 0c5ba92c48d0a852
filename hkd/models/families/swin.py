"""Swin Transformer: Liu et al. 2021, arXiv:2103.14030. timm's layers take and give NHWC."""

from typing import Any

from torch import Tensor, nn

from hkd.errors import Refused
from hkd.models.families.base import Family, Tail
from hkd.spec import ModelCard


class SwinFamily(Family):
    """The tail is patch merging, the last stage and the final norm (down-sampling opens a timm stage).

    Blocks are numbered through all stages. The attention input of a block is cut into its (shifted) windows:
    [B * windows, window tokens, D], the windows of one image together.
    """

    name = "swin"
    block_layout = "NHWC"
    accepts = frozenset({"attention", "tail"})
    timm_files = ("swin_transformer",)

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        return features.permute(0, 3, 1, 2)

    def attention_modules(self, net: Any) -> list[nn.Module]:
        return [block.attn for layer in net.layers for block in layer.blocks]

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """Behind the patch merging."""
        return {stage: net.layers[index].blocks[0] for stage, index in enumerate(card.stages, start=1)}

    def tail(self, net: Any, blocks: int | None = None) -> Tail:
        if blocks is not None:
            raise Refused(
                f"The tail of a Swin model is its whole last stage; a number of blocks ({blocks}) has no use."
            )
        last = net.layers[-1]

        def run(tokens: Tensor) -> Tensor:
            return net.norm(last(tokens.unflatten(1, last.input_resolution))).permute(0, 3, 1, 2)

        return Tail(last.dim, last.input_resolution, net.num_features, last.output_resolution, run)
