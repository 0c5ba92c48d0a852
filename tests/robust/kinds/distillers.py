"""The library's front door: models, options, taps and batches that cannot be."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hkd
from hkd.distiller.arguments import shown
from hkd.methods import METHODS
from tests.robust.damage import ODD_VALUES, changed
from tests.robust.fuzz import Input, Kind

SIDE, CLASSES = 32, 5
METHODS_TRIED = ("kd", "kd", "dkd", "dist", "fitnet", "cc", "rkd", "crd", "ofa", "fd", "supervised")


class Own(nn.Module):
    """Somebody's own network."""

    def __init__(self, classes: int = CLASSES, broken: str = "") -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(8, classes)
        self.broken = broken

    def forward(self, x: Tensor) -> Any:
        logits = self.head(self.body(x).mean((2, 3)))
        ways: dict[str, Callable[[], Any]] = {
            "tuple": lambda: (logits, logits),
            "dict": lambda: {"logits": logits},
            "none": lambda: None,
            "one": lambda: logits[:, 0],
            "map": lambda: logits[..., None, None],
            "nan": lambda: logits * float("nan"),
            "raises": lambda: {}["a\nb"],
            "asserts": lambda: (_ for _ in ()).throw(AssertionError("no\nimages")),
            "text": lambda: "logits",
            "no classes": lambda: logits[:, :0],
            "stops": lambda: next(iter(())),
            "half": lambda: logits.half(),
            "wrong batch": lambda: torch.cat([logits, logits]),
            "int": lambda: logits.long(),
            "list": lambda: logits.tolist(),
            "cut off": lambda: logits.detach(),
        }
        return ways[self.broken]() if self.broken else logits


BROKEN = (
    "tuple",
    "dict",
    "none",
    "one",
    "map",
    "nan",
    "raises",
    "asserts",
    "text",
    "no classes",
    "stops",
    "half",
    "wrong batch",
    "int",
    "list",
    "cut off",
)
TAPS = {"stages": {1: "body.0", 2: "body.2", 3: "body.3", 4: "body.4"}}


def model(rng: random.Random) -> tuple[Any, str]:
    """A student or teacher, most often one that can be."""
    makers: dict[str, Callable[[], Any]] = {
        "own": Own,
        "own as well": Own,
        "timm": lambda: timm.create_model("resnet10t", num_classes=CLASSES),
        "vit": lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=SIDE, depth=2, embed_dim=24, num_heads=2, num_classes=CLASSES
        ),
        "zoo": lambda: hkd.TapModel(hkd.ZOO["mobilenet_v2_mini"], CLASSES),
        "other classes": lambda: Own(7),
        "name": lambda: "mobilenet_v2_mini",
        "hkd.Teacher": lambda: hkd.Teacher(hkd.ZOO["resnet18_mini"], CLASSES),
    }
    if rng.random() < 0.25:
        makers = {
            "none": lambda: None,
            "tensor": lambda: torch.zeros(3),
            "function": lambda: lambda x: x,
            "class": lambda: nn.Linear,
            "no parameters": nn.ReLU,
            "unknown name": lambda: rng.choice(("resnet9000", "", "a\nb", "../x")),
            "number": lambda: 5,
            "list": lambda: [Own()],
            "dict": lambda: {"x": Own()},
            "linear": lambda: nn.Linear(3, 3),
            "empty": lambda: nn.Sequential(),
            "lazy": lambda: nn.LazyLinear(3),
            "meta": lambda: Own().to("meta"),
            "frozen": lambda: Own().requires_grad_(False),
            "double": lambda: Own().double(),
            "complex": lambda: Own().to(torch.complex64),
            "half": lambda: Own().half(),
            "scripted": lambda: torch.jit.script(
                nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            ),
            "nan": lambda: nan(Own()),
            "headless": lambda: timm.create_model("resnet10t", num_classes=0),
            "one class": lambda: Own(1),
            **{f"broken: {how}": lambda how=how: Own(broken=how) for how in BROKEN},
        }
    name = rng.choice(list(makers))
    return makers[name](), name


