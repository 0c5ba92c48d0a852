"""Tables and what they say: `hkd tables`, `plan`, `run`, `show`, `check`, `claims`, `report`, `reference update`."""

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.filesize import decimal
from rich.text import Text

from experiments import places
from experiments.commands.app import app, reference_app
from experiments.commands.costs import confirm, print_clusters, print_costs
from experiments.commands.given import Whole
from experiments.commands.printed import is_wide, out, print_markdown, show_table, tell_stand_ins
from experiments.commands.several import of_each
from experiments.execution.pools import serve
from experiments.execution.progress import Progress, clock
from experiments.grids import new_table
from experiments.planning import overrides, schema, standins
from experiments.planning.asked import fields_of, planned
from experiments.planning.estimate import ASSUMPTIONS
from experiments.planning.own import OWN, is_path, known_name
from experiments.planning.plan import Plan
from experiments.records.committed import Records, path_of
from experiments.records.store import Store
from experiments.reproduce import Reproduction, compared, reproduce
from hkd.errors import UserError

if TYPE_CHECKING:
    from experiments.results.sequential import Design

Until = Literal["decided"]
Override = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@app.command
def tables(*table: str, profile: str | None = None, published: bool = False) -> int:
    """List the tables and figures that can be reproduced, with what they say as far as they were measured.

    Args:
        table: only these, by name or as files of your own; all of the suite when none is given.
        profile: scale, for which titles say what stands in; the default is in params.yaml.
        published: list instead what is held of each paper's own numbers, and what was looked for in vain.
    """
    if published:
        if table or profile is not None:
            raise UserError("--published lists all papers, at no scale: give it alone.")
        tell_held()
        return 0
    from experiments.planning.schema import load_params
    from experiments.results.overview import lines

    chosen, console = schema.load_profile(load_params().profile if profile is None else profile), out()
    asked, code = of_each(table or schema.table_ids(), lambda name: at_profile(name, chosen, profile is not None))
    levels = dict.fromkeys(level.name for _, level in asked)
    states = {each: lines(each, [entry.id for entry, level in asked if level.name == each]) for each in levels}
    shown = new_table()
    wide = is_wide(console)
    shown.add_column("table", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    shown.add_column("CPU min", justify="right", no_wrap=True)
    for column in ("verdicts", "title") if wide else ("verdicts, or what it shows",):
        shown.add_column(column)
    for entry, level in asked:
        title, line = standins.titled(entry.title, level), states[level.name][entry.id]
        texts = (line.verdicts(), title) if wide else (line.verdicts() or title,)
        shown.add_row(entry.id, line.state, line.minutes(), *map(Text, texts))
    console.print(shown)
    for sentence in dict.fromkeys(standins.in_short(level) for _, level in asked):
        tell_stand_ins(sentence)
    return code


@app.command
def plan(
    *table: str,
    profile: str | None = None,
    seeds: Whole | None = None,
    override: Override = None,
    until: Until | None = None,
    max_seeds: Whole | None = None,
    margin: float | None = None,
    cluster: Annotated[tuple[Whole, ...], Parameter(consume_multiple=True)] = (),
) -> int:
    """Say what tables would cost and how much of it is done, without running anything.

    Methods are asked which pairs of the named tables they will refuse, and why.

    Args:
        table: names of tables, or files of your own; the costs of all of the suite when none is given.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        override: fields of every student's recipe, such as epochs=1; after `--` come the tables.
        until: forecast what seeds and minutes it takes to decide the named tables.
        max_seeds: with --until: the most seeds that any row may take.
        margin: with --until: points inside which an effect is none that matters; the default is the profile's.
        cluster: GPUs of a cluster, or of several: simulate what is left on each, and say which tables are done when.
    """
    store, console = Store(places.runs()), out()
    if until or max_seeds is not None or margin is not None:
        from experiments.until import asked, check_asked  # pandas takes a second to import

        check_asked(until, seeds, margin, max_seeds)
        if not table:
            raise UserError("Name the tables to decide: `hkd plan TABLE --until decided`.")
        for name in table:
            tell_forecast(name, *asked(name, profile, margin, max_seeds), store)
        return 0
    plans, code = of_each(
        table or schema.table_ids(), lambda name: planned(name, profile, seeds, recipe=fields_of(override or ()))
    )
    costed = [(each, Records(each, store, places.references())) for each in plans]
    print_costs(costed, console)
    if cluster:
        print_clusters(costed, cluster, console)
    if len(plans) > 1:
        for sentence in dict.fromkeys(standins.in_short(schema.load_profile(each.profile)) for each in plans):
            tell_stand_ins(sentence)
    for each in plans:
        for reason in dict.fromkeys(cell.refused for cell in each.cells if cell.refused):
            console.print(Text(f"{each.table}: not in this profile: {reason}"))
    for each in plans if table else []:
        from experiments.planning.refusals import refused_cells  # late: the overview asks no method

        for reason, pairs in refused_cells(each).items():
            names = "; ".join(f"{row}, {label}" for row, label in pairs)
            console.print(Text(f"{each.table}: not applicable: {names}: {reason}"))
    for sentence in dict.fromkeys(run.missing for each in plans for run in each.runs.values() if run.missing):
        console.print(Text(f"missing: {sentence}"))
    for sentence in ASSUMPTIONS if any(each.runs for each in plans) else ():
        console.print(Text(sentence, style="dim"))
    return code


@app.command
def run(
    table: str,
    *,
    profile: str | None = None,
    seeds: Whole | None = None,
    workers: Annotated[Whole | None, Parameter(validator=Number(gte=0))] = None,
    scheduler_file: Annotated[Path | None, Parameter(env_var="HKD_SCHEDULER_FILE")] = None,
    override: Override = None,
    data: Path | None = None,
    yes: Annotated[bool, Parameter(env_var="HKD_YES")] = False,
    wait: bool = True,
    until: Until | None = None,
    max_seeds: Whole | None = None,
    margin: float | None = None,
    minutes: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    teacher_seeds: Whole | None = None,
    new_only: bool = False,
) -> int:
    """Reproduce a table: execute the runs that are missing, compare, write results/PROFILE/TABLE/, print it.

    Args:
        table: name of the table, or a file of your own (TABLE.yaml).
        profile: scale, or a file of your own; the default is the file's own, then in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        workers: processes; the default is one per core, or per GPU where the profile uses GPUs; 0 runs in this process.
        scheduler_file: of a running dask scheduler whose workers are used instead.
        override: fields of every student's recipe, `epochs=1 batch_size=64`: the table says so, and compares no values.
        data: folder of the data sets; the default is $HKD_DATA, then data/.
        yes: do not ask before many GPU-hours (batch jobs cannot answer).
        wait: wait for another process that is at this table, or fail.
        until: `decided` runs more seeds, look by look, for the rows of which something is open, with 5 % error in all.
        max_seeds: with --until: the most seeds that any row may take; looks are at 5, 8, 12, 18 and 27.
        margin: with --until: points inside which an effect is none that matters; the default is the profile's.
        minutes: with --until: begin no look that would not end in time; the first one is always taken.
        teacher_seeds: train the teachers so many times and say how much gains differ between them.
        new_only: do not train again what results/reference/ has a record of, unless a new run needs its weights: for
            more seeds, or looks, of a table that others have run.
    """
    if until or max_seeds is not None or margin is not None:
        from experiments.until import check_asked

        check_asked(until, seeds, margin, max_seeds)
    if teacher_seeds is not None and until:
        raise UserError("--teacher-seeds repeats a fixed design: give it without --until.")
    if override and until:
        raise UserError("--until decides the table as it is: give it without --override.")
    if minutes is not None and not until:
        raise UserError("--minutes bounds what deciding a table may take; give --until decided with it.")
    if data is not None:
        os.environ["HKD_DATA"] = str(places.folder(data, "--data"))
    store, console = Store(places.runs()), out()
    if until:
        from experiments.until import asked, buy, state

        whole, looks = asked(table, profile, margin, max_seeds)
        tell_parameters(profile, seeds)
        held = Records(whole, store, places.references())
        confirm(whole, held.own, yes, held if new_only else None)
        bought = buy(
            whole,
            looks,
            store,
            minutes=minutes,
            new_only=new_only,
            tell=lambda sentence: console.print(Text(sentence)),
            watch=lambda plan, note: Progress(plan, Records(plan, store, places.references()), console, note),
            workers=workers,
            scheduler_file=scheduler_file,
            wait=wait,
            on_wait=lambda sentence: console.print(Text(sentence)),
        )
        show_table(bought.done, console)
        console.print(Text(state(bought.done.comparison.judgement, bought.looks)))
        if bought.stopped:
            console.print(Text(f"No further look: {bought.stopped}."))
        return complain(bought.done) if bought.done.report is not None else 0
    chosen = planned(table, profile, seeds, recipe=fields_of(override or ()))
    tell_parameters(profile, seeds)
    if teacher_seeds is not None:
        from experiments.teacher_variance import plans

        under = plans(chosen, teacher_seeds)
    records = Records(chosen, store, places.references())  # committed ones say how long a run takes
    confirm(chosen, records.own, yes, records if new_only else None)
    began = time.monotonic()
    with Progress(chosen, records, console) as progress:
        done = reproduce(
            chosen,
            store,
            workers=workers,
            scheduler_file=scheduler_file,
            on_event=progress,
            wait=wait,
            on_wait=lambda sentence: console.print(Text(sentence)),
            new_only=new_only,
        )
    show_table(done, console)
    assert done.report is not None
    tried = len(done.report.executed)
    took = clock(time.monotonic() - began)
    console.print(Text(f"{tried} of {len(chosen.runs)} runs executed in {took}; records in {store.root}"))
    console.print(Text(f"The table and its figure are in {done.folder}"))
    failed = {}
    if teacher_seeds is not None:
        from experiments.teacher_variance import components, run_others

        watch = lambda plan: Progress(plan, store.load_all(plan.runs), console, "other teachers")  # noqa: E731
        failed = run_others(under, store, watch, workers=workers, scheduler_file=scheduler_file)
        spread = components(under, store).round(4)
        assert done.folder is not None
        spread.to_csv(done.folder / "teachers.csv", index=False, lineterminator="\n")
        print_markdown(f"Gains under {teacher_seeds} trainings of the teachers, in points:", console)
        print_markdown(spread.round(2).to_markdown(index=False), console)
        for reason in dict.fromkeys(failed.values()):
            print(f"missing: {reason}", file=sys.stderr)
    return max(complain(done), int(bool(failed)))


@app.command
def looks(*, max_seeds: Whole | None = None) -> int:
    """Print what `hkd run TABLE --until decided` plans: its looks, their boundaries, and its error in simulation.

    Args:
        max_seeds: the most seeds that any row may take.
    """
    from experiments.results.sequential import boundary, design, simulated_error

    found, console = design(max_seeds), out()
    shown_looks = new_table("seeds", "nominal level", "decided beyond |t|")
    for seeds, level in zip(found.looks, found.levels, strict=True):
        shown_looks.add_row(str(seeds), f"{level:.4f}", f"{boundary(level, seeds - 1):.2f}")
    console.print(shown_looks)
    console.print(
        Text("Simulated, 20,000 cells of normal gains each, plain t (more degrees of freedom: lower bounds):")
    )
    simulated = new_table("effect, SD", "decided", "mean seeds")
    for effect in (0.0, 0.5, 1.0, 1.5):
        share, used = simulated_error(found.looks, effect=effect)
        simulated.add_row(f"{effect:g}", f"{share:.3f}", f"{used:.1f}")
    console.print(simulated)
    return 0


@app.command
def worker(
    *options: Annotated[str, Parameter(allow_leading_hyphen=True)],
    scheduler_file: Annotated[Path, Parameter(env_var="HKD_SCHEDULER_FILE")],
    slurm: Whole | None = None,
    slurm_set: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
) -> int:
    """Start a worker of a running dask scheduler: a `dask worker` of one thread that runs can load data in.

    Args:
        options: more options of `dask worker`, such as `--name` or `--interface`.
        scheduler_file: that `dask scheduler` wrote, on a file system that both see.
        slurm: queue so many workers as one job array of Slurm instead of being one; they are queued again when they
            are preempted or run out of time.
        slurm_set: NAME=VALUE of the jobs as `sbatch` has them: partition=gpu time=1440 gpus_per_node=1.
    """
    if slurm is None:
        if slurm_set:
            raise UserError("--slurm-set is for workers that Slurm starts: say --slurm N too.")
        serve(scheduler_file, options)
        return 0
    from experiments.execution.slurm import parameters, submit

    job = submit(slurm, scheduler_file, parameters(slurm_set), options, places.runs() / ".slurm")
    out().print(Text(f"{slurm} workers are queued as Slurm's job {job}; `scancel {job}` ends them."))
    return 0


@app.command
def show(
    table: str,
    *,
    profile: str | None = None,
    seeds: Whole | None = None,
    override: Override = None,
    latex: bool = False,
) -> int:
    """Print a table from the records that exist, here or else committed; nothing is run or written.

    A table whose seeds were bought (`hkd run TABLE --until decided`) is shown as its looks left it, unless --seeds says
    how many a fixed design has.

    Args:
        table: name of the table, or a file of your own (TABLE.yaml).
        profile: scale, or a file of your own; the default is the file's own, then in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        override: fields of every student's recipe, as it was run with.
        latex: print it as LaTeX (booktabs), with notes and the facts that a reproducibility checklist asks for.
    """
    from experiments.until import shown

    store = Store(places.runs())
    chosen = planned(table, profile, seeds, recipe=fields_of(override or ()), shown_from=store)
    bought = shown(chosen, store) if seeds is None and not override else None
    done = bought or compared(chosen, store)
    if latex:
        from experiments.results.latex import latex as as_latex

        print(as_latex(done.plan, done.records, done.comparison), end="")
    else:
        as_committed = seeds is None and not override and not done.records.own
        show_table(done, out(), done.plan.finding if as_committed else "")
    return 0


@app.command
def check(*table: str, profile: str | None = None, seeds: Whole | None = None) -> int:
    """Check what was measured here against results/reference/: exit 0, 1 for a regression, 2 for a stale reference.

    Or check somebody else's results against ours, cell by cell: `hkd check FOLDER`, with tables behind it to check
    these alone; exit 1 where a cell differs by more than one point.

    Args:
        table: names of tables, or files of your own; all of the suite when none is given. Or a folder of results:
            committed records, folders of tables, or records of runs.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
    """
    if (
        table
        and table[0] not in schema.table_ids()
        and not is_path(table[0])
        and (os.sep in table[0] or Path(table[0]).exists())
    ):
        return check_others(places.file(table[0]), table[1:])
    from experiments.results import regression

    store, console, states = Store(places.runs()), out(), Counter[str]()
    names = table or schema.table_ids()
    plans, code = of_each(names, lambda name: planned(name, profile, seeds, shown_from=store))
    codes = [code]
    for each in plans:
        path = reference_of(each)
        if path.is_file() or (table and not is_own(each)):
            measured = regression.measured_values(each, store.load_all(each.runs))
            report = regression.check(measured, regression.load_reference(path))
            print_markdown(report.markdown(), console)
            codes.append(report.exit_code)
            states[report.status] += 1
        else:
            states["no reference"] += 1
            console.print(Text(f"{each.table} ({each.profile}): untested: there is no reference {path}"))
    if len(table) != 1:
        counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
        console.print(Text(f"{states.total()} tables: {counts}"))
    return 1 if 1 in codes else max(codes, default=0)


def check_others(place: Path, wanted: tuple[str, ...]) -> int:
    """Compare somebody else's results with ours, and print them table by table."""
    from experiments.results.others import against, reading

    found = against(place, Store(places.runs()), places.references(), wanted)
    cells, differ = sum(len(each.cells) for each in found), sum(each.differs for each in found)
    if not cells:
        raise UserError(f"Nothing in {place} could be compared: no cell has values both there and here.")
    out().print(Text(f"{differ} of {cells} cells in {len(found)} tables differ from ours by more than one point."))
    for each in found:
        print_markdown(each.markdown(), out())
    out().print(Text(reading()))
    return int(differ > 0)


@reference_app.command
def update(
    *table: str,
    profile: str | None = None,
    seeds: Whole | None = None,
    also: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
) -> int:
    """Write the records of finished tables that are on this machine to results/reference/, to be committed.

    Of a table whose seeds were bought all of them and its looks are written, unless --seeds says how many.

    Args:
        table: names of tables, or files of your own, whose references are in results/reference/ of the working folder.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        also: tables of which committed records of the same runs are taken where this machine has none.
    """
    from experiments.results import regression
    from experiments.results.overview import write_summary

    if not table:
        raise UserError("Name the tables whose records are to be committed: `hkd reference update TABLE`.")
    store, console = Store(places.runs()), out()
    from experiments.until import as_committed, commit

    for other in also:
        known_name("tables", other, schema.table_ids())
    for name in table:
        each = planned(name, profile, seeds)
        if seeds is None and not is_own(each):
            each = commit(each, store)
        path = reference_of(each)
        records = Records(each, store, places.references() if also else None, also)
        regression.save_reference(each, records, path)
        console.print(
            Text(f"{each.table} ({each.profile}): {len(records)} runs, {decimal(path.stat().st_size)}: {path}")
        )
        if not is_own(each):
            console.print(Text(f"What all tables of the profile say: {write_summary(each.profile, as_committed)}"))
    return 0


@app.command
def claims(*, profile: str | None = None) -> int:
    """Check the papers' sentences on what was measured; write results/claims/ and print them. Nothing is run.

    Args:
        profile: scale; every one at which something was measured when it is not given.
    """
    from experiments.results.claims.check import check_all, everywhere
    from experiments.results.claims.report import markdown, summary, write

    found = everywhere() if profile is None else check_all([profile])
    write(found, places.results() / "claims")
    print_markdown(markdown(found), out())
    out().print(Text(f"{summary(found)}; written to {places.results() / 'claims'}"))
    return 0


@app.command
def report(
    *table: str,
    profile: str | None = None,
    output: Path | None = None,
    against: Path | None = None,
    live: Annotated[Whole | None, Parameter(validator=Number(gte=1, lte=86400))] = None,
) -> int:
    """Write every table, cell, run and claim as static pages, to be opened by a double click. Nothing is run.

    Committed records, and those of this machine, which are marked and take precedence.

    Args:
        table: only these, by name or as files of your own; all of the suite when none is given.
        profile: the only scale to be shown; otherwise that of params.yaml, and all at which something was measured.
        output: folder of the pages; the default is results/report.
        against: folder of committed records (results/reference of another checkout) to be compared with.
        live: look again every so many seconds, and rewrite the pages of tables whose runs go on, until Ctrl-C.
    """
    from experiments.report.build import build, keep_live  # imports jinja2 and matplotlib

    folder = places.results() / "report" if output is None else places.folder(output, "--output")
    other = None if against is None else places.folder(against, "--against")
    if other is not None and not any(other.rglob("*.json.xz")):
        raise UserError(f"--against is {against}, which holds no committed records (PROFILE/TABLE.json.xz).")
    store, console = Store(places.runs()), out()
    names, code = of_each(table, named)
    done = build(folder, store, profile=profile, tables=names or None, against=other, live=live)
    console.print(Text(f"{len(done.files)} files, {decimal(done.size)}: open {done.start}"))
    for line in (*done.findings.astray, *(entry.problem for entry in done.findings.entries if entry.problem)):
        console.print(Text(line))
    if live is not None:
        console.print(Text(f"Looking every {live} s; Ctrl-C ends it."))
        keep_live(folder, store, done, live, tell=lambda pages: console.print(Text(f"again: {', '.join(pages)}")))
    return code


@app.command
def docs() -> int:
    """Write what follows from findings and committed records: docs/results-PAPER.md and the README's lines."""
    from experiments.results.pages import write

    changed = write()
    out().print(Text("\n".join(map(str, changed)) if changed else "All pages are as they should be."))
    return 0


def tell_held() -> None:
    """Print what is held of each paper's own numbers."""
    from experiments.results import held

    console, papers = out(), {paper: held.held(paper) for paper in held.papers()}
    states = Counter(each.state for found in papers.values() for each in found)
    counts = ", ".join(f"{states[state]} {state}" for state in (held.WHOLE, held.PART, held.REPLICATED, held.VAIN))
    console.print(Text(f"Of {states.total()} tables and groups of values: {counts}. Sources: experiments/published/."))
    console.print(Text("Doubted are values whose source is of medium or low confidence."))
    for paper, found in papers.items():
        shown_tables = new_table("published table", "state", "values", "doubted", "what")
        for each in found:
            numbers = [str(number) if each.values else "" for number in (each.values, each.doubted)]
            shown_tables.add_row(each.table, each.state, *numbers, Text(each.what))
        console.print()
        console.print(Text(f"{paper}: {held.title(paper)}", style="bold"))
        console.print(shown_tables)


def at_profile(table: str, chosen: schema.Profile, given: bool) -> tuple[schema.Table, schema.Profile]:
    """A table and the profile it is shown at: that of the command line, its own, or the usual one."""
    own = None if given else schema.profile_for(table)
    return schema.load_table(table), chosen if own is None else schema.load_profile(own)


def named(table: str) -> str:
    """The name of a table that there is; a file of the user's own is read."""
    return schema.load_table(table).id


def is_own(plan: Plan) -> bool:
    """Whether a table is the user's own."""
    return ("tables", plan.table) in OWN


def reference_of(plan: Plan) -> Path:
    """Where the records of a table are committed; of a user's own below the results of the working folder."""
    return path_of(places.results() / "reference" if is_own(plan) else places.references(), plan.profile, plan.table)


def tell_parameters(profile: str | None, seeds: int | None) -> None:
    """Say what params.yaml sets, as far as the command line leaves it to that, and what of it is not as committed."""
    given = [name for name, value in (("profile", profile), ("seeds", seeds)) if value is not None]
    if said := overrides.sentence(given):
        out().print(Text(said, style="dim"), soft_wrap=True)


def tell_forecast(name: str, whole: Plan, looks: "Design", store: Store) -> None:
    """Print what deciding a table should take."""
    from experiments.until import forecast

    found, console = forecast(whole, looks, store), out()
    shown_rows = new_table("row", "seeds now", "seeds expected")
    now = dict.fromkeys(found.seeds, looks.seeds if looks.taken else 0)
    for row, count in found.seeds.items():
        shown_rows.add_row(row, str(min(now[row], count)), str(count))
    console.print(
        Text(f"{name} ({whole.profile}): looks at {', '.join(map(str, looks.looks))} seeds, {looks.taken} taken")
    )
    console.print(shown_rows)
    console.print(
        Text(
            f"If means and spreads stay what they are: {found.settled} of {found.cells} cells settled, {found.never} "
            f"still open after {looks.looks[-1]} seeds, {found.unknown} without two seeds to go by"
            + (f"; about {clock(found.seconds)} here" if found.seconds is not None else "")
        )
    )


def complain(done: Reproduction) -> int:
    """Name the runs that another attempt should bring, those too for which committed records stand; the exit code."""
    assert done.report is not None
    stood_for = {key for key, record in done.records.items() if record.committed}
    failed = {key: reason for key, reason in done.report.failed.items() if key in stood_for}
    told = (f"{done.plan.runs[key].label or key}: {reason}" for key, reason in failed.items())
    missing = [*done.comparison.missing, *told]
    for sentence in missing:
        print(f"missing: {sentence}", file=sys.stderr)
    return int(bool(missing))
