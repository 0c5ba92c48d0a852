"""Diagnostics: all measures of the teachers, and what the runs of every table told while they were trained.

Teachers come from the table `diagnostics`; of training only what exists is read: sizes and gradient norms of loss terms
from curves.jsonl, agreement with the teacher from predictions.npz. Nothing of it is trained for this.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.charts import Dot, dots_figure, shares_figure
from analysis.figure_files import Number, csv_text
from analysis.measure import measure
from experiments.drawings.base import Finished, Images
from experiments.drawings.hybrid_heads import MEASURED, of_224
from experiments.planning import schema, standins
from experiments.planning.plan import Cell, Plan, PlannedRun, plan
from experiments.records.committed import kept_curves, kept_predictions
from experiments.records.store import Store
from experiments.results import stats
from hkd.errors import Refused

LOSS, NORM = "loss/", "grad_norm/"  # prefixes of the curves' columns
MEASURES = {  # as their numbers are called
    "attention_distance": "distance",
    "attention_nmi": "nmi",
    "fourier": "fourier",
    "dct_spectrum": "dct_energy",
}
PANELS = {
    "distance": "head distance, last layer (px of 224)",
    "nmi": "NMI of attention, last layer",
    "fourier": "Δ log amplitude, last layer",
    "dct_energy": "DC share of energy",
}


# What a term compares, by how its name begins; in the order in which bars are divided.
KINDS = {
    "labels": ("task", "classifier", "box_reg", "mask", "objectness", "rpn", "segmentation", "auxiliary"),
    "logits": ("kd", "tckd", "nckd", "inter", "intra", "ofa", "hcd", "sub"),
    "features": ("feat", "crd", "tokens", "codes", "pixels"),
    "relations": ("distance", "angle", "cc", "sim", "late", "relation"),
    "regularisers": ("orth", "ol"),
}
OTHER = "other"


def kind_of(term: str) -> str:
    """What a loss term compares."""
    return next((kind for kind, begins in KINDS.items() if term.startswith(begins)), OTHER)


@dataclass(frozen=True)
class Term:
    """A term of a method's loss, means over runs: its value and its gradient norm's share at an epoch.

    when: `first`, `middle` or `last` epoch at which gradient norms were measured. ratio: gradient norm over that of the
    largest other term; runs: how many.
    """

    method: str
    term: str
    when: str
    loss: float
    norm: float
    share: float
    ratio: float
    runs: int


def draw(finished: Finished, folder: Path) -> None:
    """Pictures, tables and numbers of all of it."""
    profile, labels, images = finished.plan.profile, finished.rows, finished.images(MEASURED)
    numbers, layers = teachers(finished, images)
    dots: dict[str, dict[str, Dot]] = {label: {} for label in PANELS.values()}
    for name, number in numbers.items():
        measured, slug, *place = name.split("/")
        if place in ([], ["last"]):
            dot = Dot(number.value, number.value - number.half, number.value + number.half)
            dots[PANELS[measured]][labels[slug]] = dot
    dots_figure(
        [labels[cell[0]] for cell in finished.cells],
        dots,
        folder / "teachers",
        title=f"Measures of the teachers\n{finished.plan.here}",
        caption=f"Profile {profile}. {images.rule} Whiskers: 95 % intervals over images. Swin: within windows. Δ: of "
        "the highest frequency and zero. –: not defined.",
    )
    everywhere = standins.in_short(schema.load_profile(profile))
    plans = [plan(name, profile) for name in schema.table_ids() if schema.load_table(name).kind == "table"]
    terms = term_sizes(plans, finished.store)
    shares: dict[str, dict[str, float]] = {}
    for term in terms:
        if term.when == "last":
            shares.setdefault(term.method, {})[term.term] = term.share
            numbers[f"grad_share/{term.method.replace('/', '_')}/{term.term}"] = Number(term.share)
    if shares:
        shares_figure(
            shares,
            folder / "terms",
            kinds={
                part: kind_of(part)
                for kind in (*KINDS, OTHER)
                for parts in shares.values()
                for part in parts
                if kind_of(part) == kind
            },
            label="share of the gradient's norm",
            title=f"Which loss term moves the student\n{everywhere}",
            caption=f"Profile {profile}; shares of the terms' gradient norms at the last epoch that measured them, "
            "mean over the runs of all tables; methods with their default options. Norms do not add up: gradients of "
            "two terms may point apart, so a large share need not be a large effect.",
        )
    agreed = agreement(plans, finished.store)
    for method, estimate in agreed.items():
        half = estimate.shown.half_width
        numbers[f"agreement/{method.replace('/', '_')}"] = Number(estimate.mean, half)
    if agreed:
        dots_figure(
            list(agreed),
            {"agreement with the teacher, beyond that of training alone (points)": {
                method: Dot(each.mean, each.shown.low, each.shown.high) for method, each in agreed.items()
            }},
            folder / "agreement",
            title=f"Do students predict what their teachers predict?\n{everywhere}",
            caption=f"Profile {profile}; test images on which student and teacher name the same class, minus those of "
            "the student trained alone; mean over rows of all tables, 95 % t-intervals over seeds.",
        )  # fmt: skip
    fields = ("method", "term", "when", "loss", "norm", "share", "ratio", "runs")
    (folder / "terms.csv").write_text(
        csv_text(fields, ([getattr(term, name) for name in fields] for term in terms)), encoding="utf-8"
    )
    (folder / "teachers.csv").write_text(
        csv_text(("teacher", "measure", "layer", "value", "half"), layers), encoding="utf-8"
    )
    lines = ([method, each.mean, each.low, each.high, each.n] for method, each in agreed.items())
    (folder / "agreement.csv").write_text(
        csv_text(("method", "points", "low", "high", "seeds"), lines), encoding="utf-8"
    )
    finished.leave(folder, images, numbers=numbers)


# -- teachers ------------------------------------------------------------------------------------------------------


def teachers(finished: Finished, images: Images) -> tuple[dict[str, Number], list[list[Any]]]:
    """Numbers of every teacher, and a line per layer.

    What a model cannot give (attention of a CNN) it does not have.
    """
    numbers: dict[str, Number] = {}
    lines: list[list[Any]] = []
    for (slug, *_), runs in finished.cells.items():
        model = finished.network(runs[0])
        for kind, name in MEASURES.items():
            try:
                found = measure(model, images, kind)[kind]
            except Refused:
                continue
            if kind == "dct_spectrum":
                numbers[f"{name}/{slug}"] = Number(found.share_energy, found.share_energy_half, found.images)
                continue
            if kind == "fourier":
                if found.frequency.shape[1] < 2 or np.isnan(found.frequency[-1, 1]):  # a map too small for a second one
                    continue
                values, halves = found.highest, found.highest_half
            else:
                result = of_224(found, model.card.image_size) if kind == "attention_distance" else found
                values, halves = result.layer, result.layer_half
            pairs = zip(found.names, map(float, values), map(float, halves), strict=True)
            lines += [[slug, name, *line] for line in pairs]
            numbers[f"{name}/{slug}/last"] = Number(float(values[-1]), float(halves[-1]), found.images)
            numbers[f"{name}/{slug}/all"] = Number(float(np.mean(values)), float(np.mean(halves)), found.images)
    return numbers, lines


# -- training ------------------------------------------------------------------------------------------------------


def name_of(cell: Cell) -> str:
    """`method/variant`, or the method alone."""
    return f"{cell.method}/{cell.variant}".removesuffix("/")


def term_sizes(plans: Sequence[Plan], store: Store) -> list[Term]:
    """Sizes of the terms of methods with several, means over their runs; every run counts once.

    Runs that start from others (a fine-tuning) count by what their own method is; so do those they start from. Terms of
    a detector are told under its task.
    """
    runs = {key: run for each in plans for key, run in each.runs.items() if not run.label.startswith("teacher ")}
    default = {key: run for key, run in runs.items() if not variant(run)}
    collected: dict[tuple[str, str, str], list[tuple[float, float, float, float]]] = {}
    for key, run in default.items():
        record = store.load(key)
        curves = kept_curves(store, record) if record else None
        if curves is None:
            continue
        lines = [line for line in curves if any(name.startswith(NORM) for name in line)]
        name = run.spec.task if run.spec.task in ("detect", "segment") else run.spec.method.name
        for when, line in moments(lines):
            for term, sizes in of_terms(line).items():
                collected.setdefault((name, term, when), []).append(sizes)
    found = []
    for (method, term, when), each in collected.items():
        loss, norm, share, ratio = np.mean(np.array(each), axis=0).tolist()
        found.append(Term(method, term, when, loss, norm, share, ratio, len(each)))
    return found


def variant(run: PlannedRun) -> str:
    """Variant in a run's label; empty for a method's defaults."""
    return run.label.partition("-")[0].partition("/")[2]


def moments(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """First, middle and last of the lines."""
    if not lines:
        return []
    return [("first", lines[0]), ("middle", lines[len(lines) // 2]), ("last", lines[-1])]


def of_terms(line: Mapping[str, Any]) -> dict[str, tuple[float, float, float, float]]:
    """Loss, gradient norm, its share of the sum, and its ratio to the largest other, by term; nothing of one term."""
    norms = {name.removeprefix(NORM): float(value) for name, value in line.items() if name.startswith(NORM)}
    total = sum(norms.values())
    if len(norms) < 2 or not math.isfinite(total) or total <= 0:
        return {}
    found = {}
    for term, norm in norms.items():
        other = max(value for name, value in norms.items() if name != term)
        ratio = norm / other if other > 0 else math.inf
        found[term] = (float(line.get(LOSS + term, math.nan)), norm, norm / total, ratio)
    return found


def agreement(plans: Sequence[Plan], store: Store) -> dict[str, stats.Estimate]:
    """By method, in points: how much more often its students agree with their teacher than those trained alone do.

    Rows of all tables count, by seed; a row without a student trained alone, or without the teacher's predictions on
    the same images, does not.
    """
    gains: dict[str, dict[str, dict[int, float]]] = {}
    for each in plans:
        rows: dict[str, list[Cell]] = {}
        for cell in each.cells:
            if cell.runs and cell.metric == each.metrics[0]:
                rows.setdefault(cell.row, []).append(cell)
        for row, cells in rows.items():
            alone = next((cell for cell in cells if (cell.method, cell.variant) == ("supervised", "")), None)
            teacher = next(
                (found for cell in cells if (found := teacher_of(each.runs[cell.runs[0]], each, store))), None
            )
            if alone is None or teacher is None:
                continue
            base = agreed(alone, each, teacher, store)
            for cell in cells:
                if cell is alone or not each.runs[cell.runs[0]].spec.teachers:
                    continue
                ours = agreed(cell, each, teacher, store)
                if differences := {seed: ours[seed] - base[seed] for seed in ours if seed in base}:
                    gains.setdefault(name_of(cell), {})[f"{each.table}/{row}"] = differences
    # Tables differ in their seeds: a method's rows are those with most of them.
    return {method: stats.pooled_gain(rows).estimate for method, rows in sorted(gains.items()) if "/" not in method}


def teacher_of(run: PlannedRun, each: Plan, store: Store) -> Mapping[str, np.ndarray] | None:
    """Predictions of a run's only teacher, left by its training or its evaluation."""
    if len(run.spec.teachers) != 1:
        return None
    model = next(iter(run.spec.teachers.values())).model
    for key in run.needs:
        if each.runs[key].spec.student == model and (found := predictions_of(key, store)):
            return found
    return None


def predictions_of(key: str, store: Store) -> Mapping[str, np.ndarray] | None:
    """What a run predicted, if it has a record and left that."""
    record = store.load(key)
    return kept_predictions(store, record) if record else None


def agreed(cell: Cell, each: Plan, teacher: Mapping[str, np.ndarray], store: Store) -> dict[int, float]:
    """Percent of test images on which a cell's students name the class that the teacher names, by seed."""
    found = {}
    for seed, key in zip(each.seeds, cell.runs, strict=True):
        ours = predictions_of(key, store)
        if ours is not None and np.array_equal(ours["row"], teacher["row"]):
            found[seed] = 100 * float((ours["prediction"] == teacher["prediction"]).mean())
    return found
