r"""Which tokens of an image a student sees, decided by how alike the tokens of a frozen transformer are.

Hybrid Distill (arXiv:2306.15876) drops redundant tokens step by step: at some blocks, of the tokens still kept, the
share K that is most like their mean,

.. math:: s_n = \cos(x_n, \frac{1}{|M|} \sum_{m \in M} x_m), \quad n \in M

The transformer itself always runs all of them. Shapes: B batch, N patch tokens, D width, n kept tokens.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import floor

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hkd.methods.parts.logits import exact
from hkd.models.masks import gather_tokens


def dropped(count: int, share: float) -> int:
    """floor(share * count), of the decimal number that was written: .29 of 100 is 29, not 28."""
    return floor(Fraction(repr(share)) * count)


def kept_after(count: int, share: float, steps: int) -> list[int]:
    """How many of `count` tokens are kept after each of some steps that drop floor(share * kept)."""
    counts = []
    for _ in range(steps):
        count -= dropped(count, share)
        counts.append(count)
    return counts


def share_kept(count: int, share: float) -> int:
    """How many of `count` tokens are kept when floor((1 - share) * count) are dropped at once; at least 1 of any."""
    return count - floor((1 - Fraction(repr(share))) * count)


def drop_redundant(tokens: Float[Tensor, "B n D"], count: int) -> Int[Tensor, "B left"]:
    """Places of the tokens that are left when the `count` most like the mean of all n are dropped.

    Args:
        tokens: patch tokens only.
        count: how many are dropped, below n. Of equally similar ones the first are.

    Returns:
        left = n - count places of each image, ascending.
    """
    tokens = exact(tokens)
    similarity = F.cosine_similarity(tokens, tokens.mean(dim=1, keepdim=True), dim=2)
    return similarity.argsort(dim=1, descending=True, stable=True)[:, count:].sort(dim=1).values


@torch.no_grad()
def redundant_mask(steps: Sequence[Float[Tensor, "B N _"]], counts: Sequence[int]) -> Bool[Tensor, "B N"]:
    """Which tokens are kept after all steps.

    Args:
        steps: all N patch tokens at each step, the first first; widths may differ.
        counts: how many are kept after each step, never more than before.

    Returns:
        True for the counts[-1] kept tokens of each image.
    """
    batch, total = steps[0].shape[:2]
    kept = torch.arange(total, device=steps[0].device).expand(batch, -1)
    for tokens, count in zip(steps, counts, strict=True):
        left = gather_tokens(tokens, kept)
        kept = kept.gather(1, drop_redundant(left, left.shape[1] - count))
    mask = torch.zeros(batch, total, dtype=torch.bool, device=kept.device)
    return mask.scatter_(1, kept, True)
