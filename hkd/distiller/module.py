"""Distillation for somebody else's training loop: one module that turns images and labels into named losses.

    distiller = Distiller(student, teacher, "kd", tau=4.0)
    optimizer = torch.optim.AdamW(distiller.parameters())
    for x, y in loader:
        losses = distiller(x, y)
        sum(losses.values()).backward()

A model is a timm model, one of the zoo (`TapModel`, `Teacher`), or any module whose taps are told by module name.
Shapes: B batch, C classes, D width, H W grid, N patch tokens, P prefix tokens.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hkd import registry
from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods import METHODS
from hkd.methods.base import Criterion, Method, Needs, Samples
from hkd.models import FAMILIES
from hkd.models.cards.zoo import ZOO
from hkd.models.families.base import BLOCK_TAPS, Family, family_of
from hkd.models.hooks import evaluation_mode, recorded_outputs
from hkd.models.normalise import Normalise
from hkd.models.tap_model import Built, TapModel, Teacher
from hkd.models.taps import TapInfo, Taps, Want, tokens_to_map
from hkd.spec import ModelCard, Recipe
from hkd.training.step import TapStep

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std of RGB in [0, 1]
TapNames = Mapping[str, Any]  # see Distiller

STAGES = (1, 2, 3, 4)
TAP_KEYS = ("stages", "final", "pooled", "prefix")


class Distiller(nn.Module):
    """A student, its frozen teachers and a method of `hkd.METHODS`, as one module to train.

    `parameters()` and `state_dict()` hold the student and the method's adapters, never a teacher; `student` is the
    plain model. Teachers are set to evaluation mode, keep it whatever `train()` is called, and get no gradient; `to()`
    moves them along. A wrapper such as `DistributedDataParallel` goes around the whole distiller.
    """

    teachers: dict[str, Teacher]
    step: TapStep

    def __init__(
        self,
        student: nn.Module | str,
        teacher: nn.Module | str | Mapping[str, nn.Module] | None,
        method: str,
        *,
        num_classes: int | None = None,
        image_size: int | None = None,
        taps: TapNames | None = None,
        teacher_taps: TapNames | None = None,
        normalize: bool | Mapping[str, Statistics] = False,
        criterion: Criterion = F.cross_entropy,
        samples: Any = None,
        **options: Any,
    ) -> None:
        """Look at the taps of all models with one image each and build the method's adapters (from torch's generator).

        Args:
            student: a timm model, a `TapModel`, the name of a card of `hkd.ZOO` (random weights), or any module that
                returns logits [B, C].
            teacher: as the student, with its weights; several by role, {role: model}; None where none is needed.
            method: a name of `hkd.METHODS`.
            num_classes: of the data; None: as many as the student has logits. A student by name needs it.
            image_size: side in px of the images that timm models and other plain modules will get; None: that of the
                timm student, else of a timm teacher.
            taps: where the taps of the student are: {"stages": {1: "layer1", ..., 4: "layer4"}} by module name (as in
                `named_modules()`; maps [B, D, H, W], or tokens [B, P + N, D] of a square grid behind "prefix": P other
                ones, 0 unless given). "final", the last map, is stage 4 unless given, and "pooled" ([B, D]) its mean.
                A timm model needs none; its stages may be given as indices of `forward_intermediates` instead of names.
            teacher_taps: the same of the teacher; by role where there are several.
            normalize: False: timm models and other plain modules see the images as they are. True: images are RGB in
                [0, 1], and a timm model sees them by the mean and std of its own `pretrained_cfg`. A mapping of
                "student" or a teacher's role to (mean, std): as True, with these. Models of the zoo always take [0, 1].
            criterion: the task loss: (logits [B, C], targets [B] or [B, C]) -> scalar.
            samples: labels [N] of the training set by index, for methods that keep something of every sample (CRD);
                or a `Samples`, where a method follows the epochs.
            options: of the method.

        Raises:
            Refused: the method cannot serve these models.
            UserError: anything else that cannot be, in a sentence.
        """
        super().__init__()
        kind: type[Method] = registry.load(registry.lookup("method", method, METHODS))
        config: Any = registry.configured(kind.Config, f"Method '{method}'", options)
        needs = kind.needs(config)
        named: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
        named = dict(teacher) if isinstance(teacher, Mapping) else named
        for role in needs.teachers:
            if role not in named:
                raise Refused(f"Method '{method}' needs a teacher with the role '{role}'.")
            if isinstance(named[role], str):
                raise UserError(
                    f"The {role} is a name ('{named[role]}'), which brings no weights; give a model that has them, "
                    f"such as timm.create_model(..., pretrained=True), or an hkd.Teacher after load_state_dict."
                )
        named = {role: named[role] for role in needs.teachers}
        side = image_size or next(filter(None, map(own_size, (student, *named.values()))), None)
        stats = statistics_of({"student": student, **named}, normalize)
        tapped = student_of(student, num_classes, side, taps, stats["student"])
        by_role = teacher_taps if isinstance(teacher, Mapping) else {"teacher": teacher_taps}
        teachers = {
            role: teacher_of(model, role, side, (by_role or {}).get(role), stats[role]) for role, model in named.items()
        }
        check(method, kind, config, needs, tapped, teachers, num_classes)
        adapters = kind(config, tapped.info, teachers, criterion)
        if kind.prepare is not Method.prepare:
            adapters.prepare(samples_of(method, samples, tapped.info.classes))
        self.method, self.needs = method, needs
        self.step = TapStep(tapped, adapters, needs)
        # As in Method: kept out of parameters() and state_dict().
        object.__setattr__(self, "teachers", teachers)
        self.to(next(tapped.parameters()).device)

    @property
    def student(self) -> nn.Module:
        """The plain model that is trained; for one of the zoo, the timm model inside."""
        return self.step.student.net

    def forward(self, x: Tensor, y: Tensor, index: Tensor | None = None) -> dict[str, Tensor]:
        """Named, weighted scalar losses of a batch; their sum is to be minimised.

        Args:
            x: images [B, 3, H, W]; see `normalize`.
            y: class indices [B], or soft targets [B, C].
            index: row of each sample in the training set [B], for methods that know samples again (CRD).

        Raises:
            UserError: the method needs what is not given, or the images are not of the size that was told.
        """
        if self.needs.index and index is None:
            raise UserError(
                f"Method '{self.method}' knows samples again by their row in the training set: call "
                f"distiller(x, y, index=index)."
            )
        if self.needs.hard_labels and y.ndim != 1:
            raise UserError(f"Method '{self.method}' needs class labels [B], got targets of shape {[*y.shape]}.")
        batch = Batch(x=x, y=y, index=torch.arange(len(y), device=y.device) if index is None else index)
        method = self.step.method
        taps_t = {
            role: self.teachers[role](x, want, **method.teacher_inputs(role, batch))
            for role, want in self.needs.teachers.items()
        }
        try:
            return self.step(batch, taps_t)
        except (RuntimeError, TypeError) as error:  # the latter from a checker of shapes
            classes = self.step.student.info.classes
            for role, other in self.teachers.items():
                if other.info.classes != classes:
                    raise UserError(
                        f"Method '{self.method}' cannot compare a {role} of {other.info.classes} classes with a "
                        f"student of {classes}; take a teacher that was trained on these classes."
                    ) from error
            raise

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        """Whatever moves the student (`to`, `cuda`, `double`) moves the teachers."""
        for teacher in self.teachers.values():
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


# -- the parts of a distiller -----------------------------------------------------------------------------------


def student_of(
    model: nn.Module | str, num_classes: int | None, side: int | None, taps: TapNames | None, stats: Statistics | None
) -> TapModel:
    """The student behind the taps contract."""
    if isinstance(model, str):
        card = registry.lookup("model", model, ZOO)
        if num_classes is None:
            raise UserError(
                f"A student by name needs its number of classes: Distiller('{model}', ..., num_classes=10)."
            )
        return TapModel(card, num_classes)
    if isinstance(model, Teacher):
        raise UserError("The student is an hkd.Teacher, which is frozen; take an hkd.TapModel.")
    if isinstance(model, TapModel):
        return model
    card, built = adopted(model, "student", side, taps, stats)
    return TapModel(card, built.info.classes, built=built)


def teacher_of(
    model: nn.Module, role: str, side: int | None, taps: TapNames | None, stats: Statistics | None
) -> Teacher:
    """A frozen teacher behind the taps contract."""
    if isinstance(model, Teacher):
        return model
    if isinstance(model, TapModel):
        with torch.random.fork_rng():
            copy = Teacher(model.card, model.info.classes)
        copy.net.load_state_dict(model.net.state_dict())
        return copy.to(next(model.parameters()).device)
    card, built = adopted(model, role, side, taps, stats)
    return Teacher(card, built.info.classes, built=built)


def check(
    method: str,
    kind: type[Method],
    config: Any,
    needs: Needs,
    student: TapModel,
    teachers: Mapping[str, Teacher],
    num_classes: int | None,
) -> None:
    """Refuse what can be seen before anything is built.

    Raises:
        Refused: the method cannot serve these models; not asked of models that are of none of the suite's families.
        UserError: another number of classes; stages that the method reads and nobody named.
    """
    if num_classes is not None and student.info.classes != num_classes:
        raise UserError(f"num_classes is {num_classes}, but the student has {student.info.classes} logits.")
    for who, model, want in (
        ("student", student, needs.student),
        *((role, teachers[role], needs.teachers[role]) for role in teachers),
    ):
        if absent := [stage for stage in want.stages if stage not in model.info.stages]:
            raise UserError(
                f"Method '{method}' reads stage {absent[0]} of the {who}; say which module it is: "
                f'{"taps" if who == "student" else "teacher_taps"}={{"stages": {{{absent[0]}: NAME}}}}.'
            )
    cards = {role: teacher.card for role, teacher in teachers.items()}
    if all(card.family in FAMILIES for card in (student.card, *cards.values())):
        sentence = kind.refuse(config, student.card, cards, Recipe(epochs=1, batch_size=1))
        if sentence:
            raise Refused(sentence)


def samples_of(method: str, samples: Any, classes: int) -> Samples:
    """What `Method.prepare` is told of the training set.

    Raises:
        UserError: nothing was given, or labels that cannot be.
    """
    if isinstance(samples, Samples):
        return samples
    if samples is None:
        raise UserError(
            f"Method '{method}' keeps something of every training sample: give samples=labels, all N labels by index."
        )
    labels = torch.as_tensor(samples)
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        raise UserError(f"samples must be the N class indices of the training set, got shape {[*labels.shape]}.")
    return Samples(labels=labels, classes=classes, epochs=1, steps=1)


def statistics_of(
    models: Mapping[str, nn.Module | str], normalize: bool | Mapping[str, Statistics]
) -> dict[str, Statistics | None]:
    """Mean and std by which each plain model is to see images in [0, 1]; None: as they are, or by a model of the zoo.

    Raises:
        UserError: a model without statistics, or images that would have to be in [0, 1] and normalised at once.
    """
    plain = [name for name, model in models.items() if not isinstance(model, TapModel | str)]
    if normalize is False:
        if plain and len(plain) < len(models):
            zoo = next(name for name in models if name not in plain)
            raise UserError(
                f"The {zoo} is a model of the zoo, which takes images in [0, 1], while the {plain[0]} would see them "
                f"as they are: give images in [0, 1] and normalize=True, or normalize={{'{plain[0]}': (mean, std)}}."
            )
        return dict.fromkeys(models)
    given = dict(normalize) if isinstance(normalize, Mapping) else {}
    if unknown := sorted(set(given) - set(plain)):
        raise UserError(f"normalize names '{unknown[0]}'; models that can be told to normalise: {', '.join(plain)}.")
    found: dict[str, Statistics | None] = dict.fromkeys(models)
    for name in plain:
        cfg = getattr(models[name], "pretrained_cfg", None) or {}
        if name not in given and not (cfg.get("mean") and cfg.get("std")):
            raise UserError(
                f"The {name} has no `pretrained_cfg` with mean and std: normalize={{'{name}': (mean, std)}}."
            )
        found[name] = given[name] if name in given else (cfg["mean"], cfg["std"])
    return found


def own_size(model: nn.Module | str) -> int | None:
    """Side in px of the images that a timm model was built for; None for other models."""
    if isinstance(model, TapModel | str) or not is_timm(model):
        return None
    built = (getattr(getattr(model, part, None), "img_size", None) for part in ("patch_embed", "stem"))
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return next(filter(None, (*built, cfg.get("input_size", (3, None))[1:])))[0]


# -- models that were built elsewhere ------------------------------------------------------------------------------


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


class TimmFamily(Family):
    """Any timm CNN that no other family runs."""

    name: ClassVar[str] = "timm"


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


HOW_TO_NAME = 'name them by module, taps={"stages": {1: NAME, 2: NAME, 3: NAME, 4: NAME}} (teacher_taps for a teacher)'


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


def timm_stages(net: Any, family: Family, who: str, images: Tensor, given: Mapping[int, int]) -> tuple[int, ...]:
    """Indices of stages 1 to 4 among a timm model's intermediate maps.

    Unless given: the last four; of models whose maps are all of one size (ViT, Mixer), the ends of the four quarters.
    """
    if given:
        if sorted(given) != [*STAGES]:
            raise UserError(f"Stages of the {who} by index must be all four, got {sorted(given)}.")
        return tuple(given[stage] for stage in STAGES)
    if getattr(net, "num_prefix_tokens", 0) and isinstance(family, TimmFamily):
        raise UserError(unknown_taps(net, who))  # `Family` alone cannot lay its tokens out
    maps = net.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
    count = len(maps)
    if len({x.shape for x in maps}) == 1:
        return tuple(max(0, count * stage // 4 - 1) for stage in STAGES)
    return tuple(max(0, count - 5 + stage) for stage in STAGES)


# -- taps by module name -----------------------------------------------------------------------------------------


class Partial:
    """Refuses to be read where nothing was named: a wrong number would be worse."""

    absent: frozenset[str] = frozenset()
    who: str = ""

    def without(self, absent: frozenset[str], who: str) -> Any:
        """Itself, refusing these names from now on."""
        object.__setattr__(self, "who", who)
        object.__setattr__(self, "absent", absent)
        return self

    def __getattribute__(self, name: str) -> Any:
        if name in ("final", "pooled") and name in self.absent:
            raise UserError(f"The method reads '{name}' of the {self.who}, whose taps nobody told: {HOW_TO_NAME}.")
        return super().__getattribute__(name)


class StageShapes(dict[int, tuple[int, int, int]]):
    """Shapes by stage; asking for another is a mistake in the specification."""

    who: str = ""

    def __missing__(self, stage: int) -> tuple[int, int, int]:
        raise UserError(f"The method reads stage {stage} of the {self.who}, which nobody told: {HOW_TO_NAME}.")


class PartialInfo(Partial, TapInfo):
    """Shapes of a module's taps as far as they were named."""


