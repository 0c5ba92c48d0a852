"""The active positions of a masked forward pass: one mask per map size, and how maps and rows of them relate.

A forward pass is masked while `active_in` is open; converted layers (`modules`) ask `current` for it and are
ordinary dense layers when there is none. It is a context variable, so nested passes, threads and several models at
once each see their own. A backward pass needs no context.

Shapes: B batch, C channels, H W a map, g mask cells a side, n active positions of the whole batch at one map size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hkd.devices import sent
from hkd.errors import UserError
from hkd.models.masks import mask_at

Dense = Callable[[Tensor], Tensor]  # a layer's own dense forward


class _Gather(torch.autograd.Function):
    """Rows of a channels-last flat view; the indices are distinct, so the gradient is a plain copy, not a sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, ctx.saved_tensors[0], ctx.shape), None


class _Scatter(torch.autograd.Function):
    """The opposite of `_Gather`: rows to their positions, zeros elsewhere; its output is no view, so that an in-place
    activation behind it costs autograd nothing."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(index)
        out = torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last).zero_()
        # Strided explicitly: with one channel or one position a permuted view may not look contiguous.
        out.as_strided((out.numel() // shape[1], shape[1]), (shape[1], 1)).index_copy_(0, index, rows)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Gather.apply(grad, ctx.saved_tensors[0]), None, None


def gather(x: Float[Tensor, "B C H W"], index: Int[Tensor, " n"]) -> Float[Tensor, "n C"]:
    """Rows of a map at flat positions (b * H + y) * W + x, which must be distinct."""
    return _Gather.apply(x, index)


def scatter(rows: Float[Tensor, "n C"], index: Int[Tensor, " n"], shape: tuple[int, ...]) -> Float[Tensor, "B C H W"]:
    """A map (channels-last in memory) with rows at flat positions and zeros elsewhere."""
    return _Scatter.apply(rows, index, torch.Size(shape))


class Level:
    """The active positions of one map size.

    Attributes:
        mask: [B, 1, H, W].
        size: (H, W).
        count: n, where the host knows it; every image then has active positions.
    """

    def __init__(self, mask: Bool[Tensor, "B 1 H W"], count: int | None = None) -> None:
        self.mask, self.count = mask, count
        self.size = (mask.shape[2], mask.shape[3])
        self._factors: dict[torch.dtype, Tensor] = {}

    @cached_property
    def index(self) -> Int[Tensor, " n"]:
        """Flat positions in row-major order."""
        flat = self.mask.flatten()
        if self.count is not None and flat.device.type in ("cuda", "meta"):  # others lack it, or do not wait
            return flat.nonzero_static(size=self.count).squeeze(1)
        return flat.nonzero().squeeze(1)

    @cached_property
    def images(self) -> Int[Tensor, " n"]:
        """Which image of the batch each row belongs to."""
        return self.index // (self.size[0] * self.size[1])

    @cached_property
    def rows_at(self) -> Int[Tensor, "B H W"]:
        """Row number of each position, -1 where inactive."""
        rows = torch.full((self.mask.numel(),), -1, device=self.mask.device)
        rows[self.index] = torch.arange(len(self.index), device=self.mask.device)
        return rows.view(-1, *self.size)

    def factor(self, x: Tensor) -> Float[Tensor, "B 1 H W"]:
        """The mask as zeros and ones of the type of `x`."""
        if x.dtype not in self._factors:
            self._factors[x.dtype] = self.mask.to(x.dtype)
        return self._factors[x.dtype]

    def gather(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "n C 1 1"]:
        """Active rows of a map."""
        return gather(x, self.index)[:, :, None, None]

    def scatter(self, rows: Float[Tensor, "n C 1 1"]) -> Float[Tensor, "B C H W"]:
        """The map of active rows, zeros elsewhere."""
        return scatter(rows.flatten(1), self.index, (len(self.mask), rows.shape[1], *self.size))


def shown_by(visible: Bool[Tensor, "B 1 g g"]) -> int | None:
    """How many cells a mask shows in all, where that is known without waiting for a device: the mask is the host's."""
    return int(visible.sum()) if visible.device.type == "cpu" else None


