"""The task of semantic segmentation: a class for every pixel (ADE20K's benchmark, Zhou et al. 2017).

Defaults are those of UperNet at paper scale (ADE20K, 160k steps): 512 channels, pooling at 1, 2, 3 and 6, auxiliary
head of weight .4, images scaled by .5 to 2 and cropped to 512 px.
Shapes: B images of one size, C classes, H W sides of an image in px, N images of a split.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from lightning_fabric import Fabric
from pydantic import Field
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from hkd.data.dense import IGNORE, DenseSet, DenseSplit
from hkd.data.loading.dense import DenseLoader
from hkd.downstream.backbone import Backbone
from hkd.downstream.miou import Confusion, MeanIoU
from hkd.downstream.segmenter import Segmenter, resized, root_weights
from hkd.errors import UserError
from hkd.files import atomic_write
from hkd.options import Factor, Few, NotNegative, Rising, ShareBelow1, Size, configured, options, together
from hkd.spec import RunSpec
from hkd.tasks.dense import DenseOptions, DenseStep, run_dense
from hkd.tasks.launch import task
from hkd.training.distributed import reduce
from hkd.training.job import Job, Outcome

BACKGROUND = "background"  # a class of this name is left out of foreground_miou
PREDICTIONS = "maps.npz"


@options
class SegmentOptions(DenseOptions):
    """Options of the task."""

    scale: Annotated[tuple[Factor, Factor], Rising] = (0.5, 2.0)
    crop: Size | None = 512
    head: Literal["upernet", "fpn", "linear"] = "upernet"
    width: Size = 512  # channels of the head; a linear one has none
    pool_scales: Annotated[tuple[Few, ...], Field(min_length=1)] = (1, 2, 3, 6)  # of UperNet: sides of the pooled maps
    pyramid: tuple[Factor, ...] = (4.0, 2.0, 1.0, 0.5)  # what the maps of a plain transformer are rescaled by
    loss: Literal["plain", "sqrt"] = "plain"  # sqrt: classes weigh their frequency^-1/2 in the training maps
    auxiliary: NotNegative = 0.4  # weight of the auxiliary head; 0: none
    dropout: ShareBelow1 = 0.1  # of channels before the classifiers
    evaluation: Literal["whole", "slide"] = "whole"  # slide: mean of the logits of overlapping windows
    window: Size = 512  # px: side of a sliding window
    stride: Size = 341  # px between windows

    @together
    def _linear(self) -> None:
        if self.head == "linear" and self.auxiliary:
            raise ValueError("a linear head has no auxiliary head beside it: set auxiliary to 0")

    @together
    def _windows(self) -> None:
        if self.stride > self.window:
            raise ValueError(f"stride {self.stride} would leave pixels between windows of {self.window} px")


@task(SegmentOptions)
def segment(job: Job) -> Outcome:
    """Train a backbone with a segmentation head, or go on where an interrupted run stopped, and evaluate it.

    Files and failures are those of `hkd.tasks.dense.run_dense`; maps.npz holds the
    predicted maps (see `predicted_maps`).

    Returns:
        metrics in percent over all labelled pixels of the split: miou, macc, pixel_acc (see `hkd.downstream.miou`), and
        foreground_miou, over all classes but "background", where there is a class of this name.

    Raises:
        UserError: also for maps with values that are no class, or of another size than their images.
    """
    options = configured(SegmentOptions, "Task 'segment'", job.spec.task_options)
    return run_dense(
        job,
        wants="maps",
        options=options,
        make_head=partial(make_head, job.spec),
        evaluate=partial(evaluate, options),
    )


def make_head(spec: RunSpec, backbone: Backbone, data: DenseSet, options: SegmentOptions) -> Segmenter:
    """The head for the classes of a data set; with `sqrt`, every map of the run's training split is read once.

    On several GPUs the batch norms of head and backbone share their statistics.
    """
    split = data.load_dense("train", seed=spec.seed, select=spec.evaluate_on == "val")
    check_maps(split)
    class_weights = root_weights(pixel_counts(split)) if options.loss == "sqrt" else None
    head = Segmenter(
        backbone,
        len(data.map_names),
        head=options.head,
        width=options.width,
        pool_scales=options.pool_scales,
        pyramid=options.pyramid,
        auxiliary=options.auxiliary,
        dropout=options.dropout,
        class_weights=class_weights,
    )
    share_statistics(backbone, head)
    return head


def share_statistics(*modules: nn.Module) -> None:
    """Let batch norms inside the modules take means and variances over the images of all GPUs: the usual two of one
    are too few. Processes on CPUs keep their own, as torch shares them among GPUs only.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl":
        for module in modules:
            convert_sync_batchnorm(module)


def check_maps(split: DenseSplit) -> None:
    """Look at maps that are in memory; readers of files do this themselves when they read one.

    Raises:
        UserError: no maps, a map of another size than its image, or a value that is no class.
    """
    if split.maps is None:
        raise UserError("Segmentation needs semantic maps, and this split has none: take a data set with maps.")
    if split.images is not None:
        for index in range(len(split)):
            true_map(split, index)


