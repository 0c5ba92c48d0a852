"""Accuracy of a model on a split, image by image; and the task that measures given weights (a teacher's, say)."""

import logging
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from lightning_fabric import Fabric

from hkd.data.base import DataSet, Split
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.models.hooks import evaluation_mode
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights
from hkd.options import NoOptions
from hkd.tasks.launch import task
from hkd.training.cost import Meter
from hkd.training.distributed import make_fabric, reduce
from hkd.training.inputs import evaluation_split, give_weights, open_data
from hkd.training.job import Job, Outcome

log = logging.getLogger(__name__)


@task(NoOptions)
def evaluate(job: Job) -> Outcome:
    """The task: top-1 accuracy of the student that `spec.init` names, which is left in the folder like a trained one.

    Files and failures are those of `hkd.tasks.train.train`.
    """
    spec, meter = job.spec, Meter()
    if spec.init is None:
        raise UserError("An evaluation needs weights to evaluate: give the run an `init`.")
    fabric = make_fabric(job.runtime, spec.recipe.precision if spec.recipe else "32-true")
    data, _ = open_data(spec.data, job.runtime)
    split = evaluation_split(spec, data, job.runtime)
    model = TapModel(spec.student, data.num_classes)
    give_weights(model, spec.init, job.weights)
    model.to(fabric.device)
    job.folder.mkdir(parents=True, exist_ok=True)
    metrics = measure(model, split, job, data, fabric)
    if fabric.is_global_zero:
        save_weights(model.net.state_dict(), job.folder / "student.safetensors")
    fabric.barrier()
    return Outcome(metrics=metrics, cost=meter.cost(fabric, model))


def measure(model: TapModel, split: Split, job: Job, data: DataSet, fabric: Fabric) -> dict[str, float]:
    """Top-1 accuracy in percent over a split; predictions.npz gets row, label and prediction of every image."""
    predictions = predict(model, evaluation_loader(split, job, data, fabric), fabric).numpy()
    seen = predictions >= 0  # an image that could not be read has none
    labels = split.labels[seen]
    if fabric.is_global_zero:
        write_predictions(split.rows[seen], labels, predictions[seen], job.folder)
    metrics = {"top1": 100 * float((predictions[seen] == labels).mean())}
    if not seen.all():
        log.warning("%d images could not be read and were left out of the accuracy", (~seen).sum())
        metrics["skipped_images"] = float((~seen).sum())
    return metrics


def top1(model: TapModel, split: Split, job: Job, data: DataSet, fabric: Fabric) -> float:
    """Top-1 accuracy in percent over the images of a split that can be read; nothing is written."""
    predictions = predict(model, evaluation_loader(split, job, data, fabric), fabric).numpy()
    seen = predictions >= 0
    return 100 * float((predictions[seen] == split.labels[seen]).mean())


def evaluation_loader(split: Split, job: Job, data: DataSet, fabric: Fabric) -> Loader:
    """This process's share of a split, as it is measured."""
    return Loader(
        split,
        None,
        num_classes=data.num_classes,
        seed=job.spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        train=False,
        workers=job.runtime.loader_workers,
        on_corrupt=job.runtime.on_corrupt,
        device=fabric.device,
    )


def write_predictions(
    rows: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"], predictions: Int[np.ndarray, " N"], folder: Path
) -> None:
    """predictions.npz: row in the source, label and predicted class of every image."""
    with atomic_write(folder / "predictions.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, row=rows, label=labels, prediction=predictions)


@torch.no_grad()
def predict(model: TapModel, loader: Loader, fabric: Fabric) -> torch.Tensor:
    """Most likely class of every image of the loader's split, int64 [N] on the CPU; -1 where there was no image."""
    predictions = torch.full((loader.count,), -1, dtype=torch.int64, device=fabric.device)
    with evaluation_mode(model):
        for batch in loader.epoch(0):
            batch = batch.to(fabric.device)
            with fabric.autocast():
                predictions[batch.index] = model(batch.x).logits.argmax(1)
    return reduce(fabric, predictions, "max").cpu()
