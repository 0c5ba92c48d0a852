"""What crosses between a caller's models and a method: images and taps in the precision of who reads them, and teachers
that stay teachers whatever the caller does with the modules that are still in their hands.
"""

import copy
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.base import scalar_losses
from hkd.models.families.base import Tail
from hkd.models.tap_model import NOTHING, Built, Prompt, Teacher
from hkd.models.taps import Taps, Want
from hkd.spec import ModelCard
from hkd.training.step import TapStep


def precision(model: nn.Module) -> torch.dtype:
    """Of a model's weights: the type of the first that is a number with a point."""
    return next((x.dtype for x in model.parameters() if x.is_floating_point()), torch.float32)


def is_half(model: nn.Module) -> bool:
    """Whether a model's weights have 16 bits."""
    return precision(model).itemsize == 2


def suited(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers with a point in a type; what autocast looks after stays as it is."""
    if not x.is_floating_point() or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(dtype)


def suited_taps(taps: Taps, dtype: torch.dtype) -> Taps:
    """All tensors of taps as `suited`; the same tensors where nothing is to be done."""

    def suit(value: Any) -> Any:
        if isinstance(value, Tensor):
            return suited(value, dtype)
        if isinstance(value, Taps):
            return suited_taps(value, dtype)
        if isinstance(value, dict):
            return {key: suit(item) for key, item in value.items()}
        return tuple(map(suit, value)) if isinstance(value, tuple) else value

    changed = copy.copy(taps)
    vars(changed).update({name: suit(value) for name, value in vars(taps).items()})
    return changed


class GivenTeacher(Teacher):
    """A teacher whose network its caller still holds: it takes images in any precision, and its modules are in the mode
    that was chosen whenever it runs, whatever `train()` the caller called on them.
    """

    def settle(self) -> None:
        """Bring every module back to this teacher's mode."""
        for module in self.net.modules():
            if module.training != self.training:
                module.training = self.training

    def forward(self, x: Tensor, want: Want = NOTHING, **options: Any) -> Taps:
        """As `Teacher.forward`."""
        self.settle()
        return super().forward(suited(x, precision(self.net)), want, **options)

    def prompted(self, x: Tensor, prompts: Mapping[int, Prompt], want: Want = NOTHING, *, mixed: bool = False) -> Taps:
        """As `Teacher.prompted`; prompts work in at least single precision."""
        self.settle()
        own = precision(self.net)

        def suit(prompt: Prompt, map_: Tensor) -> Tensor:
            return suited(prompt(suited(map_, torch.promote_types(own, torch.float32))), own)

        suiting = {stage: partial(suit, prompt) for stage, prompt in prompts.items()}
        return super().prompted(suited(x, own), suiting, want, mixed=mixed)

    def tail(self, blocks: int | None = None) -> Tail:
        """As `Teacher.tail`, in the caller's precision.

        Raises:
            Refused: the last stage is sized for other images than the teacher sees.
        """
        tail = super().tail(blocks)
        if tail.out_grid != tuple(self.info.final[1:]):
            built, seen = ("x".join(map(str, grid)) for grid in (tail.out_grid, self.info.final[1:]))
            raise Refused(
                f"The last stage of {self.card.name} is built for maps of {built}, and at this image size they are "
                f"{seen}: build the teacher for these images (timm's img_size), or give images of its own size."
            )

        def run(tokens: Tensor) -> Tensor:
            self.settle()
            return suited(tail.function(suited(tokens, precision(self.net))), tokens.dtype)

        return Tail(tail.in_width, tail.in_grid, tail.out_width, tail.out_grid, run)


def given_teacher(card: ModelCard, built: Built, train_mode: bool = False) -> GivenTeacher:
    """A frozen teacher of a network that is there already."""
    return GivenTeacher(card, built.info.classes, train_mode, built=built)


class GivenStep(TapStep):
    """The student's pass and the method, which gets taps in at least single precision, as its adapters are.

    Attributes:
        logits: of the student for the last batch [B, C], without gradient.
    """

    logits: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of taps and adapters."""
        return torch.promote_types(precision(self.student.net), torch.float32)

    def forward(self, batch: Batch, taps_t: Mapping[str, Taps]) -> dict[str, Tensor]:
        """Named, weighted scalar losses of one batch."""
        taps_t = {role: suited_taps(taps, self.dtype) for role, taps in taps_t.items()}
        taps_s = self.student(
            suited(batch.x, precision(self.student.net)), self.want, **self.method.student_inputs(batch, taps_t)
        )
        self.logits = taps_s.logits.detach()
        if (second := self.method.second_view(batch)) is not None:
            taps_s.second = self.student(suited(second, precision(self.student.net)))
        return scalar_losses(self.method, batch, suited_taps(taps_s, self.dtype), taps_t)


def refuse_shared(student: nn.Module, teachers: Mapping[str, nn.Module]) -> None:
    """Raise a UserError if a teacher holds weights or statistics of the student."""
    held = {place: name for name, place in places(student)}
    for role, teacher in teachers.items():
        if shared := next((held[place] for _, place in places(teacher) if place in held), None):
            raise UserError(
                f"The student and the {role} share {shared}: a teacher is frozen and stays as it is, so it must have "
                f"weights of its own, such as copy.deepcopy(model)."
            )


def places(model: nn.Module) -> list[tuple[str, int]]:
    """Where in memory a model's weights and running statistics lie, by name."""
    statistics = (item for item in model.named_buffers() if item[0].endswith(("running_mean", "running_var")))
    tensors = ((name, x) for name, x in chain(model.named_parameters(), statistics) if x.layout == torch.strided)
    found = ((name, x.untyped_storage().data_ptr()) for name, x in tensors)
    return [(name, place) for name, place in found if place]
