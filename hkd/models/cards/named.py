"""The card of a model by whatever name a user has for it: one of ours, of timm, or the dotted path of a factory.

A timm name may have a tag (`resnet18.a1_in1k`), which says whose weights are meant. A factory is called as
`make(num_classes=10)` and gives any module that takes images and gives logits. Names of ours come first; their cards
are known without torch.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from hkd.errors import UserError
from hkd.files import sha256
from hkd.models.cards.zoo import ZOO
from hkd.outside import found_outside, imported
from hkd.registry import nearest
from hkd.spec import ModelCard

# Families of CNNs, which take images of any size.
ANY_SIZE = ("convnext", "mobilenet", "mobilenet_v2", "resnet", "timm")
SIDE = 224  # px, of factories whose size nobody told
CLASSES = 10  # that a model is built with to be looked at; its card is for any number of them


def card_of(name: str, image_size: int | None = None, taps: Mapping[str, Any] | None = None) -> ModelCard:
    """The card of a model.

    Args:
        name: of a card of ours, of timm with or without a tag, a dotted path, or an entry point in `hkd.models`.
        image_size: side in px of the images that it sees, where it can have any; models that are built for one size
            keep it, and are shown resized images.
        taps: places of the taps of a factory's model by module name, as `Distiller` takes them; None: those of the
            factory's attribute `taps`, if it has one.

    Raises:
        UserError: there is none (the nearest names are told), or it cannot be built.
    """
    if name in ZOO:
        return sized(ZOO[name], image_size)
    if (path := found_outside("model", name)) is not None:
        return made_card(name, path, image_size, frozen(taps))
    return timm_card_of(name, image_size)


def sized(card: ModelCard, image_size: int | None) -> ModelCard:
    """A card of ours at another size, where its family takes any."""
    if image_size is None or image_size == card.image_size or card.family not in ANY_SIZE:
        return card
    gmacs = None if card.gmacs is None else card.gmacs * (image_size / card.image_size) ** 2
    return replace(card, image_size=image_size, gmacs=gmacs)


@cache
def timm_card_of(name: str, image_size: int | None) -> ModelCard:
    """The card of a timm model, from one that is built to be looked at."""
    import timm

    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        known = [*ZOO, *timm.list_models()]
        raise UserError(
            f"There is no model '{name}', neither here nor in timm {timm.__version__}.{nearest(arch, known)} "
            "`hkd models PATTERN` lists them; a model of your own is named by a dotted path, such as my_models:make."
        )
    try:
        cfg: Any = timm.get_pretrained_cfg(name)
    except RuntimeError:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{arch}.*")]
        raise UserError(
            f"timm {timm.__version__} has no weights '{tag}' of {arch}.{nearest(tag, tags)} "
            f"Known: {', '.join(tags) or 'none'}."
        ) from None
    side = cfg.input_size[1] if image_size is None or cfg.fixed_input_size else image_size
    tag = tag or cfg.tag or ""
    card = ModelCard(
        name=name,
        family="timm",
        arch=arch,
        image_size=side,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        pretrained=f"{arch}.{tag}".rstrip(".") if cfg.has_weights else None,
        source=f"timm {timm.__version__}",
    )
    return looked_at(timm.create_model(arch, pretrained=False, num_classes=CLASSES), card)


@cache
def made_card(name: str, path: str, image_size: int | None, taps: tuple[Any, ...] | None) -> ModelCard:
    """The card of what a factory makes; its source file is the model's identity."""
    factory = imported(path)
    if not callable(factory):
        raise UserError(f"'{name}' is a {type(factory).__name__}: name a function or class that makes a model.")
    try:
        file = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:  # what is built in, or an object that is called
        file = None
    if file is None:
        raise UserError(f"'{name}' has no source file, by which it would be known again: name a function in a file.")
    taps = frozen(getattr(factory, "taps", None)) if taps is None else taps
    card = ModelCard(
        name=name,
        family="own",
        arch=path,
        kwargs={} if taps is None else {"taps": thawed(taps)},
        image_size=SIDE if image_size is None else image_size,
        source=sha256(Path(file)),
    )
    from hkd.models.families.base import family_of

    net = family_of("own").build(card, CLASSES)
    return looked_at(net, card) if taps is None else measured(net, card)


def looked_at(net: Any, card: ModelCard) -> ModelCard:
    """The card with the family that runs the network and the places of its stages, as far as they are known.

    A module that is no timm model, or a timm one that no family reads rightly, is one whose logits alone are known.
    """
    import torch

    from hkd.models.adopted import answer, as_timm, images_to_look_with
    from hkd.models.hooks import evaluation_mode
    from hkd.models.timm_models import is_timm

    images = images_to_look_with(card.image_size, torch.zeros(()))
    with torch.no_grad(), evaluation_mode(net):
        plain = answer(net, card.name, images)
        if not is_timm(net):
            return measured(net, replace(card, family="own"))
        try:
            family, found, _ = as_timm(net, card.name, images, {}, plain)
        except UserError:
            return measured(net, replace(card, family="own"))
    return measured(net, replace(card, family=family.name, stages=found.stages))


def measured(net: Any, card: ModelCard) -> ModelCard:
    """The card with the model's size: parameters at `CLASSES` classes, and multiplications of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from hkd.models.hooks import evaluation_mode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), evaluation_mode(net), counter:
        net(torch.zeros(1, 3, card.image_size, card.image_size))
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return replace(card, params_m=parameters / 1e6, gmacs=counter.get_total_flops() / 2e9)


def frozen(value: Any) -> Any:
    """A mapping as something that can be remembered by."""
    return tuple((key, frozen(item)) for key, item in value.items()) if isinstance(value, Mapping) else value


def thawed(value: Any) -> Any:
    """The inverse of `frozen`, with texts for keys, as JSON has them."""
    return {str(key): thawed(item) for key, item in value} if isinstance(value, tuple) else value
