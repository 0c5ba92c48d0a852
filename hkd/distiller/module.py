"""Distillation for somebody else's training loop: one module that turns images and labels into named losses.

    distiller = Distiller(student, teacher, "kd", tau=4.0)
    optimizer = torch.optim.AdamW(distiller.parameters())
    for x, y in loader:
        losses = distiller(x, y)
        sum(losses.values()).backward()

A model is a timm model, one of the zoo (`TapModel`, `Teacher`), or any module whose taps are given by module name.
Shapes: B batch, C classes, D width, H W grid, N patch tokens, P prefix tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hkd import registry
from hkd.data.batch import Batch
from hkd.distiller.arguments import WHOLE, check_batch, check_model, check_settings, check_taps, checked, shown
from hkd.distiller.border import GivenStep, given_teacher, is_half, refuse_shared, suited
from hkd.errors import Refused, UserError
from hkd.methods.base import Criterion, Method, Needs, Samples, method_of, needs_of
from hkd.methods.parts.logits import class_index
from hkd.models import FAMILIES
from hkd.models.adopted import Statistics, adopted
from hkd.models.cards.zoo import ZOO
from hkd.models.families.base import BLOCK_TAPS
from hkd.models.named_taps import TapNames
from hkd.models.tap_model import Built, TapModel, Teacher
from hkd.models.timm_models import own_size
from hkd.options import configured, names_of
from hkd.spec import Recipe


class Distiller(nn.Module):
    """A student, its frozen teachers and a method of `hkd.METHODS`, as one module to train.

    `parameters()` and `state_dict()` hold the student and the method's adapters, never a teacher; `student` is the
    plain model. Teachers are set to evaluation mode, are brought back to it whatever `train()` is called on them, and
    get no gradient; `to()` moves them along. Models may have any precision: images are given to each in its own, and
    taps to the method in at least single precision, which adapters keep. A wrapper such as `DistributedDataParallel`
    goes around the whole distiller.
    """

    teachers: dict[str, Teacher]
    step: GivenStep
    labels: Tensor | None

    def __init__(
        self,
        student: nn.Module | str,
        teacher: nn.Module | str | Mapping[str, nn.Module] | None,
        method: str | type[Method],
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
            method: a name of `hkd.METHODS`, a dotted path (`my_pkg.my_file:MyMethod`), or a class.
            num_classes: of the data; None: as many as the student has logits. A student by name needs it.
            image_size: side in px of the images that timm models and other plain modules will get; None: that of the
                timm student, else of a timm teacher.
            taps: where the taps of the student are: {"stages": {1: "layer1", ..., 4: "layer4"}} by module name (as in
                `named_modules()`; maps [B, D, H, W], or tokens [B, P + N, D] of a square grid behind "prefix": P other
                ones, 0 unless given). "final", the last map, is stage 4 unless given, and "pooled" ([B, D]) its mean.
                "layout": "NCHW" or "NHWC" (channels last) where the shapes of maps, which are square, do not tell.
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
        check_settings(num_classes, image_size, normalize, criterion)
        kind = method_of(method)
        method = method if isinstance(method, str) else method.__qualname__
        side = image_size or own_size(student)
        if "image_size" in names_of(kind.Config) and (seen := seen_size(student, side)):
            options["image_size"] = seen  # not of the method alone: what it paints or names is what the student sees
        config: Any = configured(kind.Config, f"Method '{method}'", options)
        needs = needs_of(kind, config)
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
        # Taps are taken inside the plain model, which a compiled one hides; both have the same weights.
        student, named = plain(student), {role: plain(model) for role, model in named.items()}
        for who, model in (("student", student), *named.items()):
            if not (who == "student" and isinstance(model, str)):
                check_model(model, who)
        by_role = teacher_taps if isinstance(teacher, Mapping) else {"teacher": teacher_taps}
        if by_role is not None and not isinstance(by_role, Mapping):
            raise UserError("teacher_taps of several teachers are given by role: {role: taps}.")
        check_taps(taps, "taps")
        for role in named:
            check_taps((by_role or {}).get(role), "teacher_taps")
        if isinstance(student, nn.Module) and not isinstance(student, Teacher):
            refuse_shared(student, named)
        side = side or next(filter(None, map(own_size, named.values())), None)
        stats = statistics_of({"student": student, **named}, normalize)
        tapped = student_of(student, num_classes, side, taps, stats["student"])
        teachers = {
            role: teacher_of(model, role, side, (by_role or {}).get(role), stats[role]) for role, model in named.items()
        }
        check(method, kind, config, needs, tapped, teachers, num_classes)
        adapters = kind(config, tapped.info, teachers, checked(criterion))
        self.method, self.needs, self.labels = method, needs, None
        if kind.prepare is not Method.prepare:
            known = samples_of(method, samples, tapped.info.classes)
            adapters.prepare(known)
            self.labels = known.labels.cpu()
        self.step = GivenStep(tapped, adapters, needs)
        if self.step.dtype != torch.float32:
            adapters.to(self.step.dtype)
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
            UserError: the method needs what is not given, images or targets cannot be (`check_batch`) or are not of the
                size that was told, or rows and labels disagree with `samples`.
        """
        check_batch(x, y, index, self.step.student.net, self.step.student.info.classes)
        if self.needs.index and index is None:
            raise UserError(
                f"Method '{self.method}' knows samples again by their row in the training set: call "
                f"distiller(x, y, index=index)."
            )
        if self.needs.hard_labels and y.ndim != 1:
            raise UserError(f"Method '{self.method}' needs class labels [B], got targets of shape {[*y.shape]}.")
        if self.needs.index and index is not None:
            self.check_rows(index, y)
        y = y.to(self.step.dtype if y.is_floating_point() else torch.int64)
        rows = torch.arange(len(y), device=y.device) if index is None else index
        batch = Batch(x=suited(x, self.step.dtype), y=y, index=rows)
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

    def check_rows(self, index: Tensor, y: Tensor) -> None:
        """Raise a UserError for rows that cannot be, or whose labels are not those that `samples` told."""
        if index.shape != y.shape[:1] or index.is_floating_point() or index.dtype == torch.bool:
            raise UserError(
                f"index must be the row of each of {len(y)} samples, got {index.dtype} of shape {[*index.shape]}."
            )
        if self.labels is None:
            return
        rows, count = index.cpu(), len(self.labels)
        if wrong := [row for row in rows.tolist() if not 0 <= row < count]:
            raise UserError(f"index has row {wrong[0]}, and samples told {count}: rows are 0 to {count - 1}.")
        told, given = self.labels[rows], class_index(y).cpu()
        if differ := (told != given).nonzero().flatten().tolist():
            first = differ[0]
            raise UserError(
                f"Row {int(rows[first])} of the training set has label {int(told[first])} in samples, and "
                f"{int(given[first])} in this batch: index must count samples in the order of their labels."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distiller":
        """Whatever moves the student (`to`, `cuda`, `double`) moves the teachers; adapters stay in single precision."""
        for teacher in self.teachers.values():
            teacher._apply(fn, recurse)
        super()._apply(fn, recurse)
        if is_half(self.step.student.net):
            self.step.method.float()
        return self


def plain(model: Any) -> Any:
    """The model that `torch.compile` was given, of what it made; anything else as it is."""
    made = type(model).__module__.startswith("torch._dynamo")  # not imported here: that takes seconds
    return model._orig_mod if made else model


def seen_size(student: nn.Module | str, side: int | None) -> int | None:
    """Side in px of the images that a student sees, of `side` px ones; None where that is not known yet."""
    if isinstance(student, str):
        return ZOO[student].image_size if student in ZOO else None
    return student.card.image_size if isinstance(student, TapModel) else side


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
        built = Built(model.net, model.family, model.prepare, model.info)
        return given_teacher(model.card, built, model.train_mode)
    if isinstance(model, TapModel):
        with torch.random.fork_rng():
            copy = Teacher(model.card, model.info.classes)
        copy.net.load_state_dict(model.net.state_dict())
        copy.to(next(model.parameters()))
        return given_teacher(copy.card, Built(copy.net, copy.family, copy.prepare, copy.info))
    card, built = adopted(model, role, side, taps, stats)
    return given_teacher(card, built)


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
        UserError: another number of classes; stages that the method reads and nobody named; models of 16 bits for a
            method that goes into their blocks or changes what they see.
    """
    inside = kind.teacher_inputs is not Method.teacher_inputs or kind.student_inputs is not Method.student_inputs
    inside |= any(getattr(want, name) for want in (needs.student, *needs.teachers.values()) for name in BLOCK_TAPS)
    for who, model in (("student", student), *teachers.items()):
        if inside and is_half(model.net):
            raise UserError(
                f"Method '{method}' works inside its models and needs them in single precision, and the {who} has 16 "
                f"bits: give {who}.float(), and train under torch.autocast."
            )
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
    try:
        labels = torch.as_tensor(samples)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"samples must be the N class indices of the training set, got {shown(samples)}.") from error
    plain = labels.layout == torch.strided and not labels.is_meta and labels.dtype in WHOLE
    if not plain or labels.ndim != 1 or not len(labels):
        raise UserError(f"samples must be the N class indices of the training set, got shape {[*labels.shape]}.")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"samples has labels {int(labels.min())} to {int(labels.max())}, and the student's classes are 0 to "
            f"{classes - 1}."
        )
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
