"""What contrastive pre-training does beside its loss: two views of every image, projection heads, candidates of all
processes.

Views are drawn by the method, on whole batches on the batch's device, because a batch holds one view of each image.
Shapes: B batch, V = 2 B views, D width.
"""

import math
from itertools import pairwise
from typing import Annotated

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.methods.parts.gathering import SHORTEST, gathered
from hkd.methods.parts.logits import exact
from hkd.options import Rising, Share, ShareAbove0, Switch, options

ASPECT = math.log(4 / 3)  # largest logarithm of a crop's width over its height
ERASED = (0.02, 0.25)  # share of the image that is erased


@options
class ViewConfig:
    """Options that draw views, see `augmented`. crop: smallest and largest share of the area."""

    crop: Annotated[tuple[ShareAbove0, ShareAbove0], Rising] = (0.08, 1.0)
    flip: Switch = False  # digits must not be mirrored
    jitter: Share = 0.4
    colour: Share = 0.2
    noise: Share = 0.0
    erasing: Share = 0.0


def two_views(x: Float[Tensor, "B 3 H W"], options: ViewConfig) -> Float[Tensor, "V 3 H W"]:
    """Two views of every image: first one of each, then the other of each in the same order."""
    return augmented(torch.cat([x, x]), options)


def augmented(x: Float[Tensor, "B 3 H W"], options: ViewConfig) -> Float[Tensor, "B 3 H W"]:
    """Each image under a draw of its own, from torch's generator of its device.

    A crop of `crop` of the area with sides of up to 4 : 3, resized; mirrored half of the time with `flip`; contrast
    about the image's mean by 1 +- `jitter` and brightness by +- `jitter` / 2; every channel by 1 +- `colour`; normal
    noise of a deviation up to `noise`; with probability `erasing` a rectangle in the image's mean colour.

    Args:
        x: RGB in [0, 1].
        options: strengths; 0 and a crop of (1, 1) leave the images as they are.

    Returns:
        Images in [0, 1].
    """
    x = cropped(x, options.crop, flip=options.flip)
    if options.jitter:
        gain, lift = 1 + options.jitter * _signed(x, 1), options.jitter / 2 * _signed(x, 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = (x - mean) * gain + mean + lift
    if options.colour:
        x = x * (1 + options.colour * _signed(x, 3))
    if options.noise:
        x = x + options.noise * _uniform(x, 1) * torch.randn_like(x)
    if options.erasing:
        hidden = _rectangles(x) & (_uniform(x, 1) < options.erasing)
        x = torch.where(hidden, x.mean(dim=(2, 3), keepdim=True), x)
    return x.clamp(0, 1)


def cropped(x: Float[Tensor, "B 3 H W"], share: tuple[float, float], *, flip: bool) -> Float[Tensor, "B 3 H W"]:
    """A part of each image, resized bilinearly to the whole.

    Args:
        x: images.
        share: smallest and largest share of the area, uniform between.
        flip: half of the images are mirrored.
    """
    area = share[0] + (share[1] - share[0]) * _uniform(x, 1).flatten()
    if share[0] == 1 and not flip:
        return x
    # No side is longer than the image's: the ratio goes as far as the area leaves room.
    log_ratio = (ASPECT * _signed(x, 1).flatten()).clamp(area.log(), -area.log())
    sides = torch.stack([log_ratio, -log_ratio], dim=1).div(2).exp() * area.sqrt()[:, None]  # width, height
    centre = (1 - sides) * _signed(x, 2).flatten(1)
    if flip:
        mirrored = torch.where(_uniform(x, 1).flatten() < 0.5, -1.0, 1.0)
        sides = sides * torch.stack([mirrored, torch.ones_like(mirrored)], dim=1)
    theta = torch.cat([torch.diag_embed(sides), centre[:, :, None]], dim=2)
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _rectangles(x: Float[Tensor, "B 3 H W"]) -> Bool[Tensor, "B 1 H W"]:
    """Which pixels lie in a rectangle of a share in `ERASED` of each image."""
    height, width = x.shape[-2:]
    area = ERASED[0] + (ERASED[1] - ERASED[0]) * _uniform(x, 1)
    ratio = (ASPECT * _signed(x, 1)).exp()
    inside = []
    for length, side, view in (
        (height, (area / ratio).sqrt(), (1, 1, -1, 1)),
        (width, (area * ratio).sqrt(), (1, 1, 1, -1)),
    ):
        start = (1 - side) * _uniform(x, 1)
        place = ((torch.arange(length, device=x.device) + 0.5) / length).view(view)
        inside.append((place >= start) & (place < start + side))
    return inside[0] & inside[1]


def _uniform(x: Tensor, channels: int) -> Float[Tensor, "B c 1 1"]:
    return torch.rand(len(x), channels, 1, 1, device=x.device)


def _signed(x: Tensor, channels: int) -> Float[Tensor, "B c 1 1"]:
    return 2 * _uniform(x, channels) - 1


def head(widths: list[int], *, normed: bool) -> nn.Sequential:
    """Linear maps without bias with batch norm and ReLU between them.

    Batches are normed by their own statistics, of one process, in evaluation too: the losses compare within the batch.

    Args:
        widths: of the input, of what lies between, and of the output.
        normed: the output is batch-normed too, without gain and bias.
    """
    layers: list[nn.Module] = []
    for width, wider in pairwise(widths[:-1]):
        layers += [nn.Linear(width, wider, bias=False), nn.BatchNorm1d(wider, track_running_stats=False), nn.ReLU()]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=False))
    if normed:
        layers.append(nn.BatchNorm1d(widths[-1], affine=False, track_running_stats=False))
    return nn.Sequential(*layers)


def unit(z: Float[Tensor, "V D"]) -> Float[Tensor, "V D"]:
    """Vectors of unit length, in single precision or better."""
    return F.normalize(exact(z), dim=1, eps=SHORTEST)


def everyone(z: Float[Tensor, "V D"]) -> tuple[Float[Tensor, "W D"], int]:
    """The vectors of all processes by rank, and where this one's begin; gradients reach this one's alone.

    Where nothing is learnt, each process has its own: of held-out images the last share may be shorter, or none.
    """
    if not torch.is_grad_enabled():
        return z, 0
    found = gathered(z.detach())
    if len(found) == len(z):
        return z, 0
    start = dist.get_rank() * len(z)
    return torch.cat([found[:start], z, found[start + len(z) :]]), start
