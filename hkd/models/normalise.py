"""RGB in [0, 1] as a model sees it: resized to its side, and (x - mean) / std."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.spec import ModelCard


class Normalise(nn.Module):
    """(x - mean) / std of each channel as one fused multiply-add, shift + scale * x. Nothing of it is in a state dict.

    Args:
        mean, std: of RGB in [0, 1].
        like: has the type and the device of the images.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], like: Tensor | None = None) -> None:
        super().__init__()
        dtype, device = (None, None) if like is None else (like.dtype, like.device)
        means, stds = (torch.tensor(tuple(value), dtype=dtype, device=device).view(1, 3, 1, 1) for value in (mean, std))
        self.register_buffer("scale", 1 / stds, persistent=False)
        self.register_buffer("shift", -means / stds, persistent=False)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return torch.addcmul(self.shift, x, self.scale)


class Prepare(nn.Module):
    """RGB images in [0, 1] of any size as the model of a card sees them: resized, normalised, in its memory format."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.normalise = Normalise(card.mean, card.std)
        self.side = card.image_size
        self.memory_format = memory_format(card)

    def forward(self, x: Float[Tensor, "B 3 Hi Wi"]) -> Float[Tensor, "B 3 H W"]:
        return self.normalise(resized(x, self.side)).contiguous(memory_format=self.memory_format)


def memory_format(card: ModelCard) -> torch.memory_format:
    """Of a model's weights and of its images."""
    return torch.channels_last if card.channels_last else torch.contiguous_format


def resized(x: Float[Tensor, "B 3 Hi Wi"], side: int) -> Float[Tensor, "B 3 H W"]:
    """Images of `side` px squared: bilinear where they differ, else as they are."""
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
