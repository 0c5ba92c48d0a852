"""What determines a run: frozen dataclasses, free of torch so that planning stays fast.

Every field that differs from its default enters the key of a run (experiments.planning.keys) unless its class says
otherwise. So a field may be added, with a default that means what was done before; but a default may never change,
because old records would take on a new meaning (a test keeps them). Nothing here computes, and nothing is a path, a
device or a thread count: those do not determine a result.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from hkd.options import (
    Count,
    Few,
    NotNegative,
    Positive,
    Rising,
    Share,
    ShareAbove0,
    ShareBelow1,
    Switch,
    Whole,
    options,
    together,
)

FORBID = {"extra": "forbid"}  # what pydantic does with other keys
RANDAUGMENT = r"^rand(-(m|n|p|mstd|mmax|inc)\d{1,3}(\.\d{1,6})?)*$"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """How one model is built and where its taps are (sizes in millions of parameters and GMACs).

    `name`, `pretrained`, `params_m` and `gmacs` describe; all other fields are identity and enter run keys.
    """

    __pydantic_config__ = FORBID
    name: str
    family: str  # key of hkd.models.FAMILIES
    arch: str  # timm entry point ("resnet50") or class ("timm.models.mlp_mixer:MlpMixer")
    kwargs: dict[str, Any] = field(default_factory=dict)  # constructor arguments, num_classes excluded
    image_size: int = 224  # side in px; other inputs are resized bilinearly by the tap model
    stages: tuple[int, ...] = (1, 2, 3, 4)  # forward_intermediates indices of stages 1, 2, 3, 4
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of RGB in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels_last: bool = False  # memory format that was measured to be the faster one
    pretrained: str | None = None  # timm "name.tag" of the published weights
    params_m: float | None = None  # at 1000 classes
    gmacs: float | None = None  # at image_size, 1000 classes
    source: str | None = None  # of a model that is no card of ours: "timm 1.0.31", or the SHA-256 of a factory's file

    def identity(self) -> dict[str, Any]:
        """The fields that determine results, as plain JSON values; a card of ours has no source."""
        drop = {"name", "pretrained", "params_m", "gmacs", *(() if self.source else ("source",))}
        return {k: v for k, v in self.__dict__.items() if k not in drop}


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Where weights come from: another run's checkpoint, a file, or (only when asked for by name) nowhere.

    id: the run's key, the file's SHA-256 (hex), or the seed of the random initialisation.
    """

    __pydantic_config__ = FORBID
    kind: Literal["run", "file", "random"]
    id: str


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """One frozen teacher of a run. classes: size of its classifier; None: as many as the data has, 0: none."""

    __pydantic_config__ = FORBID
    model: ModelCard
    weights: Weights
    classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set by name (key of hkd.data.DATASETS), its options, and the fingerprint of its content."""

    __pydantic_config__ = FORBID
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None  # None: not found on this machine when planned


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A method by name (key of hkd.methods.METHODS) and the options that differ from its defaults."""

    __pydantic_config__ = FORBID
    name: str
    options: dict[str, Any] = field(default_factory=dict)


@options
class Recipe:
    """Everything about training that is not the method: augmentation, optimiser, schedule, epochs.

    Lengths are in epochs, rates per step of the global batch.
    """

    epochs: Count
    batch_size: Count  # global: over all processes and accumulation steps
    optimizer: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "adamw"  # a timm.optim name
    lr: Positive = 1e-3
    lr_batch: Count | None = None  # if given, the rate is lr * batch_size / lr_batch
    momentum: ShareBelow1 = 0.9  # SGD only
    betas: tuple[ShareBelow1, ShareBelow1] | None = None  # None: the optimiser's default
    weight_decay: NotNegative = 0.05  # never on norms, biases and the backbone's own `no_weight_decay`, see decay_1d
    weight_decay_end: NotNegative | None = None  # it goes there along a cosine, by updates; None: it stays
    decay_1d: Switch = False  # True: decay norms and biases too (the traditional CNN recipe)
    layer_decay: ShareAbove0 | None = None  # layer-wise rate decay factor per depth level, e.g. 0.75
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[NotNegative, ...] = ()  # epochs at which `step` multiplies the rate by 0.1
    min_lr: NotNegative = 0.0  # end of the cosine
    warmup_epochs: NotNegative = 0.0  # linear
    warmup_lr: NotNegative = 0.0  # where the warm-up starts
    clip_grad: Positive | None = None  # maximum global norm
    max_grad_norm: Positive | None = None  # of timm's Lamb, which clips the global norm itself too; None: its own 1.0
    loss: Literal["ce", "bce"] = "ce"  # bce: sigmoid, summed over classes, mean over the batch
    label_smoothing: ShareBelow1 = 0.0
    mixup: NotNegative = 0.0  # timm Mixup alphas
    cutmix: NotNegative = 0.0
    crop: Literal["none", "pad", "resized"] = "none"  # pad: zero padding of 1/8 of the side; resized: RandomResizedCrop
    crop_scale: Annotated[tuple[ShareAbove0, ShareAbove0], Rising] = (0.08, 1.0)  # of `resized`, fraction of the area
    flip: Switch = False
    shift: Annotated[Whole, Field(le=1024)] = 0  # px: random translation up to this much with edge replication
    randaugment: Annotated[str, Field(pattern=RANDAUGMENT)] | None = None  # timm's notation: "rand-m9-n2-mstd0.5-inc1"
    erasing: Share = 0.0  # probability of random erasing
    views: Few | None = None  # k fixed augmented views per image (teacher outputs are cached); None: fresh every epoch
    ema_decay: ShareBelow1 | None = None  # evaluate and keep the exponential moving average of the student
    drop_path: ShareBelow1 | None = None  # stochastic depth of the student; None: the model's own
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    # Epochs between two readings of the accuracy on validation rows (and one after the last); None: none is read.
    # Those rows are then held out of training, which matters where a data set has no validation split of its own.
    validate_every: Count | None = None

    @together
    def _decay_to(self) -> None:
        if self.weight_decay_end is not None and not self.weight_decay:
            raise ValueError("weight_decay_end needs a weight_decay above 0 to start from, which says what is decayed")

    @together
    def _fixed_or_fresh(self) -> None:
        if self.views is not None and (self.mixup or self.cutmix):
            raise ValueError(
                "views (fixed augmented images) cannot be combined with mixup or cutmix, which draw afresh"
            )


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training or evaluation, completely.

    task: key of hkd.tasks.TASKS. `evaluate_on` is "test" for reported runs and "val" while settings are chosen.
    `init` starts the student from other weights (fine-tuning); None is a random initialisation drawn from `seed`.
    `recipe` is None for tasks that do not train.
    """

    __pydantic_config__ = FORBID
    task: str
    data: DataSpec
    student: ModelCard
    method: MethodSpec
    recipe: Recipe | None = None
    teachers: dict[str, TeacherSpec] = field(default_factory=dict)  # by role; single-teacher methods use "teacher"
    init: Weights | None = None
    seed: int = 0
    evaluate_on: Literal["test", "val"] = "test"
    task_options: dict[str, Any] = field(default_factory=dict)  # of the task itself: a head, a measure, an image list

    @property
    def holds_out(self) -> bool:
        """Whether the training split is without validation rows: they are reported, or read between epochs."""
        return self.evaluate_on == "val" or (self.recipe is not None and self.recipe.validate_every is not None)
