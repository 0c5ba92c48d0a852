"""What a training step costs here: ratios of whole epochs, data and augmentation included, one thread, CPU seconds.

The number that matters is `ratio` in the extra info: the median over interleaved pairs of epochs in the same process,
with the first and third quartile beside it. Both sides are built anew several times, because two builds of one and the
same loop differ by up to 3 % (where their tensors happen to lie), which no number of pairs of one build averages out.
Digits, 32 px, batch 50, miniature models. Run without the type-checking hook of the tests, which costs time:
`pytest -o addopts="" --benchmark-only benchmarks/test_step_speed.py`.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.train import build
from hkd.training.checkpoint import Checkpoints
from hkd.training.cost import Meter
from hkd.training.distributed import make_fabric
from hkd.training.inputs import open_data
from hkd.training.job import Job, Runtime
from hkd.training.journal import Journal
from hkd.training.loop import fit
from hkd.training.session import assembled
from hkd.training.step import Training

STUDENTS = ["resnet50_mini", "mobilenet_v1_mini", "convnext_t_mini", "mixer_s16_mini", "vit_s16_mini", "swin_t_mini"]
HCD_STUDENTS = ["resnet18_mini", "mobilenet_v2_mini", "deit_t_mini", "swin_p_mini", "resmlp_s12_mini"]
# Steps of HCD's tables and of more comparison methods, over a supervised one.
LIMITS = {"kd": 1.1, "dkd": 1.1, "dist": 1.1, "fitnet": 1.3, "cc": 1.3, "rkd": 1.3, "hcd": 2.0, "crd": inf, "ofa": inf}
LIMITS |= dict.fromkeys(("rsd", "at", "sp", "pkt", "nst", "lskd"), 1.2)
BUILDS = 6  # of both sides
PAIRS = 5  # of epochs per build, after one that is not counted
STEPS = 10  # of an epoch
BATCH = 50
RECIPE = Recipe(epochs=1000, batch_size=BATCH, lr=1e-3, shift=2)
FIXED = replace(RECIPE, views=4)


@dataclass
class Epochs:
    """A run that trains one epoch per call, as `train` does it."""

    run: Training
    journal: Journal
    checkpoints: Checkpoints

    def __call__(self) -> None:
        self.run.recipe = replace(self.run.recipe, epochs=self.run.position.epoch + 1)
        fit(self.run, self.journal, self.checkpoints)


def epochs_of(
    method: str,
    student: str,
    folder: Path,
    recipe: Recipe = RECIPE,
    teacher: str = "swin_l_mini",
    data: str = "digits",
    options: dict[str, Any] | None = None,
) -> Epochs:
    """A run that stands at its beginning; gradient norms, measured in five epochs of a run, are left out."""
    teachers = {"teacher": TeacherSpec(model=ZOO[teacher], weights=Weights(kind="random", id="0"))}
    spec = RunSpec(
        task="train",
        data=DataSpec(name=data, options={"n_train": STEPS * BATCH}),
        student=ZOO[student],
        method=MethodSpec(name=method, options=options or {}),
        recipe=recipe,
        teachers={} if method == "supervised" else teachers,
    )
    runtime = Runtime(accelerator="cpu")
    job, fabric = Job(spec, {}, folder, runtime, lambda news: None), make_fabric(runtime, recipe.precision)
    run = assembled(job, fabric, build(job, fabric, *open_data(spec.data, runtime), measure=lambda run: {}))
    journal = Journal(run.fabric, epochs=1000, steps=STEPS, report=lambda news: None, every_s=0.25, norms=False)
    return Epochs(run, journal, Checkpoints(folder / f"{method}.pt", spec, runtime.checkpoint_every_s, Meter()))


def bare_epochs(student: str, like: Training) -> Callable[[], None]:
    """The loop that one would write by hand: timm model, normalisation, fused AdamW; no schedule, nothing recorded."""
    card = ZOO[student]
    net: nn.Module = like.step.student.family.build(card, 10)
    layout = torch.channels_last if card.channels_last else torch.contiguous_format
    net = net.to(memory_format=layout).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (card.mean, card.std))
    epochs = iter(range(1000))

    def epoch() -> None:
        for batch in like.loader.epoch(next(epochs)):
            optimizer.zero_grad()
            x = ((batch.x - mean) / std).contiguous(memory_format=layout)
            F.cross_entropy(net(x), batch.y).backward()
            optimizer.step()

    return epoch


def seconds(epoch: Callable[[], None]) -> float:
    start = time.process_time()
    epoch()
    return time.process_time() - start


def compare(
    benchmark,
    build: Callable[[], tuple[Callable[[], None], Callable[[], None]]],
    limit: float,
    builds: int = BUILDS,
) -> None:
    """Record the ratio of the two loops that `build` makes, the second being the reference; fail beyond the limit."""
    ratios = []
    for _ in range(builds):
        epoch, reference = build()
        epoch(), reference()
        ratios += [seconds(epoch) / seconds(reference) for _ in range(PAIRS)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    benchmark.extra_info.update(
        ratio=round(ratio, 3), quartiles=(round(low, 3), round(high, 3)), limit=limit, pairs=len(ratios), batch=BATCH
    )
    benchmark.pedantic(epoch, rounds=1)
    assert ratio <= limit, f"ratio {ratio:.3f} (quartiles {low:.3f} to {high:.3f}), limit {limit}"


@pytest.mark.parametrize("student", STUDENTS)
def test_a_supervised_step_costs_what_a_bare_loop_costs(benchmark, tmp_path, student):
    def build():
        loop = epochs_of("supervised", student, tmp_path)
        return loop, bare_epochs(student, loop.run)

    compare(benchmark, build, limit=1.05)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_distillation_step_with_cached_teacher_costs_what_a_supervised_one_costs(benchmark, tmp_path, student):
    def build():
        return epochs_of("kd", student, tmp_path, FIXED), epochs_of("supervised", student, tmp_path, FIXED)

    compare(benchmark, build, limit=1.05)


@pytest.mark.parametrize("student", STUDENTS)
def test_a_scalekd_step_costs_at_most_three_supervised_ones(benchmark, tmp_path, student):
    def build():
        return epochs_of("scalekd", student, tmp_path, FIXED), epochs_of("supervised", student, tmp_path, FIXED)

    compare(benchmark, build, limit=3.0)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # images shared by the data set's cache
@pytest.mark.parametrize("student", HCD_STUDENTS)
@pytest.mark.parametrize("method", LIMITS)
def test_a_step_of_each_method_beside_a_supervised_one(benchmark, tmp_path, method, student):
    """Two-digit numbers, 100 classes, Swin-T's miniature as cached teacher; methods without a limit are reported."""
    options: dict[str, Any] = {"negatives": STEPS * BATCH // 3} if method == "crd" else {}
    if student.startswith("swin") and method in ("hcd", "ofa"):
        options = {"projector": "tokens"}
    shared = {"recipe": FIXED, "teacher": "swin_t_ofa_mini", "data": "numbers100"}

    def build():
        loop = epochs_of(method, student, tmp_path, options=options, **shared)
        return loop, epochs_of("supervised", student, tmp_path, **shared)

    compare(benchmark, build, limit=LIMITS[method], builds=2)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
@pytest.mark.parametrize("student", ["resnet50_mini", "vit_s16_mini"])
def test_the_fused_optimiser_is_not_the_slower_one(benchmark, tmp_path, student, optimizer):
    def build():
        recipe = replace(RECIPE, optimizer=optimizer)
        loop, plain = (epochs_of("supervised", student, tmp_path, recipe) for _ in range(2))
        assert loop.run.optimizer.param_groups[0]["fused"] is True
        for group in plain.run.optimizer.param_groups:
            group["fused"] = None
        return loop, plain

    compare(benchmark, build, limit=1.03)
