"""One batch as the loop and the methods see it."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Batch:
    """x: RGB in [0, 1], not normalised (each model applies its own mean and std), [B, 3, H, W].

    y: class indices [B], or soft targets [B, C] after mixup. index: row of each sample in its split [B].
    view: number of the fixed view each sample shows [B], or None when augmentation is drawn afresh.
    """

    x: Float[Tensor, "B 3 H W"]
    y: Tensor
    index: Int[Tensor, " B"]
    view: Int[Tensor, " B"] | None = None
