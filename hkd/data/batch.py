"""One batch as the loop and the methods see it."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Batch:
    """x: RGB in [0, 1], not normalised (each model applies its own mean and std), [B, 3, H, W].

    y: class indices [B], or soft targets [B, C] after mixup. index: row of each sample in its split [B].
    view: number of the fixed view each sample shows [B], or None when augmentation is drawn afresh.
    extra: what a method drew for this batch (a mask), shared by the teachers' and the student's inputs.
    """

    x: Float[Tensor, "B 3 H W"]
    y: Tensor
    index: Int[Tensor, " B"]
    view: Int[Tensor, " B"] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
