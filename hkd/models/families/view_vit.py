"""Plain vision transformers that run on several views of a batch, and as a moving average of their own weights.

What contrastive pre-training needs of its student (SimCLR, arXiv:2002.05709; MoCo v3, arXiv:2104.02057). Any ViT of
timm serves; the same weights run in the family `vit`. Shapes: B batch, V views of images, D width, P weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from hkd.models.families.vit import ViTFamily
from hkd.models.normalise import Prepare
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard


@dataclass(kw_only=True)
class ViewTaps(Taps):
    """Taps, and `keys`, the pooled features [V, D] of the moving average, without gradients."""

    keys: Float[Tensor, "V D"]


class MovingAverage(nn.Module):
    """Weights that follow a module's: w <- m w + (1 - m) w_module; the first call copies them.

    The module comes with each call and is not kept. The average is one vector, without gradients and no parameter; it
    is part of the state, as what PyTorch calls extra state, because its length is known from the first call only.
    Buffers are the module's own. Under several processes each keeps the same average of the same weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flat: Tensor = torch.empty(0)

    def get_extra_state(self) -> Tensor:
        return self.flat

    def set_extra_state(self, state: Tensor) -> None:
        self.flat = state.clone()

    @torch.no_grad()
    def follow(self, module: nn.Module, momentum: float) -> None:
        """Take one step towards the module's weights.

        Args:
            module: the same in every call.
            momentum: m, in [0, 1].
        """
        own = parameters_to_vector(module.parameters())
        if not len(self.flat):
            self.flat = own
        else:
            self.flat = self.flat.to(own).lerp_(own, 1 - momentum)

    @torch.no_grad()
    def forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """The module's output with the average in place of its weights; its own ones before the first step."""
        if not len(self.flat):
            return module(x)
        named = dict(module.named_parameters())
        parts = self.flat.to(x.device).split([parameter.numel() for parameter in named.values()])
        weights = {name: part.view_as(named[name]) for name, part in zip(named, parts, strict=True)}
        return functional_call(module, weights, x)


class Pooled(nn.Module):
    """A timm model as a function from images to pooled features."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Float[Tensor, "V 3 H W"]) -> Float[Tensor, "V D"]:
        return self.net.forward_head(self.net.forward_features(x), pre_logits=True)


class ViewViTFamily(ViTFamily):
    """`ViTFamily`, whose `forward` also takes `views`, `average` and `momentum`."""

    name = "view_vit"
    accepts = ViTFamily.accepts | {"views"}

    def forward(
        self,
        net: Any,
        card: ModelCard,
        x: Float[Tensor, "B 3 H W"],
        want: Want,
        *,
        views: Float[Tensor, "V 3 Hi Wi"] | None = None,
        average: MovingAverage | None = None,
        momentum: float | None = None,
        **options: Any,
    ) -> Taps:
        """Run the model once on normalised images, or on other images in their place.

        Args:
            net, card, x, want, options: as `Family.forward`; without the rest the taps are those, bit for bit.
            views: RGB in [0, 1], resized and normalised here as the tap model does; all taps are of these then, but
                logits of the first B alone, which are the images' first views, so that they still fit the batch.
            average: a moving average of this model's weights, whose pooled features are wanted too.
            momentum: how far the average keeps to itself in the step it takes first; None: it takes none.

        Returns:
            `ViewTaps` with an average.
        """
        count = len(x)
        if views is not None:
            x = Prepare(card).to(x.device)(views)
        taps = super().forward(net, card, x, want, **options)
        if average is not None:
            encoder = Pooled(net)
            if momentum is not None:
                average.follow(encoder, momentum)
            taps = ViewTaps(**vars(taps), keys=average(encoder, x))
        taps.logits = taps.logits[:count]
        return taps
