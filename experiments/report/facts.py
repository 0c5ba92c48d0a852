"""What pages say of a cell, a run, a row or a table: the values, words and small pictures that templates are given."""

import ast
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from markupsafe import Markup
from scipy import stats as distributions

from experiments.planning import schema, standins
from experiments.planning.plan import Cell
from experiments.records.committed import processor
from experiments.records.store import Record
from experiments.report import svg, words
from experiments.report.gather import Entry
from experiments.report.svg import number
from experiments.results.caption import LOSSES, heading, listed, metric_name
from experiments.results.claims.documents import Value
from experiments.results.compare import HERE, CellResult
from experiments.results.overview import compared_runs, in_turn
from experiments.results.render import is_ranked, methods_of, ranking
from experiments.results.stats import LEVEL, Estimate
from experiments.results.verdicts import CANNOT_TELL, SMALLEST_GAIN
from hkd.methods import METHODS

METHOD_FILES = Path(__file__).parents[2] / "hkd" / "methods"
MOST_SEEDS = 100  # more than these are not foretold
FARTHEST = 5.0  # times the median gain: the edge of an axis
CHARTS = 2  # series of curves that are drawn


def profile_facts(name: str) -> dict[str, Any]:
    """A profile as its banner names it."""
    chosen = schema.load_profile(name)
    standing_in = standins.of_profile(chosen)
    return {"name": name, "title": chosen.title, "by_value": chosen.by_value, "standing_in": standing_in}


def once(entries: Iterable[Entry]) -> list[CellResult]:
    """All cells, those that several tables print once, as the README counts them (`overview.compared_runs`)."""
    found: dict[Any, CellResult] = {}
    by_name = {entry.name: entry for entry in entries}
    for entry in map(by_name.__getitem__, in_turn(by_name)):
        cells = [result.cell for result in entry.cells]
        for result in entry.cells:
            cell = result.cell
            shared = compared_runs(cell, cells) if cell.runs else (entry.page, *cell.id, cell.metric)
            if shared not in found or not found[shared].verdict:
                found[shared] = result
    return list(found.values())


def anchor(cell: Cell) -> str:
    """The id of a cell in its row; after the row's name it is the cell's in its table."""
    return f"{cell.method}.{cell.variant}.{cell.metric}"


def marked_pair(cell: Cell, entry: Entry) -> str:
    """Teacher and student as printed, with what stands in for them."""
    labels = list(cell.row_label)
    if entry.plan is not None:
        for i, slugs in enumerate((cell.teacher.split("+"), [cell.student])):
            for name, mark in (entry.plan.marks[slug] for slug in slugs if slug in entry.plan.marks):
                labels[i] = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"{name} ({mark})", labels[i], count=1)
    return replace(cell, row_label=(labels[0], labels[1])).pair


def models(entry: Entry) -> str:
    """What stands in for the models of a table."""
    assert entry.plan is not None
    marks = dict.fromkeys(entry.plan.marks.values())
    return f"Models here: {'; '.join(f'{name} → {mark}' for name, mark in marks)}." if marks else ""


def own_runs(entry: Entry) -> str:
    """How many runs are of this machine, where some are."""
    if not entry.own:
        return ""
    return (
        f"{len(entry.own)} of the {len(entry.records)} runs were made on this machine, and take precedence over "
        "committed records."
    )


def going_on(entry: Entry) -> str:
    """How many runs are under way."""
    count = len(entry.under_way)
    return f"{count} run{' has' if count == 1 else 's have'} begun and not ended yet." if count else ""


def axis(results: Sequence[CellResult]) -> float:
    """The half-width of an axis for gains: all intervals, means and published gains lie on it, unless a few are so far
    out that the others could not be told apart; these end at its edge in an arrow."""
    centres = [abs(v) for r in results for v in (r.shown_gain.mean, r.published_gain) if not math.isnan(v)]
    ends = [abs(v) for r in results for v in (r.drawn_gain.low, r.drawn_gain.high) if not math.isnan(v)]
    most = max([*ends, *centres], default=0.0)
    if len(centres) > 3:
        most = min(most, FARTHEST * median(centres))
    return svg.symmetric([most], least=1e-3 if results and results[0].cell.metric in LOSSES else 1.0)


