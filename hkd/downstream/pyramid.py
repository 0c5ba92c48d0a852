"""Feature pyramids: maps of one width at wanted strides, from the maps of a hierarchical or a plain backbone.

Sources: FPN, Lin et al. 2017, arXiv:1612.03144; for plain transformers the simple feature pyramid of ViTDet, Li et al.
2022, arXiv:2203.16527, section 3. Deviations: levels that nobody asked for are not computed; batch norms are not used.
Shapes: B batch, D width of a backbone's map, P width of the pyramid, H W sides of an image, s stride of a level in px.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from hkd.downstream.backbone import Backbone
from hkd.errors import Refused

FACTORS = (4.0, 2.0, 1.0, 0.5)  # sides of the levels of a simple pyramid, of those of its map


class Pyramid(nn.Module):
    """Maps [B, P, H / s, W / s] by name ("0" is the finest), from the four maps of a backbone.

    Attributes:
        strides: s of each level in px, fine to coarse.
        out_channels: P.
    """

    def __init__(self, strides: tuple[int, ...], width: int):
        super().__init__()
        self.strides, self.out_channels = strides, width

    def subsampled(self, levels: Sequence[Tensor]) -> "OrderedDict[str, Tensor]":
        """The levels by name, and after them, where one more is wanted, the last one at every other position."""
        found = list(levels)
        if len(found) < len(self.strides):
            found.append(F.max_pool2d(found[-1], kernel_size=1, stride=2))
        return OrderedDict((str(place), level) for place, level in enumerate(found))


class TopDown(Pyramid):
    """FPN: lateral 1x1 convolutions, sums from coarse to fine, a 3x3 convolution per level.

    All maps from the finest wanted one to the coarsest of the backbone take part; of several maps of one stride the
    deepest. One level beyond the coarsest is that one subsampled.

    Args:
        channels, strides: of the backbone's maps, fine to coarse.
        wanted: strides of the levels.
        width: P.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], wanted: tuple[int, ...], width: int):
        super().__init__(wanted, width)
        deepest = {stride: place for place, stride in enumerate(strides)}
        self.taken = [place for stride, place in deepest.items() if stride >= wanted[0]]
        self.network = FeaturePyramidNetwork([channels[place] for place in self.taken], width)
        self.given = [number for number, place in enumerate(self.taken) if strides[place] in wanted]
        for number in range(len(self.taken)):
            if number not in self.given:
                self.network.layer_blocks[number] = nn.Identity()

    def forward(self, maps: list[Tensor]) -> "OrderedDict[str, Tensor]":
        found = self.network(OrderedDict((str(place), maps[place]) for place in self.taken))
        levels = list(found.values())
        return self.subsampled([levels[number] for number in self.given])


class Simple(Pyramid):
    """ViTDet's pyramid of the last map alone: up by transposed convolutions, as it is, or down by max-pooling; each
    level then goes through a 1x1 and a 3x3 convolution, each with a layer norm over channels. One level beyond half
    the map's size is the last one subsampled.

    Args:
        channels, stride: D and s of the map.
        wanted: strides of the levels.
        width: P.
    """

    def __init__(self, channels: int, stride: int, wanted: tuple[int, ...], width: int):
        super().__init__(wanted, width)
        built = [factor for factor in FACTORS if stride / factor in wanted]
        self.levels = nn.ModuleList(self.level(channels, factor, width) for factor in built)

    @staticmethod
    def level(channels: int, factor: float, width: int) -> nn.Sequential:
        """One level of `factor` times the map's size."""
        layers: list[nn.Module] = []
        if factor == 4:
            layers += [up(channels, channels // 2), LayerNorm2d(channels // 2), nn.GELU()]
            channels //= 2
        if factor > 1:
            layers.append(up(channels, channels // 2))
            channels //= 2
        if factor < 1:
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(
            *layers,
            nn.Conv2d(channels, width, 1, bias=False),
            LayerNorm2d(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )

    def forward(self, maps: list[Tensor]) -> "OrderedDict[str, Tensor]":
        return self.subsampled([level(maps[-1]) for level in self.levels])


def up(channels: int, width: int) -> nn.ConvTranspose2d:
    """Twice the size: each position becomes two by two."""
    return nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2)


def make_pyramid(backbone: Backbone, wanted: tuple[int, ...], width: int) -> Pyramid:
    """The pyramid that fits a backbone: FPN for a hierarchy of maps, the simple one where all have one stride.

    Args:
        backbone: read for the shapes of its maps.
        wanted: strides of the levels in px, fine to coarse.
        width: P.

    Raises:
        Refused: a stride that cannot be had from this backbone.
    """
    strides = sorted({*backbone.strides})
    plain = len(strides) == 1
    can = [int(strides[0] / factor) for factor in FACTORS if strides[0] % factor == 0] if plain else strides
    beyond = 2 * can[-1]
    for place, stride in enumerate(wanted):
        subsampled = stride == beyond and place > 0 and wanted[place - 1] == can[-1]
        if stride not in can and not subsampled:
            raise Refused(
                f"A pyramid on {backbone.card.name} has levels of the strides {', '.join(map(str, can))} px, and "
                f"{beyond} after {can[-1]}; the option 'strides' asks for {stride}."
            )
    if plain:
        return Simple(backbone.channels[-1], strides[0], wanted, width)
    return TopDown(backbone.channels, backbone.strides, wanted, width)
