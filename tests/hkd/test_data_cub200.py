"""CUB-200-2011 from its own layout, from class folders, in memory and cropped to boxes."""

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hkd.data import cub200, listed, sources
from hkd.data.cub200 import Cub200, square
from hkd.data.folder import CACHE
from hkd.data.loading.loader import Loader
from hkd.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "cub200"
ARCHIVE = REAL / "cub200_first20_96px.tar.xz"
CLASSES = ("001.Albatross", "002.Auklet", "003.Ani")
TRAIN = 10  # images of each class; every class has TEST more
TEST = 3


def photo(label: int, number: int) -> Image.Image:
    """60x40 px: a class's grey with a red bird whose box is `box(number)`, and a pattern that survives JPEG."""
    pixels = np.full((40, 60, 3), 60 * label + 30, dtype=np.uint8)
    x, y, w, h = box(number)
    pixels[y : y + h, x : x + w] = (200, 5 * number, 0)
    return Image.fromarray(pixels)


def box(number: int) -> tuple[int, int, int, int]:
    return 4 + number, 6, 20, 12


def write_cub(root: Path) -> Path:
    """The archive's layout; ids run over the classes, but file names and split flags are not sorted."""
    folder = root / "CUB_200_2011"
    lines: dict[str, list[str]] = {name: [] for name in (*cub200.LISTS, cub200.BOXES)}
    number = 0
    for label, kind in enumerate(CLASSES):
        lines["classes.txt"].append(f"{label + 1} {kind}")
        (folder / "images" / kind).mkdir(parents=True)
        for place in range(TRAIN + TEST):
            number += 1
            name = f"{kind}/Bird_{(place * 7) % 13:04d}_{number}.jpg"
            photo(label, place).save(folder / "images" / name, quality=95)
            lines["images.txt"].append(f"{number} {name}")
            lines["image_class_labels.txt"].append(f"{number} {label + 1}")
            lines["train_test_split.txt"].append(f"{number} {int(place % 4 != 1)}")
            lines[cub200.BOXES].append(" ".join([str(number), *(f"{value:.1f}" for value in box(place))]))
    for name, text in lines.items():
        (folder / name).write_text("\n".join(text) + "\n")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write_cub(tmp_path)


def cub(root: Path, **options) -> Cub200:
    return Cub200({"classes": 3, "image_size": 16, **options}, root)


def take(data, split, seed=0, select=False, on_corrupt="stop"):
    return data.load(split, seed=seed, select=select, on_corrupt=on_corrupt)


def rewrite(root: Path, name: str, change) -> None:
    path = root / "CUB_200_2011" / name
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_the_official_counts_add_up_to_all_images():
    assert Cub200.expected["train"] + Cub200.expected["test"] == 11_788
    assert Cub200({}, Path("nowhere")).num_classes == 200
    assert Cub200({}, Path("nowhere")).counts() == {"train": 5994, "test": 5794}


def test_the_official_split_and_labels_are_those_of_the_lists(root):
    train, test = take(cub(root), "train"), take(cub(root), "test")
    assert np.bincount(train.labels).tolist() == [TRAIN] * 3
    assert np.bincount(test.labels).tolist() == [TEST] * 3
    assert sorted([*train.rows.tolist(), *test.rows.tolist()]) == list(range(39))
    names = [line.split()[1] for line in (root / "CUB_200_2011/images.txt").read_text().splitlines()]
    for split in (train, test):
        for path, row, label in zip(split.paths, split.rows.tolist(), split.labels.tolist(), strict=True):
            assert path == root / "CUB_200_2011/images" / names[row]
            assert path.parent.name == CLASSES[label]
    assert {row % 13 for row in test.rows.tolist()} == {1, 5, 9}


def test_options_take_first_classes_and_so_many_images_of_each(root):
    data = cub(root, classes=2, n_train=4, n_test=2)
    assert data.num_classes == 2
    assert np.bincount(take(data, "train").labels).tolist() == [4, 4]
    assert np.bincount(take(data, "test").labels).tolist() == [2, 2]
    assert take(data, "train", seed=0).rows.tolist() != take(data, "train", seed=1).rows.tolist()
    assert data.counts() == {"train": 8, "test": 4}


