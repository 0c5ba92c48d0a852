"""What a caller's models, settings and batches must be, looked at before anything is computed with them.

Shapes: B batch, C classes, H W sides of images in px.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from hkd.errors import UserError
from hkd.methods.base import Criterion

MOST_SIDE = 2**14  # px
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_model(model: Any, who: str) -> None:
    """Raise a UserError for what is no model with weights that can be run."""
    if not isinstance(model, nn.Module):
        raise UserError(f"The {who} must be a torch.nn.Module, got {shown(model)}.")
    for tensor in (*model.parameters(), *model.buffers()):
        if isinstance(tensor, UninitializedTensorMixin) or tensor.is_meta:
            raise UserError(
                f"The {who} has weights without values (lazy, or on the device meta): build it whole first."
            )


def check_settings(num_classes: Any, image_size: Any, normalize: Any, criterion: Any) -> None:
    """Raise a UserError for settings of a wrong kind."""
    for name, value, most in (("num_classes", num_classes, 10**7), ("image_size", image_size, MOST_SIDE)):
        if value is not None and not (type(value) is int and 1 <= value <= most):
            raise UserError(f"{name} must be a whole number from 1 to {most}, got {shown(value)}.")
    if not isinstance(normalize, bool | Mapping):
        raise UserError(f"normalize must be True, False or {{name: (mean, std)}}, got {shown(normalize)}.")
    for name, pair in normalize.items() if isinstance(normalize, Mapping) else ():
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and all(map(are_three, pair)) and min(pair[1]) > 0):
            raise UserError(f"normalize of '{name}' must be (mean, std), three numbers each, got {shown(pair)}.")
    if not callable(criterion):
        raise UserError(f"criterion must be called with (logits, targets), got {shown(criterion)}.")


def are_three(values: Any) -> bool:
    """Whether these are the numbers of three colours."""
    numbers = isinstance(values, tuple | list) and all(isinstance(value, int | float) for value in values)
    return numbers and len(values) == 3 and all(map(math.isfinite, values))


def check_taps(taps: Any, where: str) -> None:
    """Raise a UserError for taps of a wrong kind; whether there are such modules is seen later."""
    if taps is None:
        return
    if not isinstance(taps, Mapping):
        raise UserError(f'{where} must be like {{"stages": {{1: NAME}}}}, got {shown(taps)}.')
    stages = taps.get("stages")
    if stages is not None and not isinstance(stages, Mapping):
        raise UserError(f"{where}: stages must be {{number: name of a module}}, got {shown(stages)}.")
    if odd := [stage for stage in stages or () if type(stage) is not int]:
        raise UserError(f"{where}: stages are numbered 1 to 4, got {shown(odd[0])}.")
    prefix = taps.get("prefix")
    if prefix is not None and not (type(prefix) is int and prefix >= 0):
        raise UserError(f"{where}: prefix must be a count of tokens, got {shown(prefix)}.")
    for key, name in {**(stages or {}), **{key: taps.get(key) for key in ("final", "pooled", "layout")}}.items():
        if name is not None and type(name) not in (str, int):
            raise UserError(f"{where}: '{key}' must be a text, got {shown(name)}.")


def checked(criterion: Criterion) -> Criterion:
    """A criterion that tells in a sentence what it was given and raised. A module stays as it is, with its buffers."""
    return criterion if isinstance(criterion, nn.Module) else partial(called, criterion)


def called(criterion: Criterion, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of a caller's function. Raises UserError where that is no scalar, or what it raised as a UserError."""
    try:
        loss = criterion(logits, targets)
    except Exception as error:  # whatever somebody else's function raises, in its words
        given = f"logits {[*logits.shape]} and targets {[*targets.shape]} of {targets.dtype}"
        raise UserError(f"criterion raised {type(error).__name__} for {given}: {error}") from error
    if not isinstance(loss, Tensor) or loss.ndim or not loss.is_floating_point():
        what = f"a tensor of shape {[*loss.shape]} and {loss.dtype}" if isinstance(loss, Tensor) else shown(loss)
        raise UserError(f"criterion must give one number, averaged over the batch, got {what}.")
    return loss


def check_batch(x: Any, y: Any, index: Any, student: nn.Module, classes: int) -> None:
    """Raise a UserError for a batch that cannot be. Labels on a GPU are not compared with C: that would wait for it.

    Args:
        x: images [B, 3, H, W]. y: class indices [B], or soft targets [B, C]. index: rows [B], if given.
        student: whose device they must be on.
        classes: C; 0: targets are not read.
    """
    device = next(student.parameters()).device
    for name, value in (("images", x), ("targets", y), *((("index", index),) if index is not None else ())):
        if not isinstance(value, Tensor):
            raise UserError(f"The {name} must be a tensor, got {shown(value)}.")
        if value.layout != torch.strided:
            raise UserError(f"The {name} are a sparse tensor ({value.layout}): give to_dense() of it.")
    if not x.is_floating_point():
        raise UserError(f"Images are numbers with a point (float32), got {x.dtype}: x / 255 of bytes is in [0, 1].")
    if x.ndim != 4 or x.shape[1] != 3 or not len(x):
        raise UserError(f"Images must be [B, 3, H, W], at least one, got {[*x.shape]}.")
    for name, value in (("images", x), ("targets", y)):
        if value.device != device:
            raise UserError(f"The {name} are on {value.device}, and the student on {device}: move them there.")
    if not classes:
        return
    hard = y.ndim == 1 and y.dtype in WHOLE
    soft = y.ndim == 2 and y.is_floating_point() and y.shape[1] == classes
    if not (hard or soft) or len(y) != len(x):
        raise UserError(
            f"Targets of {len(x)} images are {len(x)} class indices (int64), or soft ones [{len(x)}, {classes}] with a "
            f"point, got {y.dtype} of shape {[*y.shape]}."
        )
    if hard and y.device.type == "cpu" and not 0 <= int(y.min()) <= int(y.max()) < classes:
        odd = int(y.min()) if y.min() < 0 else int(y.max())
        raise UserError(f"There is a label {odd}, and the student's classes are 0 to {classes - 1}.")


def shown(value: Any) -> str:
    """A value in some words."""
    try:
        text = repr(value)
    except Exception:  # of somebody else's class, or nested too deeply
        text = ""
    return f"{text[:60]} ({type(value).__name__})"