def digits_of(metric: str) -> int:
    """Decimals in tables: one of percent, three of losses; a page shows one more where it gives details."""
    return 3 if metric in LOSSES else 1


def interval_text(estimate: Estimate, unit: str = "", digits: int = 1, *, signed: bool = True) -> str:
    """`+3.9 points [2.6, 5.1]`."""
    text = f"{number(estimate.mean, digits, signed=signed)} {unit}".rstrip()
    estimate = estimate.shown
    if math.isnan(estimate.low):
        return text + (f" (no interval: {estimate.reason})" if estimate.reason else "")
    return f"{text} [{number(estimate.low, digits, signed=signed)}, {number(estimate.high, digits, signed=signed)}]"


def cell_view(entry: Entry, result: CellResult, limit: float, href: str) -> SimpleNamespace:
    """A cell as the lines of tables show it."""
    cell, digits = result.cell, digits_of(result.cell.metric)
    plain = not result.verdict and result.status == "done"
    baseline = plain and cell.baseline is None
    doubt = cell.published.confidence if cell.published and cell.published.confidence != "high" else ""
    return SimpleNamespace(
        id="",
        place="",
        several=False,
        own=any(key in entry.own for key in cell.runs),
        pair=cell.pair,
        label=cell.label,
        added=cell.added,
        metric=metric_name(cell.metric),
        digits=digits,
        published=cell.published.value if cell.published else math.nan,
        doubt=f"{doubt} confidence" if doubt else "",
        measured=result.measured,
        gain=result.shown_gain,
        href=href,
        tip=tip(result, digits + 1),
        strip=""
        if not result.gain.n
        else svg.strip(
            result.drawn_gain.mean,
            result.drawn_gain.low,
            result.drawn_gain.high,
            limit=limit,
            tone=words.word(result.verdict).tone,
            published=result.published_gain,
            seeds=list(result.gains.values()),
            label=f"gain {interval_text(result.shown_gain, '', digits)}"
            + (
                ""
                if math.isnan(result.published_gain)
                else f", published {number(result.published_gain, 1, signed=True)}"
            ),
        ),
        plain=plain,
        word=result.verdict or ("baseline" if baseline else "not judged" if plain else result.status),
        seeds=result.measured.n,
        asked=len(cell.runs),
    )


def published_gain(result: CellResult) -> str:
    """`, published +3.4`, or nothing."""
    gain = result.published_gain
    return "" if math.isnan(gain) else f", published {number(gain, 1, signed=True)}"


def tip(result: CellResult, digits: int) -> str:
    """What hover and focus show of a cell."""
    parts = []
    if result.measured.n:
        seeds = f"{result.measured.n} seed{'s' if result.measured.n > 1 else ''}"
        parts.append(f"Measured {interval_text(result.measured, '', digits, signed=False)}, {seeds}")
    else:
        parts.append(result.status)
    if result.gain.n:
        parts.append(f"gain {interval_text(result.shown_gain, '', digits)}")
    if not math.isnan(result.published_gain):
        parts.append(f"published gain {number(result.published_gain, 2, signed=True)}")
    if result.cell.published:
        parts.append(f"published value: {result.cell.published.source}")
    return "; ".join([*parts, *result.marks, *filter(None, [result.source])]) + "."


def ranks(entry: Entry) -> dict[str, Any]:
    """Mean ranks of a table's methods, the best first, where there are methods and pairs enough."""
    nothing: dict[str, Any] = {"ranks": [], "rank_pairs": 0, "unranked": ""}
    if entry.plan is None or entry.comparison is None or not is_ranked(entry.plan):
        return nothing
    found = ranking(entry.plan, entry.comparison)
    best_first = sorted(found.ranks.items(), key=lambda item: item[1].mean)
    return {"ranks": best_first, "rank_pairs": len(found.pairs), "unranked": listed(found.left_out, most=20)}


