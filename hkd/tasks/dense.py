"""What the tasks of dense prediction share: a backbone of the zoo and a head, trained together and evaluated.

The training is that of `hkd.training.session`. There `student` is the backbone, whose plain timm weights are exported,
and `method` is the head, whose weights go to the adapters.
"""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hkd.data.dense import DenseSet
from hkd.data.loading.dense import DenseBatch, DenseLoader, ViewOptions
from hkd.downstream.backbone import Backbone, load_pretrained
from hkd.errors import UserError
from hkd.models.convert.files import read_weights
from hkd.models.hooks import evaluation_mode
from hkd.models.weights import load_weights
from hkd.options import Switch, options
from hkd.spec import RunSpec
from hkd.training.cache import Teachers
from hkd.training.distributed import of_all
from hkd.training.inputs import open_data
from hkd.training.job import Job, Outcome, Runtime
from hkd.training.rng import seed_all
from hkd.training.session import Built, train_run
from hkd.training.step import Step, Training

log = logging.getLogger(__name__)

Wanted = Literal["objects", "maps"]
FIXED = {  # recipe fields that a dense training has no use for, and the one value each may have
    "loss": "ce",
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "crop": "none",
    "shift": 0,
    "randaugment": None,
    "erasing": 0.0,
    "views": None,
}


@options
class DenseOptions(ViewOptions):
    """Base of the options of every dense task."""

    # Train the head alone: the backbone keeps its weights and statistics and is read as in evaluation (no dropout).
    frozen: Switch = False


