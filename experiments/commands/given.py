"""How commands read what they are given, where that is stricter than the command line's own way."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token


def whole(kind: Any, tokens: Sequence[Token]) -> int:
    """A whole number as people write it; `1.5` would otherwise be 2, and `0x10` 16.

    Raises:
        ValueError: it is none.
    """
    text = tokens[0].value
    if not re.fullmatch("[+-]?[0-9]{1,18}", text, re.ASCII):
        raise ValueError(f"{text!r} is no whole number.")
    return int(text)


Whole = Annotated[int, Parameter(converter=whole)]
