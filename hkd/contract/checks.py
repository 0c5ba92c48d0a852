"""What every method keeps, on a small model of every family: whoever calls these runs them under pytest.

The project's own tests call them for every method of ours, `hkd.contract.test_method` for the one that is named.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hkd.data.base import Split
from hkd.data.batch import Batch
from hkd.data.digits import Digits
from hkd.errors import Refused
from hkd.methods.base import Method, Needs, Samples, method_of
from hkd.models import FAMILIES
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.options import configured
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
ANY_TIMM = ModelCard(name="timm", family="timm", arch="test_byobnet", image_size=32)
SPARSE_CONVNEXT = replace(ZOO["convnext_t_mini"], name="sparse_convnext", family="sparse_convnext")
DIGITS = DataSpec(name="digits", options={"n_train": 20})
UNLABELLED = DataSpec(name="digits_unlabelled", options={"n_train": 20})
SMALL = {"image_size": 32}
# Methods of ours that pre-train without labels: options for images of 32 px and 20 samples, and a family they serve.
LABEL_FREE: dict[str, tuple[dict[str, Any], str]] = {
    "beit": ({**SMALL, "codes": 8}, "mim_vit"),
    "cae": ({**SMALL, "codes": 8, "regressor_depth": 1, "decoder_depth": 1, "heads": 6}, "beit"),
    "hgkd": ({"queue_size": 20, "width": 32}, "sparse_resnet"),
    "hybrid": ({"depth": 4, "mask": "progressive"}, "hybrid_vit"),
    "mae": ({**SMALL, "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}, "mim_vit"),
    "masked_pixels": ({**SMALL, "width": 32}, "sparse_resnet"),
    "moco": ({"hidden": 32, "width": 16}, "view_vit"),
    "simclr": ({"width": 16}, "view_vit"),
}
NARROW = {"pat": {"width": 32, "heads": 2}, "unic": {"hidden": 32}}  # adapters of full width would take the time
LOAD = Digits.load
RENDERED: dict[str, Split] = {}


class KilledError(Exception):
    """Stands for whatever ends a process."""


def card(family: str) -> ModelCard:
    """The first miniature of a family."""
    for own in (DISTILLED, SPARSE_CONVNEXT, ANY_TIMM):
        if family == own.name:
            return own
    return next(card for card in ZOO.values() if card.family == family and card.name.endswith("_mini"))


def images(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batch_of(x: torch.Tensor) -> Batch:
    return Batch(x=x, y=torch.arange(len(x)) % CLASSES, index=torch.arange(len(x)))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A method to be looked at: its options, a family that it serves, and whether it trains with labels."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    family: str = "resnet"
    labels: bool = True

    @property
    def kind(self) -> type[Method]:
        """Its class."""
        return method_of(self.name)

    @property
    def config(self) -> Any:
        """Its options, those that fit the small data here."""
        return configured(self.kind.Config, f"Method '{self.name}'", self.options)

    @property
    def needs(self) -> Needs:
        """What it asks for with these options."""
        return self.kind.needs(self.config)


def subject_of(name: str) -> Subject:
    """A method of ours: the defaults, except for methods without labels and wide ones."""
    if name not in LABEL_FREE:
        return Subject(name=name, options=NARROW.get(name, {}))
    options, family = LABEL_FREE[name]
    return Subject(name=name, options=options, family=family, labels=False)


@cache
def fresh_student(family: str, classes: int = CLASSES) -> TapModel:
    torch.manual_seed(1)
    student = TapModel(card(family), classes)
    # timm starts some layers (a Mixer's head, a ResNet's last norms) at zero, which blocks gradients.
    with torch.no_grad():
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


def build(kind: type[Method], config: Any, student: TapModel, teachers: dict[str, Teacher]) -> Method:
    torch.manual_seed(3)
    method = kind(config, student.info, teachers, F.cross_entropy)
    method.prepare(SAMPLES)
    return method


def losses_of(method: Method, needs: Needs, student: TapModel, batch: Batch) -> dict[str, torch.Tensor]:
    """As the loop has them."""
    frozen: Mapping[str, Teacher] = method.teachers  # type: ignore[assignment]
    taps_t = {
        role: frozen[role](batch.x, want, **method.teacher_inputs(role, batch)) for role, want in needs.teachers.items()
    }
    return TapStep(student, method, needs)(batch, taps_t)


# Of somebody's own modules (family `own`) the logits alone are known.
MODELS = [*(family for family in FAMILIES if family != "own"), DISTILLED.name]


def check_one_step(subject: Subject, student_family: str, teacher_family: str) -> str | None:
    """One step trains every tensor and leaves a plain timm model; else the sentence that refuses the pair."""
    kind, config, needs = subject.kind, subject.config, subject.needs
    teachers = {role: teacher(teacher_family) for role in needs.teachers}
    classes = CLASSES if subject.labels else 0
    student = copy.deepcopy(fresh_student(student_family, classes)).train()
    reason = kind.refuse(config, student.card, {role: model.card for role, model in teachers.items()}, RECIPE)
    method = None
    if reason is None:
        try:
            method = build(kind, config, student, teachers).train()
        except Refused as error:
            reason = str(error)
    if method is None:
        assert reason is not None
        assert reason.endswith(".")
        assert reason.count(". ") == 0
        return reason
    with torch.no_grad():  # a method too may start some at zero (biases, the factor of a prompt)
        for parameter in method.parameters():
            if not parameter.any():
                parameter.add_(0.02)
    frozen = {role: copy.deepcopy(model.state_dict()) for role, model in teachers.items()}
    learning = {**dict(student.named_parameters()), **{f"method.{n}": p for n, p in method.named_parameters()}}
    start = {name: parameter.detach().clone() for name, parameter in learning.items()}
    optimizer = torch.optim.AdamW(learning.values(), lr=1e-2, weight_decay=0.0)

    losses = losses_of(method, needs, student, batch_of(images()))
    torch.stack([*losses.values()]).sum().backward()
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
        return None
    exported = plain(student_family, classes)
    assert list(student.net.state_dict()) == list(exported.state_dict())
    exported.load_state_dict(student.net.state_dict(), strict=True)
    x = student.prepare(images())
    with torch.no_grad():
        torch.testing.assert_close(student.eval()(images()).logits, exported.eval()(x))
    return None


def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing and evaluating all 510 test digits would take most of the time."""

    def few(self: Digits, split: Any, *, seed: int, select: bool, on_corrupt: Any = "stop") -> Split:
        if split not in RENDERED:
            whole = LOAD(self, split, seed=seed, select=select)
            assert whole.images is not None
            RENDERED[split] = Split(whole.images[:20], None, whole.labels[:20], whole.rows[:20])
        return RENDERED[split]

    monkeypatch.setattr(Digits, "load", few)


