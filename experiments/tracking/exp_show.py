"""What `dvc exp show` knows, a table at a time: metrics first, and of the parameters those that differ."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from experiments.grids import new_table
from experiments.tracking.comparing import flat
from experiments.tracking.facts import inner
from hkd.errors import UserError

METRICS = "metrics.json"
COMMIT = 7  # of a commit's letters


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A state of the repository: its name, metrics by (profile, table), and flat parameters."""

    name: str
    metrics: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


def asked(repository: Path) -> list[Experiment]:
    """The experiments of a repository, as DVC tells them.

    Raises:
        UserError: DVC cannot.
    """
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"`dvc exp show` failed in {repository}: {last}")
    return list(told(json.loads(done.stdout)))


def told(document: Sequence[Mapping[str, Any]]) -> Iterator[Experiment]:
    """Experiments from DVC's JSON: the workspace, then every commit with what was tried from it."""
    for commit in document:
        yield experiment(commit, "")
        for tried in commit.get("experiments") or ():
            yield from (experiment(each, "└ ") for each in tried.get("revs") or ())


def experiment(revision: Mapping[str, Any], indent: str) -> Experiment:
    """One revision."""
    rev, data = str(revision.get("rev", "")), inner(revision, "data")
    name = rev if rev == "workspace" else f"{rev[:COMMIT]} {revision.get('name') or ''}".strip()
    metrics = {}
    for file, held in inner(data, "metrics").items():
        *_, profile, table, last = ("", "", *Path(file).parts)
        if last == METRICS and profile != "results":  # claims have a file of their own kind
            metrics[profile, table] = inner(held, "data")
    params: dict[str, Any] = {}
    for held in inner(data, "params").values():
        params |= flat(inner(held, "data"))
    return Experiment(name=indent + name, metrics=metrics, params=params)


def tables(experiments: Sequence[Experiment], wanted: Sequence[str] = ()) -> Iterator[Table]:
    """A table for each paper's table that any of the experiments has.

    Args:
        experiments: in order.
        wanted: only these tables; none: all.
    """
    places = dict.fromkeys(place for each in experiments for place in each.metrics)
    changed = differing(experiments)
    for profile, table in places:
        if wanted and table not in wanted:
            continue
        rows = [(each, each.metrics.get((profile, table), {})) for each in experiments]
        methods = dict.fromkeys(name for _, held in rows for name in inner(held, "pooled_gain"))
        shown = new_table(title=f"{table} ({profile})")
        shown.add_column("experiment", no_wrap=True)
        for name in methods:
            shown.add_column(name, justify="right", overflow="fold")
        shown.add_column("verdicts", overflow="fold")
        for name in changed:
            shown.add_column(name, overflow="fold")
        for each, held in rows:
            if held:
                gains = [number(inner(held, "pooled_gain").get(name)) for name in methods]
                verdicts = ", ".join(
                    f"{count} {name.replace('_', ' ')}" for name, count in inner(held, "verdicts").items()
                )
                shown.add_row(*map(Text, (each.name, *gains, verdicts, *(said(each, name) for name in changed))))
        yield shown


def differing(experiments: Sequence[Experiment]) -> list[str]:
    """Names of the parameters that are not the same in all experiments; one that failed tells none."""
    experiments = [each for each in experiments if each.params]
    names = dict.fromkeys(name for each in experiments for name in each.params)
    return [name for name in names if len({json.dumps(each.params.get(name)) for each in experiments}) > 1]


def said(each: Experiment, name: str) -> str:
    """A parameter as it is written in params.yaml."""
    return json.dumps(each.params.get(name)).strip('"')


def number(value: Any) -> str:
    """A gain with its sign; "" without one."""
    return f"{value:+.2f}" if type(value) in (int, float) else ""
