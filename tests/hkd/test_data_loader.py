import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.mixup import Mixup
from torchvision.transforms.v2 import functional as tv

from hkd.data import sources
from hkd.data.base import PathList, Split
from hkd.data.loading.augment import generator
from hkd.data.loading.loader import Loader, mix_group
from hkd.errors import UserError
from hkd.spec import Recipe

ALL = {"crop": "pad", "flip": True, "shift": 1, "randaugment": "rand-m9-n2-mstd0.5-inc1", "erasing": 0.5}


def recipe(batch_size: int = 8, **fields) -> Recipe:
    return Recipe(epochs=4, batch_size=batch_size, **fields)


def memory(count: int = 20, side: int = 32) -> Split:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return Split(images, None, np.arange(count) % 5, 100 + np.arange(count))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Twelve JPEG files of several sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(12):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((50 + 5 * i, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=90)
    return folder


def files(folder: Path, names: list[str] | None = None, size: int = 32) -> Split:
    names = names or [f"{i}.jpg" for i in range(12)]
    labels = np.arange(len(names)) % 4
    return Split(None, PathList(folder, names), labels, np.arange(len(names)), size)


def make(split: Split, used: Recipe | None, seed: int = 0, **options) -> Loader:
    return Loader(split, used, num_classes=5, seed=seed, **options)


def same(a, b) -> bool:
    views = (a.view is None) == (b.view is None) and (a.view is None or torch.equal(a.view, b.view))
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index) and views


def test_an_epoch_shows_different_images_in_full_batches_only():
    batches = list(make(memory(), recipe()).epoch(0))
    assert [len(batch.x) for batch in batches] == [8, 8]
    index = torch.cat([batch.index for batch in batches])
    assert len(index.unique()) == 16
    assert all(torch.equal(batch.y, batch.index % 5) for batch in batches)


def test_without_augmentation_a_batch_is_the_images_it_names():
    split = memory()
    for batch in make(split, recipe()).epoch(0):
        assert torch.equal(batch.x, torch.from_numpy(split.images)[batch.index].float() / 255)
        assert batch.view is None


def test_the_order_depends_on_seed_and_epoch_only():
    def order(seed, epoch, **fields):
        return torch.cat([b.index for b in make(memory(), recipe(**fields), seed).epoch(epoch)]).tolist()

    assert order(0, 1) == order(0, 1, **ALL)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@pytest.mark.parametrize(
    "fields", [ALL, {**ALL, "crop": "resized"}, {**ALL, "mixup": 0.8, "cutmix": 1.0}, {**ALL, "views": 3}]
)
def test_an_epoch_resumed_at_any_step_is_the_rest_of_the_uninterrupted_one(fields):
    whole = list(make(memory(40), recipe(**fields)).epoch(2))
    for start in range(6):
        rest = list(make(memory(40), recipe(**fields)).epoch(2, start=start))
        assert len(rest) == len(whole[start:])
        assert all(map(same, rest, whole[start:]))


def test_steps_before_the_start_are_not_loaded(photos):
    used = make(files(photos), recipe(4))
    seen = []
    load = used.load
    used.load = lambda item: seen.append(item) or load(item)
    list(used.epoch(0, start=2))
    assert seen == [(0, 2, None)]


@pytest.mark.parametrize("fields", [ALL, {**ALL, "mixup": 0.8, "cutmix": 1.0}, {**ALL, "views": 2}])
def test_shares_of_all_processes_make_up_the_single_process_batch_in_order(fields):
    single = make(memory(70), recipe(32, **fields)).epoch(1)
    shares = [make(memory(70), recipe(32, **fields), rank=rank, world=4).epoch(1) for rank in range(4)]
    steps = 0
    for whole, *parts in zip(single, *shares, strict=True):
        assert [len(part.x) for part in parts] == [8] * 4
        assert torch.equal(whole.x, torch.cat([part.x for part in parts]))
        assert torch.equal(whole.y, torch.cat([part.y for part in parts]))
        assert torch.equal(whole.index, torch.cat([part.index for part in parts]))
        steps += 1
    assert steps == 2


def test_evaluation_shows_every_image_once_in_order_and_unchanged():
    split = memory()
    batches = list(make(split, recipe(**ALL), train=False).epoch(3))
    assert [len(batch.x) for batch in batches] == [8, 8, 4]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(20))
    assert torch.equal(torch.cat([batch.x for batch in batches]), torch.from_numpy(split.images).float() / 255)


