"""What every method of the registry keeps, on a small model of every family: a new method is covered by its name.

Every method meets every student and every teacher; `-m triples` has all triples.
"""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from hkd.data.base import Split
from hkd.data.batch import Batch
from hkd.data.digits import Digits
from hkd.errors import Refused
from hkd.methods import METHODS
from hkd.methods.base import Method, Samples
from hkd.models import FAMILIES
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.registry import load
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.pretrain import pretrain
from hkd.tasks.train import TapStep, train
from hkd.training.job import Job, Runtime

RECIPE = Recipe(epochs=1, batch_size=4)
CLASSES = 5
SAMPLES = Samples(labels=torch.arange(40) % CLASSES, classes=CLASSES, epochs=1, steps=10)
DISTILLED = ModelCard(
    name="distilled",
    family="vit",
    arch="timm.models.deit:VisionTransformerDistilled",
    kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
    image_size=32,
    stages=(0, 1, 2, 3),
)
SPARSE_CONVNEXT = replace(ZOO["convnext_t_mini"], name="sparse_convnext", family="sparse_convnext")
DIGITS = DataSpec(name="digits", options={"n_train": 20})
UNLABELLED = DataSpec(name="digits_unlabelled", options={"n_train": 20})
# Methods that pre-train without labels: options for images of 32 px and 20 samples, and a family that they serve.
SMALL = {"image_size": 32}
LABEL_FREE = {
    "beit": ({**SMALL, "codes": 8}, "mim_vit"),
    "hgkd": ({"queue_size": 20, "width": 32}, "sparse_resnet"),
    "hybrid": ({"depth": 4, "mask": "progressive"}, "hybrid_vit"),
    "mae": ({**SMALL, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}, "mim_vit"),
    "masked_pixels": ({**SMALL, "width": 32}, "sparse_resnet"),
    "moco": ({"hidden": 32, "width": 16}, "view_vit"),
    "simclr": ({"width": 16}, "view_vit"),
}
NARROW = {"pat": {"width": 32, "heads": 2}, "unic": {"hidden": 32}}  # adapters of full width would take the time
LOAD, RENDERED = Digits.load, {}


class KilledError(Exception):
    """Stands for whatever ends a process."""


def card(family: str) -> ModelCard:
    """The first miniature of a family."""
    for own in (DISTILLED, SPARSE_CONVNEXT):
        if family == own.name:
            return own
    return next(card for card in ZOO.values() if card.family == family and card.name.endswith("_mini"))


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batch_of(x: torch.Tensor) -> Batch:
    return Batch(x=x, y=torch.arange(len(x)) % CLASSES, index=torch.arange(len(x)))


def config_of(name: str):
    """A configuration that fits the small data here: the defaults, but for methods without labels and wide ones."""
    return load(METHODS[name]).Config(**LABEL_FREE.get(name, (NARROW.get(name, {}), ""))[0])


@cache
def fresh_student(family: str, classes: int = CLASSES) -> TapModel:
    torch.manual_seed(1)
    student = TapModel(card(family), classes)
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


@cache
def plain(family: str, classes: int) -> torch.nn.Module:
    """The timm model of a card, as anybody builds it."""
    return load(FAMILIES[card(family).family])().build(card(family), classes)


def build(kind: type[Method], config, student: TapModel, teachers: dict[str, Teacher]) -> Method:
    torch.manual_seed(3)
    method = kind(config, student.info, teachers, F.cross_entropy)
    method.prepare(SAMPLES)
    return method


def losses_of(method: Method, needs, student: TapModel, batch: Batch) -> dict[str, torch.Tensor]:
    """As the loop has them."""
    taps_t = {
        role: method.teachers[role](batch.x, want, **method.teacher_inputs(role, batch))
        for role, want in needs.teachers.items()
    }
    return TapStep(student, method, needs)(batch, taps_t)


MODELS = [*FAMILIES, DISTILLED.name]


def cases() -> list[pytest.param]:
    """(method, student, teacher): all, of which every method with every student and every teacher is fast."""
    found = []
    for name, path in METHODS.items():
        kind = load(path)
        teachers = MODELS if kind.needs(kind.Config()).teachers else ["swin"]
        for student in MODELS:
            for model in teachers:
                marks = [] if model == "swin" or student == "resnet" else [pytest.mark.triples]
                found.append(pytest.param(name, student, model, marks=marks))
    return found


