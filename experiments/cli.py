"""The `hkd` command: the same calls that the DVC stages make, for people.

Exit codes: 0 done; 1 a run is missing that another attempt may bring, or a regression; 2 a mistake in what was asked,
or a stale reference; 130 interrupted.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from experiments import places, schema, standins
from experiments.estimate import ASSUMPTIONS, Cost, Durations, cost, total
from experiments.execute import FINAL, default_workers
from experiments.plan import Plan, PlannedRun
from experiments.progress import Progress, clock, time_left
from experiments.reproduce import Reproduction, compared, load_records, planned, reproduce, runtime_for
from experiments.store import Record, Store
from hkd.errors import UserError
from hkd.registry import lookup, nearest

EXPENSIVE = 10.0  # GPU-hours from which `hkd run` asks first

app = App(
    name="hkd",
    help="Reproduce tables of heterogeneous knowledge distillation papers: `hkd run scalekd_table3`.",
    help_format="markdown",
    version_flags=[],
    suppress_keyboard_interrupt=False,
)
runs_app = App(name="runs", help="Look at the records of runs.")
weights_app = App(name="weights", help="Published weights of teachers.")
numerics_app = App(name="numerics", help="Does an edit of the library move a digit? (hkd/numerics.lock)")
app.command(runs_app)
app.command(numerics_app)
app.command(weights_app)


@app.command
def tables(*, profile: str | None = None) -> int:
    """List the tables and figures that can be reproduced.

    Args:
        profile: scale, for which titles say what stands in; the default is in params.yaml.
    """
    shown = new_table("table", "paper", "kind", "title")
    chosen = schema.load_profile(profile or schema.load_params().profile)
    for name in schema.table_ids():
        table = schema.load_table(name)
        shown.add_row(name, table.paper, table.kind, Text(standins.named(table.title, chosen)))
    out().print(shown)
    tell_stand_ins(standins.in_short(chosen))
    return 0


@app.command
def plan(*table: str, profile: str | None = None, seeds: int | None = None) -> int:
    """Say what tables would cost and how much of it is done, without running anything.

    Methods are asked which pairs of the named tables they will refuse, and why.

    Args:
        table: names of tables; the costs of all of them when none is given.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
    """
    store = Store(places.runs())
    plans = [planned(name, profile, seeds) for name in table or schema.table_ids()]
    console, everything, done = out(), {}, set()
    shown = cost_table("table")
    for each in plans:
        records = load_records(each, store)
        finished = {key for key, record in records.items() if record.status in FINAL}
        everything.update(each.runs)
        done |= finished
        add_cost(shown, each.table, each.runs.values(), finished)
        if len(plans) == 1:
            console.print(Text(each.heading))
            console.print(by_kind(each, finished))
    if len(plans) > 1:
        add_cost(shown, "all (shared runs counted once)", everything.values(), done)
    console.print(shown)
    if len(plans) > 1:
        tell_stand_ins(standins.in_short(schema.load_profile(plans[0].profile)))
    for each in plans:
        if (seconds := expected_here(each, store)) is not None:
            console.print(Text(f"{each.table}: about {clock(seconds)} here, going by the runs that are done"))
        for reason in dict.fromkeys(cell.refused for cell in each.cells if cell.refused):
            console.print(Text(f"{each.table}: not at profile '{each.profile}': {reason}"))
    for each in plans if table else []:
        from experiments.refusals import refused_cells  # imports torch, which takes seconds

        for reason, pairs in refused_cells(each).items():
            names = "; ".join(f"{row}, {label}" for row, label in pairs)
            console.print(Text(f"{each.table}: refused: {names}: {reason}"))
    for sentence in dict.fromkeys(run.missing for run in everything.values() if run.missing):
        console.print(Text(f"missing: {sentence}"))
    for sentence in ASSUMPTIONS:
        console.print(Text(sentence, style="dim"))
    return 0


@app.command
def run(
    table: str,
    *,
    profile: str | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    scheduler_file: Annotated[Path | None, Parameter(env_var="HKD_SCHEDULER_FILE")] = None,
    data: Path | None = None,
    yes: Annotated[bool, Parameter(env_var="HKD_YES")] = False,
    wait: bool = True,
) -> int:
    """Reproduce a table: execute the runs that are missing, compare, write results/TABLE/, print it.

    Args:
        table: name of the table.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        workers: processes; the default is one per core, or per GPU where the profile uses GPUs; 0 runs in this process.
        scheduler_file: of a running dask scheduler whose workers are used instead.
        data: folder of the data sets; the default is $HKD_DATA, then data/.
        yes: do not ask before many GPU-hours (batch jobs cannot answer).
        wait: wait for another process that is at this table, or fail.
    """
    if data is not None:
        os.environ["HKD_DATA"] = str(data.expanduser().resolve())
    chosen, store, console = planned(table, profile, seeds), Store(places.runs()), out()
    records = load_records(chosen, store)
    confirm(chosen, records, yes)
    began = time.time()
    with Progress(chosen, records, console) as progress:
        done = reproduce(
            chosen,
            store,
            workers=workers,
            scheduler_file=scheduler_file,
            on_event=progress,
            wait=wait,
            on_wait=lambda sentence: console.print(Text(sentence)),
        )
    show_table(done, console)
    assert done.report is not None
    tried = len(done.report.executed)
    console.print(
        Text(f"{tried} of {len(chosen.runs)} runs executed in {clock(time.time() - began)}; records in {store.root}")
    )
    console.print(Text(f"The table and its figure are in {done.folder}"))
    return complain(done)


@app.command
def show(table: str, *, profile: str | None = None, seeds: int | None = None) -> int:
    """Print a table from the records that exist; nothing is run or written.

    Args:
        table: name of the table.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
    """
    show_table(compared(planned(table, profile, seeds), Store(places.runs())), out())
    return 0


@app.command
def check(*table: str, profile: str | None = None, seeds: int | None = None, update_reference: bool = False) -> int:
    """Check measured values against results/reference/: exit 0, 1 for a regression, 2 for a stale reference.

    Args:
        table: names of tables; all of them when none is given.
        profile: scale; the default is in params.yaml.
        seeds: seeds per cell; the default is in params.yaml, then the profile's.
        update_reference: save what is measured as the new reference of these finished tables instead.
    """
    from experiments import regression

    if update_reference and not table:
        raise UserError("Name the tables whose reference is to be replaced: `hkd check --update-reference TABLE`.")
    store, console, codes = Store(places.runs()), out(), []
    for name in table or schema.table_ids():
        each = planned(name, profile, seeds)
        records = load_records(each, store)
        path = places.references() / each.profile / f"{each.table}.json"
        if update_reference:
            regression.save_reference(each, records, path)
            console.print(Text(f"{name} ({each.profile}): saved {path}"))
        elif path.is_file() or table:
            report = regression.check(regression.measured_values(each, records), regression.load_reference(path))
            print_markdown(report.markdown(), console)
            codes.append(report.exit_code)
        else:
            console.print(Text(f"{name} ({each.profile}): untested: there is no reference {path}"))
    return 1 if 1 in codes else max(codes, default=0)


@app.command
def claims(*, profile: str | None = None) -> int:
    """Check the papers' sentences on what was measured; write results/claims/ and print them. Nothing is run.

    Args:
        profile: scale; every one at which something was measured when it is not given.
    """
    from experiments.claims import check_all, everywhere, markdown, summary, write

    found = everywhere() if profile is None else check_all([profile])
    write(found, places.results() / "claims")
    print_markdown(markdown(found), out())
    out().print(Text(f"{summary(found)}; written to {places.results() / 'claims'}"))
    return 0


@runs_app.command(name="list")
def list_runs() -> int:
    """List all runs that have a record, the latest last."""
    store = Store(places.runs())
    shown = new_table("key", "status", "run", "metrics", "took", "finished")
    records = [record for key in [*store.keys()] if (record := store.load(key)) is not None]
    for record in sorted(records, key=lambda record: record.finished):
        metrics = ", ".join(f"{name} {value:.2f}" for name, value in record.metrics.items()) or record.reason or ""
        finished = time.strftime("%Y-%m-%d %H:%M", time.localtime(record.finished))
        shown.add_row(
            record.key, record.status, record.label, metrics, clock(record.finished - record.started), finished
        )
    out().print(shown)
    return 0


@runs_app.command(name="show")
def show_run(key: str) -> int:
    """Print the record of a run as JSON.

    Args:
        key: of the run, or enough of its beginning to be the only one.
    """
    store = Store(places.runs())
    keys = list(store.keys())
    found = [key] if key in keys else [known for known in keys if known.startswith(key)]
    if len(found) != 1:
        many = f"'{key}' is the beginning of {len(found)} runs; give more of it." if found else f"Unknown run '{key}'."
        raise UserError(f"{many}{'' if found else nearest(key, keys)} `hkd runs list` lists all.")
    record = store.load(found[0])
    assert record is not None
    print(json.dumps(asdict(record), indent=2))
    print(f"files: {store.folder(found[0])}", file=sys.stderr)
    return 0


@numerics_app.command(name="check")
def check_numerics(*, device: Literal["cpu", "cuda"] = "cpu") -> int:
    """Say whether hkd/numerics.lock lists the library's code as it is; exit 1, with the command to run, if not.

    Args:
        device: kind of device that the code is proved on.
    """
    from experiments.planning.code import own_code
    from experiments.planning.lock import read_lock
    from hkd.units import units

    entries, code = read_lock().entries, own_code()
    unlisted = [
        unit
        for unit, module in units().items()
        if unit not in entries or not entries[unit].holds(code.digest([module]), device)
    ]
    console = out()
    if not unlisted:
        console.print(Text(f"hkd/numerics.lock lists the code of all {len(units())} units as proved on {device}."))
        return 0
    shown = ", ".join(unlisted[:5]) + (f" and {len(unlisted) - 5} more" if len(unlisted) > 5 else "")
    console.print(Text(f"{len(unlisted)} units have code that hkd/numerics.lock does not list on {device}: {shown}."))
    console.print(Text(f"Their runs have new keys. `hkd numerics prove{'' if device == 'cpu' else ' --device cuda'}`"))
    console.print(Text("shows whether they compute what they did, and lists them."))
    return 1


@numerics_app.command(name="prove")
def prove_numerics(
    base: str | None = None,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    accept: bool = False,
    unreached: str | None = None,
    table: tuple[str, ...] = (),
) -> int:
    """Show that the library computes, bit for bit, what it did at a commit, and list its code in hkd/numerics.lock.

    Both sides carry out some 400 small runs on this machine, a few minutes on two cores; only what the edit can reach
    is run. Exit 1 where numbers differ or changed lines did not run: nothing is written then, and keys stay new.

    Args:
        base: git revision to compare with; the default is the last one whose lock lists all of its own code.
        device: kind of device to prove on.
        accept: raise the versions of units whose numbers differ: their runs get new keys, for good.
        unreached: why changed lines that no small run reaches move no digit; recorded in the lock.
        table: look at the runs of this table only (may be given several times); a quick look that writes nothing.
    """
    from experiments.planning.lock import PATH
    from experiments.proving.prove import is_settled, prove

    for name in table:
        lookup("table", name, dict.fromkeys(schema.table_ids()))
    console = out()

    def say(sentence: str) -> None:
        console.print(Text(sentence))

    proof = prove(base, device=device, accept=accept, unreached=unreached, tables=table, say=say)
    shown: dict[str, list[str]] = {}
    for unit, verdict in proof.verdicts.items():
        if unit in proof.raised:
            shown.setdefault("numbers differ, version raised", []).append(unit)
        elif not is_settled(verdict, proof.raised) or verdict.status == "new":
            shown.setdefault(verdict.status, []).append(unit)
    for status, units in shown.items():
        say(f"{status}: {', '.join(units)}")
    differences = dict.fromkeys(line for verdict in proof.verdicts.values() for line in verdict.differences)
    for line in list(differences)[:10]:
        say(f"  {line}")
    if len(differences) > 10:
        say(f"  and {len(differences) - 10} more")
    for place in dict.fromkeys(place for verdict in proof.verdicts.values() for place in verdict.unreached):
        say(f"  changed and run by no canary of a unit: {place}")
    proved = sum(is_settled(verdict, proof.raised) for verdict in proof.verdicts.values())
    say(
        f"{proved} of {len(proof.verdicts)} units settled by {proof.canaries} canaries in {clock(proof.seconds)}, "
        f"compared with {proof.base}."
    )
    if not table and proof.holds:
        proof.lock.write(PATH)
        say("hkd/numerics.lock lists the code as it is now.")
    return int(not proof.holds)


@weights_app.command
def fetch(name: str) -> int:
    """Get the published weights of a model through timm, as safetensors in the weights folder.

    Args:
        name: of a model in hkd/models/cards/zoo.py, such as swin_s.
    """
    from experiments.teachers import record_sha256
    from hkd.models.cards.zoo import ZOO

    card = lookup("model", name, ZOO)
    if card.pretrained is None:
        known = ", ".join(sorted(model for model, other in ZOO.items() if other.pretrained))
        raise UserError(f"Model '{name}' has no published weights. Those that have: {known}.")
    path = places.weights() / f"{name}.safetensors"
    if path.exists():
        raise UserError(f"{path} is there already; delete it to get it again.")
    # Teachers of Hybrid Distill are encoders at the card's own size: without CLIP's projection, positions resampled.
    options = {**card.kwargs, "num_classes": 0} if card.family == "view_vit" else {}
    digest = fetch_weights(card.pretrained, path, options)
    known = "as in" if record_sha256(name, digest) else "not in"
    out().print(Text(f"{card.pretrained} -> {path}\nSHA-256 {digest}, {known} experiments/manifests/teachers.yaml"))
    return 0


@weights_app.command
def convert(card: str, source: Path, *, classes: int = 1000) -> int:
    """Make a checkpoint of an older timm, or of a model's authors, a weights file of this suite.

    Args:
        card: name of its model in hkd/models/cards/zoo.py, such as swin_t.
        source: .pth, .pt or .safetensors with tensors by name; code in it is never run.
        classes: of its classifier; other than 1000, the file's name says so. Encoders of masked image modelling (MAE,
            BEiT, CAE) have none, and this is not read.
    """
    from hkd.models.cards.zoo import ZOO

    model = lookup("model", card, ZOO)
    if model.family in ("mim_vit", "beit"):
        from hkd.models.convert.mim_checkpoints import convert_file as convert_weights

        classes, path = 0, places.weights() / f"{card}.safetensors"
    else:
        from hkd.models.convert.legacy import convert as convert_weights

        if classes < 1:
            raise UserError(f"--classes is {classes}; it must be at least 1.")
        path = places.weights() / (f"{card}.safetensors" if classes == 1000 else f"{card}_{classes}classes.safetensors")
    digest = convert_weights(source, model, classes, path)
    out().print(Text(f"{source} -> {path}\nSHA-256 {digest}"))
    return 0


def measured_text(measured: tuple[str, float] | None) -> str:
    """A teacher's measured value; what it is unless it is plain accuracy."""
    if measured is None:
        return "not yet"
    metric, value = measured
    return f"{value:.2f}" + ("" if metric == "top1" else f" ({metric})")


