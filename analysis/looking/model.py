"""Any model by name: timm's with published or random weights, or a weights file of this suite or of a timm model.

    vit_small_patch16_224                      timm's name, its published weights (with or without a tag behind a dot)
    vit_small_patch16_224=my/file.safetensors  the same architecture with weights of a file
    swin_s_mini=my/file.safetensors            a model of hkd.models.cards.zoo

Files hold tensors by name; code in them is never run, and every tensor must fit.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from analysis.looking.attention import patch_grid
from hkd import registry
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.files import classes_of, read_weights
from hkd.models.families.base import family_of
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights
from hkd.spec import ModelCard
from hkd.training.rng import seed_all

GUESS = 10  # classes of a network that is built to learn the name of its classifier


@dataclass(frozen=True)
class Subject:
    """A model to be analysed, in evaluation mode, and what its images should be like.

    label: for people, not unique. net: a timm model, or a TapModel. size: (height, width) of its images in px. mean,
    std: of its normalisation; None: as the model itself says. crop_pct: share of an image that the centre crop takes.
    weights: where its weights are from.
    """

    label: str
    net: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_pct: float
    weights: str


@dataclass(frozen=True)
class Name:
    """What a user's text means. arch: timm's name or a card's. card: None for timm's. file: None without one."""

    arch: str
    card: ModelCard | None
    file: Path | None


def parse(text: str, *, random: bool = False) -> Name:
    """The meaning of a model's text (see the head of this file), without building anything.

    Args:
        text: what the user gave.
        random: whether a model without a file takes random weights.

    Raises:
        UserError: no such model, no such file, or no weights for it.
    """
    arch, equals, path = text.partition("=")
    card = None if timm.is_model(arch) else ZOO.get(arch)
    if card is None and not timm.is_model(arch):
        nearest = registry.nearest(arch, [*ZOO, *timm.list_models()])
        raise UserError(f"There is no model '{arch}' in timm {timm.__version__} or in this suite's zoo.{nearest}")
    if card is None:
        check_tag(arch)
    file = Path(path) if equals else None
    if file is not None:
        if not file.is_file():
            raise UserError(f"There is no weights file '{path}' for {arch}; models are NAME or NAME=FILE.safetensors.")
    elif not random and card is not None:
        instead = f", or take timm's {card.pretrained}" if card.pretrained else ""
        raise UserError(
            f"{arch} is a model of this suite: give its weights, {arch}=FILE.safetensors{instead}, or ask for random "
            "ones."
        )
    elif not random:
        published(arch)
    return Name(arch, card, file)


def check_tag(arch: str) -> None:
    """Raise UserError for a tag that timm does not know; it also says what images a model sees."""
    base, _, tag = arch.partition(".")
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")] if tag else []
    if tag and tag not in tags:
        known = f" Known: {', '.join(tags)}." if tags else ""
        raise UserError(f"timm has no weights '{tag}' of {base}.{registry.nearest(tag, tags)}{known}")


def published(arch: str) -> None:
    """Raise UserError unless timm knows published weights for a name, with or without a known tag."""
    if not timm.is_model_pretrained(arch.partition(".")[0]):
        raise UserError(
            f"timm has no published weights of {arch}: give {arch}=FILE.safetensors, or ask for random ones."
        )


def load(
    text: str,
    *,
    random: bool = False,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
) -> Subject:
    """Build a model and load its weights.

    Args:
        text: see the head of this file.
        random: random weights for a model without a file, instead of the published ones.
        seed: of random weights.
        image_size: (height, width) in px; the model's own unless given.
        device: where it goes.

    Raises:
        UserError: an unknown model, weights that do not fit or cannot be downloaded, or a size it cannot take.
    """
    name = parse(text, random=random)
    try:
        subject = _load(name, random, seed, image_size, device)
        if image_size is not None:  # not every network says at once what it cannot take
            with torch.no_grad():
                subject.net.forward_features(torch.zeros(1, 3, *image_size, device=device))  # type: ignore[operator]
            if 0 in (patch_grid(subject.net, image_size) or ()):
                raise ValueError("they are smaller than a patch")
    except UserError:
        raise
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        if image_size is None:
            raise
        raise UserError(f"{name.arch} cannot take images of {image_size[0]}x{image_size[1]} px: {error}") from error
    return subject


def given(net: Any) -> Subject:
    """A module as it is: what its images should be like is what it says itself, or usual."""
    known = getattr(net, "pretrained_cfg", None) or {}
    size = (known.get("input_size") or (3, 224, 224))[1:]
    size = getattr(getattr(net, "patch_embed", None), "img_size", None) or size
    if isinstance(net, TapModel):
        size = (net.card.image_size,) * 2
    crop_pct = float(known.get("crop_pct") or 1.0)
    return Subject(type(net).__name__, net, tuple(size), None, None, crop_pct, "as given")


def untrained(card: ModelCard, seed: int = 0) -> TapModel:
    """A model of the suite with random weights: the control of figures."""
    seed_all(seed, "init")
    return TapModel(card, 0)


def _load(
    name: Name, random: bool, seed: int, image_size: tuple[int, int] | None, device: str | torch.device
) -> Subject:
    """The rest of `load`."""
    if name.file is not None:
        net = _from_file(name, name.file, image_size)
        sha = load_weights(net, name.file)
        label, weights = f"{name.arch} ({_short(name.file)})", f"{name.file}, SHA-256 {sha}"
    elif random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = _build(name, image_size)
        label, weights = f"{name.arch} (random)", f"random, seed {seed}"
    else:
        net = _published(name.arch, image_size)
        label, weights = (
            name.arch,
            f"published, timm {timm.__version__}: {net.pretrained_cfg.get('hf_hub_id') or name.arch}",
        )
    known = resolve_model_data_config(net)
    mean, std, size = known["mean"], known["std"], tuple(known["input_size"][1:])
    if name.card is not None:
        mean, std, size = name.card.mean, name.card.std, (name.card.image_size,) * 2
    net = net.to(device).eval().requires_grad_(False)
    return Subject(label, net, image_size or size, tuple(mean), tuple(std), known["crop_pct"], weights)


def _build(name: Name, size: tuple[int, int] | None, classes: int | None = None) -> Any:
    """A network with random weights, for images of that size. classes: of its classifier; None for its default."""
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    extra: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    try:
        if name.card is None:
            return timm.create_model(name.arch, pretrained=False, **options, **extra)
        card = replace(name.card, kwargs=name.card.kwargs | options)
        return family_of(card.family).build(card, classes or 0)
    except TypeError:  # convolutions do not ask for the size of their images
        if not options:
            raise
        return _build(name, None, classes)


def _from_file(name: Name, file: Path, size: tuple[int, int] | None) -> nn.Module:
    """A network with as many classes as the file has."""
    net = _build(name, size, GUESS)
    classifiers = net.get_classifier()
    heads = classifiers if isinstance(classifiers, tuple | list) else (classifiers,)
    names = {path for path, module in net.named_modules() if any(module is head for head in heads)}
    state = read_weights(file)
    found = [state[f"{path}.weight"] for path in sorted(names) if f"{path}.weight" in state]
    return _build(name, size, classes_of(found[0]) if found else 0)


def _published(arch: str, size: tuple[int, int] | None) -> Any:
    """timm's model with its published weights."""
    options: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        with _quiet("huggingface_hub"):  # which tells of every attempt
            try:
                return timm.create_model(arch, pretrained=True, **options)
            except TypeError:
                return timm.create_model(arch, pretrained=True)
    except Exception as error:  # whatever the network, the hub's client or the disk raises
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"The published weights of {arch} cannot be had ({type(error).__name__}: {reason}); give a file, "
            f"{arch}=FILE.safetensors, or ask for random weights."
        ) from error


def _short(file: Path) -> str:
    """A file's name for people, who read the key of a run nowhere: its student is called trained."""
    return "trained" if file.stem == "student" else file.stem


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Only errors of a logger inside."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
