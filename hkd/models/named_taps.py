"""Taps of any module, by the names of modules inside it.

Shapes: B batch, C classes, D width, H W grid, N patch tokens, P prefix tokens.
"""

import difflib
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from hkd import registry
from hkd.errors import Refused, UserError
from hkd.models.families.base import BLOCK_TAPS, Family
from hkd.models.hooks import Recorded, recorded_outputs
from hkd.models.taps import TapInfo, Taps, Want, tokens_to_map
from hkd.spec import ModelCard

TapNames = Mapping[str, Any]  # see Distiller

STAGES = (1, 2, 3, 4)
TAP_KEYS = ("stages", "final", "pooled", "prefix", "layout")
LAYOUTS = ("NCHW", "NHWC")
OVERWRITTEN = "is overwritten by a later in-place operation, in training alone: take that out of place (inplace=False)"
HOW_TO_NAME = 'name them by module, taps={"stages": {1: NAME, 2: NAME, 3: NAME, 4: NAME}} (teacher_taps for a teacher)'


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


class Overwritten(UserError):
    """Outputs were recorded that are not what the modules gave.

    keys: of the taps.
    """

    def __init__(self, keys: Collection[Any], sentence: str) -> None:
        super().__init__(sentence)
        self.keys = keys


def readings(map_: Tensor) -> tuple[str, ...]:
    """Layouts in which a map [B, _, _, _] is square, as maps of square images are."""
    one, two, three = map_.shape[1:]
    if one == two == three == 1:
        return ("NCHW",)
    return tuple(layout for layout, square in (("NCHW", two == three), ("NHWC", one == two)) if square)


def layout_of(map_: Tensor, others: Iterable[Tensor]) -> str | None:
    """The layout of a map by its shape; where it is square in both, that of the others, if they tell one alone.

    Returns:
        None where shapes do not tell.
    """
    found = readings(map_)
    if len(found) == 1:
        return found[0]
    told = {layout for other in others if len(layouts := readings(other)) == 1 for layout in layouts}
    return told.pop() if found and len(told) == 1 else None


class NamedFamily(Family):
    """How a module is run whose taps are outputs of modules inside.

    Attributes:
        stages: those that were named. absent: "final" and "pooled" where nothing tells them.
        copied: taps that a later in-place operation would change, so that they are copied when they are recorded.
    """

    name: ClassVar[str] = "named"

    def __init__(self, net: nn.Module, who: str, taps: TapNames | None) -> None:
        """Look the names up.

        Raises:
            UserError: an unknown key, stage, module or layout.
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
        self.layout: str | None = told.get("layout")
        if self.layout is not None:
            registry.lookup(f"layout of {where}", self.layout, dict.fromkeys(LAYOUTS))
        # Drop-out in place does nothing in the pass in evaluation mode that finds the others.
        dropped = any(isinstance(module, _DropoutNd) and module.inplace for module in net.modules())
        self.copied: set[Any] = set(places) if dropped else set()
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
        modules = {key: net.get_submodule(name) for key, name in self.places.items()}
        with recorded_outputs(modules, self.copied) as found:
            logits = net(x)
        if changed := found.overwritten():
            raise Overwritten(changed, self.sentence_of(changed[0], OVERWRITTEN))
        if torch.is_grad_enabled() and self.where == "taps":
            self.check_gradients(net, found)
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

    def sentence_of(self, key: Any, what: str) -> str:
        """What is wrong with the output that stands for a tap."""
        return f"{self.where}: the output of module '{self.places[key]}' of the {self.who} {what}."

    def check_gradients(self, net: nn.Module, found: Recorded[Any]) -> None:
        """Raise a UserError for a tap through which no gradient would reach the student.

        One of modules that are frozen has none by right; one recorded while gradients were off (re-entrant
        checkpointing), or of a student of which nothing is frozen, was cut off.
        """
        frozen = any(not parameter.requires_grad for parameter in net.parameters())
        for key, value in found.items():
            if isinstance(value, Tensor) and not value.requires_grad and not (frozen and found.graded[key]):
                raise UserError(
                    self.sentence_of(
                        key,
                        "has no gradient, so that nothing would be learned from it: checkpoint with "
                        "use_reentrant=False, or name a module that is not inside",
                    )
                )

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
            return self.channels_first(found, key), None
        side = math.isqrt(max(0, value.shape[1] - self.prefix))
        if side == 0 or side**2 != value.shape[1] - self.prefix:
            raise UserError(
                f"{self.where}: module '{name}' of the {self.who} gives {value.shape[1]} tokens, which are no square "
                f'grid behind {self.prefix} prefix tokens; set "prefix".'
            )
        prefix = value[:, : self.prefix] if self.prefix else None
        return tokens_to_map(value[:, self.prefix :], (side, side)), prefix

    def channels_first(self, found: Mapping[Any, Any], key: Any) -> Tensor:
        """A recorded map as [B, D, H, W]."""
        maps = {other: x for other, x in found.items() if other != "pooled" and isinstance(x, Tensor) and x.ndim == 4}
        map_ = maps[key]
        layout = self.layout or layout_of(map_, maps.values())
        if layout is None:
            one, two, three = map_.shape[1:]
            raise UserError(
                f"{self.where}: module '{self.places[key]}' of the {self.who} gives {[*map_.shape]}, which does not "
                f'tell channels from height and width: say "layout": "NCHW" ({one} channels of {two}x{three}) or '
                f'"NHWC" ({three} channels of {one}x{two}, as in Swin).'
            )
        return map_ if layout == "NCHW" else map_.permute(0, 3, 1, 2)

    def pooled_of(self, found: Mapping[Any, Any], final: Tensor | None, nothing: Tensor) -> Tensor:
        """The penultimate feature [B, D]."""
        if "pooled" not in self.places:
            return nothing if final is None else final.mean(dim=(2, 3))
        value = found.get("pooled")
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[2:].numel() == 1:
            return value.flatten(1)
        shape = [*value.shape] if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{self.where}: module '{self.places['pooled']}' gives {shape}; a pooled feature is [B, D].")
