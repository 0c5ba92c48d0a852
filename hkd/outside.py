"""What other packages bring: methods, models and data sets by a dotted path, or by a name that they register.

Wherever a name of ours is taken, so is `my_pkg.my_file:MyMethod`, and so is the name of an entry point of an installed
package, in one of three groups:

    [project.entry-points."hkd.methods"]
    mine = "my_pkg.my_file:MyMethod"

Modules are looked for where Python looks, then in the working folder, then in the folders that `search` was told of;
worker processes inherit those. Nothing is imported before it is used, and names of ours come first.
"""

import importlib
import importlib.util
import os
import re
import sys
import traceback
from functools import lru_cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from hkd.errors import UserError

GROUPS = {"method": "hkd.methods", "model": "hkd.models", "data set": "hkd.datasets"}  # by what is registered there
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
FOLDERS = "HKD_PATH"  # environment variable: folders that `search` was told of


def outside(group: str) -> dict[str, str]:
    """What installed packages register in a group: `{name: "package.module:Attribute"}`, nothing imported.

    Args:
        group: "hkd.methods", "hkd.models" or "hkd.datasets".
    """
    return dict(_registered(group, tuple(sys.path)))


@lru_cache(maxsize=16)  # every name of every plan asks, and reading the metadata of all packages takes 20 ms
def _registered(group: str, path: tuple[str, ...]) -> dict[str, str]:
    found = sorted(metadata.entry_points(group=group), key=lambda point: (point.name, point.value))
    return {point.name: "".join(point.value.split()) for point in found if DOTTED.fullmatch(point.value)}


def from_dotted(text: str) -> str | None:
    """A dotted path, `package.module:Attribute`, as it is loaded by; None for a text that is none."""
    return text if DOTTED.fullmatch(text) else None


def found_outside(kind: str, name: str) -> str | None:
    """The dotted path of what is no name of ours: of a registered name, or the name itself; None where it is neither.

    Args:
        kind: "method", "model" or "data set"; nothing else comes from outside.
        name: as a user gave it.
    """
    if kind not in GROUPS:
        return None
    return from_dotted(name) or outside(GROUPS[kind]).get(name)


def is_ours(module: str) -> bool:
    """Whether a module is one of this package."""
    return module.split(".")[0] == "hkd"


def search(folder: Path) -> None:
    """Look for modules in a folder too, here and in every process that is started from here."""
    if str(folder) not in (known := told()):
        os.environ[FOLDERS] = os.pathsep.join([*known, str(folder)])


def told() -> list[str]:
    """The folders that `search` was told of."""
    return list(filter(None, os.environ.get(FOLDERS, "").split(os.pathsep)))


def look_around() -> None:
    """Put the working folder, and those of `search`, at the end of Python's own path: they hide nothing installed."""
    here = [os.getcwd()] if os.path.exists(".") else []  # somebody may have deleted it
    sys.path.extend(folder for folder in [*here, *told()] if folder not in sys.path)
    importlib.invalidate_caches()


def imported(path: str) -> Any:
    """What a dotted path names.

    Raises:
        UserError: it cannot be imported, whatever its module raises; the sentence says where that was.
    """
    module, _, attribute = path.partition(":")
    look_around()
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # of somebody's code, which may raise anything
        raise UserError(f"{named(path)} cannot be imported: {why(error, module)}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"{named(path)} cannot be imported: {module} ({found_at(module)}) has no '{attribute}'.")
        found = getattr(found, part)
    return found


def named(path: str) -> str:
    """A dotted path for a sentence, with the package that registers it, if one does."""
    for group in GROUPS.values():
        for point in metadata.entry_points(group=group):
            if point.value == path and point.dist is not None:
                return f"'{path}' (entry point '{point.name}' in {group} of the package '{point.dist.name}')"
    return f"'{path}'"


def why(error: BaseException, module: str) -> str:
    """What an import raised, and the line of somebody's code that did."""
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return (
            f"there is no module '{error.name}' that Python knows of, nor in {os.getcwd()}; "
            "run from its folder, or put that on PYTHONPATH"
        )
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    at = f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}{': ' if text else ''}{text}{at}"


def found_at(module: str) -> str:
    """The file of a module that was imported, as far as it has one."""
    return getattr(sys.modules.get(module), "__file__", None) or "without a file"


def spec_of(module: str) -> ModuleSpec | None:
    """Where a module is, nothing imported: not even the packages that it is in; None where there is no such module."""
    look_around()
    parts = module.split(".")
    folders, found = None, None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        finders = (finder.find_spec(name, folders) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = next((spec for spec in finders if spec is not None), None)
        if found is None or (depth < len(parts) and found.submodule_search_locations is None):
            return None
        folders = found.submodule_search_locations
    return found
