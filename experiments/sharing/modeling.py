"""Models that timm has all parts of but no name for. Import this file, and timm creates them as its own:

    import modeling, timm
    model = timm.create_model("local-dir:FOLDER", pretrained=True)

Needs timm alone. The numbers of a model are in `model_args` of the config.json beside this file.
"""

from functools import partial
from typing import Any

import timm
from timm.models import build_model_with_cfg, is_model, register_model
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.beit import Beit
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from torch import nn


def hkd_resnet(
    pretrained: bool = False, arch: str = "resnet18", maxpool: bool = True, stem: str | None = None, **kwargs: Any
) -> Any:
    """A ResNet of timm (`arch`); maxpool False: none after the stem; stem "3x3": a first convolution of stride 1."""

    def build(**model: Any) -> Any:
        net: Any = timm.create_model(arch, pretrained=False, **model)
        if not maxpool:
            net.maxpool = nn.Identity()
        if stem == "3x3":
            net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        return net

    return build_model_with_cfg(build, "hkd_resnet", pretrained, **kwargs)


def hkd_efficientnet(
    pretrained: bool = False,
    arch: str = "mobilenetv1_100",
    blocks: list[list[str]] | None = None,
    width: float = 1.0,
    stem_stride: int = 2,
    **kwargs: Any,
) -> Any:
    """A MobileNet (`arch` of timm, or `blocks` in timm's notation with channels times `width`) of any stem stride."""

    def build(**model: Any) -> Any:
        if blocks is None:
            net: Any = timm.create_model(arch, pretrained=False, **model)
        else:
            model["block_args"] = decode_arch_def([list(stage) for stage in blocks])
            net = EfficientNet(round_chs_fn=partial(round_channels, multiplier=width), **model)
        net.conv_stem.stride = (stem_stride, stem_stride)
        return net

    return build_model_with_cfg(build, "hkd_efficientnet", pretrained, **kwargs)


def hkd_mixer(pretrained: bool = False, affine: bool = False, layer_scale: float = 1e-4, **kwargs: Any) -> Any:
    """An MLP-Mixer of any size; affine: a ResMLP, with branches scaled by `layer_scale` at first."""

    def build(**model: Any) -> Any:
        if affine:
            model |= {"block_layer": partial(ResBlock, init_values=layer_scale), "norm_layer": Affine, "mlp_ratio": 4}
        return MlpMixer(**model)

    return build_model_with_cfg(build, "hkd_mixer", pretrained, **kwargs)


def hkd_beit(pretrained: bool = False, **kwargs: Any) -> Any:
    """A BEiT whose residual branches are not scaled: timm's own names always scale them."""
    return build_model_with_cfg(Beit, "hkd_beit", pretrained, **kwargs)


def register() -> None:
    """Make the names above known to timm, unless another exported folder did."""
    for entry in (hkd_resnet, hkd_efficientnet, hkd_mixer, hkd_beit):
        if not is_model(entry.__name__):
            register_model(entry)


register()
