"""Stage projectors: each tapped stage of a student as one vector, whatever the student's architecture.

Shared by OFA and HCD. Source: the projectors of the OFA-KD repository, which HCD is taken to follow: separable
stride-2 convolutions for maps, patch merging and transformer blocks for tokens. Deviations in form, not in value: at
stage 4 of a map the spatial mean is taken before the 1x1 convolution, with which it commutes. Decided here: the grid
that patches are merged to on small images (see `merges`), zero padding of odd grids, and attention heads that fall
back to the nearest divisor of the width.
Shapes: B batch, S stages, D width, E output width, H W grid, P prefix tokens, N = H * W.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hkd.errors import Refused, UserError
from hkd.methods.parts.initialisers import as_ofa
from hkd.models.taps import TapInfo, Taps, to_tokens
from hkd.registry import lookup

HEADS = 4  # of the transformer blocks
MERGED = 7  # side of the merged grid at 224 px


def is_isotropic(student: TapInfo) -> bool:
    """Whether all stages share one grid: a plain transformer or an MLP, whose maps are tokens."""
    return student.stages[1][1:] == student.stages[4][1:]


def stage_shape(student: TapInfo, stage: int) -> tuple[int, int, int]:
    """(D, H, W) of what a projector takes for a stage.

    At stage 4 of a model that ends in a widening convolution (MobileNet-V2) it is that convolution's output, `final`.
    """
    widened = stage == 4 and student.final[0] != student.stages[4][0]
    return student.final if widened else student.stages[stage]


class StageProjectors(nn.Module):
    """One projector per stage; all end in vectors of the same width.

    Attributes:
        width: E, the width of the vectors: max(student's, teacher's pooled width) for maps, the student's for tokens.

    Args:
        student: shapes of the student's taps.
        stages: stage numbers among 1, 2, 3, 4, each once.
        width_t: width of the teacher's pooled feature.
        kind: `cnn`: the stages are maps. `tokens`: they are tokens (ViT, MLP and, as OFA has it, Swin). `auto`: tokens
            if all stages share one grid, else maps. A Swin cannot be told from a CNN by its taps: name `tokens` there.

    Raises:
        Refused: a stage without positions, or tokens whose width does not fit.
        UserError: an unknown kind.
    """

    def __init__(
        self,
        student: TapInfo,
        stages: Sequence[int],
        width_t: int,
        kind: Literal["auto", "cnn", "tokens"] = "auto",
    ) -> None:
        super().__init__()
        lookup("projector", kind, dict.fromkeys(("auto", "cnn", "tokens")))
        tokens = is_isotropic(student) if kind == "auto" else kind == "tokens"
        self.width = student.pooled if tokens else max(student.pooled, width_t)
        self.widened = student.final[0] != student.stages[4][0]
        self.projectors = nn.ModuleDict()
        for stage in stages:
            shape = stage_shape(student, stage)
            if min(shape[1:]) < 1:
                raise Refused(
                    f"The student's map of stage {stage} is {shape[1]}x{shape[2]} and has nothing to project: take "
                    f"larger images, or leave {stage} out of stages."
                )
            self.projectors[str(stage)] = (
                TokenProjector(student, stage) if tokens else MapProjector(shape, stage, self.width)
            )
        self.apply(as_ofa)

    def forward(self, taps: Taps) -> list[Float[Tensor, "B E"]]:
        """One vector per stage, in the order of `stages`."""
        return [
            projector(
                taps.final if stage == "4" and self.widened else taps.stages[int(stage)], taps.prefix.get(int(stage))
            )
            for stage, projector in self.projectors.items()
        ]


class MapProjector(nn.Module):
    """Maps to vectors: 4 - stage separable blocks of stride 2 and doubling width, the last of the output's width, then
    the spatial mean; at stage 4 a 1x1 convolution with bias.

    Args:
        shape: (D, H, W) of the maps.
        stage: 1, 2, 3 or 4.
        out_width: E.
    """

    def __init__(self, shape: tuple[int, int, int], stage: int, out_width: int) -> None:
        super().__init__()
        width, *grid = shape
        self.pool_first = stage == 4
        # A grid of s positions a side has ceil(s / 2) after a block, so ceil(s / 2**blocks) in the end, never none.
        self.single = stage < 4 and max(grid) <= 2 ** (4 - stage)
        blocks: list[nn.Module] = [nn.Conv2d(width, out_width, 1)] if stage == 4 else []
        for remaining in range(3 - stage, -1, -1):
            blocks.append(separable_block(width, 2 * width if remaining else out_width))
            width *= 2
        self.blocks = nn.Sequential(*blocks)

    def forward(
        self, map_s: Float[Tensor, "B D H W"], prefix: Float[Tensor, "B P D"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Vectors; prefix tokens are left aside.

        Raises:
            UserError: training on one image whose map ends as one position, over which no batch norm has a variance.
        """
        if self.single and self.training and len(map_s) == 1:
            raise UserError(
                "A training batch of one image leaves the batch norm of a stage projector a single value per channel: "
                "use batches of at least two."
            )
        pooled = map_s.mean(dim=(2, 3), keepdim=True) if self.pool_first else map_s
        return self.blocks(pooled).mean(dim=(2, 3))


