"""The options class of a method, task or data set, without importing what else its file needs (torch takes seconds).

A method or data set names its class in the attribute `Config`, a task in its decorator `@task(...)`. Of the file only
that definition is carried out, and what it uses: other names of the top level, and imports, of which those from `hkd`
are brought in the same way.
"""

import ast
import importlib
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from experiments.planning import code
from hkd.errors import UserError
from hkd.options import configured
from hkd.outside import is_ours
from hkd.registry import load, lookup
from hkd.units import KINDS

WORDS = {"task": "Task", "method": "Method", "data": "Data set"}


def settled(kind: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they enter a spec: those given, with whole numbers as floats where floats are meant, and no tuples.

    Args:
        kind: of unit: "task", "method" or "data".
        name: of the unit.
        options: as a document gives them.

    Raises:
        UserError: an unknown unit; OptionError: an option that it has not, or a value that cannot be.
    """
    made: Any = configured(options_of(kind, name), f"{WORDS[kind]} '{name}'", options)
    values = {option: getattr(made, option) for option in options}
    return {option: list(value) if isinstance(value, tuple) else value for option, value in values.items()}


def options_of(kind: str, name: str) -> type:
    """The options class of a unit; UserError where there is no such unit."""
    path = lookup(WORDS[kind].lower(), name, KINDS[kind])
    module, _, unit = path.partition(":")
    if is_ours(module):
        return declared(module, unit)
    if kind == "method":
        from hkd.methods.base import method_of  # imports torch, as what is somebody else's is imported whole

        return method_of(name).Config
    from hkd.data.base import DataSet

    found = load(path)
    if not (isinstance(found, type) and issubclass(found, DataSet) and hasattr(found, "Config")):
        raise UserError(f"'{name}' is no data set: give a class that is derived from hkd.data.base.DataSet.")
    return found.Config


@cache
def declared(module: str, unit: str) -> type:
    """The options class that a class, one of its bases, or a task of a module names."""
    if module in sys.modules:
        return getattr(sys.modules[module], unit).Config
    node = top_level(module)[unit]
    if isinstance(node, ast.ImportFrom):
        return declared(str(node.module), unit)
    if isinstance(node, ast.FunctionDef):
        (decorator,) = (each for each in node.decorator_list if isinstance(each, ast.Call))
        return meaning(module, ast.unparse(decorator.args[0]))
    assert isinstance(node, ast.ClassDef)
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and "Config" in bound(statement) and statement.value:
            return meaning(module, ast.unparse(statement.value))
    return declared(module, ast.unparse(node.bases[0]))


@cache
def meaning(module: str, name: str) -> Any:
    """What a name of a module's top level stands for."""
    if module in sys.modules or not module.startswith("hkd."):
        return getattr(importlib.import_module(module), name)
    held, used, waiting = top_level(module), set(), [name]
    while waiting:
        if (each := waiting.pop()) in held and each not in used:
            used.add(each)
            waiting += [node.id for node in ast.walk(held[each]) if isinstance(node, ast.Name) and is_read(node)]
    namespace: dict[str, Any] = {"__name__": module}
    for statement in dict.fromkeys(held.values()):  # in the order of the file
        if isinstance(statement, ast.ImportFrom):
            names = {alias.asname or alias.name: alias.name for alias in statement.names}
            namespace |= {name: meaning(str(statement.module), names[name]) for name in names if name in used}
        elif used & bound(statement):
            exec(compile(ast.Module([statement], []), module, "exec"), namespace)
    return namespace[name]


@cache
def top_level(module: str) -> dict[str, ast.stmt]:
    """The statements of a module's top level by the names that they bind, in the order of the file."""
    tree = code.own_code().tree(module)
    assert tree is not None, module
    return {name: statement for statement in tree.body for name in bound(statement)}


def is_read(name: ast.Name) -> bool:
    """Whether a name is looked up, not given a meaning: a field may be called like a function of the file."""
    return isinstance(name.ctx, ast.Load)


def bound(statement: ast.stmt) -> set[str]:
    """Names that a statement gives a meaning."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}
