"""Files that are written atomically: what is left, and what an error names, when they cannot be."""

import errno
import os

import pytest
import torch

from hkd.files import HOST, atomic_write, sweep


def full(temporary):
    """The same path on a disk that takes no byte."""
    temporary.symlink_to("/dev/full")
    return temporary


def write_text(temporary):
    temporary.write_text("new")


def write_tensors(temporary):
    with open(temporary, "wb") as file:
        torch.save({"a": torch.zeros(1000)}, file)


def fail_in_own_words(temporary):
    """As torch.save does where the system takes a part of what is written."""
    try:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    except OSError:
        raise RuntimeError("unexpected pos 832 vs 726")  # noqa: B904


@pytest.mark.parametrize("write", [write_text, write_tensors])
def test_a_full_disk_leaves_the_old_content_and_the_error_names_the_file(tmp_path, write):
    path = tmp_path / "name"
    path.write_text("old")
    with pytest.raises(OSError, match="No space left on device") as told, atomic_write(path) as temporary:
        write(full(temporary))
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(path))
    assert [each.name for each in tmp_path.iterdir()] == ["name"]
    assert path.read_text() == "old"


def test_an_error_in_a_librarys_own_words_is_told_in_the_systems(tmp_path):
    with pytest.raises(OSError, match="Input/output error") as told, atomic_write(tmp_path / "name") as temporary:
        fail_in_own_words(temporary)
    assert told.value.filename == str(tmp_path / "name")


def test_errors_of_something_else_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as told, atomic_write(tmp_path / "name") as temporary:
        temporary.write_bytes((tmp_path / "another").read_bytes())
    assert told.value.filename == str(tmp_path / "another")
    with pytest.raises(RuntimeError, match="shapes"), atomic_write(tmp_path / "name"):
        raise RuntimeError("shapes do not match")
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_not_there_names_the_file_and_not_its_temporary_one(tmp_path):
    with pytest.raises(FileNotFoundError) as told, atomic_write(tmp_path / "gone" / "name") as temporary:
        temporary.write_text("new")
    assert told.value.filename == str(tmp_path / "gone" / "name")


def test_what_cannot_be_swept_stays(tmp_path, monkeypatch):
    left = tmp_path / f".name.{HOST}.999999999.tmp"
    left.write_text("half")

    def refuse(self, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "unlink", refuse)
        sweep(tmp_path)
    assert left.is_file()
    sweep(tmp_path)
    assert not left.exists()
