import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkd.data import DATASETS, folder, kept
from hkd.data.folder import CACHE, ClassFolder
from hkd.data.imagenet1k import ImageNet1k
from hkd.data.loading.loader import Loader
from hkd.errors import UserError
from hkd.registry import load as load_class

TINY = Path(__file__).parents[3] / "shared" / "data" / "imagenet" / "tiny_imagenet_20c.tar.xz"


def write_tree(root: Path, counts: dict[str, int], test: int = 3, test_name: str = "val", suffix: str = "JPEG") -> Path:
    """train/<class>/ with so many images a class, and a test folder with `test` each, of plain colours."""
    for label, (name, count) in enumerate(counts.items()):
        for part, number in (("train", count), (test_name, test)):
            (root / part / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (48, 40), (10 * label, i, 99)).save(root / part / name / f"{name}_{i}.{suffix}")
    return root


@pytest.fixture
def tree(tmp_path) -> Path:
    write_tree(tmp_path / "imagenet", {"n02": 20, "n01": 20, "n03": 20})
    return tmp_path


def imagenet(root: Path, **options) -> ImageNet1k:
    return ImageNet1k({"classes": 3, "image_size": 32, **options}, root)


def take(data, split, seed=0, select=False):
    return data.load(split, seed=seed, select=select)


@pytest.mark.parametrize("name", DATASETS)
def test_every_registered_data_set_states_its_facts(name, tmp_path):
    data = load_class(DATASETS[name])({}, tmp_path)
    assert data.name == name
    assert data.licence
    assert data.source
    assert isinstance(data.expected, dict)
    if not name.startswith(("digits", "numbers", "scenes")):  # these ship inside scikit-learn
        sentence = data.missing()
        assert str(tmp_path) in sentence
        assert "\n" not in sentence
        with pytest.raises(UserError, match=r"is not at|is absent"):
            data.fingerprint()


def test_counts_are_left_out_where_the_options_do_not_tell_them(tmp_path):
    assert ClassFolder({"n_train": 5}, tmp_path).counts() == {}
    assert ClassFolder({"n_train": 5, "classes": 4, "expected": {"test": 9}}, tmp_path).counts() == {
        "train": 20,
        "test": 9,
    }
    assert ImageNet1k({"classes": 100}, tmp_path).counts() == {"train": 128_116, "test": 5_000}


def test_counts_are_those_of_the_splits(tree):
    data = imagenet(tree, n_train=4, n_test=2)
    assert data.counts() == {split: len(take(data, split)) for split in ("train", "test")}


def test_classes_are_numbered_by_name_and_images_are_files(tree):
    train = take(imagenet(tree), "train")
    assert len(train) == 60
    assert train.images is None
    assert train.paths[0] == tree / "imagenet/train/n01/n01_0.JPEG"
    assert train.labels.tolist() == [0] * 20 + [1] * 20 + [2] * 20
    assert train.image_size == 32
    test = take(imagenet(tree), "test")
    assert len(test) == 9
    assert test.paths[8] == tree / "imagenet/val/n03/n03_2.JPEG"


def test_files_of_a_split_go_through_the_loader(tree):
    data = imagenet(tree)
    loader = Loader(take(data, "test"), None, num_classes=data.num_classes, seed=0, train=False)
    batch = next(loader.epoch(0))
    assert batch.x.shape == (9, 3, 32, 32)
    assert batch.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_choosing_settings_holds_the_last_tenth_of_each_class_out_of_train(tree):
    data = imagenet(tree)
    train, held = take(data, "train", select=True), take(data, "val", select=True)
    assert np.bincount(train.labels).tolist() == [18] * 3
    assert np.bincount(held.labels).tolist() == [2] * 3
    assert not set(train.rows.tolist()) & set(held.rows.tolist())
    assert set(train.rows.tolist()) | set(held.rows.tolist()) == set(take(data, "train").rows.tolist())
    assert held.rows.tolist() == take(imagenet(tree, n_train=2), "val", seed=5, select=True).rows.tolist()


