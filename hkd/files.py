"""Files: written atomically (a reader sees the old content or the new one, never a part), named by their content."""

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

HOST = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())[:40]
MOST_HEADER = 100_000_000  # bytes, of a safetensors file: what its own library reads
METADATA = "__metadata__"
TEMPORARY = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.(?P<process>[0-9]{1,9})\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes its place, on failure it is removed.

    The temporary name holds the machine and the process id, so that two processes never write the same one, and so
    that `sweep` can tell what a killed process left.

    Raises:
        OSError: it cannot be written; it names `path`, also where the call that failed (a write, a sync) had no name
            or that of the temporary file.
    """
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save says in words of its own that the file took no more; what the system said is its context.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        own = isinstance(cause, OSError) and cause.errno and cause.filename in (None, str(temporary), temporary)
        if not own:  # it is about something else
            raise
        assert isinstance(cause, OSError)
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # on a disk that became read-only; what made it fail is what is told
            temporary.unlink(missing_ok=True)


def printable(text: object) -> str:
    """A text of one line that any terminal and file can take: line breaks, control characters and, of a name that is
    not UTF-8, the odd bytes are written as escapes.
    """
    bytes_shown = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", str(text))
    shown = re.sub("[\0-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], bytes_shown)
    return shown.encode("utf-8", "backslashreplace").decode()


def sweep(folder: Path) -> None:
    """Delete the temporary files of a folder whose process, of this machine, is gone: it was killed while it wrote.

    They stay where this is not permitted: nothing reads them.
    """
    for path in folder.glob(".*.tmp"):
        found = TEMPORARY.fullmatch(path.name)
        if found and found["host"] == HOST and not is_running(int(found["process"])):
            with suppress(OSError):
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


def weights_sha256(path: Path) -> str:
    """What names weights: SHA-256 of a .safetensors file as it would be without metadata, of another file as it is.

    So the same tensors have one name, whether a file says where they come from (`hkd weights convert`) or not (`hkd
    weights fetch`). What is no safetensors file has the name of its bytes; reading it will say what is wrong.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if path.suffix == ".safetensors" and length <= MOST_HEADER:
            try:
                header = json.loads(file.read(length))
            except (ValueError, RecursionError):
                header = None
            if isinstance(header, dict) and header.pop(METADATA, None) is not None:
                text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
                text += b" " * (-len(text) % 8)
                found = hashlib.sha256(len(text).to_bytes(8, "little") + text)
                while part := file.read(2**20):
                    found.update(part)
                return found.hexdigest()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()
