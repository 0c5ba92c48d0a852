"""COCO's AP: values by hand, an evaluator by plain loops, and the one published with COCO, number by number."""

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.dense import annotate
from hkd.data.scenes import SIZE_BORDERS, render
from hkd.downstream.coco_ap import AveragePrecision, CocoAP

NUMBERS = ("ap", "ap50", "ap75", "small", "medium", "large")
OVERLAPS = [0.5 + 0.05 * step for step in range(10)]
SIDE = 40


def truth_of(annotations, images=1, classes=2, side=SIDE):
    """A truth whose images have the ids 10, 11, ... and annotations (image, label, x1, y1, x2, y2, crowd)."""
    entries = []
    for number, (image, label, x1, y1, x2, y2, crowd) in enumerate(annotations, 1):
        box = [x1, y1, x2 - x1, y2 - y1]
        ring = [x1, y1, x2, y1, x2, y2, x1, y2]
        entry = {"id": number, "image_id": 10 + image, "category_id": label + 1, "bbox": box, "iscrowd": crowd}
        entries.append({**entry, "area": box[2] * box[3], "segmentation": [ring]})
    return {
        "images": [{"id": 10 + k, "file_name": f"{k}.png", "height": side, "width": side} for k in range(images)],
        "annotations": entries,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
    }


def boxes_ap(truth, detections, **options) -> AveragePrecision:
    """AP of boxes of detections (image, label, x1, y1, x2, y2, score)."""
    evaluator = CocoAP(truth, ("box",), **options)
    for image in range(len(truth["images"])):
        add(evaluator, image, [found for found in detections if found[0] == image])
    return evaluator.compute()["box"]


def add(evaluator, image, found, masks=None):
    table = np.array([row[2:7] for row in found], dtype=np.float64).reshape(-1, 5)
    evaluator.add(image, table[:, :4], table[:, 4], np.array([row[1] for row in found], dtype=np.int64), masks)


