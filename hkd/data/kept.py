"""Where what was computed of data is remembered that lie in a read-only folder: a second place, in the store of runs.

Told once per process by who knows the store; without it such data are read anew by every process.
"""

from pathlib import Path

_folder: Path | None = None


def keep_also_in(folder: Path | None) -> None:
    """The second place from here on; None: there is none."""
    global _folder
    _folder = folder


def folder() -> Path | None:
    """The second place."""
    return _folder
