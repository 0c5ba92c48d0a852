"""What runs will cost, before they run: arithmetic, GPU-hours, disk; and seconds, learned from finished runs.

Assumptions, printed by `hkd plan`:

- training costs three forward passes per image (one forward, two backward), measuring accuracy one;
- a teacher costs one forward pass per image, once per fixed view where its outputs are cached;
- ScaleKD's projectors and its way through the teacher's last stage are counted (experiments/planning/adapters.py),
  other adapters and gradients through a teacher, augmentation and loading are not;
- FLOPs are two per multiply-accumulate; a GPU sustains `GPU_FLOPS` per second (an A100-class device).
"""

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, median

from experiments.planning.adapters import Adapters, adapters
from experiments.planning.plan import PlannedRun
from experiments.records.store import Record
from hkd.data import DATASETS
from hkd.data.base import DataSet
from hkd.registry import load, lookup
from hkd.spec import DataSpec

GPU_FLOPS = {"32-true": 12e12, "16-mixed": 60e12, "bf16-mixed": 60e12}  # sustained, per second
BYTES_PER_TEST_IMAGE = 24  # row, label and prediction in predictions.npz
BYTES_PER_EPOCH = 1024  # curves, twice (curves.jsonl and DVCLive), and the log
DENSE = ("detect", "segment")  # tasks that see images at the size of their data
PACE_RUNS = 8  # finished last, by which the pace of now is told

