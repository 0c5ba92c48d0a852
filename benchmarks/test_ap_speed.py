"""COCO's AP by our evaluator against pycocotools, on a fixed set of 300 images; one thread, CPU seconds.

The number that matters is `ratio` in the extra info: pycocotools' time divided by ours for the same truth and results
in memory, indexing included, the two interleaved in one process. Run without the type-checking hook of the tests:
`pytest -o addopts="" --benchmark-only benchmarks/test_ap_speed.py`.
"""

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hkd.downstream.coco_ap import KINDS, CocoAP

coco = pytest.importorskip("pycocotools.coco")
cocoeval = pytest.importorskip("pycocotools.cocoeval")

IMAGES, CLASSES, SIDE = 300, 10, 160
PAIRS = 5  # after one that is not counted
FASTER = {"box": 5.0, "mask": 2.0}  # required
NUMBERS = ("ap", "ap50", "ap75", "small", "medium", "large")


def fixed_set() -> CocoAP:
    """An evaluator that has seen all images: up to seven ellipses of 10 to 120 px each, found about, twice, or not."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    truth: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": SIDE, "width": SIDE} for k in range(1, IMAGES + 1)],
        "annotations": [],
        "categories": [{"id": label + 1, "name": str(label)} for label in range(CLASSES)],
    }
    found: list[list[tuple[np.ndarray, float, int, np.ndarray]]] = []

    def ellipse(box: np.ndarray) -> np.ndarray:
        x1, y1, x2, y2 = box.tolist()
        return ((2 * columns - x1 - x2) / (x2 - x1)) ** 2 + ((2 * rows - y1 - y2) / (y2 - y1)) ** 2 < 1

    for image in range(IMAGES):
        found.append([])
        for _ in range(rng.integers(0, 8)):
            label, (w, h) = int(rng.integers(CLASSES)), rng.uniform(10, 120, size=2).round()
            x, y = rng.uniform(0, (SIDE - w, SIDE - h)).round()
            box = np.array([x, y, x + w, y + h])
            mask = ellipse(box)
            runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F"), [0]])))
            counts = np.diff(np.concatenate([[0], runs, [mask.size]])).tolist()
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image + 1,
                    "category_id": label + 1,
                    "bbox": [x, y, w, h],
                    "area": float(mask.sum()),
                    "iscrowd": int(rng.random() < 0.02),
                    "segmentation": {"size": [SIDE, SIDE], "counts": counts},
                }
            )
            for _ in range(rng.integers(0, 4)):
                near = box + rng.normal(0, 3, size=4)
                guess = label if rng.random() < 0.8 else int(rng.integers(CLASSES))
                found[-1].append((near, round(float(rng.random()), 2), guess, ellipse(near)))
    evaluator = CocoAP(truth)
    for image, group in enumerate(found):
        boxes = np.array([box for box, *_ in group]).reshape(-1, 4)
        masks = np.array([mask for *_, mask in group], dtype=bool).reshape(-1, SIDE, SIDE)
        scores, labels = (np.array([row[place] for row in group], dtype=kind) for place, kind in ((1, float), (2, int)))
        evaluator.add(image, boxes, scores, labels, masks)
    return evaluator


def reference(evaluator: CocoAP, kind: str) -> list[float]:
    """The six numbers of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = coco.COCO()
        wanted.dataset = {**evaluator.truth, "info": {}}
        wanted.dataset["annotations"] = [dict(entry) for entry in evaluator.truth["annotations"]]
        wanted.createIndex()
        results = [dict(entry) for image in range(IMAGES) for entry in evaluator.found[image][kind]]
        judge = cocoeval.COCOeval(wanted, wanted.loadRes(results), KINDS[kind])
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [100 * value for value in judge.stats[:6].tolist()]


def seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_ap_equals_that_of_pycocotools_and_comes_several_times_faster(benchmark, kind):
    evaluator = fixed_set()
    ours = evaluator.measure(kind)
    assert [getattr(ours, number) for number in NUMBERS] == reference(evaluator, kind)
    times = [
        (seconds(lambda: evaluator.measure(kind)), seconds(lambda: reference(evaluator, kind))) for _ in range(PAIRS)
    ]
    low, ratio, high = statistics.quantiles([slow / fast for fast, slow in times], n=4)
    benchmark.extra_info.update(
        ratio=round(ratio, 1),
        quartiles=(round(low, 1), round(high, 1)),
        pairs=PAIRS,
        ms={
            "ours": round(1e3 * statistics.median(fast for fast, _ in times), 1),
            "pycocotools": round(1e3 * statistics.median(slow for _, slow in times), 1),
        },
        detections=sum(len(found[kind]) for found in evaluator.found.values()),
    )
    benchmark.pedantic(lambda: evaluator.measure(kind), rounds=1)
    assert ratio >= FASTER[kind]
