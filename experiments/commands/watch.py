"""`hkd watch`: the runs that any process is carrying out now."""

import time
from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.live import Live

from experiments import places
from experiments.commands.app import app
from experiments.commands.given import Whole
from experiments.commands.printed import out
from experiments.records.live import look
from experiments.records.store import Store


@app.command
def watch(
    *,
    once: bool = False,
    every: Annotated[float, Parameter(validator=Number(gte=0.2))] = 2.0,
    most: Annotated[Whole, Parameter(validator=Number(gte=1))] = 12,
) -> int:
    """Show what is being run, by whatever process: tables with the time left, runs with their curves, what ended last.

    Reads the store ($HKD_RUNS) and writes nothing. The time left of a table is by the rate at which its runs finished
    so far. Ctrl-C ends it. Where the output is no terminal one picture is printed, as with --once.

    Args:
        once: print one picture and end.
        every: seconds between two looks.
        most: runs that are shown; the others are counted.
    """
    from experiments.tracking.watch import frame

    store, console = Store(places.runs()), out()
    if once or not console.is_terminal:
        console.print(frame(look(store), store, console, most))
        return 0
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(frame(look(store), store, console, most), refresh=True)
            time.sleep(every)
    return 0
