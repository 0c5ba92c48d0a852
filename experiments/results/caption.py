"""The sentences under a table: what was run, on what, for how long, and how its numbers are to be read."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from experiments.planning.plan import Cell, Plan
from experiments.records.store import Record
from experiments.results.assay import Control, copies_outputs, least, teacher_value
from experiments.results.compare import CellResult, Comparison, PooledGain, Ranks, sources
from experiments.results.judging import Stop
from experiments.results.statements import several
from experiments.results.stats import Estimate
from experiments.results.verdicts import CANNOT_TELL, NO_EFFECT, TOO_NOISY, UNVERIFIED
from hkd.spec import RunSpec

METRIC_NAMES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "ap_box": "box AP",
    "ap_box_small": "box AP of small objects",
    "ap_box_medium": "box AP of medium objects",
    "ap_box_large": "box AP of large objects",
    "ap_mask": "mask AP",
    "ap_mask_small": "mask AP of small objects",
    "ap_mask_medium": "mask AP of medium objects",
    "ap_mask_large": "mask AP of large objects",
    "miou": "mean IoU",
    "top1_corrupted": "top-1 accuracy under corruption",
    "top1_noise": "top-1 accuracy under noise",
    "top1_blur": "top-1 accuracy under blur",
    "top1_contrast": "top-1 accuracy with less contrast",
    "ece": "calibration error (ECE, lower is better)",
}
LOSSES = {
    "heldout_loss": "loss on held-out images",
    "nll": "negative log-likelihood (lower is better)",
}  # metrics that are not percent


def caption(plan: Plan, records: Mapping[str, Record], comparison: Comparison) -> list[str]:
    """The sentences under the table: what was run, on what, for how long, and how to read it."""
    used = {key: records[key] for key in plan.runs if key in records and records[key].status == "done"}
    measured = {key for cell in plan.cells for key in cell.runs}
    sentences = [setting(plan), *overridden(plan), *protocol(plan), *plan.captions, *other_rows(plan), *apart(plan)]
    sentences += origin([records[key] for key in plan.runs if key in records])
    sentences += machine(list(used.values()), teachers=not measured.issuperset(used))
    sentences += teachers(plan, records)
    sentences += sensitivity(plan, records, comparison)
    sentences += reading(plan, comparison)
    sentences += over_table(comparison)
    sentences += [
        pooled_sentence(plan, gain)
        for gain in comparison.pooled
        if gain.pooled.rows and gain.over and (gain.method, gain.variant) == (plan.paper, "")
    ]
    sentences += [order(ranks) for ranks in comparison.ranks]
    return sentences + remarks(comparison)


def setting(plan: Plan) -> str:
    """Profile, data, seeds and epochs."""
    specs = training_specs(plan)
    data = ", ".join(sorted({spec.data.name for spec in specs})) or "none"
    epochs = sorted({spec.recipe.epochs for spec in specs if spec.recipe})
    length = f"{epochs[0]} to {epochs[-1]} epochs" if len(epochs) > 1 else f"{(epochs or [0])[0]} epochs"
    percent = ", ".join(metric_name(metric) for metric in plan.metrics if metric not in LOSSES)
    losses = ", ".join(metric_name(metric) for metric in plan.metrics if metric in LOSSES)
    metric = "; ".join(filter(None, (percent and f"{percent} in percent, gains in points", losses)))
    seeds = f"{seeds_said(plan)} ({spans(plan.seeds)})"
    return f"Profile {plan.profile}; data: {data}; {metric}; {seeds}; {length} per student."


def seeds_said(plan: Plan) -> str:
    """`5 seeds`, or `5 to 27 seeds` where rows have different ones."""
    of_rows = sorted({len(cell.runs) for cell in plan.cells if cell.runs})
    fewest = f"{of_rows[0]} to " if len(of_rows) > 1 else ""
    return f"{fewest}{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"


def training_specs(plan: Plan) -> list[RunSpec]:
    """Specs of the runs that cells are measured by, or, where none of these trains, of those that it measures again."""
    specs = [plan.runs[key].spec for cell in plan.cells for key in cell.runs]
    if any(spec.recipe for spec in specs):
        return specs
    before = [spec.init.id for spec in specs if spec.init is not None and spec.init.kind == "run"]
    return [plan.runs[key].spec for key in before if key in plan.runs] or specs


def protocol(plan: Plan) -> list[str]:
    """What readers of distillation papers ask first: at which epoch, chosen how, at which batch, by which teachers."""
    specs = training_specs(plan)
    recipes = [spec.recipe for spec in specs if spec.recipe]
    sentences = []
    if recipes:
        batches = sorted({recipe.batch_size for recipe in recipes})
        size = f"{batches[0]} to {batches[-1]}" if len(batches) > 1 else f"{batches[0]}"
        sentences.append(
            "Every student is measured once, after its last epoch, never at the epoch that is best on test images; "
            f"global batch {size}."
        )
    if plan.chosen:
        sentences.append(plan.chosen)
    teachers = [plan.runs[key].spec for key in plan.teachers.values()]
    if teachers:
        seeds = sorted({spec.seed for spec in teachers})
        trained = f"trained once, with seed {spans(seeds)}, and " if any(spec.recipe for spec in teachers) else ""
        sentences.append(
            f"Teachers are {trained}the same in every seed: what another teacher would change is not in ±."
        )
    return sentences


def apart(plan: Plan) -> list[str]:
    """Rows whose data are others than the table's."""
    labels: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        if cell.instead:
            labels.setdefault(cell.instead, {})[cell.pair] = None
    return [
        f"On other data than the table ({data}), and in no mean, rank or count over pairs: {listed([*rows], most=20)}."
        for data, rows in labels.items()
    ]