def separable_block(in_width: int, out_width: int) -> nn.Sequential:
    """Two depthwise-separable 3x3 convolutions, the first of stride 2, each with batch norm and ReLU; no biases."""
    layers: list[nn.Module] = []
    for stride, width in ((2, in_width), (1, out_width)):
        layers += [
            nn.Conv2d(in_width, in_width, 3, stride, 1, groups=in_width, bias=False),
            nn.Conv2d(in_width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def merges(student: TapInfo, stage: int) -> int:
    """How many 2x2 merges a stage's tokens take.

    As many as end at a grid not below 7x7 (from 14x14 or 56x56), OFA's at 224 px, whose last grids are 7x7 (Swin) and
    14x14. Where the student's last grid is another one under 14, the end is half of it, at least 2x2.
    """
    last = min(stage_shape(student, 4)[1:])
    target = MERGED if last == MERGED or last >= 2 * MERGED else max(last // 2, 2)
    side, count = min(stage_shape(student, stage)[1:]), 0
    while side >= 2 * target:
        side, count = (side + 1) // 2, count + 1
    return count


class PatchMerging(nn.Module):
    """Each 2x2 square of patches as one, by layer norm, a linear map without bias and GELU (unless `act` is off)."""

    def __init__(self, in_width: int, out_width: int, *, act: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_width)
        self.reduction = nn.Linear(4 * in_width, out_width, bias=False)
        self.act = nn.GELU() if act else nn.Identity()

    def forward(self, patches: Float[Tensor, "B H W D"]) -> Float[Tensor, "B h w E"]:
        """Concatenates the squares' patches in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1)."""
        if patches.shape[1] % 2 or patches.shape[2] % 2:
            patches = F.pad(patches, (0, 0, 0, patches.shape[2] % 2, 0, patches.shape[1] % 2))
        squares = [patches[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.act(self.reduction(self.norm(torch.cat(squares, dim=3))))


class TokenProjector(nn.Module):
    """Tokens to vectors: patch merging, max(4 - stage, 1) transformer blocks without dropout or qkv bias, then the
    class token (the first prefix token) or, without one, the mean of the patches.

    Prefix tokens pass by the merging and take part in the blocks. The width is that of the student's pooled feature.

    Raises:
        Refused: tokens that are neither merged nor as wide as the pooled feature, or prefix tokens that are not.
    """

    def __init__(self, student: TapInfo, stage: int) -> None:
        super().__init__()
        in_width, out_width, count = stage_shape(student, stage)[0], student.pooled, merges(student, stage)
        if in_width != out_width and (not count or student.prefix):
            raise Refused(
                f"The student's tokens of stage {stage} are {in_width} wide and its pooled feature {out_width}, which "
                f"transformer blocks cannot bridge: set projector to cnn."
            )
        # One merge ends in GELU; of several all but the last do.
        self.merging = nn.Sequential(
            *(
                PatchMerging(in_width if index == 0 else out_width, out_width, act=count == 1 or index < count - 1)
                for index in range(count)
            )
        )
        heads = min((h for h in range(1, out_width + 1) if out_width % h == 0), key=lambda h: (abs(h - HEADS), h))
        self.blocks = nn.Sequential(*(Block(out_width, heads) for _ in range(max(4 - stage, 1))))

    def forward(
        self, map_s: Float[Tensor, "B D H W"], prefix: Float[Tensor, "B P D"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Vectors."""
        patches = to_tokens(self.merging(map_s.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        if prefix is None or prefix.shape[1] == 0:
            return self.blocks(patches).mean(dim=1)
        return self.blocks(torch.cat([prefix, patches], dim=1))[:, 0]
