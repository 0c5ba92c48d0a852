"""Options of methods, tasks, data sets and recipes: what each may be, said once, beside the field.

A class of options is a frozen dataclass under `@options`, whose annotations are the ranges below or made like them. It
takes numbers as JSON and YAML give them: a whole number where a float is meant, and a list for a tuple; never a text
or a truth value for a number. Every other value is refused in one sentence. Free of torch.
"""

import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, Strict, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from hkd.errors import UserError
from hkd.files import printable
from hkd.registry import nearest

T = TypeVar("T")

LONGEST = 255  # bytes of the name of a file
MOST = 10**6  # of every number; what takes memory has a smaller bound of its own
Number = Annotated[float, Strict(), Field(ge=-MOST, le=MOST, allow_inf_nan=False)]
Positive = Annotated[float, Strict(), Field(gt=0, le=MOST, allow_inf_nan=False)]
NotNegative = Annotated[float, Strict(), Field(ge=0, le=MOST, allow_inf_nan=False)]
Factor = Annotated[float, Strict(), Field(gt=0, le=64, allow_inf_nan=False)]  # of a side in px
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
ShareAbove0 = Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]
ShareBelow1 = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]
ShareBetween = Annotated[float, Strict(), Field(gt=0, lt=1, allow_inf_nan=False)]
Whole = Annotated[int, Strict(), Field(ge=0, le=MOST)]  # a count that may be none, or a seed
Count = Annotated[int, Strict(), Field(ge=1, le=MOST)]
Size = Annotated[int, Strict(), Field(ge=1, le=2**14)]  # px a side, or channels
Few = Annotated[int, Strict(), Field(ge=1, le=1024)]  # heads, layers, processes
Workers = Annotated[int, Strict(), Field(ge=0, le=1024)]
Switch = Annotated[bool, Strict()]


def different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raises ValueError where a value is there twice."""
    if len(set(values)) < len(values):
        raise ValueError("must not name one twice")
    return values


def rising(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raises ValueError where a value is below the one before."""
    if list(values) != sorted(values):
        raise ValueError("must not fall from one value to the next")
    return values


def inside(name: str) -> str:
    """Raises ValueError unless a path stays below the folder it is joined to, and can be there."""
    parts = Path(name).parts
    too_long = any(len(part.encode(errors="replace")) > LONGEST for part in parts)
    if Path(name).is_absolute() or ".." in parts or "\0" in name or too_long:
        raise ValueError("must be a name below its root folder")
    return name


Different, Rising = AfterValidator(different), AfterValidator(rising)
FolderName = Annotated[str, Strict(), Field(min_length=1, max_length=1000), AfterValidator(inside)]
Stages = Annotated[tuple[Annotated[int, Strict(), Field(ge=1, le=4)], ...], Different]  # of a model, from 1

PLAIN = {
    "a valid tuple": "a list",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "a text",
    "a valid dictionary": "names with values",
}


class OptionError(UserError):
    """A value that an option cannot have, or an option that there is not.

    Args:
        what: whose option it is, as a sentence begins: "Method 'kd'".
        sentence: the rest of the sentence.
        loc: the option, and the place within it; empty where several do not go together.
    """

    def __init__(self, what: str, sentence: str = "", loc: tuple[str | int, ...] = ()):
        super().__init__(what, sentence, loc)
        self.sentence, self.loc = sentence, loc

    def __str__(self) -> str:
        return printable(f"{self.args[0]}{self.sentence}")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def options(cls: type[T]) -> type[T]:
    """Make a class of options of one with annotated fields; a value that cannot be raises OptionError."""
    made: Any = dataclass(cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
    validated = made.__init__

    def __init__(self: Any, /, **values: Any) -> None:  # noqa: N807
        wrong = None
        try:
            validated(self, **values)
        except ValidationError as error:
            loc, sentence = fault(error)
            if error.errors()[0]["type"] == "unexpected_keyword_argument":
                sentence = no_such(str(loc[0]), made)
            else:
                sentence = f": {' '.join(['.'.join(map(str, loc)), sentence]).strip()}"
            wrong = OptionError(made.__name__, sentence, loc)
        if (
            wrong is not None
        ):  # raised here, as an error that has pydantic's for its context cannot travel between workers
            raise wrong

    made.__init__ = __init__
    return made


@options
class NoOptions:
    """Nothing to set."""


def together(check: Callable[[Any], None]) -> Any:
    """Mark a method of a class of options that raises ValueError for values that do not go together."""

    @wraps(check)
    def checked(self: Any) -> Any:
        check(self)
        return self

    return model_validator(mode="after")(checked)


def names_of(kind: Any) -> list[str]:
    """The options of a class: one made by `@options`, or any dataclass."""
    return list(kind.__dataclass_fields__)


def no_such(name: str, kind: Any) -> str:
    """What to say of an option that a class has not, to follow whose options they are."""
    known = names_of(kind)
    return f" has no option '{name}'.{nearest(name, known)} Known: {', '.join(known)}."


def configured(kind: type[T], what: str, values: Mapping[str, Any]) -> T:
    """Options filled from a document; those that it does not name have their defaults.

    Args:
        kind: a class of options.
        what: whose options these are, as a sentence begins: "Method 'kd'".
        values: as JSON and YAML give them.

    Raises:
        OptionError: an unknown option (the nearest known one is named), or a value that cannot be.
    """
    odd = next((name for name in values if name not in names_of(kind)), None)
    if odd is not None:  # of a plain dataclass too, which would raise Python's own words
        raise OptionError(what, no_such(str(odd), kind), (odd,))
    try:
        return kind(**values)
    except OptionError as error:
        raise OptionError(what, error.sentence, error.loc) from None


def fault(error: ValidationError) -> tuple[tuple[str | int, ...], str]:
    """Where the first mistake of a document is, and what is allowed there and what was given, to follow its name."""
    first, *others = error.errors()
    loc = place(first)
    if not loc:  # of `together`
        return loc, f"{allowed(first)}."
    if first["type"].startswith("missing"):
        return loc, "is missing."
    kinds = [first, *(other for other in others if place(other) == loc and len(loc) < len(first["loc"]))]
    given = shown(first["input"])
    choices = [choice for each in kinds for choice in re.findall("'([^']+)'", each.get("ctx", {}).get("expected", ""))]
    meant = nearest(given.strip("'"), choices)
    return loc, f"{' or '.join(map(allowed, kinds))}, got {given}.{meant}"


def shown(value: Any) -> str:
    """The beginning of a value as Python writes it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or a list of lists of lists of ...
        return "a value too long to be shown"
    return text if len(text) <= 60 else f"{text[:60]}..."


def place(error: Any) -> tuple[str | int, ...]:
    """The place of a mistake without pydantic's own marks, such as `tuple[int, ...]` for one of several kinds."""
    return tuple(part for part in error["loc"] if not str(part).endswith("]"))


def allowed(error: Any) -> str:
    """What would be right, as words after the name of an option."""
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    text = error["msg"].partition("should ")[2].replace(" after validation", "")
    for word, plain in PLAIN.items():
        text = text.replace(word, plain)
    return f"must {text}" if text else error["msg"]