def sensitivity(plan: Plan, records: Mapping[str, Record], comparison: Comparison) -> list[str]:
    """What the set-up showed of itself, and which cells it cannot tell of."""
    if plan.assay is None or not comparison.judgement.cells:
        return []
    chance = max((cell.chance for cell in plan.cells if cell.chance is not None), default=0.0)
    bound, times = least(chance, plan.assay), plan.assay.chances * chance
    lower = f"{bound:.1f} %" if bound < times - 1e-6 else f"{plan.assay.chances:g} × chance"  # of few classes
    asked = [f"the student alone lies between {lower} and {plan.assay.ceiling:g} %"]
    asked.append(f"a teacher whose outputs are copied is {plan.assay.lead:g} points better")
    asked += [f"{name} reaches {floor:g}" for name, floor in plan.assay.floors.items() if name in plan.metrics]
    failed = [r for r in comparison.cells if r.judged.cannot_tell]
    judged = len(comparison.judgement.cells)
    text = f"Assay sensitivity, asked before any verdict ({'; '.join(asked)}): "
    reasons: dict[str, list[str]] = {}
    for result in failed:
        reasons.setdefault(result.judged.cannot_tell, []).append(f"{result.cell.row} {result.cell.label}")
    told = [f"{listed(cells, most=4)} ({reason})" for reason, cells in reasons.items()]
    copied = [r.cell for r in comparison.cells if r.judged.estimate.n and copies_outputs(r.cell, plan)]
    unseen = sum(math.isnan(teacher_value(cell, plan, records)) for cell in copied)
    text += f"{judged - len(failed)} of {judged} gains pass"
    text += f" (of {unseen} the teacher's value is not in the records, and not asked)" if unseen else ""
    text += f"; {CANNOT_TELL}: {'; '.join(told)}." if told else "."
    return [text, control_sentence(plan, comparison.judgement.controls)]


