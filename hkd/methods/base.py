"""The contract of a method: a module that turns (student taps, teacher taps, targets) into named losses.

A method declares what it needs; the loop reads that and knows no method by name. Trainable parameters of a
method (adapters) are optimised with the student and never exported. Queues and memory banks are buffers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from inspect import isabstract, signature
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from hkd import registry
from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.methods import METHODS
from hkd.methods.parts.logits import exact
from hkd.models.families.base import accepting, accepts
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, Want
from hkd.spec import ModelCard, Recipe

Criterion = Callable[
    [Tensor, Tensor], Tensor
]  # the recipe's task loss: (logits [B, C], targets [B] or [B, C]) -> scalar


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a configured method needs from one step.

    teachers: taps per teacher role; empty for methods without a teacher. hard_labels: refuses mixup and cutmix.
    index: needs Batch.index to identify samples across epochs.
    """

    student: Want = Want()  # noqa: RUF009 (frozen)
    teachers: Mapping[str, Want] = field(default_factory=dict)
    hard_labels: bool = False
    index: bool = False


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The training samples of a run: labels by index [N], classes C, epochs, and steps of an epoch."""

    labels: Tensor
    classes: int
    epochs: int
    steps: int


class Method(nn.Module, ABC):
    """Base of all methods.

    Subclasses set `Config` (a frozen dataclass; unknown or invalid options raise ValueError), and implement
    `needs` and `forward`. `__init__` must create every trainable parameter (nothing lazily).
    """

    Config: ClassVar[type]

    def __init__(self, config: Any, student: TapInfo, teachers: Mapping[str, Teacher], criterion: Criterion) -> None:
        super().__init__()
        self.config, self.student, self.criterion = config, student, criterion
        # Kept out of parameters(), state_dict() and DDP: teachers are frozen and named, not stored.
        object.__setattr__(self, "teachers", dict(teachers))

    @classmethod
    @abstractmethod
    def needs(cls, config: Any) -> Needs:
        """Taps and sample facts that this configuration reads."""

    @classmethod
    def refuse(cls, config: Any, student: ModelCard, teachers: Mapping[str, ModelCard], recipe: Recipe) -> str | None:
        """Why this method cannot serve this pair, as one sentence, or None. Asked when a table is planned."""
        return None

    def prepare(self, samples: Samples) -> None:
        """Called once, before training or resumption: size memory banks and queues (buffers), check them."""

    def teacher_inputs(self, role: str, batch: Batch) -> dict[str, Any]:
        """Extra keyword arguments of a teacher's forward; overriding this keeps teachers from being cached.

        What is drawn here for all (a mask) goes into `batch.extra`, where `student_inputs` and `forward` find it.
        """
        return {}

    def student_inputs(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Any]:
        """Extra keyword arguments of the student's forward (a mask, kept tokens)."""
        return {}

    def second_view(self, batch: Batch) -> Tensor | None:
        """Other images of the same samples [B, 3, H, W] that the student sees too, in a pass of its own; None: none.

        Their taps are `Taps.second`. A teacher of them is the method's own matter: it draws them after the teachers'
        passes.
        """
        return None

    def diagnostics(self) -> dict[str, float]:
        """Figures of the epoch that has ended, for its line of the curves; what they are summed from starts anew."""
        return {}

    def no_weight_decay(self) -> set[str]:
        """Names of the method's own parameters that no weight decay may pull to zero: its mask tokens."""
        return {name for name, _ in self.named_parameters() if name.endswith("mask_token")}

    def picture(self, batch: Batch, taps_s: Taps) -> Float[Tensor, "B 3 S S"] | None:
        """What the method makes of images, in [0, 1], for looking at; None where it makes none."""
        return None

    def task_loss(self, logits: Float[Tensor, "N C"], y: Tensor) -> Float[Tensor, ""]:
        """The recipe's task loss of logits, in single precision or better: autocast hands over 16 bits."""
        return self.criterion(exact(logits), y)

    @abstractmethod
    def forward(self, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Named, weighted scalar losses; the loop minimises their sum."""


def method_of(name: str | type[Method]) -> type[Method]:
    """The method of this name, which may be a dotted path or one that a package registers, or the class itself.

    Raises:
        UserError: there is none, it cannot be imported, or it is no method: not derived from `Method`, without options
            of its own (`Config`, a dataclass), without `needs` or `forward`, or one of them takes other arguments.
    """
    found = registry.load(registry.lookup("method", name, METHODS)) if isinstance(name, str) else name
    shown = name if isinstance(name, str) else getattr(name, "__qualname__", str(name))
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"'{shown}' is no method: give a class that is derived from hkd.Method.")
    if not is_dataclass(getattr(found, "Config", None)):
        raise UserError(
            f"Method '{shown}' says nothing of its options: set Config = its class of options, made by "
            "@hkd.options.options or a dataclass (hkd.options.NoOptions where there are none)."
        )
    if isabstract(found):
        raise UserError(f"Method '{shown}' lacks {' and '.join(sorted(found.__abstractmethods__))}; define these.")
    for name, arguments in CALLED_WITH.items():
        called = getattr(found, name)
        given = arguments if name == "needs" else ("self", *arguments)
        try:
            signature(called).bind(*given)
        except TypeError as error:
            raise UserError(
                f"Method '{shown}': {name} is called with ({', '.join(arguments)}) and does not take that ({error})."
            ) from error
    return found


CALLED_WITH = {
    "__init__": ("config", "student", "teachers", "criterion"),
    "needs": ("config",),
    "forward": ("batch", "taps_s", "taps_t"),
}


def needs_of(kind: type[Method], config: Any) -> Needs:
    """What a method needs with these options.

    Raises:
        UserError: what its `needs` gives is something else.
    """
    needs = kind.needs(config)
    if not isinstance(needs, Needs):
        raise UserError(
            f"Method '{kind.__qualname__}': needs must return an hkd.methods.base.Needs, and gives a "
            f"{type(needs).__name__}."
        )
    return needs


def scalar_losses(method: Method, batch: Batch, taps_s: Taps, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
    """The losses of a batch, after a look at whether they can be minimised: a method may be anybody's.

    Raises:
        UserError: they are no named scalars, or none depends on what the student computed.
    """
    losses: Any = method(batch, taps_s, taps_t)
    wrong = ""
    if not isinstance(losses, dict):
        wrong = f"gives a {type(losses).__name__}"
    elif not losses:
        wrong = "gives an empty one"
    else:
        for name, loss in losses.items():
            if not isinstance(loss, Tensor):
                wrong = f"'{name}' is a {type(loss).__name__}, not a tensor"
            elif loss.ndim:
                wrong = f"'{name}' has the shape {[*loss.shape]}, where a loss is one number, such as a mean"
    if not wrong and taps_s.logits.requires_grad and not any(loss.requires_grad for loss in losses.values()):
        wrong = "none of its losses has a gradient: they were detached, or do not depend on the student"
    if wrong:
        raise UserError(
            f"Method '{type(method).__qualname__}': forward must return a dict of named scalar losses; {wrong}."
        )
    return losses


def refuse_student(method: str, does: str, student: ModelCard, *asked: str) -> str | None:
    """Why a student cannot take what a method gives it, as one sentence, or None.

    Args:
        method: its name.
        does: what it does with a student: "hides patches from its student".
        student: the card.
        asked: what a family must accept for that (`Family.accepts`).
    """
    if accepts(student.family, *asked):
        return None
    return f"Method '{method}' {does}, so that must be of the family {accepting(*asked)}, not '{student.family}'."


def refuse_size(method: str, student: ModelCard, image_size: int) -> str | None:
    """Why a student sees other images than a method has been told of (taps do not say it), as one sentence, or None."""
    if student.image_size == image_size:
        return None
    return (
        f"Method '{method}' has an image_size of {image_size} px, and the student {student.name} sees "
        f"{student.image_size} px: set image_size to that."
    )
