"""Which method to take for a kind of pair, from every record at hand: a random-effects model over pairs.

Of a method, the gain in a setting is the mean over seeds of method minus student alone (paired by seed); that on pair i
is the mean over the pair's settings (schedules, augmentations, labels of one data set), which are no further pairs. Its
variance is that within settings, pooled over the method's, divided by the seeds. Gains of pairs differ beyond that by a
variance tau² (Paule and Mandel 1982); the mean over pairs has the interval of Hartung and Knapp (2001) with k - 1
degrees of freedom, never narrower than the plain one; a pair that was not measured is predicted with tau² added
(Higgins et al. 2009). The best method's lead over each other one is judged in the same way on what both have, by Holm.
Pairs are taken to be independent draws; those that share a student or a teacher are not quite, so that intervals are a
little too narrow. Values are points of top-1.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy import optimize
from scipy import stats as scipy_stats

from experiments.documents import read_json
from experiments.planning.plan import SELECTION_SEED
from experiments.planning.recorded import identity
from experiments.records import committed
from experiments.records.store import step_ms
from experiments.results.stats import LEVEL, Estimate, holm
from hkd.errors import UserError

KINDS = {  # of models, by family
    "cnn": (
        "resnet",
        "mobilenet",
        "mobilenet_v2",
        "convnext",
        "sparse_resnet",
        "sparse_mobilenet_v2",
        "sparse_convnext",
    ),
    "transformer": ("vit", "swin", "beit", "eva", "mim_vit", "hybrid_vit", "hybrid_beit", "view_vit"),
    "mlp": ("mixer", "resmlp"),
}
FEWEST = 3  # pairs: fewer say nothing of how pairs differ
METRIC, ALONE = "top1", "supervised"


@dataclass(frozen=True)
class Pair:
    """Models that teach and learn, and the data set they do it on."""

    student: str  # kind, or the family where it is of none
    teacher: str
    name: str  # "swin_t_ofa_mini to resnet18_mini on numbers100"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A method on a pair. gains: points by seed, of each setting: everything of a run but its method and seed.
    seconds: of its runs (CPU). slower: its step over the student's alone. nan where the records do not say.
    """

    gains: dict[str, dict[int, float]]
    seconds: float = math.nan
    slower: float = math.nan


Gains = dict[str, dict[Pair, Measured]]  # by method, or `method/variant`


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A method over pairs. mean: with its interval. new: gain on a pair that was not measured, with its interval.
    tau: standard deviation of pairs, in points. chance: probability that it gains on a new pair.
    """

    mean: Estimate
    new: Estimate
    tau: float
    chance: float


def effect(gains: Sequence[Sequence[Mapping[int, float]]]) -> Effect | None:
    """The random-effects model over the pairs of a method; None for fewer than `FEWEST`.

    Args:
        gains: of each pair, of each of its settings, points by seed, at least one.
    """
    k = len(gains)
    if k < FEWEST:
        return None
    settings = [[np.array(list(each.values())) for each in pair] for pair in gains]
    y = np.array([np.mean([each.mean() for each in pair]) for pair in settings])
    repeated = [each for pair in settings for each in pair if len(each) > 1]
    free = sum(len(each) - 1 for each in repeated)
    within = sum(float(((each - each.mean()) ** 2).sum()) for each in repeated) / free if free else 0.0
    v = np.array([within * sum(1 / len(each) for each in pair) / len(pair) ** 2 for pair in settings])
    tau2 = between(y, v)
    w = 1 / np.maximum(v + tau2, 1e-12)
    mean = float((w * y).sum() / w.sum())
    spread = float((w * (y - mean) ** 2).sum()) / (k - 1)
    error = math.sqrt(max(spread, 1.0) / w.sum())
    t = float(scipy_stats.t.ppf((1 + LEVEL) / 2, k - 1))
    beyond = math.sqrt(tau2 + error**2)
    return Effect(
        mean=Estimate(mean=mean, low=mean - t * error, high=mean + t * error, n=k),
        new=Estimate(mean=mean, low=mean - t * beyond, high=mean + t * beyond, n=k),
        tau=math.sqrt(tau2),
        chance=float(scipy_stats.t.cdf(mean / beyond, k - 1)),
    )


def between(y: np.ndarray, v: np.ndarray) -> float:
    """Variance between pairs by Paule and Mandel: where the weighted sum of squares equals its degrees of freedom.

    Args:
        y: means of pairs [k].
        v: their variances [k].
    """

    def excess(tau2: float) -> float:
        w = 1 / np.maximum(v + tau2, 1e-12)
        return float((w * (y - (w * y).sum() / w.sum()) ** 2).sum()) - (len(y) - 1)

    if excess(0.0) <= 0:
        return 0.0
    most = float(np.var(y, ddof=1)) + 1e-9  # there the sum is at most its degrees of freedom
    while excess(most) > 0:
        most *= 2
    return float(optimize.brentq(excess, 0.0, most))


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Methods of a kind of pair, the highest mean gain first.

    taken: the one with the highest mean among those that are shown to help; None: none is. behind: adjusted p of each
    other method's being as good as that one on the pairs that both have; nan where these are too few. unknown: methods
    with too few pairs, and how many these are.
    """

    effects: dict[str, Effect]
    taken: str | None
    behind: dict[str, float]
    unknown: dict[str, int]

    @property
    def rivals(self) -> list[str]:
        """Methods that are not shown to differ from the one that is taken."""
        return [name for name, p in self.behind.items() if not p < 1 - LEVEL]


