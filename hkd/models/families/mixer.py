"""MLP-Mixer: Tolstikhin et al. 2021, arXiv:2105.01601."""

from typing import Any

from torch import Tensor

from hkd.models.families.base import Family
from hkd.models.taps import tokens_to_map


class MixerFamily(Family):
    """Token maps of one size; `final` is after the final norm, `stages` before it."""

    name = "mixer"
    timm_files = ("mlp_mixer",)

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        return tokens_to_map(features, net.stem.grid_size)
