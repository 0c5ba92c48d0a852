"""What was read of files, kept for the next command: damage, readers that change, folders that take nothing."""

from pathlib import Path

import pytest

from experiments import kept
from experiments.kept import Kept
from experiments.planning import quick, schema

SOURCE = b"a: [1, 2]"
VALUE = {"a": [1, 2.5, None, "\u00fc"]}


def opened(folder, reader=Path(__file__)):
    return Kept(folder, "things", [reader])


@pytest.fixture
def folder(tmp_path):
    """A folder in which a command before this one has kept a value."""
    before = opened(tmp_path / "cache")
    before.put(SOURCE, VALUE)
    before.write()
    return tmp_path / "cache"


def test_the_next_command_has_it_and_nothing_else(folder):
    assert opened(folder).get(SOURCE) == VALUE
    assert opened(folder).get(SOURCE + b" ") is None


def test_a_value_that_is_changed_by_who_was_given_it_stays_as_it_was_read(folder):
    again = opened(folder)
    again.get(SOURCE)["a"].clear()
    assert again.get(SOURCE) == VALUE
    mine = {"b": [1]}
    again.put(b"b", mine)
    mine["b"].clear()
    again.write()
    assert opened(folder).get(b"b") == {"b": [1]}


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", "\n", "\n{}", "a digit", "no digest", "half", "\xff"])
def test_a_damaged_file_is_left_aside_and_written_anew(folder, damage):
    (path,) = folder.iterdir()
    held = path.read_text()
    texts = {
        "a digit": held.replace("2.5", "3.5"),
        "no digest": held.partition("\n")[2],
        "half": held[: len(held) // 2],
    }
    assert texts["a digit"] != held
    path.write_text(texts.get(damage, damage), encoding="latin-1")
    now = opened(folder)
    assert now.get(SOURCE) is None
    now.put(SOURCE, VALUE)
    now.write()
    assert path.read_text() == held


def test_what_other_code_has_read_is_read_anew(folder, tmp_path):
    reader = tmp_path / "reader.py"
    reader.write_text("a = 1")
    first = opened(folder, reader)
    first.put(SOURCE, VALUE)
    first.write()
    assert opened(folder, reader).get(SOURCE) == VALUE
    reader.write_text("a = 2")
    assert opened(folder, reader).get(SOURCE) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    def refused(path):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(kept, "atomic_write", refused)
    things = opened(tmp_path)
    things.put(SOURCE, VALUE)
    things.write()
    assert things.get(SOURCE) == VALUE
    assert not list(tmp_path.iterdir())


def test_documents_are_read_once_for_all_commands_and_come_out_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HKD_CACHE", str(tmp_path))
    wanted = [(folder, name) for folder in ("tables", "profiles", "published") for name in schema.names(folder)]
    schema.kept.cache_clear()
    try:
        read = [schema.contents(*each) for each in wanted]
        schema.kept().write()
        schema.kept.cache_clear()
        monkeypatch.setattr(quick, "read", None)  # would fail
        monkeypatch.setattr(schema, "document", None)
        assert repr([schema.contents(*each) for each in wanted]) == repr(read)
    finally:
        schema.kept.cache_clear()