def true_map(split: DenseSplit, index: int) -> UInt8[np.ndarray, "H W"]:
    """The map of one image.

    Raises:
        UserError: unreadable, of another size than the image, or with a value that is neither a class nor `IGNORE`.
    """
    assert split.maps is not None
    found = np.asarray(split.maps[index])
    name = f"The map of {split.file_name(index)} (row {int(split.rows[index])})"
    if split.images is not None and found.shape != split.images.shape[2:]:
        (high, wide), (height, width) = found.shape, split.images.shape[2:]
        raise UserError(f"{name} has {wide} x {high} px, its image {width} x {height}: they must be of one size.")
    wrong = found[(found >= len(split.map_names)) & (found != IGNORE)]
    if wrong.size:
        last = len(split.map_names) - 1
        raise UserError(
            f"{name} holds the value {wrong.max()}; with {last + 1} classes it may hold 0 to {last}, or {IGNORE}."
        )
    return found


def pixel_counts(split: DenseSplit) -> Int64[Tensor, " C"]:
    """Pixels of each class in the maps of a split."""
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    for index in range(len(split)):
        counts += np.bincount(true_map(split, index).ravel(), minlength=IGNORE + 1)
    return torch.from_numpy(counts[: len(split.map_names)])


def evaluate(
    options: SegmentOptions, step: DenseStep, loader: DenseLoader, fabric: Fabric, folder: Path
) -> dict[str, float]:
    """Metrics of a split, counted at the size of its maps; leaves the predicted maps in `folder`.

    Images of one size are predicted together, others one by one, each padded only to `step.multiple`: a prediction does
    not depend on the other images of its batch.
    """
    split = loader.dense
    confusion = Confusion(len(split.map_names))
    found: dict[int, UInt8[np.ndarray, "H W"]] = {}
    for batch in loader.epoch(0):
        batch = batch.to(fabric.device)
        sizes = batch.sizes.tolist()
        together = [slice(None)] if len(set(map(tuple, sizes))) == 1 else [slice(i, i + 1) for i in range(len(sizes))]
        for part in together:
            height, width = sizes[part][0]
            with fabric.autocast():
                logits = predict(step, batch.x[part, :, :height, :width], options)
            for index, one in zip(batch.index[part].tolist(), logits, strict=True):
                truth = true_map(split, index)
                predicted = resized(one[None], truth.shape)[0].argmax(dim=0).cpu()
                confusion.add(predicted, torch.from_numpy(truth))
                found[index] = predicted.numpy().astype(np.uint8)
    confusion.matrix = reduce(fabric, confusion.matrix, "sum")
    if not confusion.matrix.any():
        raise UserError("No pixel of the maps to evaluate on has a class: check the maps.")
    found = gathered(fabric, found)
    if fabric.is_global_zero:
        write_maps(split, found, folder / PREDICTIONS)
    return named(confusion.compute(), split.map_names)


def named(measured: MeanIoU, names: Sequence[str]) -> dict[str, float]:
    """The means under the names that tables use."""
    metrics = {"miou": measured.miou, "macc": measured.macc, "pixel_acc": measured.pixels}
    foreground = [name != BACKGROUND for name in names]
    if not all(foreground):
        metrics["foreground_miou"] = measured.iou[torch.tensor(foreground)].nanmean().item()
    return metrics


def predict(step: DenseStep, x: Float[Tensor, "B 3 H W"], options: SegmentOptions) -> Float[Tensor, "B C H W"]:
    """Logits of images of one size at their size, in one pass or as the mean over sliding windows."""
    if options.evaluation == "whole":
        return whole(step, x)
    head, (height, width) = step.method, x.shape[-2:]
    assert isinstance(head, Segmenter)
    total = x.new_zeros(len(x), len(head.class_weights), height, width)
    times = x.new_zeros(height, width)
    for rows, columns in windows(height, width, options.window, options.stride):
        total[:, :, rows, columns] += whole(step, x[:, :, rows, columns])
        times[rows, columns] += 1
    return total / times


def whole(step: DenseStep, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C H W"]:
    """Logits of one pass over images padded with zeros to what the backbone takes, upsampled bilinearly."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, -width % step.multiple, 0, -height % step.multiple))
    head = step.method
    assert isinstance(head, Segmenter)
    return resized(head.logits(step.student(padded)).float(), padded.shape[-2:])[:, :, :height, :width]


def windows(height: int, width: int, side: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows that cover an image: `stride` apart, the last ones flush with its end."""

    def starts(length: int) -> list[int]:
        steps = -(-max(length - side, 0) // stride)
        return [min(number * stride, max(length - side, 0)) for number in range(steps + 1)]

    for top in starts(height):
        for left in starts(width):
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))


def gathered(fabric: Fabric, found: dict[int, UInt8[np.ndarray, "H W"]]) -> dict[int, UInt8[np.ndarray, "H W"]]:
    """What all processes found."""
    if fabric.world_size == 1:
        return found
    parts: list[dict[int, Any]] = [{} for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(parts, found)
    return {index: map_ for part in parts for index, map_ in part.items()}


def write_maps(split: DenseSplit, found: Mapping[int, UInt8[np.ndarray, "H W"]], path: Path) -> None:
    """Write predicted maps by their position in the split: `row` [N], `size` [N, 2], and all pixels in one row."""
    order = sorted(found)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            row=split.rows[order],
            size=np.array([found[index].shape for index in order], dtype=np.int64).reshape(-1, 2),
            prediction=np.concatenate([found[index].ravel() for index in order]),
        )


def predicted_maps(path: Path) -> dict[int, UInt8[np.ndarray, "H W"]]:
    """Predicted maps by the row of their image, from a run's maps.npz."""
    with np.load(path) as file:
        rows, sizes, pixels = file["row"].tolist(), file["size"], file["prediction"]
    parts = np.split(pixels, np.cumsum(sizes.prod(axis=1))[:-1])
    return {row: part.reshape(size) for row, part, size in zip(rows, parts, sizes.tolist(), strict=True)}
