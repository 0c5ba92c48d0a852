"""What methods that compare logits or samples share: checks, the class of a sample, and the precision of a comparison.

Shapes: B batch, C classes.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from hkd.errors import Refused, UserError
from hkd.models.taps import TapInfo


def same_classes(method: str, student: TapInfo, teacher: TapInfo) -> None:
    """Check that logits can be compared class by class.

    Args:
        method: registry name, for the sentence.
        student: its `classes` are those of the data.
        teacher: the one whose logits are compared.

    Raises:
        Refused: the teacher has other classes than the data.
    """
    if student.classes != teacher.classes:
        raise Refused(
            f"Method '{method}' compares logits, but the teacher has {teacher.classes} classes and the data "
            f"{student.classes}."
        )


def several_samples(method: str, count: int) -> None:
    """Check that there are samples to relate to each other.

    Args:
        method: registry name, for the sentence.
        count: samples in the batch, as one process and one micro-batch see it.

    Raises:
        UserError: fewer than two.
    """
    if count < 2:
        raise UserError(
            f"Method '{method}' compares samples with each other, so every batch (in each process and micro-batch) "
            f"needs at least 2 images, got {count}."
        )


def class_index(y: Tensor) -> Int[Tensor, " B"]:
    """The class of every sample.

    Args:
        y: class indices [B], or soft targets [B, C], whose arg-max is taken (the first class of a tie).
    """
    return y if y.ndim == 1 else y.argmax(dim=1)


def exact(tensor: Tensor) -> Tensor:
    """The tensor in single precision or better: mixed precision may hand over 16 bits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