def test_validation_images_are_refused_when_train_has_them(tree):
    with pytest.raises(UserError, match="only while settings are chosen"):
        take(imagenet(tree), "val")


def test_a_labelled_subset_is_drawn_by_the_seed_and_never_from_validation(tree):
    data = imagenet(tree, n_train=4)
    first, again, other = (take(data, "train", seed, select=True) for seed in (0, 0, 1))
    assert np.bincount(first.labels).tolist() == [4] * 3
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()
    held = set(take(data, "val", select=True).rows.tolist())
    assert not held & {row for seed in range(20) for row in take(data, "train", seed, select=True).rows.tolist()}


def test_the_first_classes_and_test_images_can_be_taken(tree):
    data = imagenet(tree, classes=2, n_test=1)
    assert data.num_classes == 2
    assert set(take(data, "train").labels.tolist()) == {0, 1}
    assert take(data, "test").labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": 4}, "3 classes, 4 are needed"),
        ({"classes": None}, "3 classes, 1000 are needed"),
        ({"classes": None, "expected": {"classes": 2}}, "3 classes, 2 are needed"),
        ({"expected": {"train": 61}}, "60 images, 61 are needed"),
        ({"n_train": 30}, "only 20"),
        ({"n_test": 4}, "only 3"),
        ({"folder": "../elsewhere"}, "below its root folder"),
        ({"clases": 3}, "Did you mean 'classes'"),
    ],
)
def test_counts_and_options_that_are_wrong_are_told_in_a_sentence(tree, options, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        [take(imagenet(tree, **options), split) for split in ("train", "test")]
    assert "\n" not in str(caught.value)


def test_expected_counts_stand_in_for_those_of_the_whole_data_set(tree):
    data = imagenet(tree, classes=None, expected={"classes": 3, "train": 60, "test": 9})
    assert len(take(data, "train")) == 60


def test_a_class_that_is_only_in_train_is_named(tree):
    (tree / "imagenet/train/n99").mkdir()
    with pytest.raises(UserError, match="'n99' is only in"):
        take(imagenet(tree), "train")


def test_a_generic_folder_counts_its_classes(tmp_path):
    write_tree(tmp_path / "birds", {"b": 2, "a": 3}, test_name="test", suffix="png")
    data = ClassFolder({"folder": "birds"}, tmp_path)
    assert data.missing() is None
    assert data.num_classes == 2
    assert take(data, "train").labels.tolist() == [0, 0, 0, 1, 1]


def test_a_fingerprint_depends_on_content_and_options_not_on_the_place(tmp_path):
    for place in ("one", "two"):
        write_tree(tmp_path / place / "folder", {"a": 2, "b": 2})
    first = ClassFolder({}, tmp_path / "one").fingerprint()
    assert first == ClassFolder({}, tmp_path / "two").fingerprint()
    assert first != ClassFolder({"classes": 1}, tmp_path / "one").fingerprint()
    Image.new("RGB", (48, 40), (7, 7, 7)).save(tmp_path / "one/folder/train/a/a_0.JPEG")
    assert first != ClassFolder({}, tmp_path / "one").fingerprint()


def test_a_content_fingerprint_is_remembered_until_a_file_changes(tmp_path, monkeypatch):
    write_tree(tmp_path / "folder", {"a": 2, "b": 2})
    read = []
    monkeypatch.setattr(folder, "sha256", lambda path: read.append(path) or "0" * 64)
    ClassFolder({}, tmp_path).fingerprint()
    ClassFolder({}, tmp_path).fingerprint()
    assert len(read) == 10
    os.utime(tmp_path / "folder/train/a/a_0.JPEG", ns=(1, 1))
    ClassFolder({}, tmp_path).fingerprint()
    assert len(read) == 20


def test_a_read_only_folder_is_fingerprinted_without_a_cache(tmp_path, monkeypatch):
    write_tree(tmp_path / "folder", {"a": 2, "b": 2})
    first = ClassFolder({}, tmp_path).fingerprint()
    monkeypatch.setattr(folder, "writable", lambda path: False)
    (tmp_path / "folder" / CACHE / "content.json").unlink()
    assert ClassFolder({}, tmp_path).fingerprint() == first
    assert not (tmp_path / "folder" / CACHE / "content.json").exists()


def test_imagenet_is_fingerprinted_by_names_and_sizes_until_a_folder_changes(tree):
    first = imagenet(tree).fingerprint()
    known = json.loads((tree / "imagenet" / CACHE / "content.json").read_text())
    assert imagenet(tree).fingerprint() == first
    (tree / "imagenet/train/n01/n01_0.JPEG").unlink()
    assert imagenet(tree).fingerprint() != first
    assert json.loads((tree / "imagenet" / CACHE / "content.json").read_text()) != known


@pytest.mark.skipif(not TINY.is_file(), reason=f"real images are not at {TINY}")
def test_the_tiny_imagenet_sample_is_read(tmp_path):
    with tarfile.open(TINY) as archive:
        archive.extractall(tmp_path / "imagenet", filter="data")
    data = ImageNet1k({"classes": 5, "image_size": 56}, tmp_path)
    batch = next(Loader(take(data, "test"), None, num_classes=5, seed=0, train=False, batch_size=100).epoch(0))
    assert batch.x.shape == (100, 3, 56, 56)
    assert 0.2 < batch.x.mean().item() < 0.7
    assert np.bincount(take(data, "train").labels).tolist() == [60] * 5


def test_a_part_that_is_named_by_its_counts_has_so_many_classes(tree):
    data = imagenet(tree, classes=None, expected={"classes": 3})
    assert data.num_classes == 3
    assert len(take(imagenet(tree, classes=None, expected={"classes": 3}, n_train=2), "train")) == 6


def test_what_is_no_image_is_left_out_and_said(tree, caplog):
    place = tree / "imagenet/train/n01"
    (place / "._n01_0.JPEG").write_bytes(b"Mac OS X")
    (place / "notes.txt").write_text("x")
    (place / "more").mkdir()
    (place / "x.png").mkdir()
    assert len(take(imagenet(tree), "train")) == 60
    for what in ("hidden files (1)", ".txt files (1)", "folders (1)", "folders called as images are (1)"):
        assert what in caplog.text


def test_a_class_without_images_is_named_with_what_is_there_instead(tree):
    for path in (tree / "imagenet/train/n02").iterdir():
        path.rename(path.with_suffix(".tif"))
    with pytest.raises(UserError, match=r"^Class 'n02' has no train images .*left out were \.tif files \(20\)"):
        take(imagenet(tree), "train")
    assert len(take(imagenet(tree), "test")) == 9


def test_links_that_lead_nowhere_and_names_that_are_not_utf8_are_told(tree):
    path = tree / "imagenet/train/n01/gone.jpg"
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone\.jpg is a link that leads nowhere"):
        imagenet(tree).fingerprint()
    path.unlink()
    os.close(os.open(os.fsencode(path.parent) + b"/caf\xe9.jpg", os.O_CREAT))
    with pytest.raises(UserError, match=r"not UTF-8 \('.*caf\\xe9\.jpg'\): rename it"):
        take(imagenet(tree), "train")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"state": 1}', '{"state": 1, "content": 2}', "\0"])
