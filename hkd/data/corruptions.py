"""Corruptions of test images at five strengths, as ImageNet-C and CIFAR-10-C define them.

Source: Hendrycks and Dietterich 2019, arXiv:1903.12261, and the code that made both sets: Gaussian noise, Gaussian blur
and contrast, of which the definitions are for images of any size. Up to `SMALL` px a side the strengths are those of
CIFAR-10-C, else of ImageNet-C. Deviations: the noise is drawn by a generator of our own, from the image's position and
the strength, so that every model sees the same; bytes are rounded, not cut off. JPEG is not applied afterwards.
Shapes: B images, S their side in px.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

SMALL = 64  # px
NOISE = ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))  # std of pixels in [0, 1]: small, large images
BLUR = ((0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0))  # std of the Gaussian in px
CONTRAST = ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))  # what is left of it
TRUNCATE = 4.0  # standard deviations at which the Gaussian ends, as scikit-image's does
STREAM = 7_000_003  # of the seeds of noise, apart from those of runs


def corrupted(
    x: Float[Tensor, "B 3 S S"], name: str, strength: int, index: Int[Tensor, " B"]
) -> Float[Tensor, "B 3 S S"]:
    """Images in [0, 1], corrupted, cut to [0, 1] and rounded to bytes.

    Args:
        x: images in [0, 1].
        name: "noise", "blur" or "contrast".
        strength: from 1 to 5.
        index: position of each image in its split, which its noise is drawn from.
    """
    large = int(max(x.shape[2:]) > SMALL)
    if name == "noise":
        changed = x + NOISE[large][strength - 1] * noise(index, strength, x.shape[2]).to(x.device)
    elif name == "blur":
        changed = blur(x, BLUR[large][strength - 1])
    elif name == "contrast":
        changed = contrast(x, CONTRAST[large][strength - 1])
    else:
        raise ValueError(f"unknown corruption '{name}'")
    return changed.clamp(0, 1).mul(255).round().div(255)


def noise(index: Int[Tensor, " B"], strength: int, side: int) -> Float[Tensor, "B 3 S S"]:
    """Standard normal numbers, drawn for each position and strength by themselves, on the CPU."""
    drawn = [
        torch.randn(3, side, side, generator=torch.Generator().manual_seed(STREAM * strength + position))
        for position in index.tolist()
    ]
    return torch.stack(drawn)


def blur(x: Float[Tensor, "B 3 S S"], sigma: float) -> Float[Tensor, "B 3 S S"]:
    r"""Convolution of each channel with a Gaussian along both sides; beyond its edge the image goes on as it ends.

    .. math:: k_i = e^{-i^2 / 2 \sigma^2} / \sum_j e^{-j^2 / 2 \sigma^2}, \quad |i| \le \lfloor 4 \sigma + 1/2 \rfloor
    """
    radius = int(TRUNCATE * sigma + 0.5)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(-radius, radius + 1)]
    kernel = torch.tensor(weights, dtype=x.dtype, device=x.device)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None], groups=3)
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel[..., None], groups=3)


def contrast(x: Float[Tensor, "B 3 S S"], left: float) -> Float[Tensor, "B 3 S S"]:
    r"""Every channel of an image drawn towards its own mean: :math:`c (x - \bar x) + \bar x`."""
    mean = x.mean(dim=(2, 3), keepdim=True)
    return (x - mean) * left + mean
