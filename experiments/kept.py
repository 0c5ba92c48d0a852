"""What was worked out from bytes, a file's or those of a question, kept for the commands after this one."""

import atexit
import hashlib
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hkd.files import atomic_write


class Kept:
    """Values of JSON by the bytes that they follow from, in one file.

    The file's name says by which code, and under which version of Python, they were made. A file that is not what was
    written is left aside, and where none can be written the next command reads everything again.

    Args:
        folder: it is kept in.
        name: of what is kept.
        readers: files of the code that makes them.
    """

    def __init__(self, folder: Path, name: str, readers: Iterable[Path]):
        code = [hashed(reader.read_bytes()) for reader in (*readers, Path(__file__))]
        self.path = folder / f"{name}-{hashed(repr((code, sys.version_info[:2])).encode())[:16]}.json"
        self.new = False
        self.entries: dict[str, str] = {}  # as JSON: whoever is given a value may change it
        with suppress(OSError, ValueError, RecursionError):
            check, _, held = self.path.read_bytes().partition(b"\n")
            if check.decode() == hashed(held):
                self.entries = json.loads(held)
        atexit.register(self.write)

    def get(self, source: bytes) -> Any:
        """What was read from these bytes; None if that is not kept."""
        held = self.entries.get(hashed(source))
        return None if held is None else json.loads(held)

    def put(self, source: bytes, found: Any) -> None:
        """Keep what was read; the file is written when `write` is called, and when the command ends."""
        self.entries[hashed(source)] = json.dumps(found)
        self.new = True

    def write(self) -> None:
        """Write what is new."""
        if self.new:
            self.new = False
            held = json.dumps(self.entries, separators=(",", ":")).encode()
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(self.path) as temporary:
                    temporary.write_bytes(hashed(held).encode() + b"\n" + held)


def hashed(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
