"""Region-aware attention (RAA): the regions of all of a student's stages attend to each other, and what each stage's
become is brought to the shape of a teacher's map.

Source: PAT (ICCV 2025) and its released code. Decided here: positions count by token where the released code counts by
the sample's place in the batch (`Positions`).
Shapes: B batch, S stages, C width of a stage, d width of the attention, D of the teacher, H W grid, R = 16 regions.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hkd.methods.parts.initialisers import as_ofa
from hkd.models.taps import to_tokens

SIDE = 4  # regions a side
Positions = Literal["token", "sample", "none"]


def sinusoid(count: int, width: int) -> Float[Tensor, "count width"]:
    """Sines at even and cosines at odd indices: row p holds those of p / 10000^(2 i / width)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


class Regions(nn.Module):
    """A map as 4x4 regions: one convolution whose stride is its kernel, ceil(H / 4) by ceil(W / 4).

    Maps with fewer positions than four strides are resized to that, to the nearest.
    """

    def __init__(self, shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        kernel = (math.ceil(shape[1] / SIDE), math.ceil(shape[2] / SIDE))
        self.grid = (SIDE * kernel[0], SIDE * kernel[1])
        self.project = nn.Conv2d(shape[0], width, kernel, stride=kernel)

    def forward(self, map_: Float[Tensor, "B C H W"]) -> Float[Tensor, "B R d"]:
        """Tokens, row by row."""
        return to_tokens(self.project(map_ if map_.shape[2:] == self.grid else F.interpolate(map_, self.grid)))


class RegionAttention(nn.Module):
    """Multi-head attention among the regions of all stages, without output projection, residual and drop-out.

    Args:
        shapes: (C, H, W) of the stages by number; all of one map have positions.
        width: d, even and divisible by `heads`.
        heads: of the attention.
        positions: what is added to queries and keys: sinusoids by token, by the sample's place in the batch (the same
            for all tokens), or nothing.
    """

    table: Tensor

    def __init__(
        self, shapes: Mapping[int, tuple[int, int, int]], width: int, heads: int, positions: Positions
    ) -> None:
        super().__init__()
        self.heads, self.positions = heads, positions
        self.regions = nn.ModuleDict({str(stage): Regions(shape, width) for stage, shape in shapes.items()})
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.register_buffer("table", sinusoid(SIDE**2 * len(shapes), width), persistent=False)

    def forward(self, maps: Mapping[int, Tensor]) -> dict[int, Float[Tensor, "B R d"]]:
        """The tokens of each stage after the attention, from its maps [B, C, H, W]."""
        x = self.norm(torch.cat([regions(maps[int(stage)]) for stage, regions in self.regions.items()], dim=1))
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, dim=2)
        if self.positions != "none":
            places = self.table if self.positions == "token" else sinusoid(len(x), x.shape[2])[:, None].to(x.device)
            q, k = q + places.to(q.dtype), k + places.to(k.dtype)
        heads = (tokens.unflatten(2, (self.heads, -1)).transpose(1, 2) for tokens in (q, k, v))
        merged = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return dict(zip(map(int, self.regions), merged.split(SIDE**2, dim=1), strict=True))


class TokenAligner(nn.Module):
    """Regions to a map of tokens: batch norm by region, linear to D, batch norm by channel, linear from R to H W.

    Args:
        width: d.
        shape: (D, H, W) of the teacher's map.
    """

    def __init__(self, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = shape[1:]
        self.norm, self.widen = nn.BatchNorm1d(SIDE**2), nn.Linear(width, shape[0])
        self.norm_wide, self.spread = nn.BatchNorm1d(shape[0]), nn.Linear(SIDE**2, shape[1] * shape[2])
        self.apply(as_ofa)

    def forward(self, tokens: Float[Tensor, "B R d"]) -> Float[Tensor, "B D H W"]:
        """The map."""
        return self.spread(self.norm_wide(self.widen(self.norm(tokens)).transpose(1, 2))).unflatten(2, self.grid)


class MapAligner(nn.Module):
    """Regions to a map of a CNN: the 4x4 map resized to the nearest, batch norm, 1x1 convolution without bias.

    Args:
        width: d.
        shape: (D, H, W) of the teacher's map.
    """

    def __init__(self, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = shape[1:]
        self.norm, self.widen = nn.BatchNorm2d(width), nn.Conv2d(width, shape[0], 1, bias=False)
        self.apply(as_ofa)

    def forward(self, tokens: Float[Tensor, "B R d"]) -> Float[Tensor, "B D H W"]:
        """The map."""
        map_ = tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        return self.widen(self.norm(F.interpolate(map_, self.grid)))
