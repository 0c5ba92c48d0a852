"""The task that asks how much a frozen model knows: a linear classifier on its pooled features (linear probe).

Shapes: N images, D feature width, C classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor

from hkd.data.base import Split
from hkd.data.loading.loader import Loader
from hkd.errors import Refused, UserError
from hkd.models.tap_model import Teacher
from hkd.options import Positive, configured, options
from hkd.tasks.evaluate import write_predictions
from hkd.tasks.launch import task
from hkd.training.cost import Meter
from hkd.training.distributed import make_fabric, reduce
from hkd.training.inputs import evaluation_split, give_weights, open_data
from hkd.training.job import Job, Outcome, Runtime


@options
class ProbeOptions:
    """Options of the task."""

    l2: Positive = 1e-3  # penalty on the squared weights of standardised features; the loss is a mean over images


@task(ProbeOptions)
def probe(job: Job) -> Outcome:
    """Top-1 accuracy of a linear classifier on the frozen features of the model that `spec.init` names.

    The classifier is fitted to all training images of the data, unaugmented; features are standardised by them. All
    features are held in memory: N x D numbers. Leaves predictions.npz, as an evaluation does.

    Raises:
        UserError: no weights to probe, or data without classes.
    """
    spec, runtime, folder, meter = job.spec, job.runtime, job.folder, Meter()
    if spec.init is None:
        raise UserError("A linear probe needs weights to probe: give the run an `init`.")
    if spec.recipe is not None and spec.recipe.validate_every:
        raise Refused("A linear probe has no epochs to read an accuracy between: leave validate_every out.")
    options = configured(ProbeOptions, "Task 'probe'", spec.task_options)
    fabric = make_fabric(runtime, "32-true")
    data, _ = open_data(spec.data, runtime)
    if not data.num_classes:
        raise UserError(f"A linear probe needs labels, and '{spec.data.name}' has none.")
    model = Teacher(spec.student, 0)
    give_weights(model, spec.init, job.weights)
    model.to(fabric.device)
    train = data.load("train", seed=spec.seed, select=job.select, on_corrupt=runtime.on_corrupt)
    held = evaluation_split(spec, data, runtime)
    x_train, y_train, _ = features(model, train, runtime, fabric)
    x_held, y_held, rows = features(model, held, runtime, fabric)
    predictions = linear_probe(x_train, y_train, x_held, classes=data.num_classes, l2=options.l2)
    labels, predicted = y_held.cpu().numpy(), predictions.cpu().numpy()
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        write_predictions(rows, labels, predicted, folder)
    fabric.barrier()
    return Outcome(metrics={"top1": 100 * float((predicted == labels).mean())}, cost=meter.cost(fabric))


def features(
    model: Teacher, split: Split, runtime: Runtime, fabric: Fabric
) -> tuple[Float[Tensor, "N D"], Int[Tensor, " N"], Int[np.ndarray, " N"]]:
    """Pooled features and labels of a split's readable images, in order, on the model's device; and their rows."""
    loader = Loader(
        split,
        None,
        num_classes=0,
        seed=0,
        rank=fabric.global_rank,
        world=fabric.world_size,
        train=False,
        workers=runtime.loader_workers,
        on_corrupt=runtime.on_corrupt,
    )
    found = torch.zeros(len(split), model.info.pooled, device=fabric.device)
    read = torch.zeros(len(split), device=fabric.device)
    for batch in loader.epoch(0):
        batch = batch.to(fabric.device)
        found[batch.index], read[batch.index] = model(batch.x).pooled.float(), 1.0
    seen = reduce(fabric, read, "sum") > 0
    labels = torch.from_numpy(split.labels).to(fabric.device)
    return reduce(fabric, found, "sum")[seen], labels[seen], split.rows[seen.cpu().numpy()]


def linear_probe(
    x_train: Float[Tensor, "N D"],
    y_train: Int[Tensor, " N"],
    x_test: Float[Tensor, "M D"],
    *,
    classes: int,
    l2: float,
) -> Int[Tensor, " M"]:
    r"""Classes of test features by multinomial logistic regression, fitted by L-BFGS from zero: no randomness.

    .. math:: \min_{W, b} \frac{1}{N} \sum_n -\log softmax(W x_n + b)_{y_n} + \frac{\lambda}{2} \|W\|^2

    Args:
        x_train: features; standardised here by their mean and standard deviation, as the test features are.
        y_train: classes.
        x_test: features to classify.
        classes: C.
        l2: lambda.
    """
    mean, std = x_train.mean(dim=0), x_train.std(dim=0, correction=0).clamp_min(1e-6)
    x_train, x_test = ((x - mean) / std for x in (x_train, x_test))
    weight = torch.zeros(classes, x_train.shape[1], device=x_train.device, requires_grad=True)
    bias = torch.zeros(classes, device=x_train.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=300, history_size=20, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x_train, weight, bias), y_train) + 0.5 * l2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return F.linear(x_test, weight, bias).argmax(dim=1).detach()
