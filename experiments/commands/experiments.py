"""`hkd experiments`: what `dvc exp run` tried, on few columns."""

from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.printed import out
from hkd.errors import UserError


@app.command(name="experiments")
def show_experiments(*table: str) -> int:
    """Show what `dvc exp run` tried, a table at a time: gains and verdicts first, then the parameters that differ.

    `dvc exp show` has the same and every other number, in as many columns.

    Args:
        table: names of tables; all that any experiment has when none is given.
    """
    from experiments.tracking.exp_show import asked, tables

    console = out()
    shown = list(tables(asked(places.repository()), table))
    if not shown:
        what = f"of {', '.join(table)} " if table else ""
        raise UserError(f"No experiment has metrics {what}yet: `dvc exp run TABLE` makes one.")
    for each in shown:
        console.print(each)
        console.print()
    console.print(Text("Gains are pooled over pairs, in points. `dvc exp show` has every other number."))
    return 0