def prefer(gains: Gains) -> Preference:
    """Compare methods over the pairs of one kind."""
    found = {name: effect([[*each.gains.values()] for each in pairs.values()]) for name, pairs in gains.items()}
    known = {name: each for name, each in found.items() if each is not None}
    order = sorted(known, key=lambda name: -known[name].mean.mean)
    taken = next((name for name in order if known[name].mean.sign > 0), None)
    p = {} if taken is None else {name: as_good(gains[taken], gains[name]) for name in order if name != taken}
    tested = [name for name in p if not math.isnan(p[name])]
    adjusted = dict(zip(tested, holm([p[name] for name in tested]), strict=True))
    return Preference(
        effects={name: known[name] for name in order},
        taken=taken,
        behind={name: adjusted.get(name, math.nan) for name in p},
        unknown={name: len(gains[name]) for name in gains if name not in known},
    )


def as_good(first: Mapping[Pair, Measured], other: Mapping[Pair, Measured]) -> float:
    """Two-sided p of no mean difference on the settings of pairs that both have; nan for too few pairs."""
    both = []
    for pair in sorted(first.keys() & other.keys(), key=lambda pair: pair.name):
        one, two = first[pair].gains, other[pair].gains
        differences = [
            {seed: one[at][seed] - two[at][seed] for seed in sorted(one[at].keys() & two[at].keys())}
            for at in sorted(one.keys() & two.keys())
        ]
        if found_in := [each for each in differences if each]:
            both.append(found_in)
    found = effect(both)
    if found is None:
        return math.nan
    k = found.mean.n
    error = (found.mean.high - found.mean.mean) / float(scipy_stats.t.ppf((1 + LEVEL) / 2, k - 1))
    return float(2 * scipy_stats.t.sf(abs(found.mean.mean) / error, k - 1)) if error else 1.0


