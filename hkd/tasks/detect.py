"""The task of detection and instance segmentation: Mask R-CNN on a backbone, measured by COCO's average precision."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed
from faster_coco_eval import mask as coding
from lightning_fabric import Fabric

from hkd.data.dense import DenseSet
from hkd.data.loading.dense import DenseLoader
from hkd.downstream.backbone import Backbone
from hkd.downstream.coco_ap import AveragePrecision, CocoAP, Kind
from hkd.downstream.detector import Detector, DetectorOptions
from hkd.files import atomic_write
from hkd.options import configured, options
from hkd.spec import RunSpec
from hkd.tasks.dense import DenseOptions, DenseStep, restore_dense, run_dense
from hkd.tasks.launch import task
from hkd.training.job import Job, Outcome, Runtime

PREDICTIONS = "detections.npz"
NOTHING = (
    np.zeros((0, 4), dtype=np.float32),
    np.zeros(0, dtype=np.float32),
    np.zeros(0, dtype=np.int64),
)  # boxes, scores, labels


@options
class DetectOptions(DetectorOptions, DenseOptions):
    """Options of the task: sizes of the detector, and how training images are shown."""


@task(DetectOptions)
def detect(job: Job) -> Outcome:
    """The task: train a detector and measure it.

    Files and failures are those of `hkd.tasks.dense.run_dense`; detections.npz holds what was
    found (see `read_detections`).

    Returns:
        metrics in percent: `ap_box` and `ap_mask`, `_50` and `_75` at one overlap, `_small`, `_medium`, `_large` by the
        sizes of the split; one is absent where the truth has no such object.

    Raises:
        UserError: also for data without objects.
    """
    return run_dense(
        job,
        wants="objects",
        options=options_of(job.spec),
        make_head=make_detector,
        evaluate=evaluate,
    )


def options_of(spec: RunSpec) -> DetectOptions:
    """The options of a spec, checked."""
    return configured(DetectOptions, "Task 'detect'", spec.task_options)


def make_detector(backbone: Backbone, data: DenseSet, options: DetectOptions) -> Detector:
    """The head for the classes of a data set."""
    return Detector(backbone, len(data.object_names), options)


def restore_detector(spec: RunSpec, folder: Path, runtime: Runtime) -> DenseStep:
    """Backbone and `Detector` (`step.method`) of a finished run in evaluation mode, on the CPU.

    Arguments and failures are those of `restore_dense`.
    """
    return restore_dense(spec, folder, runtime, wants="objects", options=options_of(spec), make_head=make_detector)


def evaluate(step: DenseStep, loader: DenseLoader, fabric: Fabric, folder: Path) -> dict[str, float]:
    """Average precision over a split; every process has the whole of it in the end, and the first one writes it."""
    split = loader.dense
    assert split.sizes is not None
    judge = CocoAP(split.coco(), borders=split.size_borders)
    detector: Detector = step.method
    for batch in loader.epoch(0):
        batch = batch.to(fabric.device)
        with fabric.autocast():
            found = detector.detect(step.student(batch.x), batch)
        for position, size, one in zip(batch.index.tolist(), batch.sizes, found, strict=True):
            height, width = split.sizes[position].tolist()
            own = one.scaled(torch.tensor([width, height], device=size.device) / size.flip(0))
            arrays = [value.cpu().numpy() for value in (own.boxes, own.scores, own.labels, own.pasted(height, width))]
            judge.add(position, *arrays)
    if fabric.world_size > 1:
        gathered: list[Any] = [None] * fabric.world_size
        torch.distributed.all_gather_object(gathered, judge.found)
        judge.merge(other for rank, other in enumerate(gathered) if rank != fabric.global_rank)
    for position in set(range(len(split))) - judge.found.keys():  # images that could not be read
        judge.add(position, *NOTHING, np.zeros((0, *split.sizes[position].tolist()), dtype=bool))
    if fabric.is_global_zero:
        write_detections(judge, split.rows, folder / PREDICTIONS)
    return {
        name: value
        for kind, found in judge.compute().items()
        for name, value in named(kind, found).items()
        if not math.isnan(value)
    }


def named(kind: Kind, found: AveragePrecision) -> dict[str, float]:
    """The means of one kind under the names of this task."""
    parts = {"50": found.ap50, "75": found.ap75, "small": found.small, "medium": found.medium, "large": found.large}
    return {f"ap_{kind}": found.ap} | {f"ap_{kind}_{part}": value for part, value in parts.items()}


class ImageDetections(NamedTuple):
    """What was found in one image of a run's predictions.

    row: of the image in its source. boxes: x1, y1, x2, y2 in px [K, 4]. scores, labels: [K]. masks: bool [K, H, W].
    """

    row: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def write_detections(judge: CocoAP, rows: np.ndarray, path: Path) -> None:
    """Write the detections of all images.

    The file holds rows [N] and sizes [N, 2] of the images; of each of M detections the position `image` [M], `box`
    [M, 4] (x, y, width, height in px), `score`, `label`; and the compressed run lengths of all masks, one after the
    other, as bytes `mask`, of which `mask_end` [M] says where each ends.
    """
    pairs = [
        (position, box, mask)
        for position in range(len(rows))
        for box, mask in zip(judge.found[position]["box"], judge.found[position]["mask"], strict=True)
    ]
    counts = [mask["segmentation"]["counts"] for _, _, mask in pairs]
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(
            file,
            rows=rows,
            sizes=np.array([image[1:] for image in judge.images]),
            image=np.array([position for position, _, _ in pairs], dtype=np.int64),
            box=np.array([box["bbox"] for _, box, _ in pairs], dtype=np.float32).reshape(-1, 4),
            score=np.array([box["score"] for _, box, _ in pairs], dtype=np.float32),
            label=np.array([box["category_id"] - 1 for _, box, _ in pairs], dtype=np.int64),
            mask=np.frombuffer(b"".join(counts), dtype=np.uint8),
            mask_end=np.cumsum([len(count) for count in counts], dtype=np.int64),
        )


def read_detections(folder: Path) -> Iterator[ImageDetections]:
    """The detections that a run left, image by image in the order of its split."""
    with np.load(folder / PREDICTIONS) as file:
        held = dict(file)
    data, ends = held["mask"].tobytes(), held["mask_end"].tolist()
    begins = [0, *ends[:-1]]
    for position, (row, (height, width)) in enumerate(zip(held["rows"].tolist(), held["sizes"].tolist(), strict=True)):
        mine = np.flatnonzero(held["image"] == position)
        masks = [
            coding.decode({"size": [height, width], "counts": data[begins[one] : ends[one]]}) for one in mine.tolist()
        ]
        boxes = held["box"][mine]
        yield ImageDetections(
            row,
            np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            held["score"][mine],
            held["label"][mine],
            np.stack(masks).astype(bool) if masks else np.zeros((0, height, width), dtype=bool),
        )
