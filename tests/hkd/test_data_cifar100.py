import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkd.data import cifar100, folder
from hkd.data.cifar100 import Cifar100
from hkd.data.folder import CACHE
from hkd.errors import UserError

SUBSET = Path(__file__).parents[3] / "shared" / "data" / "cifar100" / "cifar100_subset.tar.xz"


def write_pickles(root: Path, train: int = 200, test: int = 100, classes: int = 100, **changes) -> Path:
    """cifar-100-python/{train,test}, as the official files are made."""
    place = root / "cifar-100-python"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("test", test)):
        entry = {
            "filenames": [f"{i}.png" for i in range(count)],
            "fine_labels": [i % classes for i in range(count)],
            "coarse_labels": [0] * count,
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (place / name).write_bytes(pickle.dumps({**entry, **changes}, protocol=4))
    return root


def write_folders(root: Path, names=("apple", "bear", "cup"), train: int = 20, test: int = 4) -> Path:
    """cifar100/{train,test}/<class>/<row>.webp, lossless, rows in shuffled order over classes."""
    rng = np.random.default_rng(1)
    for part, count in (("train", train), ("test", test)):
        rows = rng.permutation(count * len(names))
        for label, name in enumerate(names):
            place = root / "cifar100" / part / name
            place.mkdir(parents=True)
            for row in rows[label :: len(names)]:
                Image.fromarray(picture(int(row), label)).save(place / f"{row:05d}.webp", lossless=True)
    return root


def picture(row: int, label: int) -> np.ndarray:
    return np.random.default_rng([row, label]).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def take(data, split, seed=0, select=False, **options):
    return data.load(split, seed=seed, select=select, **options)


def test_torchvisions_layout_gives_torchvisions_images_and_labels(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR100

    write_pickles(tmp_path)
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR100, "_load_meta", lambda self: None)
    theirs, ours = CIFAR100(str(tmp_path), train=True), take(Cifar100({}, tmp_path), "train")
    assert np.array_equal(ours.images.transpose(0, 2, 3, 1), theirs.data)
    assert ours.labels.tolist() == theirs.targets
    assert ours.rows.tolist() == list(range(200))


def test_a_full_file_with_another_checksum_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "OFFICIAL", {"train": 200, "test": 100})
    with pytest.raises(UserError, match="does not have md5:16019d7e"):
        take(Cifar100({}, write_pickles(tmp_path)), "train")


class Evil:
    def __reduce__(self):
        return print, ("pickled code ran",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    write_pickles(tmp_path, coarse_labels=Evil())
    with pytest.raises(UserError, match="is not a file of CIFAR-100"):
        take(Cifar100({}, tmp_path), "train")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"data": 1}), pickle.dumps([1, 2])])
def test_a_damaged_file_is_told_in_a_sentence(tmp_path, content):
    write_pickles(tmp_path)
    (tmp_path / "cifar-100-python" / "train").write_bytes(content)
    with pytest.raises(UserError, match="unpack cifar-100-python"):
        take(Cifar100({}, tmp_path), "train")


def test_a_file_that_is_missing_from_the_layout_is_named(tmp_path):
    write_pickles(tmp_path)
    (tmp_path / "cifar-100-python" / "test").unlink()
    assert "no file 'test'" in Cifar100({}, tmp_path).missing()


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, {"train": 50_000, "test": 10_000}),
        ({"classes": 10}, {"train": 5_000, "test": 1_000}),
        ({"n_train": 40, "n_test": 7}, {"train": 4_000, "test": 700}),
        ({"classes": 10, "n_train": 40}, {"train": 400, "test": 1_000}),
    ],
)
def test_counts_are_per_class_and_need_no_data(tmp_path, options, counts):
    assert Cifar100(options, tmp_path).counts() == counts


def test_too_few_classes_in_the_file_are_told(tmp_path):
    write_pickles(tmp_path, classes=7)
    with pytest.raises(UserError, match="has 7 classes, 100 are needed"):
        take(Cifar100({}, tmp_path), "train")


def test_class_folders_are_decoded_losslessly_with_official_rows(tmp_path):
    train = take(Cifar100({"classes": 3}, write_folders(tmp_path)), "train")
    assert sorted(train.rows.tolist()) == list(range(60))
    for image, label, row in zip(train.images, train.labels.tolist(), train.rows.tolist(), strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), picture(row, label))


