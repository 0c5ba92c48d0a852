"""What code a unit of the library runs: the import closure of its module, read as syntax trees, never imported.

Docstrings, comments and layout are no part of it. Registries (`__init__.py` files) resolve names lazily and stand
outside, as does hkd/spec.py, whose values are part of every key themselves.

Of a unit from elsewhere (hkd/outside.py) also the modules of its own package are read, the packages they are in, and
whatever else they import that is not installed: a file beside it, a checkout on PYTHONPATH. What is installed is
recorded by its version, like any library.

Reading a hundred files as syntax trees takes longer than all else of planning a table; so what was read of a file's
bytes is kept in the user's cache folder.
"""

import ast
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hkd
from experiments import places
from experiments.kept import Kept
from experiments.records.store import digest
from hkd.outside import is_ours, spec_of

Import = tuple[int, str | None, tuple[str, ...]]  # level, module and names; of a plain `import` 0, None and the modules

OUTSIDE = {"hkd.spec"}
INSTALLED = {"site-packages", "dist-packages"}  # folders of libraries
UNSTEADY = {"kind", "type_comment"}  # fields of syntax trees that only some versions fill in


class Code:
    """The sources of `hkd` below a folder, each file read once.

    Args:
        root: the folder that holds `hkd`: a checkout.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.kept = Kept(places.cache(), "code", [Path(__file__)])
        self._trees: dict[str, ast.Module | None] = {}
        self._read: dict[str, tuple[str, tuple[Import, ...]]] = {}
        self._imports: dict[str, frozenset[str]] = {}
        self._digests: dict[tuple[str, ...], str] = {}

    def digest(self, entry: Iterable[str]) -> str:
        """16 hexadecimal digits over the syntax trees of the import closure of the entry modules."""
        names = tuple(sorted(entry))
        if names not in self._digests:
            trees = {name: self.read(name)[0] for name in sorted(self.closure(names))}
            self._digests[names] = digest(trees, size=8)
            self.kept.write()
        return self._digests[names]

    def closure(self, entry: Iterable[str]) -> set[str]:
        """The entry modules and every module that they import and whose code counts (`imports`), transitively."""
        reached: set[str] = set()
        waiting = list(entry)
        while waiting:
            name = waiting.pop()
            if name not in reached:
                reached.add(name)
                waiting.extend(self.imports(name) - reached)
        return reached

    def path(self, name: str) -> Path | None:
        """The file of a module, or None if it has none of its own (a package, an attribute of a module)."""
        if is_ours(name):
            path = self.root.joinpath(*name.split(".")).with_suffix(".py")
            return path if path.is_file() else None
        spec = getattr(sys.modules.get(name), "__spec__", None) or spec_of(name)
        return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None

    def tree(self, name: str) -> ast.Module | None:
        """The syntax tree of a module, or None if it has no file."""
        if name not in self._trees:
            path = self.path(name)
            self._trees[name] = ast.parse(path.read_bytes()) if path else None
        return self._trees[name]

    def imports(self, name: str) -> frozenset[str]:
        """Modules named by the import statements of a module, wherever in it they stand, whose code counts.

        Those of `hkd`; of a module from elsewhere also those that `counts` says, and the packages that it is in.
        """
        if name not in self._imports:
            named: set[str] = set()
            for level, origin, names in self.read(name)[1] if self.path(name) else ():
                if not level and origin is None:
                    named.update(names)
                elif base := self.base(name, level, origin):
                    named.update({base, *(f"{base}.{each}" for each in names)})
            if not is_ours(name):
                named = {each for module in {*named, name} for each in with_packages(module)} - {name}
            self._imports[name] = frozenset(
                module
                for module in named
                if (is_ours(module) or self.counts(module, name))
                and module not in OUTSIDE
                and self.path(module) is not None
            )
        return self._imports[name]

    def base(self, name: str, level: int, origin: str | None) -> str | None:
        """What a `from ... import` of a module imports from, in full; None beyond the top of its package."""
        if not level:
            return origin
        path, parts = self.path(name), name.split(".")
        up = level - (path is not None and path.stem == "__init__")
        if up >= len(parts):
            return None
        return ".".join([*parts[: len(parts) - up], *filter(None, [origin])])

    def counts(self, module: str, importer: str) -> bool:
        """Whether a module from elsewhere, imported by another, is its author's: of one package, or not installed."""
        if is_ours(importer) or module.split(".")[0] in sys.stdlib_module_names or (path := self.path(module)) is None:
            return False
        return module.split(".")[0] == importer.split(".")[0] or not INSTALLED & {*path.parts}

    def read(self, name: str) -> tuple[str, tuple[Import, ...]]:
        """The digest of a module's syntax tree, and its import statements, wherever in it they stand."""
        if name not in self._read:
            path = self.path(name)
            assert path is not None, f"no source for {name}"
            source = path.read_bytes()
            found = self.kept.get(source)
            if found is None:
                tree = self._trees[name] = ast.parse(source)
                found = digest(plain(tree)), list(imported(tree))
                self.kept.put(source, found)
            self._read[name] = found[0], tuple((level, origin, tuple(names)) for level, origin, names in found[1])
        return self._read[name]


def imported(tree: ast.Module) -> Iterable[Import]:
    """The import statements of a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield 0, None, tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module, tuple(alias.name for alias in node.names)


def with_packages(module: str) -> list[str]:
    """A module and the packages that it is in: `a`, `a.b`, `a.b.c`."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def plain(node: Any) -> Any:
    """A syntax tree as nested lists, the same under every Python version that reads it (unlike `ast.dump`)."""
    if not isinstance(node, ast.AST):
        return [type(node).__name__, repr(node)]
    fields = []
    for name in node._fields:
        value = getattr(node, name, None)
        # Empty and absent fields (type_params, kind, ...) come and go between versions.
        if value is None or name in UNSTEADY:
            continue
        if isinstance(value, list):
            if name == "body" and value and is_docstring(value[0]):
                value = value[1:]
            if value:
                fields.append([name, [plain(item) for item in value]])
        else:
            fields.append([name, plain(value)])
    return [type(node).__name__, fields]


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is a bare string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def own_code() -> Code:
    """The sources of the package that is imported, read on first use; `forget` after they were edited."""
    global _own
    if _own is None:
        _own = Code(Path(hkd.__file__).parent.parent)
    return _own


def forget() -> None:
    """Read the sources anew."""
    global _own
    _own = None


_own: Code | None = None
