"""A disk that fails: each write of this process under a folder in turn, whatever makes it.

Python tells an audit hook of every file that is opened, made into a folder or renamed; syncing is watched beside it. So
no writer is left out, whether it goes through `hkd.files.atomic_write` or not.
"""

import errno
import os
import re
import sys
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

FULL = "/dev/full"  # takes no byte: writing to it fails as on a disk that is full in the middle of a file
KINDS: dict[str, tuple[int | str, ...]] = {
    "open": (errno.ENOSPC, FULL, errno.EROFS, errno.EDQUOT, FULL, errno.EACCES),
    "os.mkdir": (errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    "os.rename": (errno.EIO, errno.ENOSPC, errno.EROFS),
    "fsync": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
}
armed: "list[Disk]" = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook: once added it stays, and does nothing while no disk is armed."""
    if armed and event in KINDS:
        flags = arguments[2] if event == "open" else os.O_WRONLY
        if isinstance(arguments[0], str | os.PathLike) and flags & os.O_ACCMODE != os.O_RDONLY:
            armed[0].call(event, os.path.abspath(arguments[0]), arguments[1] if event == "open" else None)


sys.addaudithook(watch)


class Disk:
    """Fails one call each time it is armed, and another one the next time.

    A call is known by what it does and to which file, whatever run that is of. It fails `often` times, unless it is
    never made again; before it fails once more it must have succeeded, so that what is tried again goes on.

    Attributes:
        fault: of this time: (what was done, the file, what went wrong); None if nothing was left to fail.
        calls: all that failed: what was done to which file, and how often.

    Args:
        folder: whose files are on the disk.
        often: how many times each call fails.
        first: of the kinds of faults, which are taken in turn, the one to begin with.
    """

    def __init__(self, folder: Path, often: int, first: int):
        self.folder, self.often = str(folder.resolve()), often
        self.turns = {event: count(first) for event in KINDS}
        self.calls: Counter[tuple[str, str]] = Counter()
        self.passed: set[tuple[str, str]] = set()
        self.fault: tuple[str, str, str] | None = None
        self.links: list[str] = []

    def __enter__(self) -> "Disk":
        self.fault = None
        self.fsync = os.fsync
        os.fsync = self.synced
        armed.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        armed.remove(self)
        os.fsync = self.fsync
        while self.links:
            path = self.links.pop()
            if os.path.islink(path):
                os.unlink(path)

    def synced(self, descriptor: int) -> None:
        """In the place of os.fsync."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self.call("fsync", path, None)
        self.fsync(descriptor)

    def call(self, event: str, path: str, mode: str | None) -> None:
        """Fail this call, if it is its turn."""
        if self.fault is not None or not path.startswith(self.folder + os.sep):
            return
        if event == "os.mkdir" and os.path.isdir(path):  # nothing would be made
            return
        key = event, self.named(path)
        if self.calls[key] >= self.often or (self.calls[key] and key not in self.passed):
            self.passed.add(key)
            return
        kinds = KINDS[event]
        kind = kinds[next(self.turns[event]) % len(kinds)]
        if kind == errno.EACCES and path.endswith("lock"):  # once: filelock asks again
            kind = errno.EROFS
        self.calls[key] += 1
        self.passed.discard(key)
        if kind == FULL and "w" in (mode or "") and not os.path.lexists(path) and ".probe." not in path:  # has no byte
            self.fault = event, path, "a full disk in the middle of the file"
            self.links.append(path)
            os.symlink(FULL, path)
            return
        code = errno.ENOSPC if isinstance(kind, str) else kind
        self.fault = event, path, os.strerror(code)
        raise OSError(code, os.strerror(code), None if event == "fsync" else path)

    def named(self, path: str) -> str:
        """A file's name without what differs between runs and processes."""
        name = os.path.relpath(path, self.folder)
        name = re.sub(r"\.([^/]+)\.[A-Za-z0-9-]+\.\d+\.tmp$", r"\1 (temporary)", name)
        return re.sub(r"\b[0-9a-f]{16}\b", "RUN", re.sub(r"teacher-[0-9a-f]+", "teacher", name))
