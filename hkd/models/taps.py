"""Taps: the features of one forward pass, the same for every architecture.

Shapes: B batch, C classes, D width, H W grid, N = H * W patch tokens, P prefix tokens (class, distillation, registers),
M = P + visible patches (all of them without a mask), h heads, d = width of a head.
"""

from dataclasses import dataclass, field, fields

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Want:
    """What one forward pass should record beside `final`, `pooled`, `logits` and `tokens`.

    stages: stage numbers among 1, 2, 3, 4. Of transformer blocks, by 0-based index: attention: the inputs of their
    attentions; qkv: their queries, keys and values; outputs: their outputs.
    """

    stages: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    qkv: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    def __or__(self, other: "Want") -> "Want":
        names = [item.name for item in fields(self)]
        return Want(**{name: tuple(sorted({*getattr(self, name), *getattr(other, name)})) for name in names})


@dataclass
class Taps:
    """Features of one forward pass.

    final: last-stage map after the model's final norm where it has one (timm `forward_features`), [B, D, H, W].
    pooled: penultimate feature (timm `forward_head(..., pre_logits=True)`), [B, D].
    stages: raw (un-normed) output of each wanted stage, [B, D, H, W], prefix tokens removed.
    prefix: prefix tokens of each wanted stage, [B, P, D]; empty for models without.
    tokens: all tokens after the final norm, prefix first, in the order of the image, [B, M, D]; None for maps.
    attention: input of the wanted blocks' attention modules (already layer-normed), [B, M, D].
    qkv: queries, keys and values of the wanted blocks as their attention multiplies them, each [B, h, M, d].
    outputs: of the wanted blocks, [B, M, D].
    second: taps of the method's second view of the batch, where it has one.
    """

    logits: Float[Tensor, "B C"]
    pooled: Float[Tensor, "B D"]
    final: Float[Tensor, "B Df H W"]
    stages: dict[int, Tensor] = field(default_factory=dict)
    prefix: dict[int, Tensor] = field(default_factory=dict)
    tokens: Float[Tensor, "B M Df"] | None = None
    attention: dict[int, Tensor] = field(default_factory=dict)
    qkv: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    second: "Taps | None" = None


@dataclass(frozen=True)
class TapInfo:
    """Shapes of a model's taps, from one dummy forward; what a method sizes its adapters by.

    stages and final hold (D, H, W).
    """

    classes: int
    pooled: int
    final: tuple[int, int, int]
    stages: dict[int, tuple[int, int, int]]
    prefix: int = 0


def tokens_to_map(tokens: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B D H W"]:
    """Tokens, row by row, as a map; a view."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(map_: Float[Tensor, "B D H W"]) -> Float[Tensor, "B H*W D"]:
    """A map as tokens, row by row."""
    return map_.flatten(2).transpose(1, 2)
