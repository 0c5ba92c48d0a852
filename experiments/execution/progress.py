"""What a user sees while runs are carried out: a live display on a terminal, a line now and then elsewhere."""

import heapq
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.execution.events import Event
from experiments.execution.graph import Graph
from experiments.planning.estimate import Durations
from experiments.planning.plan import Plan, PlannedRun
from experiments.records.live import left_by_rate
from experiments.records.store import Record

QUIET_S = 10.0  # between lines where there is no terminal
LATE = 0.1  # of the time that a run has taken: what is left at least, where it tells nothing of its steps
RATE_RUNS = 3  # done, from which their rate says how long the rest takes at least
SHOWN = 16  # runs under way that fit a screen
STARTING = {None: "starting", 0: "waiting for a worker to join"}  # by number of workers


@dataclass
class UnderWay:
    """One run being carried out: since when (monotonic seconds), and its latest progress."""

    since: float
    facts: dict[str, Any] = field(default_factory=dict)

    def left(self, now: float) -> float | None:
        """Seconds left by its own pace, or None before there is one (a tenth of the way)."""
        share = self.share()
        return (now - self.since) * (1 - share) / share if share > 0.1 else None

    def share(self) -> float:
        """How much of the run is done, in [0, 1]: by steps where they are told, else by epochs."""
        for at, end in (("step", "steps"), ("epoch", "epochs")):
            if self.facts.get(end):
                return self.facts.get(at, 0) / self.facts[end]
        return 0.0


