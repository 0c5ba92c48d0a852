"""Errors of the place that results are written to, told apart from those of a run."""

import errno
import os
import shutil
from pathlib import Path

from experiments.records.store import Store
from hkd.errors import UserError

STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR}
READING_TOO = {errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR}  # those that reading a data file may also end with


class StorageError(UserError):
    """Results cannot be written; nothing else can succeed until that is put right."""


def storage_error(error: OSError, root: Path) -> OSError | StorageError:
    """A full disk or a read-only folder as one sentence; other errors as they are."""
    return not_written(error, root) if error.errno in STORAGE_ERRORS else error


def not_written(error: OSError, root: Path) -> StorageError:
    """That something cannot be written, as one sentence."""
    return StorageError(
        f"Cannot write to {error.filename or root}: {error.strerror}. Finished runs are kept; "
        "make room or give another folder in HKD_RUNS, and run the same command again."
    )


def storage_failed(error: OSError, root: Path) -> bool:
    """Whether a run ended for lack of a place to write: what only reading meets counts for files of the store alone."""
    if error.errno not in READING_TOO:
        return error.errno in STORAGE_ERRORS
    name = error.filename
    return isinstance(name, str | os.PathLike) and Path(name).resolve().is_relative_to(root.resolve())


def disk_full(error: Exception, folder: Path) -> bool:
    """Whether an error of any type came from a full disk."""
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < 2**16


def check_writable(store: Store) -> None:
    """Refuse to begin what cannot be finished: a store that cannot be written."""
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        probe = store.root / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise not_written(error, store.root) from None
