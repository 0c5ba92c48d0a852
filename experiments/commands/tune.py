"""`hkd tune`: the loss weights of a table's methods, by one rule with equal budgets of trials."""

from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.text import Text

from experiments import places
from experiments.commands.app import app
from experiments.commands.costs import confirm
from experiments.commands.given import Whole
from experiments.commands.printed import out
from experiments.execution.progress import Progress
from experiments.grids import new_table
from experiments.planning import schema, tuning
from experiments.records.store import Store


@app.command
def tune(
    table: str,
    *,
    row: Annotated[list[str], Parameter(negative=())],
    trials: Whole = 3,
    seeds: Annotated[Whole, Parameter(validator=Number(gte=1, lte=100))] = 1,
    profile: str | None = None,
    workers: Annotated[Whole | None, Parameter(validator=Number(gte=0))] = None,
    yes: bool = False,
) -> int:
    """Tune the loss weights of a table's methods on validation rows, and freeze them in experiments/tuning/.

    Every method has the same number of trials: its default weights times factors between a tenth and ten, the
    default first. What the table itself reports is never looked at. Commit the file before the table is run.

    Args:
        table: one whose weights are listed in experiments/tuning/.
        row: pair that the trials are made on; again for more.
        trials: of each method on each pair, 1 to 64; 1 tries the defaults alone.
        seeds: of each trial, from 1000 on.
        profile: scale; the default is in params.yaml.
        workers: processes; the default is one per core, or per GPU where the profile uses GPUs; 0 runs in this process.
        yes: do not ask before many GPU-hours.
    """
    from experiments.tune import joined, listed, plans, search, write

    found = schema.load_table(table)
    level = schema.load_profile(schema.load_params().profile if profile is None else profile)
    whole = joined(plans(found, level, listed(found), row, trials, seeds))
    store, console = Store(places.runs()), out()
    held = store.load_all(whole.runs)
    confirm(whole, held, yes)
    with Progress(whole, held, console) as progress:
        tuned = search(found, level, row, trials, seeds, store, workers=workers, on_event=progress)
    write(found, level, tuned)
    tell(tuned)
    console.print(Text(f"Frozen in experiments/tuning/{table}.yaml; commit it before the table is run."))
    return 0


def tell(tuned: tuning.Tuned) -> None:
    """A line per method: the factor taken, and mean validation top-1 of each that was tried."""
    order = tuning.factors(tuned.trials)
    shown = new_table("method", "factor", *(f"x {factor:.3g}" for factor in order))
    for name, tried in tuned.log.items():
        values = list(zip(*tried.values(), strict=True))
        means = [f"{sum(each) / len(each):.1f}" if None not in each else "diverged" for each in values]
        shown.add_row(name, f"{tuned.factors[name]:.3g}", *means)
    out().print(shown)
