"""Registries of what the files of a folder define. Files are read for it, never imported, and stay lazy to use.

A file's name is an entry's name, unless the pattern has a group `name`.
"""

import re
from pathlib import Path

# A class that says `name = "..."` (or `name: ClassVar[str] = "..."`, or `name, licence = "...", ...`).
NAMED_CLASS = r'^class (?P<attribute>\w+)\([^)\n]*\):\n(?:(?:    .*)?\n)*?    name\b[^"\n]*"(?P<name>\w+)"'


def entries(package: str, folder: str | Path, pattern: str) -> dict[str, str]:
    """`{name: "package.module:attribute"}` of all definitions in the modules of a folder, for `hkd.registry`.

    Args:
        package: the folder's, as it is imported.
        folder: its modules are read in the order of their names.
        pattern: of lines of source, with a group `attribute` and perhaps a group `name`.
    """
    return {
        match.groupdict().get("name") or path.stem: f"{package}.{path.stem}:{match['attribute']}"
        for path in sorted(Path(folder).glob("*.py"))
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    }
