"""How commands print: as wide as the terminal, plain elsewhere."""

import sys

from rich.console import Console
from rich.text import Text

from experiments.reproduce import Reproduction

WIDE = 150  # columns from which the full tables are printed


def out() -> Console:
    """Where commands print: as wide as the terminal, or as needed elsewhere."""
    return Console() if sys.stdout.isatty() else Console(width=200, soft_wrap=False)


def is_wide(console: Console) -> bool:
    """Whether the full tables fit; otherwise the narrow ones are printed, which 80 columns can hold."""
    return console.width >= WIDE


def tell_stand_ins(sentence: str) -> None:
    """Say what stood in for the papers' data and models, where something did."""
    if sentence:
        out().print(Text(sentence))


def show_table(done: Reproduction, console: Console, finding: str = "") -> None:
    """Print a compared table: whole, or in its narrow form on a terminal that the whole one does not fit.

    Args:
        done: the table.
        console: where to.
        finding: what came out in a sentence, to stand under the title.
    """
    if console.is_terminal and not is_wide(console):
        from experiments.commands.narrow import narrow  # imports pandas, which takes a second

        for part in narrow(done, finding):
            console.print(part)
    else:
        print_markdown(done.markdown(finding), console)


def print_markdown(text: str, console: Console) -> None:
    """Laid out on a terminal, as it is elsewhere."""
    if console.is_terminal:
        from rich.markdown import Markdown  # late: few commands print one, and it takes a tenth of a second

        console.print(Markdown(text))
    else:
        print(text, flush=True)
