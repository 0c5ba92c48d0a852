"""What runs will cost, before they run: arithmetic, GPU-hours, disk; and seconds, learned from finished runs.

Assumptions, printed by `hkd plan`:

- training costs three forward passes per image (one forward, two backward), measuring accuracy one;
- a teacher costs one forward pass per image, once per fixed view where its outputs are cached;
- adapters, gradients through a teacher, augmentation and loading are not counted;
- FLOPs are two per multiply-accumulate; a GPU sustains `GPU_FLOPS` per second (an A100-class device).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

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
CHECKPOINT_COPIES = 4  # weights, two moments and EMA while a run is under way

ASSUMPTIONS = (
    "Training is counted as 3 forward passes per image, a teacher as 1 (once per image where its outputs are cached); "
    "adapters, gradients through teachers, heads of detection and segmentation, and data loading are not counted.",
    f"GPU-hours: one A100-class GPU sustaining {GPU_FLOPS['bf16-mixed'] / 1e12:.0f} TFLOP/s in 16 bit, "
    f"{GPU_FLOPS['32-true'] / 1e12:.0f} in 32 bit.",
    "Disk: final weights (adapters counted as one more student), predictions and curves of every run; "
    "a run under way holds up to 4 copies of its student more.",
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
    the number of fixed views), m test images, P million parameters:

    flops = 2e9 * (3 * S * E * n + T * V * n + S * m); gpu_hours = flops / GPU_FLOPS[precision] / 3600;
    disk = 4e6 * P * (2 with teachers, else 1; 0 for an evaluation) + 24 * m + 1024 * E.
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
    flops = 2e9 * (3 * forward * epochs * images + taught * passes * images + forward * test_images)
    copies = (2 if spec.teachers else 1) if recipe else 0
    return Cost(
        runs=1,
        epochs=epochs,
        flops=flops,
        gpu_hours=flops / GPU_FLOPS[recipe.precision if recipe else "32-true"] / 3600,
        disk=4e6 * (spec.student.params_m or 0.0) * copies
        + BYTES_PER_TEST_IMAGE * test_images
        + BYTES_PER_EPOCH * epochs,
    )


def total(runs: Iterable[PlannedRun]) -> Cost:
    """The sum over runs."""
    return sum((cost(run) for run in runs), Cost())


def counts(data: DataSpec) -> tuple[int, int]:
    """Training and test images of a data set with these options, as it counts them; 0 where it cannot tell."""
    found = dataset(data).counts()
    return found.get("train", 0), found.get("test", 0)


def dataset(data: DataSpec) -> DataSet:
    """A data set with its options; the disk is not touched."""
    made: DataSet = load(lookup("data set", data.name, DATASETS))(data.options, Path())
    return made


class Durations:
    """Expected seconds of runs, from finished runs of the same kind (task, method, student, data, epochs)."""

    def __init__(self, records: Mapping[str, Record], runs: Mapping[str, PlannedRun]):
        self.seconds: dict[tuple[object, ...], list[float]] = {}
        self.rates: dict[str, list[float]] = {}  # seconds per FLOP of finished runs, by method
        self.flops = {key: cost(run).flops for key, run in runs.items()}
        for key, run in runs.items():
            record = records.get(key)
            if record is not None and record.status == "done":
                self.learn(run, record.finished - record.started)

    @staticmethod
    def kind(run: PlannedRun) -> tuple[object, ...]:
        """Runs that take equally long: the seed and the teacher's weights do not matter."""
        spec = run.spec
        teachers = tuple(sorted(teacher.model.name for teacher in spec.teachers.values()))
        options = tuple(sorted((name, repr(value)) for name, value in spec.method.options.items()))
        epochs = spec.recipe.epochs if spec.recipe else 0
        return spec.task, spec.method.name, options, spec.student.name, teachers, spec.data.fingerprint, epochs

    def learn(self, run: PlannedRun, seconds: float) -> None:
        """Take a finished run into account."""
        self.seconds.setdefault(self.kind(run), []).append(seconds)
        if self.flops[run.key]:
            self.rates.setdefault(run.spec.method.name, []).append(seconds / self.flops[run.key])

    def expect(self, run: PlannedRun) -> float | None:
        """Seconds of this run: the mean of its kind; else by its FLOPs, at the median rate of its method or of all.

        None before anything has finished.
        """
        known = self.seconds.get(self.kind(run))
        if known:
            return fmean(known)
        rates = self.rates.get(run.spec.method.name) or [rate for rates in self.rates.values() for rate in rates]
        return self.flops[run.key] * median(rates) if rates else None

    def weight(self, run: PlannedRun) -> float:
        """A length to order runs by: seconds where any are known, FLOPs otherwise (never mixed within a plan)."""
        expected = self.expect(run)
        return self.flops[run.key] if expected is None else expected
