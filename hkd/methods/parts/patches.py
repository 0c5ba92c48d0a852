"""Pictures as patches, and masks of patches: what methods of masked image modelling share.

Shapes: B batch, g patches a side, N = g * g, p patch side in px, S = g * p image side.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hkd.errors import Refused
from hkd.models.taps import TapInfo
from hkd.spec import ModelCard

MASKED = ("beit", "mim_vit")  # families whose forward takes a mask


def masked_student(method: str, card: ModelCard, image_size: int) -> str | None:
    """Why a method of masked image modelling cannot train this student, as one sentence, or None.

    Args:
        method: its name.
        card: the student.
        image_size: side in px that the method was told; taps do not tell it.
    """
    if card.family not in MASKED:
        return (
            f"Method '{method}' hides patches from its student, so that must be of the family 'mim_vit' or 'beit', not "
            f"'{card.family}'."
        )
    if card.image_size != image_size:
        return (
            f"Method '{method}' was told of images of {image_size} px, and the student {card.name} sees "
            f"{card.image_size} px: set image_size to that."
        )
    return None


def square_patches(method: str, student: TapInfo, image_size: int) -> tuple[int, int]:
    """Patches a side of a student's last map, and the side of a patch in px.

    Raises:
        Refused: the grid is not square, or its patches are not whole pixels.
    """
    _, height, width = student.final
    if height != width:
        raise Refused(f"Method '{method}' needs a square grid of patches, and the student's is {height}x{width}.")
    if image_size % height:
        raise Refused(
            f"Images of {image_size} px are no whole number of pixels for each of the student's {height}x{height} "
            f"patches: set the image_size of method '{method}' to the student's."
        )
    return height, image_size // height


def patchify(x: Float[Tensor, "B 3 Hi Wi"], grid: int, size: int) -> Float[Tensor, "B N V"]:
    """Images as patches, row by row, after bilinear resizing to `grid * size` squared where they differ.

    Args:
        x: RGB in [0, 1]; resized as the tap model does.
        grid: g.
        size: p.

    Returns:
        V = 3 * p * p values per patch in the order (row, column, channel), as MAE's predictor has them.
    """
    side = grid * size
    if x.shape[-2:] != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    return x.unflatten(3, (grid, size)).unflatten(2, (grid, size)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Float[Tensor, "B N V"], grid: int, size: int) -> Float[Tensor, "B 3 S S"]:
    """The images whose patches these are: the inverse of `patchify`."""
    return (
        patches.unflatten(2, (size, size, 3))
        .unflatten(1, (grid, grid))
        .permute(0, 5, 1, 3, 2, 4)
        .flatten(4)
        .flatten(2, 3)
    )


def random_visible(count: int, grid: int, shown: int, device: torch.device) -> Bool[Tensor, "B 1 g g"]:
    """Uniform masks with exactly `shown` visible patches in each of `count` images."""
    places = torch.rand(count, grid * grid, device=device).argsort(dim=1)[:, :shown]
    visible = torch.zeros(count, grid * grid, dtype=torch.bool, device=device)
    return visible.scatter_(1, places, True).view(count, 1, grid, grid)


def patch_tokens(final: Float[Tensor, "B D g g"]) -> Float[Tensor, "B N D"]:
    """A map as tokens, row by row."""
    return final.flatten(2).transpose(1, 2)


def split_patches(method: str, grid: int, hidden: int) -> int:
    """How many patches stay visible if `hidden` of g * g do not.

    Raises:
        Refused: none would be hidden, or none visible.
    """
    if not 0 < hidden < grid * grid:
        raise Refused(
            f"Method '{method}' would hide {hidden} of {grid}x{grid} patches: set mask_ratio so that some are hidden "
            f"and some visible."
        )
    return grid * grid - hidden
