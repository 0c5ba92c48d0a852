"""What is one's own: `hkd new`; and what there is to build on: `hkd models`, `hkd methods`."""

import sys
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import Literal

from rich.text import Text

from experiments.commands.app import app
from experiments.commands.printed import out
from experiments.grids import new_table
from experiments.planning import schema
from experiments.planning.own import NAME
from hkd.errors import UserError

STARTERS = Path(__file__).resolve().parents[1] / "starters"
ENDINGS = {"table": "yaml", "method": "py", "profile": "yaml"}
THEN = {
    "table": "hkd run {}",
    "method": 'Name it in a table as "{stem}:Mine", or check it: pytest --pyargs hkd.contract --method {stem}:Mine',
    "profile": "hkd run TABLE --profile {}",
}
SHOWN = 5  # models of which methods are named, not counted


@app.command
def new(kind: Literal["table", "method", "profile"], name: str) -> int:
    """Write a small, commented table, method or profile of your own into the working folder, ready to run.

    Args:
        kind: what is to be written: NAME.yaml of a table or profile, NAME.py of a method.
        name: of the file without its ending, and of what is in it.
    """
    path = Path(f"{name}.{ENDINGS[kind]}")
    if not NAME.fullmatch(name) or (kind == "method" and not name.isidentifier()):
        rule = "small letters, digits and _" if kind == "method" else "small letters, digits, _ and -"
        raise UserError(f"'{name}' cannot be the name of a {kind}: {rule}, such as my_{kind}.")
    taken = {"table": schema.table_ids(), "profile": schema.names("profiles"), "method": [*sys.stdlib_module_names]}
    if name in taken[kind]:
        whose = "a module of Python" if kind == "method" else f"a {kind} of the suite"
        raise UserError(f"'{name}' is {whose}; take another name, such as my_{name}.")
    if kind == "method" and (iskeyword(name) or (find_spec(name) is not None and not path.exists())):
        whose = "a word of Python" if iskeyword(name) else "a package here, which a file of that name would hide"
        raise UserError(f"'{name}' is {whose}; take another name, such as my_{name}.")
    text = (STARTERS / f"{kind}.{ENDINGS[kind]}").read_text(encoding="utf-8").replace("NAME", name)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} is there already and is left as it is; give another name.") from None
    out().print(Text(f"Written: {path}. Next: {THEN[kind].format(path, stem=name)}"))
    return 0


@app.command
def methods() -> int:
    """List the methods: what they read, what they cost beside the student, and which students they serve."""
    from experiments.served import described, elsewhere

    console, table = out(), new_table()
    table.add_column("method", overflow="fold")
    table.add_column("reads")
    for column in ("teachers", "adds", "families"):
        table.add_column(column, justify="right")
    for line in described():
        table.add_row(line.name, line.reads, str(line.passes), line.added(), f"{line.families[0]}/{line.families[1]}")
    console.print(table)
    console.print(
        Text(
            "reads: of its models, by its default options. teachers: forward passes of teachers a step; * where their "
            "outputs can be kept for fixed views. adds: million parameters trained beside the student, for a ResNet-50 "
            "taught by Swin-S or the first other pair that it serves. families: of students that it serves."
        )
    )
    return told(elsewhere("hkd.methods"))


@app.command
def models(pattern: str = "") -> int:
    """List the model cards, and which methods serve them as students.

    Args:
        pattern: part of a name or family; of a few models the methods are named.
    """
    from experiments.served import elsewhere, methods_of
    from hkd.models.cards.zoo import ZOO
    from hkd.registry import nearest

    found = [card for card in ZOO.values() if pattern in card.name or pattern == card.family]
    if not found:
        raise UserError(f"No model is called something with '{pattern}'.{nearest(pattern, ZOO)} `hkd models` has all.")
    console, table = out(), new_table()
    table.add_column("model", no_wrap=True)
    table.add_column("family", no_wrap=True)
    for column in ("px", "M", "GMACs", "methods"):
        table.add_column(column, justify="right", no_wrap=True)
    served = {card.name: methods_of(card) for card in found}
    for card in found:
        can, cannot = served[card.name]
        size = "" if card.params_m is None else f"{card.params_m:.1f}" if card.params_m >= 1 else f"{card.params_m:.2f}"
        macs = "" if card.gmacs is None else f"{card.gmacs:.3g}"
        table.add_row(
            card.name, card.family, str(card.image_size), size, macs, f"{len(can)} of {len(can) + len(cannot)}"
        )
    console.print(table)
    for card in found if len(found) <= SHOWN else []:
        can, cannot = served[card.name]
        but = f"; not by {', '.join(cannot)}" if cannot else ""
        console.print(Text(f"{card.name} is taught by {', '.join(can)}{but}."))
    console.print(
        Text(
            "M: million parameters, and GMACs of an image, at 1,000 classes. methods: that serve it as a student, with "
            "some teacher; `hkd plan TABLE` says it of a pair."
        )
    )
    return told(elsewhere("hkd.models"))


def told(found: tuple[list[str], list[str]]) -> int:
    """Print what packages bring, and on stderr what cannot be imported; the exit code."""
    for line in found[0]:
        out().print(Text(line))
    for sentence in found[1]:
        print(sentence, file=sys.stderr)
    return 0
