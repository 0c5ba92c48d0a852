"""EVA: Fang et al. 2023, arXiv:2211.07636 (ScaleKD calls EVA-L/14 "BEiT-L/14").

timm builds EVA-L as a VisionTransformer and other EVA models by its Eva class; both are served. `norm` is an Identity:
timm norms after pooling, so `final` holds un-normed tokens, as ScaleKD's `F_T` does.
"""

from typing import Any

from hkd.errors import Refused
from hkd.models.families.base import Tail
from hkd.models.families.isotropic import IsotropicFamily


class EvaFamily(IsotropicFamily):
    """Their tail ends in no norm."""

    name = "eva"
    timm_files = ("eva",)

    def tail(self, net: Any, blocks: int | None = None) -> Tail:
        if getattr(net, "rope", None) is not None:
            raise Refused("An EVA-02 model has no tail (its rotary positions assume the class token); take an EVA one.")
        return super().tail(net, blocks)
