"""What every method of the registry keeps, on a small model of every family: a new method is covered by its name."""

import ast
import copy
import dataclasses
import inspect
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.methods import METHODS
from hkd.methods.base import Method
from hkd.models import FAMILIES
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.zoo import ZOO
from hkd.registry import load
from hkd.spec import ModelCard, Recipe

RECIPE = Recipe(epochs=1, batch_size=4)
CLASSES = 5


def card(family: str) -> ModelCard:
    """The first miniature of a family."""
    return next(card for card in ZOO.values() if card.family == family and card.name.endswith("_mini"))


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@cache
def fresh_student(family: str) -> TapModel:
    torch.manual_seed(1)
    student = TapModel(card(family), CLASSES)
    with (
        torch.no_grad()
    ):  # timm starts some layers (a Mixer's head, a ResNet's last norms) at zero, which blocks gradients
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return student


@cache
def teacher(family: str) -> Teacher:
    torch.manual_seed(2)
    return Teacher(card(family), CLASSES)


def build(kind: type[Method], config, student: TapModel, teachers: dict[str, Teacher]) -> Method:
    torch.manual_seed(3)
    return kind(config, student.info, teachers, F.cross_entropy)


def cases() -> list[tuple[str, str, str]]:
    """(method, student family, teacher family); one teacher is enough for a method that needs none."""
    found = []
    for name, path in METHODS.items():
        kind = load(path)
        teachers = list(FAMILIES) if kind.needs(kind.Config()).teachers else ["resnet"]
        found += [(name, student, model) for student in FAMILIES for model in teachers]
    return found


@pytest.mark.parametrize(("name", "student_family", "teacher_family"), cases())
def test_one_step_trains_every_tensor_of_student_and_method_and_none_of_the_teacher(
    name, student_family, teacher_family
):
    kind = load(METHODS[name])
    config = kind.Config()
    needs = kind.needs(config)
    cards = {role: card(teacher_family) for role in needs.teachers}
    if reason := kind.refuse(config, card(student_family), cards, RECIPE):
        assert reason.endswith(".")
        assert reason.count(". ") == 0
        return
    teachers = {role: teacher(teacher_family) for role in needs.teachers}
    frozen = {role: copy.deepcopy(model.state_dict()) for role, model in teachers.items()}
    student = copy.deepcopy(fresh_student(student_family)).train()
    method = build(kind, config, student, teachers).train()
    learning = {**dict(student.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    start = {name: parameter.detach().clone() for name, parameter in learning.items()}
    optimizer = torch.optim.AdamW(learning.values(), lr=1e-2, weight_decay=0.0)
    x = images()
    batch = Batch(x=x, y=torch.arange(4), index=torch.arange(4))
    taps_t = {role: model(x, needs.teachers[role]) for role, model in teachers.items()}
    taps_s = student(x, needs.student, **method.student_inputs(batch, taps_t))

    losses = method(batch, taps_s, taps_t)
    sum(losses.values()).backward()
    optimizer.step()

    assert losses
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    for name, parameter in learning.items():
        assert parameter.grad is not None, f"{name} takes no part in the loss"
        assert parameter.grad.isfinite().all(), name
        # Biases whose effect cancels (keys of an attention, before a norm) may have a gradient of exactly zero.
        assert parameter.ndim == 1 or not torch.equal(parameter, start[name]), f"{name} did not move"
    for role, model in teachers.items():
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(torch.equal(value, frozen[role][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_drawn_from_the_seed_and_stores_no_teacher(name):
    kind, student, model = load(METHODS[name]), fresh_student("resnet"), teacher("swin")
    teachers = dict.fromkeys(kind.needs(kind.Config()).teachers, model)
    first, second = (build(kind, kind.Config(), student, teachers) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    held = {tensor.data_ptr() for tensor in first.state_dict().values() if tensor.numel()}
    assert held.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel())
    second.load_state_dict(first.state_dict(), strict=True)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_soft_targets_or_says_that_it_needs_labels(name):
    kind, student, model = load(METHODS[name]), copy.deepcopy(fresh_student("vit")), teacher("swin")
    needs = kind.needs(kind.Config())
    teachers = dict.fromkeys(needs.teachers, model)
    if needs.hard_labels:
        return
    x = images()
    batch = Batch(x=x, y=torch.full((4, CLASSES), 1 / CLASSES), index=torch.arange(4))
    taps_t = {role: model(x, want) for role, want in needs.teachers.items()}
    method = build(kind, kind.Config(), student, teachers)
    losses = method(batch, student(x, needs.student, **method.student_inputs(batch, taps_t)), taps_t)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", METHODS)
def test_options_are_a_frozen_dataclass_that_stands_in_the_methods_file_under_its_name(name):
    """Planning reads the option names from the source, without importing torch."""
    kind = load(METHODS[name])
    tree = ast.parse(inspect.getsource(inspect.getmodule(kind)))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    written = [item.target.id for item in classes[f"{kind.__name__}Config"].body if isinstance(item, ast.AnnAssign)]
    fields = dataclasses.fields(kind.Config)
    assert written == [field.name for field in fields]
    assert all(field.default is not dataclasses.MISSING for field in fields)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.Config().anything = 1
