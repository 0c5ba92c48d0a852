"""Active positions as rows: the backends `rows` and `spconv`.

Activations are tensors [n, C, 1, 1] of active positions only, so that norms, activations, additions and 1x1
convolutions are ordinary layers on fewer rows. Which map size a tensor belongs to is told by its n: levels that divide
into mask cells all differ in it, and a level of the same n as another size is refused. Convolutions that mix positions
run with spconv's gather-GEMM-scatter kernels over pairs of our own, restricted to the active outputs (spconv's strided
convolution would activate every position that an active input reaches). What spconv has no kernel for (groups, pooling)
and, in backend `rows`, every such layer scatters its input to a map, runs densely, and gathers the active outputs.

Shapes: n rows (active positions of the whole batch at one map size), K kernel positions, C channels.
"""

import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models.sparse.maps import Active, Dense, Level, pair


@dataclass(frozen=True)
class Kernels:
    """spconv's convolution functions with their gradients, and the algorithm (gather-GEMM-scatter) that takes pairs."""

    convolution: Callable[..., Tensor]
    submanifold: Callable[..., Tensor]
    native: Any


@cache
def spconv_kernels() -> Kernels:
    """spconv, imported on first use.

    Raises:
        UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its dependencies use what Python deprecates
            from spconv.core import ConvAlgo
            from spconv.pytorch import functional, ops
    except ImportError as error:
        raise UserError(
            "The backend 'spconv' needs the package spconv, which exists for Linux on x86-64 only and could not be "
            f"imported here ({sys.platform}, {platform.machine()}: {error}); the backends 'masked' and 'rows' give the "
            "same numbers without it."
        ) from error
    if not torch.cuda.is_available():
        # Its backward pass asks CUDA for a stream even for tensors on the CPU, which do not use it.
        ops.get_current_stream = _no_stream
    return Kernels(functional.indice_conv, functional.indice_subm_conv, ConvAlgo.Native)


def _no_stream() -> int:
    return 0


@dataclass(frozen=True)
class Pairs:
    """Which input rows reach which output rows through each kernel position.

    pairs: [2, K, most] (inputs, outputs), filled up with -1. counts: [K] valid ones. submanifold: both sides are the
    same level and the middle of the kernel maps every row to itself.
    """

    pairs: Int[Tensor, "2 K most"]
    counts: Int[Tensor, " K"]
    submanifold: bool


def kernel_pairs(
    before: Level,
    after: Level,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Pairs:
    """Pairs of a convolution restricted to the active outputs; inactive inputs are zero and have no pair."""
    # Padding at the far side so that every kernel position has a slice as large as the output.
    far = [
        max((after.size[axis] - 1) * stride[axis] + dilation[axis] * (kernel[axis] - 1) + 1 - padding[axis] - side, 0)
        for axis, side in enumerate(before.size)
    ]
    rows = F.pad(before.rows_at, (padding[1], far[1], padding[0], far[0]), value=-1)
    active = after.mask[:, 0]
    sides: list[tuple[Tensor, Tensor]] = []
    for ky in range(kernel[0]):
        for kx in range(kernel[1]):
            top, left = ky * dilation[0], kx * dilation[1]
            bottom, right = top + (after.size[0] - 1) * stride[0] + 1, left + (after.size[1] - 1) * stride[1] + 1
            reached = rows[:, top : bottom : stride[0], left : right : stride[1]][active]
            out = (reached >= 0).nonzero().squeeze(1)
            sides.append((reached[out], out))
    most = max(len(out) for _, out in sides)
    pairs = torch.full((2, len(sides), max(most, 1)), -1, dtype=torch.int32, device=active.device)
    for k, (inputs, outputs) in enumerate(sides):
        pairs[0, k, : len(inputs)] = inputs.int()
        pairs[1, k, : len(outputs)] = outputs.int()
    counts = torch.tensor([len(out) for _, out in sides], dtype=torch.int32, device=active.device)
    centred = all(
        size % 2 == 1 and step == 1 and pad == spread * (size // 2)
        for size, step, pad, spread in zip(kernel, stride, padding, dilation, strict=True)
    )
    return Pairs(pairs, counts, before is after and centred)


class Rows(Active):
    """One masked forward pass on rows of active positions."""

    def __init__(
        self, visible: Tensor, size: tuple[int, int], device: torch.device | None = None, *, spconv: bool
    ) -> None:
        """spconv: whether convolutions use its kernels. Raises UserError as `active_in` says."""
        self.kernels = spconv_kernels() if spconv else None
        self.by_count: dict[int, Level] = {}
        self.pairs: dict[tuple[Any, ...], Pairs] = {}
        super().__init__(visible, size, device)

    def add(self, level: Level) -> Level:
        """Keep a map size.

        Raises:
            UserError: another size has as many active positions, so that rows would not tell them apart.
        """
        twin = self.by_count.setdefault(len(level.index), level)
        if twin.size != level.size:
            raise UserError(
                f"Maps of {twin.size[0]}x{twin.size[1]} and {level.size[0]}x{level.size[1]} both have "
                f"{len(level.index)} active positions, which rows cannot tell apart; take the backend 'masked' or an "
                "image size whose maps divide into the mask's cells."
            )
        return super().add(level)

    def enter(self, x: Tensor) -> Tensor:
        return self.levels[self.image].gather(x)

    def leave(self, x: Tensor) -> Tensor:
        return self.by_count[len(x)].scatter(x)

    def window(self, layer: Any, dense: Dense, x: Tensor) -> Tensor:
        level = self.by_count[len(x)]
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str):
            if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and pair(layer.padding) == (0, 0):
                # A linear layer is several times faster than a convolution of n maps of one position.
                return F.linear(x.flatten(1), layer.weight.flatten(1), layer.bias)[:, :, None, None]
            if self.kernels is not None and not layer.same_padding:
                return self._convolve(self.kernels, layer, level, x)
        y = dense(level.scatter(x))
        return self.level_behind(layer, level.size, (y.shape[2], y.shape[3])).gather(y)

    def _convolve(self, kernels: Kernels, layer: nn.Conv2d, level: Level, x: Tensor) -> Tensor:
        """A convolution by spconv, in float32 for narrower types (it has no bfloat16 kernels)."""
        geometry = [pair(value) for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
        height, width = (
            (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, padding, dilation in zip(level.size, *geometry, strict=True)
        )
        after = self.level_behind(layer, level.size, (height, width))
        key = (level.size, after.size, *geometry)
        if key not in self.pairs:
            self.pairs[key] = kernel_pairs(level, after, *geometry)
        found = self.pairs[key]
        function = kernels.submanifold if found.submanifold else kernels.convolution
        computed = torch.promote_types(x.dtype, torch.float32)
        wanted = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        with torch.autocast(x.device.type, enabled=False):
            weight = layer.weight.permute(0, 2, 3, 1).to(computed).contiguous()
            y = function(x.flatten(1).to(computed), weight, found.pairs, found.counts, len(after.index), kernels.native)
            if layer.bias is not None:
                y = y + layer.bias
        return y.to(wanted)[:, :, None, None]

    def batch_norm(self, dense: Dense, x: Tensor) -> Tensor:
        return dense(x)

    def pointwise(self, layer: Any, dense: Dense, x: Tensor, *, channels: int) -> Tensor:
        return dense(x)

    def drop_path(self, dense: Dense, x: Tensor) -> Tensor:
        factors = dense(x.new_ones(len(self.visible), 1, 1, 1))
        return x * factors.index_select(0, self.by_count[len(x)].images)
