"""Which methods serve which models, what they read and what they cost; asked of the methods themselves.

Imports torch. Models are built without numbers (torch's meta device).
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from experiments.planning.building import Unfilled
from hkd.errors import UserError
from hkd.methods import METHODS
from hkd.methods.base import Method, Needs, method_of
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.outside import outside
from hkd.registry import load
from hkd.spec import ModelCard, Recipe

RECIPE = Recipe(epochs=1, batch_size=2)
STUDENTS = ("resnet50", "vit_s16", "mae_b16", "hybrid_b16", "dino_b16", "beit_b16", "sparse_resnet50")
TEACHERS = ("swin_s", "mae_b16", "deit_b16", "clip_b16")
CLASSES = 1000
SMALL = 32  # px: of the cards that are asked about, one of each family; large ones take seconds each
READ = re.compile(r"\b(?:taps|taps_s|taps_t|taps_t\[[^]]+\]|teacher|t|s|view)\.(logits|pooled|final|tokens|prefix)\b")
ORDER = ("logits", "pooled", "final", "tokens", "prefix")
WORDS = {"final": "last map", "prefix": "prefix tokens", "qkv": "queries and keys", "outputs": "block outputs"}


@dataclass(frozen=True, kw_only=True)
class Described:
    """A method in a line.

    passes: forward passes of teachers a step, with a star where their outputs can be kept. adapters: parameters that it
    trains beside the student; None where no pair tried here is served. families: of students, served and in all.
    """

    name: str
    reads: str
    passes: str
    adapters: int | None
    families: tuple[int, int]

    def added(self) -> str:
        """Millions of adapters."""
        return "" if self.adapters is None else f"{self.adapters / 1e6:.1f}"


def described() -> list[Described]:
    """Every method of ours."""
    return [describe(name) for name in METHODS]


def describe(name: str) -> Described:
    """One method, with its default options."""
    kind = method_of(name)
    needs = kind.needs(kind.Config())
    passes = str(len(needs.teachers))
    if needs.teachers and kind.teacher_inputs is Method.teacher_inputs:
        passes += "*"
    with Unfilled():
        served = [card.family for card in of_each_family(SMALL) if serves(name, card)]
    return Described(
        name=name,
        reads=", ".join(read_by(kind, needs)),
        passes=passes,
        adapters=adapters(name, kind, needs),
        families=(len(served), len(of_each_family(SMALL))),
    )


def read_by(kind: type[Method], needs: Needs) -> list[str]:
    """What a method reads: attributes of taps that its file names, and what it asks for."""
    file = Path(load_file(kind))
    named = set(READ.findall(file.read_text(encoding="utf-8")))
    found = [WORDS.get(name, name) for name in ORDER if name in named]
    wants = [needs.student, *needs.teachers.values()]
    stages = sorted({stage for want in wants for stage in want.stages})
    if stages:
        found.append(
            f"stage{'s' * (len(stages) > 1)} {', '.join(map(str, stages))}" if len(stages) < 4 else "all stages"
        )
    found += [WORDS.get(name, name) for name in ("attention", "qkv", "outputs") if any(getattr(w, name) for w in wants)]
    return found + ["class labels"] * needs.hard_labels + ["sample index"] * needs.index


def load_file(kind: type) -> str:
    """The file that a class stands in."""
    return str(sys.modules[kind.__module__].__file__)


def adapters(name: str, kind: type[Method], needs: Needs) -> int | None:
    """Parameters that a method trains beside the first student and teacher here that it serves."""
    with Unfilled(), torch.device("meta"), torch.random.fork_rng():
        for student in STUDENTS:
            for teacher in TEACHERS if needs.teachers else TEACHERS[:1]:
                cards = dict.fromkeys(needs.teachers, ZOO[teacher])
                if kind.refuse(kind.Config(), ZOO[student], cards, RECIPE):
                    continue
                try:
                    taught = {role: built(Teacher, card.name) for role, card in cards.items()}
                    made = kind(kind.Config(), built(TapModel, student).info, taught, functional.cross_entropy)  # type: ignore[arg-type]
                except UserError:  # the models built have shapes that it does not take
                    continue
                return sum(parameter.numel() for parameter in made.parameters())
    return None


@cache
def built(kind: type[TapModel], name: str) -> TapModel:
    """A model without numbers."""
    return kind(ZOO[name], CLASSES)


def methods_of(card: ModelCard) -> tuple[list[str], list[str]]:
    """Methods that serve a model as a student of some teacher, going by the cards; and those that do not."""
    with Unfilled():
        can = [name for name in METHODS if serves(name, card)]
    return can, [name for name in METHODS if name not in can]


def options_for(name: str, student: ModelCard) -> Any:
    """The default options, at the student's own image size and depth where these are options."""
    config: Any = method_of(name).Config
    known = {"image_size": student.image_size, "depth": student.kwargs.get("depth")}
    fits = {key: value for key, value in known.items() if key in config.__dataclass_fields__ and value is not None}
    return config(**fits)


def serves(name: str, card: ModelCard) -> bool:
    """Whether a method takes a student with a teacher of some family, of its size where there is one."""
    kind, config = method_of(name), options_for(name, card)
    roles = kind.needs(config).teachers
    teachers: list[Mapping[str, ModelCard]] = [{}]
    if roles:
        teachers = [dict.fromkeys(roles, other) for other in of_each_family(card.image_size)]
    return any(kind.refuse(config, card, each, RECIPE) is None for each in teachers)


@cache
def of_each_family(size: int) -> list[ModelCard]:
    """One card of each family that has any, of this image size in px if there is one."""
    found: dict[str, ModelCard] = {}
    for card in sorted(ZOO.values(), key=lambda card: card.image_size != size):
        found.setdefault(card.family, card)
    return list(found.values())


def elsewhere(group: str) -> tuple[list[str], list[str]]:
    """What installed packages register in a group: lines to print, and sentences on what cannot be imported."""
    lines, wrong = [], []
    for name, path in outside(group).items():
        try:
            method_of(path) if group == "hkd.methods" else load(path)
            lines.append(f"{name} ({path}), of another package")
        except UserError as error:
            wrong.append(str(error))
    return lines, wrong