def control_sentence(plan: Plan, controls: Sequence[Control]) -> str:
    """The positive controls and their mean gains."""
    assert plan.assay is not None
    if not controls:
        names = ", ".join(plan.assay.controls_of(plan.table)) or "none named by the profile"
        return f"Positive controls: no column of this table is one ({names}), so that is not asked."
    texts = [
        f"{control.label}{f' on {control.data}' if control.data else ''} "
        f"{gain_text(control.gain)}" + ("" if len(plan.metrics) == 1 else f" ({metric_name(control.metric)})")
        for control in controls
    ]
    return f"Positive controls, of which one mean gain must be decided: {', '.join(texts)}."


def overridden(plan: Plan) -> list[str]:
    """What the recipes do not have from the profile."""
    if not plan.overridden:
        return []
    return [f"Overridden in the recipes of profile {plan.profile}: {', '.join(plan.overridden)}."]


def other_rows(plan: Plan) -> list[str]:
    """Which rows' gains are over another row, by their labels."""
    labels = {cell.row: " ".join(filter(None, cell.row_label)) for cell in plan.cells}
    over: dict[str, list[str]] = {}
    for cell in plan.cells:
        if cell.baseline and cell.baseline[0] != cell.row:
            rows = over.setdefault(labels[cell.baseline[0]], [])
            if labels[cell.row] not in rows:
                rows.append(labels[cell.row])
    return [f"Gains over the row '{base}': {listed(rows, most=20)}." for base, rows in over.items()]


def spans(numbers: Iterable[int]) -> str:
    """Consecutive numbers as one span: 0–4, 1000–1002."""
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    return ", ".join(str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}" for group in groups)


def origin(records: Sequence[Record]) -> list[str]:
    """That not all was measured on this machine, where it was not, and which records stand for it."""
    committed = [record for record in records if record.committed is not None]
    if not committed:
        return []
    every = len(committed) == len(records)
    which = f"None of the {len(records)} runs was" if every else f"{len(committed)} of the {len(records)} runs were not"
    they = "they" if every else "those"
    return [f"{which} measured here: {they} are from results/reference/ ({sources(committed)})."]


def machine(used: Sequence[Record], *, teachers: bool) -> list[str]:
    """Where and how long the runs ran, as far as that is known.

    Args:
        used: records of runs that are done.
        teachers: teachers' runs are among them.
    """
    if not used:
        return ["Nothing has been run yet."]
    cpus = sorted({str(r.environment["cpu"]) for r in used if r.environment.get("cpu")})
    on_gpu = [r for r in used if r.environment.get("device", "cpu") != "cpu"]
    gpus = sorted({name for r in on_gpu for name in r.environment.get("gpu") or ()})
    cores = sorted({int(r.environment["cores"]) for r in used if r.environment.get("cores")})
    machines = ", ".join(cpus) or "not recorded"
    if cores:
        machines += f", {'–'.join(map(str, sorted({cores[0], cores[-1]})))} core{'s' if cores[-1] > 1 else ''}"
    if gpus:
        machines += f"; {', '.join(gpus)}"
    for name in ("torch", "timm"):
        versions = {str(r.environment.get("versions", {}).get(name)) for r in used} - {"None"}
        machines += f"; {name} {' and '.join(sorted(versions))}" if versions else ""
    took = []
    if not any(r.committed for r in used):  # of committed records only the day is known
        minutes = union_seconds([(r.started, r.finished) for r in used]) / 60
        took.append(f"wall time {minutes:.1f} min (pauses between runs not counted)")
    if counted := [r.cost["cpu_s"] for r in used if "cpu_s" in r.cost]:
        of = f" of {len(counted)} of them, the others were not counted" if len(counted) < len(used) else ""
        took.append(f"{sum(counted) / 60:.1f} CPU min{of}")
    if hours := sum(r.cost.get("gpu_s", 0.0) for r in used) / 3600:
        took.append(f"{hours:.1f} GPU h")
    runs = f"{len(used)} runs behind this table" + (", teachers included" if teachers else "")
    return [f"Machine: {machines}.", f"{runs}{': ' if took else ''}{'; '.join(took)}."]


