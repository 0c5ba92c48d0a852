"""CNN families that take a mask: the dense family's network, converted to sparse convolution.

Shapes: B batch, C classes, D width, H W grid, g mask cells a side.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hkd.errors import UserError
from hkd.models.families.base import Family
from hkd.models.families.convnext import ConvNeXtFamily
from hkd.models.families.mobilenet_v2 import MobileNetV2Family
from hkd.models.families.resnet import ResNetFamily
from hkd.models.sparse.maps import Active, active_in, all_active, current
from hkd.models.sparse.modules import sparsify
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard

SPARSE = 0.5  # share of hidden cells from which spconv was the fastest


class SparseFamily(Family):
    """Mixin before a dense family of CNNs; keys of `ModelCard.kwargs` and of the state dict are the dense family's.

    has_kernels: whether spconv has kernels for the convolutions that take its time.
    """

    accepts = frozenset({"visible", "backend", "sparse"})
    has_kernels: ClassVar[bool] = False

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        """As the dense family's, converted. Raises UserError for layers without a masked form."""
        return sparsify(super().construct(arch, kwargs))

    def forward(
        self,
        net: Any,
        card: ModelCard,
        x: Float[Tensor, "B 3 Hi Wi"],
        want: Want,
        *,
        visible: Tensor | None = None,
        backend: Literal["auto", "masked", "rows", "spconv", "dense"] = "auto",
        **options: Any,
    ) -> Taps:
        """Taps of masked images; without a mask exactly the dense family's.

        Args:
            net: a network this family built.
            card: its card.
            x: normalised images.
            want: stages beside the final feature.
            visible: Boolean [B, 1, g, g], True where a cell of Hi / g px is visible; hidden pixels influence nothing,
                and maps are zero there.
            backend: how (`hkd.models.sparse.maps.active_in`); `auto` takes the one that was measured to be the fastest
                (`fastest`); `dense` only hides the pixels and runs an ordinary network, which fills hidden positions
                and pools over all of them.
            options: of the dense family.

        Returns:
            Taps whose `pooled` is the mean over active positions of `final`.

        Raises:
            UserError: a mask that does not fit the images or the network's maps; gradient checkpointing is on.
        """
        if visible is None:
            with all_active():
                return super().forward(net, card, x, want, **options)
        if any(getattr(module, "grad_checkpointing", False) for module in net.modules()):
            raise UserError("Gradient checkpointing would run masked layers again without their mask; turn it off.")
        size = (x.shape[2], x.shape[3])
        if len(visible) != len(x):
            raise UserError(f"{len(visible)} masks were given for {len(x)} images; each image needs its own.")
        if backend == "dense":
            with all_active():
                return super().forward(net, card, Active(visible, size, x.device).enter(x), want, **options)
        chosen = self.fastest(visible, x.device) if backend == "auto" else backend
        with active_in(visible, size, chosen, x.device) as active:
            return super().forward(net, card, active.enter(x), want, **options)

    def fastest(self, visible: Bool[Tensor, "B 1 g g"], device: torch.device) -> str:
        """The backend for these masks of images on a device.

        spconv was the fastest where at least half of a ResNet's cells are hidden, rows with dense kernels elsewhere and
        for depthwise convolutions, which spconv has no kernel for (benchmarks/test_sparse_speed.py: one CPU thread,
        whole training steps). On a GPU nothing was measured: `masked`.
        """
        if device.type != "cpu":
            return "masked"
        hidden = 1 - float(visible[0].float().mean())
        return "spconv" if self.has_kernels and hidden >= SPARSE and find_spec("spconv") else "rows"

    def intermediates(
        self, net: Any, x: Tensor, indices: Sequence[int]
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        features, maps, prefix = super().intermediates(net, x, indices)
        active = current()
        return features, maps if active is None else {i: active.leave(map_) for i, map_ in maps.items()}, prefix

    def head(self, net: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        active = current()
        # The model's own pooling of a map of one position is that position.
        return super().head(net, features if active is None else active.mean(features))

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        active = current()
        return super().final_map(net, features if active is None else active.leave(features), x)


class SparseResNetFamily(SparseFamily, ResNetFamily):
    """ResNet, ResNeXt and the D variants."""

    name = "sparse_resnet"
    has_kernels = True


class SparseConvNeXtFamily(SparseFamily, ConvNeXtFamily):
    """ConvNeXt."""

    name = "sparse_convnext"


class SparseMobileNetV2Family(SparseFamily, MobileNetV2Family):
    """MobileNet-V2."""

    name = "sparse_mobilenet_v2"
