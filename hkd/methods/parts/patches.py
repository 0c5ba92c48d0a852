"""Pictures as patches, and the loss that paints hidden ones: what methods of masked image modelling share.

Shapes: B batch, g patches a side, N = g * g, p patch side in px, S = g * p image side, V = 3 * p * p.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hkd.errors import Refused
from hkd.models.normalise import resized
from hkd.models.taps import TapInfo

EPS = 1e-6  # added to the variance of a patch


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
        V values per patch in the order (row, column, channel), as MAE's predictor has them.
    """
    x = resized(x, grid * size)
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


def patch_statistics(patches: Float[Tensor, "B N V"]) -> tuple[Float[Tensor, "B N 1"], Float[Tensor, "B N 1"]]:
    """Mean and deviation of each patch: the root of its variance (with V - 1 in the denominator, as MAE's official code
    has it) plus 1e-6."""
    variance, mean = torch.var_mean(patches, dim=2, keepdim=True)
    return mean, (variance + EPS).sqrt()


def mae_loss(
    predicted: Float[Tensor, "B N V"],
    patches: Float[Tensor, "B N V"],
    visible: Bool[Tensor, "B 1 g g"],
    *,
    norm_pix: bool,
) -> Float[Tensor, ""]:
    """Mean squared error of the hidden patches.

    Args:
        predicted: prediction for every patch; visible ones are not looked at.
        patches: pixels in [0, 1].
        visible: mask of the patches.
        norm_pix: compare with pixels normalised per patch.

    Returns:
        Scalar, averaged over values and over the hidden patches of the batch.
    """
    if norm_pix:
        mean, std = patch_statistics(patches)
        patches = (patches - mean) / std
    distance = (predicted - patches).square().mean(dim=2)
    hidden = ~visible.flatten(1)
    return (distance * hidden).sum() / hidden.sum()


def painted(
    predicted: Float[Tensor, "B N V"],
    patches: Float[Tensor, "B N V"],
    visible: Bool[Tensor, "B 1 g g"],
    *,
    norm_pix: bool,
) -> Float[Tensor, "B 3 S S"]:
    """Images in [0, 1] whose hidden patches are predicted; arguments as `mae_loss`.

    A prediction of normalised pixels is brought back by the true mean and deviation of each patch, as MAE's own
    demonstration does: brightness and contrast of a hidden patch are then not the model's merit.
    """
    if norm_pix:
        mean, std = patch_statistics(patches)
        predicted = predicted * std + mean
    shown = torch.where(visible.flatten(1)[:, :, None], patches, predicted.clamp(0, 1))
    grid = visible.shape[-1]
    return unpatchify(shown, grid, round((patches.shape[2] // 3) ** 0.5))
