"""Attention maps of any timm transformer, seen while it runs with fused attention, which never makes them.

Inside the attention modules the queries and keys are read where they are handed to the fused kernel (or, in a module
that is not fused, the scores where they are handed to the softmax): after biases, norms and rotations, with relative
position biases and the masks of shifted windows, and without computing them twice. From them the maps of a few images
at a time are made, given to a receiver, and dropped; the model's own output is not touched.

Rows and columns of prefix tokens are left out. A softmax over the remaining scores is the full softmax with its rows
renormalised, and that is how they are made; without renormalising, rows sum to less than one.
Shapes: B images, w windows per image, h heads, P prefix tokens, N = H * W patches, M = P + N, d width of a head.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.attention import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from timm.models.vision_transformer_relpos import RelPosAttention
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hkd.errors import Refused

GLOBAL = (Attention, AttentionRope, BeitAttention, EvaAttention, RelPosAttention)  # one softmax over all tokens
WINDOWED = (WindowAttention, WindowAttentionV2)  # the same within each window
CHUNK = 2**20  # bytes of maps made at a time: they stay in the cache of a core, which is 3 times faster than 32 images
SOFTMAX = (torch.softmax, torch.Tensor.softmax, F.softmax)


@dataclass(frozen=True)
class Layer:
    """An attention module and where its tokens lie.

    name: where it is in its model. module: what is called once per forward pass. grid: (H, W) of its patches, of one
    window if windowed. prefix: tokens before the patches. windowed: whether its batch is that of windows, those of
    one image together. patch: pixels of the model's input that one cell of the grid stands for.
    """

    name: str
    module: nn.Module
    grid: tuple[int, int]
    prefix: int = 0
    windowed: bool = False
    patch: float = 1.0


@dataclass(frozen=True)
class Seen:
    """Attention of one layer for some images of a batch.

    layer: 0-based index. maps: [b * windows, h, N, N]; rows (the last dimension) sum to one unless not renormalised.
    Their memory is used again for the next images: what is to be kept must be cloned. windows: per image. first: index
    in the batch of the first image.
    """

    layer: int
    maps: Float[Tensor, "b*w h N N"]
    windows: int
    first: int


def patch_grid(net: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    """(H, W) of a plain transformer's patches for images of this size; None for other models."""
    embed = getattr(net, "patch_embed", None)
    if embed is None or not hasattr(net, "blocks") or not hasattr(embed, "dynamic_feat_size"):
        return None
    return embed.dynamic_feat_size(size)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def attention_layers(net: Any, size: tuple[int, int]) -> list[Layer]:
    """The self-attention of every block of a timm model, in order.

    Args:
        net: a timm ViT, DeiT, BEiT, EVA, CLIP, DINOv2, Swin or another model made of the same attention modules.
        size: (height, width) of the images it will see, in pixels.

    Raises:
        Refused: a model without attention, or with attention whose maps are not softmaxes over a grid of patches.
    """
    name, grid = type(net).__name__, patch_grid(net, size)
    if grid is not None:
        modules = [(f"blocks.{index}.attn", getattr(block, "attn", None)) for index, block in enumerate(net.blocks)]
        allowed: tuple[type, ...] = GLOBAL
    else:
        modules = [
            (f"layers.{stage}.blocks.{index}.attn", getattr(block, "attn", None))
            for stage, layer in enumerate(getattr(net, "layers", ()))
            for index, block in enumerate(getattr(layer, "blocks", ()))
        ]
        allowed = WINDOWED
    if not any(module is not None for _, module in modules):
        raise Refused(
            f"{name} has no blocks with one self-attention each over a grid of patches, which attention measures are "
            f"about; take a transformer such as ViT, DeiT, BEiT, EVA or Swin, or other measures."
        )
    for path, module in modules:
        # The exact class: what a subclass changes is unknown.
        if type(module) not in allowed:
            raise Refused(
                f"The attention of {name} cannot be recovered: {path} is {_path(type(module))}, and only the maps of "
                f"{', '.join(_path(kind) for kind in allowed)} are known."
            )
    if grid is not None:
        prefix, ratio = int(getattr(net, "num_prefix_tokens", 0)), getattr(net.patch_embed, "feat_ratio", None)
        # What is left of an image whose side is no multiple of the patch is seen by none, or is padding.
        patch = float(ratio(as_scalar=False)[0]) if ratio is not None else size[0] / grid[0]
        return [Layer(path, module, grid, prefix, patch=patch) for path, module in modules if module is not None]
    for stage, layer in enumerate(net.layers):
        for block in layer.blocks:
            sides = list(zip(block.input_resolution, block.window_size, strict=True))
            if any(side % window for side, window in sides):
                raise Refused(
                    f"{name} pads the {sides[0][0]}x{sides[1][0]} grid of stage {stage} to whole windows of "
                    f"{sides[0][1]}x{sides[1][1]}, and would attend to the padding; give images of another size."
                )
    return [
        Layer(
            f"layers.{stage}.blocks.{index}.attn",
            block.attn,
            tuple(block.attn.window_size),
            windowed=True,
            patch=net.patch_embed.patch_size[0] * net.patch_embed.grid_size[0] / layer.blocks[0].input_resolution[0],
        )
        for stage, layer in enumerate(net.layers)
        for index, block in enumerate(layer.blocks)
    ]