def union_seconds(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of time intervals: runs side by side count once, pauses between runs not at all."""
    total, end = 0.0, -math.inf
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def teachers(plan: Plan, records: Mapping[str, Record]) -> list[str]:
    """The teachers' accuracies, measured before they taught."""
    committed = any(record.committed for record in records.values())
    absent, where = ("not in the committed records", "") if committed else ("not measured", " here")
    labels: dict[str, set[str]] = {}  # rows may say more than the name: "Swin-T, Aircraft", "Swin-T, Cars"
    for cell in plan.cells:
        labels.setdefault(cell.teacher, set()).add(cell.row_label[0])
    heads = {slug: {label.partition(", ")[0] for label in found} for slug, found in labels.items() if len(found) > 1}
    named = {slug: next(iter(found)) for slug, found in (labels | heads).items() if len(found) == 1}
    texts = []
    # One teacher may be named on several data sets (labelled and not) and be the same run.
    slugs = {key: slug.partition("@")[0] for slug, key in plan.teachers.items()}
    several = {slug for slug, count in Counter(slugs.values()).items() if count > 1}
    for key, slug in slugs.items():
        record = records.get(key)
        values = record.metrics if record and record.status == "done" else {}
        main = next((metric for metric in (*plan.metrics, "top1") if metric in values), None)
        spec = plan.runs[key].spec
        name = named.get(slug, slug) + (f" on {spec.data.name}" if slug in several else "")
        how = " (linear probe)" if spec.task == "probe" else ""
        texts.append(f"{name} {values[main]:.2f}{how}" if main else f"{name} {absent}")
    return [f"Teachers, re-measured{where} on the same test images: {', '.join(texts)}."] if texts else []


def reading(plan: Plan, comparison: Comparison) -> list[str]:
    """How values, intervals and verdicts are to be read."""
    margins = sorted({plan.margins[metric] for metric in plan.metrics if metric in plan.margins})
    margin = f"±{' or '.join(f'{each:g}' for each in margins)} points" if margins else ""
    words = f"; {NO_EFFECT}: its interval lies inside {margin}; {TOO_NOISY}: it reaches beyond" if margin else ""
    if plan.by_value:
        compared = (
            "Compared by value: reproduced means within the larger of 0.5 points and the half-width of the interval."
        )
    else:
        compared = (
            f"Values of profile {plan.profile}{' so overridden' if plan.overridden else ''} are not of the paper's "
            f"setting: they are compared with published ones by direction only (sign of the gain{words})."
        )
    sentences = [
        compared,
        "± of values is the half-width of a 95 % t-interval over seeds; gains are paired by seed. A seed draws the "
        "student's initialisation, the labelled subset and the data order; teacher and test set are fixed.",
        *judging(comparison),
        *too_few(comparison),
    ]
    counts = comparison.counts("verdict")
    if counts:
        sentences.append(
            "Verdicts, each of its own cell and not corrected for their number: "
            + ", ".join(f"{name} {number}" for name, number in counts.items())
            + "."
        )
    if any(r.cell.published and r.cell.published.confidence == "medium" for r in comparison.cells):
        sentences.append(
            "Published values marked medium confidence come from a secondary source; their verdicts count."
        )
    if any(r.cell.published and r.cell.published.confidence == "low" for r in comparison.cells):
        sentences.append(
            f"Published values marked {UNVERIFIED} could not be confirmed and give no verdict on the paper."
        )
    return sentences + replicated(plan)


def replicated(plan: Plan) -> list[str]:
    """Who measured the replicated values."""
    attempts = dict.fromkeys(f"{each.who}, {each.source}" for cell in plan.cells for each in cell.replicated)
    if not attempts:
        return []
    return [
        "Replicated values are third parties' with the official code, and enter nothing else: "
        f"{listed([*attempts], '; ', most=20)}."
    ]


def judging(comparison: Comparison) -> list[str]:
    """Which interval stands beside gains and judges them."""
    by = Counter(result.judged.by for result in comparison.cells if result.judged.by)
    if not by:
        return []
    if comparison.looks is not None:
        looks = comparison.looks
        stops = Counter(each.stopped for each in comparison.judgement.cells.values())
        told: dict[Stop, str] = {
            "decided": "decided",
            "no effect": "no effect beyond the margin",
            "budget": "ended by the budget",
            "open": "still open",
            "cannot tell": CANNOT_TELL,
        }
        seeds = ", ".join(map(str, looks.looks[: looks.taken]))
        return [
            f"Seeds were bought: {looks.taken} of {len(looks.looks)} looks, at {seeds} seeds (planned: "
            f"{', '.join(map(str, looks.looks))}), 5 % error over all looks (Pocock's form of spending); ± of gains is "
            "that of the repeated interval at a cell's last look. Means over pairs use the seeds of the first look.",
            "Cells: " + ", ".join(f"{told[stop]} {stops[stop]}" for stop in told if stops[stop]) + ".",
        ]
    warned = []
    if comparison.bought is not None:
        looks = comparison.bought
        warned.append(
            f"This table was looked at {looks.taken} times, up to {looks.seeds} seeds (--until decided); what stands "
            "here is a fixed design, whose number of seeds must not have been chosen by what those looks showed."
        )
    if not by["moderated t"]:
        plain = "± of gains, which judges them, is the plain t-interval: too few gains to share their spread."
        return [plain, *warned]
    own = f"; {by['plain t']} much noisier or collapsed ones keep their own" if by["plain t"] else ""
    return [
        f"± of gains, which judges them, is the half-width of a moderated 95 % interval: the gains of a metric share "
        f"what they know of their spread (Smyth 2004, robust{own}). table.csv has the plain one beside it.",
        *warned,
    ]


def too_few(comparison: Comparison) -> list[str]:
    """What stands where two seeds would give an interval that says next to nothing."""
    if not any(result.measured.few or result.shown_gain.few for result in comparison.cells):
        return []
    return [
        "n=2: two seeds alone say too little of their spread (their interval is 12.7 standard errors to each side), so "
        "the lower and the higher value are printed in its place; table.csv has the interval."
    ]


def over_table(comparison: Comparison) -> list[str]:
    """What stands of the table's gains once their number is allowed for; not where looks were taken."""
    tested = [r for r in comparison.cells if not math.isnan(r.judged.p) and not kept_out(r)]
    found = several([r.judged.p for r in tested])
    if comparison.looks is not None or found.tests < 2:
        return []
    return [
        f"Of {found.tests} gains that this set-up can tell of, {found.alone} differ from 0 each for itself; with the "
        f"table's number of tests allowed for, {found.holm} (Holm: none wrong with 95 %) or {found.false_discovery} "
        "(Benjamini-Hochberg: at most 5 % of them wrong)."
    ]


def kept_out(result: CellResult) -> bool:
    """Whether a cell has no part in what is said of its whole table."""
    return bool(result.judged.cannot_tell or result.cell.instead)


def pooled_sentence(plan: Plan, gain: PooledGain) -> str:
    """What the paper's method adds to plain KD, whatever it is."""
    labels, pooled = {(cell.method, cell.variant): cell.label for cell in plan.cells}, gain.pooled
    metric = f" ({metric_name(gain.metric)})" if len(plan.metrics) > 1 else ""
    unit = "" if gain.metric in LOSSES else " points"
    return (
        f"{labels[gain.method, gain.variant]} minus {labels[gain.over, '']}{metric}, mean of {len(pooled.rows)} "
        f"pair{'s' if len(pooled.rows) > 1 else ''}: {pooled.estimate.mean:+.2f}{unit}, "
        f"95 % over seeds {interval(pooled.estimate)}."
    )


def pooled_texts(plan: Plan, gain: PooledGain) -> dict[str, str]:
    """One line of the table of pooled gains."""
    labels = {(cell.method, cell.variant): heading(cell) for cell in plan.cells}
    pooled = gain.pooled
    return {
        "Gain of": labels[gain.method, gain.variant],
        "over": labels[gain.over, ""] if gain.over else "baseline",
        "metric": metric_name(gain.metric) if len(plan.metrics) > 1 else "",
        "pairs": f"{len(pooled.rows)}" + (f" (without {listed(pooled.left_out)})" if pooled.left_out else ""),
        "points": f"{pooled.estimate.mean:+.2f}",
        "95 % over seeds": interval(pooled.estimate),
        "95 % over test images": interval(pooled.images) if pooled.images else "",
        "SD over pairs": "" if math.isnan(pooled.spread) else f"{pooled.spread:.2f}",
        "published": "" if math.isnan(gain.published) else f"{gain.published:+.2f}",
    }


def interval(estimate: Estimate) -> str:
    """`[+0.31, +2.09]`, or why there is none."""
    estimate = estimate.shown
    if estimate.reason:
        return f"none: {estimate.reason}"
    return f"[{estimate.low:+.2f}, {estimate.high:+.2f}]"


def gain_text(estimate: Estimate) -> str:
    """`+1.20 [+0.31, +2.09]`, or `+1.20 (n=2: +1.00 to +1.40)` where the interval would not inform."""
    return with_interval(estimate, signed=True) if estimate.few else f"{estimate.mean:+.2f} {interval(estimate)}"


def order(ranks: Ranks) -> str:
    """How far larger published gains go with larger measured ones."""
    found, where = ranks.correlation, f" of {ranks.label}" if ranks.label else ""
    return (
        f"Order of published and measured gains{where} ({metric_name(ranks.metric)}, {found.n} cells): "
        f"Kendall's tau {found.tau:+.2f} (p = {found.tau_p:.2g}), "
        f"Spearman's rho {found.rho:+.2f} (p = {found.rho_p:.2g})."
    )


def remarks(comparison: Comparison) -> list[str]:
    """Why cells lack values, and which mix what should not be mixed; equal remarks together, rows by name."""
    cells: dict[str, dict[str, list[str]]] = {}
    sizes = Counter(result.cell.row for result in comparison.cells)
    for result in comparison.cells:
        method = "/".join(filter(None, (result.cell.method, result.cell.variant)))
        for remark in (*result.reasons, *(f"mixed: {mark}" for mark in result.marks)):
            cells.setdefault(remark, {}).setdefault(result.cell.row, []).append(method)
    found = []
    for remark, rows in cells.items():
        names = [
            row if len(methods) == sizes[row] else f"{row} {', '.join(dict.fromkeys(methods))}"
            for row, methods in rows.items()
        ]
        found.append(f"{listed(names, '; ')}: {remark.rstrip('.')}.")
    return found


def listed(names: Sequence[str], separator: str = ", ", most: int = 3) -> str:
    """A few names, and how many more there are."""
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def heading(cell: Cell) -> str:
    """A method's label, marked if the paper does not have it."""
    return f"{cell.label} (not in the paper)" if cell.added else cell.label


def with_interval(estimate: Estimate, *, signed: bool = False) -> str:
    """`88.24 ± 0.41`; without ± where there is no interval, "" where there is nothing.

    `88.24 (n=2: 86.10 to 90.38)` where the interval would not inform.
    """
    if estimate.n == 0:
        return ""
    value = f"{estimate.mean:+.2f}" if signed else f"{estimate.mean:.2f}"
    if estimate.few:
        return f"{value} ({estimate.span(sign='+' if signed else '')})"
    return value if math.isnan(estimate.half_width) else f"{value} ± {estimate.half_width:.2f}"


def metric_name(metric: str) -> str:
    """A metric as a caption says it."""
    return (METRIC_NAMES | LOSSES).get(metric, metric)
