"""Somebody's checkpoint as a model that can be measured: which architecture, whose names, which images it takes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
from pydantic import BaseModel, Field, Strict, ValidationError
from torch import Tensor, nn

from experiments.documents import Finite, read_json
from experiments.sharing.export import CONFIG, NOT_LOADED, WEIGHTS, loaded
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.files import classes_of, read_weights
from hkd.models.convert.foreign import renamed
from hkd.models.convert.legacy import modernise
from hkd.models.families.base import family_of
from hkd.options import Positive, Size
from hkd.registry import nearest
from hkd.spec import ModelCard
from hkd.tasks.train import classifier_names

# Names of a classifier's weights in files of this and of other houses.
HEADS = ("head.fc.weight", "fc.weight", "classifier.weight", "head.weight", "head.layers.head.weight")
AKIN = 0.2  # of the tensors that must agree for a family to be named


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What is said of a checkpoint: accuracy in percent, millions of parameters, GMACs of one image."""

    top1: float | None = None
    params_m: float | None = None
    gmacs: float | None = None
    who: str = ""  # behind a number: "that are claimed", "of its config.json"


class Settings(BaseModel):
    """`pretrained_cfg` of timm: which images a model takes."""

    input_size: tuple[Size, Size, Size]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    crop_pct: Annotated[float, Strict(), Field(ge=0.1, le=1)] | None = None


class Metrics(BaseModel):
    """What was measured of an exported student; top-1 in percent."""

    top1: Annotated[Finite, Field(ge=0, le=100)] | None = None


class Data(BaseModel):
    """The data set that it was measured on."""

    name: str
    options: dict[str, Any] | None = None
    fingerprint: str | None = None


class Exported(BaseModel):
    """What `hkd export` adds to a config.json."""

    metrics: Metrics = Metrics()
    params_m: Annotated[Finite, Field(ge=0)] | None = None
    gmacs: Annotated[Finite, Field(ge=0)] | None = None
    data: Data | None = None


