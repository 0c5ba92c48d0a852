"""Registries from files: names of files or of classes, in the order of the files, without importing any."""

import pytest

from hkd.catalogue import NAMED_CLASS, entries


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.py").write_text("raise SystemExit  # never imported\nclass B(Base):\n    pass\n")
    (tmp_path / "a.py").write_text("import x\n\n\nclass A(Base):\n    pass\n\n\nclass Other(Thing):\n    pass\n")
    (tmp_path / "base.py").write_text("class Base(ABC):\n    pass\n")
    return tmp_path


def test_an_entry_is_named_as_its_file(folder):
    found = entries("some.package", folder, r"^class (?P<attribute>\w+)\(Base\):")
    assert list(found.items()) == [("a", "some.package.a:A"), ("b", "some.package.b:B")]


def test_a_class_that_has_a_name_is_called_so(tmp_path):
    (tmp_path / "several.py").write_text(
        'class Base(ABC):\n    name: ClassVar[str]\n\n    def f(self):\n        name = "no"\n\n\n'
        'def g():\n    name = "no"\n\n\n'
        'class One(Base, Mixin):\n    """One.\n\n    More.\n    """\n\n    name: ClassVar[str] = "one"\n\n\n'
        'class Two(Base):\n    name, licence = "two", One.licence\n'
    )
    assert entries("p", tmp_path, NAMED_CLASS) == {"one": "p.several:One", "two": "p.several:Two"}