def test_class_folders_without_all_classes_are_told(tmp_path):
    with pytest.raises(UserError, match="3 classes, 100 are needed"):
        take(Cifar100({}, write_folders(tmp_path)), "train")


def test_options_take_the_first_classes_and_so_many_images_of_each(tmp_path):
    data = Cifar100({"classes": 2, "n_train": 5, "n_test": 3}, write_folders(tmp_path))
    assert data.num_classes == 2
    assert np.bincount(take(data, "train").labels).tolist() == [5, 5]
    test = take(data, "test")
    assert np.bincount(test.labels).tolist() == [3, 3]
    assert np.array_equal(test.images, take(data, "test", seed=9).images)
    assert take(data, "train", 0).rows.tolist() != take(data, "train", 1).rows.tolist()


@pytest.mark.parametrize("layout", [write_folders, lambda root: write_pickles(root, classes=3, train=60)])
def test_choosing_settings_holds_the_last_rows_of_each_class_out(tmp_path, layout):
    data = Cifar100({"classes": 3}, layout(tmp_path))
    whole, train = take(data, "train"), take(data, "train", select=True)
    held = take(data, "val", select=True)
    assert np.bincount(held.labels).tolist() == [2, 2, 2]
    assert sorted([*train.rows.tolist(), *held.rows.tolist()]) == sorted(whole.rows.tolist())
    for label in range(3):
        assert held.rows[held.labels == label].min() > train.rows[train.labels == label].max()


def test_images_are_decoded_once_for_all_options_and_runs(tmp_path, monkeypatch):
    write_folders(tmp_path)
    first = take(Cifar100({"classes": 3}, tmp_path), "train")
    assert len(list((tmp_path / "cifar100" / CACHE).glob("train-*.npz"))) == 1
    monkeypatch.setattr(cifar100, "decode", lambda *_: pytest.fail("decoded again"))
    again = take(Cifar100({"classes": 3}, tmp_path), "train")
    assert np.array_equal(first.images, again.images)
    assert len(take(Cifar100({"classes": 1, "n_train": 4}, tmp_path), "train")) == 4


def test_a_changed_image_is_decoded_again(tmp_path):
    write_folders(tmp_path)
    before = take(Cifar100({"classes": 3}, tmp_path), "train")
    path = sorted((tmp_path / "cifar100/train/apple").iterdir())[0]
    Image.new("RGB", (32, 32), (1, 2, 3)).save(path, lossless=True)
    after = take(Cifar100({"classes": 3}, tmp_path), "train")
    assert before.images.shape == after.images.shape
    assert after.images[0, :, 5, 5].tolist() == [1, 2, 3]


def test_without_a_writable_place_there_is_no_cache(tmp_path, monkeypatch):
    write_folders(tmp_path)
    monkeypatch.setattr(folder, "writable", lambda path: False)
    assert len(take(Cifar100({"classes": 3}, tmp_path), "train")) == 60
    assert not (tmp_path / "cifar100" / CACHE).exists()


@pytest.mark.parametrize("damage", ["bytes", "cut", "size"])
def test_a_corrupt_image_is_named_or_left_out_and_listed(tmp_path, damage):
    write_folders(tmp_path)
    path = sorted((tmp_path / "cifar100/train/bear").iterdir())[3]
    if damage == "size":
        Image.new("RGB", (8, 8)).save(path, lossless=True)
    else:
        path.write_bytes(b"nothing" if damage == "bytes" else path.read_bytes()[:900])
    data = Cifar100({"classes": 3}, tmp_path)
    for _ in range(2):  # from the files, and from what was remembered
        with pytest.raises(UserError, match=f"Cannot read image {path}"):
            take(data, "train")
        left = take(data, "train", on_corrupt="skip")
        assert len(left) == 59
        assert left.corrupt == (str(path),)


def test_the_fingerprint_is_of_the_content(tmp_path):
    data = Cifar100({"classes": 3}, write_folders(tmp_path / "a"))
    assert data.fingerprint() == Cifar100({"classes": 3}, write_folders(tmp_path / "b")).fingerprint()
    assert data.fingerprint() != Cifar100({"classes": 2}, tmp_path / "a").fingerprint()
    assert data.fingerprint() != Cifar100({"classes": 3}, write_pickles(tmp_path / "c")).fingerprint()