def test_choosing_settings_holds_the_last_tenth_of_each_class_out(root):
    whole, train = take(cub(root), "train"), take(cub(root), "train", select=True)
    held = take(cub(root), "val", select=True)
    assert np.bincount(held.labels).tolist() == [1, 1, 1]
    assert sorted([*train.rows.tolist(), *held.rows.tolist()]) == whole.rows.tolist()
    for label in range(3):
        assert held.rows[held.labels == label].min() > train.rows[train.labels == label].max()


@pytest.mark.parametrize("select", [False, True])
def test_memory_holds_exactly_what_evaluation_shows_of_the_files(root, select):
    for split in ("train", "test", "val")[: 3 if select else 2]:
        files, held = (take(cub(root, memory=memory), split, select=select) for memory in (False, True))
        assert held.images.shape == (len(files), 3, 16, 16)
        assert held.labels.tolist() == files.labels.tolist()
        assert held.rows.tolist() == files.rows.tolist()
        shown = [
            torch.cat([batch.x for batch in Loader(data, None, num_classes=3, seed=0, train=False).epoch(0)])
            for data in (files, held)
        ]
        assert torch.equal(*shown)


def test_images_are_decoded_once_for_all_runs_and_again_when_they_or_the_size_change(root, monkeypatch):
    first = take(cub(root, memory=True), "train")
    with monkeypatch.context() as patch:
        patch.setattr(listed, "decode", lambda *_: pytest.fail("decoded again"))
        assert np.array_equal(take(cub(root, memory=True), "train").images, first.images)
        assert len(take(cub(root, memory=True, n_train=2), "train", seed=3)) == 6
        with pytest.raises(pytest.fail.Exception, match="decoded again"):
            take(cub(root, memory=True, image_size=24), "train")
    path = take(cub(root), "train").paths[0]
    Image.new("RGB", (60, 40), (255, 255, 255)).save(path)
    changed = take(cub(root, memory=True), "train").images
    assert (changed[0] == 255).all()
    assert np.array_equal(changed[1:], first.images[1:])


def test_without_a_writable_place_there_is_no_cache(root, monkeypatch):
    monkeypatch.setattr("hkd.data.folder.writable", lambda path: False)
    assert len(take(cub(root, memory=True), "train")) == 30
    assert not (root / "CUB_200_2011" / CACHE).exists()


def test_boxes_show_the_bird_and_little_else(root):
    with_boxes, whole = take(cub(root, boxes=True), "train"), take(cub(root, memory=True), "train")
    both = [split.images.astype(int) for split in (with_boxes, whole)]
    red = [(images[:, 0] - images[:, 2] > 80).mean(axis=(1, 2)) for images in both]
    assert (red[0] > 0.5).all()  # 20x12 px of a 20x20 square
    assert (red[1] < 0.35).all()
    assert with_boxes.rows.tolist() == whole.rows.tolist()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((10.0, 20.0, 30.0, 10.0), (10, 10, 30, 30)),  # square around the box
        ((0.0, 0.0, 30.0, 10.0), (0, 0, 30, 30)),  # moved into the photo
        ((70.0, 50.0, 30.0, 10.0), (30, 70, 30, 30)),
        ((5.0, 5.0, 90.0, 20.0), (0, 5, 60, 90)),  # cut to the photo
        ((50.0, 30.0, 0.4, 0.2), (30, 50, 1, 1)),
    ],
)
def test_square_around_a_box_lies_in_the_photo(given, wanted):
    assert square(given, 60, 100) == wanted


def test_boxes_list_is_needed_only_for_boxes(root):
    (root / "CUB_200_2011" / cub200.BOXES).unlink()
    assert len(take(cub(root), "train")) == 30
    with pytest.raises(UserError, match=r"has no file 'bounding_boxes\.txt'"):
        take(cub(root, boxes=True), "train")


def test_class_folders_are_read_too_but_have_no_boxes(root):
    wanted = take(cub(root, memory=True), "test")
    base = root / "CUB_200_2011"
    names = [line.split()[1] for line in (base / "images.txt").read_text().splitlines()]
    train = set(take(cub(root), "train").rows.tolist())
    for row, name in enumerate(names):
        path = root / "birds" / ("train" if row in train else "test") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((base / "images" / name).read_bytes())
    data = cub(root, folder="birds", memory=True)
    found = take(data, "test")
    assert found.labels.tolist() == wanted.labels.tolist()
    assert sorted(map(bytes, found.images)) == sorted(map(bytes, wanted.images))
    with pytest.raises(UserError, match="come without boxes"):
        take(cub(root, folder="birds", boxes=True), "test")


