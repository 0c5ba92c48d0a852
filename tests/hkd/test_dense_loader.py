"""Batches for dense tasks: every image once, exact resumption, targets that follow their images, padding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hkd.data.dense import IGNORE, DenseSplit, Objects
from hkd.data.loading.dense import DenseLoader, Draws, ViewOptions, shown_size
from hkd.data.scenes import Scenes, bounds
from hkd.errors import UserError
from hkd.spec import Recipe

SIDE = 24


def blocks(count=10, objects=3, seed=0, side=SIDE):
    """Images whose objects are rectangles of one grey level each, seen in the image, the masks and the map."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 3, side, side), dtype=np.uint8)
    maps = np.zeros((count, side, side), dtype=np.uint8)
    held = []
    for number in range(count):
        masks = np.zeros((objects if number else 0, side, side), dtype=bool)  # the first image is empty
        for label in range(len(masks)):
            y, x = rng.integers(0, side - 8, size=2)
            masks[label, y : y + rng.integers(3, 8), x : x + rng.integers(3, 8)] = True
            masks[:label] &= ~masks[label]
            images[number, :, masks[label]] = 50 * (label + 1)
            maps[number][masks[label]] = label + 1
        masks = masks[masks.any(axis=(1, 2))]
        labels = np.array([maps[number][mask].max() - 1 for mask in masks], dtype=np.int64)
        boxes = bounds(masks) if len(masks) else np.zeros((0, 4), dtype=np.float32)
        held.append(Objects(boxes, labels, masks, np.zeros(len(masks), dtype=bool)))
        images[number, 0, 0, 0] = number
    return DenseSplit(
        images=images,
        paths=None,
        rows=np.arange(count),
        sizes=np.full((count, 2), side),
        objects=held,
        maps=maps,
        object_names=("a", "b", "c"),
        map_names=("background", "a", "b", "c"),
    )


def loader(split, *, batch_size=4, flip=False, options=None, **rest):
    recipe = Recipe(epochs=2, batch_size=batch_size, flip=flip)
    return DenseLoader(split, recipe, options=options or ViewOptions(), **{"seed": 3, **rest})


def same(one, other):
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.sizes, other.sizes)
    assert torch.equal(one.maps, other.maps)
    for left, right in zip(one.objects, other.objects, strict=True):
        assert all(torch.equal(left[name], right[name]) for name in ("boxes", "labels", "masks"))


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order():
    shown = loader(blocks(12))
    orders = [torch.cat([batch.index for batch in shown.epoch(epoch)]).tolist() for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]
    assert shown.steps == 3


def test_evaluation_shows_all_images_in_order_without_targets():
    shown = list(loader(blocks(10), train=False, flip=True, options=ViewOptions(crop=5)).epoch(0))
    assert torch.cat([batch.index for batch in shown]).tolist() == list(range(10))
    assert [len(batch.x) for batch in shown] == [4, 4, 2]
    assert all(batch.objects is None and batch.maps is None for batch in shown)
    assert all(batch.x.shape[2:] == (SIDE, SIDE) for batch in shown)


def test_an_epoch_resumed_at_a_step_goes_on_as_if_it_had_not_stopped():
    options = ViewOptions(scale=(0.5, 2.0), crop=20)
    whole = list(loader(blocks(12), flip=True, options=options).epoch(1))
    rest = list(loader(blocks(12), flip=True, options=options).epoch(1, start=2))
    assert len(rest) == 1
    same(whole[2], rest[0])


def test_two_processes_show_the_images_of_one():
    options = ViewOptions(scale=(0.5, 2.0))
    alone = next(iter(loader(blocks(8), flip=True, options=options).epoch(0)))
    halves = [next(iter(loader(blocks(8), flip=True, options=options, rank=rank, world=2).epoch(0))) for rank in (0, 1)]
    assert torch.cat([half.index for half in halves]).tolist() == alone.index.tolist()
    assert torch.cat([half.sizes for half in halves]).tolist() == alone.sizes.tolist()


