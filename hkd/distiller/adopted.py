"""Networks that somebody else built, behind the taps contract."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hkd.distiller.named_taps import STAGES, NamedFamily, PartialInfo, StageShapes, TapNames
from hkd.distiller.timm_models import is_timm, timm_card, timm_family, timm_stages, unknown_taps
from hkd.errors import UserError
from hkd.models.families.base import Family
from hkd.models.hooks import evaluation_mode
from hkd.models.normalise import Normalise
from hkd.models.tap_model import Built
from hkd.models.taps import TapInfo, Want
from hkd.spec import ModelCard

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std of RGB in [0, 1]


class GivenImages(nn.Module):
    """Images [B, 3, side, side] as a model that somebody else built sees them.

    Args:
        name: of the model.
        side: in px, of the images its taps were measured with; others are refused.
        stats: mean and std, if it is to see images in [0, 1] by these.
        like: a parameter of the model.
    """

    def __init__(self, name: str, side: int, stats: Statistics | None, like: Tensor) -> None:
        super().__init__()
        self.name, self.side = name, side
        self.normalise = nn.Identity() if stats is None else Normalise(*stats, like)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.side, self.side):
            raise UserError(
                f"Images of {x.shape[-2]}x{x.shape[-1]} px, but the taps of {self.name} are those of "
                f"{self.side}x{self.side}: Distiller(..., image_size={x.shape[-1]})."
            )
        return self.normalise(x)


def adopted(
    net: nn.Module, who: str, side: int | None, taps: TapNames | None, stats: Statistics | None
) -> tuple[ModelCard, Built]:
    """What puts a module behind the taps contract.

    Args:
        net: the module.
        who: "student", or a teacher's role.
        side: of its images in px.
        taps: their places, if given.
        stats: mean and std, if it is to see images in [0, 1] by these.

    Raises:
        UserError: taps that cannot be found or are no maps.
    """
    if side is None:
        raise UserError("Say how large the images are: Distiller(..., image_size=32).")
    stages = dict((taps or {}).get("stages") or {})
    indexed = bool(stages) and all(type(place) is int for place in stages.values())
    first = next(net.parameters(), None)
    if first is None:
        raise UserError(f"The {who} has no parameters.")
    # Not zeros: models that begin with a norm could not tell two wrong readings of them apart.
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(first)
    family: Family
    with torch.no_grad(), evaluation_mode(net):
        if is_timm(net) and (taps is None or indexed):
            family = timm_family(net)
            card = replace(timm_card(net, family, side), stages=timm_stages(net, family, who, images, stages))
        else:
            family = NamedFamily(net, who, taps)
            card = ModelCard(name=f"the {who}", family=family.name, arch=type(net).__name__, image_size=side)
        info = measure(net, family, card, who, images)
    return card, Built(net, family, GivenImages(card.name, side, stats, first), info)


def measure(net: Any, family: Family, card: ModelCard, who: str, images: Tensor) -> TapInfo:
    """Shapes of all taps that a module has, after a look at whether they are those of the module itself.

    Raises:
        UserError: a timm class that is not read rightly.
    """
    if isinstance(family, NamedFamily):
        taps = family.forward(net, card, images, Want(stages=family.stages))
        absent = family.absent
    else:
        taps, absent = family.forward(net, card, images, Want(stages=STAGES)), frozenset()
        plain = net(images)
        if not (taps.final.ndim == 4 and taps.logits.shape == plain.shape and taps.logits.allclose(plain)):
            raise UserError(unknown_taps(net, who))
    info = PartialInfo(
        classes=taps.logits.shape[1],
        pooled=0 if "pooled" in absent else taps.pooled.shape[1],
        final=(0, 0, 0) if "final" in absent else map_shape(taps.final),
        stages=StageShapes({stage: map_shape(x) for stage, x in taps.stages.items()}),
        prefix=next((x.shape[1] for x in taps.prefix.values()), 0),
    )
    info.stages.who = who  # type: ignore[attr-defined]
    return info.without(absent, who)


def map_shape(x: Tensor) -> tuple[int, int, int]:
    """(D, H, W) of a map [B, D, H, W]."""
    return x.shape[1], x.shape[2], x.shape[3]