def cost_lines(entry: Entry) -> list[dict[str, Any]]:
    """What each method of a table costs; nothing where no cost was kept."""
    frame = entry.costs
    if frame is None or entry.plan is None or len(methods_of(entry.plan)) < 2 or frame["step_ms"].isna().all():
        return []
    labels = {(result.cell.method, result.cell.variant): heading(result.cell) for result in entry.cells}
    lines = []
    for (method, variant), label in labels.items():
        rows = frame[(frame["method"] == method) & (frame["variant"] == variant)]
        line: dict[str, Any] = {"method": method, "variant": variant, "label": label}
        columns = {"step": "step_ratio", "extra": "extra_params_m", "peak": "peak_memory_mib", "cpu": "cpu_s"}
        line |= {name: float(rows[column].median()) for name, column in columns.items()}
        lines.append({**line, "pairs": int((rows["n_seeds"] > 0).sum())})
    return lines


def refusals(results: Sequence[CellResult]) -> list[dict[str, str]]:
    """Reasons why cells were not run, each with its pairs."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        if not result.measured.n and result.status not in ("done", "quoted", "not run"):
            for reason in result.reasons:
                found.setdefault(reason, {})[result.cell.pair] = None
    return [{"reason": reason, "pairs": ", ".join(pairs)} for reason, pairs in found.items()]


def about(method: str) -> str:
    """What a method compares: the first sentence of its file."""
    path = METHOD_FILES / f"{method}.py"
    if method not in METHODS or not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def subject(claim: Any) -> str:
    """The table or figure that a claim is about."""
    return claim.statistic.figure if isinstance(claim.statistic, Value) else claim.statistic.table


# -- one cell in words -------------------------------------------------------------------------------------------------


def row_section(
    entry: Entry, group: Sequence[CellResult], spec: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    """A method in a row: its metrics in words and dots, then the runs that they share.

    Args:
        entry: the table.
        group: cells of the method with its variant, one per metric.
        spec: of its first run, flat; empty where it has none.
        common: the part of it that all runs of the page share.
    """
    first, plan = group[0], entry.plan
    assert plan is not None
    base = next((r for r in entry.cells if r.cell.id == first.cell.baseline), None)
    section: dict[str, Any] = {
        "id": ".".join(filter(None, (first.cell.method, first.cell.variant))),
        "label": first.cell.label,
        "added": first.cell.added,
        "metrics": [metric_part(entry, result) for result in group],
        "reasons": [*first.reasons, *first.marks],
        "base": pair_or_label(first, base),
        "runs": [],
        "where": "",
    }
    keys = [key for key in first.cell.runs if key in plan.runs]
    if not keys:
        return section
    shown = list(dict.fromkeys(result.cell.metric for result in group))
    lines = [run_line(entry, seed, key, shown) for seed, key in zip(plan.seeds, keys, strict=False)]
    theirs = flat_spec(entry, base) if base is not None else {}
    return section | {
        "runs": lines,
        "run_metrics": [metric_name(metric) for metric in shown],
        "needs": [needed(entry, key) for key in plan.runs[keys[0]].needs],
        "charts": charts(entry, keys),
        "differences": different(spec, theirs) if theirs else [],
        "where": lines[0]["where"] if len({line["where"] for line in lines}) == 1 else "",
        "costs": any(line["cpu"] for line in lines),
        "commits": any(line["commit"] for line in lines),
        "spec": listing({name: value for name, value in spec.items() if name not in common}),
    }


def pair_or_label(first: CellResult, base: CellResult | None) -> str:
    """The baseline's name: its method, or its row where that is another one."""
    if base is None:
        return ""
    return base.cell.label if base.cell.row == first.cell.row else base.cell.pair


def metric_part(entry: Entry, result: CellResult) -> dict[str, Any]:
    """A cell in words, and its seeds beside those of its baseline."""
    base = next(
        (r for r in entry.cells if r.cell.id == result.cell.baseline and r.cell.metric == result.cell.metric), None
    )
    dots: Any = ""
    if result.values:
        names = (result.cell.label, pair_or_label(result, base))
        dots = svg.dots(result.values, base.values if base else {}, names, digits_of(result.cell.metric))
    return {
        "id": anchor(result.cell),
        "name": metric_name(result.cell.metric),
        "sentences": in_words(result, base),
        "dots": dots,
    }