def test_an_image_without_augmentation_is_shown_as_it_is_with_its_targets():
    split = blocks()
    for batch in loader(split).epoch(0):
        for place, position in enumerate(batch.index.tolist()):
            objects = split.objects[position]
            torch.testing.assert_close(batch.x[place], torch.tensor(split.images[position]) / 255.0)
            assert batch.maps[place].tolist() == split.maps[position].tolist()
            assert batch.objects[place]["boxes"].tolist() == objects.boxes.tolist()
            assert batch.objects[place]["labels"].tolist() == objects.labels.tolist()
            assert batch.objects[place]["masks"].tolist() == objects.masks.tolist()


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 99), flip=st.booleans(), crop=st.integers(4, SIDE), y=st.floats(0, 0.999), x=st.floats(0, 0.999)
)
def test_boxes_masks_and_map_follow_a_flip_and_a_crop(seed, flip, crop, y, x):
    split = blocks(2, seed=seed)
    shown = loader(split, batch_size=1, flip=True, options=ViewOptions(crop=crop))
    draw = Draws(torch.tensor(0.2 if flip else 0.8), torch.tensor(0.5), torch.tensor([y, x]))
    example = shown.show(torch.tensor(split.images[1]), 1, draw)
    top, left = (int(float(torch.tensor(place)) * (SIDE - crop + 1)) for place in (y, x))
    rows, columns = slice(top, top + crop), slice(left, left + crop)
    turn = slice(None, None, -1 if flip else 1)
    image = split.images[1][:, rows, columns][:, :, turn]
    assert np.array_equal(example.image.numpy(), image)
    assert np.array_equal(example.map.numpy(), split.maps[1][rows, columns][:, turn])
    objects = split.objects[1]
    expected = []
    for box, label, mask in zip(objects.boxes, objects.labels, objects.masks, strict=True):
        seen = mask[rows, columns][:, turn]
        if seen.any():
            x1, x2 = (min(max(value - left, 0), crop) for value in (box[0], box[2]))
            y1, y2 = (min(max(value - top, 0), crop) for value in (box[1], box[3]))
            expected.append((label, seen, [crop - x2 if flip else x1, y1, crop - x1 if flip else x2, y2]))
    assert example.objects["labels"].tolist() == [label for label, _, _ in expected]
    assert example.objects["boxes"].tolist() == [pytest.approx(box) for _, _, box in expected]
    for found, (_, seen, _) in zip(example.objects["masks"].numpy(), expected, strict=True):
        assert np.array_equal(found, seen)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), factor=st.floats(0.0, 1.0))
def test_a_scaled_box_is_that_of_its_scaled_mask_to_a_pixel(seed, factor):
    split = blocks(2, objects=1, seed=seed)
    shown = loader(split, batch_size=1, options=ViewOptions(scale=(0.7, 2.0)))
    example = shown.show(
        torch.tensor(split.images[1]), 1, Draws(torch.tensor(0.0), torch.tensor(factor), torch.zeros(2))
    )
    side = round(SIDE * (0.7 + 1.3 * float(torch.tensor(factor))))
    assert example.image.shape[1:] == example.map.shape == (side, side)
    tight = bounds(example.objects["masks"].numpy())
    assert np.abs(tight - example.objects["boxes"].numpy()).max() <= 1.0
    assert set(np.unique(example.map.numpy())) <= set(np.unique(split.maps[1]))


def test_an_image_whose_objects_all_vanish_stays_with_none():
    split = blocks(2)
    corner = Draws(torch.tensor(0.9), torch.tensor(0.0), torch.zeros(2))
    example = loader(split, batch_size=1, options=ViewOptions(crop=1)).show(torch.tensor(split.images[0]), 0, corner)
    assert example.objects["boxes"].shape == (0, 4)
    assert example.objects["masks"].shape == (0, 1, 1)


