"""Tables and profiles in files of the user's own: where a name of ours is taken, so is the path of a YAML file.

Such a file is known by its name without the ending from then on, in this process; the modules that it names are looked
for in its folder too. A profile may also stand inside a table's file, under `profile`, and has the table's name.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments import places
from hkd.errors import UserError
from hkd.outside import search

ENDINGS = (".yaml", ".yml")
NAME = re.compile("[a-z0-9][a-z0-9_-]{0,99}")
KINDS = {"tables": "table", "profiles": "profile"}  # by the folder that ours are in


@dataclass(frozen=True)
class Own:
    """path: of the file. shown: as the user wrote it. part: key of it that holds the document; "": it is all of it."""

    path: Path
    shown: str
    part: str = ""


OWN: dict[tuple[str, str], Own] = {}  # what was named in this process, by folder and name


def called(folder: str, name: str) -> str:
    """What a command takes for a table or profile: its name, or the file of the user's own as it was given."""
    return OWN[folder, name].shown if (folder, name) in OWN else name


def is_path(text: str) -> bool:
    """Whether a text is the path of a file, and no name of ours."""
    return text.endswith(ENDINGS)


def known_name(folder: str, text: str, ours: Iterable[str], beside: Path | None = None) -> str:
    """The name that a table or profile is known by from now on; a name stays what it is.

    Args:
        folder: "tables" or "profiles".
        text: a name, or the path of a file.
        ours: names that files of this package have, whose results would be mixed up with the user's.
        beside: a file that names it, whose folder a relative path starts from; None: the working folder.

    Raises:
        UserError: no such file, or one whose name cannot be.
    """
    if not is_path(text):
        return text
    path = places.file(text, beside.parent if beside else None)
    kind, name = KINDS[folder], path.stem
    here = Path(__file__).resolve().parents[1] / folder / f"{name}.yaml"
    if os.path.realpath(path) == str(here):  # which a circle of links does not end
        return name
    if not path.is_file():
        raise UserError(f"There is no {kind} file {text}{f' beside {beside}' if beside else ''}.")
    if not NAME.fullmatch(name):
        raise UserError(
            f"{text}: a {kind} has the name of its file: small letters, digits, _ and -, such as my_{kind}.yaml."
        )
    if name in ours:
        raise UserError(f"{text}: '{name}' is a {kind} of the suite itself; give the file another name.")
    know(folder, name, Own(path, text))
    return name


def know(folder: str, name: str, own: Own) -> None:
    """Know a file, or a part of one, by a name.

    Raises:
        UserError: another file has that name.
    """
    known = OWN.setdefault((folder, name), own)
    if (known.path, known.part) != (own.path, own.part):
        raise UserError(
            f"{own.shown} and {known.shown} would both be the {KINDS[folder]} '{name}'; rename one of them."
        )
    search(own.path.parent)
