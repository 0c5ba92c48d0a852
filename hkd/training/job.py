"""What a task is asked, how the machine is used for it, and what it answers. Free of torch.

Nothing of `Runtime` determines a result, so nothing of it enters the key of a run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hkd.errors import UserError
from hkd.options import Count, Few, NotNegative, Switch, Workers, options
from hkd.spec import Recipe, RunSpec

Report = Callable[[dict[str, Any]], None]
Accelerator = Literal["auto", "cpu", "cuda"]


@options
class Runtime:
    """The machine's side of a run.

    Results are equal to the bit for equal `devices`, `num_nodes`, `micro_batch`, `tf32`, `cudnn_benchmark`,
    `channels_last`, `compile` and accelerator; everything else changes no digit. bf16 is no setting of the machine: it
    is a recipe's `precision`, and so part of a run's key.
    """

    accelerator: Accelerator = "auto"
    devices: Few = 1  # processes per node, one device each
    num_nodes: Few = 1
    data_root: Path = Path("data")  # folder that holds all data sets
    cache_dir: Path | None = None  # where small teacher outputs are kept for other runs; None: in memory only
    loader_workers: Workers = 0  # processes that decode images; 0: in this one
    # Least seconds between checkpoints; more where writing one would take over 2 % of the time. 0: as often as can be.
    checkpoint_every_s: NotNegative = 5.0
    report_every_s: NotNegative = 0.25
    on_corrupt: Literal["stop", "skip"] = "stop"  # an image that cannot be read
    # Largest batch of one forward pass; the rest of a device's share is accumulated. Bounds memory. Batch norm and
    # losses between samples then see the micro-batch, as they see a device's share when there are several devices.
    micro_batch: Count | None = None
    tf32: Switch = False  # GPU: matrix products of float32 numbers with 10 bits of each (convolutions always have it)
    cudnn_benchmark: Switch = False  # GPU: convolutions by the algorithm that was fastest when tried
    channels_last: Switch = False  # student and teachers in this memory format, whatever their cards say
    compile: Switch = False  # student and teachers through torch.compile, where a method puts nothing into their passes

    @property
    def settings(self) -> tuple[str, ...]:
        """The switches that are on and may move digits by rounding: part of a record's environment."""
        return tuple(name for name in ("tf32", "cudnn_benchmark", "channels_last", "compile") if getattr(self, name))

    @property
    def processes(self) -> int:
        """Processes over all nodes."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class Job:
    """One run to be carried out.

    spec: the run, completely. weights: local file of every teacher and of `init`, by the id of its `Weights`.
    folder: of this run alone; made if needed. runtime: machine and places.
    report: called with {"epoch", "epochs", "step", "steps", "loss", "top1"} of the running epoch (top1: percent of
    training images, absent with soft targets) at most every `runtime.report_every_s` seconds.
    """

    spec: RunSpec
    weights: Mapping[str, Path]
    folder: Path
    runtime: Runtime
    report: Report

    @property
    def recipe(self) -> Recipe:
        """The recipe of a run that trains; UserError where there is none."""
        if self.spec.recipe is None:
            raise UserError(f"The task '{self.spec.task}' trains, so it needs a recipe.")
        return self.spec.recipe

    @property
    def select(self) -> bool:
        """Whether validation rows are held out of the training split: settings are being chosen and they are reported,
        or the recipe has the accuracy on them read while it trains.
        """
        return self.spec.holds_out

    @property
    def device_batch(self) -> int:
        """Images of one forward pass in one process, derived from the global batch."""
        share = self.recipe.batch_size // self.runtime.processes
        return share if self.runtime.micro_batch is None else min(share, self.runtime.micro_batch)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results of one run.

    metrics: top1 in percent; skipped_images where some could not be read.
    cost: wall_s, cpu_s and gpu_s (of this process, or of rank 0; interrupted attempts included), step_ms (median
    training step, on a CPU of CPU time), steps (updates), device_batch (images of one forward pass), student_params_m
    and extra_params_m (adapters) in millions, peak_memory_mib; corrupt_images where training images were skipped.
    curves: one flat dict per epoch: epoch (from 1), loss and loss/<term> (means over the epoch), lr (of its last
    update), train_top1 (percent, of augmented images while training), seconds; grad_norm/<term> at about five epochs;
    val_top1 (percent, of the validation rows) where the recipe asks for it.
    """

    metrics: dict[str, float]
    cost: dict[str, float]
    curves: list[dict[str, Any]] = field(default_factory=list)