def test_a_damaged_memory_of_the_content_is_computed_again(tree, damage):
    right = imagenet(tree).fingerprint()
    (tree / "imagenet" / CACHE / "content.json").write_text(damage)
    assert imagenet(tree).fingerprint() == right


def test_an_image_that_would_be_resized_beyond_memory_is_unreadable(tmp_path):
    write_tree(tmp_path / "folder", {"a": 1}, test=1, test_name="test", suffix="png")
    Image.new("L", (10**6, 1)).save(tmp_path / "folder" / "train" / "a" / "strip.png")
    split = take(ClassFolder({}, tmp_path), "train")
    loader = Loader(split, None, num_classes=1, seed=0, train=False, on_corrupt="skip")
    assert [len(batch.x) for batch in loader.epoch(0)] == [1]
    assert "resized to 256000000 x 256 px" in next(iter(loader.corrupt.values()))
    with pytest.raises(UserError, match=r"Cannot read image .*strip\.png"):
        list(Loader(split, None, num_classes=1, seed=0, train=False).epoch(0))


def test_a_name_with_a_line_break_is_told_in_one_line(tree):
    (tree / "imagenet" / "train" / "n0\n4").mkdir()
    with pytest.raises(UserError) as told:
        take(imagenet(tree), "train")
    assert "Class 'n0\\n4' is only in" in str(told.value)


