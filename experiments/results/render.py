"""Writes results/<profile>/<table>/: the table as CSV and Markdown, costs, metrics, figures, curves and run facts.
Tables of many methods on several pairs also have their ranking and the map of gains.

The folder is built aside and moved in last, so that a reader sees the old table or the new one, never a part.
Equal inputs give equal bytes.
"""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd

from experiments.planning.plan import Cell, Plan
from experiments.planning.replications import not_reached
from experiments.records.store import Record, step_ms
from experiments.results.caption import caption, heading, listed, metric_name, pooled_texts, seeds_said, with_interval
from experiments.results.compare import CellResult, Comparison, PooledGain, replications
from experiments.results.statements import GAINS, performance_profile, probability_of_improvement
from experiments.results.stats import NOTHING, Estimate, MeanRanks, mean_ranks
from experiments.results.verdicts import (
    BY_DIRECTION,
    BY_VALUE,
    CANNOT_TELL,
    HOLDS,
    NOT_APPLICABLE,
    NOT_IN_PROFILE,
    UNVERIFIED,
)
from hkd.errors import UserError

Curves = Mapping[str, Sequence[Mapping[str, Any]]]  # by run key: one dict per epoch

INDEPENDENT = 2  # people who could not reach a published value: it is marked
NOTHING_TO_RUN = (NOT_APPLICABLE, NOT_IN_PROFILE)
WIDE = 4  # table.md: up to this many methods stand side by side, as papers print them; more stand below one another
FIGURE_METHODS = 4  # more would not be told apart in comparison.png
MANY = 4  # methods (not variants of one) from which their costs are printed, and on several pairs their ranks
NUMBER = re.compile(r" \((Table \d+)\)")  # of a row's label: the table of the paper that it is of
VARIED = re.compile(r"(?P<name>[a-z]+) (?P<value>[0-9.]+)")  # a row's label that is a value of an option
SWEPT = 4  # values from which they are an axis
MOST_BASELINES = 2  # that the title of a panel names
DIGITS = 4  # of measured values in CSV and JSON; printed tables have two
JUDGED = (*BY_VALUE, *BY_DIRECTION, CANNOT_TELL)
COST = ("step_ms", "step_ratio", "extra_params_m", "peak_memory_mib", "cpu_s", "gpu_s", "wall_s")


def write_table(
    plan: Plan,
    records: Mapping[str, Record],
    comparison: Comparison,
    folder: Path,
    *,
    curves: Curves | None = None,
    draw: Callable[[Path], None] | None = None,
) -> None:
    """Write all files of a table's folder, replacing what was there as the last step.

    Args:
        plan: the table at a profile.
        records: by key.
        comparison: of this plan and these records.
        folder: results/<profile>/<table>.
        curves: by run key, one dict per epoch with `loss` and, where measured, `train_top1`.
        draw: writes further pictures into the folder it is given.

    Raises:
        UserError: the folder cannot be written.
    """
    aside, old = (folder.with_name(f".{folder.name}.{state}") for state in ("new", "old"))
    try:
        for left_over in (aside, old):
            if left_over.exists():
                shutil.rmtree(left_over)
        aside.mkdir(parents=True)
        fill(plan, records, comparison, aside, curves or {})
        if draw is not None:
            draw(aside)
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except OSError:
            if old.exists():  # better the table as it was than none
                old.rename(folder)
            raise
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        raise UserError(
            f"Cannot write {folder} ({error.strerror}); make it writable, free some space, or set HKD_RESULTS."
        ) from None


def fill(plan: Plan, records: Mapping[str, Record], comparison: Comparison, folder: Path, curves: Curves) -> None:
    """All files, into a folder that is there."""
    write_csv(comparison.frame, folder / "table.csv")
    write_csv(costs(plan, records, comparison), folder / "cost.csv")
    write_csv(gains(plan, comparison), folder / "gains.csv")
    write_csv(mean_curves(plan, curves), folder / "curves.tsv", separator="\t")
    (folder / "table.md").write_text(markdown(plan, records, comparison), encoding="utf-8")
    write_json(metrics(plan, comparison), folder / "metrics.json")
    write_json(run_facts(plan, records), folder / "runs.json")
    for name, shown in compared_metrics(plan).items():
        draw(plan, comparison, folder / name, shown)
    if is_ranked(plan):
        ranked = ranking(plan, comparison)
        write_csv(ranks(plan, ranked, comparison), folder / "ranks.csv")
        draw_ranking(plan, ranked, folder / "ranking.png")
        draw_map(plan, comparison, folder / "gains.png")