def test_missing_data_is_one_sentence_with_the_step(tmp_path):
    sentence = Cub200({}, tmp_path).missing()
    assert f"is not at {tmp_path / 'CUB_200_2011'}: unpack CUB_200_2011.tgz of https://data.caltech.edu" in sentence
    for action in (Cub200({}, tmp_path).fingerprint, lambda: take(Cub200({}, tmp_path), "train")):
        with pytest.raises(UserError, match="is not at"):
            action()


@pytest.mark.parametrize("name", cub200.LISTS)
def test_a_missing_list_is_named(root, name):
    (root / "CUB_200_2011" / name).unlink()
    with pytest.raises(UserError, match=f"has no file '{name}'"):
        take(cub(root), "train")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("images.txt", lambda lines: lines[:4] + lines[5:], r"images\.txt has no id 5, though ids go up to 39"),
        ("classes.txt", lambda lines: ["1 a", "3 c", "4 d"], r"classes\.txt has no id 2"),
        ("images.txt", lambda lines: [lines[0], *lines], r"line 2, has id 1 twice"),
        ("train_test_split.txt", lambda lines: lines[:-1], r"has 38 lines, but images\.txt 39"),
        ("image_class_labels.txt", lambda lines: [*lines, "40 1"], r"has 40 lines, but images\.txt 39"),
        ("train_test_split.txt", lambda lines: ["1 2", *lines[1:]], r"has '2' where a number from 0 to 1"),
        ("image_class_labels.txt", lambda lines: ["1 9", *lines[1:]], r"has '9' where a number from 1 to 3"),
        ("images.txt", lambda lines: ["one bird.jpg", *lines[1:]], r"line 1, is 'one bird\.jpg'; it must be an image"),
        ("images.txt", lambda lines: ["1", *lines[1:]], r"line 1, is '1'; it must be an image id and a path"),
        ("images.txt", lambda lines: ["1 ../classes.txt", *lines[1:]], r"is listed in images\.txt but not there"),
        (cub200.BOXES, lambda lines: lines[:-1], r"has 38 lines, but images\.txt 39"),
        (cub200.BOXES, lambda lines: ["1 2 3 four 5", *lines[1:]], r"is not a list of boxes"),
        (cub200.BOXES, lambda lines: ["1 2 3 4", *lines[1:]], r"is not a list of boxes"),
        (cub200.BOXES, lambda lines: ["1 2 3 0 5", *lines[1:]], r"a box of less than one px"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_one_sentence(root, name, change, sentence):
    rewrite(root, name, change)
    with pytest.raises(UserError, match=sentence) as error:
        take(cub(root, boxes=name == cub200.BOXES), "train")
    assert "\n" not in str(error.value)


def test_listed_images_that_are_absent_are_named_and_counted(root):
    paths = [take(cub(root), "train").paths[place] for place in (3, 17)]
    for path in paths:
        path.unlink()
    with pytest.raises(UserError, match=f"{paths[0]} is listed .* but not there .2 of 39 images are absent"):
        take(cub(root), "train")


def test_fewer_classes_or_images_than_the_whole_data_set_are_told(root):
    with pytest.raises(UserError, match="has 3 classes, 200 are needed"):
        take(Cub200({}, root), "train")
    with pytest.raises(UserError, match="has 3 classes, 7 are needed"):
        take(cub(root, classes=7), "train")
    with pytest.raises(UserError, match="has 30 train images, 31 are needed"):
        take(cub(root, classes=None, expected={"classes": 3, "train": 31}), "train")
    data = cub(root, classes=None, expected={"classes": 3, "train": 30})
    assert data.num_classes == 3
    assert len(take(data, "train")) == 30


@pytest.mark.parametrize("options", [{"memory": True}, {"boxes": True}])
def test_corrupt_images_are_named_and_counted_or_left_out(root, options):
    paths = [take(cub(root), "train").paths[place] for place in (3, 17)]
    paths[0].write_bytes(b"nothing")
    paths[1].write_bytes(paths[1].read_bytes()[:150])
    for _ in range(2):  # from the files, and from what was remembered
        with pytest.raises(UserError, match=f"Cannot read image {paths[0]} .*, and 1 more: replace it"):
            take(cub(root, **options), "train")
        left = take(cub(root, **options), "train", on_corrupt="skip")
        assert len(left) == 28
        assert left.corrupt == tuple(map(str, paths))
        assert Loader(left, None, num_classes=3, seed=0, train=False).corrupt.keys() == set(map(str, paths))


def test_the_fingerprint_is_of_the_content_and_the_options(root, tmp_path_factory):
    data = cub(root)
    other = write_cub(tmp_path_factory.mktemp("other"))
    assert data.fingerprint() == cub(other).fingerprint()
    assert data.fingerprint() != cub(root, image_size=24).fingerprint()
    assert data.fingerprint() != cub(root, boxes=True).fingerprint()
    rewrite(other, "train_test_split.txt", lambda lines: ["1 0", *lines[1:]])
    assert data.fingerprint() != cub(other).fingerprint()


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"real images are not at {ARCHIVE}")
def test_the_real_birds_are_read_in_both_layouts(tmp_path):
    with open(REAL / "labels.csv", newline="") as file:
        table = [line for line in csv.DictReader(file) if int(line["label"]) < 2]
    wanted = {line["path"]: line for line in table}
    folder = tmp_path / "CUB_200_2011"
    lists: dict[str, list[str]] = {name: [] for name in (*cub200.LISTS, cub200.BOXES)}
    lists["classes.txt"] = [
        f"{label + 1} {name}" for label, name in sorted({(int(line["label"]), line["class_name"]) for line in table})
    ]
    for number, line in enumerate(table, 1):
        lists["images.txt"].append(f"{number} {line['path'].partition('/')[2]}")
        lists["image_class_labels.txt"].append(f"{number} {int(line['label']) + 1}")
        lists["train_test_split.txt"].append(f"{number} {line['is_training']}")
        lists[cub200.BOXES].append(f"{number} {line['bbox_x']} {line['bbox_y']} {line['bbox_w']} {line['bbox_h']}")
    sizes = {}
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.name in wanted:
                content = archive.extractfile(member).read()
                sizes[member.name] = Image.open(io.BytesIO(content)).size
                for place in (tmp_path / "birds" / member.name, folder / "images" / member.name.partition("/")[2]):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(content)
    for name, text in lists.items():
        (folder / name).write_text("\n".join(text) + "\n")
    assert all(sizes[name] == (int(line["width"]), int(line["height"])) for name, line in wanted.items())

    listed, folders = (
        Cub200({"classes": 2, "image_size": 64}, tmp_path),
        Cub200({"classes": 2, "image_size": 64, "folder": "birds"}, tmp_path),
    )
    for split, flag in (("train", "1"), ("test", "0")):
        labels = [int(line["label"]) for line in table if line["is_training"] == flag]
        assert take(listed, split).labels.tolist() == labels
        assert sorted(path.name for path in take(listed, split).paths) == sorted(
            path.name for path in take(folders, split).paths
        )
    assert np.bincount(take(listed, "train").labels).tolist() == [30, 30]
    birds = take(Cub200({"classes": 2, "image_size": 64, "boxes": True}, tmp_path), "train")
    assert birds.images.shape == (60, 3, 64, 64)
    assert birds.images.std() > 20
    assert sources.decode(take(listed, "train").paths[0]).shape[0] == 3


