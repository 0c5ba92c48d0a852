"""BEiT-like transformers whose tokens can be had, also of a pass over visible patches: the asymmetric students of
Hybrid Distill (arXiv:2306.15876, Figure 7), after FD (Wei et al. 2022, arXiv:2205.14141).

An encoder unlike its teacher's: queries and values have biases of their own and keys none, and relative position
biases, one table for all blocks, stand in the place of absolute positions. The network is timm's Beit and its taps are
those of `beit`; what is added comes in a `TokenTaps`. Fresh ones are drawn as in `hybrid_vit`, with biases of zero.
Shapes: B batch, D width, M = 1 + visible patches.
"""

from collections.abc import Hashable
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.errors import Refused
from hkd.models.families.beit import BeitFamily
from hkd.models.families.hybrid_vit import TokenTaps, initialise, recorded_outputs
from hkd.models.taps import Want
from hkd.spec import ModelCard


class HybridBeitFamily(BeitFamily):
    """`BeitFamily`, whose `forward` also takes `outputs` and gives a `TokenTaps` without queries, keys and values."""

    name = "hybrid_beit"

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        net = super().construct(arch, kwargs)
        initialise(net)
        return net

    def forward(
        self,
        net: Any,
        card: ModelCard,
        x: Float[Tensor, "B 3 Hi Wi"],
        want: Want,
        *,
        visible: Bool[Tensor, "B 1 g g"] | None = None,
        mask_token: Float[Tensor, " D"] | None = None,
        outputs: tuple[int, ...] = (),
    ) -> TokenTaps:
        """Run the model once on normalised images, on all of their patches or on some.

        Args:
            net, card, x, want, visible, mask_token: as `MaskedTokens.forward`.
            outputs: 0-based blocks whose outputs are wanted.

        Raises:
            Refused: a block that the model does not have; also what `MaskedTokens.forward` raises.
        """
        if unknown := [index for index in outputs if not 0 <= index < len(net.blocks)]:
            raise Refused(f"Block {unknown[0]} was asked of {card.name}, which has blocks 0 to {len(net.blocks) - 1}.")
        modules: dict[Hashable, nn.Module] = {"raw": net.blocks[-1], "tokens": net.norm}
        modules |= {("output", index): net.blocks[index] for index in outputs}
        with recorded_outputs(modules) as found:
            taps = super().forward(net, card, x, want, visible=visible, mask_token=mask_token)
        return TokenTaps(
            **vars(taps),
            tokens=found["tokens"],
            raw=found["raw"],
            qkv={},
            outputs={index: found["output", index] for index in outputs},
        )
