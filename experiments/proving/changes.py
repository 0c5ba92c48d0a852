"""Which statements of a unit's code changed between two checkouts, and must have run for a proof to count.

Code is compared as syntax trees, function by function, wherever in the closure a function stands: comments, layout,
docstrings, annotations of functions, names of local variables and the text of errors that are raised are no changes,
nor is a function that moved as it is. Of a function that changed only its changed statements count, and of these the
parts that are not always evaluated (the sides of `x if c else y`) each for itself; a changed signature or decorator
counts for the beginning of the body; a changed constant, for every statement that reads it.
"""

import ast
import copy
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from experiments.planning.code import Code, is_docstring, plain
from experiments.proving.tracer import BRANCHES, number_branches

Function = ast.FunctionDef | ast.AsyncFunctionDef
OWN_BODIES = ("body", "orelse", "finalbody", "handlers", "cases")


@dataclass(frozen=True)
class Place:
    """Lines of a module, first to last, both included; shown: the line that people look at."""

    module: str
    first: int
    last: int
    shown: int

    def __str__(self) -> str:
        return f"{self.module.replace('.', '/')}.py:{self.shown}"


@dataclass(frozen=True)
class Statement:
    """A statement without the statements inside it: its form and where it stands.

    branches: form and place of the parts that are not always evaluated. reads: names that it mentions. raises: a run
    that gets there ends without a result, so there is nothing to compare.
    """

    form: str
    place: Place
    branches: tuple[tuple[str, Place], ...]
    reads: frozenset[str]
    raises: bool