def test_blank_lines_and_a_byte_order_mark_are_no_damage_but_latin_1_is_told(root):
    path = root / "CUB_200_2011/images.txt"
    content = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content + b"\n\n")
    assert len(take(cub(root), "train")) == 3 * TRAIN
    path.write_bytes(content + b"40 001.Bird/caf\xe9.jpg\n")
    with pytest.raises(UserError, match=r"images\.txt, line 40, is not UTF-8"):
        take(cub(root), "train")


def test_a_box_wholly_outside_its_photo_is_refused(root):
    rewrite(root, "bounding_boxes.txt", lambda lines: ["1 5000 5 10 10", *lines[1:]])
    with pytest.raises(UserError, match=r"box 5000 5 10 10 for .*, all of it outside its"):
        [take(cub(root, boxes=True), part) for part in ("train", "test")]


def test_an_image_that_is_listed_twice_is_refused(root):
    """It could be in train and in test."""
    rewrite(root, "images.txt", lambda lines: [*lines[:-1], f"{len(lines)} {lines[0].split()[1]}"])
    with pytest.raises(UserError, match=r"images\.txt lists images/001\.Albatross/.*\.jpg twice"):
        take(cub(root), "train")


def test_a_list_that_cannot_be_read_is_told(root, monkeypatch):
    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(UserError, match=r"Cannot read .*classes\.txt \(Permission denied\)"):
        take(cub(root), "train")
