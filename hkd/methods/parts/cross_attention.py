"""Projectors of ScaleKD: student feature maps into tokens like the teacher's.

Source: ScaleKD, arXiv:2411.06786: the cross attention projector (CAP), and plain convolutions to ablate it against.
Deviations in form, not in value: the 1x1 convolution on the queries is the same linear map on tokens, and learned
queries, the same for every sample, are projected once and expanded. The windowed variant is left out: no released
configuration uses it.
Shapes: B batch, D width, H W grid, P = H * W student positions (keys), N teacher positions (queries).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from hkd.errors import Refused
from hkd.methods.parts.feature_mimicking import to_grid
from hkd.methods.parts.initialisers import SPREAD
from hkd.models.taps import to_tokens
from hkd.registry import lookup

NORMS = {"batch": nn.BatchNorm2d, "layer": LayerNorm2d}
CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv1x1": partial(nn.Conv2d, kernel_size=1),
    "conv3x3_bn_relu": lambda in_width, out_width: nn.Sequential(
        nn.Conv2d(in_width, out_width, 3, padding=1), nn.BatchNorm2d(out_width), nn.ReLU()
    ),
}


class CrossAttentionProjector(nn.Module):
    """CAP: teacher-like queries read the student's map; the output has the teacher's width and number of tokens.

    Keys and values are the student's positions (3x3 convolution, norm, ReLU, plus a learned map of positions).
    Attention has biases and no dropout, and there is no residual from the query: all content comes from the student.
    A layer norm and a ReLU feed-forward layer with residual follow. The bias of `k` cancels in the softmax.

    Args:
        in_width: student width.
        in_grid: (H, W) of the student's map.
        out_width: teacher width.
        queries: number of learned queries, or None when `forward` is given queries.
        heads: attention heads; must divide out_width.
        scale: factor on the usual head_width ** -0.5 inside the softmax.
        norm: after the convolution: over the batch, or over the channels of each position.
        positional: whether the learned map of positions is added.

    Raises:
        Refused: heads do not divide out_width.
        UserError: an unknown norm.
    """

    def __init__(
        self,
        in_width: int,
        in_grid: tuple[int, int],
        out_width: int,
        queries: int | None,
        *,
        heads: int,
        scale: float,
        norm: Literal["batch", "layer"] = "batch",
        positional: bool = True,
    ) -> None:
        super().__init__()
        if out_width % heads:
            raise Refused(f"{heads} attention heads do not divide the teacher's width {out_width}.")
        self.heads, self.softmax_scale = heads, scale * (out_width // heads) ** -0.5
        self.proj_student = nn.Sequential(
            nn.Conv2d(in_width, in_width, 3, padding=1), lookup("norm", norm, NORMS)(in_width), nn.ReLU()
        )
        # Channels last, so that positions become tokens without a copy: 5-7 % of the projector's time on small maps.
        self.proj_student.to(memory_format=torch.channels_last)
        position = nn.init.trunc_normal_(torch.empty(1, in_width, *in_grid), std=SPREAD) if positional else None
        self.position = None if position is None else nn.Parameter(position)
        self.query = None if queries is None else nn.Parameter(torch.randn(1, queries, out_width))
        self.proj_query = nn.Sequential(nn.Linear(out_width, out_width), nn.ReLU())
        self.q, self.out = nn.Linear(out_width, out_width), nn.Linear(out_width, out_width)
        self.k, self.v = nn.Linear(in_width, out_width), nn.Linear(in_width, out_width)
        self.norm = nn.LayerNorm(out_width)
        self.ffn = nn.Sequential(nn.Linear(out_width, 4 * out_width), nn.ReLU(), nn.Linear(4 * out_width, out_width))

    def forward(
        self, map_s: Float[Tensor, "B D H W"], query: Float[Tensor, "B N Dt"] | None = None
    ) -> Float[Tensor, "B N Dt"]:
        """Tokens [B, N, Dt] for the learned queries, or for those given (only by a projector built without)."""
        assert (query is None) != (self.query is None), "queries are either learned or given"
        chosen = self.query if query is None else query
        assert chosen is not None
        return self.attend(self.memory(map_s), chosen)

    def memory(self, map_s: Float[Tensor, "B D H W"]) -> Float[Tensor, "B P D"]:
        """The student's positions as keys and values are computed from them."""
        positions = self.proj_student(map_s.contiguous(memory_format=torch.channels_last))
        return to_tokens(positions if self.position is None else positions + self.position)

    def attend(self, memory: Float[Tensor, "B P D"], query: Float[Tensor, "b N Dt"]) -> Float[Tensor, "B N Dt"]:
        """Cross attention and feed-forward layer; `query` has batch size B or 1."""
        q = self.split(self.q(self.proj_query(query))).expand(len(memory), -1, -1, -1)
        k, v = self.split(self.k(memory)), self.split(self.v(memory))
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale)
        tokens = self.norm(self.out(attended.transpose(1, 2).flatten(2)))
        return tokens + self.ffn(tokens)

    def split(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B heads N d"]:
        """Heads apart."""
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class ConvolutionProjector(nn.Module):
    """A convolution in place of attention: the map is resized to the teacher's grid (`to_grid`), then projected.

    Args:
        kind: `conv1x1` (with bias) or `conv3x3_bn_relu`.
        in_width: student width.
        out_width: teacher width.
        out_grid: (H, W) of the teacher's tokens.
    """

    def __init__(self, kind: str, in_width: int, out_width: int, out_grid: tuple[int, int]) -> None:
        super().__init__()
        self.out_grid = out_grid
        self.projector = lookup("projector", kind, CONVOLUTIONS)(in_width, out_width)

    def forward(self, map_s: Float[Tensor, "B D H W"]) -> Float[Tensor, "B N Dt"]:
        """Tokens [B, N, Dt]."""
        return to_tokens(self.projector(to_grid(map_s, self.out_grid)))
