"""The task that trains without labels: teachers by masked image modelling, students by label-free distillation.

It is the training of `hkd.tasks.train` on data without classes: the model has no classifier and no accuracy; what is
reported are the method's own losses on held-out images.
"""

import math
from collections.abc import Mapping

import torch
from lightning_fabric import Fabric

from hkd.data.base import DataSet
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from hkd.methods.base import Method
from hkd.models.tap_model import Teacher
from hkd.options import NoOptions
from hkd.tasks.launch import task
from hkd.tasks.train import build
from hkd.training.cache import make_teachers
from hkd.training.distributed import reduce
from hkd.training.inputs import evaluation_split, open_data
from hkd.training.job import Job, Outcome
from hkd.training.rng import seed_all
from hkd.training.session import Built, train_run
from hkd.training.step import Training


@task(NoOptions)
def pretrain(job: Job) -> Outcome:
    """Train the model of a spec on data without labels, or go on where an interrupted run stopped.

    Files and failures are those of `train_run`, without predictions; student.safetensors holds the encoder alone, under
    its plain timm names without a classifier.

    Returns:
        metrics: `heldout_loss`, and `heldout_<term>` for each of its terms: means over the evaluation split in
        evaluation mode, with masks drawn from the seed.

    Raises:
        UserError: also for data that has classes.
    """

    def built(job: Job, fabric: Fabric) -> Built:
        data, fingerprint = open_data(job.spec.data, job.runtime)
        if data.num_classes:
            name = job.spec.data.name
            raise UserError(f"Pre-training reads no labels, but '{name}' has them: take '{name}_unlabelled'.")
        return build(job, fabric, data, fingerprint, lambda run: heldout(run, job, data, fingerprint))

    return train_run(job, built)


def heldout(run: Training, job: Job, data: DataSet, fingerprint: str) -> dict[str, float]:
    """Mean losses of the trained model over the evaluation split, term by term."""
    spec, runtime, fabric, method = job.spec, job.runtime, run.fabric, run.step.method
    assert isinstance(method, Method)
    frozen: Mapping[str, Teacher] = method.teachers  # type: ignore[assignment]
    split = evaluation_split(spec, data, runtime)
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
        device=fabric.device,
        batch_size=run.recipe.batch_size,
    )
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
    seed_all(spec.seed, "held out", fabric.global_rank)
    sums: dict[str, torch.Tensor] = {}
    count = torch.zeros((), dtype=torch.float64)
    for batch in loader.epoch(0):
        batch = batch.to(fabric.device)
        with fabric.autocast():
            losses = run.step(batch, teachers(batch))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.double().cpu() * len(batch.x)
        count += len(batch.x)
    count = reduce(fabric, count, "sum")
    means = {name: float(reduce(fabric, total, "sum") / count) for name, total in sums.items()}
    return {"heldout_loss": math.fsum(means.values())} | {f"heldout_{name}": mean for name, mean in means.items()}
