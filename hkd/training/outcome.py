"""What a task hands back to its caller. Free of torch."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of one run.

    metrics: top1 in percent; skipped_images where some could not be read.
    cost: wall_s, cpu_s and gpu_s (of this process, or of rank 0; interrupted attempts included), step_ms (median
    training step), steps (updates), device_batch (images of one forward pass), student_params_m and extra_params_m
    (adapters) in millions, peak_memory_mib; corrupt_images where training images were skipped.
    curves: one flat dict per epoch: epoch (from 1), loss and loss/<term> (means over the epoch), lr (of its last
    update), train_top1 (percent, of augmented images while training), seconds; grad_norm/<term> at about five epochs.
    """

    metrics: dict[str, float]
    cost: dict[str, float]
    curves: list[dict[str, Any]] = field(default_factory=list)