ASSUMPTIONS = (
    "Training is counted as 3 forward passes per image, a teacher as 1 (once per image where its outputs are cached), "
    "ScaleKD's projectors and its way through the teacher as they are; adapters of other methods, heads of detection "
    "and segmentation, and data loading are not counted.",
    f"GPU-hours: one A100-class GPU sustaining {GPU_FLOPS['bf16-mixed'] / 1e12:.0f} TFLOP/s in 16 bit, "
    f"{GPU_FLOPS['32-true'] / 1e12:.0f} in 32 bit.",
    "Disk: final weights (adapters, but for ScaleKD's, counted as one more student), predictions and curves of every "
    "run; a run under way holds up to 4 copies of its weights more.",
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """runs and epochs; flops (operations); gpu_hours; disk (bytes)."""

    runs: int = 0
    epochs: int = 0
    flops: float = 0.0
    gpu_hours: float = 0.0
    disk: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


def cost(run: PlannedRun) -> Cost:
    """The cost of one run.

    With S and T the GMACs of student and teachers (of a dense task: S times the area of its images over that of the
    card's, each as the square of the short side; heads are not counted), E epochs of n images, V teacher passes (E, or
    the number of fixed views), m test images, P million parameters, and A GMACs and Q million numbers of ScaleKD's
    adapters (of other methods with teachers A = 0 and Q = P):

    flops = 2e9 * ((3 * S + A) * E * n + T * V * n + S * m); gpu_hours = flops / GPU_FLOPS[precision] / 3600;
    disk = 4e6 * (P + Q; 0 for an evaluation) + 24 * m + 1024 * E.
    """
    spec = run.spec
    recipe = spec.recipe if spec.task != "evaluate" else None
    images, test_images = counts(spec.data)
    epochs = recipe.epochs if recipe else 0
    forward = spec.student.gmacs or 0.0
    if spec.task in DENSE:
        forward *= (dataset(spec.data).image_size / spec.student.image_size) ** 2
    taught = sum(teacher.model.gmacs or 0.0 for teacher in spec.teachers.values())
    passes = recipe.views if recipe and recipe.views else epochs
    added = adapters(spec) if recipe else Adapters()
    step = 3 * forward + added.macs / 1e3
    flops = 2e9 * (step * epochs * images + taught * passes * images + forward * test_images)
    student = spec.student.params_m or 0.0
    kept = student + (added.params_m or (student if spec.teachers else 0.0)) if recipe else 0.0
    return Cost(
        runs=1,
        epochs=epochs,
        flops=flops,
        gpu_hours=flops / GPU_FLOPS[recipe.precision if recipe else "32-true"] / 3600,
        disk=4e6 * kept + BYTES_PER_TEST_IMAGE * test_images + BYTES_PER_EPOCH * epochs,
    )


def total(runs: Iterable[PlannedRun]) -> Cost:
    """The sum over runs."""
    return sum((cost(run) for run in runs), Cost())


def counts(data: DataSpec) -> tuple[int, int]:
    """Training and test images of a data set with these options, as it counts them; 0 where it cannot tell."""
    return counted(data.name, json.dumps(data.options, sort_keys=True))


@cache
def counted(name: str, options: str) -> tuple[int, int]:
    """Training and test images of a data set; options as JSON."""
    found = dataset(DataSpec(name=name, options=json.loads(options))).counts()
    return found.get("train", 0), found.get("test", 0)


def dataset(data: DataSpec) -> DataSet:
    """A data set with its options; the disk is not touched."""
    made: DataSet = load(lookup("data set", data.name, DATASETS))(data.options, Path())
    return made


class Durations:
    """Expected seconds of runs, from finished runs of the same kind (task, method, student, data, epochs).

    Those that finish while a table is made say how fast this machine is now: `pace` is the median of their last seconds
    over the expected ones, and what is expected of earlier records is multiplied by it.
    """

    def __init__(self, records: Mapping[str, Record], runs: Mapping[str, PlannedRun]):
        self.earlier: dict[tuple[object, ...], list[float]] = {}  # seconds by kind, of the given records
        self.now: dict[tuple[object, ...], list[float]] = {}  # of runs learned since
        self.rates: dict[str, list[float]] = {}  # seconds per FLOP, by method: earlier ones at the pace of then
        self.ratios: deque[float] = deque(maxlen=PACE_RUNS)
        self.flops = {key: cost(run).flops for key, run in runs.items()}
        for key, run in runs.items():
            record = records.get(key)
            if record is not None and record.status == "done" and (seconds := seconds_of(record)):
                self.keep(self.earlier, run, seconds)

    @staticmethod
    def kind(run: PlannedRun) -> tuple[object, ...]:
        """Runs that take equally long: the seed and the teacher's weights do not matter."""
        spec = run.spec
        teachers = tuple(sorted(teacher.model.name for teacher in spec.teachers.values()))
        options = tuple(sorted((name, repr(value)) for name, value in spec.method.options.items()))
        epochs = spec.recipe.epochs if spec.recipe else 0
        return spec.task, spec.method.name, options, spec.student.name, teachers, spec.data.fingerprint, epochs

    def keep(self, seconds: dict[tuple[object, ...], list[float]], run: PlannedRun, taken: float) -> None:
        """Add a run's seconds to its kind, and their rate to its method."""
        seconds.setdefault(self.kind(run), []).append(taken)
        if self.flops[run.key]:
            self.rates.setdefault(run.spec.method.name, []).append(taken / self.flops[run.key])

    def learn(self, run: PlannedRun, seconds: float) -> None:
        """Take a run into account that finished just now."""
        earlier = self.earlier.get(self.kind(run))
        if earlier and (expected := fmean(earlier)) > 0:
            self.ratios.append(seconds / expected)
        self.keep(self.now, run, seconds)

    @property
    def pace(self) -> float:
        """Seconds that runs take now over those of earlier records; 1 before any has finished."""
        return median(self.ratios) if self.ratios else 1.0

    def expect(self, run: PlannedRun) -> float | None:
        """Seconds of this run: the mean of its kind now, else earlier, at the pace of now; else by its FLOPs.

        By FLOPs: at the median rate of its method, or of all. None before anything has finished.
        """
        if now := self.now.get(self.kind(run)):
            return fmean(now[-PACE_RUNS:])
        if earlier := self.earlier.get(self.kind(run)):
            return fmean(earlier) * self.pace
        rates = self.rates.get(run.spec.method.name) or [rate for rates in self.rates.values() for rate in rates]
        return self.flops[run.key] * median(rates) if rates else None

    def weight(self, run: PlannedRun) -> float:
        """A length to order runs by: seconds where any are known, FLOPs otherwise (never mixed within a plan)."""
        expected = self.expect(run)
        return self.flops[run.key] if expected is None else expected


def seconds_of(record: Record) -> float:
    """Seconds that a run took; of a committed record, which keeps no times of day, its own clock's or the CPU's."""
    return record.finished - record.started or record.cost.get("wall_s") or record.cost.get("cpu_s", 0.0)