@dataclass(frozen=True)
class Block:
    """A function with all inside it, or the statements of a module or class outside of functions.

    whole: form of everything, the same for functions that differ in nothing that counts. head: form of signature and
    decorators. statements: in order; of a function those of its body, nested functions included.
    """

    module: str
    name: str  # qualified
    function: bool
    whole: str
    head: str
    statements: tuple[Statement, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        """Of all its statements."""
        return tuple(statement.place for statement in self.statements)


@dataclass(frozen=True)
class Change:
    """Something that must have run: its place, and the statements of the function that it stands in."""

    place: Place
    function: tuple[Place, ...]


def changed(new: Code, old: Code, entry_new: Iterable[str], entry_old: Iterable[str]) -> list[Change]:
    """What of `new` differs from `old` in a way that could move a digit, in order.

    Called a second time with the sides exchanged it gives what was removed.
    """
    after, before = blocks(new, entry_new), blocks(old, entry_old)
    same = {block.whole for block in before}
    by_name: dict[str, list[Block]] = {}
    for block in before:
        by_name.setdefault(block.name, []).append(block)
    found: dict[Place, Change] = {}
    constants: set[str] = set()
    for block in after:
        if block.whole in same:
            continue
        twins = by_name.get(block.name, [])
        twin = next((each for each in twins if each.module == block.module), twins[0] if len(twins) == 1 else None)
        fresh = new_statements(block, twin)
        if not block.function:
            constants |= {name for statement in fresh for name in bound(statement)}
            continue
        if twin is None or block.head != twin.head:
            fresh = [*block.statements[:1], *fresh]
        known = {form for statement in twin.statements for form, _ in statement.branches} if twin else set()
        for statement in fresh:
            if not statement.raises:
                parts = [place for form, place in statement.branches if form not in known]
                found |= {place: Change(place, block.places) for place in (statement.place, *parts)}
    for block, statement in readers(after, constants):
        if not statement.raises:
            found.setdefault(statement.place, Change(statement.place, block.places))
    return sorted(found.values(), key=lambda change: (change.place.module, change.place.shown))


def new_statements(block: Block, twin: Block | None) -> list[Statement]:
    """Statements of a block that its twin has not, by the shortest edit."""
    if twin is None:
        return list(block.statements)
    matcher = difflib.SequenceMatcher(
        None, [s.form for s in twin.statements], [s.form for s in block.statements], autojunk=False
    )
    changes = [operation for operation in matcher.get_opcodes() if operation[0] != "equal"]
    fresh = [statement for _, _, _, start, end in changes for statement in block.statements[start:end]]
    if block.function and not fresh and changes:
        # Only removed: what stands around the gap shows whether the place is reached at all.
        at = min(changes[0][3], len(block.statements) - 1)
        fresh = list(block.statements[at : at + 1])
    return fresh


def bound(statement: Statement) -> set[str]:
    """Names that a statement outside of functions gives a meaning to; those it reads are told apart by a marker."""
    return {name[1:] for name in statement.reads if name.startswith("=")}


def readers(blocks: list[Block], names: set[str]) -> list[tuple[Block, Statement]]:
    """Statements in functions that read a name, directly or through other constants made of it."""
    reached = set(names)
    outside = [statement for block in blocks if not block.function for statement in block.statements]
    grown = True
    while grown:
        made = {name for statement in outside if statement.reads & reached for name in bound(statement)}
        grown = not made <= reached
        reached |= made
    return [(block, s) for block in blocks if block.function for s in block.statements if s.reads & reached]


def blocks(code: Code, entry: Iterable[str]) -> list[Block]:
    """All blocks of the closure of the entry modules."""
    found = []
    for module in sorted(code.closure(entry)):
        tree = copy.deepcopy(code.tree(module))
        assert tree is not None, module
        for node, line in number_branches(tree):
            node.branch = line
        found += list(blocks_of(tree, module, ""))
    return found


def blocks_of(node: ast.Module | ast.ClassDef, module: str, prefix: str) -> Iterator[Block]:
    """The block of a module's or class's own statements, and of every function and class in it."""
    own: list[Statement] = []
    for i, child in enumerate(node.body):
        if i == 0 and is_docstring(child):
            continue
        if isinstance(child, Function):
            yield function_block(child, module, prefix + child.name)
        elif isinstance(child, ast.ClassDef):
            own.append(statement_of(class_head(child), module, child))
            yield from blocks_of(child, module, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.Import | ast.ImportFrom):
            own.append(statement_of(child, module, child, outside=True))
    forms = "\n".join(statement.form for statement in own)
    yield Block(module, prefix or "module", False, f"{prefix}|{forms}", "", tuple(own))


def class_head(node: ast.ClassDef) -> ast.AST:
    """A class without its body."""
    return ast.ClassDef(
        name=node.name, bases=node.bases, keywords=node.keywords, body=[], decorator_list=node.decorator_list
    )


def function_block(node: Function, module: str, name: str) -> Block:
    """The block of a function; as a whole it is compared with local names numbered in the order they appear."""
    normal, numbered = normalised(node, numbers=False), normalised(node, numbers=True)
    head = form(ast.FunctionDef(name=node.name, args=normal.args, body=[], decorator_list=normal.decorator_list))
    text = "\n".join(statement.form for statement in flat(numbered.body, module))
    return Block(module, name, True, f"{head}\n{text}", head, tuple(flat(normal.body, module)))


def flat(body: list[ast.stmt], module: str) -> Iterator[Statement]:
    """The statements of a body one after the other, those inside others after their head."""
    for i, node in enumerate(body):
        if i == 0 and is_docstring(node):
            continue
        inner = [getattr(node, field) for field in OWN_BODIES if getattr(node, field, None)]
        head = without_bodies(node) if inner else node
        yield statement_of(head, module, node)
        for children in inner:
            for child in children:
                if isinstance(child, ast.ExceptHandler | ast.match_case):
                    yield from handler(child, module)
                else:
                    yield from flat([child], module) if not is_docstring(child) else ()


def handler(node: ast.ExceptHandler | ast.match_case, module: str) -> Iterator[Statement]:
    """An except clause or case: its condition counts with the first statement of its body."""
    condition = (
        form(node.type) if isinstance(node, ast.ExceptHandler) and node.type else form(getattr(node, "pattern", None))
    )
    inner = list(flat(node.body, module))
    if inner:
        first = inner[0]
        yield replace(first, form=f"{condition}: {first.form}")
        yield from inner[1:]


def without_bodies(node: ast.stmt) -> ast.stmt:
    """A compound statement's head."""
    fields = {name: value for name, value in ast.iter_fields(node) if name not in OWN_BODIES}
    return ast.copy_location(type(node)(**fields, body=[]), node)  # type: ignore[call-arg]


def statement_of(head: ast.AST, module: str, node: ast.stmt, *, outside: bool = False) -> Statement:
    """A statement from its head; `outside` of functions the names it binds are marked."""
    reads = set()
    for part in ast.walk(head):
        if isinstance(part, ast.Name):
            reads.add(("=" if outside and isinstance(part.ctx, ast.Store) else "") + part.id)
        elif isinstance(part, ast.Attribute):
            reads.add(part.attr)
    raises = isinstance(node, ast.Raise)
    text = form(head)
    if raises and isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        text = f"raise {form(node.exc.func)}"
    branches = tuple(
        (form(part), Place(module, part.branch, part.branch, getattr(part, "shown", node.lineno)))
        for part in ast.walk(head)
        if hasattr(part, "branch")
    )
    return Statement(text, Place(module, *extent(head, node), node.lineno), branches, frozenset(reads), raises)


def extent(head: ast.AST, node: ast.stmt) -> tuple[int, int]:
    """First and last line of a statement's head."""
    if head is node:
        return node.lineno, node.end_lineno or node.lineno
    lines = [getattr(part, "end_lineno", None) for part in ast.walk(head) if part is not head]
    return node.lineno, max([line for line in lines if line and line < BRANCHES], default=node.lineno)


def form(node: Any) -> str:
    """A syntax tree as text, the same for equal trees."""
    return repr(plain(node))


class _Normaliser(ast.NodeTransformer):
    """Local names by number, no annotations of functions and local variables, no docstrings."""

    def __init__(self, local: set[str]):
        self.local, self.numbers = local, dict[str, int]()

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.local:
            return node
        number = self.numbers.setdefault(node.id, len(self.numbers))
        node.id = f"local {number}"
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.copy_location(ast.arg(arg=node.arg, annotation=None), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        if node.name in self.local:
            node.name = f"local {self.numbers.setdefault(node.name, len(self.numbers))}"
        return self.generic_visit(node)


def normalised(node: Function, *, numbers: bool) -> Function:
    """A copy of a function without what computes nothing; with `numbers` for names that are bound only inside it."""
    copied = copy.deepcopy(node)
    parameters = {arg.arg for arg in ast.walk(copied) if isinstance(arg, ast.arg)}
    shared = {n for part in ast.walk(copied) if isinstance(part, ast.Global | ast.Nonlocal) for n in part.names}
    bound = {part.id for part in ast.walk(copied) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    bound |= {part.name for part in ast.walk(copied) if isinstance(part, ast.ExceptHandler) and part.name}
    nested = {part.name for part in ast.walk(copied) if isinstance(part, Function | ast.ClassDef)}
    return _Normaliser(bound - parameters - shared - nested if numbers else set()).visit(copied)