def in_words(result: CellResult, base: CellResult | None) -> list[str]:
    """How the cell's value, gain and verdict come about."""
    cell, digits = result.cell, digits_of(result.cell.metric) + 1
    unit = "" if cell.metric in LOSSES else "points"
    found = []
    if cell.published:
        found.append(f"Published: {number(cell.published.value, 2)} ({cell.published.source}).")
    if not result.measured.n:
        return [*found, f"Measured: nothing ({result.status})."]
    seeds = f"{result.measured.n} seed{'s' if result.measured.n > 1 else ''}"
    found.append(f"Measured: {interval_text(result.measured, '', digits, signed=False)}, mean of {seeds}.")
    if result.gain.n and base is not None:
        found.append(
            f"Gain: {cell.label} minus {pair_or_label(result, base)}, seed by seed, then the mean over "
            f"{result.gain.n} seed{'s' if result.gain.n > 1 else ''}: {interval_text(result.shown_gain, unit, digits)}."
        )
        found += by_whom(result, digits)
    if result.judged.cannot_tell and result.verdict != CANNOT_TELL:
        found.append(f"This set-up could not show an effect: {result.judged.cannot_tell.rstrip('.')}.")
    if result.verdict == CANNOT_TELL:
        found.append(f"Cannot tell here: {result.judged.cannot_tell.rstrip('.')}.")
    elif result.verdict:
        meaning = words.word(result.verdict).meaning
        found.append(
            f"{place_of(result)}: {result.verdict}"
            + (f", that is, {meaning}." if meaning else ".")
            + more_seeds(result)
        )
    elif cell.baseline is None:
        found.append("A baseline: it has no gain and no verdict.")
    elif cell.added:
        found.append("Not in the paper, so there is nothing to compare it with.")
    elif math.isnan(result.published_gain):
        found.append("No gain is published for it, so it has no verdict.")
    elif abs(result.published_gain) < SMALLEST_GAIN:
        found.append(f"The published gain is below {SMALLEST_GAIN} points, so its direction is not judged.")
    return found


def by_whom(result: CellResult, digits: int) -> list[str]:
    """Whose spread the interval of a gain uses, beside the plain interval where that is another."""
    if result.judged.by != "moderated t" or math.isnan(result.gain.low):
        return []
    plain = f"[{number(result.gain.low, digits, signed=True)}, {number(result.gain.high, digits, signed=True)}]"
    plain = result.gain.span(digits, "+") or plain
    return [f"Its spread is shared with the table's other gains (moderated); by its own seeds alone: {plain}."]


def place_of(result: CellResult) -> str:
    """Where the gain's interval lies, and where the published gain does."""
    gain = result.shown_gain
    if math.isnan(gain.low):
        text = f"There is no interval ({gain.reason})" if gain.reason else "There is no interval"
    elif gain.few:
        text = f"The interval is not shown: {gain.shown.reason}"
    else:
        where = {1: "lies wholly above 0", -1: "lies wholly below 0", 0: "includes 0"}[gain.sign]
        text = f"The interval [{number(gain.low, signed=True)}, {number(gain.high, signed=True)}] {where}"
    if math.isnan(result.published_gain):
        return text
    return f"{text}; the published gain is {number(result.published_gain, 2, signed=True)}"


def more_seeds(result: CellResult) -> str:
    """How many more seeds would put the interval on one side of 0 if mean and spread stayed; "" if it is there."""
    gain, spread = result.shown_gain, result.judged.spread
    if gain.n < 2 or math.isnan(gain.low) or gain.few or gain.sign or not gain.mean or spread is None:
        return ""
    level = (1 + LEVEL) / 2
    for more in range(1, MOST_SEEDS + 1):
        half = distributions.t.ppf(level, spread.df + more) * math.sqrt(spread.variance / (gain.n + more))
        if half < abs(gain.mean):
            return f" With this mean and spread about {more} more seed{'s' if more > 1 else ''} would exclude 0."
    return f" With this mean and spread not even {MOST_SEEDS} more seeds would exclude 0."


