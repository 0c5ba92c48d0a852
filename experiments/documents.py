"""The base of everything that is read from a file and validated."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict

MOST_JSON = 256 * 2**20  # bytes of a file
Finite = Annotated[float, Strict(), Field(ge=-1e15, le=1e15, allow_inf_nan=False)]  # what a run or figure measures


class Document(BaseModel):
    """Unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def content(path: Path, most: int) -> bytes:
    """The bytes of a file, at most `most` and one more, which says that it has more.

    Raises:
        OSError: it cannot be read, or it is something that would be waited for, or never ends: a pipe, a device.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(None, "it is no file", os.fspath(path))
    with open(path, "rb") as file:
        return file.read(most + 1)


def json_of(text: bytes | str) -> Any:
    """The value of a JSON text. Raises ValueError where it is none, or holds NaN or an infinity, or is very deep."""
    try:
        return json.loads(text, parse_constant=not_a_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def not_a_number(name: str) -> float:
    """Refuse NaN and infinities, which JSON has not."""
    raise ValueError(f"{name} is no value")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError as `content` does, and ValueError as `json_of` does."""
    return json_of(content(path, MOST_JSON))