def repeated(visible: Bool[Tensor, "B 1 g g"], size: tuple[int, int], shown: int | None) -> Level:
    """The level of a map size (H, W) that divides into the mask's cells, of which `shown` are seen."""
    per_cell = size[0] * size[1] // visible.shape[-1] ** 2
    return Level(mask_at(visible, size), None if shown is None else shown * per_cell)


def pair(value: Any) -> tuple[int, int]:
    """A layer's geometry, which torch keeps as one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class Active:
    """One masked forward pass in which activations stay maps and inactive positions are set to zero: backend `masked`.

    Every layer that mixes positions runs densely and its output is multiplied by the mask of its size; norms and
    linear layers likewise, except that batch norm takes its statistics from the active rows of the whole batch.
    """

    def __init__(self, visible: Tensor, size: tuple[int, int], device: torch.device | None = None) -> None:
        """For a mask [B, 1, g, g] of images of this size in px, on this device (None: the mask's).

        Raises UserError as `active_in` says.
        """
        if (
            visible.dtype != torch.bool
            or visible.ndim != 4
            or visible.shape[1] != 1
            or visible.shape[2] != visible.shape[3]
        ):
            raise UserError(
                f"A mask must be Boolean of shape [B, 1, g, g]; this one is {visible.dtype} {tuple(visible.shape)}."
            )
        if size[0] % visible.shape[2] or size[1] % visible.shape[2]:
            raise UserError(
                f"An image of {size[0]}x{size[1]} px does not divide into the mask's {visible.shape[2]}x"
                f"{visible.shape[2]} cells; take a side that is a multiple of {visible.shape[2]}."
            )
        counts = visible.flatten(1).sum(1)
        if empty := (counts == 0).nonzero().flatten().tolist():
            raise UserError(f"Image {empty[0]} of the batch (0-based) has no visible cell; every image needs one.")
        self.shown = shown_by(visible)
        self.visible, self.image = sent(visible, device or visible.device), size
        self.levels: dict[tuple[int, int], Level] = {}
        self.add(repeated(self.visible, size, self.shown))

    def add(self, level: Level) -> Level:
        """Keep a map size for the rest of the pass."""
        return self.levels.setdefault(level.size, level)

    def level_behind(self, layer: Any, before: tuple[int, int], after: tuple[int, int]) -> Level:
        """The level of a layer's output: its own where the size was met before, else from the cells or the input.

        Sizes that divide into cells repeat them. Others take the input's mask at the centre of each output's kernel,
        which for the usual padding is every stride-th position.

        Raises:
            UserError: a map of fewer positions a side than the mask has cells.
        """
        if after in self.levels:
            return self.levels[after]
        g = self.visible.shape[-1]
        if min(after) < g:
            most, stride = min(after), -(-self.image[0] // after[0])
            raise UserError(
                f"The mask's {g}x{g} cells of {self.image[0] // g} px are finer than a {after[0]}x{after[1]} map of "
                f"the network, which has stride {stride}; take cells of at least {stride} px, at most {most}x{most}."
            )
        if after[0] % g == 0 and after[1] % g == 0:
            return self.add(repeated(self.visible, after, self.shown))
        mask = self.levels[before].mask
        for axis in (0, 1):
            kernel, stride, dilation = (
                pair(getattr(layer, name, 1))[axis] for name in ("kernel_size", "stride", "dilation")
            )
            reach = dilation * (kernel - 1)
            if layer.same_padding or layer.padding == "same":
                padding = max((after[axis] - 1) * stride + reach + 1 - before[axis], 0) // 2
            else:
                padding = 0 if layer.padding == "valid" else pair(layer.padding)[axis]
            at = torch.arange(after[axis], device=mask.device) * stride + max(reach // 2 - padding, 0)
            mask = mask.index_select(2 + axis, at.clamp(max=before[axis] - 1))
        return self.add(Level(mask))

    def enter(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        """Images as the network takes them: hidden pixels are zero, whatever they were (NaN included)."""
        return torch.where(self.levels[self.image].mask, x, 0)

    def leave(self, x: Tensor) -> Float[Tensor, "B C H W"]:
        """A feature of the network as a map."""
        return x

    def mean(self, x: Tensor) -> Float[Tensor, "B C 1 1"]:
        """Mean of a feature over each image's active positions.

        Raises:
            UserError: an image has none, which only sampled masks of sizes that are no multiple of g can have.
        """
        x = self.leave(x)
        level = self.levels[(x.shape[2], x.shape[3])]
        counts = level.mask.sum((2, 3), keepdim=True)
        if level.count is None and (empty := (counts == 0).flatten().nonzero().flatten().tolist()):
            raise UserError(
                f"Image {empty[0]} of the batch (0-based) has no active position left on the last map of "
                f"{x.shape[2]}x{x.shape[3]}; take an image size whose maps divide into the mask's cells."
            )
        return x.sum((2, 3), keepdim=True) / counts

    def window(self, layer: Any, dense: Dense, x: Tensor) -> Tensor:
        """A convolution or pooling layer."""
        y = dense(x)
        level = self.level_behind(layer, (x.shape[2], x.shape[3]), (y.shape[2], y.shape[3]))
        return y if layer.deferred else y * level.factor(y)

    def batch_norm(self, dense: Dense, x: Tensor) -> Tensor:
        """Batch norm over active positions (and the activation that timm fuses with it)."""
        level = self.levels[(x.shape[2], x.shape[3])]
        return level.scatter(dense(level.gather(x)))

    def pointwise(self, layer: Any, dense: Dense, x: Tensor, *, channels: int) -> Tensor:
        """A layer that sees each position alone (layer norm, linear), channels first (1) or last (-1)."""
        y = dense(x)
        if layer.deferred:
            return y
        size = (x.shape[2], x.shape[3]) if channels == 1 else (x.shape[1], x.shape[2])
        factor = self.levels[size].factor(y)
        return y * (factor if channels == 1 else factor.permute(0, 2, 3, 1))

    def drop_path(self, dense: Dense, x: Tensor) -> Tensor:
        """Stochastic depth: whole images."""
        return dense(x)


_CURRENT: ContextVar[Active | None] = ContextVar("active", default=None)


def current() -> Active | None:
    """The masked forward pass under way here, if any."""
    return _CURRENT.get()


@contextmanager
def active_in(
    visible: Tensor, size: tuple[int, int], backend: str = "masked", device: torch.device | None = None
) -> Iterator[Active]:
    """Run converted networks masked while open; feed them `enter(x)`, read their features through `leave`.

    Args:
        visible: Boolean [B, 1, g, g], True where a cell is visible.
        size: (H, W) of the images in px.
        backend: `masked`, dense kernels everywhere; `rows`, active rows with dense kernels where positions mix;
            `spconv`, active rows with gather-GEMM-scatter kernels. The numbers are the same up to rounding.
        device: of the images; None: the mask's. With a mask in the host's memory `masked` never waits for a GPU, where
            the sizes of all maps divide into its cells.

    Raises:
        UserError: the mask is not Boolean [B, 1, g, g]; the image does not divide into its cells; an image of the
            batch has no visible cell; an unknown backend; spconv is asked for and cannot be had.
    """
    if backend not in ("masked", "rows", "spconv"):
        raise UserError(f"Unknown backend '{backend}' of sparse convolution. Known: masked, rows, spconv.")
    if backend == "masked":
        active = Active(visible, size, device)
    else:
        from hkd.models.sparse.rows import Rows  # it builds on this module

        active = Rows(visible, size, device, spconv=backend == "spconv")
    with _in_force(active):
        yield active


@contextmanager
def all_active() -> Iterator[None]:
    """Run converted networks as the dense ones they were, also where a masked pass is under way around them."""
    with _in_force(None):
        yield


@contextmanager
def _in_force(active: Active | None) -> Iterator[None]:
    token = _CURRENT.set(active)
    try:
        yield
    finally:
        _CURRENT.reset(token)
