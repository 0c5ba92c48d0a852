"""Stanford Cars in its official layout, whose MATLAB files scipy writes, and as class folders; hostile MATLAB files."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from hkd.data import matlab
from hkd.data.stanford_cars import META, TEST, TRAIN, StanfordCars
from hkd.errors import UserError

CLASSES = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Škoda Octavia 2011")
FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
COUNTS = {"train": 10, "test": 3}  # images of each class


def annotations(entries: list[tuple[str, int]], fields=FIELDS) -> np.ndarray:
    """A struct array of one row, as the devkit has it."""
    found = np.zeros((1, len(entries)), dtype=[(name, object) for name in fields])
    for place, (name, label) in enumerate(entries):
        values = {"bbox_x1": 3, "bbox_y1": 4, "bbox_x2": 30, "bbox_y2": 300, "class": np.uint8(label), "fname": name}
        found[0, place] = tuple(values[field] for field in fields)
    return found


def cells(names) -> np.ndarray:
    found = np.empty((1, len(names)), dtype=object)
    found[0] = names
    return found


def write_cars(root: Path) -> Path:
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(folder / META, {"class_names": cells(CLASSES)}, do_compression=True)
    for (part, count), file in zip(COUNTS.items(), (TRAIN, TEST), strict=True):
        (folder / f"cars_{part}").mkdir()
        entries = []
        for number in range(3 * count):
            label = number * 7 % 3
            name = f"{number + 1:05d}.jpg"
            Image.new("RGB", (60, 40), (80 * label, 10 * (number % 9), 30)).save(folder / f"cars_{part}" / name)
            entries.append((name, label + 1))
        scipy.io.savemat(folder / file, {"annotations": annotations(entries)}, do_compression=True)
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write_cars(tmp_path)


def cars(root: Path, **options) -> StanfordCars:
    return StanfordCars({"classes": 3, "image_size": 16, **options}, root)


def take(data, split, select=False, on_corrupt="stop"):
    return data.load(split, seed=0, select=select, on_corrupt=on_corrupt)


def test_the_official_counts_are_those_of_the_whole_data_set():
    assert StanfordCars.expected["train"] + StanfordCars.expected["test"] == 16_185
    assert StanfordCars({}, Path("nowhere")).num_classes == 196


@pytest.mark.parametrize("inside", [False, True])
def test_the_official_split_and_labels_are_those_of_the_annotations(root, inside):
    if inside:  # the labels of the test images are published apart, and put in either place
        (root / "stanford_cars" / TEST).rename(root / "stanford_cars/devkit" / TEST)
    train, test = take(cars(root), "train"), take(cars(root), "test")
    assert np.bincount(train.labels).tolist() == [10] * 3
    assert np.bincount(test.labels).tolist() == [3] * 3
    assert sorted([*train.rows.tolist(), *test.rows.tolist()]) == list(range(39))
    assert train.paths[4] == root / "stanford_cars/cars_train/00005.jpg"
    assert train.labels[4] == 4 * 7 % 3
    assert cars(root).class_names == list(CLASSES)


def test_choosing_settings_holds_the_last_tenth_of_each_class_out(root):
    train, held = (take(cars(root), split, select=True) for split in ("train", "val"))
    assert np.bincount(held.labels).tolist() == [1, 1, 1]
    assert sorted([*train.rows.tolist(), *held.rows.tolist()]) == take(cars(root), "train").rows.tolist()


def test_class_folders_are_read_too(root):
    folder = root / "folders"
    for split in COUNTS:
        found = take(cars(root), split)
        for path, label in zip(found.paths, found.labels.tolist(), strict=True):
            place = folder / split / f"{label}" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    data = cars(root, folder="folders", memory=True)
    assert np.bincount(take(data, "test").labels).tolist() == [3] * 3


def test_missing_data_is_one_sentence_with_the_step(root, tmp_path):
    assert "Stanford Cars is not at" in StanfordCars({}, tmp_path / "no").missing()
    (root / "stanford_cars" / TEST).unlink()
    with pytest.raises(UserError, match=rf"has no file '{TEST}': unpack cars_train, cars_test and devkit"):
        take(cars(root), "train")


def change(root: Path, file: str, entries, fields=FIELDS) -> None:
    scipy.io.savemat(root / "stanford_cars" / file, {"annotations": annotations(entries, fields)})


@pytest.mark.parametrize(
    ("entries", "fields", "sentence"),
    [
        ([("00001.jpg", 4)], FIELDS, "annotation 1, must have a file name and a class from 1 to 3"),
        ([("00001.jpg", 0)], FIELDS, "annotation 1, must have a file name and a class from 1 to 3"),
        ([("00001.jpg", 1), ("", 1)], FIELDS, "annotation 2, must have a file name"),
        ([("00001.jpg", 1)], tuple(f for f in FIELDS if f != "class"), "has no classes: the test images' are in"),
        ([("../../x.jpg", 1)], FIELDS, "is listed in its annotations but not there"),
        ([("00099.jpg", 1)], FIELDS, r"00099\.jpg is listed in its annotations but not there .1 of 31 images"),
        ([("00001.jpg", 1), ("00001.jpg", 2)], FIELDS, "lists cars_test/00001.jpg twice"),
    ],
)  # fmt: skip
def test_annotations_that_do_not_match_the_images_are_refused_in_one_sentence(root, entries, fields, sentence):
    change(root, TEST, entries, fields)
    with pytest.raises(UserError, match=sentence) as error:
        take(cars(root), "test")
    assert "\n" not in str(error.value)


def test_fewer_classes_or_images_than_the_whole_data_set_are_told(root):
    with pytest.raises(UserError, match="has 3 classes, 196 are needed"):
        take(StanfordCars({}, root), "train")
    with pytest.raises(UserError, match="has 30 train images, 31 are needed"):
        take(cars(root, classes=None, expected={"classes": 3, "train": 31}), "train")


def test_the_fingerprint_is_of_the_content_and_the_options(root):
    before = cars(root).fingerprint()
    assert before != cars(root, n_train=2).fingerprint()
    change(root, TEST, [(f"{number + 1:05d}.jpg", number % 3 + 1) for number in range(9)])
    assert cars(root).fingerprint() != before


# -- MATLAB files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_a_matlab_file_is_read_as_scipy_wrote_it(tmp_path, compressed):
    path = tmp_path / "x.mat"
    wanted = {
        "other": np.arange(5.0),
        "numbers": np.arange(6, dtype=np.int16).reshape(2, 3),
        "half": np.array([[0.5]]),
        "text": "Citroën C4",
        "nested": cells(["a", np.array([[1.0, 2.0]]), cells(["b"])]),
    }
    scipy.io.savemat(path, wanted, do_compression=compressed)
    assert np.array_equal(matlab.read_variable(path, "numbers"), wanted["numbers"])
    assert matlab.read_variable(path, "half").tolist() == [[0.5]]
    assert matlab.read_variable(path, "text") == "Citroën C4"
    first, second, third = matlab.read_variable(path, "nested")
    assert (first, second.tolist(), third) == ("a", [[1.0, 2.0]], ["b"])
    scipy.io.savemat(path, {"annotations": annotations([("x.jpg", 2), ("y.jpg", 1)])}, do_compression=compressed)
    entries = matlab.read_variable(path, "annotations")
    assert [(entry["fname"], int(entry["class"][0, 0])) for entry in entries] == [("x.jpg", 2), ("y.jpg", 1)]
    assert list(entries[0]) == list(FIELDS)


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def matrix(what: int, shape: tuple[int, ...], rest: bytes, name: bytes = b"") -> bytes:
    flags, sides = struct.pack("<II", what, 0), struct.pack(f"<{len(shape)}i", *shape)
    return element(14, element(6, flags) + element(5, sides) + element(1, name) + rest)


HEAD = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"


def nest(levels: int) -> bytes:
    inner = b""
    for level in range(levels):
        inner = matrix(1, (1, 1), inner, b"x" if level == levels - 1 else b"")
    return inner


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its head is that of another format"),
        (b"MATLAB 7.3 MAT-file".ljust(200), r"it is of MATLAB 7\.3"),
        (b"\x89HDF\r\n\x1a\n".ljust(200), r"it is of MATLAB 7\.3"),
        (HEAD, "it has no variable 'x'"),
        (HEAD + matrix(6, (1, 1), element(9, struct.pack("<d", 1)), b"x")[:-9], "it is cut short"),
        (HEAD + matrix(6, (1, 2), element(9, struct.pack("<d", 1)), b"x"), "another number of values"),
        (HEAD + matrix(6, (60_000, 60_000), b"", b"x"), "no possible size"),
        (HEAD + matrix(6, (-1, 1), b"", b"x"), "no possible size"),
        (HEAD + matrix(3, (1, 1), element(9, b""), b"x"), "objects, functions or sparse arrays"),
        (HEAD + matrix(2, (1, 1), element(5, struct.pack("<i", 0)) + element(1, b"ab"), b"x"), "a struct has no names"),
        (HEAD + matrix(4, (1, 1), element(16, b"\xff\xfe\xfd"), b"x"), "characters that there are not"),
        (HEAD + element(15, b"nothing"), "what is compressed in it is damaged"),
        (HEAD + element(15, zlib.compress(b"\0" * (matlab.MOST + 1))), "cut short, or too large"),
        (HEAD + element(14, element(2, b"\6") + element(9, b"\xff" * 16) + element(1, b"x")), "whole numbers must be"),
        (HEAD + nest(2000), "matrices lie more than 8 deep"),  # of 20,000 scipy's reader ends the process
    ],
)  # fmt: skip
def test_a_hostile_matlab_file_is_refused_in_one_sentence(tmp_path, content, reason):
    path = tmp_path / "x.mat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} cannot be read as a MATLAB file .*{reason}") as error:
        matlab.read_variable(path, "x")
    assert "\n" not in str(error.value)