def write_csv(frame: pd.DataFrame, path: Path, separator: str = ",") -> None:
    """A frame with rounded floats and one line ending on every system."""
    frame.round(DIGITS).to_csv(path, sep=separator, index=False, lineterminator="\n")


def write_json(value: Any, path: Path) -> None:
    """Indented JSON in the order given; refuses NaN."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


# -- table.md ----------------------------------------------------------------------------------------------------


def markdown(plan: Plan, records: Mapping[str, Record], comparison: Comparison, finding: str = "") -> str:
    """The table in the paper's layout, with its caption; a finding, if given, under its title."""
    parts = [f"# {plan.title}", *filter(None, [finding])]
    if plan.here:
        of_a_paper = plan.paper != plan.table  # a table of the user's own need not be of one
        other = of_a_paper and not plan.by_value
        parts.append(plan.here + (" Published values are of the paper's own data and models." if other else ""))
    unsaid = dict(plan.marks)
    for metric in plan.metrics:
        if len(plan.metrics) > 1:
            parts.append(f"## {metric_name(metric)}")
        parts.append(to_markdown(laid_out(comparison.readable(metric), unsaid)))
    parts += on_absent_rows(comparison)
    if len(methods_of(plan)) >= MANY:
        parts += [
            "Cost of each method (medians over seeds and then pairs; a step is one update of the optimiser):",
            cost_summary(plan, costs(plan, records, comparison)),
        ]
    pooled = pooled_table(plan, comparison)
    if pooled:
        parts += ["Gains pooled over pairs (mean over pairs for each seed, then over seeds):", pooled]
    if is_ranked(plan):
        parts += [
            f"Methods over pairs ({metric_name(plan.metrics[0])}; mean ranks within pairs and seeds, 1 the best, none "
            "for methods that lack a pair; P: probability that a run is above one of that column on the same pair; "
            "last columns: share of runs over pairs with a gain above so many points):",
            over_pairs(plan, comparison),
        ]
    parts.append("\n".join(f"- {sentence}" for sentence in caption(plan, records, comparison)))
    return "\n\n".join(parts) + "\n"


