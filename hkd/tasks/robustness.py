"""The task that measures a finished classifier further: how it stands corrupted images, and how well it is calibrated.

Nothing is trained: a run of this task takes the weights that a training left, so it has a key of its own and no
training's key knows of it. Shapes: N images, C classes.
"""

from itertools import product
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, Strict
from torch import Tensor

from hkd.data.corruptions import corrupted
from hkd.errors import UserError
from hkd.models.hooks import evaluation_mode
from hkd.models.tap_model import TapModel
from hkd.options import Different, configured, options
from hkd.tasks.evaluate import evaluation_loader
from hkd.tasks.launch import task
from hkd.training.cost import Meter
from hkd.training.distributed import make_fabric, reduce
from hkd.training.inputs import evaluation_split, give_weights, open_data
from hkd.training.job import Job, Outcome

BINS = 15


@options
class RobustnessOptions:
    """Options of the task. strengths: of the five that each corruption has (hkd/data/corruptions.py)."""

    corruptions: Annotated[
        tuple[Literal["noise", "blur", "contrast"], ...], Field(min_length=1), Different
    ] = ("noise", "blur", "contrast")  # fmt: skip
    strengths: Annotated[
        tuple[Annotated[int, Strict(), Field(ge=1, le=5)], ...], Field(min_length=1), Different
    ] = (1, 3, 5)  # fmt: skip


@task(RobustnessOptions)
def robustness(job: Job) -> Outcome:
    """Measure the classifier that `spec.init` names on the split that the spec reports on.

    metrics: `top1`, `ece` in percent and `nll` in nats of the images as they are; `top1_<corruption>_<strength>`,
    their mean over strengths `top1_<corruption>`, and the mean of these, `top1_corrupted`. Leaves no files.

    Raises:
        UserError: no weights to measure, data without classes, or no image that can be read.
    """
    spec, meter = job.spec, Meter()
    if spec.init is None:
        raise UserError("Robustness is measured of weights: give the run an `init`.")
    chosen = configured(RobustnessOptions, "Task 'robustness'", spec.task_options)
    fabric = make_fabric(job.runtime, "32-true")
    data, _ = open_data(spec.data, job.runtime)
    if not data.num_classes:
        raise UserError(f"Robustness is measured by accuracy, and '{spec.data.name}' has no labels.")
    split = evaluation_split(spec, data, job.runtime)
    model = TapModel(spec.student, data.num_classes)
    give_weights(model, spec.init, job.weights)
    model.to(fabric.device)
    job.folder.mkdir(parents=True, exist_ok=True)
    conditions = list(product(chosen.corruptions, chosen.strengths))
    loader = evaluation_loader(split, job, data, fabric)
    # One row per condition, the first of images as they are; below 0 where an image could not be read.
    right = torch.full((1 + len(conditions), loader.count), -1, dtype=torch.int64, device=fabric.device)
    confidence, nll = (torch.full((loader.count,), -1.0, device=fabric.device) for _ in range(2))
    with torch.no_grad(), evaluation_mode(model):
        for batch in loader.epoch(0):
            index = batch.index
            batch = batch.to(fabric.device)
            labels = torch.as_tensor(split.labels, device=fabric.device)[batch.index]
            logits = model(batch.x).logits
            right[0, batch.index] = (logits.argmax(1) == labels).long()
            confidence[batch.index] = logits.softmax(1).amax(1)
            nll[batch.index] = F.cross_entropy(logits, labels, reduction="none")
            for row, (name, strength) in enumerate(conditions, 1):
                shown = model(corrupted(batch.x, name, strength, index)).logits
                right[row, batch.index] = (shown.argmax(1) == labels).long()
    right, confidence, nll = (reduce(fabric, found, "max").cpu() for found in (right, confidence, nll))
    seen = right[0] >= 0
    if not seen.any():
        raise UserError(f"No image of '{spec.data.name}' can be read.")
    shares = 100 * right[:, seen].double().mean(dim=1)
    metrics = {
        "top1": float(shares[0]),
        "ece": 100 * calibration_error(confidence[seen], right[0, seen] == 1),
        "nll": float(nll[seen].double().mean()),
        **summary({condition: float(share) for condition, share in zip(conditions, shares[1:], strict=True)}),
    }
    if not seen.all():
        metrics["skipped_images"] = float((~seen).sum())
    return Outcome(metrics=metrics, cost=meter.cost(fabric, model))


def calibration_error(confidence: Float[Tensor, " N"], right: Bool[Tensor, " N"], bins: int = BINS) -> float:
    r"""Expected calibration error (ECE), from 0 to 1: how far confidence is from accuracy.

    .. math:: \sum_m \frac{|B_m|}{N} |acc(B_m) - conf(B_m)|, \quad B_m = (\tfrac{m-1}{M}, \tfrac{m}{M}]

    Source: Guo et al. 2017, arXiv:1706.04599, equation 3. Deviations: none.

    Args:
        confidence: probability of the class that is predicted, in (0, 1].
        right: whether it is the label.
        bins: M, of equal width.
    """
    confidence = confidence.double()
    places: Int[Tensor, " N"] = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    # In a bin, |B| / N times the distance of the means is the distance of the sums over N.
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, places, right.double() - confidence)
    return float(gaps.abs().sum() / len(confidence))


def summary(shares: dict[tuple[str, int], float]) -> dict[str, float]:
    """Accuracies by corruption and strength as metrics: each of them, means over strengths, and the mean of those."""
    means: dict[str, float] = {}
    for name in dict.fromkeys(name for name, _ in shares):
        held = [share for (other, _), share in shares.items() if other == name]
        means[f"top1_{name}"] = sum(held) / len(held)
    each = {f"top1_{name}_{strength}": share for (name, strength), share in shares.items()}
    return {"top1_corrupted": sum(means.values()) / len(means), **means, **each}