def test_evaluation_needs_no_recipe_and_is_shared_without_loss():
    assert [len(batch.x) for batch in make(memory(), None, train=False, batch_size=6).epoch(0)] == [6, 6, 6, 2]
    parts = [make(memory(), None, train=False, batch_size=6, rank=rank, world=4) for rank in range(4)]
    index = [batch.index for part in parts for batch in part.epoch(0)]
    assert sorted(torch.cat(index).tolist()) == list(range(20))


def test_a_data_set_as_large_as_a_batch_makes_one_step():
    assert make(memory(8), recipe(8)).steps == 1


@pytest.mark.parametrize(
    ("fields", "options", "sentence"),
    [
        ({"batch_size": 21}, {}, "batch_size 21 is larger than the 20 training images"),
        ({"batch_size": 8}, {"world": 3}, "cannot be shared equally by 3"),
        ({"batch_size": 9, "mixup": 0.2}, {}, "even"),
        ({"batch_size": 16, "mixup": 0.2}, {"world": 4}, "multiple of 8"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_in_a_sentence(fields, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make(memory(), recipe(**fields), **options)


def test_mixup_gives_soft_targets_and_mixed_images_as_timm_makes_them():
    used = recipe(mixup=0.8, cutmix=1.0, label_smoothing=0.1)
    plain, mixed = next(make(memory(), recipe()).epoch(0)), next(make(memory(), used).epoch(0))
    assert mixed.y.shape == (8, 5)
    assert torch.allclose(mixed.y.sum(1), torch.ones(8))
    np.random.seed(generator(0, "mix", 0, 0, 0).initial_seed())
    mixup = Mixup(0.8, 1.0, mode="elem", label_smoothing=0.1, num_classes=5)
    x, y = mixup(plain.x.clone(), plain.y)
    assert torch.equal(mixed.x, x)
    assert torch.equal(mixed.y, y)


def test_loading_leaves_the_global_generators_alone(photos):
    np.random.seed(1)  # Python's generator is left out: the type checks of the tests draw from it
    torch.manual_seed(1)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(make(memory(), recipe(**ALL, mixup=0.2)).epoch(0))
    list(make(files(photos), recipe(**ALL, mixup=0.2)).epoch(0))
    assert np.random.get_state()[1].tolist() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize(("batch", "group"), [(128, 8), (50, 2), (100, 4), (60, 6), (1024, 8)])
def test_images_are_mixed_in_the_largest_even_group_that_divides_the_batch(batch, group):
    assert mix_group(batch) == group


def test_each_epoch_shows_the_next_fixed_view_of_every_image():
    used = make(memory(), recipe(views=3, **ALL))
    fixed = {view: list(used.view(view)) for view in range(3)}
    shown = {view: torch.cat([batch.x for batch in batches]) for view, batches in fixed.items()}
    assert all(torch.cat([b.index for b in batches]).tolist() == list(range(20)) for batches in fixed.values())
    assert not torch.equal(shown[0], shown[1])
    for epoch in (0, 1, 2, 3):
        for batch in make(memory(), recipe(views=3, **ALL)).epoch(epoch):
            assert batch.view.tolist() == [epoch % 3] * 8
            assert torch.equal(batch.x, shown[epoch % 3][batch.index])


def test_a_view_is_held_as_bytes_and_rebuilt_equal_when_memory_is_short(monkeypatch):
    roomy, short = make(memory(), recipe(views=4, **ALL)), make(memory(), recipe(views=4, **ALL))
    whole = [list(roomy.epoch(epoch)) for epoch in range(8)]
    assert all(view.dtype == torch.uint8 for view in roomy.source.views.values())
    monkeypatch.setattr(sources, "VIEW_BYTES", 1)
    for epoch in range(8):
        assert all(map(same, whole[epoch], short.epoch(epoch)))
        assert len(short.source.views) == 1


def test_a_single_view_is_the_image_itself():
    split = memory()
    batch = next(make(split, recipe(views=1, **ALL)).epoch(5))
    assert batch.view.tolist() == [0] * 8
    assert torch.equal(batch.x, torch.from_numpy(split.images)[batch.index].float() / 255)


def test_evaluation_resizes_and_crops_files_as_torchvision_does(photos):
    batch = next(make(files(photos, size=28), None, train=False).epoch(0))
    for i in range(12):
        image = torch.from_numpy(np.asarray(Image.open(photos / f"{i}.jpg")).copy()).permute(2, 0, 1)
        resized = tv.resize(image, [32], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
        assert (batch.x[i] * 255 - tv.center_crop(resized, [28, 28])).abs().max() <= 2.01  # decoders differ by a little


@pytest.mark.parametrize("fields", [{**ALL, "crop": "resized"}, ALL, {**ALL, "crop": "resized", "views": 2}])
def test_workers_give_the_batches_of_one_process_and_resume_exactly(photos, fields):
    alone, helped = make(files(photos), recipe(4, **fields)), make(files(photos), recipe(4, **fields), workers=2)
    for epoch in range(2):
        assert all(map(same, list(alone.epoch(epoch)), list(helped.epoch(epoch))))
    assert all(map(same, list(alone.epoch(1))[1:], list(helped.epoch(1, start=1))))
    if "views" in fields:
        assert all(map(same, list(alone.view(1)), list(helped.view(1))))


def test_shares_of_files_make_up_the_single_process_batch(photos):
    used = recipe(4, **{**ALL, "crop": "resized"})
    parts = zip(*(make(files(photos), used, rank=rank, world=2).epoch(0) for rank in range(2)), strict=True)
    for whole, (first, second) in zip(make(files(photos), used).epoch(0), parts, strict=True):
        assert torch.equal(whole.x, torch.cat([first.x, second.x]))


def test_a_view_of_files_is_the_same_in_every_epoch_that_shows_it(photos):
    used = recipe(4, **{**ALL, "crop": "resized", "views": 2})
    fixed = torch.cat([batch.x for batch in make(files(photos), used).view(1)])
    for epoch in (1, 3):
        for batch in make(files(photos), used).epoch(epoch):
            assert torch.equal(batch.x, fixed[batch.index])


@pytest.fixture
def damaged(photos, tmp_path) -> Split:
    """Twelve files of which the third is cut short and the sixth is no image."""
    for i in range(12):
        data = (photos / f"{i}.jpg").read_bytes()
        (tmp_path / f"{i}.jpg").write_bytes({2: b"", 5: b"no image at all"}.get(i, data))
    return files(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_the_run_by_name(damaged, workers):
    with pytest.raises(UserError, match=r"Cannot read image .*2\.jpg.*skip") as caught:
        list(make(damaged, None, train=False, workers=workers).epoch(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_are_left_out_of_an_evaluation_and_counted_when_asked(damaged, workers):
    used = make(damaged, None, train=False, batch_size=5, on_corrupt="skip", workers=workers)
    index = torch.cat([batch.index for batch in used.epoch(0)]).tolist()
    assert index == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    assert sorted(Path(name).name for name in used.corrupt) == ["2.jpg", "5.jpg"]


def test_in_training_another_image_of_the_batch_stands_in_for_a_corrupt_one(damaged):
    used = make(damaged, recipe(6), on_corrupt="skip")
    batches = list(used.epoch(0))
    assert [len(batch.x) for batch in batches] == [6, 6]
    index = torch.cat([batch.index for batch in batches])
    assert set(index.tolist()) == set(range(12)) - {2, 5}
    assert torch.equal(torch.cat([batch.y for batch in batches]), index % 4)
    assert len(used.corrupt) == 2


def test_grey_and_cmyk_files_are_shown_in_colour(tmp_path):
    Image.new("L", (40, 40), 100).save(tmp_path / "grey.jpg")
    Image.new("CMYK", (40, 40), (0, 0, 0, 100)).save(tmp_path / "cmyk.jpg")
    Image.new("RGB", (40, 40), (9, 8, 7)).save(tmp_path / "lossless.png")
    Image.new("RGB", (40, 40), (9, 8, 7)).save(tmp_path / "lossless.webp", lossless=True)
    names = ["grey.jpg", "cmyk.jpg", "lossless.png", "lossless.webp"]
    batch = next(make(files(tmp_path, names), None, train=False).epoch(0))
    assert batch.x.shape == (4, 3, 32, 32)
    assert torch.allclose(batch.x[2], batch.x[3])
    assert abs(batch.x[0].mean().item() - 100 / 255) < 0.01


def test_paths_are_held_compactly():
    paths = PathList(Path(os.sep) / "data", [f"train/n{i:08d}/n{i:08d}_{i}.JPEG" for i in range(1000)])
    assert paths[7] == Path(os.sep) / "data/train/n00000007/n00000007_7.JPEG"
    assert len(paths) == 1000
    assert paths.names.nbytes < 64 * 1000


@pytest.mark.parametrize("both", [True, False])
def test_a_split_has_either_images_or_paths(both):
    images, labels = np.zeros((1, 3, 4, 4), np.uint8), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="either images or paths"):
        Split(images if both else None, [Path("a")] if both else None, labels, labels)