class PartialTaps(Partial, Taps):
    """A module's taps as far as they were named."""


class NamedFamily(Family):
    """How a module is run whose taps are outputs of modules inside.

    Attributes:
        stages: those that were named. absent: "final" and "pooled" where nothing tells them.
    """

    name: ClassVar[str] = "named"

    def __init__(self, net: nn.Module, who: str, taps: TapNames | None) -> None:
        """Look the names up.

        Raises:
            UserError: an unknown key, stage or module.
        """
        told = dict(taps or {})
        where = "taps" if who == "student" else "teacher_taps"
        for key in told:
            registry.lookup(f"key of {where}", key, dict.fromkeys(TAP_KEYS))
        stages = dict(told.get("stages") or {})
        if unknown := [stage for stage in stages if stage not in STAGES]:
            raise UserError(f"{where} names stage {unknown[0]!r}; stages are 1, 2, 3 and 4.")
        modules = dict(net.named_modules())
        places = {stage: stages[stage] for stage in sorted(stages)}
        places |= {key: told[key] for key in ("final", "pooled") if told.get(key) is not None}
        for key, name in places.items():
            if name not in modules or not name:
                close = ", ".join(
                    f"'{other}'" for other in difflib.get_close_matches(str(name), modules, n=3, cutoff=0.4)
                )
                known = f"Nearest: {close}." if close else f"It has: {', '.join(list(modules)[1:9])}, ..."
                what = f"stage {key}" if key in STAGES else f"'{key}'"
                raise UserError(f"{what} of {where}: the {who} has no module '{name}'. {known}")
        self.who, self.where, self.places = who, where, places
        self.prefix = int(told.get("prefix") or 0)
        self.stages = tuple(key for key in places if key in STAGES)
        self.absent: frozenset[str] = frozenset()
        if "final" not in places and 4 not in places:
            self.absent = frozenset({"final"} if "pooled" in places else {"final", "pooled"})

    def forward(self, net: Any, card: ModelCard, x: Tensor, want: Want, **options: Any) -> Taps:
        """Run the module once and read what its modules gave.

        Raises:
            Refused: a tap of blocks, or an option.
            UserError: outputs that are no logits, maps or tokens.
        """
        for name, shown in BLOCK_TAPS.items():
            if getattr(want, name):
                raise Refused(f"The method reads {shown}, which the {self.who} (taps by module name) does not have.")
        for name in options:
            raise Refused(
                f"The method gives '{name}' to the {self.who}, which (taps by module name) takes images alone."
            )
        with recorded_outputs({key: net.get_submodule(name) for key, name in self.places.items()}) as found:
            logits = net(x)
        if not (isinstance(logits, Tensor) and logits.ndim == 2):
            shape = [*logits.shape] if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"The {self.who} must return logits [B, C], got {shape}.")
        wanted = {stage: self.map_of(found, stage) for stage in want.stages}
        final = None if "final" in self.absent else self.map_of(found, "final" if "final" in self.places else 4)[0]
        nothing = logits.new_zeros(len(logits), 0)
        taps = PartialTaps(
            logits=logits,
            pooled=self.pooled_of(found, final, nothing),
            final=nothing[..., None, None] if final is None else final,
            stages={stage: pair[0] for stage, pair in wanted.items()},
            prefix={stage: pair[1] for stage, pair in wanted.items() if pair[1] is not None},
        )
        return taps.without(self.absent, self.who)

    def map_of(self, found: Mapping[Any, Any], key: Any) -> tuple[Tensor, Tensor | None]:
        """A recorded output as a map [B, D, H, W], and its prefix tokens [B, P, D] if it has any."""
        value, name = found.get(key), self.places[key]
        if not isinstance(value, Tensor) or value.ndim not in (3, 4):
            shape = [*value.shape] if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{self.where}: module '{name}' of the {self.who} gives {shape}; a tap is a map [B, D, H, W] or tokens "
                f"[B, N, D]."
            )
        if value.ndim == 4:
            return value, None
        side = math.isqrt(max(0, value.shape[1] - self.prefix))
        if side == 0 or side**2 != value.shape[1] - self.prefix:
            raise UserError(
                f"{self.where}: module '{name}' of the {self.who} gives {value.shape[1]} tokens, which are no square "
                f'grid behind {self.prefix} prefix tokens; set "prefix".'
            )
        prefix = value[:, : self.prefix] if self.prefix else None
        return tokens_to_map(value[:, self.prefix :], (side, side)), prefix

    def pooled_of(self, found: Mapping[Any, Any], final: Tensor | None, nothing: Tensor) -> Tensor:
        """The penultimate feature [B, D]."""
        if "pooled" not in self.places:
            return nothing if final is None else final.mean(dim=(2, 3))
        value = found.get("pooled")
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[2:].numel() == 1:
            return value.flatten(1)
        shape = [*value.shape] if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{self.where}: module '{self.places['pooled']}' gives {shape}; a pooled feature is [B, D].")
