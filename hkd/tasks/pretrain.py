"""The task that trains without labels: teachers by masked image modelling, students by label-free distillation.

The loop, the checkpoints and the folder are those of `hkd.tasks.train`. What differs: the data has no classes, so
the model has no classifier and no accuracy; what is reported are the method's own losses on held-out images.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from hkd.data.base import Split
from hkd.data.loading.loader import Loader
from hkd.errors import Diverged, UserError
from hkd.methods.base import Method
from hkd.models.tap_model import Teacher
from hkd.models.weights import save_weights
from hkd.spec import RunSpec
from hkd.tasks.train import device_batch, prepare, write_curves
from hkd.training.cache import make_teachers
from hkd.training.checkpoint import Checkpoints
from hkd.training.cost import gpu_seconds, memory_told, millions, peak_memory_mib, reset_peak_memory
from hkd.training.distributed import launch, reduce, to_device, under_torchrun
from hkd.training.inputs import evaluation_split, open_data
from hkd.training.journal import Journal
from hkd.training.loop import fit
from hkd.training.outcome import Outcome
from hkd.training.rng import seed_all
from hkd.training.runtime import Runtime
from hkd.training.state import Training


class MethodJournal(Journal):
    """A journal whose lines also hold the figures of a method that has `diagnostics()`: means over the epoch."""

    def __init__(self, method: Method, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.diagnostics: Callable[[], dict[str, float]] = getattr(method, "diagnostics", dict)

    def close_epoch(self, epoch: int, lr: float) -> None:
        super().close_epoch(epoch, lr)
        self.curves[-1] |= self.diagnostics()


def pretrain(
    spec: RunSpec,
    weights: Mapping[str, Path],
    folder: Path,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
) -> Outcome:
    """Train the model of a spec on data without labels, or go on where an interrupted run stopped.

    Arguments, files and failures are those of `hkd.tasks.train.train`, without predictions; student.safetensors
    holds the encoder alone, under its plain timm names without a classifier.

    Returns:
        metrics: `heldout_loss`, and `heldout_<term>` for each of its terms: means over the evaluation split in
        evaluation mode, with masks drawn from the seed.

    Raises:
        UserError: also for data that has classes.
    """
    if runtime.processes > 1 and not under_torchrun():
        return launch(spec, weights, folder, runtime, report)
    if spec.recipe is None:
        raise UserError("A pre-training run needs a recipe.")
    if open_data(spec.data, runtime)[0].num_classes:
        raise UserError(
            f"Pre-training reads no labels, but '{spec.data.name}' has them: take '{spec.data.name}_unlabelled'."
        )
    reset_peak_memory()
    folder.mkdir(parents=True, exist_ok=True)
    images = device_batch(spec.recipe, runtime)
    with memory_told(images):
        checkpoints = Checkpoints(folder / "checkpoint.pt", spec, runtime.checkpoint_every_s)
        run, data = prepare(spec, spec.recipe, weights, runtime)
        without_targets(run.loader)
        journal = MethodJournal(
            run.step.method,
            run.fabric,
            epochs=spec.recipe.epochs,
            steps=run.loader.steps,
            report=report,
            every_s=runtime.report_every_s,
            norms=spec.recipe.precision != "16-mixed",
        )
        if not checkpoints.restore(run, journal):
            seed_all(spec.seed, "train", run.fabric.global_rank)
        try:
            fit(run, journal, checkpoints)
        finally:
            write_curves(journal.curves, folder)
        keep(run, folder)
        metrics = heldout(run, spec, evaluation_split(spec, data, runtime), runtime, data.fingerprint())
    if run.fabric.is_global_zero:
        checkpoints.remove()
    costs = checkpoints.costs()
    cost = {
        **costs,
        "gpu_s": gpu_seconds(costs["wall_s"], run.fabric.device, run.fabric.world_size),
        "step_ms": journal.step_ms,
        "steps": float(run.position.updates),
        "device_batch": float(images),
        "student_params_m": millions(run.step.student),
        "extra_params_m": millions(run.step.method),
        "peak_memory_mib": peak_memory_mib(run.fabric.device),
    }
    return Outcome(metrics=metrics, cost=cost, curves=journal.curves)


def without_targets(loader: Loader) -> None:
    """Make a loader's targets soft ones over no classes, [B, 0]: nothing that counts correct predictions finds any."""
    loader.labels = torch.empty(len(loader.labels), 0)


def keep(run: Training, folder: Path) -> None:
    """Write encoder and adapters.

    Raises:
        Diverged: the last update left weights that are not finite.
    """
    student = run.step.student
    if not all(torch.isfinite(parameter).all() for parameter in student.parameters()):
        raise Diverged(run.position.updates - 1, {"weights": math.nan})
    if run.ema is not None:
        student.net.load_state_dict(run.ema.module.state_dict())
    if run.fabric.is_global_zero:
        save_weights(student.net.state_dict(), folder / "student.safetensors")
        save_weights(run.step.method.state_dict(), folder / "adapters.safetensors")
    run.fabric.barrier()


@torch.no_grad()
def heldout(run: Training, spec: RunSpec, split: Split, runtime: Runtime, fingerprint: str) -> dict[str, float]:
    """Mean losses of the trained model over a split, term by term; it is left in evaluation mode."""
    fabric, method = run.fabric, run.step.method
    frozen: Mapping[str, Teacher] = method.teachers  # type: ignore[assignment]
    loader = Loader(
        split,
        None,
        num_classes=0,
        seed=spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        train=False,
        workers=runtime.loader_workers,
        on_corrupt=runtime.on_corrupt,
        batch_size=run.recipe.batch_size,
    )
    without_targets(loader)
    teachers = make_teachers(
        frozen,
        method.needs(method.config).teachers,
        loader,
        spec=spec,
        fingerprint=fingerprint,
        cache_dir=None,
        device=fabric.device,
        precision=fabric.autocast,
        method=method,
    )
    run.step.eval()
    seed_all(spec.seed, "held out", fabric.global_rank)
    sums: dict[str, torch.Tensor] = {}
    count = torch.zeros((), dtype=torch.float64)
    for batch in loader.epoch(0):
        batch = to_device(batch, fabric.device)
        with fabric.autocast():
            losses = run.step(batch, teachers(batch))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.double().cpu() * len(batch.x)
        count += len(batch.x)
    count = reduce(fabric, count, "sum")
    means = {name: float(reduce(fabric, total, "sum") / count) for name, total in sums.items()}
    return {"heldout_loss": math.fsum(means.values())} | {f"heldout_{name}": mean for name, mean in means.items()}
