"""A made-up table with made-up records: ScaleKD's Table 3 (11 pairs, 3 methods, 5 seeds) without any training."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.planning.plan import Cell, Plan, PlannedRun, Published
from experiments.records.store import Record, Store
from hkd.files import sha256
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec

PAIRS = (  # teacher slug and label, student slug and label, published baseline and ScaleKD
    ("swin_l", "Swin-L", "mobilenet_v1", "MobileNet-V1", 72.1, 75.15),
    ("swin_l", "Swin-L", "resnet50", "ResNet-50", 78.64, 82.03),
    ("swin_l", "Swin-L", "convnext_t", "ConvNeXt-T", 82.14, 84.16),
    ("swin_l", "Swin-L", "mixer_s16", "Mixer-S/16", 74.02, 78.63),
    ("swin_l", "Swin-L", "mixer_b16", "Mixer-B/16", 76.44, 81.96),
    ("swin_l", "Swin-L", "vit_s16", "ViT-S/16", 79.9, 83.93),
    ("swin_l", "Swin-L", "swin_t", "Swin-T", 81.18, 83.8),
    ("swin_l", "Swin-L", "vit_b16", "ViT-B/16", 81.8, 85.53),
    ("eva_l14", "BEiT-L/14", "resnet50", "ResNet-50", 78.64, 82.34),
    ("eva_l14", "BEiT-L/14", "mixer_b14", "Mixer-B/14", 76.62, 82.89),
    ("eva_l14", "BEiT-L/14", "vit_b14", "ViT-B/14", 82.02, 86.43),
)
METHODS = (("supervised", "Baseline", 0.0), ("kd", "KD", 1.5), ("scalekd", "ScaleKD", 2.5))
RECIPE = Recipe(epochs=40, batch_size=64)
ENVIRONMENT = {
    "versions": {"torch": "2.15.0", "timm": "1.0.31"},
    "cpu": "A processor",
    "cores": 2,
    "device": "cpu",
    "gpu": [],
}


def run(key: str, student: str, method: str, seed: int, label: str, needs: tuple[str, ...] = ()) -> PlannedRun:
    spec = RunSpec(
        task="train",
        data=DataSpec(name="digits", fingerprint="feed"),
        student=ModelCard(name=student, family="vit", arch=student),
        method=MethodSpec(name=method),
        recipe=RECIPE,
        seed=seed,
    )
    return PlannedRun(key=key, spec=spec, needs=needs, label=label)


def make_plan(pairs: int = 11, seeds: int = 5, *, by_value: bool = False) -> Plan:
    """The plan; keys read `<row>/<method>/<seed>` and `teacher/<slug>`."""
    runs: dict[str, PlannedRun] = {}
    cells = []
    for teacher, teacher_label, student, student_label, baseline, distilled in PAIRS[:pairs]:
        row = f"{teacher}-{student}"
        runs.setdefault(f"teacher/{teacher}", run(f"teacher/{teacher}", teacher, "supervised", 0, f"teacher {teacher}"))
        for method, label, _ in METHODS:
            needs = () if method == "supervised" else (f"teacher/{teacher}",)
            keys = tuple(f"{row}/{method}/{seed}" for seed in range(seeds))
            runs |= {
                k: run(k, student, method, seed, f"{method}-{student} seed {seed}", needs)
                for seed, k in enumerate(keys)
            }
            printed = {"supervised": baseline, "scalekd": distilled}.get(method)
            cells.append(
                Cell(
                    row=row,
                    teacher=teacher,
                    student=student,
                    method=method,
                    variant="",
                    metric="top1",
                    label=label,
                    row_label=(teacher_label, student_label),
                    added=method == "kd",
                    published=Published(value=printed, source="the paper") if printed else None,
                    baseline=None if method == "supervised" else (row, "supervised", ""),
                    runs=keys,
                )
            )
    return Plan(
        table="scalekd_table3",
        title="ScaleKD Table 3: main results on 11 teacher-student pairs",
        paper="scalekd",
        profile="laptop",
        by_value=by_value,
        metrics=("top1",),
        seeds=tuple(range(seeds)),
        cells=tuple(cells),
        runs=runs,
        captions=("Digits stand for ImageNet-1K.",),
        teachers={f"{key.partition('/')[2]}@imagenet1k": key for key in runs if key.startswith("teacher/")},
    )


def make_records(plan: Plan, noise: float = 0.8, draw: int = 0) -> dict[str, Record]:
    """A record for every run: baselines near 80 %, fixed gains per method, and noise of that standard deviation."""
    rng = np.random.default_rng(draw)
    level = {method: gain for method, _, gain in METHODS}
    records = {}
    for i, (key, planned) in enumerate(plan.runs.items()):
        method = planned.spec.method.name
        top1 = 97.5 if key.startswith("teacher") else 80 + level.get(method, 2.0) + rng.normal(0, noise)
        records[key] = Record(
            key=key,
            label=planned.label,
            status="done",
            spec={"task": "train", "seed": planned.spec.seed, "student": {"name": planned.spec.student.name}},
            metrics={"top1": float(top1)},
            cost={
                "wall_s": 10.0,
                "cpu_s": 12.0,
                "gpu_s": 0.0,
                "step_ms": {"supervised": 4.0, "kd": 5.0, "scalekd": 9.0}.get(method, 6.0),
                "extra_params_m": 0.5 if method == "scalekd" else 0.0,
                "peak_memory_mib": 700.0,
            },
            environment=ENVIRONMENT,
            started=1000.0 + 5 * (i // 2) * 2,
            finished=1010.0 + 5 * (i // 2) * 2,
        )
    return records


def seal(store: Store, record: Record) -> Record:
    """Write a record that lists the files in its run's folder, as a run does when it ends."""
    folder = store.folder(record.key)
    left = {path.name: sha256(path) for path in folder.glob("*.*") if path.name != "record.json"}
    record = replace(record, artifacts={**record.artifacts, **left})
    store.write(record)
    return record


class Synthetic:
    """The builders, for tests to call with their own sizes."""

    plan = staticmethod(make_plan)
    records = staticmethod(make_records)
    seal = staticmethod(seal)

    @staticmethod
    def with_values(plan: Plan, values: dict[str, list[float]]) -> dict[str, Record]:
        """Records whose metric is given per method, one value per seed, the same for every row."""
        records = make_records(plan)
        for cell in plan.cells:
            for key, value in zip(cell.runs, values[cell.method], strict=True):
                records[key] = replace(records[key], metrics={"top1": value})
        return records


@pytest.fixture(scope="session")
def synthetic() -> type[Synthetic]:
    return Synthetic
