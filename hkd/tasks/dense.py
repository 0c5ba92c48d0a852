"""What the tasks of dense prediction share: a backbone of the zoo and a head, trained together and evaluated.

The loop, the optimiser, the checkpoints, the curves and the folder are those of `hkd.tasks.train`. There `student`
is the backbone, whose plain timm weights are exported, and `method` is the head, whose weights go to the adapters.
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
from hkd.errors import Diverged, UserError
from hkd.models.weights import load_weights, read_weights, save_weights
from hkd.spec import Recipe, RunSpec
from hkd.tasks.train import write_curves
from hkd.training.cache import Teachers
from hkd.training.checkpoint import Checkpoints
from hkd.training.cost import gpu_seconds, memory_told, millions, peak_memory_mib, reset_peak_memory
from hkd.training.distributed import launch, make_fabric, under_torchrun
from hkd.training.inputs import open_data
from hkd.training.journal import Journal
from hkd.training.loop import fit
from hkd.training.outcome import Outcome
from hkd.training.recipe import make_optimizer, make_schedule
from hkd.training.rng import seed_all
from hkd.training.runtime import Runtime
from hkd.training.state import Position, Training
from hkd.training.step import Step

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
    "ema_decay": None,
}


class DenseStep(Step):
    """Backbone and head as one module.

    Attributes:
        student: the backbone; `student.net` is the plain timm model.
        method: the head: a module called with (maps, batch), which gives named scalar losses while it trains. Where it
            has an attribute `multiple`, the sides of its images are multiples of that too; where its
            `fixed_statistics` is true, the backbone's batch norms keep their statistics while it trains.
        hits: None: nothing is classified.
    """

    student: Backbone  # type: ignore[assignment]
    method: nn.Module  # type: ignore[assignment]

    def __init__(self, student: Backbone, method: nn.Module):
        nn.Module.__init__(self)  # the base is made for a model with taps
        self.student, self.method = student, method
        self.hits: Tensor | None = None

    @property
    def multiple(self) -> int:
        """What the sides of images must be multiples of."""
        return math.lcm(self.student.multiple, getattr(self.method, "multiple", 1))

    def train(self, mode: bool = True) -> "DenseStep":
        super().train(mode)
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


def run_dense(
    spec: RunSpec,
    weights: Mapping[str, Path],
    folder: Path,
    runtime: Runtime,
    report: Callable[[dict[str, Any]], None],
    *,
    wants: Wanted,
    options: ViewOptions,
    make_head: MakeHead,
    evaluate: Evaluate,
) -> Outcome:
    """Train a backbone with a head, or go on where an interrupted run stopped, and evaluate it.

    Leaves in `folder`: student.safetensors (backbone), adapters.safetensors (head), curves.jsonl, and what `evaluate`
    writes; checkpoint.pt only while it runs.

    Args:
        spec, weights, folder, runtime, report: as for `hkd.tasks.train.train`. `spec.init` None: from scratch.
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
    if runtime.processes > 1 and not under_torchrun():
        return launch(spec, weights, folder, runtime, report)
    recipe = check(spec, runtime)
    reset_peak_memory()
    folder.mkdir(parents=True, exist_ok=True)
    images = recipe.batch_size // runtime.processes
    with memory_told(images):
        checkpoints = Checkpoints(folder / "checkpoint.pt", spec, runtime.checkpoint_every_s)
        data = open_dense(spec, runtime, wants)
        run = prepare(spec, recipe, weights, runtime, data, options, make_head)
        journal = Journal(
            run.fabric,
            epochs=recipe.epochs,
            steps=run.loader.steps,
            report=report,
            every_s=runtime.report_every_s,
            norms=recipe.precision != "16-mixed",
        )
        if not checkpoints.restore(run, journal):
            seed_all(spec.seed, "train", run.fabric.global_rank)
        try:
            fit(run, journal, checkpoints)
        finally:
            write_curves(journal.curves, folder)
        keep(run, folder)
        step: DenseStep = run.step.eval()  # type: ignore[assignment]
        with torch.no_grad():
            held = make_loader(spec, recipe, runtime, data, options, step, run.fabric, train=False)
            metrics = evaluate(step, held, run.fabric, folder)
        run.fabric.barrier()
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
    if run.loader.corrupt:
        log.warning("skipped corrupt training images: %s", ", ".join(run.loader.corrupt))
        cost["corrupt_images"] = float(len(run.loader.corrupt))
    if held.corrupt:
        log.warning("%d images could not be read and were evaluated as without predictions", len(held.corrupt))
        metrics["skipped_images"] = float(len(held.corrupt))
    return Outcome(metrics=metrics, cost=cost, curves=journal.curves)