def fetch_weights(pretrained: str, path: Path, options: dict[str, Any]) -> str:
    """Download timm's `name.tag` to a file and return its SHA-256.

    Args:
        pretrained: name and tag.
        path: of the file.
        options: of timm.create_model.

    Raises:
        UserError: it cannot be downloaded or written.
    """
    import timm

    from hkd.files import sha256
    from hkd.models.weights import save_weights

    try:
        state = timm.create_model(pretrained, pretrained=True, **options).state_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(state, path)
    except (OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"The weights '{pretrained}' could not be put at {path}: {type(error).__name__}: {first}"
        ) from error
    return sha256(path)


@app.command
def teachers(*, profile: str | None = None) -> int:
    """List the teachers: architecture, source, licence, SHA-256, and accuracy as published and as measured here.

    The published accuracy is of the paper's teacher on the paper's data, whatever stands for them at the profile.

    Args:
        profile: scale; the default is in params.yaml.
    """
    from experiments.teachers import teachers as listed

    chosen = profile or schema.load_params().profile

    shown = new_table(
        "teacher", "architecture", "made here by", "published weights", "licence", "SHA-256", "published", "source"
    )
    shown.add_column("measured", justify="right")
    for facts in listed(chosen, Store(places.runs())):
        entry, arch = facts.entry, facts.card.arch.rpartition(":")[2]
        texts = [facts.name, f"{facts.card.name} ({arch})", facts.made, entry.weights or "", entry.licence or ""]
        texts += [(facts.sha256 or "")[:12], "" if entry.published is None else f"{entry.published:.2f}"]
        texts += [entry.source or "", measured_text(facts.measured)]
        shown.add_row(*map(Text, texts))
    out().print(shown)
    tell_stand_ins(standins.of_profile(schema.load_profile(chosen)))
    return 0