def laid_out(results: Sequence[CellResult], unsaid: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """The cells of a metric as they are printed, all texts.

    Args:
        results: of one metric.
        unsaid: as for `row_labels`.
    """
    return side_by_side(results, unsaid) if is_wide(results) else one_below_another(results, unsaid)


def on_absent_rows(comparison: Comparison) -> list[str]:
    """A sentence on the rows that are not printed; none where all are."""
    rows = list(comparison.absent_rows().values())
    many = f"{len(rows)} rows are" if len(rows) > 1 else "1 row is"
    text = f"{many} not in this profile: {listed(rows)}; table.csv has the published values."
    return [text] if rows else []


def is_wide(results: Sequence[CellResult]) -> bool:
    """Whether the rows share the same few methods, so that these can be columns."""
    columns: dict[str, list[str]] = {}
    for result in results:
        columns.setdefault(result.cell.row, []).append(heading(result.cell))
    return len({tuple(column) for column in columns.values()}) == 1 and len(next(iter(columns.values()))) <= WIDE


def row_labels(cell: Cell, unsaid: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Labels of teacher and student; of a model that is named for the first time, what stands in for it beside it.

    Args:
        cell: of the line.
        unsaid: marks of the models that were not named yet; those that are named here leave it.
    """
    texts = {}
    for column, label, slugs in zip(
        COLUMNS_KEPT, cell.row_label, (cell.teacher.split("+"), [cell.student]), strict=True
    ):
        text = label
        for slug in filter(unsaid.__contains__, slugs):
            name, mark = unsaid[slug]
            text, is_named = re.subn(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"{name} ({mark})", text, count=1)
            if is_named:
                del unsaid[slug]
        texts[column] = text
    texts[COLUMNS_KEPT[1]] += OTHER_DATA if cell.instead else ""
    return texts


def side_by_side(results: Sequence[CellResult], unsaid: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """One line per row, the methods as groups of columns; groups keep only the columns that hold something."""
    lines: dict[str, dict[str, str]] = {}
    for result in results:
        if result.cell.row not in lines:
            lines[result.cell.row] = row_labels(result.cell, unsaid)
        line = lines[result.cell.row]
        name = heading(result.cell)
        papers = result.cell.printed_label or name  # published values are of the paper's own data
        names = {"published": papers, "published gain": papers, "replicated": papers}
        line.update({f"{names.get(column, name)}: {column}": text for column, text in shown(result).items()})
    return without_empty(pd.DataFrame(lines.values()))


def without_empty(frame: pd.DataFrame) -> pd.DataFrame:
    """Only the columns that hold something; teacher and student always stay."""
    return frame.loc[:, [name for name in frame if (frame[name] != "").any() or name in COLUMNS_KEPT]]


COLUMNS_KEPT = ("Teacher", "Student")
OTHER_DATA = " (other data)"  # mark of a row whose data is another stand-in than its table's
TEXT_COLUMNS = ("Teacher", "Student", "Method", "verdict", "Gain of", "over")


def methods_of(plan: Plan) -> list[str]:
    """The methods of a table; variants of one are one."""
    return list(dict.fromkeys(cell.method for cell in plan.cells))


def one_below_another(results: Sequence[CellResult], unsaid: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """One line per row and method."""
    lines = (
        {
            **row_labels(result.cell, unsaid),
            "Method": heading(result.cell),
            **shown(result),
        }
        for result in results
    )
    return without_empty(pd.DataFrame(lines))


def pooled_shown(plan: Plan, comparison: Comparison) -> list[PooledGain]:
    """Pooled gains that are printed: of many methods only those over the baseline, but for the first metric."""
    many = len(methods_of(plan)) >= MANY
    return [
        gain
        for gain in comparison.pooled
        if gain.pooled.rows and not (many and gain.over and gain.metric != plan.metrics[0])
    ]


def pooled_table(plan: Plan, comparison: Comparison) -> str:
    """Gains pooled over the rows, with both intervals and the spread; "" where nothing can be pooled."""
    lines = [pooled_texts(plan, gain) for gain in pooled_shown(plan, comparison)]
    frame = pd.DataFrame(lines)
    return to_markdown(without_empty(frame)) if lines else ""


def to_markdown(frame: pd.DataFrame) -> str:
    """A Markdown table; numbers stay as they were printed."""
    numbers = [not name.endswith(TEXT_COLUMNS) for name in frame]
    return frame.to_markdown(
        index=False, disable_numparse=True, colalign=["right" if number else "left" for number in numbers]
    )


def shown(result: CellResult) -> dict[str, str]:
    """The texts of one cell, in the order of the columns."""
    return {
        "published": published(result.cell),
        "replicated": replications(result.cell),
        "measured": measured(result),
        "published gain": "" if math.isnan(result.published_gain) else f"{result.published_gain:+.2f}",
        "gain": with_interval(result.shown_gain, signed=True),
        "verdict": result.verdict,
    }


def published(cell: Cell) -> str:
    """The published value; marked where its source is less than certain."""
    if cell.published is None:
        return ""
    mark = {"high": "", "medium": " (medium confidence)", "low": f" ({UNVERIFIED})"}[cell.published.confidence]
    missed = not_reached(cell.replicated)
    return f"{cell.published.value:.2f}{mark}" + (f" (not reached by {missed} others)" if missed >= INDEPENDENT else "")


def measured(result: CellResult) -> str:
    """The measured value with its interval, or the status that stands in its place."""
    if result.status == "quoted":
        return "quoted"
    if result.measured.n == 0:
        return result.status
    notes = [f"{result.measured.n} of {len(result.cell.runs)} seeds"] if result.status == "partial" else []
    notes += ["mixed"] if result.marks else []
    return with_interval(result.measured) + (f" ({', '.join(notes)})" if notes else "")


def cost_summary(plan: Plan, frame: pd.DataFrame) -> str:
    """What each method costs beside supervised training, as Markdown."""
    labels = {(cell.method, cell.variant): heading(cell) for cell in plan.cells}
    names = {"step_ratio": "step, × supervised", "extra_params_m": "extra parameters, M", "peak_memory_mib": "peak MiB"}
    digits = {"step_ratio": 2, "extra_params_m": 3, "peak_memory_mib": 0}
    lines = []
    for which, label in labels.items():
        rows = frame[(frame["method"] == which[0]) & (frame["variant"] == which[1])]
        values = {name: rows[name].median() for name in names}
        texts = {names[name]: "" if math.isnan(v) else f"{v:.{digits[name]}f}" for name, v in values.items()}
        lines.append({"Method": label, **texts, "pairs": str(int((rows["n_seeds"] > 0).sum()))})
    return to_markdown(pd.DataFrame(lines))


# -- csv and json --------------------------------------------------------------------------------------------------


def costs(plan: Plan, records: Mapping[str, Record], comparison: Comparison) -> pd.DataFrame:
    """Costs per row and method: medians over the seeds that were run; step time also relative to supervised.

    step_ms: one optimiser step, on a CPU of CPU time (nan where other work was timed with it). extra_params_m:
    parameters beside the student's, in millions. peak_memory_mib: of the process. cpu_s, gpu_s, wall_s: of one run.
    """
    first = {result.cell.id: result for result in reversed(comparison.cells)}  # metrics share runs
    found = {
        which: [
            {**records[key].cost, "step_ms": step_ms(records[key].cost)}
            for key in result.cell.runs
            if key in records and records[key].status == "done"
        ]
        for which, result in first.items()
    }

    def middle(which: tuple[str, str, str], name: str) -> float:
        held = [cost[name] for cost in found.get(which, ()) if name in cost]
        return median([value for value in held if not math.isnan(value)] or [math.nan])

    rows = []
    for cell in dict.fromkeys(result.cell.id for result in comparison.cells):
        row, method, variant = cell
        base = next((c for c in found if c[0] == row and c[1] == "supervised"), first[cell].cell.baseline or cell)
        line: dict[str, Any] = {
            "table": plan.table,
            "row": row,
            "teacher": first[cell].cell.teacher,
            "student": first[cell].cell.student,
        }
        line |= {"method": method, "variant": variant, "n_seeds": len(found[cell])}
        line |= {name: middle(cell, name) for name in COST if name != "step_ratio"}
        line["step_ratio"] = middle(cell, "step_ms") / middle(base, "step_ms") if middle(base, "step_ms") else math.nan
        rows.append(line)
    names = ["table", "row", "teacher", "student", "method", "variant", "n_seeds", *COST]
    return pd.DataFrame(rows, columns=names)


def metrics(plan: Plan, comparison: Comparison) -> dict[str, Any]:
    """The few numbers of a table that `dvc metrics` and `dvc exp show` print; names hold no dots.

    Per row: `baseline`, every method by its name, and `gain` of the row's headline cell (the paper's own method). Then
    pooled gains, and how many cells have which verdict and status. What was not measured is left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    for result in comparison.cells:
        if result.measured.n:
            place = rows.setdefault(result.cell.row, {})
            if len(plan.metrics) > 1:
                place = place.setdefault(result.cell.metric, {})
            is_baseline = result.cell.baseline is None and any(c.baseline == result.cell.id for c in plan.cells)
            place["baseline" if is_baseline else column_name(result.cell)] = round(result.measured.mean, DIGITS)
            if headline(plan, comparison, result.cell) is result and result.gain.n:
                place["gain"] = round(result.gain.mean, DIGITS)
    pooled: dict[str, float] = {}
    for gain in comparison.pooled:
        if gain.pooled.rows:
            name = "_".join(filter(None, (gain.method, gain.variant, f"minus_{gain.over}" if gain.over else "")))
            name += f"_{gain.metric}" if len(plan.metrics) > 1 else ""
            pooled[name] = round(gain.pooled.estimate.mean, DIGITS)
    return {
        "pairs": rows,
        "pooled_gain": pooled,
        "verdicts": {name.replace(" ", "_"): number for name, number in comparison.counts("verdict").items()},
        "statuses": {name.replace(" ", "_"): number for name, number in comparison.counts("status").items()},
    }


def column_name(cell: Cell) -> str:
    """A method and its variant as one dot-free name."""
    return "_".join(filter(None, (cell.method, cell.variant)))


def headline(plan: Plan, comparison: Comparison, cell: Cell) -> CellResult | None:
    """The cell a row is about: the paper's own method as it stands, else the only printed cell that has a gain."""
    row = [
        result
        for result in comparison.cells
        if (result.cell.row, result.cell.metric) == (cell.row, cell.metric)
        and result.cell.baseline
        and not result.cell.added
    ]
    own = [result for result in row if (result.cell.method, result.cell.variant) == (plan.paper, "")]
    candidates = own or row
    return candidates[0] if len(candidates) == 1 else None


def run_facts(plan: Plan, records: Mapping[str, Record]) -> dict[str, Any]:
    """Every run behind every cell: hash, seed, spec, metrics, cost, and where it ran."""
    runs = {}
    for key, run in plan.runs.items():
        record = records.get(key)
        facts: dict[str, Any] = {"label": run.label, "seed": run.spec.seed, "needs": list(run.needs)}
        if record is None:
            facts |= {"status": "not run"}
        else:
            facts |= {"status": record.status, "metrics": record.metrics, "cost": record.cost, "spec": record.spec}
            facts |= {"environment": record.environment}
            if record.committed:
                facts |= {"source": record.committed}
            else:
                facts |= {"started": record.started, "finished": record.finished}
            facts |= {"reason": record.reason} if record.reason else {}
        runs[key] = facts
    cells = {
        cell.id: {"row": cell.row, "method": cell.method, "variant": cell.variant, "runs": list(cell.runs)}
        for cell in plan.cells
    }
    return {"table": plan.table, "profile": plan.profile, "cells": list(cells.values()), "runs": runs}


# -- curves and the figure -------------------------------------------------------------------------------------------


def gains(plan: Plan, comparison: Comparison) -> pd.DataFrame:
    """Published beside measured gains for a horizontal bar plot: one line per bar, its label first."""
    lines = []
    for result in comparison.cells:
        if result.cell.baseline:
            name = f"{pair(result.cell)}, {result.cell.label}"
            name += f", {metric_name(result.cell.metric)}" if len(plan.metrics) > 1 else ""
            for source, value in (("published", result.published_gain), ("measured", result.gain.mean)):
                if not math.isnan(value):
                    lines.append({"row": f"{name}, {source}", "gain": value})
    return pd.DataFrame(lines, columns=["row", "gain"])


def pair(cell: Cell) -> str:
    """A row's label: teacher and student as printed."""
    return cell.pair + (OTHER_DATA if cell.instead else "")


def mean_curves(plan: Plan, curves: Curves) -> pd.DataFrame:
    """Mean loss and training accuracy per epoch and method, over the runs that have the epoch; one column each."""
    found: dict[str, dict[int, list[float]]] = {}
    cells = {cell.id: cell for cell in plan.cells}.values()
    for cell in cells:
        for key in cell.runs:
            for point in curves.get(key, ()):
                for name in ("loss", "train_top1"):
                    if name in point and math.isfinite(point[name]):
                        column = found.setdefault(f"{column_name(cell)}_{name}", {})
                        column.setdefault(int(point["epoch"]), []).append(float(point[name]))
    epochs = sorted({epoch for column in found.values() for epoch in column})
    columns = {
        name: [fmean(by_epoch[epoch]) if epoch in by_epoch else math.nan for epoch in epochs]
        for name, by_epoch in found.items()
    }
    return pd.DataFrame({"epoch": epochs, **columns})


def compared_metrics(plan: Plan) -> dict[str, tuple[str, ...]]:
    """Names of the figures of gains and the metrics they show.

    One figure per metric; one of all where every row is of a single metric, which its label names.
    """
    by_row: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        if cell.baseline and not cell.quoted:
            by_row.setdefault(cell.row, {})[cell.metric] = None
    found = {metric for metrics in by_row.values() for metric in metrics}
    metrics = tuple(metric for metric in plan.metrics if metric in found)
    if len(metrics) > 1 and all(len(each) == 1 for each in by_row.values()):
        return {"comparison.png": metrics}
    return {f"comparison_{name}.png" if i else "comparison.png": (name,) for i, name in enumerate(metrics)}


def starts_from_own(plan: Plan, cell: Cell) -> bool:
    """Whether the students of a cell start from weights that the paper's own method has trained."""
    own = {key for key, run in plan.runs.items() if run.spec.method.name == plan.paper}
    return any(need in own for key in cell.runs for need in plan.runs[key].needs)


def draw(plan: Plan, comparison: Comparison, path: Path, metrics: tuple[str, ...]) -> None:
    """Gains of some metrics, pairs down the page as in the paper, pooled gains of a single metric at the bottom."""
    from analysis.charts import FEW_SEEDS, GainRow, comparison_figure  # imports matplotlib

    results = [
        r
        for r in comparison.cells
        if r.cell.metric in metrics and r.cell.baseline and not r.cell.quoted and r.status not in NOTHING_TO_RUN
    ]
    methods = list(dict.fromkeys((r.cell.method, r.cell.variant) for r in results))
    shown = {(name, "") for name in ("kd", plan.paper)} & {*methods}
    others = is_ranked(plan) and len(methods) > FIGURE_METHODS and len(shown) > 0
    shown |= {(r.cell.method, r.cell.variant) for r in results if starts_from_own(plan, r.cell)}
    if others:  # a line for every method and pair would be a page long
        results = [r for r in results if (r.cell.method, r.cell.variant) in shown]
        methods = [method for method in methods if method in shown]
    if swept := sweep(results):
        draw_sweep(plan, comparison, path, metrics, *swept)
        return
    rows_are_variants = len({r.cell.row_label for r in results}) == 1 or len(methods) > FIGURE_METHODS
    several = len({r.cell.row_label for r in results}) > 1
    labels = {(cell.method, cell.variant): cell.label for cell in plan.cells}
    over = panels(plan, results)
    rows: list[GainRow] = []
    for result in results:
        cell = result.cell
        own = not result.doubted
        name = NUMBER.sub("", pair(cell))
        rows.append(
            GainRow(
                pair=(f"{name}, {cell.label}" if several else cell.label) if rows_are_variants else name,
                method="measured" if rows_are_variants else cell.label,
                published=result.published_gain if own else math.nan,
                measured=result.gain.mean,
                low=result.drawn_gain.low,
                high=result.drawn_gain.high,
                pooled=False,
                panel=over[cell.id],
                seeds=tuple(result.gains.values()),
                verdict=result.verdict,
            )
        )
    for gain in comparison.pooled:
        if (gain.method, gain.variant) not in methods or rows_are_variants:
            continue
        one_panel = len({row["panel"] for row in rows}) == 1
        if one_panel and metrics == (gain.metric,) and not gain.over and len(gain.pooled.rows) > 1:
            rows.append(
                GainRow(
                    pair=f"mean of {len(gain.pooled.rows)} pairs",
                    method=labels[gain.method, gain.variant],
                    published=gain.published if plan.by_value else math.nan,  # means can agree where no pair does
                    measured=gain.pooled.estimate.mean,
                    low=gain.pooled.estimate.shown.low,
                    high=gain.pooled.estimate.shown.high,
                    pooled=True,
                    panel=rows[0]["panel"],
                    seeds=(),
                    verdict="",
                )
            )
    signs = "Whiskers: the 95 % intervals over seeds that judge gains"
    if comparison.looks is not None:
        signs += " at the look that decided, which may be earlier than the point, of all seeds; dots: seeds, where few"
    signs += "; dots: seeds" if comparison.looks is None and len(plan.seeds) <= FEW_SEEDS else ""
    if any(not math.isnan(row["published"]) for row in rows):
        signs += "; hollow: published." if others else "; hollow: the paper's gain."
        signs += "" if plan.by_value else " Measured gains are compared with published ones by direction only."
    signs = signs.rstrip(".") + (". All methods: gains.png and ranking.png." if others else ".")
    comparison_figure(
        rows,
        path,
        title=finding(plan, comparison, metrics),
        caption=f"{scale(plan, metrics)} {signs}",
        unit="nats" if metrics == ("nll",) else "points",
    )


def sweep(results: Sequence[CellResult]) -> tuple[str, dict[str, list[CellResult]]] | None:
    """The option that all rows of a table vary and the cells by what they have in common, if that is what they do."""
    found = [(result, VARIED.fullmatch(result.cell.row_label[1])) for result in results]
    names = {match["name"] if match else "" for _, match in found}
    values = {match["value"] for _, match in found if match}
    if len(names) != 1 or "" in names or len(values) < SWEPT:
        return None
    series: dict[str, list[CellResult]] = {}
    for result, _ in found:
        series.setdefault(result.cell.row_label[0], []).append(result)
    return names.pop(), series


def draw_sweep(
    plan: Plan,
    comparison: Comparison,
    path: Path,
    metrics: tuple[str, ...],
    name: str,
    series: Mapping[str, Sequence[CellResult]],
) -> None:
    """Gains over the values of an option."""
    from analysis.charts import SweepPoint, sweep_figure

    points = {
        label: [
            SweepPoint(
                at=float(result.cell.row_label[1].split()[-1]),
                published=math.nan if result.doubted else result.published_gain,
                measured=result.gain.mean,
                low=result.drawn_gain.low,
                high=result.drawn_gain.high,
                seeds=tuple(result.gains.values()),
            )
            for result in results
        ]
        for label, results in series.items()
    }
    over = " ".join(dict.fromkeys(panels(plan, [r for each in series.values() for r in each]).values()))
    sweep_figure(
        points,
        path,
        name=name,
        unit="points",
        title=finding(plan, comparison, metrics),
        caption=f"{scale(plan, metrics)} {over}. Whiskers: 95 % intervals over seeds; dots: seeds; hollow: "
        "the paper's gain.",
    )


def panels(plan: Plan, results: Sequence[CellResult]) -> dict[tuple[str, str, str], str]:
    """Title of the panel that each cell's gain stands in: the paper's table where a label names it, and the baseline.

    A baseline in the same row is named ("over Masked pixels"); if every row has one of its own, they are "over the
    row's own baseline", and named once where they are few.
    """
    labels = {cell.id: cell for cell in plan.cells}
    titles: dict[tuple[str, str, str], tuple[str, str]] = {}
    for result in results:
        cell = result.cell
        assert cell.baseline is not None
        baseline = labels.get(cell.baseline)
        if baseline is None:
            name = ""
        elif cell.baseline[0] == cell.row:
            name = baseline.label
        else:
            name = NUMBER.sub("", baseline.row_label[1])
        found = NUMBER.search(pair(cell))
        titles[cell.id] = (found[1] if found else "", name)
    names: dict[str, dict[str, None]] = {}
    for table, name in titles.values():
        names.setdefault(table, {})[name] = None
    same_row = all(result.cell.baseline and result.cell.baseline[0] == result.cell.row for result in results)
    found_titles = {}
    for key, (table, name) in titles.items():
        over = f"“{name}”" if same_row or len(names[table]) == 1 else " or ".join(f"“{each}”" for each in names[table])
        over = "the row's own baseline" if not same_row and len(names[table]) > MOST_BASELINES else over
        found_titles[key] = f"{table}: gain over {over}" if table else f"Gain over {over}"
    return found_titles


def finding(plan: Plan, comparison: Comparison, metrics: tuple[str, ...]) -> str:
    """Title of a picture of gains: which table, the metric, and how many published gains held; then what it is of."""
    counts = Counter(r.verdict for r in comparison.cells if r.cell.metric in metrics and r.verdict in JUDGED)
    name, _, rest = plan.title.partition(": ")
    metric = f", {metric_name(metrics[0])}" if len(metrics) == 1 and len(plan.metrics) > 1 else ""
    if not counts:
        return f"{plan.title}{metric}\n{plan.here}".rstrip()
    parts = [f"{counts[word]} {'hold' if word == HOLDS else word}" for word in JUDGED if counts[word]]
    rest = f"{rest[:1].upper()}{rest[1:]}." if rest else ""
    return f"{name}{metric}: of {counts.total()} published gains {', '.join(parts)}\n{rest} {plan.here}".rstrip()


# -- ranks and the map of gains --------------------------------------------------------------------------------------


def is_ranked(plan: Plan) -> bool:
    """Whether there are methods enough, on pairs enough, for their ranking to say something."""
    return len(methods_of(plan)) >= MANY and len({cell.row for cell in plan.cells}) > 1


def ranking(plan: Plan, comparison: Comparison) -> MeanRanks:
    """Mean ranks of the methods, by printed label, over the rows and in the first metric of a table."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for result in comparison.cells:
        if result.cell.metric == plan.metrics[0] and not result.cell.quoted and not result.cell.instead:
            values.setdefault(result.cell.row, {})[result.cell.label] = result.values
    return mean_ranks(values)


def improvements(plan: Plan, comparison: Comparison) -> dict[str, tuple[Estimate, Estimate, tuple[float, ...]]]:
    """Per printed label, in the first metric: probability of improvement over the baseline and over plain KD, and the
    performance profile of gains; rows of other data are left out.
    """
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    gains: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    labels: dict[tuple[str, str], str] = {}
    baselines: dict[tuple[str, str], tuple[str, str]] = {}
    for result in comparison.cells:
        cell = result.cell
        if cell.metric == plan.metrics[0] and not cell.quoted and not cell.instead:
            which = cell.method, cell.variant
            values.setdefault(which, {})[cell.row] = result.values
            labels[which] = cell.label
            if cell.baseline is not None and cell.baseline[0] == cell.row:
                gains.setdefault(which, {})[cell.row] = result.gains
                baselines.setdefault(which, (cell.baseline[1], cell.baseline[2]))
    plain = values.get(("kd", ""), {})
    return {
        labels[which]: (
            probability_of_improvement(values[which], values.get(baselines[which], {})),
            probability_of_improvement(values[which], plain if which != ("kd", "") else {}),
            performance_profile(gains[which]),
        )
        for which in gains
    }


def over_pairs(plan: Plan, comparison: Comparison) -> str:
    """Mean ranks, probabilities of improvement and performance profiles as Markdown, the best rank first."""
    ranked, better = ranking(plan, comparison), improvements(plan, comparison)
    names = sorted(ranked.ranks, key=lambda name: ranked.ranks[name].mean)
    names += [name for name in better if name not in ranked.ranks]
    lines = []
    for name in names:
        over_base, over_kd, profile = better.get(name, (NOTHING, NOTHING, (math.nan,) * len(GAINS)))
        line = {"Method": name, "mean rank": with_interval(ranked.ranks.get(name, NOTHING))}
        line |= {"P over baseline": share(over_base), "P over KD": share(over_kd)}
        line |= {f"gain > {tau:g}": "" if math.isnan(p) else f"{p:.2f}" for tau, p in zip(GAINS, profile, strict=True)}
        lines.append(line)
    return to_markdown(pd.DataFrame(lines))


def share(estimate: Estimate) -> str:
    """`0.84 [0.71, 0.95]`."""
    if not estimate.n:
        return ""
    return f"{estimate.mean:.2f}" + ("" if estimate.shown.reason else f" [{estimate.low:.2f}, {estimate.high:.2f}]")


def ranks(plan: Plan, ranked: MeanRanks, comparison: Comparison) -> pd.DataFrame:
    """Mean ranks as ranks.csv has them, the best first; methods that lack a pair are not in it."""
    better = improvements(plan, comparison)
    lines = [
        {
            "table": plan.table,
            "method": label,
            "mean_rank": rank.mean,
            "ci_low": rank.low,
            "ci_high": rank.high,
            "n_seeds": rank.n,
            "n_pairs": len(ranked.pairs),
            **improvement_numbers(*better.get(label, (NOTHING, NOTHING, ()))),
        }
        for label, rank in sorted(ranked.ranks.items(), key=lambda item: item[1].mean)
    ]
    columns = ["table", "method", "mean_rank", "ci_low", "ci_high", "n_seeds", "n_pairs"]
    return pd.DataFrame(lines, columns=[*columns, *improvement_numbers(NOTHING, NOTHING, ())])


def improvement_numbers(over_base: Estimate, over_kd: Estimate, profile: tuple[float, ...]) -> dict[str, float]:
    """Probabilities of improvement and shares of runs with a gain, by their columns in ranks.csv."""
    shares = profile or (math.nan,) * len(GAINS)
    return {
        "p_over_baseline": over_base.mean,
        "p_over_baseline_low": over_base.low,
        "p_over_baseline_high": over_base.high,
        "p_over_kd": over_kd.mean,
        "p_over_kd_low": over_kd.low,
        "p_over_kd_high": over_kd.high,
        **{f"share_gain_above_{tau:g}": value for tau, value in zip(GAINS, shares, strict=True)},
    }


def draw_ranking(plan: Plan, ranked: MeanRanks, path: Path) -> None:
    """ranking.png: mean ranks with their intervals."""
    from analysis.charts import RankRow, ranking_figure

    own = {cell.label for cell in plan.cells if (cell.method, cell.variant) == (plan.paper, "")}
    rows = [
        RankRow(method=label, rank=rank.mean, low=rank.shown.low, high=rank.shown.high, own=label in own)
        for label, rank in ranked.ranks.items()
    ]
    without = f" Without {listed(ranked.left_out)}: not measured on every pair." if ranked.left_out else ""
    ranking_figure(
        rows,
        path,
        title=plan.heading,
        caption=f"{scale(plan)} Methods are ranked within each pair and seed, over {len(ranked.pairs)} pairs. "
        f"Whiskers: 95 % t-intervals over seeds.{without}",
    )


def draw_map(plan: Plan, comparison: Comparison, path: Path) -> None:
    """gains.png: the gain of every method on every pair."""
    from analysis.charts import MapCell, gain_map

    results = [
        result
        for result in comparison.cells
        if result.cell.metric == plan.metrics[0] and result.cell.baseline and not result.cell.quoted
    ]
    here = {result.cell.row for result in results if not result.cell.refused}
    columns = {result.cell.label for result in results if not result.cell.refused}
    cells = [
        MapCell(
            pair=pair(result.cell),
            method=result.cell.label,
            gain=result.gain.mean,
            sure=result.shown_gain.sign != 0,
            refused=result.status == NOT_APPLICABLE,
            untold=bool(result.judged.cannot_tell),
        )
        for result in results
        if result.cell.row in here and result.cell.label in columns
    ]
    absent = dict.fromkeys(pair(result.cell) for result in results if result.cell.row not in here)
    notes = f" Not in this profile: {', '.join(absent)}." if absent else ""
    notes += " Hatched: not applicable (the reasons are under the table)." if any(c["refused"] for c in cells) else ""
    notes += (
        " Italics: this set-up cannot tell (reasons under the table)." if any(c.get("untold") for c in cells) else ""
    )
    titles = dict.fromkeys(panels(plan, results).values())
    over = next(iter(titles)).removeprefix("Gain over ") if len(titles) == 1 else "the row's own baseline"
    gain_map(
        cells,
        path,
        title=plan.heading,
        caption=f"{scale(plan)} Gain over {over} in points; bold where its 95 % interval excludes 0. "
        f"Blue gains, red loses.{notes}",
    )


def scale(plan: Plan, metrics: tuple[str, ...] = ()) -> str:
    """Profile, seeds and metric (the first unless given; several are named by their rows) as a caption begins."""
    shown = f"; {metric_name((metrics or plan.metrics)[0])}" if len(metrics) < 2 else ""
    return f"Profile {plan.profile}, {seeds_said(plan)}{shown}."
