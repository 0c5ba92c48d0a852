"""Accuracy of a model on a split, image by image; and the task that measures given weights (a teacher's, say)."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from hkd.data.base import DataSet, Split
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights
from hkd.spec import RunSpec
from hkd.training.cost import gpu_seconds, millions, peak_memory_mib, reset_peak_memory
from hkd.training.distributed import launch, make_fabric, reduce, to_device, under_torchrun
from hkd.training.inputs import evaluation_split, give_weights, open_data
from hkd.training.outcome import Outcome
from hkd.training.runtime import Runtime

log = logging.getLogger(__name__)


def evaluate(
    spec: RunSpec,
    weights: Mapping[str, Path],
    folder: Path,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
) -> Outcome:
    """The task: top-1 accuracy of the student that `spec.init` names, which is left in the folder like a trained one.

    Arguments, files and failures are those of `hkd.tasks.train.train`.
    """
    if runtime.processes > 1 and not under_torchrun():
        return launch(spec, weights, folder, runtime, report)
    if spec.init is None:
        raise UserError("An evaluation needs weights to evaluate: give the run an `init`.")
    reset_peak_memory()
    started, cpu_started = time.perf_counter(), time.process_time()
    fabric = make_fabric(runtime, spec.recipe.precision if spec.recipe else "32-true")
    data, _ = open_data(spec.data, runtime)
    split = evaluation_split(spec, data, runtime)
    model = TapModel(spec.student, data.num_classes)
    give_weights(model, spec.init, weights)
    model.to(fabric.device)
    metrics = measure(model, split, spec, data, folder, runtime, fabric)
    if fabric.is_global_zero:
        save_weights(model.net.state_dict(), folder / "student.safetensors")
    fabric.barrier()
    wall_s = time.perf_counter() - started
    return Outcome(
        metrics=metrics,
        cost={
            "wall_s": wall_s,
            "cpu_s": time.process_time() - cpu_started,
            "gpu_s": gpu_seconds(wall_s, fabric.device, fabric.world_size),
            "student_params_m": millions(model),
            "peak_memory_mib": peak_memory_mib(fabric.device),
        },
    )


def measure(
    model: TapModel, split: Split, spec: RunSpec, data: DataSet, folder: Path, runtime: Runtime, fabric: Fabric
) -> dict[str, float]:
    """Top-1 accuracy in percent over a split; predictions.npz gets row, label and prediction of every image."""
    loader = Loader(
        split,
        None,
        num_classes=data.num_classes,
        seed=spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        train=False,
        workers=runtime.loader_workers,
        on_corrupt=runtime.on_corrupt,
    )
    predictions = predict(model, loader, fabric).numpy()
    seen = predictions >= 0  # an image that could not be read has none
    labels = split.labels[seen]
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "predictions.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, row=split.rows[seen], label=labels, prediction=predictions[seen])
    metrics = {"top1": 100 * float((predictions[seen] == labels).mean())}
    if not seen.all():
        log.warning("%d images could not be read and were left out of the accuracy", (~seen).sum())
        metrics["skipped_images"] = float((~seen).sum())
    return metrics


@torch.no_grad()
def predict(model: TapModel, loader: Loader, fabric: Fabric) -> torch.Tensor:
    """Most likely class of every image of the loader's split, int64 [N] on the CPU; -1 where there was no image."""
    training = model.training
    model.eval()
    predictions = torch.full((len(loader.labels),), -1, dtype=torch.int64, device=fabric.device)
    for batch in loader.epoch(0):
        batch = to_device(batch, fabric.device)
        with fabric.autocast():
            predictions[batch.index] = model(batch.x).logits.argmax(1)
    model.train(training)
    return reduce(fabric, predictions, "max").cpu()
