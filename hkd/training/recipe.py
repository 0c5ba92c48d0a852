"""A recipe as objects: task loss, optimiser, schedule and moving average, all from timm and torch.

Shapes: B batch, C classes.
"""

import inspect
import math
from functools import partial
from typing import Any, Protocol, runtime_checkable

import timm.optim
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from hkd.errors import UserError
from hkd.methods.base import Criterion
from hkd.registry import nearest
from hkd.spec import Recipe


def make_criterion(recipe: Recipe) -> Criterion:
    """The task loss (logits [B, C], targets) -> scalar in nats, averaged over B.

    Targets are class indices [B], which label smoothing softens here, or soft targets [B, C], which are taken as they
    are (mixup has smoothed them). `bce` is summed over classes.
    """
    if recipe.loss == "bce":
        return BinaryCrossEntropy(smoothing=recipe.label_smoothing, sum_classes=True).forward
    return partial(_cross_entropy, label_smoothing=recipe.label_smoothing)


def _cross_entropy(logits: Any, targets: Any, *, label_smoothing: float) -> Any:
    smoothing = label_smoothing if targets.ndim == 1 else 0.0
    return F.cross_entropy(logits, targets, label_smoothing=smoothing)


def peak_lr(recipe: Recipe) -> float:
    """The rate after warm-up, for the global batch."""
    return recipe.lr * recipe.batch_size / recipe.lr_batch if recipe.lr_batch else recipe.lr


def make_optimizer(recipe: Recipe, net: nn.Module, adapters: nn.Module) -> Optimizer:
    """One optimiser over the student and, as further groups, a method's own parameters.

    The backbone itself is asked which of its parameters are exempt from weight decay (`no_weight_decay`) and how deep
    they lie (layer decay); a wrapper around it would answer neither.

    Args:
        recipe: optimiser, rates and decay.
        net: the plain timm model.
        adapters: the method; it may have no parameters, and a `no_weight_decay()` of its own.

    Raises:
        UserError: an optimiser that timm does not know, or one that does not clip and is told where to.
    """
    known = [str(name) for name in timm.optim.list_optimizers()]
    if recipe.optimizer not in known:
        raise UserError(
            f"timm {timm.__version__} has no optimiser '{recipe.optimizer}'.{nearest(recipe.optimizer, known)}"
        )
    groups = _groups(recipe, net, recipe.layer_decay) + _groups(recipe, adapters, None)
    options: dict[str, Any] = {"betas": recipe.betas} if recipe.betas else {}
    if _takes(recipe, "fused") and recipe.precision != "16-mixed":  # clipping needs its scaler
        options["fused"] = True
    if recipe.max_grad_norm is not None:
        if not _takes(recipe, "max_grad_norm"):
            raise UserError(
                f"Optimiser '{recipe.optimizer}' does not clip gradients itself: set clip_grad, and not max_grad_norm."
            )
        options["max_grad_norm"] = recipe.max_grad_norm
    return timm.optim.create_optimizer_v2(
        groups, recipe.optimizer, lr=peak_lr(recipe), momentum=recipe.momentum, **options
    )


def _groups(recipe: Recipe, module: nn.Module, layer_decay: float | None) -> list[dict[str, Any]]:
    if not any(True for _ in module.parameters()):
        return []
    options: dict[str, Any] = {
        "weight_decay": recipe.weight_decay,
        "weight_decay_exclude_1d": not recipe.decay_1d,
        "no_weight_decay_list": getattr(module, "no_weight_decay", set)(),
    }
    if layer_decay is None:
        return timm.optim.param_groups_weight_decay(module, **options)
    return timm.optim.param_groups_layer_decay(module, layer_decay=layer_decay, **options)


def _takes(recipe: Recipe, name: str) -> bool:
    """Whether this optimiser has such an option: `fused`, torch's one-kernel form, for one."""
    return name in inspect.signature(timm.optim.get_optimizer_class(recipe.optimizer, bind_defaults=False)).parameters


@runtime_checkable
class Schedule(Protocol):
    """What sets an optimiser's groups before each update."""

    def step_update(self, num_updates: int) -> None:
        """Call before update i, from 0."""


class WeightDecaySchedule:
    r"""A schedule of rates beside which the weight decay goes from w to v, as SparK's (arXiv:2301.03580) rises.

    .. math:: w_i = v + (w - v) (1 + cos(\pi i / (n - 1))) / 2

    for update i of n; the decay has no warm-up. Groups that were not decayed at first never are.
    """

    def __init__(self, rates: Scheduler, optimizer: Optimizer, start: float, end: float, updates: int) -> None:
        self.rates, self.start, self.end, self.updates = rates, start, end, updates
        # Groups are looked up anew each time: a continued run's are others, in the same order.
        self.optimizer, self.decayed = optimizer, [group["weight_decay"] > 0 for group in optimizer.param_groups]

    def step_update(self, num_updates: int) -> None:
        """Set rates and decay for update i, from 0."""
        self.rates.step_update(num_updates)
        turn = math.pi * num_updates / max(1, self.updates - 1)
        now = self.end + (self.start - self.end) * (1 + math.cos(turn)) / 2
        for group, decayed in zip(self.optimizer.param_groups, self.decayed, strict=True):
            if decayed:
                group["weight_decay"] = now


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps: int) -> Schedule:
    """Rates, and where it moves the weight decay, as functions of the update index alone: call `step_update(i)` before
    update i (from 0).

    Args:
        recipe: schedule, warm-up, rates and weight decay.
        optimizer: its groups' rates are set; `lr_scale` of a group (layer decay) is respected.
        steps: updates per epoch. Lengths in epochs are rounded to whole updates.
    """
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if recipe.schedule == "step" else recipe.schedule,
        num_epochs=recipe.epochs * steps,
        # timm's multistep compares milestones with i + 1; ours lower the rate from update `milestone` on.
        decay_milestones=[round(epoch * steps) + 1 for epoch in sorted(recipe.milestones)],
        decay_rate=0.1,
        min_lr=recipe.min_lr,
        warmup_epochs=round(recipe.warmup_epochs * steps),
        warmup_lr=recipe.warmup_lr,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    if recipe.weight_decay_end is None:
        return schedule
    return WeightDecaySchedule(schedule, optimizer, recipe.weight_decay, recipe.weight_decay_end, recipe.epochs * steps)


def make_ema(recipe: Recipe, net: nn.Module) -> ModelEmaV3 | None:
    """The moving average of weights and statistics that is evaluated and kept instead of the student, if wanted."""
    if recipe.ema_decay is None:
        return None
    if not (0 <= recipe.ema_decay < 1 and math.isfinite(recipe.ema_decay)):
        raise UserError(f"ema_decay must be in [0, 1), got {recipe.ema_decay}.")
    return ModelEmaV3(net, decay=recipe.ema_decay)
