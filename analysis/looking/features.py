"""Features of every layer of a timm model as they come by, as tokens on a grid, without keeping them.

Shapes: B images, P prefix tokens, N = H * W patches, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from analysis.looking.attention import patch_grid
from hkd.errors import Refused
from hkd.models.taps import tokens_to_map


@dataclass(frozen=True)
class Source:
    """Where features come from.

    name: of the layer. module: hooked. before: whether its input is taken, else its output.
    """

    name: str
    module: nn.Module
    before: bool = False


def feature_sources(net: Any, size: tuple[int, int]) -> list[Source]:
    """The embedding and every block of a transformer or an MLP; the stages that timm lists for other models.

    Args:
        net: a timm model.
        size: (height, width) of the images it will see, in pixels.

    Raises:
        Refused: a model whose layers timm does not list.
    """
    blocks: list[tuple[str, nn.Module]] = []
    if _isotropic_grid(net, size) is not None:
        blocks = [(f"blocks.{index}", block) for index, block in enumerate(net.blocks)]
    elif getattr(net, "output_fmt", "NCHW") == "NHWC" and hasattr(net, "layers"):
        blocks = [
            (f"layers.{stage}.blocks.{index}", block)
            for stage, layer in enumerate(net.layers)
            for index, block in enumerate(layer.blocks)
        ]
    if blocks:
        return [Source("embedding", blocks[0][1], before=True), *(Source(name, block) for name, block in blocks)]
    modules, listed = dict(net.named_modules()), getattr(net, "feature_info", None) or []
    names = [stage["module"] for stage in listed if stage.get("module") in modules]
    if not names:
        raise Refused(f"{type(net).__name__} does not say where its features are, which the Fourier measure needs.")
    return [Source(name, modules[name]) for name in names]


def _isotropic_grid(net: Any, size: tuple[int, int]) -> tuple[int, int] | None:
    """(H, W) of a model whose blocks all have one grid of tokens, an MLP-Mixer among them; None for others."""
    measured = getattr(getattr(net, "stem", None), "dynamic_feat_size", None)
    return measured(size) if measured is not None and hasattr(net, "blocks") else patch_grid(net, size)


def _channels_last(net: Any, features: Tensor) -> bool:
    """Whether a map has its channels last: the model says so, or only its last side is a number of channels it has."""
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        return True
    channels = {info["num_chs"] for info in getattr(net, "feature_info", ())} | {getattr(net, "num_features", None)}
    return features.shape[1] not in channels and features.shape[3] in channels


def to_map(net: Any, features: Tensor, size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Features of a timm model's layer, or its `forward_features`, as a map without prefix tokens.

    Args:
        net: whose they are.
        features: [B, P + N, C], [B, H, W, C] or [B, C, H, W], as the model has them.
        size: (height, width) of the images, in pixels.

    Raises:
        Refused: tokens that do not make the model's grid, or several tensors.
    """
    if not isinstance(features, Tensor):
        raise Refused(f"{type(net).__name__} gives {type(features).__name__} of features, where one map is expected.")
    grid = _isotropic_grid(net, size)
    if features.ndim == 4:
        # SAM's blocks have channels last, and what follows them has channels first.
        last = tuple(features.shape[1:3]) == grid if grid else _channels_last(net, features)
        return features.permute(0, 3, 1, 2) if last else features
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    if grid is None or features.ndim != 3 or features.shape[1] != prefix + grid[0] * grid[1]:
        raise Refused(
            f"The features {tuple(features.shape)} of {type(net).__name__} do not lie on its patch grid"
            + ("." if grid is None else f" of {grid[0]}x{grid[1]} with {prefix} prefix tokens.")
        )
    return tokens_to_map(features[:, prefix:], grid)


@contextmanager
def observed_features(
    net: Any, sources: Sequence[Source], size: tuple[int, int], receive: Callable[[int, str, Tensor], None]
) -> Iterator[None]:
    """Hand the features of every forward pass in this context to a receiver, layer by layer.

    Args:
        net: whose sources these are.
        sources: from `feature_sources`.
        size: (height, width) of the images, in pixels.
        receive: called with the layer's index and name and its map [B, C, H, W], of which no gradient flows.
    """

    @torch.no_grad()
    def hand(index: int, name: str, features: Any) -> None:
        found = features[0] if isinstance(features, tuple | list) else features
        receive(index, name, to_map(net, found, size).detach())

    def before(index: int, name: str) -> Callable[..., None]:
        return lambda module, args: hand(index, name, args[0])

    def after(index: int, name: str) -> Callable[..., None]:
        return lambda module, args, output: hand(index, name, output)

    handles = [
        source.module.register_forward_pre_hook(before(index, source.name))
        if source.before
        else source.module.register_forward_hook(after(index, source.name))
        for index, source in enumerate(sources)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def first_not_finite(net: nn.Module, run: Callable[[], Any]) -> str | None:
    """Name of the first module, in the order in which they finish, whose output holds NaN or infinity.

    Args:
        net: the model.
        run: one forward pass of it.
    """
    found: list[str] = []

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(check(name)) for name, module in net.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