def test_scaling_an_image_without_objects_leaves_none():
    batch = next(iter(loader(blocks(1), batch_size=1, options=ViewOptions(scale=(1.5, 1.5))).epoch(0)))
    assert batch.objects[0]["masks"].shape == (0, 36, 36)
    assert batch.x.shape == (1, 3, 36, 36)


def files(folder, sizes):
    for number, (height, width) in enumerate(sizes):
        grey = np.full((height, width, 3), 100 + number, dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"{number}.png")
    maps = [np.full(size, number, dtype=np.uint8) for number, size in enumerate(sizes)]
    return DenseSplit(
        images=None,
        paths=[folder / f"{number}.png" for number in range(len(sizes))],
        rows=np.arange(len(sizes)),
        maps=maps,
        map_names=tuple("abc"),
        image_size=20,
        max_size=50,
    )


def test_files_are_shown_by_their_short_side_bounded_by_the_long_one_and_padded(tmp_path):
    split = files(tmp_path, [(10, 16), (40, 30), (10, 40)])
    batch = next(iter(loader(split, batch_size=3, multiple=8).epoch(0)))
    order = batch.index.tolist()
    expected = [[20, 32], [27, 20], [12, 50]]  # the last one is bounded: 50 / 40 < 20 / 10
    assert batch.sizes.tolist() == [expected[position] for position in order]
    assert batch.x.shape == (3, 3, 32, 56)
    for place, position in enumerate(order):
        height, width = expected[position]
        inside = torch.zeros(32, 56, dtype=torch.bool)
        inside[:height, :width] = True
        torch.testing.assert_close(batch.x[place, :, inside], torch.full((3, height * width), (100 + position) / 255))
        assert batch.x[place, :, ~inside].abs().max() == 0
        assert (batch.maps[place] == torch.where(inside, position, IGNORE)).all()
    assert batch.objects is None


def test_workers_change_nothing(tmp_path):
    split = files(tmp_path, [(10, 16), (40, 30), (10, 40)])
    alone, helped = (
        list(loader(split, batch_size=1, flip=True, options=ViewOptions(crop=9), workers=count).epoch(0))
        for count in (0, 1)
    )
    for one, other in zip(alone, helped, strict=True):
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.maps, other.maps)


def test_an_unreadable_file_stops_or_is_replaced_and_told(tmp_path):
    split = files(tmp_path, [(10, 16), (40, 30), (10, 40)])
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"Cannot read image .*1\.png"):
        list(loader(split, batch_size=3).epoch(0))
    skipping = loader(split, batch_size=3, on_corrupt="skip")
    batch = next(iter(skipping.epoch(0)))
    assert len(batch.x) == 3
    assert sorted({*batch.index.tolist()}) == [0, 2]
    assert list(skipping.corrupt) == ["1.png"]
    rest = list(loader(split, batch_size=3, on_corrupt="skip", train=False).epoch(0))
    assert [batch.index.tolist() for batch in rest] == [[0, 2]]


def test_a_batch_already_on_the_device_is_not_copied():
    batch = next(iter(loader(blocks()).epoch(0)))
    assert batch.to(torch.device("cpu")) is batch


def test_the_shown_size_is_an_images_own_in_memory():
    assert shown_size((7, 9), blocks(1)) == (7, 9)


def test_scenes_train_on_all_their_objects():
    split = Scenes({"pool": 20, "n_train": 4, "n_test": 1}, Path(".")).load_dense("train", seed=0, select=False)
    batch = next(iter(loader(split).epoch(0)))
    assert sum(len(one["labels"]) for one in batch.objects) == sum(map(len, split.objects))


@pytest.mark.parametrize(
    "options", [{"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"scale": (1.0,)}, {"crop": 0}, {"crop": 1.5}]
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(Exception, match=next(iter(options))):
        ViewOptions(**options)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(UserError, match="larger than the 3 training images"):
        loader(blocks(3), batch_size=4)
