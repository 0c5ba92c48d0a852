"""Reads pages as a browser would: elements with their attributes and texts, ids, links."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "path", "circle", "rect"}


@dataclass
class Element:
    """An element: its name, attributes, all text in it, and the elements right in it."""

    name: str
    attributes: dict[str, str]
    parts: list[str] = field(default_factory=list)
    inside: list["Element"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def all(self, name: str) -> list["Element"]:
        """Elements of a name anywhere in it, in order."""
        found = []
        for each in self.inside:
            found += ([each] if each.name == name else []) + each.all(name)
        return found


class Reader(HTMLParser):
    """Builds the tree; raises AssertionError where an element is not closed by its own end."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Element("", {})
        self.open = [self.top]

    def handle_starttag(self, tag, attrs):
        found = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(found)
        if tag not in VOID:
            self.open.append(found)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].inside.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open[-1].name == tag, f"<{self.open[-1].name}> is closed by </{tag}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element.parts.append(data)


def read(text: str) -> Element:
    """A page as a tree."""
    reader = Reader()
    reader.feed(text)
    assert len(reader.open) == 1
    return reader.top


def page(path: Path) -> Element:
    """A page of the report."""
    return read(path.read_text(encoding="utf-8"))


def ids(element: Element) -> list[str]:
    """All ids in it."""
    return [each for inner in element.inside for each in (inner.attributes.get("id", ""), *ids(inner)) if each]
