"""Taps: the features of one forward pass, the same for every architecture.

Shapes: B batch, C classes, D width, H W grid, N = H * W patch tokens, P prefix tokens (class, distillation, registers).
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Want:
    """What one forward pass should record beside `final`, `pooled` and `logits`.

    stages: stage numbers among 1, 2, 3, 4. attention: 0-based block indices whose attention input is wanted.
    """

    stages: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()

    def __or__(self, other: "Want") -> "Want":
        return Want(tuple(sorted({*self.stages, *other.stages})), tuple(sorted({*self.attention, *other.attention})))


@dataclass
class Taps:
    """Features of one forward pass.

    final: last-stage map after the model's final norm where it has one (timm `forward_features`), [B, D, H, W].
    pooled: penultimate feature (timm `forward_head(..., pre_logits=True)`), [B, D].
    stages: raw (un-normed) output of each wanted stage, [B, D, H, W], prefix tokens removed.
    prefix: prefix tokens of each wanted stage, [B, P, D]; empty for models without.
    attention: input of the wanted blocks' attention modules (already layer-normed), [B, P + N, D].
    """

    logits: Float[Tensor, "B C"]
    pooled: Float[Tensor, "B D"]
    final: Float[Tensor, "B Df H W"]
    stages: dict[int, Tensor] = field(default_factory=dict)
    prefix: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)


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