@pytest.mark.skipif(not SUBSET.is_file(), reason=f"real images are not at {SUBSET}")
def test_the_real_subset_is_read_and_remembered(tmp_path):
    with tarfile.open(SUBSET) as archive:
        for member in archive:
            part, name, _ = member.name.split("/")
            if name > "bear":
                break  # train comes first, by class
            path = tmp_path / "cifar100" / part / name / Path(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())
    for name in ("apple", "aquarium_fish", "baby", "bear"):  # reading on to test would unpack the whole archive
        (tmp_path / "cifar100/test" / name).mkdir(parents=True)
    data = Cifar100({"classes": 4}, tmp_path)
    first = take(data, "train")
    assert np.bincount(first.labels).tolist() == [125] * 4
    assert first.rows.max() < 50_000
    assert np.array_equal(take(data, "train").images, first.images)


def test_labels_must_be_as_many_as_images_and_numbers_of_classes(tmp_path):
    write_pickles(tmp_path / "short", fine_labels=[i % 100 for i in range(199)])
    with pytest.raises(UserError, match="has 200 images, but 199 labels"):
        take(Cifar100({}, tmp_path / "short"), "train")
    write_pickles(tmp_path / "high", fine_labels=[100] * 200)
    with pytest.raises(UserError, match="whole numbers from 0 to 99"):
        take(Cifar100({}, tmp_path / "high"), "train")


def test_the_folder_that_is_asked_for_comes_before_pickles_beside_it(tmp_path):
    write_folders(write_pickles(tmp_path))
    assert len(take(Cifar100({"classes": 3}, tmp_path), "train")) == 60
    assert len(take(Cifar100({"folder": "cifar-100-python"}, tmp_path), "train")) == 200
    assert "is not at" in Cifar100({"folder": "mine"}, tmp_path).missing()


def test_images_of_sixteen_bits_in_class_folders_are_scaled(tmp_path):
    write_folders(tmp_path)
    path = sorted((tmp_path / "cifar100/train/apple").iterdir())[0]
    path.unlink()
    Image.fromarray(np.full((32, 32), 257 * 77, np.uint16)).save(path.with_suffix(".png"))
    assert (take(Cifar100({"classes": 3}, tmp_path), "train").images[0] == 77).all()


@pytest.mark.parametrize("keep", [0, 10, 500, -40])
def test_a_damaged_memory_of_images_is_made_again(tmp_path, keep):
    write_folders(tmp_path)
    first = take(Cifar100({"classes": 3}, tmp_path), "train")
    (path,) = (tmp_path / "cifar100" / CACHE).glob("train-*.npz")
    path.write_bytes(path.read_bytes()[:keep])
    assert np.array_equal(take(Cifar100({"classes": 3}, tmp_path), "train").images, first.images)


@pytest.mark.parametrize("shape", [(200, 32, 32, 3), (3072,), (), (1, 200, 3072)])
def test_images_of_another_shape_are_refused(tmp_path, shape):
    with pytest.raises(UserError, match="its 'data' must be an array of bytes, 3072 of each image"):
        take(Cifar100({}, write_pickles(tmp_path, data=np.zeros(shape, np.uint8))), "train")


@pytest.mark.parametrize("change", ["negative label", "other shape", "label of no class", "packed"])
def test_a_memory_of_what_cannot_be_is_made_again(tmp_path, change):
    write_folders(tmp_path)
    whole = take(Cifar100({"classes": 3}, tmp_path), "train")
    (path,) = (tmp_path / "cifar100" / CACHE).glob("train*.npz")
    with np.load(path) as file:
        arrays = dict(file)
    if change == "other shape":
        arrays["labels"] = np.array(0)
    else:
        arrays["labels"][0] = {"negative label": -1, "label of no class": 3}.get(change, 0)
    with open(path, "wb") as file:
        (np.savez_compressed if change == "packed" else np.savez)(file, **arrays)
    again = take(Cifar100({"classes": 3}, tmp_path), "train")
    assert np.array_equal(again.images, whole.images)
    assert np.array_equal(again.labels, whole.labels)
