"""Mask ratio by data set, and temperature by queue size: linear probes of H-GKD students, with intervals over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.figure_files import Number, csv_text, save_measures
from analysis.style import COLOURS, GREY, GRID, MARKERS, WIDTH, sheet
from experiments.drawings.base import Finished
from experiments.results import stats
from hkd.methods.hgkd import HGKDConfig

PLOT, LEFT, GAP, RIGHT = 2.9, 0.85, 0.95, 0.15  # inches
APART = 0.06  # of the spread of an axis: how far points of two lines stand apart


@dataclass(frozen=True)
class Point:
    """One setting: the row, its data set as printed, what varies, and the accuracy in percent by seed."""

    row: str
    data: str
    ratio: float
    queue: int
    tau: float
    top1: Mapping[int, float]


def draw(finished: Finished, folder: Path) -> None:
    """Two panels, and the numbers behind them."""
    points = points_of(finished)
    numbers = {
        f"top1/{point.row}/{point.ratio:g}/{point.queue}/{point.tau:g}": Number(
            next(iter(point.top1.values())), seeds=dict(point.top1)
        )
        for point in points
    }
    save_measures(numbers, folder / "measures.json", profile=finished.plan.profile, images="All test images.")
    lines = [
        [p.data, p.ratio, p.queue, p.tau, estimate.mean, estimate.low, estimate.high, estimate.n]
        for p in points
        for estimate in [stats.mean(list(p.top1.values()))]
    ]
    header = ("data", "mask_ratio", "queue_size", "tau", "top1", "low", "high", "seeds")
    (folder / "grids.csv").write_text(csv_text(header, lines), encoding="utf-8")
    grids_figure(points, folder / "grids", title=f"{finished.plan.title}\n{finished.plan.here}")


def points_of(finished: Finished) -> list[Point]:
    """What was measured: options of the pre-training behind each probe, and its accuracy by seed."""
    found = []
    for (row, _, _), runs in finished.cells.items():
        init = runs[0].spec.init
        assert init is not None
        given = finished.plan.runs[init.id].spec.method.options
        ratio, queue, tau = (
            given.get(name, getattr(HGKDConfig(), name)) for name in ("mask_ratio", "queue_size", "tau")
        )
        top1 = {}
        for run in runs:
            record = finished.store.load(run.key)
            assert record is not None
            top1[run.spec.seed] = record.metrics["top1"]
        found.append(Point(row, finished.rows[row], ratio, queue, tau, top1))
    return found


def grids_figure(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Left: gains over the default share of hidden cells, a line per data set. Right: accuracy, a line per queue.

    Args:
        points: those with the default queue and temperature make the left panel, those of the first data set with the
            default share of hidden cells the right one.
        path: PNG to write, and an SVG beside it.
        title: see `sheet`.
    """
    first, usual = points[0].data, points[0]
    ratios = [p for p in points if (p.queue, p.tau) == (usual.queue, usual.tau)]
    queues = [p for p in points if (p.data, p.ratio) == (first, usual.ratio)]
    caption = (
        f"Linear probes of frozen features; means and 95 % intervals over {len(usual.top1)} seeds. Left: gain over "
        f"{100 * usual.ratio:g} % hidden cells, paired by seed. Right: {first}, {100 * usual.ratio:g} % hidden."
    )
    width = (WIDTH - LEFT - GAP - RIGHT) / 2
    with sheet(path, WIDTH, PLOT, title=title, caption=caption, above=0.62, below=0.68) as page:
        axes = page.axes(LEFT, page.bottom, width, PLOT)
        axes.axhline(0, color=GREY, linewidth=0.8)
        for index, data in enumerate(dict.fromkeys(p.data for p in ratios)):
            line = sorted((p for p in ratios if p.data == data), key=lambda p: p.ratio)
            base = next(p for p in line if p.ratio == usual.ratio)
            shift = APART * (max(p.ratio for p in ratios) - min(p.ratio for p in ratios)) * (index - 0.5)
            gains = [stats.paired_gain(p.top1, base.top1) for p in line if p is not base]
            at = [100 * (p.ratio + shift) for p in line if p is not base]
            draw_line(axes, at, gains, index, data)
        axes.set_xlabel("hidden cells (%)")
        axes.set_xticks(sorted({round(100 * p.ratio) for p in ratios}))
        axes.set_ylabel(f"gain over {100 * usual.ratio:g} % (points)")
        axes = page.axes(LEFT + width + GAP, page.bottom, width, PLOT)
        for index, queue in enumerate(sorted({p.queue for p in queues}, reverse=True)):
            line = sorted((p for p in queues if p.queue == queue), key=lambda p: p.tau)
            at = [p.tau * (1 + APART) ** (2 * index - 1) for p in line]
            draw_line(
                axes, at, [stats.mean(list(p.top1.values())) for p in line], index, f"queue {queue:,}", joined=True
            )
        axes.set_xscale("log")
        axes.minorticks_off()
        taus = sorted({p.tau for p in queues})
        axes.set_xticks(taus, [f"{tau:g}" for tau in taus])
        axes.set_xlabel("temperature")
        axes.set_ylabel("top-1 (%)")


def draw_line(
    axes: Any, at: Sequence[float], estimates: Sequence[stats.Estimate], index: int, label: str, *, joined: bool = False
) -> None:
    """Means with their intervals (the ends of the values, where an interval would not inform)."""
    shown = [estimate.shown for estimate in estimates]
    spans = [[e.mean - e.low for e in shown], [e.high - e.mean for e in shown]]
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.errorbar(
        at,
        [e.mean for e in shown],
        yerr=spans,
        color=COLOURS[index],
        marker=MARKERS[index],
        markersize=7,
        linewidth=1.6,
        linestyle="-" if joined else "none",
        label=label,
    )
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1, handlelength=1.2, borderaxespad=0.2)