@pytest.mark.parametrize(("name", "student_family", "teacher_family"), cases())
def test_one_step_trains_every_tensor_and_leaves_a_plain_timm_model(name, student_family, teacher_family):
    kind, config = load(METHODS[name]), config_of(name)
    needs = kind.needs(config)
    teachers = {role: teacher(teacher_family) for role in needs.teachers}
    classes = 0 if name in LABEL_FREE else CLASSES
    student = copy.deepcopy(fresh_student(student_family, classes)).train()
    reason = kind.refuse(config, student.card, {role: model.card for role, model in teachers.items()}, RECIPE)
    method = None
    if reason is None:
        try:
            method = build(kind, config, student, teachers).train()
        except Refused as error:
            reason = str(error)
    if method is None:
        assert reason.endswith(".")
        assert reason.count(". ") == 0
        return
    with torch.no_grad():  # a method too may start some at zero (biases, the factor of a prompt)
        for parameter in method.parameters():
            if not parameter.any():
                parameter.add_(0.02)
    frozen = {role: copy.deepcopy(model.state_dict()) for role, model in teachers.items()}
    learning = {**dict(student.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    start = {name: parameter.detach().clone() for name, parameter in learning.items()}
    optimizer = torch.optim.AdamW(learning.values(), lr=1e-2, weight_decay=0.0)

    losses = losses_of(method, needs, student, batch_of(images()))
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
    if teacher_family != "swin":
        return
    exported = plain(student_family, classes)
    assert list(student.net.state_dict()) == list(exported.state_dict())
    exported.load_state_dict(student.net.state_dict(), strict=True)
    x = student.prepare(images())
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(images()).logits, exported.eval()(x))


@pytest.fixture
def _few_digits(monkeypatch):
    """Composing and evaluating all 510 test digits would take most of the time."""

    def few(self, split, *, seed, select, on_corrupt="stop"):
        if split not in RENDERED:
            whole = LOAD(self, split, seed=seed, select=select)
            RENDERED[split] = Split(whole.images[:20], None, whole.labels[:20], whole.rows[:20])
        return RENDERED[split]

    monkeypatch.setattr(Digits, "load", few)


@pytest.mark.usefixtures("_few_digits")
@pytest.mark.parametrize("name", METHODS)
def test_equal_seeds_give_equal_bytes_also_after_a_kill_in_the_middle(tmp_path, name):
    config, family = LABEL_FREE.get(name, (NARROW.get(name, {}), "resnet"))
    task, data = (pretrain, UNLABELLED) if name in LABEL_FREE else (train, DIGITS)
    model = ZOO["mae_b16_mini" if name == "hybrid" else "swin_t_mini"]  # it asks for plain ViTs of its own grid
    taught = TeacherSpec(model=model, weights=Weights(kind="random", id="7"))
    spec = RunSpec(
        task=task.__name__,
        data=data,
        student=card(family),
        method=MethodSpec(name=name, options=config),
        recipe=Recipe(epochs=2, batch_size=10, lr=1e-3, shift=2),
        teachers=dict.fromkeys(load(METHODS[name]).needs(config_of(name)).teachers, taught),
    )

    def kill(news):
        if news["step"] == 3:
            raise KilledError

    runtime = Runtime(accelerator="cpu", report_every_s=0.0)
    often = replace(runtime, checkpoint_every_s=0.0)
    whole = task(Job(spec, {}, tmp_path / "whole", runtime, lambda news: None))
    with pytest.raises(KilledError):
        task(Job(spec, {}, tmp_path / "parts", often, kill))
    assert (tmp_path / "parts" / "checkpoint.pt").exists()
    resumed = task(Job(spec, {}, tmp_path / "parts", often, lambda news: None))
    assert resumed.metrics == whole.metrics
    assert [line["loss"] for line in resumed.curves] == [line["loss"] for line in whole.curves]
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_drawn_from_the_seed_and_stores_no_teacher(name):
    kind, config, model = load(METHODS[name]), config_of(name), teacher("swin")
    student = fresh_student(LABEL_FREE.get(name, ({}, "resnet"))[1])
    teachers = dict.fromkeys(kind.needs(config).teachers, model)
    first, second = (build(kind, config, student, teachers) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    held = {tensor.data_ptr() for tensor in first.state_dict().values() if tensor.numel()}
    assert held.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel())
    second.load_state_dict(first.state_dict(), strict=True)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LABEL_FREE])
def test_a_method_takes_soft_targets_or_says_that_it_needs_labels(name):
    kind, student, model = load(METHODS[name]), copy.deepcopy(fresh_student("vit")), teacher("swin")
    needs = kind.needs(kind.Config())
    teachers = dict.fromkeys(needs.teachers, model)
    if needs.hard_labels:
        return
    batch = Batch(x=images(), y=torch.full((4, CLASSES), 1 / CLASSES), index=torch.arange(4))
    losses = losses_of(build(kind, kind.Config(), student, teachers), needs, student, batch)
    assert all(loss.isfinite() for loss in losses.values())
