"""Files: written atomically (a reader sees the old content or the new one, never a part), named by their content."""

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())[:40]
TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>[0-9]{1,9})\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it is removed.

    The temporary name holds the machine and the process id, so that two processes never write the same one, and so
    that `sweep` can tell what a killed process left.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def printable(text: object) -> str:
    """A text of one line that any terminal and file can take: line breaks, control characters and, of a name that is
    not UTF-8, the odd bytes are written as escapes.
    """
    bytes_shown = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(text))
    shown = re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], bytes_shown)
    return shown.encode("utf-8", "backslashreplace").decode()


def sweep(folder: Path) -> None:
    """Delete the temporary files of a folder whose process, of this machine, is gone: it was killed while it wrote."""
    for path in folder.glob(".*.tmp"):
        found = TEMPORARY.fullmatch(path.name)
        if found and found["host"] == HOST and not is_running(int(found["process"])):
            path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether this machine has a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
