r"""Normalised mutual information of attention: how much the attended keys depend on the query.

With :math:`p(q) = 1/N`, :math:`p(k) = \frac{1}{N} \sum_q A_{qk}`:

.. math:: I = H(k) - \frac{1}{N} \sum_q H(A_{q \cdot}), \quad NMI = \frac{I}{\sqrt{\ln N \cdot H(k)}} \in [0, 1]

per image and head, averaged over images after the ratio. 0: all queries attend alike (collapse); 1: each to a key of
its own. The form by entropies needs no smoothing of zeros.
Shapes: B images, h heads, N patches.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.measures.parts.heads import HeadMeasure

NOTHING = 1e-12  # nats; an entropy of keys below it is one key for all queries, of which the ratio is 0 / 0


def _p_log_p(p: Tensor, out: Tensor | None = None) -> Tensor:
    """p log p by elements, 0 at 0. `torch.xlogy` gives the same and is not vectorised."""
    return torch.clamp_min(p, torch.finfo(p.dtype).tiny, out=out).log_().mul_(p)


def attention_nmi(attention: Float[Tensor, "B h N N"], scratch: Tensor | None = None) -> Float[Tensor, "B h"]:
    """NMI of queries and keys, dimensionless, in [0, 1]; 0 where all queries attend to one and the same key.

    Args:
        attention: patches only; rows (the last dimension) sum to one.
        scratch: memory of the same shape and type to work in, for callers with many batches.

    Raises:
        ValueError: fewer than two patches, which have nothing to tell apart.
    """
    count = attention.shape[-1]
    if count < 2:
        raise ValueError("The mutual information of attention takes at least two patches, got one.")
    row_entropy = -_p_log_p(attention, scratch).flatten(2).sum(dim=2) / count
    key_entropy = -_p_log_p(attention.mean(dim=2)).sum(dim=2)
    information = (key_entropy - row_entropy).clamp_min(0)
    nmi = information / (math.log(count) * key_entropy.clamp_min(NOTHING)).sqrt()
    return torch.where(key_entropy < NOTHING, 0, nmi)


class AttentionNMI(HeadMeasure):
    """NMI of every layer and head over any number of images."""

    title = "0 to 1; mean over heads; spread: largest minus smallest head"
    unit, digits = "", 3
    label, least = "Attention NMI", 0.6

    def __init__(self) -> None:
        super().__init__()
        self._scratch = torch.empty(0)

    def of(self, maps: Float[Tensor, "B h N N"], grid: tuple[int, int]) -> Float[Tensor, "B h"]:
        """The NMI of each image and head."""
        if self._scratch.shape != maps.shape:
            self._scratch = torch.empty_like(maps)
        return attention_nmi(maps, self._scratch)

    def __getstate__(self) -> dict[str, object]:
        """Without the memory to work in."""
        return self.__dict__ | {"_scratch": torch.empty(0)}
