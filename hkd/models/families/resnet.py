"""ResNet: He et al. 2016, arXiv:1512.03385, in timm's form; also the D variant and small-image stems."""

from typing import Any, ClassVar

from torch import nn

from hkd.models.families.base import Family
from hkd.spec import ModelCard


class ResNetFamily(Family):
    """Keys of its own in `ModelCard.kwargs`.

    maxpool: False removes the max-pooling after the stem. stem: "3x3" replaces the first convolution by one of kernel
    3 and stride 1. Both are the usual changes for 32-px images.
    """

    name = "resnet"
    timm_files: ClassVar[tuple[str, ...]] = ("resnet",)

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        maxpool, stem = kwargs.pop("maxpool", True), kwargs.pop("stem", None)
        net = super().construct(arch, kwargs)
        if not maxpool:
            net.maxpool = nn.Identity()
        if stem == "3x3":
            net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, stride=1, padding=1, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm's ResNet
        return net

    def entries(self, net: Any, card: ModelCard) -> dict[int, nn.Module]:
        """Before the stage's own down-sampling."""
        return {stage: net.get_submodule(f"layer{index}") for stage, index in enumerate(card.stages, start=1)}