class Progress:
    """A listener for `run_plan` and a context that shows what it hears.

    Args:
        plan: what is executed.
        records: those that exist already; their times make the first estimates.
        note: what stands at the end of every line, such as the cells that are open.
        console: where to show it; a terminal gets the live display, anything else a line every few seconds.
    """

    def __init__(self, plan: Plan, records: Mapping[str, Record], console: Console, note: str = ""):
        self.plan, self.console, self.note = plan, console, note
        self.records = records
        self.durations: Durations | None = None
        self.todo: dict[str, PlannedRun] = {}
        self.reused = 0
        self.workers: int | None = None
        self.ended: dict[str, str] = {}  # key -> status
        self.under_way: dict[str, UnderWay] = {}
        self.lengths: dict[str, float] = {}  # of the runs to be done, as they were expected at the beginning
        self.began = 0.0
        self.told, self.estimated = 0.0, 0.0  # when the last line was printed, and the last estimate made
        self.estimate: float | None = None
        self.live = Live(console=console, get_renderable=self.display, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live.is_started:
            self.live.stop()
        if self.todo:
            self.console.print(Text(self.headline()), soft_wrap=True)

    def __call__(self, event: Event) -> None:
        """Take an event in; called in one thread."""
        now = time.monotonic()
        if event.kind == "scheduled":
            self.todo = {key: self.plan.runs[key] for key in event.facts["todo"]}
            self.reused = event.facts["reused"]
            if self.todo:
                self.durations = Durations(self.records, self.plan.runs)
                self.lengths = {key: self.durations.weight(run) for key, run in self.todo.items()}
                self.began = now
        elif event.kind == "workers":
            self.workers = event.facts["count"]
            if self.console.is_terminal and not self.live.is_started:
                self.live.start()
        elif event.kind == "lost":
            self.under_way.clear()
            said = "The dask scheduler went away; finished runs are kept, and another one is waited for."
            self.console.print(Text(said, style="yellow"), soft_wrap=True)
        elif event.kind == "started":
            self.under_way[event.key] = UnderWay(since=now)
        elif event.kind == "progress" and event.key in self.under_way:
            self.under_way[event.key].facts.update(event.facts)
        elif event.kind == "finished":
            self.finished(event)
        if not self.live.is_started and self.todo and now - self.told >= QUIET_S:
            self.told = now
            self.console.print(Text(self.line()), soft_wrap=True)

    def finished(self, event: Event) -> None:
        """A run ended; anything but success is told at once and stays on the screen."""
        self.under_way.pop(event.key, None)
        self.ended[event.key] = event.facts["status"]
        run = self.todo[event.key]
        if event.facts["status"] == "done":
            assert self.durations is not None
            self.durations.learn(run, event.facts["seconds"])
        elif event.facts["root"]:
            text = f"{event.facts['status']}: {run.label}: {event.facts['reason']}"
            text += f" ({event.facts['lost']} runs need it)" if event.facts["lost"] else ""
            self.console.print(
                Text(text, style="red" if event.facts["status"] == "failed" else "yellow"), soft_wrap=True
            )

    @property
    def left(self) -> int:
        """Runs neither ended nor under way."""
        return len(self.todo) - len(self.ended) - len(self.under_way)

    def headline(self) -> str:
        """Counts and the time left, in one line."""
        done = list(self.ended.values()).count("done")
        parts = [f"{done + self.reused} of {len(self.plan.runs)} runs done"]
        if others := len(self.ended) - done:
            parts.append(f"{others} without a result")
        if self.under_way or self.left:
            parts += [f"{len(self.under_way)} running", f"{self.left} left"]
            parts.append(time_words(self.time_left()) if self.workers else STARTING[self.workers])
        note = f"; {self.note}" if self.note else ""
        return f"{self.plan.table} ({self.plan.profile}): " + ", ".join(parts) + note

    def line(self) -> str:
        """The headline and the first run under way, for logs."""
        shown = [f"{self.todo[key].label} {numbers(run.facts)}".strip() for key, run in self.under_way.items()]
        return self.headline() + (f" [{'; '.join(shown[:2])}]" if shown else "")

    def display(self) -> RenderableType:
        """The live display; called by rich, in its own thread."""
        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        for key, run in list(self.under_way.items())[:SHOWN]:
            bar = ProgressBar(total=1, completed=run.share(), width=20)
            table.add_row(self.todo[key].label, bar, numbers(run.facts), clock(now - run.since))
        return Group(Text(self.headline(), style="bold"), table)

    def time_left(self) -> float | None:
        """Seconds until all is done, renewed once a second."""
        now = time.monotonic()
        if now - self.estimated > 1 and self.durations is not None:
            self.estimated = now
            ended, under_way = dict(self.ended), dict(self.under_way)  # rich asks from a thread of its own
            expected = time_left(self.todo, ended, under_way, self.durations, self.workers or 1, now)
            # Where runs finish more slowly than foretold (another process took the cores, say), they are believed.
            kept = self.by_rate(ended, under_way, now) if list(ended.values()).count("done") >= RATE_RUNS else None
            self.estimate = expected if kept is None or expected is None else max(expected, kept)
        return self.estimate

    def by_rate(self, ended: Mapping[str, str], under_way: Mapping[str, UnderWay], now: float) -> float | None:
        """Seconds left if the rest goes at the rate at which runs finished so far."""
        done = sum(self.lengths[key] for key in ended)
        done += sum(self.lengths[key] * run.share() for key, run in under_way.items())
        return left_by_rate(done, sum(self.lengths.values()), now - self.began)


def time_left(
    todo: Mapping[str, PlannedRun],
    ended: Mapping[str, str],
    under_way: Mapping[str, UnderWay],
    durations: Durations,
    workers: int,
    now: float,
) -> float | None:
    """Seconds until all is done: the rest of the plan played through with expected times; None while none are known.

    Args:
        todo: all runs of this call, dependencies first.
        ended: those that ended.
        under_way: those being carried out.
        durations: expected seconds of runs; those of runs under way come from their own pace where it is known.
        workers: runs at once, at least 1.
        now: monotonic seconds.
    """
    rest = {key: run for key, run in todo.items() if key not in ended}
    expected: dict[str, float] = {}
    rates = [
        (left + now - run.since) / durations.flops[key]
        for key, run in under_way.items()
        if (left := run.left(now)) is not None and durations.flops[key]
    ]
    # Those under way may show that the machine is slower now than when the last runs finished.
    ratios = [
        (left + now - run.since) / whole
        for key, run in under_way.items()
        if (left := run.left(now)) is not None and (whole := durations.expect(todo[key]))
    ]
    slower = max(1.0, median(ratios)) if ratios else 1.0
    for key, run in rest.items():
        own = under_way[key].left(now) if key in under_way else None
        whole = durations.expect(run)
        whole = None if whole is None else whole * slower
        if whole is None and rates:  # nothing finished yet: by the pace of those under way
            whole = durations.flops[key] * fmean(rates)
        if own is None and whole is None:
            return None
        spent = now - under_way[key].since if key in under_way else 0.0
        expected[key] = own if own is not None else max(spent * LATE, (whole or 0.0) - spent)
    graph = Graph(rest, expected)
    ends = [(expected[key], key) for key in under_way]
    for key in under_way:
        graph.drop(key)
    heapq.heapify(ends)
    at = 0.0
    while ends or graph.ready:
        while len(ends) < max(1, workers) and (ready := graph.next()) is not None:
            heapq.heappush(ends, (at + expected[ready], ready))
        at, ended_now = heapq.heappop(ends)
        graph.done(ended_now)
    return at


def numbers(facts: Mapping[str, Any]) -> str:
    """`epoch 12/80  loss 1.234  top1 56.7` of what is known."""
    parts = [f"epoch {facts['epoch']}/{facts['epochs']}"] if "epoch" in facts and "epochs" in facts else []
    parts += [f"loss {facts['loss']:.3f}"] if "loss" in facts else []
    parts += [f"top1 {facts['top1']:.1f}"] if "top1" in facts else []
    return "  ".join(parts)


def time_words(seconds: float | None) -> str:
    """`about 3 min 20 s to go`; None is not known yet."""
    return "estimating the time" if seconds is None else f"about {clock(seconds)} to go"


def clock(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
