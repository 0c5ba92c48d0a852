"""ConvNeXt: Liu et al. 2022, arXiv:2201.03545."""

from typing import Any

from torch import nn

from hkd.models.families.base import Family
from hkd.spec import ModelCard


class ConvNeXtFamily(Family):
    """A CNN to the taps; `final` is normed where the card sets `head_norm_first`, else timm norms after pooling."""

    name = "convnext"
    timm_files = ("convnext",)

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """Before the stage's own down-sampling."""
        return {stage: net.stages[index] for stage, index in enumerate(card.stages, start=1)}
