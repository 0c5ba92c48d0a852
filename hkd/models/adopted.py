"""Networks that somebody else built, behind the taps contract."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models.families.any_timm import TimmFamily, reading_of
from hkd.models.families.base import Family
from hkd.models.hooks import evaluation_mode
from hkd.models.named_taps import STAGES, NamedFamily, Overwritten, PartialInfo, StageShapes, TapNames
from hkd.models.normalise import Normalise
from hkd.models.tap_model import Built
from hkd.models.taps import TapInfo, Want
from hkd.models.timm_models import is_timm, timm_card, timm_family, timm_stages, unknown_taps
from hkd.models.transformers_models import FromTransformers
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
    taps = net.taps if taps is None and isinstance(net, FromTransformers) else taps
    stages = dict((taps or {}).get("stages") or {})
    indexed = bool(stages) and all(type(place) is int for place in stages.values())
    first = next(net.parameters(), None)
    if first is None:
        raise UserError(f"The {who} has no parameters.")
    images = images_to_look_with(side, first)
    with torch.no_grad(), evaluation_mode(net):
        plain = answer(net, who, images)
        if is_timm(net) and (taps is None or indexed):
            try:
                family, card, info = as_timm(net, who, images, stages, plain)
                return card, Built(net, family, GivenImages(card.name, side, stats, first), info)
            except UserError:
                if indexed:
                    raise
        # Of a timm class that cannot be read the logits alone are known, as of any module.
        named = NamedFamily(net, who, taps)
        named.who = f"{who}, a timm {type(net).__name__}" if is_timm(net) and taps is None else who
        card = ModelCard(name=f"the {who}", family=named.name, arch=type(net).__name__, image_size=side)
        info = as_named(net, named, card, images)
    return card, Built(net, named, GivenImages(card.name, side, stats, first), info)


def images_to_look_with(side: int, like: Tensor) -> Float[Tensor, "1 3 side side"]:
    """One image by which a model's taps are found, on the device and of the type of a parameter of it.

    Not zeros: models that begin with a norm could not tell two wrong readings of them apart.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.rand(1, 3, side, side, generator=generator, device="cpu").to(like)


def answer(net: nn.Module, who: str, images: Tensor) -> Any:
    """What a module gives for images.

    Raises:
        UserError: it does not take them.
    """
    try:
        return net(images)
    except UserError:
        raise
    except Exception as error:  # whatever somebody else's module raises
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"The {who} does not take images {[*images.shape]} of {images.dtype}: {first}") from error


def as_timm(
    net: Any, who: str, images: Tensor, stages: Mapping[int, int], plain: Any
) -> tuple[Family, ModelCard, TapInfo]:
    """How a timm model is run, and the shapes of its taps, after a look at whether they are those of the model itself.

    Args:
        net: the model.
        who: "student", or a teacher's role.
        images: square ones.
        stages: their indices, if given.
        plain: what the model gives for the images.

    Raises:
        UserError: its class is not read rightly.
    """
    family = timm_family(net)
    try:
        card = timm_card(net, family, images.shape[-1])
        features, maps = net.forward_intermediates(images, norm=False, output_fmt="NCHW")
        if isinstance(family, TimmFamily):
            family = TimmFamily(reading_of(net, features, maps))
        card = replace(card, stages=timm_stages(maps, who, stages))
        taps = family.forward(net, card, images, Want(stages=STAGES))
        right = (
            isinstance(plain, Tensor)
            and taps.logits.shape == plain.shape
            and taps.logits.allclose(plain)
            and taps.pooled.ndim == 2
            and all(x.ndim == 4 and x.shape[2] == x.shape[3] for x in (taps.final, *taps.stages.values()))
            and (not isinstance(family, TimmFamily) or unchanged(net, images, card, taps.stages))
        )
    except UserError:
        raise
    except Exception as error:  # whatever a class that `Family` was not made for raises, in its words
        first = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{unknown_taps(net, who)} ({type(error).__name__}: {first})") from error
    if not right:
        raise UserError(unknown_taps(net, who))
    return (
        family,
        card,
        TapInfo(
            classes=taps.logits.shape[1],
            pooled=taps.pooled.shape[1],
            final=map_shape(taps.final),
            stages={stage: map_shape(x) for stage, x in taps.stages.items()},
            prefix=next((x.shape[1] for x in taps.prefix.values()), 0),
        ),
    )


def unchanged(net: Any, images: Tensor, card: ModelCard, maps: Mapping[int, Tensor]) -> bool:
    """Whether the maps of a timm model's stages are those of passes that end there, so that nothing changed them."""
    options = {"stop_early": True, "intermediates_only": True, "norm": False, "output_fmt": "NCHW"}
    alone = (net.forward_intermediates(images, indices=[index], **options)[0] for index in card.stages)
    return all(map(torch.equal, alone, maps.values()))


def as_named(net: nn.Module, family: NamedFamily, card: ModelCard, images: Tensor) -> TapInfo:
    """Shapes of the taps that were named; finds those that must be copied.

    Raises:
        UserError: outputs that are no logits, maps or tokens.
    """
    try:
        taps = family.forward(net, card, images, Want(stages=family.stages))
    except Overwritten as error:
        family.copied |= {*error.keys}
        taps = family.forward(net, card, images, Want(stages=family.stages))
    info = PartialInfo(
        classes=taps.logits.shape[1],
        pooled=0 if "pooled" in family.absent else taps.pooled.shape[1],
        final=(0, 0, 0) if "final" in family.absent else map_shape(taps.final),
        stages=StageShapes({stage: map_shape(x) for stage, x in taps.stages.items()}),
        prefix=next((x.shape[1] for x in taps.prefix.values()), 0),
    )
    info.stages.who = family.who  # type: ignore[attr-defined]
    return info.without(family.absent, family.who)


def map_shape(x: Tensor) -> tuple[int, int, int]:
    """(D, H, W) of a map [B, D, H, W]."""
    return x.shape[1], x.shape[2], x.shape[3]