def nan(net: nn.Module) -> nn.Module:
    """A network whose weights are no numbers."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(float("nan"))
    return net


def taps(rng: random.Random) -> object:
    """Where the taps are, most often rightly."""
    if rng.random() < 0.6:
        return TAPS
    odd = (
        None,
        {},
        {"stages": {}},
        {"stages": None},
        {"stages": {4: "body"}},
        {"stages": {1: "nowhere"}},
        {"stages": {5: "body"}},
        {"stages": {"1": "body"}},
        {"stages": {1: 0, 2: 1, 3: 2, 4: 3}},
        {"stages": {1: 99, 2: 99, 3: 99, 4: 99}},
        {"stages": ["body"]},
        {"stages": "body"},
        {"stage": {4: "body"}},
        {**TAPS, "final": "head"},
        {**TAPS, "pooled": "body"},
        {**TAPS, "prefix": 3},
        {**TAPS, "prefix": -1},
        {**TAPS, "prefix": "x"},
        {**TAPS, "layout": "NHWC"},
        {**TAPS, "layout": 5},
        {**TAPS, "final": None},
        {"stages": {1: None}},
        {"stages": {1: nn.ReLU()}},
        {"stages": {True: "body"}},
        {"stages": {1.0: "body.0"}},
        5,
        "body",
        ["body"],
        {"stages": {1: "head", 2: "head", 3: "head", 4: "head"}},
        {"stages": {1: ""}},
        {"stages": {1: "a\nb"}},
        {"final": 5},
    )
    return (
        rng.choice(odd) if rng.random() < 0.8 else changed(rng, {"stages": {1: "body.0", 4: "body.4"}, "prefix": 0})[0]
    )


def batch(rng: random.Random) -> tuple[Any, Any, Any, str]:
    """Images, targets and rows; most often one of them cannot be."""
    x, y, index = torch.rand(2, 3, SIDE, SIDE), torch.tensor([0, 4]), torch.tensor([0, 1])
    odd_x = (
        x.double(),
        x.half(),
        x.to(torch.uint8),
        x[0],
        x[:, :1],
        x[..., :16],
        torch.rand(2, 3, 33, 33),
        x[:0],
        x * float("nan"),
        None,
        x.numpy(),
        x.tolist(),
        "x",
        x[:1],
        torch.rand(2, 4, SIDE, SIDE),
        x.to(torch.complex64),
        x.to("meta"),
        x.to_sparse(),
        [x, x],
        x.bool(),
        x.permute(0, 2, 3, 1),
        x * float("inf"),
        5,
    )
    odd_y = (
        y.float(),
        y[:1],
        y[:0],
        torch.tensor([0, 5]),
        torch.tensor([-1, 0]),
        torch.tensor([-100, 0]),
        torch.rand(2, CLASSES),
        torch.rand(2, 3),
        y[:, None],
        None,
        [0, 4],
        y.numpy(),
        y.int(),
        y.bool(),
        y.to(torch.uint8),
        torch.tensor(3),
        torch.tensor([2**62, 0]),
        "y",
        torch.rand(2, CLASSES, 1),
        torch.full((2, CLASSES), float("nan")),
        F.one_hot(y, CLASSES),
        F.one_hot(y, CLASSES).float(),
        y.to("meta"),
        torch.tensor([0.5, 1.5]),
        y.short(),
        y.to(torch.complex64),
    )
    odd_index = (
        None,
        index[:1],
        index.float(),
        torch.tensor([0, 99]),
        torch.tensor([-1, 0]),
        [0, 1],
        0,
        "0",
        index.bool(),
        index[:, None],
        index.numpy(),
        index.int(),
    )
    which = rng.choice(("whole", "x", "y", "y", "index"))
    place = rng.randrange(100)
    if which == "x":
        x = odd_x[place % len(odd_x)]
    elif which == "y":
        y = odd_y[place % len(odd_y)]
    elif which == "index":
        index = odd_index[place % len(odd_index)]
    return x, y, index, f"{which} {place}"


def distillers(rng: random.Random, folder: Path) -> Input:
    torch.manual_seed(rng.getrandbits(32))
    student, named = model(rng)
    teacher, called = model(rng)
    if rng.random() < 0.05:
        teacher, called = student, "the student"
    elif rng.random() < 0.15:
        held = teacher
        made = {
            "mapping": {"teacher": held},
            "other role": {"guru": held},
            "no role": {},
            "number": {1: held},
            "two": {"teacher": held, "more": Own()},
            "value": {"teacher": None},
        }
        called = f"{rng.choice(list(made))} of {called}"
        teacher = made[called.split(" of ")[0]]
    method: Any = (
        rng.choice(METHODS_TRIED) if rng.random() < 0.9 else rng.choice((*METHODS, None, 5, "", "KD", ["kd"], "a\nb"))
    )
    more: dict[str, Any] = {"image_size": SIDE}
    told = []
    if method == "crd":
        more["samples"] = torch.arange(CLASSES)
    if "own" in named or "own" in called or rng.random() < 0.2:
        more |= (
            {"taps": taps(rng) if rng.random() < 0.5 else TAPS}
            if not named.startswith(("timm", "vit", "zoo", "name", "hkd"))
            else {}
        )
        more |= (
            {"teacher_taps": taps(rng) if rng.random() < 0.5 else TAPS}
            if not called.startswith(("timm", "vit", "zoo", "hkd"))
            else {}
        )
        told.append(f"{shown(more.get('taps'))} {shown(more.get('teacher_taps'))}")
    if {"zoo", "name", "hkd.Teacher"} & {named, called} and rng.random() < 0.7:
        stats = ([0.5] * 3, [0.25] * 3)
        more["normalize"] = {
            role: stats
            for role, one in (("student", named), ("teacher", called))
            if one not in ("zoo", "name", "hkd.Teacher")
        }
    if rng.random() < 0.35:
        odd = {
            "image_size": (0, -1, 1, 7, 10**6, 32.0, "32", None, (32, 32), True, float("nan")),
            "num_classes": (0, -1, 5, 7, "5", 5.0, None, 10**9, True),
            "normalize": (
                True,
                None,
                5,
                "yes",
                {},
                {"student": None},
                {"student": ([0.5], [0.5])},
                {"student": ([0.5] * 3, [0.0] * 3)},
                {"nobody": 1},
                {"student": ("a", "b")},
                [1],
            ),
            "criterion": (
                None,
                5,
                "ce",
                F.mse_loss,
                lambda a, b: None,
                lambda a: a,
                lambda a, b: a,
                lambda a, b: torch.tensor(float("nan")),
                nn.CrossEntropyLoss(),
            ),
            "samples": (
                None,
                [],
                [0, 1],
                torch.rand(3),
                "x",
                5,
                [[0]],
                [99],
                [-1],
                ["a"],
                {0: 1},
                [None],
                torch.zeros(3).to_sparse(),
                [10**30],
            ),
            "tau": (*ODD_VALUES, 4.0, 4),
            "taps": (taps(rng),),
            "teacher_taps": (taps(rng), {"teacher": taps(rng)}),
            "w_kd": ODD_VALUES,
            "stages": ODD_VALUES,
            "unknown": (1,),
        }
        name = rng.choice(list(odd))
        more[name] = rng.choice(odd[name])
        told.append(f"{name}={shown(more[name])}")
    x, y, index, what = batch(rng)
    drop = rng.random() < 0.1

    def attempt() -> None:
        distiller = hkd.Distiller(student, teacher, method, **more)
        losses = distiller(x, y) if drop else distiller(x, y, index=index)
        total = sum(losses.values())
        assert isinstance(total, Tensor), f"losses {losses}"
        assert total.ndim == 0, f"a loss of shape {total.shape}"
        if total.requires_grad:
            total.backward()

    return Input(f"{named} from {called}, {method}, {told}, batch {what}", attempt)


KINDS: dict[str, Kind] = {"distillers": distillers}