def check_resumption(subject: Subject, folder: Path) -> None:
    """Equal seeds give equal bytes, also after a kill in the middle; `few_digits` keeps it short."""
    task, data = (train, DIGITS) if subject.labels else (pretrain, UNLABELLED)
    model = ZOO["mae_b16_mini" if subject.name == "hybrid" else "swin_t_mini"]  # it asks for plain ViTs of its own grid
    taught = TeacherSpec(model=model, weights=Weights(kind="random", id="7"))
    spec = RunSpec(
        task=task.__name__,
        data=data,
        student=card(subject.family),
        method=MethodSpec(name=subject.name, options=dict(subject.options)),
        recipe=Recipe(epochs=2, batch_size=10, lr=1e-3, shift=2),
        teachers=dict.fromkeys(subject.needs.teachers, taught),
    )

    def kill(news: dict[str, Any]) -> None:
        if news["step"] == 3:
            raise KilledError

    runtime = Runtime(accelerator="cpu", report_every_s=0.0)
    often = replace(runtime, checkpoint_every_s=0.0)
    whole = task(Job(spec, {}, folder / "whole", runtime, lambda news: None))
    with pytest.raises(KilledError):
        task(Job(spec, {}, folder / "parts", often, kill))
    assert (folder / "parts" / "checkpoint.pt").exists()
    resumed = task(Job(spec, {}, folder / "parts", often, lambda news: None))
    assert resumed.metrics == whole.metrics
    assert [line["loss"] for line in resumed.curves] == [line["loss"] for line in whole.curves]
    for path in (folder / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (folder / "parts" / path.name).read_bytes(), path.name


def check_drawing(subject: Subject) -> None:
    """A method is drawn from the seed and stores no teacher."""
    kind, config, model = subject.kind, subject.config, teacher("swin")
    student = fresh_student(subject.family)
    teachers = dict.fromkeys(subject.needs.teachers, model)
    first, second = (build(kind, config, student, teachers) for _ in range(2))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())
    held = {tensor.data_ptr() for tensor in first.state_dict().values() if tensor.numel()}
    assert held.isdisjoint(tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel())
    second.load_state_dict(first.state_dict(), strict=True)


def check_soft_targets(subject: Subject) -> None:
    """A method with labels takes soft targets, or says that it needs class labels."""
    needs = subject.needs
    if needs.hard_labels:
        return
    student, teachers = copy.deepcopy(fresh_student("vit")), dict.fromkeys(needs.teachers, teacher("swin"))
    batch = Batch(x=images(), y=torch.full((4, CLASSES), 1 / CLASSES), index=torch.arange(4))
    losses = losses_of(build(subject.kind, subject.config, student, teachers), needs, student, batch)
    assert all(loss.isfinite() for loss in losses.values())
