"""A mask of an image on other grids, and the tokens that it leaves.

A mask lies on a coarse grid of g x g square cells, True where an image is seen; it reaches finer grids by repetition.
It may lie in the memory of the host while the images are on a GPU: what must be read of it (how many cells it shows,
and which) is then worked out there and sent after the images, so that nobody waits for the GPU.
Shapes: B batch, D width, H W grid, N = H * W patch tokens, P prefix tokens, n visible patches, M = P + n.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hkd.errors import UserError


def mask_at(visible: Bool[Tensor, "B 1 g g"], size: tuple[int, int]) -> Bool[Tensor, "B 1 H W"]:
    """The mask of a map of this size, by repetition of its cells.

    Raises:
        UserError: H or W is not a multiple of g.
    """
    g = visible.shape[-1]
    if size[0] % g or size[1] % g:
        raise UserError(
            f"A mask of {g}x{g} cells does not fit a {size[0]}x{size[1]} map; both sides must divide by it."
        )
    return visible.repeat_interleave(size[0] // g, 2).repeat_interleave(size[1] // g, 3)


def visible_tokens(visible: Bool[Tensor, "B 1 g g"], grid: tuple[int, int]) -> Bool[Tensor, "B N"]:
    """The mask of a model's patches, row by row.

    Raises:
        UserError: as `mask_at`; an image without a visible patch, or images with different numbers of them.
    """
    shown = mask_at(visible, grid).flatten(1)
    fewest, most = torch.stack(shown.sum(1).aminmax()).tolist()
    if fewest == 0:
        raise UserError("The mask hides every patch of an image; leave at least one visible in each.")
    if fewest != most:
        raise UserError(
            f"The mask shows {fewest} patches of one image and {most} of another; show equally many of all, so that "
            f"they make one batch."
        )
    return shown


def with_prefix(visible: Bool[Tensor, "B N"], prefix: int) -> Int[Tensor, "B M"]:
    """Places, among all tokens, of the prefix tokens and of the visible patches, equally many in each image."""
    patches = visible.nonzero()[:, 1].view(len(visible), -1) + prefix
    return torch.cat([torch.arange(prefix, device=visible.device).expand(len(visible), -1), patches], dim=1)


def gather_tokens(tokens: Float[Tensor, "B M D"], places: Int[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
    """The tokens at some places of each image."""
    return tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