@app.command
def doctor() -> int:
    """Look at versions, processor, GPUs, folders, data sets and weights, and say how to get what is missing."""
    from experiments.doctor import examine

    shown = new_table("", "what", "found", "step")
    marks = {"ok": Text("ok", "green"), "note": Text("-", "dim"), "missing": Text("missing", "yellow")}
    group = None
    for finding in examine():
        if finding.group != group:
            group = finding.group
            shown.add_section()
        shown.add_row(marks[finding.state], Text(finding.name), Text(finding.text), Text(finding.step))
    out().print(shown)
    return 0


@app.command
def analyse(
    *model: str,
    images: Path,
    measures: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    output: Path | None = None,
    batch_size: int = 32,
    image_size: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str | None = None,
    random: bool = False,
    control: bool = False,
) -> int:
    """Measure attention and features of models over a folder of images: tables, arrays and figures.

    docs/analysis.md says what the measures are. One that a model cannot give is refused by name, the others go on.

    Args:
        model: timm names (published weights), or NAME=FILE.safetensors with a timm name or a model of ours.
        images: folder of JPEG, PNG or WebP files, searched with all folders below it.
        measures: attention_distance, attention_nmi, fourier, dct_spectrum, attention_maps; all unless some are named.
        output: folder for what is found; the default is results/analysis.
        batch_size: images in one forward pass.
        image_size: what models see, 224 or 192x256 (height x width); the default is each model's own.
        limit: at most so many images, drawn by the seed.
        seed: of that draw and of random weights.
        device: cpu, cuda or cuda:0; the default is the GPU if there is one.
        random: random weights for models without a file, instead of published ones.
        control: also measure each architecture with random weights.
    """
    from experiments import analyse as analysis  # imports torch, which takes seconds

    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; it must be at least 1.")
    folder = output or places.results() / "analysis"
    done = analysis.run(
        model,
        images,
        measures or [],
        folder,
        batch_size=batch_size,
        image_size=image_size,
        limit=limit,
        seed=seed,
        device=device,
        random=random,
        control=control,
        console=Console(stderr=True),
    )
    print_markdown(done.text, out())
    out().print(Text(f"{done.analyses[0].images} images; {len(done.files)} files are in {folder}"))
    for sentence in done.sentences:
        print(" ".join(sentence.split()), file=sys.stderr)
    return 2 if done.failed else 0


