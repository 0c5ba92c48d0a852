"""Two runs beside one another: in what they differ, their metrics with intervals, their curves."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.planning.recorded import complete, setting_of, siblings
from experiments.records.committed import Curves, kept_curves, kept_predictions
from experiments.records.live import series
from experiments.records.store import Record, Store
from experiments.results import stats
from experiments.results.stats import NOTHING, Estimate

NOT_SET = "–"
MODEL = re.compile(r"(student|teachers\.\w+\.model)\.name")
CURVES = ("loss", "val_top1", "train_top1")  # drawn, of those that either run has
LABELS = {"loss": "training loss", "val_top1": "val top-1", "train_top1": "train top-1"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of two runs.

    first, second: with an interval over test images where predictions were kept. difference: second minus first,
    over the test images of both (paired). over_seeds: the same over the seeds that the store has of both settings.
    """

    name: str
    first: Estimate
    second: Estimate
    difference: Estimate
    over_seeds: Estimate = NOTHING


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs compared.

    different: (name, first, second) of every fact of the spec that differs; where: of versions and machine. seeds:
    that both settings have.
    """

    records: tuple[Record, Record]
    different: list[tuple[str, str, str]]
    where: list[tuple[str, str, str]]
    metrics: list[Metric]
    curves: tuple[Curves, Curves]
    seeds: tuple[int, ...] = ()


def compare(store: Store, first: Record, second: Record) -> Pair:
    """Compare two runs of a store."""
    records = first, second
    specs = [flat(complete(record.spec)) for record in records]
    environments = [flat(machine(record)) for record in records]
    others = store.load_all(store.keys()).values()
    families = [siblings(record, others) for record in records]
    same = setting_of(first) == setting_of(second)  # two seeds of one setting: there is nothing to compare over seeds
    seeds = () if same else tuple(sorted(families[0].keys() & families[1].keys()))
    names = [name for name in first.metrics if name in second.metrics]
    return Pair(
        records=records,
        different=without_parts(differences(*specs)),
        where=differences(*environments),
        metrics=[metric(store, name, records, families, seeds) for name in names],
        curves=(kept_curves(store, first) or [], kept_curves(store, second) or []),
        seeds=seeds,
    )


def machine(record: Record) -> dict[str, Any]:
    """Where a run ran, as far as that may matter."""
    environment = record.environment
    kept = {name: environment[name] for name in ("device", "cpu", "gpu", "commit") if environment.get(name)}
    return kept | {"versions": environment.get("versions", {})}


def flat(value: Any, at: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    if not isinstance(value, Mapping):
        return {at: value}
    found: dict[str, Any] = {}
    for name, held in value.items():
        found |= flat(held, f"{at}.{name}".strip("."))
    return found


def differences(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Names whose values differ, with both as text; one that a side lacks is "–" there."""
    found = []
    for name in dict.fromkeys((*one, *two)):
        first, second = (json.dumps(side[name]).strip('"') if name in side else NOT_SET for side in (one, two))
        if first != second:
            found.append((name, first, second))
    return found


def without_parts(found: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Without the sizes of models that are others by name: these follow from it."""
    named = tuple(name.removesuffix("name") for name, *_ in found if MODEL.fullmatch(name))
    return [line for line in found if MODEL.fullmatch(line[0]) or not named or not line[0].startswith(named)]


def metric(
    store: Store,
    name: str,
    records: tuple[Record, Record],
    families: list[dict[int, Record]],
    seeds: tuple[int, ...],
) -> Metric:
    """A metric that both runs have."""
    values = [record.metrics[name] for record in records]
    plain = [Estimate(mean=value, n=1, reason="one run") for value in values]
    difference = Estimate(mean=values[1] - values[0], n=1, reason="one run each")
    if name == "top1" and (hits := images_of(store, records)) is not None:
        plain = [stats.over_images(side) for side in hits]
        difference = stats.over_images(hits[1] - hits[0])
    over = NOTHING
    if len(seeds) > 1:
        ours, theirs = ({s: family[s].metrics.get(name, np.nan) for s in seeds} for family in families)
        over = stats.paired_gain(theirs, ours)
    return Metric(name=name, first=plain[0], second=plain[1], difference=difference, over_seeds=over)


def images_of(store: Store, records: tuple[Record, Record]) -> list[np.ndarray] | None:
    """100 or 0 for every test image that both runs saw, right or wrong; None where they saw no common ones."""
    kept = [kept_predictions(store, record) for record in records]
    if kept[0] is None or kept[1] is None:
        return None
    common, *places = np.intersect1d(kept[0]["row"], kept[1]["row"], return_indices=True)
    if not len(common) or any(len(np.unique(each["row"])) != len(each["row"]) for each in kept if each is not None):
        return None
    return [
        100.0 * (each["prediction"] == each["label"])[place]
        for each, place in zip(kept, places, strict=True)
        if each is not None
    ]


def curve_pairs(pair: Pair) -> dict[str, tuple[list[float], list[float]]]:
    """The curves that are shown, by label, of both runs."""
    found = {}
    for name in CURVES:
        sides = series(pair.curves[0], name), series(pair.curves[1], name)
        if any(sides):
            found[LABELS[name]] = sides
    return found


def draw(pair: Pair, path: Path) -> None:
    """Write the curves of both runs, one panel each, to a PNG, and an SVG beside it."""
    from analysis.curves import curves_figure  # imports matplotlib

    curves_figure(
        curve_pairs(pair),
        path,
        names=(name_of(pair.records[0]), name_of(pair.records[1])),
        title="Curves of two runs",
        caption="Means over each epoch; accuracy while training is of augmented images.",
    )


def name_of(record: Record) -> str:
    """A run as figures name it."""
    return f"{record.label} ({record.key[:6]})"
