"""A model card as timm names it: an architecture of its registry and keyword arguments that JSON can hold.

What timm has a name for keeps timm's name, however many of its numbers differ. What no argument of timm's can say (a
ResNet without max-pooling, another stem, blocks of one's own, a Mixer of another size) has a name of ours, which
`modeling.py` beside the weights teaches timm: plain timm then refuses the name, and never computes something else.
"""

from dataclasses import dataclass
from typing import Any

from hkd.errors import UserError
from hkd.models.cards.zoo import BEIT, CONVNEXT, EFFICIENTNET, MIXER, SWIN, VIT
from hkd.spec import ModelCard

# An entry point of timm that takes every argument of the class.
ENTRIES = {
    VIT: "vit_small_patch16_224",
    SWIN: "swin_tiny_patch4_window7_224",
    CONVNEXT: "convnext_tiny",
    BEIT: "beit_base_patch16_224",
}
OWN = "hkd_"  # what the names in modeling.py begin with


@dataclass(frozen=True)
class TimmForm:
    """architecture: a name of timm's registry, or of `modeling.py`. args: keyword arguments, JSON values."""

    architecture: str
    args: dict[str, Any]

    @property
    def own(self) -> bool:
        """Whether timm needs `modeling.py` to know the name."""
        return self.architecture.startswith(OWN)


def timm_form(card: ModelCard) -> TimmForm:
    """A card as timm names it; masks and other initial weights, which some families add, change no output.

    Raises:
        UserError: a class that neither timm nor `modeling.py` has a name for, or a network of four channels.
    """
    if card.family == "channel_resnet":
        raise UserError(
            f"{card.name} reads a fourth channel, the mask, which timm's networks for images have not: export a "
            "student of another family."
        )
    args = {key: value for key, value in plain(card.kwargs).items() if value is not None}
    family = card.family.removeprefix("sparse_")
    if family == "resnet" and not (args.get("maxpool", True) and args.get("stem") is None):
        return TimmForm("hkd_resnet", {"arch": card.arch, **args})
    if family == "resnet":
        args.pop("maxpool", None)
    if family in ("mobilenet", "mobilenet_v2") and (card.arch == EFFICIENTNET or args.get("stem_stride", 2) != 2):
        return TimmForm("hkd_efficientnet", args if card.arch == EFFICIENTNET else {"arch": card.arch, **args})
    if card.arch == MIXER:
        return TimmForm("hkd_mixer", args | ({"affine": True} if family == "resmlp" else {}))
    if family == "mobilenet":
        args.pop("stem_stride", None)
    if ":" not in card.arch:
        return TimmForm(card.arch, args)
    if card.arch not in ENTRIES:
        raise UserError(
            f"{card.name} is built by {card.arch}, which timm has no name for and modeling.py does not build: "
            "export a student whose class one of them has."
        )
    if card.arch == BEIT and "init_values" not in args:
        return TimmForm("hkd_beit", args)
    if card.arch == CONVNEXT and card.kwargs.get("ls_init_value", 0.0) is None:  # timm drops None: a name that has it
        return TimmForm("convnextv2_tiny", {"use_grn": False, **args})
    return TimmForm(ENTRIES[card.arch], args)


def plain(value: Any) -> Any:
    """Tuples as lists, which is what JSON makes of them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
