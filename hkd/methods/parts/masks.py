"""Masks of methods that show the student part of an image: how they are drawn, and who can take them.

Shared by H-GKD and its control, the reconstruction of masked pixels. A mask lies on a coarse grid of g x g square
cells; it reaches any finer grid by repetition.
Shapes: B batch, D width, H W grid, g side of the mask.
"""

import inspect
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.parts.patches import random_visible
from hkd.models import FAMILIES
from hkd.models.taps import TapInfo, Taps
from hkd.options import Few, Size, options
from hkd.registry import load
from hkd.spec import ModelCard

Conv = Literal["sparse", "dense"]
Backend = Literal["auto", "masked", "rows", "spconv"]


@options
class MaskConfig:
    """Options of methods that have such a mask.

    grid: cells a side; None: positions a side of the student's last map, which are 32-px cells for a ResNet-50 at any
        size. mask_per: a mask for each image or one for the batch.
    conv, backend: `sparse` computes visible positions only, by masked dense kernels, on rows or by spconv (`auto`: the
        fastest); `dense` shows blackened images to an ordinary network (the ablation), whose maps need no mask tokens.
    width: W, the decoder's channels before the first block.
    """

    grid: Few | None = None
    mask_per: Literal["image", "batch"] = "image"
    conv: Conv = "sparse"
    backend: Backend = "auto"
    width: Size = 768


def visible_cells(grid: int, ratio: float) -> int:
    """How many of grid x grid cells stay visible when the share `ratio` of them is hidden: round(g^2 (1 - r)).

    Raises:
        Refused: none would.
    """
    count = round(grid * grid * (1 - ratio))
    if count < 1:
        raise Refused(
            f"A mask of {grid}x{grid} cells with mask_ratio {ratio} hides all of them: lower mask_ratio, or take a "
            f"student (or image size) whose last map is larger."
        )
    return count


def draw_visible(
    count: int, grid: int, ratio: float, device: torch.device, per: Literal["image", "batch"] = "image"
) -> Bool[Tensor, "B 1 g g"]:
    """Random masks, True where an image is visible, from torch's global generator.

    Args:
        count: B.
        grid: g.
        ratio: share of hidden cells in [0, 1).
        device: of the masks.
        per: `image` draws one for each image; `batch` shows the same cells of all.

    Returns:
        Masks with exactly round(g^2 (1 - r)) visible cells each, all such sets being equally likely.
    """
    visible = random_visible(count if per == "image" else 1, grid, visible_cells(grid, ratio), device)
    return visible if per == "image" else visible.repeat(count, 1, 1, 1)


def mask_grid(student: TapInfo, grid: int | None, ratio: float) -> int:
    """Side of the mask's grid: that of the student's last map, unless told.

    Args:
        student: shapes of its taps.
        grid: told side, or None.
        ratio: share of hidden cells.

    Raises:
        Refused: a last map that is not square or whose side is no multiple of the grid's, or a mask that hides all.
    """
    _, height, width = student.stages[4]
    if height != width or height < 1:
        raise Refused(f"A mask of square cells needs square maps, and the student's last is {height}x{width}.")
    side = height if grid is None else grid
    if height % side:
        raise Refused(
            f"A mask of {side}x{side} cells cannot be told on the student's last map of {height}x{height} positions: "
            f"set grid to a divisor of {height}, or take larger images."
        )
    visible_cells(side, ratio)
    return side


def mask_batch(
    batch: Batch, grid: int, ratio: float, conv: Conv, backend: Backend, per: Literal["image", "batch"] = "image"
) -> dict[str, Any]:
    """Draw the masks of a batch into `batch.extra["visible"]`; arguments of the student's forward.

    Args:
        batch: whose images are masked.
        grid, ratio, per: as `draw_visible`.
        conv: `sparse` computes visible positions only; `dense` blackens hidden pixels and computes everything.
        backend: of the sparse computation.
    """
    visible = draw_visible(len(batch.x), grid, ratio, batch.x.device, per)
    batch.extra["visible"] = visible
    return {"visible": visible, "backend": backend if conv == "sparse" else "dense"}


def takes_mask(model: ModelCard) -> bool:
    """Whether a model's forward can be told which cells are visible."""
    path = FAMILIES.get(model.family)
    return path is not None and "visible" in inspect.signature(load(path).forward).parameters


def refuse_student(method: str, student: ModelCard) -> str | None:
    """Why a student cannot learn from masked images, as one sentence, or None."""
    path = FAMILIES.get(student.family)
    if path is not None and {"visible", "backend"} <= set(inspect.signature(load(path).forward).parameters):
        return None
    sparse = ", ".join(name for name in FAMILIES if name.startswith("sparse_"))
    return (
        f"{method} shows its student part of an image, and a {student.family} student takes no mask: use a family that "
        f"does ({sparse})."
    )


def stage_shapes(student: TapInfo) -> dict[int, tuple[int, int, int]]:
    """(D, H, W) of the maps that a decoder takes (`stage_maps`)."""
    return {**student.stages, 4: student.final}


def stage_maps(taps: Taps) -> dict[int, Tensor]:
    """Maps by stage, the last after the model's final norm where it has one: or that norm would not be trained."""
    return {**taps.stages, 4: taps.final}


def active_mean(map_: Float[Tensor, "B D H W"], active: Bool[Tensor, "B 1 H W"] | None) -> Float[Tensor, "B D"]:
    """Mean over the active positions of each map, of which there must be some; over all without a mask."""
    if active is None:
        return map_.mean(dim=(2, 3))
    return torch.where(active, map_, 0).sum(dim=(2, 3)) / active.sum(dim=(2, 3))
