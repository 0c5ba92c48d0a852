"""timm models that somebody else built: which family runs them, and where their stages are."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hkd.errors import UserError
from hkd.models import FAMILIES
from hkd.models.families.any_timm import TimmFamily
from hkd.models.families.base import Family, family_of
from hkd.models.named_taps import HOW_TO_NAME, STAGES
from hkd.models.tap_model import TapModel
from hkd.spec import ModelCard


def own_size(model: nn.Module | str) -> int | None:
    """Side in px of the images that a timm model was built for; None for other models."""
    if isinstance(model, TapModel | str) or not is_timm(model):
        return None
    built = (getattr(getattr(model, part, None), "img_size", None) for part in ("patch_embed", "stem"))
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return next(filter(None, (*built, cfg.get("input_size", (3, None))[1:])))[0]


def unknown_taps(net: nn.Module, who: str) -> str:
    """What to do about a timm class that `Family` does not read rightly."""
    return f"The taps of the {who}, a timm {type(net).__name__}, are not known: {HOW_TO_NAME}."


def is_timm(net: nn.Module) -> bool:
    """Whether a model's class is timm's, or made from one."""
    return timm_file(net) is not None and hasattr(net, "forward_intermediates")


def timm_file(net: nn.Module) -> str | None:
    """Name of the timm file that defines a model's class: `resnet`; None for classes that are not timm's."""
    modules = (kind.__module__ for kind in type(net).__mro__)
    return next((name.rpartition(".")[2] for name in modules if name.startswith("timm.models.")), None)


def timm_family(net: nn.Module) -> Family:
    """How a timm model is run."""
    families = (family_of(name) for name in FAMILIES)
    return next((family for family in families if timm_file(net) in family.timm_files), TimmFamily())


def timm_card(net: Any, family: Family, side: int) -> ModelCard:
    """What is known of a timm model, which a method may refuse."""
    architecture = (getattr(net, "pretrained_cfg", None) or {}).get("architecture") or type(net).__name__
    return ModelCard(name=architecture, family=family.name, arch=architecture, image_size=side)


def timm_stages(maps: Sequence[Tensor], who: str, given: Mapping[int, int]) -> tuple[int, ...]:
    """Indices of stages 1 to 4 among a timm model's intermediate maps.

    Unless given: the last four; of models whose maps are all of one size (ViT, Mixer), the ends of the four quarters.
    """
    if given:
        if sorted(given) != [*STAGES]:
            raise UserError(f"Stages of the {who} by index must be all four, got {sorted(given)}.")
        return tuple(given[stage] for stage in STAGES)
    count = len(maps)
    if len({x.shape for x in maps}) == 1:
        return tuple(max(0, count * stage // 4 - 1) for stage in STAGES)
    return tuple(max(0, count - 5 + stage) for stage in STAGES)