class Config(BaseModel):
    """A config.json as timm writes it: what is read of it here, the rest is timm's."""

    architecture: str
    pretrained_cfg: Settings
    label_names: tuple[str, ...] | None = None
    hkd: Exported | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in evaluation mode with the images that it takes.

    name: of the model. side: in px. crop_pct: the centre crop's share of the resized short side. labels: names of its
    classes in the order of its logits, if it brings them. data: that it was measured on, if it says so. told:
    what was done to load it, as sentences.
    """

    name: str
    net: nn.Module
    classes: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    labels: tuple[str, ...] | None = None
    claims: Claims = Claims()
    data: Data | None = None
    told: tuple[str, ...] = field(default=())


def checkpoint(path: Path, model: str | None) -> Checkpoint:
    """A checkpoint as timm, this suite, OFA-KD, ScaleKD or mmcls name it.

    Args:
        path: a file of weights, or a folder that `hkd export` or timm wrote.
        model: card of ours or timm name; not needed for a folder.

    Raises:
        UserError: it is not there, damaged, of another architecture, or no model was named.
    """
    if path.is_dir():
        return of_folder(path, model)
    if model is None:
        raise UserError(f"{path} does not say what it is: name its model with --model, as `resnet50`.")
    return of_file(path, model)


def of_folder(folder: Path, model: str | None) -> Checkpoint:
    """A folder with config.json, as timm reads it."""
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not config.is_file():
        raise UserError(f"{folder} has no {CONFIG}; give a file of weights, or a folder that `hkd export` wrote.")
    found = config_in(config)
    if model is not None and model != found.architecture:
        raise UserError(f"{folder} is a '{found.architecture}' by its {CONFIG}, not a '{model}'; leave --model out.")
    read_weights(weights)  # refuses what is no file of tensors before timm reads it
    try:
        net = loaded(folder)
    except UserError:
        raise
    except NOT_LOADED as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"timm {timm.__version__} does not load {folder} ({first.rstrip('.')}).") from error
    settings, own = found.pretrained_cfg, found.hkd or Exported()
    claims = Claims(top1=own.metrics.top1, params_m=own.params_m, gmacs=own.gmacs, who=f"of its {CONFIG}")
    return Checkpoint(
        name=found.architecture,
        net=net,
        classes=net.num_classes,
        side=settings.input_size[-1],
        mean=settings.mean,
        std=settings.std,
        crop_pct=settings.crop_pct or 1.0,
        labels=found.label_names,
        claims=claims,
        data=own.data,
        told=(f"Loaded by timm from {folder}.",),
    )


def config_in(path: Path) -> Config:
    """What a config.json says. Raises UserError where it is not one, and names the key."""
    try:
        return Config.model_validate(read_json(path))
    except OSError as error:
        raise UserError(f"Cannot read {path} ({error.strerror or error}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is not what timm writes: {key}: {first['msg']}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not what timm writes ({error}).") from error


def of_file(path: Path, model: str) -> Checkpoint:
    """A file of weights as a card of ours, or as a model of timm."""
    state = read_weights(path)
    card = ZOO.get(model)
    if card is None and not timm.is_model(model.partition(".")[0]):
        known = [*ZOO, *timm.list_models()]
        raise UserError(f"Neither this suite nor timm {timm.__version__} has a model '{model}'.{nearest(model, known)}")
    net, told = fit(path, state, model, card)
    classes = net.num_classes
    settings: dict[str, Any]
    if card is not None:
        settings = {"side": card.image_size, "mean": card.mean, "std": card.std, "crop_pct": 0.875}
    else:
        known_cfg = timm.get_pretrained_cfg(model) or timm.get_pretrained_cfg(model.partition(".")[0])
        cfg = timm.data.resolve_data_config(pretrained_cfg=known_cfg.to_dict() if known_cfg else {})
        settings = {"side": cfg["input_size"][-1], "mean": cfg["mean"], "std": cfg["std"], "crop_pct": cfg["crop_pct"]}
    claims = Claims()
    if card is not None and classes == 1000:
        claims = Claims(params_m=card.params_m, gmacs=card.gmacs, who=f"of the card of {card.name}")
    return Checkpoint(name=model, net=net, classes=classes, claims=claims, told=told, **settings)


def fit(path: Path, state: Mapping[str, Tensor], model: str, card: ModelCard | None) -> tuple[Any, tuple[str, ...]]:
    """The model with the weights of a file, and what was done to their names.

    Raises:
        UserError: they are of another architecture; the nearest one known here is named.
    """
    probe = build(model, card, 1)
    heads = [name.removesuffix(".weight") for name in classifier_names(probe) if name.endswith(".weight")]
    ours = renamed(state, heads[0] if heads else "head")
    head = next((ours.state[name] for name in (*(f"{h}.weight" for h in heads), *HEADS) if name in ours.state), None)
    classes = classes_of(head)
    if not classes:
        raise UserError(f"{path} has no classifier, so it has no accuracy; `hkd analyse` looks at encoders.")
    net = build(model, card, classes)
    told = ours.told
    try:
        fitted = modernise(ours.state, net)
    except UserError as error:
        raise UserError(f"{path} is no {model}. {error}{akin(ours.state, classes)}") from error
    if not told:
        same = sum(name in state for name in fitted)
        told = (
            "All names are as timm has them."
            if same == len(fitted)
            else f"{len(fitted) - same} of {len(fitted)} names are of an older timm or of the model's authors, and "
            "were made today's.",
        )
    net.load_state_dict(fitted)
    return net.eval(), told


def build(model: str, card: ModelCard | None, classes: int) -> Any:
    """The network of a card of ours, or of a timm name, with random weights."""
    if card is not None:
        return family_of(card.family).build(card, classes)
    return timm.create_model(model.partition(".")[0], pretrained=False, num_classes=classes)


def akin(state: Mapping[str, Tensor], classes: int) -> str:
    """` By its tensors it is nearest to ...`: our card that shares most names and shapes; "" if none shares many."""
    # Sparse and masked families are other uses of the same networks.
    cards = [card for card in ZOO.values() if not card.family.startswith(("sparse_", "hybrid_", "view_", "mim_"))]
    smallest: dict[str, ModelCard] = {}
    for card in sorted(cards, key=lambda card: card.params_m or 0.0):
        smallest.setdefault(card.family, card)
    family = max(smallest, key=lambda name: likeness(state, smallest[name], classes)[1])
    found = {card.name: likeness(state, card, classes) for card in cards if card.family == family}
    best = max(found, key=lambda name: found[name])
    equal, kinds = found[best]
    if kinds < AKIN:
        return ""
    said = f"{100 * equal:.0f} % agree in name and shape"
    return f" By its tensors it is nearest to {best}, a '{family}' ({said})."


def likeness(state: Mapping[str, Tensor], card: ModelCard, classes: int) -> tuple[float, float]:
    """Shares of tensors that a file and a card have in common: by name and shape, and by name without its numbers."""
    with torch.device("meta"):
        own = build(card.name, card, classes).state_dict()
    sides = [{(name, tuple(value.shape)) for name, value in side.items()} for side in (state, own)]
    kinds = [{re.sub(r"\d+", "#", name) for name in side} for side in (state, own)]
    equal, alike = (len(a & b) / len(a | b) for a, b in (sides, kinds))
    return equal, alike
