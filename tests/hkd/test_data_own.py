"""Folders of somebody's own images: the cut into training, validation and test, and what is said of bad ones."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkd.data.own import OwnFolder
from hkd.errors import UserError


def fill(folder: Path, counts: dict[str, int], side: int = 12) -> Path:
    """`<folder>/<class>/<number>.png`: plain grey or coloured images of several sizes."""
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            mode, colour = ("L", 20 * label + i) if i % 2 else ("RGB", (20 * label, i, 99))
            Image.new(mode, (side + i % 3, side + label), colour).save(folder / name / f"image {i}.png")
    return folder


def names(data: OwnFolder, part: str) -> list[str]:
    return [entry.name for entry in data.entries(part)]


def own(root: Path, **options) -> OwnFolder:
    return OwnFolder({"image_size": 12, **options}, root)


def test_a_cut_gives_every_class_its_share_of_each_part_and_no_image_to_two(tmp_path):
    data = own(fill(tmp_path, {"a cat": 20, "dog": 40, "owl": 3}))
    parts = {part: set(names(data, part)) for part in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 63
    shares = {part: Counter(entry.label for entry in data.entries(part)) for part in parts}
    assert shares["test"] == shares["val"] == {0: 3, 1: 6, 2: 1}  # 15 %, at least one
    assert shares["train"] == {0: 14, 1: 28, 2: 1}


def test_a_cut_is_drawn_by_its_seed_alone(tmp_path):
    root = fill(tmp_path, {"a": 20, "b": 20})
    assert names(own(root), "test") == names(own(root), "test")
    assert names(own(root, split_seed=1), "test") != names(own(root), "test")
    assert own(root, split_seed=1).fingerprint() != own(root).fingerprint()


def test_another_class_leaves_the_cut_of_those_before_it_as_it_was(tmp_path):
    before = names(own(fill(tmp_path, {"a": 10, "b": 10})), "test")
    fill(tmp_path, {"c": 10})
    assert names(own(tmp_path), "test")[: len(before)] == before


def test_where_a_folder_lies_and_what_it_is_called_is_no_part_of_its_identity(tmp_path):
    one, two = fill(tmp_path / "one", {"a": 4, "b": 4}), fill(tmp_path / "the other one", {"a": 4, "b": 4})
    assert own(one).fingerprint() == own(two).fingerprint()
    Image.new("RGB", (12, 12), (1, 2, 3)).save(two / "a" / "image 0.png")
    assert own(one).fingerprint() != own(two).fingerprint()


def test_images_of_any_size_and_grey_ones_are_loaded_in_colour_with_rows_of_their_own(tmp_path):
    data = own(fill(tmp_path, {"a": 10, "b": 10}))
    loaded = {part: data.load(part, seed=0, select=False) for part in ("train", "val", "test")}
    assert {split.images.shape[1:] for split in loaded.values()} == {(3, 12, 12)}
    rows = np.concatenate([split.rows for split in loaded.values()])
    assert sorted(rows) == list(range(20))


def test_large_data_stay_files(tmp_path, monkeypatch):
    monkeypatch.setattr("hkd.data.own.IN_MEMORY", 0)
    split = own(fill(tmp_path, {"a": 4, "b": 4})).load("test", seed=0, select=False)
    assert split.images is None
    assert all(path.is_file() for path in split.paths)


def test_folders_of_parts_are_taken_as_they_are(tmp_path):
    for part, count in (("train", 10), ("val", 2), ("test", 3)):
        fill(tmp_path / part, {"a": count, "b": count})
    data = own(tmp_path)
    assert {part: len(data.load(part, seed=0, select=False)) for part in ("train", "val", "test")} == {
        "train": 20,
        "val": 4,
        "test": 6,
    }
    assert len(data.load("train", seed=0, select=True)) == 20  # nothing is to be held out: val/ is there


def test_without_test_images_those_of_val_are_the_test(tmp_path):
    fill(tmp_path / "train", {"a": 10, "b": 10}), fill(tmp_path / "val", {"a": 2, "b": 2})
    data = own(tmp_path)
    assert len(data.load("test", seed=0, select=False)) == 4
    assert len(data.load("val", seed=0, select=True)) == 2  # a tenth of the training images
    with pytest.raises(UserError, match="only while settings are chosen"):
        data.load("val", seed=0, select=False)


def test_a_folder_of_training_images_alone_is_cut(tmp_path):
    fill(tmp_path / "train", {"a": 10, "b": 10})
    assert len(own(tmp_path).load("test", seed=0, select=False)) == 4


def test_a_class_may_be_called_train(tmp_path):
    assert own(fill(tmp_path, {"train": 4, "truck": 4})).class_names == ["train", "truck"]


def test_fewer_training_images_are_drawn_by_the_seed_from_training_images_alone(tmp_path):
    data = own(fill(tmp_path, {"a": 20, "b": 20}), n_train=5)
    first, second = (data.load("train", seed=seed, select=False) for seed in (0, 1))
    assert Counter(first.labels.tolist()) == {0: 5, 1: 5}
    assert set(first.rows) != set(second.rows)
    assert max(first.rows) < len(data.entries("train"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda root: fill(root, {"cats": 5}), "has one class ('cats'): two at least"),
        (lambda root: (fill(root, {"cats": 5}), (root / "dogs").mkdir()), "Class 'dogs' has no images"),
        (lambda root: fill(root, {"cats": 5, "dogs": 2}), "Class 'dogs' has 2 images, and 3 are the fewest"),
        (lambda root: (root / "a.png").write_bytes(b""), "1 images outside of any class folder"),
        (lambda root: root.rmdir(), "is not at"),
        (
            lambda root: (fill(root / "train", {"a": 3, "b": 3}), fill(root / "test", {"a": 3, "c": 3})),
            "Class 'b' is only in",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(make, sentence, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    with pytest.raises(UserError) as error:
        own(root).load("train", seed=0, select=False)
    assert sentence in str(error.value)
    assert str(root) in str(error.value) or "2 images" in sentence


@pytest.mark.parametrize("memory", [2**28, 0])
def test_damaged_images_are_counted_and_the_first_are_named(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("hkd.data.own.IN_MEMORY", memory)
    data = own(fill(tmp_path, {"a": 8, "b": 8}))
    for i in range(5):
        (tmp_path / "b" / f"image {i}.png").write_bytes(b"" if i else b"no image")
    assert sorted(data.corrupt()) == [str(tmp_path / "b" / f"image {i}.png") for i in range(5)]
    if memory:
        with pytest.raises(UserError, match="cannot be read"):
            data.load("train", seed=0, select=False)


def test_shares_that_leave_nothing_are_refused(tmp_path):
    with pytest.raises(UserError, match="together less than 1"):
        own(tmp_path, val_share=0.5, test_share=0.5)
