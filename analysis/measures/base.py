"""What a measure is: it takes in what it sees of a model batch by batch, and has a result, lines of tables and figures.

Shapes: B images, C channels, H W grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from inspect import isabstract
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from analysis.looking.attention import Layer, Seen
from analysis.measures import MEASURES
from hkd.registry import load, lookup

Lines = tuple[list[str], list[list[str]]]  # headings of a table, and its lines
SEEN = ("attention", "features", "final")  # what a measure can see, in the order in which results stand; its methods


class Result:
    """What a measure found of one model; a dataclass of numbers and arrays."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All fields that have a value as arrays, for `numpy.savez`."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        return {name: np.asarray(value) for name, value in found.items() if value is not None}


class Measure(ABC):
    """One measure of one model over any number of images. Its file in this folder holds all of it.

    It defines the method that is named as what it sees (with attention perhaps `end`), and `table` if it has a title;
    a class that does not is refused where it is defined. Instances for the same model merge and travel between
    processes.

    Attributes:
        sees: the attention of every layer, the features of every layer, or the last feature map alone.
        most: how many images it is given, the first of all; None: all.
        title: what stands above its table for reading, units included; empty: it has none.
    """

    sees: ClassVar[Literal["attention", "features", "final"]]
    most: ClassVar[int | None] = None
    title: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Raise TypeError for a measure that lacks what it must define; kinds of measures, still abstract, may."""
        super().__init_subclass__()
        if isabstract(cls):
            return
        sees = getattr(cls, "sees", None)
        if sees not in SEEN:
            raise TypeError(f"Measure {cls.__name__}: sees is {sees!r}; it must be one of {', '.join(SEEN)}.")
        if getattr(cls, sees) is getattr(Measure, sees):
            raise TypeError(f"Measure {cls.__name__} sees {sees} and has no method '{sees}' to see it with.")
        if cls.title and cls.table.__func__ is Measure.table.__func__:  # type: ignore[attr-defined]
            raise TypeError(f"Measure {cls.__name__} has a title and no class method 'table' that stands below it.")

    @classmethod
    def refusal(cls, net: Any, layers: Sequence[Layer]) -> str | None:
        """Why the measure does not apply to a model that has what it sees, as a sentence; None if it applies.

        Args:
            net: a timm model.
            layers: its attention, if that is what the measure sees.
        """
        return None

    # Of the next four a measure defines those of what it sees, and is given nothing by the others.

    def attention(self, seen: Seen, layers: Sequence[Layer]) -> None:  # noqa: B027
        """See one layer's maps of some images of a batch, whose memory is used again."""

    def end(self, images: Float[Tensor, "B 3 Hi Wi"], size: tuple[int, int]) -> None:  # noqa: B027
        """All attention of a batch was seen.

        Args:
            images: of the batch, as they were given: RGB in [0, 1].
            size: (height, width) of what the network saw, in px.
        """

    def features(self, layer: int, name: str, map_: Float[Tensor, "B C H W"]) -> None:  # noqa: B027
        """See one layer's features of a batch, patches only."""

    def final(self, map_: Float[Tensor, "B C H W"]) -> None:  # noqa: B027
        """See the last feature map of a batch, patches only."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what another instance saw of the same model."""

    @abstractmethod
    def compute(self) -> Any:
        """The result so far, of a class of `Result`. Raises UserError if no images were taken in."""

    @classmethod
    def rows(cls, result: Any) -> Iterator[dict[str, Any]]:
        """Every number of a result with its interval for table.csv, made by `line`."""
        yield from ()

    @classmethod
    def table(cls, results: Mapping[str, Any]) -> Lines:
        """The table for reading of results by model; empty, and not printed, without a title."""
        return [], []

    @classmethod
    def figures(cls, results: Mapping[str, Any]) -> dict[str, Figure]:
        """Figures of results by model, in the house style, by what their files' names end in."""
        return {}


def measure_called(name: str) -> type[Measure]:
    """A measure by the name of its file. Raises UserError with the nearest name."""
    found: type[Measure] = load(lookup("measure", name, MEASURES))
    return found


def all_measures() -> dict[str, type[Measure]]:
    """All measures by name, in the order of their results: by what they see, those of a few images last."""
    kinds = {name: measure_called(name) for name in MEASURES}
    return dict(sorted(kinds.items(), key=lambda each: (each[1].most is not None, SEEN.index(each[1].sees), each[0])))


def line(quantity: str, unit: str, value: float, half: float, **place: Any) -> dict[str, Any]:
    """A line of table.csv: a value with the ends of its interval, and where it was measured (layer, name, head ...)."""
    ends = {"value": float(value), "low": float(value - half), "high": float(value + half)}
    return {"quantity": quantity, "unit": unit, **ends, **place}


def number(value: float, half: float, digits: int) -> str:
    """`116.5 ± 0.1`, or `116.5` without an interval."""
    text = f"{value:.{digits}f}".replace("-", "−")
    return text if np.isnan(half) else f"{text} ± {half:.{digits}f}"
