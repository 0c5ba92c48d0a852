"""Models of somebody's own, or of a timm class whose taps are not known: any module that gives logits.

`ModelCard.arch` is the dotted path of a factory, `my_models:make`, called as `make(num_classes=10)`, or a timm name.
"""

from typing import Any, ClassVar

import torch
from torch import nn

from hkd.errors import UserError
from hkd.models.families.base import Family
from hkd.models.hooks import evaluation_mode
from hkd.models.named_taps import NamedFamily
from hkd.models.taps import TapInfo
from hkd.spec import ModelCard


class OwnFamily(Family):
    """Keys of its own in `ModelCard.kwargs`.

    taps: places of the taps by module name, as `Distiller` takes them; without it the logits alone are known.
    """

    name: ClassVar[str] = "own"

    def construct(self, arch: str, kwargs: dict[str, Any]) -> Any:
        kwargs.pop("taps", None)
        try:
            net: Any = super().construct(arch, kwargs)
        except UserError:
            raise
        except Exception as error:  # whatever somebody's factory raises
            given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
            raise UserError(f"{arch}({given}) raised {type(error).__name__}: {error}") from error
        if not isinstance(net, nn.Module):
            raise UserError(f"{arch} must return a torch.nn.Module, and gives a {type(net).__name__}.")
        return net

    def adopt(self, card: ModelCard, net: Any) -> tuple[Family, TapInfo]:
        """By the names of its taps, as far as they are told.

        Raises:
            UserError: it does not take images of its size, gives no logits, or has not the modules that are named.
        """
        from hkd.models.adopted import answer, as_named, images_to_look_with

        taps = stages_as_numbers(card.kwargs.get("taps"))
        first = next(net.parameters(), None)
        if first is None:
            raise UserError(f"The model {card.name} has no parameters.")
        images = images_to_look_with(card.image_size, first)
        with torch.no_grad(), evaluation_mode(net):
            answer(net, card.name, images)
            family = NamedFamily(net, card.name, taps)
            return family, as_named(net, family, card, images)


def stages_as_numbers(taps: Any) -> Any:
    """Taps as they were told, where JSON made texts of the numbers of the stages."""
    if not isinstance(taps, dict) or not isinstance(taps.get("stages"), dict):
        return taps
    return {**taps, "stages": {int(stage): name for stage, name in taps["stages"].items()}}