# -- what the commands share ----------------------------------------------------------------------------------


def out() -> Console:
    """Where commands print: as wide as the terminal, or as needed elsewhere."""
    return Console() if sys.stdout.isatty() else Console(width=200, soft_wrap=False)


def tell_stand_ins(sentence: str) -> None:
    """Say what stood in for the papers' data and models, where something did."""
    if sentence:
        out().print(Text(sentence))


def new_table(*columns: str) -> Table:
    """A plain table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def cost_table(first: str) -> Table:
    """A table of costs; the last three columns are of what is left to do."""
    table = new_table(first)
    for column in ("runs", "done", "epochs", "FLOPs", "GPU-hours", "disk", "left: runs", "GPU-hours", "disk"):
        table.add_column(column, justify="right")
    return table


def add_cost(table: Table, name: str, runs: Iterable[PlannedRun], done: set[str]) -> None:
    """One line of a cost table."""
    all_runs = list(runs)
    whole, left = total(all_runs), total(run for run in all_runs if run.key not in done)
    table.add_row(
        name,
        str(whole.runs),
        str(whole.runs - left.runs),
        str(whole.epochs),
        f"{whole.flops:.2e}",
        hours(whole),
        size(whole.disk),
        str(left.runs),
        hours(left),
        size(left.disk),
    )


def by_kind(plan: Plan, done: set[str]) -> Table:
    """The runs of one plan, those that differ by seed alone on one line."""
    kinds: dict[str, list[PlannedRun]] = {}
    for run in plan.runs.values():
        kinds.setdefault(run.label.partition(" seed ")[0], []).append(run)
    table = cost_table("run")
    for label, runs in kinds.items():
        add_cost(table, label, runs, done)
    return table


def expected_here(plan: Plan, store: Store) -> float | None:
    """Seconds that the rest of a table should take with the default workers; None if nothing similar was ever run."""
    records = load_records(plan, store)
    todo = {key: run for key, run in plan.runs.items() if key not in records or records[key].status not in FINAL}
    if not todo:
        return None
    workers = default_workers(runtime_for(plan.profile))
    return time_left(todo, {}, {}, Durations(records, plan.runs), workers, 0.0)


def hours(cost: Cost) -> str:
    """GPU-hours with three digits that matter."""
    return f"{cost.gpu_hours:,.0f}" if cost.gpu_hours >= 100 else f"{cost.gpu_hours:.3g}"


def size(count: float) -> str:
    """Bytes as kB, MB or GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:,.0f} {unit}"


