"""The identity of a run: a hash of its spec and of the code that it uses.

The code part is a hash over the syntax trees, without docstrings and comments, of every module of `hkd` that
the run's own modules (task, method, model families, data set) import, directly or through one another.
Registries (`__init__.py` files) resolve names lazily and stand outside, as does hkd/spec.py, whose values are hashed
themselves: a new method, model or field changes no key, while a constant changed in kd.py changes the keys of the kd
runs and of those methods that import kd.
"""

import ast
import importlib.util
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hkd
from experiments.store import digest
from hkd.data import DATASETS
from hkd.methods import METHODS
from hkd.models import FAMILIES
from hkd.registry import lookup
from hkd.spec import ModelCard, RunSpec
from hkd.training import TASKS

ROOT = Path(hkd.__file__).parent
OUTSIDE = {"hkd.spec"}  # its values are part of the key themselves, and its defaults never change


def run_key(spec: RunSpec) -> str:
    """16 hexadecimal digits that name the run; equal for equal spec and code, whatever table or machine asks."""
    return digest({"spec": spec_identity(spec), "code": code_fingerprint(modules(spec))}, size=8)


def spec_identity(spec: RunSpec) -> dict[str, Any]:
    """The spec as plain JSON values, without what only describes a model and without fields at their default."""
    return reduced(spec)


def reduced(value: Any) -> Any:
    """Dataclasses as dicts of the fields that differ from their default."""
    if isinstance(value, dict):
        return {key: reduced(item) for key, item in value.items()}
    if not is_dataclass(value):
        return value
    named = set(value.identity()) if isinstance(value, ModelCard) else {item.name for item in fields(value)}
    return {
        item.name: reduced(getattr(value, item.name))
        for item in fields(value)
        if item.name in named and getattr(value, item.name) != default(item)
    }


def default(item: Field) -> Any:
    """The default of a field; MISSING where it has none."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def modules(spec: RunSpec) -> tuple[str, ...]:
    """The modules a run enters by name; the rest of its code is what these import."""
    families = {spec.student.family, *(teacher.model.family for teacher in spec.teachers.values())}
    paths = [
        lookup("task", spec.task, TASKS),
        lookup("method", spec.method.name, METHODS),
        lookup("data set", spec.data.name, DATASETS),
        *(lookup("model family", family, FAMILIES) for family in sorted(families)),
    ]
    return tuple(path.partition(":")[0] for path in paths)


@cache
def code_fingerprint(entry: tuple[str, ...]) -> str:
    """Hash of the syntax trees of the import closure of the entry modules."""
    return digest({name: module_tree(name) for name in sorted(closure(entry))})


def closure(entry: tuple[str, ...]) -> set[str]:
    """The entry modules and every non-package module of `hkd` that they import, transitively."""
    found: set[str] = set()
    waiting = list(entry)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(imports(name) - found)
    return found


@cache
def source(name: str) -> ast.Module | None:
    """The syntax tree of a module of `hkd`, or None if there is no such file (a package, an attribute)."""
    path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
    if name.split(".")[0] == "hkd" and path.is_file():
        return ast.parse(path.read_bytes())
    spec = None if name.split(".")[0] == "hkd" else importlib.util.find_spec(name)
    return ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else None


@cache
def imports(name: str) -> frozenset[str]:
    """Modules of `hkd` named by the import statements of a module, wherever in it they stand."""
    named: set[str] = set()
    for node in ast.walk(source(name) or ast.Module(body=[], type_ignores=[])):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            named.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return frozenset(
        module
        for module in named
        if module.split(".")[0] == "hkd" and module not in OUTSIDE and source(module) is not None
    )


@cache
def module_tree(name: str) -> str:
    """Digest of a module's syntax tree without docstrings; comments and layout never enter."""
    tree = source(name)
    assert tree is not None, f"no source for {name}"
    return digest(plain(tree))


def plain(node: Any) -> Any:
    """A syntax tree as nested lists, the same under every Python version that reads it (unlike `ast.dump`)."""
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(value, list):
                value = [item for i, item in enumerate(value) if not (i == 0 and is_docstring(item))]
            # Empty and absent fields (type_params, kind, ...) come and go between versions.
            if value not in (None, []) and name not in ("kind", "type_comment"):
                fields.append([name, plain(value)])
        return [type(node).__name__, fields]
    if isinstance(node, list):
        return [plain(item) for item in node]
    return [type(node).__name__, repr(node)]


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is a bare string."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@cache
def config_fields(method: str) -> dict[str, str]:
    """Option names of a method and their annotations, read from its source without importing torch.

    Raises:
        UserError: unknown method.
    """
    module, _, name = lookup("method", method, METHODS).partition(":")
    for node in ast.walk(source(module) or ast.Module(body=[], type_ignores=[])):
        if isinstance(node, ast.ClassDef) and node.name == f"{name}Config":
            return {
                item.target.id: ast.unparse(item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
    return {}
