"""Composed scenes: who is shown where, boxes, masks and maps that agree, splits that share no writer."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data import scenes
from hkd.data.coco import Coco
from hkd.data.dense import DenseSplit, Objects, write_coco
from hkd.data.digits import CUT, source_digits, source_file
from hkd.data.scenes import Scenes, bounds, overlap, place, render
from hkd.errors import UserError

NOWHERE = Path("nowhere")
SPLITS = ("train", "val", "test")


def take(split, seed=0, select=False, **options) -> DenseSplit:
    return Scenes({"pool": 12, "n_test": 8, **options}, NOWHERE).load_dense(split, seed=seed, select=select)


def test_no_source_row_serves_two_splits():
    rows = {split: {int(r) for k in range(250) for r in render(split, k, 0.04).rows} for split in SPLITS}
    for split, (first, last) in CUT.items():
        assert min(rows[split]) >= first
        assert max(rows[split]) < last
        assert len(rows[split]) > 0.4 * min(last - first, 850)  # all of the split is used, not a corner of it
    assert not rows["train"] & rows["val"]
    assert not rows["train"] & rows["test"]
    assert not rows["val"] & rows["test"]


def test_labels_are_those_of_the_source_rows():
    _, labels = source_digits(source_file())
    for k in range(20):
        scene = render("test", k, 0.04)
        assert scene.objects.labels.tolist() == labels[scene.rows].tolist()


def test_three_to_six_different_digits_are_shown_and_four_fifths_is_background():
    shown = [render("train", k, 0.04) for k in range(200)]
    counts = [len(scene.objects) for scene in shown]
    assert min(counts) >= 3
    assert max(counts) <= 6
    assert 3.4 < np.mean(counts) < 3.75
    assert all(len(set(scene.objects.labels.tolist())) == len(scene.objects) for scene in shown)
    assert 0.78 < np.mean([scene.map == 0 for scene in shown]) < 0.84


def test_about_a_third_of_the_digits_has_each_size():
    split = take("train", pool=200)
    areas = {"box": [], "mask": []}
    for objects in split.objects:
        for (x1, y1, x2, y2), mask in zip(objects.boxes.tolist(), objects.masks, strict=True):
            areas["box"].append((x2 - x1) * (y2 - y1))
            areas["mask"].append(mask.sum())
    for kind, (low, high) in split.size_borders.items():
        roots = np.sqrt(areas[kind])
        assert 0.2 < np.mean(roots < low) < 0.46
        assert 0.2 < np.mean(roots > high) < 0.46


def test_boxes_are_the_bounds_of_masks():
    for k in range(10):
        objects = render("val", k, 0.04).objects
        for box, mask in zip(objects.boxes.tolist(), objects.masks, strict=True):
            inside = [(x, y) for y in range(64) for x in range(64) if mask[y, x]]
            columns, rows = zip(*inside, strict=True)
            assert box == [min(columns), min(rows), max(columns) + 1, max(rows) + 1]


def test_the_map_holds_the_masks_and_nothing_else():
    for k in range(10):
        scene = render("train", k, 0.04)
        expected = np.zeros((64, 64), dtype=int)
        for label, mask in zip(scene.objects.labels.tolist(), scene.objects.masks, strict=True):
            assert (expected[mask] == 0).all()  # masks share no pixel
            expected[mask] = label + 1
        assert scene.map.tolist() == expected.tolist()


def test_later_digits_cover_earlier_ones(monkeypatch):
    monkeypatch.setattr(scenes, "place", lambda count, rng: np.array([[10, 10, 28, 28]] * 3))
    captured = []

    def capture(*args):
        canvas, coverage = scenes_draw(*args)
        captured.append(coverage)
        return canvas, coverage

    scenes_draw = scenes.draw
    monkeypatch.setattr(scenes, "draw", capture)
    masks = render.__wrapped__("train", 0, 0.04).objects.masks
    over = captured[0] > 0.35
    assert masks[2].tolist() == over[2].tolist()
    assert masks[1].tolist() == (over[1] & ~over[2]).tolist()
    assert masks[0].tolist() == (over[0] & ~over[1] & ~over[2]).tolist()


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(deadline=None, max_examples=50)
def test_squares_lie_within_the_canvas_and_hardly_overlap(seed, count):
    boxes = place(count, np.random.default_rng(seed)).tolist()
    assert 1 <= len(boxes) <= count
    for number, (x, y, w, h) in enumerate(boxes):
        assert w == h
        assert w in (20, 24, 28)
        assert 0 <= x <= 64 - w
        assert 0 <= y <= 64 - h
        pixels = {(u, v) for u in range(x, x + w) for v in range(y, y + h)}
        for s, t, width, height in boxes[:number]:
            others = {(u, v) for u in range(s, s + width) for v in range(t, t + height)}
            assert len(pixels & others) < 0.12 * min(len(pixels), len(others))


def test_overlap_is_the_shared_part_of_the_smaller_box():
    assert overlap((0, 0, 10, 10), (5, 5, 20, 20)) == 0.25
    assert overlap((0, 0, 10, 10), (10, 0, 10, 10)) == 0.0


def test_bounds_of_a_single_pixel():
    mask = np.zeros((1, 5, 7), dtype=bool)
    mask[0, 2, 6] = True
    assert bounds(mask).tolist() == [[6, 2, 7, 3]]


def test_a_scene_depends_on_its_split_number_and_noise_alone():
    few, many = take("train", pool=3), take("train", pool=9, n_test=2)
    assert (few.images == many.images[:3]).all()
    assert (few.images == take("train", pool=3, seed=5, select=True).images).all()
    assert (take("test", seed=1).images == take("test", seed=2, pool=5).images).all()
    assert (take("test").images[0] != take("val").images[0]).any()
    assert (take("test", noise=0.1).maps == take("test").maps).all()
    assert (take("test", noise=0.1).images != take("test").images).any()


def test_annotated_scenes_are_drawn_from_the_pool_by_the_seed():
    pool = take("train")
    few = take("train", n_train=5)
    assert len(few) == 5
    assert (few.images == pool.images[few.rows]).all()
    assert few.rows.tolist() != take("train", n_train=5, seed=1).rows.tolist()
    with pytest.raises(UserError, match="n_train asks for 13 images of data set 'scenes', but only 12"):
        take("train", n_train=13)


def test_names_counts_and_sizes():
    data = Scenes({"pool": 30, "n_train": 7, "n_test": 4}, NOWHERE)
    assert data.counts() == {"train": 7, "val": 4, "test": 4}
    assert (data.num_classes, data.image_size) == (10, 64)
    split = take("val")
    assert split.images.shape == (8, 3, 64, 64)
    assert split.maps.shape == (8, 64, 64)
    assert split.sizes.tolist() == [[64, 64]] * 8
    assert split.object_names == tuple("0123456789")
    assert split.map_names == ("background", *"0123456789")


def test_the_fingerprint_covers_every_option():
    known = {Scenes(options, NOWHERE).fingerprint() for options in ({}, {"pool": 7}, {"noise": 0.1}, {"n_test": 3})}
    assert len(known) == 4
    assert Scenes({"noise": 0.04}, NOWHERE).fingerprint() in known


@pytest.mark.parametrize("options", [{"pool": 0}, {"noise": 0.7}, {"n_train": 1.5}, {"n_test": None}, {"pol": 3}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Scenes(options, NOWHERE)


def test_classification_of_scenes_is_refused():
    with pytest.raises(UserError, match="'scenes' has objects or maps, but no label per image"):
        Scenes({}, NOWHERE).load("train", seed=0, select=False)


def test_scenes_written_in_cocos_format_are_read_back_by_its_reader(tmp_path):
    parts = {"train2017": take("train"), "val2017": take("test")}
    for part, split in parts.items():
        write_coco(split, tmp_path / "coco", part)
    data = Coco({"image_size": 64, "max_size": 64}, tmp_path)
    assert data.num_classes == 10
    for name, split in (("train", parts["train2017"]), ("test", parts["val2017"])):
        found = data.load_dense(name, seed=0, select=False)
        assert found.repairs == {}
        assert found.object_names == split.object_names
        assert found.rows.tolist() == split.rows.tolist()
        for index in range(len(split)):
            assert (found.image(index) == split.image(index)).all()
            one, other = found.objects[index], split.objects[index]
            for name_of in ("boxes", "labels", "masks", "crowd"):
                assert getattr(one, name_of).tolist() == getattr(other, name_of).tolist()
    truth = data.load_dense("test", seed=0, select=False).coco()
    assert truth["images"] == parts["val2017"].coco()["images"]
    assert [{**entry} for entry in truth["annotations"]] == parts["val2017"].coco()["annotations"]


def test_a_split_refuses_parts_that_do_not_fit():
    objects = Objects(
        np.zeros((0, 4), dtype=np.float32),
        np.zeros(0, dtype=np.int64),
        np.zeros((0, 4, 4), dtype=bool),
        np.zeros(0, dtype=bool),
    )
    images, rows, sizes = np.zeros((2, 3, 4, 4), dtype=np.uint8), np.arange(2), np.full((2, 2), 4)
    with pytest.raises(ValueError, match="lengths differ: 1 objects, 2 rows"):
        DenseSplit(images, None, rows, sizes, [objects])
    with pytest.raises(ValueError, match="needs the sizes"):
        DenseSplit(images, None, rows, None, [objects] * 2)
    with pytest.raises(ValueError, match="objects, maps, or both"):
        DenseSplit(images, None, rows)
    with pytest.raises(ValueError, match="either images or paths"):
        DenseSplit(None, None, rows, sizes, [objects] * 2)
