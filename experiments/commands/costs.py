"""What runs cost, as `hkd plan` prints it and `hkd run` asks about."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.filesize import decimal
from rich.prompt import Confirm
from rich.table import Table
from rich.text import Text

from experiments.commands.printed import is_wide
from experiments.execution.makespan import simulate
from experiments.execution.progress import clock
from experiments.execution.schedule import unfinished
from experiments.grids import new_table
from experiments.planning import schema
from experiments.planning.estimate import Cost, Durations, cost, total
from experiments.planning.own import OWN, called
from experiments.planning.plan import Plan, PlannedRun
from experiments.records.committed import Records
from experiments.records.store import FINAL, Record
from experiments.reproduce import expected_here
from hkd.errors import UserError

EXPENSIVE = 10.0  # GPU-hours from which `hkd run` asks first
WIDE = ("runs", "done", "epochs", "FLOPs", "GPU-hours", "disk", "left: runs", "GPU-hours", "time", "disk")


@dataclass(frozen=True)
class Costs:
    """What a set of runs costs, what is left of it, and the seconds of what is left where something similar was run."""

    whole: Cost
    left: Cost
    seconds: float | None

    @classmethod
    def of(cls, runs: Iterable[PlannedRun], done: set[str], durations: Durations) -> "Costs":
        """done: keys of finished runs."""
        everything = list(runs)
        todo = [run for run in everything if run.key not in done]
        expected = [durations.expect(run) for run in todo]
        known = [seconds for seconds in expected if seconds is not None]
        seconds = sum(known) if len(known) == len(expected) else None
        return cls(total(everything), total(todo), seconds)

    def time(self) -> str:
        """The time of one process for what is left, or of a GPU where nothing similar was ever run here."""
        if not self.left.runs:
            return ""
        return clock(self.seconds) if self.seconds is not None else f"{hours(self.left)} GPU-h"


def cost_table(first: str, *, wide: bool) -> Table:
    """A table of costs; all columns but the first three are of what is left to do, if it is not wide."""
    table = new_table()
    table.add_column(first, overflow="fold")
    columns = ("runs", "left", "epochs", "time", "disk") if not wide else WIDE
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def add_cost(table: Table, name: str, costs: Costs, *, wide: bool) -> None:
    """One line of a cost table."""
    whole, left = costs.whole, costs.left
    if not wide:
        line = [str(whole.runs), str(left.runs), str(left.epochs), costs.time(), decimal(round(left.disk))]
    else:
        all_of_it = [str(whole.epochs), f"{whole.flops:.2e}", hours(whole), decimal(round(whole.disk))]
        rest = [str(left.runs), hours(left), costs.time(), decimal(round(left.disk))]
        line = [str(whole.runs), str(whole.runs - left.runs), *all_of_it, *rest]
    table.add_row(Text(name), *line)


def print_costs(plans: Sequence[tuple[Plan, Records]], console: Console) -> None:
    """What plans cost, the total first: one plan by kinds of runs, several by tables."""
    wide = is_wide(console)
    tables, done = cost_table("table", wide=wide), set[str]()
    everything: dict[str, PlannedRun] = {}
    known: dict[str, Record] = {}
    for plan, records in plans:
        finished = {key for key, record in records.own.items() if record.status in FINAL}
        durations = Durations(records, plan.runs)
        costs = Costs.of(plan.runs.values(), finished, durations)
        if len(plans) == 1:
            wall = expected_here(plan, records)
            by = " here" if records.own else " (by committed records)"
            console.print(Text(headline(f"{plan.table} ({plan.profile})", costs, wall, by)))
            console.print(Text(plan.heading))
            if plan.runs:
                console.print(by_kind(plan, finished, durations, wide=wide))
        add_cost(tables, plan.table, costs, wide=wide)
        everything.update(plan.runs)
        known.update(records)
        done |= finished
    if len(plans) > 1:
        costs = Costs.of(everything.values(), done, Durations(known, everything))
        console.print(Text(headline(f"{len(plans)} tables ({plans[0][0].profile}), shared runs once", costs, None)))
        console.print(tables)


def print_clusters(plans: Sequence[tuple[Plan, Records]], sizes: Sequence[int], console: Console) -> None:
    """How long what is left of plans would take on clusters of these sizes, and which tables would be done when.

    Tables that cost least go first, each after what it shares with those before it; GPUs that they leave idle take runs
    of the next ones.
    """
    profile = schema.load_profile(plans[0][0].profile)
    left: dict[str, dict[str, PlannedRun]] = {}
    each: dict[str, int] = {}
    for plan, records in plans:
        done = {key for key, record in records.own.items() if record.status in FINAL}
        left[plan.table] = {key: run for key, run in plan.runs.items() if key not in done}
        machine = profile.machine_of(plan.table)
        each |= dict.fromkeys(left[plan.table], machine.devices * machine.num_nodes)
    runs = {key: run for todo in left.values() for key, run in todo.items()}
    if not runs:
        console.print(Text("Nothing is left to run."))
        return
    length = {key: cost(run).gpu_hours / each[key] for key, run in runs.items()}
    order = cheapest_first({table: list(todo) for table, todo in left.items()}, length)
    keys = list(dict.fromkeys(key for table in order for key in left[table]))
    found = {size: simulate(runs, length, gpus=size, each=each, order=keys) for size in sizes}
    whole = new_table()
    for name in ("GPUs", "hours", "idle", "longest chain, hours"):
        whole.add_column(name, justify="right")
    for size, made in found.items():
        chain = sum(length[key] for key in made.path)
        whole.add_row(f"{size:,}", shown_hours(made.total), f"{100 * made.idle:.0f} %", shown_hours(chain))
    shares = " or ".join(str(count) for count in sorted(set(each.values())))
    console.print(Text(f"{len(runs):,} runs on {shares} GPU{'' if shares == '1' else 's'} each, simulated:"))
    console.print(whole)
    made = found[sizes[0]]
    names = " → ".join(runs[key].label.partition(" seed ")[0] for key in made.path)
    console.print(Text(f"The longest chain, which no number of GPUs makes shorter: {names}."))
    ended = new_table("table, in the order of what is cheapest")
    ended.add_column("GPU-hours it adds", justify="right")
    for size in sizes:
        ended.add_column(f"done after, {size:,} GPUs", justify="right")
    seen = set[str]()
    for table in order:
        added = sum(length[key] * each[key] for key in left[table] if key not in seen)
        seen |= left[table].keys()
        ends = [max((made.ends[key] for key in left[table]), default=0.0) for made in found.values()]
        ended.add_row(Text(table), shown_hours(added), *(f"{shown_hours(end)} h" for end in ends))
    console.print(ended)


def cheapest_first(tables: Mapping[str, Sequence[str]], length: Mapping[str, float]) -> list[str]:
    """Tables by what each adds to those before it, the least first."""
    order, seen, rest = list[str](), set[str](), dict(tables)
    while rest:
        table = min(rest, key=lambda name: sum(length[key] for key in rest[name] if key not in seen))
        order.append(table)
        seen |= {*rest.pop(table)}
    return order


def by_kind(plan: Plan, done: set[str], durations: Durations, *, wide: bool) -> Table:
    """The runs of one plan, those that differ by seed alone on one line."""
    kinds: dict[str, list[PlannedRun]] = {}
    for run in plan.runs.values():
        kinds.setdefault(run.label.partition(" seed ")[0], []).append(run)
    table = cost_table("run", wide=wide)
    for label, runs in kinds.items():
        add_cost(table, label, Costs.of(runs, done, durations), wide=wide)
    return table


def headline(name: str, costs: Costs, wall: float | None, by: str = "") -> str:
    """`scalekd_table3: 162 runs, 160 left: about 11 min, 341 MB`.

    Args:
        name: of what is meant.
        costs: of all of it.
        wall: seconds with the default workers, None if nothing similar was run; by: whose records say so.
    """
    said = f"{name}: {costs.whole.runs:,} runs, "
    if not costs.whole.runs:
        return f"{name}: nothing to run"
    if not costs.left.runs:
        return said + "all done"
    time = f"about {clock(wall)}{by}" if wall is not None else f"{hours(costs.left)} GPU-hours"
    return said + f"{costs.left.runs:,} left: {time}, {decimal(round(costs.left.disk))}"


def hours(cost: Cost) -> str:
    """GPU-hours of a cost."""
    return shown_hours(cost.gpu_hours)


def shown_hours(value: float) -> str:
    """Hours with three digits that matter, never as a power of ten."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or value == 0 else "<0.001"


def confirm(plan: Plan, records: Mapping[str, Record], yes: bool, known: Mapping[str, Record] | None = None) -> None:
    """Ask before many GPU-hours; without somebody to ask, refuse. records, known: as for `unfinished`."""
    left = sum(cost(run).gpu_hours for run in unfinished(plan, records, known or {}).values())
    if yes or left < EXPENSIVE:
        return
    asked = f"hkd plan {called('tables', plan.table)}"
    if (own := OWN.get(("profiles", plan.profile))) is None or not own.part:  # else it stands in the table's file
        asked += f" --profile {called('profiles', plan.profile)}"
    question = f"'{plan.table}' at profile '{plan.profile}' takes about {left:,.0f} GPU-hours (`{asked}` tells more)"
    if not sys.stdin.isatty():
        raise UserError(f"{question}; say --yes to start it.")
    try:
        agreed = Confirm.ask(Text(f"{question}. Start?"), default=False)
    except EOFError:  # nobody answers
        agreed = False
    if not agreed:
        raise UserError("Not started.")