def test_counts_that_say_nothing_of_classes_leave_their_number_to_be_checked(tree):
    with pytest.raises(UserError, match="has 3 classes, 1000 are needed"):
        take(ImageNet1k({"expected": {"train": 60}}, tree), "train")


def test_what_may_not_be_looked_at_is_told(tree, monkeypatch):
    """As where a folder may be listed by its owner alone; root may look at everything, so the system is made to lie."""
    refused = PermissionError(13, "Permission denied", str(tree))

    def stat(*args, **options):
        raise refused

    monkeypatch.setattr(os, "stat", stat)
    assert "is not at" in imagenet(tree).missing()


@pytest.mark.parametrize("kind", ["pipe", "long"])
def test_a_memory_of_the_content_that_is_none_is_not_waited_for(tree, kind):
    data = ClassFolder({"folder": "imagenet"}, tree)
    found = data.fingerprint()
    path = tree / "imagenet" / CACHE / "content.json"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 10**6)
    assert data.fingerprint() == found


def test_a_file_longer_than_any_image_is_known_by_its_length(tree):
    path = tree / "imagenet" / "train" / "n01" / "long.png"
    found = []
    for length in (10**12, 10**12 + 1):
        with open(path, "wb") as file:
            file.truncate(length)
        found.append(ClassFolder({"folder": "imagenet"}, tree).fingerprint())
    assert len(set(found)) == 2


def test_a_flipped_bit_in_a_remembered_digest_moves_no_fingerprint(tree):
    data = ClassFolder({"folder": "imagenet"}, tree)
    found = data.fingerprint()
    path = tree / "imagenet" / CACHE / "content.json"
    known = json.loads(path.read_text())
    path.write_text(
        json.dumps(known | {"content": known["content"][:-1] + ("1" if known["content"][-1] == "0" else "0")})
    )
    assert data.fingerprint() == found


def test_a_read_only_folder_is_fingerprinted_once_where_a_second_place_is_known(tmp_path, monkeypatch):
    write_tree(tmp_path / "data/folder", {"a": 2, "b": 2})
    read, store = [], tmp_path / "store"
    monkeypatch.setattr(folder, "sha256", lambda path: read.append(path) or "0" * 64)
    monkeypatch.setattr(folder, "writable", lambda path: path == store)
    store.mkdir()
    kept.keep_also_in(store)
    try:
        first = ClassFolder({}, tmp_path / "data").fingerprint()
        assert ClassFolder({}, tmp_path / "data").fingerprint() == first
        assert len(read) == 10
        assert [path.name.partition("-")[0] for path in store.iterdir()] == ["content"]
        os.utime(tmp_path / "data/folder/train/a/a_0.JPEG", ns=(1, 1))
        ClassFolder({}, tmp_path / "data").fingerprint()
        assert len(read) == 20
    finally:
        kept.keep_also_in(None)
