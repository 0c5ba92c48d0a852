"""Vision classifiers of Hugging Face `transformers`, as modules from images to logits whose taps are found.

    model = AutoModelForImageClassification.from_pretrained(NAME)
    distiller = hkd.Distiller(student, hkd.from_transformers(model), "fitnet", image_size=224)

`transformers` itself is not imported: a model is whatever is called and answers as theirs are.
Shapes: B batch, C classes, D width, H W grid, N tokens.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models.hooks import evaluation_mode
from hkd.models.named_taps import STAGES


class FromTransformers(nn.Module):
    """Images [B, 3, H, W] to logits [B, C]; hidden states pass by `hidden.0`, `hidden.1`, ..., where they are tapped.

    Attributes:
        model: as it was given; its `state_dict` is what is exported.
        taps: as `hkd.Distiller` takes them.
    """

    def __init__(self, model: nn.Module, count: int, taps: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.taps = model, taps
        self.hidden = nn.ModuleList(nn.Identity() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits, states = answer(self.model, x)
        for place, state in zip(self.hidden, states, strict=True):
            place(state)
        return logits


def from_transformers(model: nn.Module, image_size: int | None = None) -> FromTransformers:
    """An image classifier of `transformers` for `hkd.Distiller`.

    Stages are its last four hidden states, or the ends of the four quarters of its depth where all have one size; the
    pooled feature is the mean of the last.

    Args:
        model: a `...ForImageClassification`.
        image_size: side in px of its images; None: as its configuration says.

    Raises:
        UserError: a model that gives no logits or no hidden states, or whose tokens are no square grid.
    """
    config = getattr(model, "config", None)
    side = image_size or getattr(config, "image_size", None) or 224
    side = side if isinstance(side, int) else side[0]
    first = next(model.parameters(), torch.zeros(0))
    with torch.no_grad(), evaluation_mode(model):
        _, states = answer(model, torch.zeros(1, 3, side, side).to(first))
    last = len(states) - 1
    if len({state.shape for state in states[1:]}) == 1:  # the first is before all blocks
        stages = {stage: max(1, last * stage // 4) for stage in STAGES}
    else:
        stages = {stage: max(0, last - 4 + stage) for stage in STAGES}
    taps: dict[str, Any] = {"stages": {stage: f"hidden.{place}" for stage, place in stages.items()}}
    tokens = states[-1]
    if tokens.ndim == 3:
        patch = getattr(config, "patch_size", None)
        grid = side // patch if isinstance(patch, int) else math.isqrt(tokens.shape[1])
        if not 0 < grid**2 <= tokens.shape[1]:
            raise UserError(
                f"{type(model).__name__} gives {tokens.shape[1]} tokens for images of {side} px, which are no square "
                f"grid: say from_transformers(model, image_size=...)."
            )
        taps["prefix"] = tokens.shape[1] - grid**2
    return FromTransformers(model, len(states), taps)


def answer(model: nn.Module, x: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """Logits [B, C] and hidden states, maps [B, D, H, W] where the model has them, else tokens [B, N, D].

    Raises:
        UserError: the model does not answer as a classifier of `transformers` does.
    """
    try:
        given = model(pixel_values=x, output_hidden_states=True, return_dict=True)
    except TypeError as error:
        raise UserError(
            f"{type(model).__name__} is no image classifier of transformers: it does not take pixel_values and "
            f"output_hidden_states."
        ) from error
    logits = getattr(given, "logits", None)
    states = getattr(given, "reshaped_hidden_states", None) or getattr(given, "hidden_states", None)
    if not isinstance(logits, Tensor) or not states:
        what = "hidden states" if isinstance(logits, Tensor) else "logits"
        raise UserError(f"{type(model).__name__} gives no {what}: take a ...ForImageClassification of transformers.")
    return logits, states