def confirm(plan: Plan, records: dict[str, Record], yes: bool) -> None:
    """Ask before many GPU-hours; without somebody to ask, refuse."""
    left = sum(
        cost(run).gpu_hours for key, run in plan.runs.items() if key not in records or records[key].status not in FINAL
    )
    if yes or left < EXPENSIVE:
        return
    question = (
        f"'{plan.table}' at profile '{plan.profile}' takes about {left:,.0f} GPU-hours (see `hkd plan {plan.table}`)"
    )
    if not sys.stdin.isatty():
        raise UserError(f"{question} (`hkd plan` tells more); say --yes to start it.")
    if input(f"{question}. Start? [y/N] ").strip().lower() not in ("y", "yes"):
        raise UserError("Not started.")


def show_table(done: Reproduction, console: Console) -> None:
    """Print a compared table."""
    print_markdown(done.markdown(), console)


def print_markdown(text: str, console: Console) -> None:
    """Laid out on a terminal, as it is elsewhere."""
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        print(text, flush=True)


def complain(done: Reproduction) -> int:
    """Name the runs that another attempt should bring; the exit code."""
    for sentence in done.comparison.missing:
        print(f"missing: {sentence}", file=sys.stderr)
    return done.comparison.exit_status


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: a mistake is one line on stderr and exit code 2, never a traceback."""
    use_this_checkout()
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        code = refuse(str(error))
    except UserError as error:
        code = refuse(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted: finished runs are kept, and the same command continues with the others.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
        code = 141  # as a shell says of a process that a closed pipe ended
    sys.exit(code)


def use_this_checkout() -> None:
    """Start again with the code of the checkout we are called in, if the installed command is of another one.

    A clone, and the copies that `dvc exp run --temp` makes, must not be measured with the main checkout's code.
    """
    here = places.repository()
    if here != Path(__file__).resolve().parents[1] and (here / "experiments" / "cli.py").is_file():
        path = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
        os.execve(
            sys.executable, [sys.executable, "-m", "experiments.cli", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path}
        )


def refuse(sentence: str) -> int:
    """Say what was wrong, on one line."""
    print(" ".join(sentence.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
