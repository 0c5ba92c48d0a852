r"""A U-Net decoder on the stage maps of a sparsely computed CNN: from the coarsest map up, each scale's map added.

Source: arXiv:2309.09571 after SparK (arXiv:2301.03580), whose decoder this follows in its layers and their initial
values. Decided here: convolutions that a batch norm follows have no bias; stages that share a scale (a net whose last
stages are not strided) are represented by the deepest of them.

With S_k the stage map of side h 2^k, where h is the side of the coarsest map, and W the decoder's width:

.. math:: x_0 = Densify_0(S_0), \quad x_{k+1} = Block_k(x_k) + Densify_{k+1}(S_{k+1})

where x_k has W / 2^k channels, and scales without a stage map add nothing.
Shapes: B batch, C channels of a stage, D channels of a decoder scale, H W grid, g grid of the mask.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from hkd.devices import sent
from hkd.errors import Refused
from hkd.methods.parts.initialisers import SPREAD, as_spark
from hkd.models.sparse.maps import repeated, shown_by
from hkd.models.sparse.modules import sparse_batch_norm
from hkd.models.taps import TapInfo, Taps


class Densify(nn.Module):
    """A sparse map made dense: sparse batch norm, a learned token at inactive positions, and a projection.

    Args:
        width_in: C.
        width_out: D.
        kernel: of the projection, 1 or 3. One of kernel 1 between equal widths is left out.
        masked: False for maps of which all positions are computed: an ordinary norm, and no token.
    """

    def __init__(self, width_in: int, width_out: int, kernel: int, *, masked: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width_in)
        self.mask_token = None
        if masked:
            token = torch.empty(1, width_in, 1, 1)  # cut at one SPREAD, it has a standard deviation of .0108
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(token, std=SPREAD, a=-SPREAD, b=SPREAD))
        plain = kernel == 1 and width_in == width_out
        # As torch initialises it, which SparK leaves as it is.
        self.projection = nn.Identity() if plain else nn.Conv2d(width_in, width_out, kernel, padding=kernel // 2)

    def forward(self, map_: Float[Tensor, "B C H W"], visible: Bool[Tensor, "B 1 g g"] | None) -> Tensor:
        """The dense map [B, D, H, W].

        Args:
            map_: of a stage.
            visible: which cells of the images were seen; not read where all positions are computed.
        """
        if self.mask_token is None:
            return self.projection(self.norm(map_))
        assert visible is not None, "a sparse map comes with its mask"
        level = repeated(sent(visible, map_.device), (map_.shape[2], map_.shape[3]), shown_by(visible))
        normed = sparse_batch_norm(map_, level.mask, self.norm, level.count)
        return self.projection(torch.where(level.mask, normed, self.mask_token.to(normed.dtype)))


def block(width: int) -> nn.Sequential:
    """Twice the side and half the width: [B, D, H, W] to [B, D / 2, 2 H, 2 W]."""
    return nn.Sequential(
        nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
        nn.Conv2d(width, width // 2, 3, padding=1, bias=False),
        nn.BatchNorm2d(width // 2),
    )


def stage_shapes(student: TapInfo) -> dict[int, tuple[int, int, int]]:
    """(D, H, W) of the maps that a decoder takes (`stage_maps`)."""
    return {**student.stages, 4: student.final}


def stage_maps(taps: Taps) -> dict[int, Tensor]:
    """Maps by stage, the last after the model's final norm where it has one: or that norm would not be trained."""
    return {**taps.stages, 4: taps.final}


def scales(shapes: Mapping[int, tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
    """Side in positions -> (stage, C) of the deepest stage of that side, the coarsest first.

    Args:
        shapes: (C, H, W) by stage.

    Raises:
        Refused: maps that are not square, or whose sides are not the deepest's times powers of two.
    """
    found = {}
    for stage, (width, height, breadth) in sorted(shapes.items()):
        if height != breadth or height < 1:
            raise Refused(f"A U-Net decoder needs square maps, and the student's stage {stage} is {height}x{breadth}.")
        found[height] = stage, width
    deepest = shapes[max(shapes)][1]
    for side, (stage, _) in found.items():
        if side % deepest or not _is_power_of_two(side // deepest):
            raise Refused(
                f"A U-Net decoder doubles the side of its maps, so all must be the deepest one's times a power of two, "
                f"and the student's stage {stage} has {side}, its last {deepest}: take a student with strides of 2."
            )
    return dict(sorted(found.items()))


def _is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


class UNetDecoder(nn.Module):
    """Blocks from the coarsest stage map to a finer grid; see the equation above.

    Attributes:
        sides: of the grid after each block, the last being the target.
        widths: channels after each block.
        stages: numbers of the stages that are read.

    Args:
        shapes: (C, H, W) of the student's stages by number.
        width: W, the channels before the first block.
        target: side of the grid where the decoder ends.
        masked: whether stage maps come with a mask (see `Densify`).

    Raises:
        Refused: stage maps that do not fit (see `scales`), a target that no number of doublings reaches, or a width
            that cannot be halved in every block.
    """

    def __init__(
        self, shapes: Mapping[int, tuple[int, int, int]], width: int, target: int, *, masked: bool = True
    ) -> None:
        super().__init__()
        found = scales(shapes)
        deepest = min(found)
        if target <= deepest or target % deepest or not _is_power_of_two(target // deepest):
            raise Refused(
                f"A U-Net decoder that starts at {deepest}x{deepest} and doubles cannot end at {target}x{target}."
            )
        count = (target // deepest).bit_length() - 1
        if width < 1 or width % 2**count:
            raise Refused(
                f"A U-Net decoder of {count} blocks halves its width as often, which {width} does not allow: take a "
                f"width that is divisible by {2**count}."
            )
        self.sides = [deepest * 2**index for index in range(1, count + 1)]
        self.widths = [width // 2**index for index in range(1, count + 1)]
        self.stages: dict[int, int] = {side: stage for side, (stage, _) in found.items() if side <= target}
        self.densify = nn.ModuleDict()
        for side, stage in self.stages.items():
            scale = (side // deepest).bit_length() - 1
            self.densify[str(stage)] = Densify(shapes[stage][0], width // 2**scale, 3 if scale else 1, masked=masked)
        self.blocks = nn.ModuleList(block(width // 2**index) for index in range(count))
        self.blocks.apply(as_spark)

    def forward(self, maps: Mapping[int, Tensor], visible: Bool[Tensor, "B 1 g g"] | None) -> list[Tensor]:
        """The maps x_1, x_2, ... [B, width, side, side] after each block; the last is the decoder's result.

        Args:
            maps: the student's stage maps [B, C, H, W] by stage number.
            visible: which cells of the images were seen, where the maps are sparse.
        """
        dense = {side: self.densify[str(stage)](maps[stage], visible) for side, stage in self.stages.items()}
        x, found = dense[min(dense)], []
        for side, up in zip(self.sides, self.blocks, strict=True):
            x = up(x)
            if side in dense:
                x = x + dense[side]
            found.append(x)
        return found