def patch_maps(scores: Float[Tensor, "... M M"], prefix: int, *, renormalise: bool = True) -> Float[Tensor, "... N N"]:
    """Attention among patches from scores (before the softmax) of all tokens.

    Args:
        scores: rows are queries.
        prefix: P, tokens left out of rows and columns.
        renormalise: whether rows sum to one; else they lack what the query gives to prefix tokens.
    """
    if renormalise:
        return scores[..., prefix:, prefix:].softmax(dim=-1)
    return scores[..., prefix:, :].softmax(dim=-1)[..., prefix:]


@contextmanager
def observed(
    layers: Sequence[Layer], images: int, receive: Callable[[Seen], None], *, renormalise: bool = True
) -> Iterator[None]:
    """Hand the attention of every forward pass in this context to a receiver, a few images at a time.

    Nothing of it is kept here and no gradient flows. Passes of other threads are not seen. What the receiver raises
    ends the pass.

    Args:
        layers: from `attention_layers`, or made by hand for other modules (a decoder's) that call one fused attention
            or one softmax over their tokens.
        images: in each batch.
        receive: called for layer 0 with all images, then for layer 1, ...
        renormalise: see `patch_maps`.

    Raises:
        Refused: a layer ran without attention that could be seen, or over other tokens than its grid's; on leaving.
    """
    watch = _Watch(layers, images, receive, renormalise)
    handles = []
    for index, layer in enumerate(layers):
        handles.append(layer.module.register_forward_pre_hook(watch.enter(index)))
        handles.append(layer.module.register_forward_hook(watch.leave(index)))
    try:
        with watch:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Watch(TorchFunctionMode):
    """Reads the arguments of the attention kernel, or of the softmax, while one of the layers runs in this thread."""

    def __init__(
        self, layers: Sequence[Layer], images: int, receive: Callable[[Seen], None], renormalise: bool
    ) -> None:
        super().__init__()
        self.layers, self.images, self.receive, self.renormalise = layers, images, receive, renormalise
        self.thread = threading.get_ident()
        self.running: int | None = None
        self.calls = 0  # of the kernel or the softmax, in the layer that runs

    def enter(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == self.thread:
                self.running, self.calls = index, 0

        return hook

    def leave(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != self.thread:
                return
            self.running = None
            if self.calls != 1:
                raise Refused(
                    f"{self.layers[index].name} ({type(module).__name__}) made {self.calls} attention maps that could "
                    f"be seen, where one is expected; its attention cannot be recovered."
                )

        return hook

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.running is not None:
            if func is F.scaled_dot_product_attention:
                self._fused(*args, **(kwargs or {}))
            elif func in SOFTMAX:
                self._unfused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _fused(
        self,
        query: Float[Tensor, "b h M d"],
        key: Float[Tensor, "b h M d"],
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        """Read what `F.scaled_dot_product_attention`, whose arguments these are, makes its maps of."""
        if is_causal or enable_gqa:
            raise Refused("Causal and grouped-query attention cannot be recovered.")
        count, heads, tokens, width = query.shape
        wide = torch.promote_types(query.dtype, torch.float32)
        mask = None if attn_mask is None else attn_mask.expand(count, heads, tokens, tokens)
        factor = width**-0.5 if scale is None else scale
        row = self.layers[self.running or 0].prefix
        column = row if self.renormalise else 0  # without it, prefix tokens take their part in the softmax

        buffers: list[Tensor] = []

        def maps(part: slice) -> Tensor:
            queries = query[part, :, row:].to(wide)
            keys = key[part, :, column:].to(wide).transpose(-2, -1)
            if not buffers:  # by the first and largest part; fresh memory for each would take longer than the softmax
                buffers.extend(queries.new_empty(*queries.shape[:3], keys.shape[3]) for _ in range(2))
            scores, found = (buffer[: len(queries)] for buffer in buffers)
            torch.matmul(queries, keys, out=scores).mul_(factor)
            if mask is not None:
                bias = mask[part, :, row:, column:]
                scores = scores.masked_fill_(~bias, -torch.inf) if bias.dtype == torch.bool else scores.add_(bias)
            return torch.softmax(scores, dim=-1, out=found)[..., row - column :]

        self._hand_over((count, heads, tokens, key.shape[2]), maps)

    def _unfused(self, scores: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> None:
        """Read the argument of a softmax, if it is one over the last of four dimensions."""
        if scores.ndim != 4 or dim not in (-1, 3):
            return
        prefix = self.layers[self.running or 0].prefix
        wide = torch.promote_types(scores.dtype, torch.float32)
        self._hand_over(
            tuple(scores.shape), lambda part: patch_maps(scores[part].to(wide), prefix, renormalise=self.renormalise)
        )

    @torch.no_grad()
    def _hand_over(self, shape: tuple[int, ...], maps: Callable[[slice], Tensor]) -> None:
        """Give the maps of a few images at a time to the receiver.

        Args:
            shape: of all scores, (b * windows, h, M, M).
            maps: makes those of a part of the sequences.
        """
        assert self.running is not None
        index, layer = self.running, self.layers[self.running]
        self.calls += 1
        count, heads, rows, columns = shape
        expected = layer.prefix + layer.grid[0] * layer.grid[1]
        windows = count // self.images if layer.windowed else 1
        if (rows, columns) != (expected, expected) or windows * self.images != count:
            raise Refused(
                f"{layer.name} attends {rows}x{columns} for {count} sequences; {layer.prefix} prefix tokens, a "
                f"{layer.grid[0]}x{layer.grid[1]} grid and {self.images} images make {expected}x{expected}."
            )
        step = max(1, CHUNK // (windows * heads * rows * columns * 4))
        for first in range(0, self.images, step):
            part = slice(first * windows, (first + step) * windows)
            self.receive(Seen(index, maps(part), windows, first))
