"""The base of everything that is read from a file and validated."""

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict


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
