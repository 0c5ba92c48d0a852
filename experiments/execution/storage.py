"""Errors of the place that results are written to, told apart from those of a run."""

import errno
import os
import shutil
from pathlib import Path

from experiments.records.store import Store
from hkd.errors import UserError

# A disk, quota or size that is used up; what became read-only, is somebody else's, fails, or went away.
STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.ESTALE, errno.EIO, errno.EACCES,
                  errno.EPERM, errno.ENOTDIR, errno.ENOENT}  # fmt: skip
READING_TOO = {errno.ESTALE, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOTDIR}  # reading data may also end with them
TOLD = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # by which other libraries' errors are known


class StorageError(UserError):
    """Results cannot be written; nothing else can succeed until that is put right."""


def not_written(error: OSError, root: Path) -> StorageError:
    """That something cannot be written, as one sentence."""
    return StorageError(
        f"Cannot write to {error.filename or root}: {error.strerror or error}. Finished runs are kept; "
        "make room or give another folder in HKD_RUNS, and run the same command again."
    )


def storage_failed(error: OSError, folder: Path, root: Path) -> bool:
    """Whether a run ended for lack of a place to write.

    What reading meets too counts for files of the store alone, and what is not there only if the run's folder is gone.
    """
    if error.errno == errno.ENOENT:
        return not folder.is_dir()
    if error.errno not in READING_TOO:
        return error.errno in STORAGE_ERRORS
    name = error.filename
    return isinstance(name, str | os.PathLike) and Path(name).resolve().is_relative_to(root.resolve())


def disk_error(error: Exception, folder: Path) -> OSError | None:
    """The error of the disk that one of any type came from, or None; torch and torchrun have errors of their own."""
    text = str(error)
    found = next((code for code in TOLD if os.strerror(code) in text), None)
    if found is None and folder.is_dir() and shutil.disk_usage(folder).free < 2**16:
        found = errno.ENOSPC
    return None if found is None else OSError(found, os.strerror(found), str(folder))


def check_writable(store: Store) -> None:
    """Refuse to begin what cannot be finished: a store that cannot be written."""
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        probe = store.root / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise not_written(error, store.root) from None