def check(spec: RunSpec, runtime: Runtime) -> Recipe:
    """The recipe of a dense task.

    Raises:
        UserError: there is none, it asks for what a dense task cannot do, or teachers or another method were given.
    """
    recipe = spec.recipe
    if recipe is None:
        raise UserError(f"The task '{spec.task}' trains, so it needs a recipe.")
    if spec.method.name != "supervised" or spec.teachers:
        raise UserError(f"The task '{spec.task}' trains on annotations: take the method 'supervised', and no teachers.")
    for name, value in FIXED.items():
        if getattr(recipe, name) != value:
            raise UserError(
                f"The recipe's {name} is {getattr(recipe, name)!r}, which the task '{spec.task}' cannot do: leave it "
                f"at {value!r}; images are augmented by the recipe's flip and the task options scale and crop."
            )
    share = recipe.batch_size // runtime.processes
    if runtime.micro_batch is not None and runtime.micro_batch < share:
        raise UserError(
            f"The task '{spec.task}' cannot split the {share} images of a device into micro-batches of "
            f"{runtime.micro_batch}: use more devices or a smaller batch_size."
        )
    return recipe


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


def prepare(
    spec: RunSpec,
    recipe: Recipe,
    weights: Mapping[str, Path],
    runtime: Runtime,
    data: DenseSet,
    options: ViewOptions,
    make_head: MakeHead,
) -> Training:
    """Build all that a run trains with, standing at its beginning; backbone and head have streams of their own."""
    fabric = make_fabric(runtime, recipe.precision)
    step = build(spec, data, options, make_head, weights, recipe.drop_path).to(fabric.device)
    loader = make_loader(spec, recipe, runtime, data, options, step, fabric, train=True)
    freeze_unused(step.student)
    optimizer = make_optimizer(recipe, step.student.net, step.method)
    schedule = make_schedule(recipe, optimizer, loader.steps)
    forward, wrapped = fabric.setup(step, optimizer)
    return Training(
        fabric,
        recipe,
        step,
        forward,
        wrapped,
        schedule,
        None,
        loader,
        Teachers({}),
        None,
        Position(),
    )


def build(
    spec: RunSpec,
    data: DenseSet,
    options: ViewOptions,
    make_head: MakeHead,
    weights: Mapping[str, Path],
    drop_path: float | None,
) -> DenseStep:
    """Backbone and head with their first weights: those of `spec.init`, or drawn from the seed."""
    seed_all(spec.seed, "init")
    backbone = Backbone(spec.student, drop_path)
    if spec.init is not None:
        load_pretrained(backbone, spec.init, weights)
    seed_all(spec.seed, "adapters")
    return DenseStep(backbone, make_head(backbone, data, options))


def make_loader(
    spec: RunSpec,
    recipe: Recipe,
    runtime: Runtime,
    data: DenseSet,
    options: ViewOptions,
    step: DenseStep,
    fabric: Fabric,
    *,
    train: bool,
) -> DenseLoader:
    """This process's batches of the training split, or of the one that is evaluated."""
    select = spec.evaluate_on == "val"
    return DenseLoader(
        data.load_dense("train" if train else spec.evaluate_on, seed=spec.seed, select=select),
        recipe,
        options=options,
        seed=spec.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        train=train,
        multiple=step.multiple,
        workers=runtime.loader_workers,
        on_corrupt=runtime.on_corrupt,
        device=fabric.device,
    )


def freeze_unused(backbone: Backbone) -> None:
    """Take from training what the four maps do not depend on (a final norm): several processes would wait for its
    gradients. Nothing random is drawn and no statistics move.
    """
    modes = {module: module.training for module in backbone.modules()}
    backbone.eval()
    side = backbone.multiple * 2
    maps = backbone(torch.zeros(1, 3, side, side, device=next(backbone.parameters()).device))
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = torch.stack([map_.sum() for map_ in maps]).sum()
    for parameter, grad in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(grad is not None)
    for module, training in modes.items():
        module.training = training


def keep(run: Training, folder: Path) -> None:
    """Write backbone and head.

    Raises:
        Diverged: the last update left weights that are not finite.
    """
    if not all(torch.isfinite(parameter).all() for parameter in run.step.parameters()):
        raise Diverged(run.position.updates - 1, {"weights": math.nan})
    if run.fabric.is_global_zero:
        save_weights(run.step.student.net.state_dict(), folder / "student.safetensors")
        save_weights(run.step.method.state_dict(), folder / "adapters.safetensors")
    run.fabric.barrier()


def restore_dense(
    spec: RunSpec, folder: Path, runtime: Runtime, *, wants: Wanted, options: ViewOptions, make_head: MakeHead
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
