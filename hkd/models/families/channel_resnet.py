"""ResNets that are told by a fourth input channel which pixels are hidden: dense convolution instead of sparse.

An ordinary network cannot tell a blackened pixel from a black one. With a channel that is 1 where the image is hidden
and 0 elsewhere it can, though hidden positions are computed all the same. Without a mask the channel is zero, so the
network computes what a ResNet with the first three channels of the same weights does.
Shapes: B batch, H W an image in px, g mask cells a side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models.families.base import Encoded
from hkd.models.families.resnet import ResNetFamily
from hkd.models.sparse.maps import Active

PLAIN = (
    "A network with a mask channel computes hidden positions too and cannot leave them out: set the method's option "
    "conv to dense."
)


class ChannelConv2d(nn.Conv2d):
    """A convolution of four channels, of which the last is zero where images of three are given."""

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C h w"]:
        """The convolution of three or four channels."""
        return super().forward(x if x.shape[1] > 3 else torch.cat([x, torch.zeros_like(x[:, :1])], dim=1))


class ChannelResNetFamily(ResNetFamily):
    """Keys in `ModelCard.kwargs` as `ResNetFamily`'s, without its stem of kernel 3, which has three input channels.

    A state dict is timm's for `in_chans=4`.
    """

    name = "channel_resnet"
    accepts = frozenset({"visible", "backend"})
    timm_files = ()  # of plain ResNets, which this family would otherwise be asked to run

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        """As a ResNet's, with four input channels. Raises UserError for a stem of kernel 3."""
        if kwargs.get("stem") is not None:
            raise UserError("A ResNet with a mask channel keeps timm's stem: leave out the key 'stem'.")
        net = super().construct(arch, kwargs | {"in_chans": 4})
        stem = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        stem.__class__ = ChannelConv2d  # of the same parameters, under the same names
        return net

    def encode(
        self,
        net: Any,
        x: Float[Tensor, "B 3 H W"],
        indices: Sequence[int],
        *,
        visible: Bool[Tensor, "B 1 g g"] | None = None,
        backend: str = "dense",
    ) -> Encoded:
        """Images, or blackened ones beside the channel that says where.

        Args:
            net, x, indices: as `Family.encode`.
            visible: True where a cell of H / g px is visible; hidden pixels influence nothing.
            backend: `dense`.

        Raises:
            UserError: another backend, or a mask that does not fit the images.
        """
        if visible is None:
            return super().encode(net, x, indices)
        if backend != "dense":
            raise UserError(PLAIN)
        active = Active(visible, (x.shape[2], x.shape[3]), x.device)
        hidden = ~active.levels[active.image].mask
        return super().encode(net, torch.cat([active.enter(x), hidden.to(x.dtype)], dim=1), indices)
