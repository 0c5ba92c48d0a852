"""Masks of methods that show the student part of an image: how many cells they show, and how they are drawn.

A mask lies on a coarse grid of g x g square cells (the patches of a transformer); it reaches any finer grid by
repetition (`hkd.models.masks`). Shapes: B batch, D width, H W grid, g side of the mask.
"""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hkd.data.batch import Batch
from hkd.devices import sent
from hkd.errors import Refused
from hkd.models.families.base import accepts
from hkd.models.taps import TapInfo
from hkd.options import Few, Size, options
from hkd.spec import ModelCard

HOST = torch.device("cpu")  # where masks are drawn, so that what they show is known without waiting for a GPU

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


def visible_cells(method: str, grid: int, ratio: float, *, whole: bool = False) -> int:
    """How many of grid x grid cells stay visible when the share `ratio` of them is hidden: round(g^2 (1 - r)).

    Args:
        method: its name, for the sentence.
        grid: g.
        ratio: share of hidden cells.
        whole: none may be hidden.

    Raises:
        Refused: as `some_visible`.
    """
    return some_visible(method, grid, round(grid * grid * (1 - ratio)), whole=whole)


def some_visible(method: str, grid: int, count: int, *, whole: bool = False) -> int:
    """`count` visible ones of grid x grid cells, if some are hidden (unless `whole`) and some are not.

    Raises:
        Refused: else.
    """
    if 0 < count < grid * grid or (whole and count == grid * grid):
        return count
    raise Refused(
        f"Method '{method}' would hide {'none' if count else 'all'} of the {grid}x{grid} cells of its mask: "
        f"{'raise' if count else 'lower'} mask_ratio, or take a student (or image size) whose last map is larger."
    )


def random_visible(
    count: int, grid: int, shown: int, device: torch.device, per: Literal["image", "batch"] = "image"
) -> Bool[Tensor, "B 1 g g"]:
    """Random masks, True where an image is visible, from torch's global generator.

    Args:
        count: B.
        grid: g.
        shown: visible cells of each mask; all such sets are equally likely.
        device: of the masks.
        per: `image` draws one for each image; `batch` shows the same cells of all.
    """
    masks = count if per == "image" else 1
    places = torch.rand(masks, grid * grid, device=device).argsort(dim=1)[:, :shown]
    visible = torch.zeros(masks, grid * grid, dtype=torch.bool, device=device)
    visible = visible.scatter_(1, places, True).view(masks, 1, grid, grid)
    return visible if per == "image" else visible.repeat(count, 1, 1, 1)


def mask_grid(method: str, student: TapInfo, grid: int | None, ratio: float, *, whole: bool = False) -> int:
    """Side of the mask's grid: that of the student's last map, unless given.

    Args:
        method: its name, for the sentence.
        student: shapes of its taps.
        grid: given side, or None.
        ratio, whole: as `visible_cells`.

    Raises:
        Refused: a last map that is not square or whose side is no multiple of the grid's; also as `visible_cells`.
    """
    _, height, width = student.stages[4]
    if height != width or height < 1:
        raise Refused(f"A mask of square cells needs square maps, and the student's last is {height}x{width}.")
    side = height if grid is None else grid
    if height % side:
        raise Refused(
            f"A mask of {side}x{side} cells does not fit the student's last map of {height}x{height} positions: set "
            f"grid to a divisor of {height}, or take larger images."
        )
    visible_cells(method, side, ratio, whole=whole)
    return side


def mask_batch(batch: Batch, grid: int, ratio: float, options: MaskConfig) -> dict[str, Any]:
    """Draw the masks of a batch into `batch.extra["visible"]`, on the host; arguments of a sparse student's forward.

    Args:
        batch: whose images are masked.
        grid: g.
        ratio: share of hidden cells.
        options: of the method.
    """
    shown = round(grid * grid * (1 - ratio))
    batch.extra["visible"] = visible = random_visible(len(batch.x), grid, shown, HOST, options.mask_per)
    return {"visible": visible, "backend": options.backend if options.conv == "sparse" else "dense"}


def mask_of(batch: Batch) -> Bool[Tensor, "B 1 g g"]:
    """The masks that were drawn for a batch, where its images are."""
    return sent(batch.extra["visible"], batch.x.device)


def places(mask: Bool[Tensor, "B ..."], device: torch.device) -> Int[Tensor, " n"]:
    """Flat places where a mask is True, on a device: worked out where the mask lies."""
    return sent(mask.flatten().nonzero().squeeze(1), device)


def refuse_conv(method: str, config: MaskConfig, student: ModelCard) -> str | None:
    """Why a student that takes a mask cannot be convolved as its method asks, or None."""
    if config.conv == "dense" or accepts(student.family, "sparse"):
        return None
    return (
        f"Method '{method}' with conv=sparse leaves hidden positions out, which a student of the family "
        f"'{student.family}' cannot: set conv to dense."
    )


def active_mean(map_: Float[Tensor, "B D H W"], active: Bool[Tensor, "B 1 H W"] | None) -> Float[Tensor, "B D"]:
    """Mean over the active positions of each map, of which there must be some; over all without a mask."""
    if active is None:
        return map_.mean(dim=(2, 3))
    return torch.where(active, map_, 0).sum(dim=(2, 3)) / active.sum(dim=(2, 3))