class DenseStep(Step):
    """Backbone and head. The head is called with (maps, batch), and gives named scalar losses while it trains.

    Where the head has an attribute `multiple`, the sides of its images are multiples of that too; where its
    `fixed_statistics` is true, the backbone's batch norms keep their statistics while it trains. With `frozen` the
    whole backbone stays as it is.
    """

    student: Backbone
    frozen = False

    def freeze(self) -> None:
        """From now on the head trains alone."""
        self.frozen = True
        self.student.requires_grad_(False).eval()

    @property
    def multiple(self) -> int:
        """What the sides of images must be multiples of."""
        return math.lcm(self.student.multiple, getattr(self.method, "multiple", 1))

    @property
    def averaged(self) -> nn.Module:
        """Backbone and head: a head's own weights would not fit the average of its backbone's."""
        return self

    def train(self, mode: bool = True) -> "DenseStep":
        super().train(mode)
        if self.frozen:
            self.student.eval()
        if getattr(self.method, "fixed_statistics", False):
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(  # type: ignore[override]
        self, batch: DenseBatch, taps_t: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """Named, weighted scalar losses of one batch; their sum is minimised."""
        return self.method(self.student(batch.x), batch)


MakeHead = Callable[[Backbone, DenseSet, Any], nn.Module]
Evaluate = Callable[[DenseStep, DenseLoader, Fabric, Path], dict[str, float]]


def run_dense(job: Job, *, wants: Wanted, options: DenseOptions, make_head: MakeHead, evaluate: Evaluate) -> Outcome:
    """Train a backbone with a head, or go on where an interrupted run stopped, and evaluate it.

    Leaves in `folder`: student.safetensors (backbone), adapters.safetensors (head), curves.jsonl, and what `evaluate`
    writes; checkpoint.pt only while it runs.

    Args:
        job: the run; without `spec.init` the backbone starts from scratch.
        wants: which targets the split must have.
        options: of the task, filled from `spec.task_options`.
        make_head: called with (backbone, data set, options); draws its weights from torch's global generator.
        evaluate: called once with (step, loader, fabric, folder) in evaluation mode without gradients, in every
            process. The loader shows this process's images of the split `spec.evaluate_on`, which is `loader.dense`;
            predictions of all processes are put together there. Gives the metrics.

    Raises:
        Diverged: a loss stopped being finite.
        UserError: data, weights, recipe or options are not what the task needs.
    """
    check(job)

    def built(job: Job, fabric: Fabric) -> Built:
        data = open_dense(job.spec, job.runtime, wants)
        seed_all(job.spec.seed, "init")
        backbone = Backbone(job.spec.student, job.recipe.drop_path)
        if job.spec.init is not None:
            load_pretrained(backbone, job.spec.init, job.weights)
        seed_all(job.spec.seed, "adapters")
        step = DenseStep(backbone, make_head(backbone, data, options)).to(fabric.device)
        loader = make_loader(job, data, options, step, fabric, train=True)
        if options.frozen:
            step.freeze()
        else:
            freeze_unused(backbone)

        def measure(run: Training) -> dict[str, float]:
            held = make_loader(job, data, options, step, fabric, train=False)
            metrics = evaluate(step, held, fabric, job.folder)
            if corrupt := of_all(fabric, list(held.corrupt)):
                log.warning("%d images could not be read and were evaluated as without predictions", len(corrupt))
                metrics["skipped_images"] = float(len(corrupt))
            return metrics

        return Built(step, loader, lambda: Teachers({}), measure)

    return train_run(job, built)


def check(job: Job) -> None:
    """Refuse what a dense task cannot do.

    Raises:
        UserError: there is no recipe, or one that does not fit, or teachers or another method were given.
    """
    spec, recipe = job.spec, job.recipe
    if spec.method.name != "supervised" or spec.teachers:
        raise UserError(f"The task '{spec.task}' trains on annotations: take the method 'supervised', and no teachers.")
    for name, value in FIXED.items():
        if getattr(recipe, name) != value:
            raise UserError(
                f"The recipe's {name} is {getattr(recipe, name)!r}, which the task '{spec.task}' cannot do: leave it "
                f"at {value!r}; images are augmented by the recipe's flip and the task options scale and crop."
            )


def open_dense(spec: RunSpec, runtime: Runtime, wants: Wanted) -> DenseSet:
    """The data set of a spec.

    Raises:
        UserError: it is missing, or has not the targets that are wanted.
    """
    data, _ = open_data(spec.data, runtime)
    names = getattr(data, "object_names" if wants == "objects" else "map_names", ())
    if not isinstance(data, DenseSet) or not names:
        what = "boxes and masks of objects" if wants == "objects" else "semantic maps"
        raise UserError(f"The task '{spec.task}' needs {what}, and the data set '{spec.data.name}' has none.")
    return data


def make_loader(
    job: Job, data: DenseSet, options: DenseOptions, step: DenseStep, fabric: Fabric, *, train: bool
) -> DenseLoader:
    """This process's batches of the training split, or of the one that is evaluated."""
    return DenseLoader(
        data.load_dense("train" if train else job.spec.evaluate_on, seed=job.spec.seed, select=job.select),
        job.recipe,
        options=options,
        multiple=step.multiple,
        seed=job.spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        train=train,
        workers=job.runtime.loader_workers,
        on_corrupt=job.runtime.on_corrupt,
    )


def freeze_unused(backbone: Backbone) -> None:
    """Take from training what the four maps do not depend on (a final norm): several processes would wait for its
    gradients. Nothing random is drawn and no statistics move.
    """
    side = backbone.multiple * 2
    with evaluation_mode(backbone):
        maps = backbone(torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device))
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = torch.stack([map_.sum() for map_ in maps]).sum()
    for parameter, grad in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(grad is not None)


def restore_dense(
    spec: RunSpec, folder: Path, runtime: Runtime, *, wants: Wanted, options: DenseOptions, make_head: MakeHead
) -> DenseStep:
    """Backbone and head of a finished run in evaluation mode, on the CPU.

    Args:
        spec: of the run.
        folder: where it left student.safetensors and adapters.safetensors.
        runtime: places.
        wants, options, make_head: as for `run_dense`.

    Raises:
        UserError: files or data are missing or are not what the spec needs.
    """
    data = open_dense(spec, runtime, wants)
    backbone = Backbone(spec.student)
    load_weights(backbone.net, folder / "student.safetensors")
    step = DenseStep(backbone, make_head(backbone, data, options))
    step.method.load_state_dict(read_weights(folder / "adapters.safetensors"))
    return step.eval()
