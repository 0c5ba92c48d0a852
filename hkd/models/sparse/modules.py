"""Sparse convolution for masked CNNs: any timm CNN of known blocks, converted in place.

Source: H-GKD, arXiv 2309.09571, whose students follow the sparse encoders of SparK (Tian et al. 2023,
arXiv:2301.03580). A converted layer is its own class with another forward: parameters, buffers and state-dict keys
stay, and outside `active_in` it computes what it did. Inside, outputs are zero at every inactive position, and batch
norm takes its statistics from the active positions of the whole batch.

Shapes: B batch, C channels, H W a map, g mask cells a side.
"""

from collections.abc import Iterator
from typing import Any

import timm.layers as tl
from jaxtyping import Bool, Float
from timm.layers.classifier import ClassifierHead, NormMlpClassifierHead
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from timm.models import _efficientnet_blocks as blocks
from timm.models import convnext, efficientnet, regnet, resnet
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models.sparse.maps import Level, current


def sparse_batch_norm(
    x: Float[Tensor, "B C H W"], active: Bool[Tensor, "B 1 H W"], norm: nn.BatchNorm2d, count: int | None = None
) -> Float[Tensor, "B C H W"]:
    """Batch norm over the active positions of the whole batch, zeros elsewhere.

    Args:
        x: a map; what it holds at inactive positions does not matter.
        active: True at active positions.
        norm: its affine parameters and running statistics; the latter are updated in training mode.
        count: of active positions, where the host knows it (`Level.count`).
    """
    level = Level(active, count)
    return level.scatter(norm(level.gather(x)))


class _Window:
    """A layer whose output at a position depends on others."""

    deferred = False  # whether all that reads the output masks it (see `sparsify`)
    same_padding = False  # whether it pads by its input's size

    def forward(self, x: Tensor) -> Tensor:
        dense, active = super().forward, current()  # type: ignore[misc]
        return dense(x) if active is None else active.window(self, dense, x)


class _BatchNorm:
    def forward(self, x: Tensor) -> Tensor:
        dense, active = super().forward, current()  # type: ignore[misc]
        return dense(x) if active is None else active.batch_norm(dense, x)


class _Pointwise:
    """A layer that sees each position alone and makes something of zero. channels: which axis they are."""

    deferred = False
    channels = 1

    def forward(self, x: Tensor) -> Tensor:
        dense, active = super().forward, current()  # type: ignore[misc]
        return dense(x) if active is None else active.pointwise(self, dense, x, channels=self.channels)


class SparseConv2d(_Window, nn.Conv2d):
    """Sparse form of the dense class."""


class SparseConv2dSame(_Window, tl.Conv2dSame):
    """Sparse form of the dense class."""

    same_padding = True


class SparseMaxPool2d(_Window, nn.MaxPool2d):
    """Sparse form of the dense class."""


class SparseMaxPool2dSame(_Window, MaxPool2dSame):
    """Sparse form of the dense class."""


class SparseAvgPool2d(_Window, nn.AvgPool2d):
    """Sparse form of the dense class; inactive positions count as zeros."""


class SparseAvgPool2dSame(_Window, AvgPool2dSame):
    """Sparse form of the dense class; inactive positions count as zeros."""


class SparseBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """Sparse form of the dense class."""


class SparseBatchNormAct2d(_BatchNorm, tl.BatchNormAct2d):
    """Sparse form of the dense class."""


class SparseLayerNorm2d(_Pointwise, tl.LayerNorm2d):
    """Sparse form of the dense class."""


class SparseLayerNorm(_Pointwise, tl.LayerNorm):
    """Sparse form of the dense class, channels last."""

    channels = -1


class SparseTorchLayerNorm(_Pointwise, nn.LayerNorm):
    """Sparse form of torch's own class, channels last."""

    channels = -1


class SparseLinear(_Pointwise, nn.Linear):
    """Sparse form of the dense class, channels last."""

    channels = -1


class SparseDropPath(tl.DropPath):
    """Stochastic depth per image, also where activations are rows."""

    def forward(self, x: Tensor) -> Tensor:
        active = current()
        return super().forward(x) if active is None else active.drop_path(super().forward, x)


SPARSE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: SparseConv2d,
    tl.Conv2dSame: SparseConv2dSame,
    nn.MaxPool2d: SparseMaxPool2d,
    MaxPool2dSame: SparseMaxPool2dSame,
    nn.AvgPool2d: SparseAvgPool2d,
    AvgPool2dSame: SparseAvgPool2dSame,
    nn.BatchNorm2d: SparseBatchNorm2d,
    tl.BatchNormAct2d: SparseBatchNormAct2d,
    tl.LayerNorm2d: SparseLayerNorm2d,
    tl.LayerNorm: SparseLayerNorm,
    nn.LayerNorm: SparseTorchLayerNorm,
    nn.Linear: SparseLinear,
    tl.DropPath: SparseDropPath,
}

