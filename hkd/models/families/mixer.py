"""MLP-Mixer: Tolstikhin et al. 2021, arXiv:2105.01601."""

from typing import Any

from torch import Tensor, nn

from hkd.models.families.base import Family, first_blocks
from hkd.models.taps import tokens_to_map
from hkd.spec import ModelCard


class MixerFamily(Family):
    """Token maps of one size; `final` is after the final norm, `stages` before it."""

    name = "mixer"
    block_layout = "tokens"
    timm_files = ("mlp_mixer",)

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        return tokens_to_map(features, net.stem.grid_size)

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """Before the block behind the previous tap."""
        return {stage: net.blocks[index] for stage, index in first_blocks(card).items()}