def run_line(entry: Entry, seed: int, key: str, metrics: Sequence[str]) -> dict[str, Any]:
    """A run in a line."""
    record = entry.records.get(key)
    if record is None:
        epoch = entry.under_way.get(key)
        status = "not run" if epoch is None else "under way"
        reason = "" if epoch is None else f"epoch {epoch}"
        values = ["" for _ in metrics]
        return {"seed": seed, "key": key, "status": status, "reason": reason, "metrics": values} | dict.fromkeys(
            ("cpu", "commit", "where"), ""
        )
    numbers = (record.metrics.get(metric, math.nan) for metric in metrics)
    dirty = " with changes" if record.environment.get("dirty") else ""
    commit = str(record.environment.get("commit") or "")[:7]
    return {
        "seed": seed,
        "key": key,
        "status": record.status,
        "reason": record.reason or "",
        "metrics": [number(value, digits_of(metric) + 1) for value, metric in zip(numbers, metrics, strict=True)],
        "cpu": number(record.cost.get("cpu_s", math.nan)),
        "commit": commit + dirty if commit else "",
        "where": record.committed or f"{HERE} {ended(record)}",
    }


def ended(record: Record) -> str:
    """The day on which a run of this machine ended."""
    return datetime.fromtimestamp(record.finished, UTC).date().isoformat()


def needed(entry: Entry, key: str) -> str:
    """A run that others need."""
    assert entry.plan is not None
    record = entry.records.get(key)
    label = entry.plan.runs[key].label or key
    if record is None:
        return f"{label} ({key}, not run)"
    values = ", ".join(f"{metric_name(name)} {number(value, 2)}" for name, value in sorted(record.metrics.items())[:3])
    return f"{label} ({key}, {', '.join(filter(None, [record.status, values]))})"


def charts(entry: Entry, keys: Sequence[str]) -> list[Markup]:
    """The curves of a cell's runs, also of those under way: whole losses and accuracies, not the terms of a loss."""
    assert entry.plan is not None
    series: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for seed, key in zip(entry.plan.seeds, keys, strict=False):
        for line in entry.curves.get(key, ()):
            for name, value in line.items():
                if "/" in name or name in ("epoch", "seconds", "lr") or not isinstance(value, int | float):
                    continue
                if math.isfinite(value):
                    series.setdefault(name, {}).setdefault(seed, []).append((float(line["epoch"]), float(value)))
    first = sorted(series, key=lambda name: (name != "loss", name != "val_top1", name))[:CHARTS]
    return [svg.curves(name.replace("_", " "), series[name]) for name in first]


def flat(document: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A document of documents as one of dotted names."""
    found: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{above}{name}.")
        else:
            found[above + name] = value
    return found


def flow(value: Any) -> str:
    """A document in one line, as YAML writes it but for quotes; names in order."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {flow(value[name])}" for name in sorted(value)) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def flat_spec(entry: Entry, result: CellResult) -> dict[str, Any]:
    """The specification of a cell's first run, its seed aside, with dotted names; empty where there is none."""
    assert entry.plan is not None
    key = next((key for key in result.cell.runs if key in entry.plan.runs), None)
    if key is None:
        return {}
    return {name: value for name, value in flat(asdict(entry.plan.runs[key].spec)).items() if name != "seed"}


def common_part(specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several flat specifications have in common; nothing of one alone."""
    if len(specs) < 2:
        return {}
    return {name: v for name, v in specs[0].items() if all(name in spec and spec[name] == v for spec in specs[1:])}


def listing(spec: Mapping[str, Any]) -> str:
    """A flat specification, a line for each group of names that have their beginning in common."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in spec.items():
        group, _, field = name.rpartition(".")
        groups.setdefault(group, {})[field] = value
    return "\n".join(f"{group + ': ' if group else ''}{flow(fields)[1:-1]}" for group, fields in groups.items())


def different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Names whose values differ, with both values; of a teacher that only one has, its name stands for all of it."""

    def shown(document: Mapping[str, Any], name: str) -> str:
        return flow(document[name]) if name in document else "–"

    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    details = re.compile(r"teachers\.[^.]+\.model\.(?!name$)")
    return [(name, shown(ours, name), shown(theirs, name)) for name in names if not details.match(name)]


def environments(records: Iterable[Record]) -> list[str]:
    """Each machine and set of library versions that runs ran with, once."""
    found: dict[str, None] = {}
    for record in records:
        facts = record.environment
        versions = ", ".join(f"{name} {version}" for name, version in sorted(facts.get("versions", {}).items()))
        found[f"{'; '.join(filter(None, [str(facts.get('device', '')), processor(facts), versions]))}."] = None
    return list(found)