# -- what is at hand ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One finished run as it is found in a table. method: as the table's column has it, `method/variant`. identity: of
    its spec, equal whenever it was written down.
    """

    method: str
    spec: dict[str, Any]
    identity: dict[str, Any]
    top1: float
    cost: dict[str, float]


def kind_of(family: str) -> str:
    """The kind of a model family; the family itself where it is of none."""
    return next((kind for kind, families in KINDS.items() if family in families), family)


def at_hand(references: Path, results: Path) -> list[Seen]:
    """Every run behind a cell of a table, of this machine's results and of the committed records.

    Args:
        references: folder of the committed files, a folder a profile.
        results: folder of tables as `hkd run` writes them, a folder a profile and in it one a table.

    Raises:
        UserError: a file is not what was written.
    """
    found: list[Seen] = []
    for path in sorted(results.glob("*/*/runs.json")):
        try:
            document = read_json(path)
            cells = [(cell["method"], cell["variant"], cell["runs"]) for cell in document["cells"]]
            found += [
                seen
                for method, variant, keys in cells
                for key in keys
                if (seen := seen_of(method, variant, document["runs"][key])) is not None
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is not what `hkd run` writes: make the table again.") from None
    for path in sorted(references.glob(f"*/*{committed.SUFFIX}")):
        file = committed.read(path)
        for cell in file.cells:
            runs = [file.by_key[key].model_dump() for key in cell.runs.values() if key in file.by_key]
            found += [seen for run in runs if (seen := seen_of(cell.method, cell.variant, run)) is not None]
    return found


def seen_of(method: str, variant: str, run: Mapping[str, Any]) -> Seen | None:
    """A run that says how well a student does on test images that was trained from scratch; else None."""
    spec, value = run.get("spec", {}), run.get("metrics", {}).get(METRIC)
    plain = spec.get("task") == "train" and spec.get("init") is None and spec.get("evaluate_on") == "test"
    if run.get("status") != "done" or value is None or not plain or spec["seed"] >= SELECTION_SEED:
        return None
    return Seen(
        method=f"{method}/{variant}".rstrip("/"),
        spec=spec,
        identity=identity(spec),
        top1=float(value),
        cost=dict(run.get("cost", {})),
    )


def gains_of(seen: Iterable[Seen], student: str, teacher: str | None = None) -> Gains:
    """Gains over the student alone, by method and pair, for students (and teachers) of a kind or family.

    A run that stands in several tables counts once.
    """
    alone: dict[str, dict[int, Seen]] = {}
    taught: list[Seen] = []
    for each in seen:
        if each.spec["method"]["name"] == ALONE and not each.spec["teachers"]:
            alone.setdefault(setting(each), {})[each.spec["seed"]] = each
        elif each.spec["teachers"]:
            taught.append(each)
    runs: dict[str, dict[Pair, dict[tuple[str, int], tuple[Seen, Seen]]]] = {}
    for each in taught:
        at, seed = setting(each), each.spec["seed"]
        base = alone.get(at, {}).get(seed)
        families = {family(each.spec["student"])}, {family(one["model"]) for one in each.spec["teachers"].values()}
        if base is None or not is_of(student, families[0]) or (teacher and not is_of(teacher, families[1])):
            continue
        among = json.dumps([at, each.identity["teachers"]], sort_keys=True)
        runs.setdefault(each.method, {}).setdefault(pair_of(each), {}).setdefault((among, seed), (each, base))
    return {method: {pair: measured(found) for pair, found in pairs.items()} for method, pairs in sorted(runs.items())}


def measured(runs: Mapping[tuple[str, int], tuple[Seen, Seen]]) -> Measured:
    """Of the runs of a method and of the student alone, by setting and seed."""
    seconds = [own.cost["cpu_s"] for own, _ in runs.values() if own.cost.get("cpu_s")]
    steps = [step_ms(own.cost) / step_ms(base.cost) for own, base in runs.values() if step_ms(base.cost) > 0]
    steps = [ratio for ratio in steps if not math.isnan(ratio)]
    gains: dict[str, dict[int, float]] = {}
    for at, seed in sorted(runs):
        own, base = runs[at, seed]
        gains.setdefault(at, {})[seed] = own.top1 - base.top1
    return Measured(
        gains=gains,
        seconds=median(seconds) if seconds else math.nan,
        slower=median(steps) if steps else math.nan,
    )


def family(model: Mapping[str, Any]) -> str:
    """Of a model card as specs hold it."""
    return str(model["family"])


def is_of(asked: str, families: Iterable[str]) -> bool:
    """Whether all of some families are of the kind, or the family, that is asked for."""
    return all(asked in (each, kind_of(each)) for each in families)


def setting(seen: Seen) -> str:
    """What a student alone and its distilled twin share: data, student, recipe."""
    return json.dumps([seen.identity[name] for name in ("data", "student", "recipe")], sort_keys=True)


def pair_of(seen: Seen) -> Pair:
    """The pair of a run with teachers."""
    spec = seen.spec
    teachers = [each["model"] for each in spec["teachers"].values()]
    return Pair(
        student=kind_of(family(spec["student"])),
        teacher="+".join(kind_of(family(each)) for each in teachers),
        name=f"{'+'.join(each['name'] for each in teachers)} to {spec['student']['name']} on {spec['data']['name']}",
    )