def random_set(images, classes, seed, objects=6, side=SIDE):
    """Truth and detections: some close to an object, some anywhere; scores with ties, some crowds."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, objects + 1)):
            label = int(rng.integers(classes))
            x, y = rng.uniform(0, side - 12, size=2)
            w, h = rng.uniform(3, 12, size=2)
            annotations.append((image, label, x, y, x + w, y + h, int(rng.random() < 0.1)))
            for _ in range(rng.integers(0, 3)):
                moved = np.array([x, y, x + w, y + h]) + rng.normal(0, 1.0, size=4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                guess = label if rng.random() < 0.8 else int(rng.integers(classes))
                detections.append((image, guess, *moved.tolist(), round(float(rng.random()), 1)))
        for _ in range(rng.integers(0, 3)):
            x, y = rng.uniform(0, side - 8, size=2).tolist()
            detections.append((image, int(rng.integers(classes)), x, y, x + 6, y + 7, round(float(rng.random()), 1)))
    return truth_of(annotations, images, classes, side), detections


def overlap(one, other, crowd):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (one[2] - one[0]) * (one[3] - one[1])
    union = area if crowd else area + (other[2] - other[0]) * (other[3] - other[1]) - width * height
    return width * height / union


def plain_ap(truth, detections, label, threshold):
    """AP of one class at one overlap by loops: greedy by score, then precision at 101 recalls; None without objects."""
    rows, wanted = [], 0
    for image in range(len(truth["images"])):
        objects = []
        for entry in truth["annotations"]:
            if entry["image_id"] == 10 + image and entry["category_id"] == label + 1:
                x, y, w, h = entry["bbox"]
                objects.append(((x, y, x + w, y + h), entry["iscrowd"]))
        objects.sort(key=lambda pair: pair[1])
        wanted += sum(not crowd for _, crowd in objects)
        taken = set()
        for found in sorted((f for f in detections if f[0] == image and f[1] == label), key=lambda f: -f[6]):
            best, at = threshold - 1e-10, None
            for place, (box, crowd) in enumerate(objects):
                if place in taken and not crowd:
                    continue
                if at is not None and not objects[at][1] and crowd:
                    break
                if (value := overlap(found[2:6], box, crowd)) >= best:
                    best, at = value, place
            if at is not None:
                taken.add(at)
            rows.append((found[6], at is not None, at is not None and objects[at][1]))
    if not wanted:
        return None
    hits, points, counted = 0, [], 0
    for _, hit, forgiven in sorted(rows, key=lambda row: -row[0]):
        if forgiven:
            continue
        counted += 1
        hits += hit
        points.append((hits / wanted, hits / counted))
    total = 0.0
    for least in np.linspace(0, 1, 101).tolist():
        total += max((precision for recall, precision in points if recall >= least), default=0.0)
    return 100 * total / 101


def test_a_box_of_overlap_five_eighths_counts_at_three_of_ten_overlaps():
    found = boxes_ap(truth_of([(0, 1, 0, 0, 10, 10, 0)]), [(0, 1, 0, 0, 10, 6.25, 0.9)])
    assert found.ap == pytest.approx(30)
    assert (found.ap50, found.ap75) == pytest.approx((100, 0))
    assert math.isnan(found.by_class[0])
    assert found.by_class[1] == pytest.approx(30)


def test_one_of_two_objects_found_gives_half_of_the_recalls():
    truth = truth_of([(0, 0, 0, 0, 10, 10, 0), (0, 0, 20, 20, 30, 30, 0)])
    hit, miss = (0, 0, 0, 0, 10, 10), (0, 0, 12, 0, 18, 9)
    assert boxes_ap(truth, [(*hit, 0.5)]).ap == pytest.approx(100 * 51 / 101)
    assert boxes_ap(truth, [(*hit, 0.5), (*miss, 0.4)]).ap == pytest.approx(100 * 51 / 101)
    assert boxes_ap(truth, [(*hit, 0.5), (*miss, 0.6)]).ap == pytest.approx(50 * 51 / 101)
    assert boxes_ap(truth, [(*hit, 0.5), (*hit, 0.6)]).ap == pytest.approx(100 * 51 / 101)  # the second one is too much


def test_without_detections_ap_is_zero_and_without_objects_nan():
    assert boxes_ap(truth_of([(0, 0, 0, 0, 10, 10, 0)]), []).ap == 0
    none = boxes_ap(truth_of([]), [(0, 0, 0, 0, 10, 10, 0.5)])
    assert all(math.isnan(getattr(none, number)) for number in NUMBERS)
    crowded = boxes_ap(truth_of([(0, 0, 0, 0, 10, 10, 1)]), [])
    assert math.isnan(crowded.ap)


def test_what_is_found_in_a_crowd_is_forgiven():
    truth = truth_of([(0, 0, 0, 0, 10, 10, 0), (0, 0, 20, 20, 40, 40, 1)])
    inside = [(0, 0, 21 + k, 21, 25 + k, 26, 0.9) for k in range(3)]
    assert boxes_ap(truth, [*inside, (0, 0, 0, 0, 10, 10, 0.5)]).ap == pytest.approx(100)
    assert boxes_ap(truth_of([(0, 0, 0, 0, 10, 10, 0)]), [*inside, (0, 0, 0, 0, 10, 10, 0.5)]).ap == pytest.approx(25)


def test_sizes_have_cocos_borders_or_those_given():
    boxes = [(0, 0, 0, 0, 30, 30, 0), (0, 0, 100, 0, 150, 50, 0), (0, 0, 0, 100, 100, 200, 0)]
    truth = truth_of(boxes, side=200)
    detections = [(*boxes[0][:6], 0.9), (*boxes[2][:6], 0.8)]
    found = boxes_ap(truth, detections)
    assert (found.small, found.medium, found.large) == pytest.approx((100, 0, 100))
    for entry in truth["annotations"]:
        entry["area"] = 1.0  # borders of our own go by the areas of the boxes
    found = boxes_ap(truth, detections, borders={"box": (60.0, 120.0)})
    assert found.small == pytest.approx(100 * 51 / 101)
    assert found.medium == pytest.approx(100)
    assert math.isnan(found.large)


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_plain_loops(seed):
    truth, detections = random_set(images=12, classes=3, seed=seed)
    found = boxes_ap(truth, detections)
    table = [[plain_ap(truth, detections, label, overlap_) for overlap_ in OVERLAPS] for label in range(3)]
    for label, row in enumerate(table):
        assert found.by_class[label] == pytest.approx(np.mean(row), abs=1e-9)
    assert found.ap == pytest.approx(np.mean(table), abs=1e-9)
    assert found.ap50 == pytest.approx(np.mean([row[0] for row in table]), abs=1e-9)
    assert found.ap75 == pytest.approx(np.mean([row[5] for row in table]), abs=1e-9)


def published(truth, results, kind) -> list[float]:
    """The six numbers of pycocotools, nan for its -1."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    with contextlib.redirect_stdout(io.StringIO()):
        wanted = coco.COCO()
        wanted.dataset = {**truth, "info": {}, "annotations": [dict(entry) for entry in truth["annotations"]]}
        wanted.createIndex()
        judge = cocoeval.COCOeval(wanted, wanted.loadRes([dict(entry) for entry in results]), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [100 * value if value >= 0 else math.nan for value in judge.stats[:6].tolist()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", [40, 300])
def test_boxes_and_masks_score_as_with_the_published_evaluator(seed, side):
    truth, detections = random_set(images=15, classes=3, seed=seed, side=side)
    rng = np.random.default_rng(seed)
    evaluator = CocoAP(truth)
    for image in range(15):
        found = [row for row in detections if row[0] == image]
        masks = np.zeros((len(found), side, side), dtype=bool)
        for mask, (_, _, x1, y1, x2, y2, _) in zip(masks, found, strict=True):
            mask[max(0, round(y1)) : round(y2), max(0, round(x1)) : round(x2)] = True
            mask &= rng.random(mask.shape) < 0.95
        add(evaluator, image, found, masks)
    ours = evaluator.compute()
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        results = [entry for image in range(15) for entry in evaluator.found[image][kind]]
        assert [getattr(ours[kind], number) for number in NUMBERS] == pytest.approx(
            published(truth, results, theirs), abs=1e-12, rel=0, nan_ok=True
        )  # which has 1 - 2^-52 where precision is 1


def test_computing_twice_gives_the_same_and_leaves_the_truth_alone():
    truth, detections = random_set(images=5, classes=2, seed=1)
    before = repr(truth)
    evaluator = CocoAP(truth, ("box",))
    for image in range(5):
        add(evaluator, image, [row for row in detections if row[0] == image])
    first, second = evaluator.compute()["box"], evaluator.compute()["box"]
    assert first.named("box") == pytest.approx(second.named("box"), nan_ok=True)
    assert repr(truth) == before


def test_processes_that_merge_find_what_one_process_finds():
    truth, detections = random_set(images=6, classes=2, seed=2)
    whole = boxes_ap(truth, detections)
    parts = [CocoAP(truth, ("box",)) for _ in range(3)]
    for image in reversed(range(6)):
        add(parts[image % 3], image, [row for row in detections if row[0] == image])
    with pytest.raises(ValueError, match="image 1 and 3 more of 6 were not added"):
        parts[0].compute()
    parts[0].merge([parts[1].found, parts[2].found])
    assert parts[0].compute()["box"].named("box") == pytest.approx(whole.named("box"), nan_ok=True)
    with pytest.raises(ValueError, match="image 1 were found twice"):
        parts[0].merge(parts[1].found)


@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=15)
def test_ap_lies_in_range_and_depends_on_the_order_of_scores_alone(seed, power):
    truth, detections = random_set(images=4, classes=2, seed=seed)
    bent = [(*row[:6], row[6] ** power - 3) for row in detections]
    one, other = boxes_ap(truth, detections), boxes_ap(truth, bent)
    assert one.named("box") == pytest.approx(other.named("box"), nan_ok=True)
    assert math.isnan(one.ap) or 0 <= one.ap <= one.ap50 <= 100


def test_scenes_found_as_they_are_score_a_hundred():
    shown = [render("val", k, 0.04).objects for k in range(12)]
    truth = truth_of([], images=12, classes=10, side=64)
    entries = [{"image_id": 10 + k, **entry} for k, objects in enumerate(shown) for entry in annotate(objects)]
    truth["annotations"] = [{**entry, "id": number} for number, entry in enumerate(entries, 1)]
    evaluator = CocoAP(truth, borders=SIZE_BORDERS)
    for k, objects in enumerate(shown):
        evaluator.add(k, objects.boxes, np.ones(len(objects), dtype=np.float32), objects.labels, objects.masks)
    for found in evaluator.compute().values():
        assert [getattr(found, number) for number in NUMBERS] == pytest.approx([100] * 6)


def test_names_say_what_was_compared():
    found = boxes_ap(truth_of([(0, 0, 0, 0, 10, 10, 0)]), [(0, 0, 0, 0, 10, 10, 0.5)])
    names = ["ap_mask", "ap50_mask", "ap75_mask", "ap_small_mask", "ap_medium_mask", "ap_large_mask"]
    assert list(found.named("mask")) == names
    assert found.named("mask")["ap50_mask"] == pytest.approx(100)


def test_detections_that_cannot_be_are_refused():
    evaluator = CocoAP(truth_of([(0, 0, 0, 0, 10, 10, 0)], images=2))
    box, score, label = np.array([[0.0, 0.0, 5.0, 5.0]]), np.array([0.5]), np.array([0])
    mask = np.ones((1, SIDE, SIDE), dtype=bool)
    with pytest.raises(ValueError, match="image 2 is not among the 2"):
        evaluator.add(2, box, score, label, mask)
    with pytest.raises(ValueError, match="not finite"):
        evaluator.add(0, box, score * np.nan, label, mask)
    with pytest.raises(ValueError, match="labels must be 0 to 1, got 2 to 2"):
        evaluator.add(0, box, score, label + 2, mask)
    with pytest.raises(ValueError, match=r"masks of image 0 must be \(1, 40, 40\), got None"):
        evaluator.add(0, box, score, label)
    with pytest.raises(ValueError, match=r"got \(1, 40, 39\)"):
        evaluator.add(0, box, score, label, mask[:, :, 1:])
    evaluator.add(0, box, score, label, mask)
    with pytest.raises(ValueError, match="image 0 were added before"):
        evaluator.add(0, box, score, label, mask)


def test_a_truth_with_gaps_in_its_category_ids_is_refused():
    truth = truth_of([])
    truth["categories"][1]["id"] = 5
    with pytest.raises(ValueError, match="category ids must be 1 to 2 in order"):
        CocoAP(truth)