# Zero at zero, each position alone: they need no change.
POINTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    tl.GELU,
    tl.GELUTanh,
    tl.Swish,
    tl.Mish,
    tl.HardSwish,
    tl.PReLU,
    tl.Tanh,
)

# Blocks whose forward does nothing to positions but through their children, and in them (writer, reader) where the
# reader alone reads the writer's output and masks its own or hands it on to one that does: the multiplication of the
# writer's output by the mask would be work for nothing.
BLOCKS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    nn.Sequential: (),
    nn.ModuleList: (),
    resnet.ResNet: (("conv1", "bn1"),),
    resnet.BasicBlock: (("conv1", "bn1"), ("conv2", "bn2")),
    resnet.Bottleneck: (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
    convnext.ConvNeXt: (),
    convnext.ConvNeXtStage: (),
    convnext.ConvNeXtBlock: (("conv_dw", "norm"), ("norm", "mlp.fc1")),
    convnext.Downsample: (),
    efficientnet.EfficientNet: (("conv_stem", "bn1"), ("conv_head", "bn2")),
    blocks.ConvBnAct: (("conv", "bn1"),),
    blocks.DepthwiseSeparableConv: (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    blocks.InvertedResidual: (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    blocks.EdgeResidual: (("conv_exp", "bn1"), ("conv_pwl", "bn2")),
    regnet.RegNet: (),
    regnet.RegStage: (),
    regnet.Bottleneck: (),
    tl.ConvNormAct: (("conv", "bn"),),
    tl.Mlp: (("fc1", "fc2"),),
}

# The classifier head works on pooled features.
HEADS: tuple[type[nn.Module], ...] = (tl.SelectAdaptivePool2d, ClassifierHead, NormMlpClassifierHead)


def sparsify(net: nn.Module) -> nn.Module:
    """Convert a CNN in place; a network converted before stays as it is.

    Its state dict and its dense forward are unchanged. The head (global pooling, classifier) is left alone.

    Raises:
        UserError: a layer or block that the conversion does not know; the network is unchanged.
    """
    classifier = getattr(net, "get_classifier", lambda: None)()
    layers = dict(_layers(net, "", classifier))
    for layer in layers.values():
        if type(layer) in SPARSE:
            layer.__class__ = SPARSE[type(layer)]
    for module in layers.values():
        for writer, reader in _handed_on(module):
            writer = writer[-1] if isinstance(writer, nn.Sequential) and len(writer) else writer
            if isinstance(writer, _Window | _Pointwise) and isinstance(reader, _BatchNorm | _Pointwise):
                writer.deferred = True
    return net


def _layers(module: nn.Module, path: str, classifier: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    """All modules by path, heads left out. Raises UserError at the first that is not known."""
    if isinstance(module, HEADS) or module is classifier:
        return
    kind = type(module)
    known = kind in SPARSE or kind in BLOCKS or kind in POINTWISE or kind in SPARSE.values()
    if not known:
        raise UserError(
            f"The layer '{path or 'network'}' is a {kind.__module__}.{kind.__name__}, of which sparse convolution "
            "knows no masked form; students are networks of convolutions, pooling, batch or layer norms and point-wise "
            "activations: timm's ResNet, RegNet, ConvNeXt, MobileNet and EfficientNet without squeeze-and-excitation."
        )
    yield path, module
    children = dict(module.named_children())
    # A fused activation acts on the norm's rows and may be any; drop-block, which mixes positions, may not be fused.
    if isinstance(module, tl.BatchNormAct2d):
        del children["act"]
    for name, child in children.items():
        yield from _layers(child, f"{path}.{name}" if path else name, classifier)


def _handed_on(block: nn.Module) -> Iterator[tuple[Any, Any]]:
    """The pairs of BLOCKS in one block; those of a sequence are its neighbours, convolution before batch norm."""
    if isinstance(block, nn.Sequential):
        for writer, reader in zip(block, list(block)[1:], strict=False):
            if isinstance(reader, _BatchNorm):
                yield writer, reader
        return
    for names in BLOCKS.get(type(block), ()):
        yield tuple(_child(block, name) for name in names)  # type: ignore[misc]


def _child(block: nn.Module, path: str) -> nn.Module | None:
    child: nn.Module | None = block
    for name in path.split("."):
        child = getattr(child, name, None)
    return child
