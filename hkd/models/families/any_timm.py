"""timm models that no other family is made for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hkd.models.families.base import Encoded, Family
from hkd.models.hooks import evaluation_mode
from hkd.models.taps import TapInfo, to_tokens, tokens_to_map
from hkd.spec import ModelCard

Layout = Literal["NCHW", "NHWC", "tokens", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Where the last map [B, D, H, W] is in what `forward_features` gives, and how its head is called.

    layout: of a map; `tokens` [B, P + H * W, D] behind `prefix` P others; `unknown`: nowhere, and the last of
        `forward_intermediates`, at index `last`, stands for it, which is then before the model's final norm.
    grid: H and W of tokens. plain: logits are a linear map of the pooled feature, so that both come of one pooling;
        else (a 1x1 convolution, several classifiers) timm's `forward_head` is called for each.
    """

    layout: Layout = "NCHW"
    prefix: int = 0
    grid: tuple[int, int] = (0, 0)
    last: int = 0
    plain: bool = True


def reading_of(net: Any, features: Any, maps: Sequence[Tensor]) -> Reading:
    """How the features of a timm model are read.

    Args:
        net: the model.
        features: as `forward_features` gives them.
        maps: its intermediate maps [B, D, H, W], of the same images.
    """
    classifier, plain = net.get_classifier(), False
    if isinstance(classifier, nn.Linear | nn.Identity):
        plain = classifier(net.forward_head(features, pre_logits=True)).allclose(net.forward_head(features))
    told = partial(Reading, last=len(maps) - 1, plain=plain)
    if isinstance(features, Tensor) and features.ndim == 4:
        one, two, three = features.shape[1:]
        fmt = getattr(net, "output_fmt", None)
        if fmt == "NHWC" or (fmt is None and one == two != three):
            return told(layout="NHWC")
        clear = two == three and (fmt == "NCHW" or one != two or one == 1)
        return told(layout="NCHW" if clear else "unknown")
    raw, (height, width) = to_tokens(maps[-1]), maps[-1].shape[2:]
    if isinstance(features, Tensor) and features.ndim == 3 and features.shape[2] == raw.shape[2]:
        prefix = features.shape[1] - raw.shape[1]
        # Equal in number is not enough: some models end with their tokens in another order, or changed by others.
        norm = getattr(net, "norm", None)
        candidates = [raw, *([norm(raw)] if isinstance(norm, nn.Module) else [])]
        patches = features[:, max(prefix, 0) :]
        if any(x.shape == patches.shape and patches.allclose(x, atol=1e-4, rtol=1e-3) for x in candidates):
            return told(layout="tokens", prefix=prefix, grid=(height, width))
    return told(layout="unknown")


class TimmFamily(Family):
    """Any timm classifier that no other family runs: maps of `forward_intermediates`, and the model's own head."""

    name: ClassVar[str] = "timm"

    def __init__(self, reading: Reading | None = None) -> None:
        self.reading = reading or Reading()

    def head(self, net: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        """As `Family.head`; see `Reading.plain`."""
        if self.reading.plain:
            return super().head(net, features)
        return net.forward_head(features, pre_logits=True).flatten(1), net.forward_head(features)

    def encode(self, net: Any, x: Tensor, indices: Sequence[int]) -> Encoded:
        """As `Family.encode`, without prefix tokens; where `Reading` has no last map, that of the last index."""
        layout = self.reading.layout
        if not indices and layout in ("NCHW", "NHWC"):
            return super().encode(net, x, indices)
        # Always to the last, as was looked at: Hiera's `forward_features` alone has other tokens, and HieraDet gives
        # its features in another order without.
        wanted = sorted({*indices, self.reading.last})
        features, inner = net.forward_intermediates(x, indices=wanted, norm=False, output_fmt="NCHW")
        maps = dict(zip(wanted, inner, strict=True))
        final = maps[wanted[-1]] if layout == "unknown" else self.final_map(net, features, x)
        return Encoded(features, final, {index: maps[index] for index in indices})

    def final_map(self, net: Any, features: Tensor, x: Tensor) -> Tensor:
        """`forward_features` as [B, D, H, W]."""
        layout, prefix = self.reading.layout, self.reading.prefix
        if layout == "tokens":
            return tokens_to_map(features[:, prefix:], self.reading.grid)
        return features.permute(0, 3, 1, 2) if layout == "NHWC" else features

    def adopt(self, card: ModelCard, net: Any) -> tuple[Family, TapInfo]:
        """By a look at where its maps are, which its class does not say.

        Raises:
            UserError: it does not take images of its size, or is not read rightly.
        """
        from hkd.models.adopted import answer, as_timm, images_to_look_with

        stages = dict(enumerate(card.stages, start=1))
        with torch.no_grad(), evaluation_mode(net):
            images = images_to_look_with(card.image_size, next(net.parameters()))
            family, _, info = as_timm(net, card.name, images, stages, answer(net, card.name, images))
        return family, replace(info, classes=net.num_classes)
