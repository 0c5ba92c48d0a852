"""BEiT-like transformers as the asymmetric students of Hybrid Distill begin (arXiv:2306.15876, Figure 7), after FD (Wei
et al. 2022, arXiv:2205.14141).

An encoder unlike its teacher's: queries and values have biases of their own and keys none, and relative position
biases, one table for all blocks, stand in the place of absolute positions. The network is timm's Beit and its taps are
those of `beit`. Fresh ones are drawn as in `hybrid_vit`, with biases of zero.
"""

from typing import Any

from hkd.models.families.beit import BeitFamily
from hkd.models.families.hybrid_vit import initialise


class HybridBeitFamily(BeitFamily):
    """`BeitFamily` with other initial weights."""

    name = "hybrid_beit"

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        net = super().construct(arch, kwargs)
        initialise(net)
        return net
