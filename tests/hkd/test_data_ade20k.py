"""ADE20K's layout: values to classes, both ways to tell the parts apart, maps that cannot be."""

import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hkd.data.ade20k import Ade20k, read_map
from hkd.data.dense import IGNORE
from hkd.errors import UserError

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "ade20k" / "ade20k_val3.tar.xz"
FOLDER = "ADEChallengeData2016"
SHAPE = (6, 8)


def values(number) -> np.ndarray:
    """A map as the file holds it: 0 is ignored, 1 to 4 are classes."""
    return (np.arange(48).reshape(SHAPE) + number) % 5


def write(root, sub, prefix, count):
    for kind in ("images", "annotations"):
        (root / FOLDER / kind / sub).mkdir(parents=True, exist_ok=True)
    for number in range(1, count + 1):
        name = f"{prefix}{number:08d}"
        Image.fromarray(np.full((*SHAPE, 3), number, dtype=np.uint8)).save(
            root / FOLDER / "images" / sub / f"{name}.jpg", quality=95
        )
        Image.fromarray(values(number).astype(np.uint8)).save(root / FOLDER / "annotations" / sub / f"{name}.png")
    return root


@pytest.fixture(params=["folders", "names"])
def root(request, tmp_path) -> Path:
    flat = request.param == "names"
    write(tmp_path, "" if flat else "training", "ADE_train_", 10)
    return write(tmp_path, "" if flat else "validation", "ADE_val_", 3)


def ade(root, **options) -> Ade20k:
    return Ade20k({"classes": 4, **options}, root)


def take(root, split="train", seed=0, select=False, **options):
    return ade(root, **options).load_dense(split, seed=seed, select=select)


def file_of(root, kind, start) -> Path:
    return next(path for path in sorted((root / FOLDER / kind).rglob(f"{start}*")))


def test_zero_is_ignored_and_other_values_are_classes_from_0(root):
    split = take(root)
    for number, found in enumerate(split.maps, 1):
        expected = [[IGNORE if value == 0 else value - 1 for value in row] for row in values(number).tolist()]
        assert found.tolist() == expected
        assert found.dtype == np.uint8
    assert split.objects is None


def test_the_parts_are_told_apart_by_folders_or_names(root):
    train, test = take(root), take(root, "test")
    assert (len(train), len(test)) == (10, 3)
    assert {path.name[:9] for path in map(train.paths.__getitem__, range(10))} == {"ADE_train"}
    assert {path.name[:7] for path in map(test.paths.__getitem__, range(3))} == {"ADE_val"}
    assert train.image(4).shape == (3, *SHAPE)
    assert abs(int(train.image(4).mean()) - 5) <= 1


def test_validation_is_the_last_tenth_of_train_while_settings_are_chosen(root):
    assert take(root, "val", select=True).rows.tolist() == [9]
    assert take(root, select=True).rows.tolist() == list(range(9))
    with pytest.raises(UserError, match="only while settings are chosen"):
        take(root, "val")


def test_options_take_some_images(root):
    some = take(root, n_train=4)
    assert len(some.maps) == len(some) == 4
    assert some.maps[0].tolist() == take(root).maps[int(some.rows[0])].tolist()
    assert any(some.rows.tolist() != take(root, n_train=4, seed=seed).rows.tolist() for seed in range(1, 4))
    assert take(root, "test", n_test=2).rows.tolist() == [0, 1]
    with pytest.raises(UserError, match="n_test asks for 4 images of data set 'ade20k', but only 3"):
        take(root, "test", n_test=4)


def test_a_value_above_the_classes_is_told_with_its_file(root):
    path = file_of(root, "annotations", "ADE_train_00000002")
    with pytest.raises(
        UserError, match=rf"{path.name} holds the value 4; with 3 classes it may hold 0 \(ignored\) to 3"
    ):
        take(root, classes=3).maps[1]


def test_an_image_and_a_map_of_different_size_are_told(root):
    path = file_of(root, "annotations", "ADE_train_00000001")
    Image.new("L", (5, 4)).save(path)
    with pytest.raises(UserError, match=f"{path.name} has 5 x 4 px, its image 8 x 6: they must be of one size"):
        take(root).maps[0]


def test_a_map_that_is_none_is_told(root):
    path = file_of(root, "annotations", "ADE_train_00000001")
    Image.new("RGB", SHAPE[::-1]).save(path)
    with pytest.raises(UserError, match=f"{path.name} is no map: it must have one channel"):
        take(root).maps[0]
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"Cannot read map .*{path.name}"):
        take(root).maps[0]


def grey_png(values, bits) -> bytes:
    """A grey PNG by its specification: chunks of length, name, data, checksum; a filter byte before each row."""
    packed = [
        bytes(
            sum(int(v) << (8 - bits * (k + 1)) for k, v in enumerate(row[at : at + 8 // bits]))
            for at in range(0, len(row), 8 // bits)
        )
        for row in values
    ]
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"".join(b"\0" + row for row in packed)), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grey_maps_of_few_bits_hold_the_values_of_the_file(tmp_path, bits):
    held = values(1) % (2**bits)
    (tmp_path / "map.png").write_bytes(grey_png(held, bits))
    assert read_map(tmp_path / "map.png").tolist() == held.tolist()


def test_maps_with_a_palette_hold_its_indices(tmp_path):
    image = Image.fromarray(values(1).astype(np.uint8), mode="P")
    image.putpalette([7 * k % 256 for k in range(3 * 16)])
    image.save(tmp_path / "map.png", bits=4)
    assert read_map(tmp_path / "map.png").tolist() == values(1).tolist()


def test_two_files_of_one_name_are_told(root):
    path = file_of(root, "images", "ADE_train_00000002")
    path.with_suffix(".png").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"ADE_train_00000002\.jpg and ADE_train_00000002\.png beside it have one name"):
        take(root)


def test_images_without_maps_are_told_with_the_first_and_their_number(root):
    gone = file_of(root, "annotations", "ADE_train_00000003")
    gone.unlink()
    file_of(root, "annotations", "ADE_train_00000007").unlink()
    with pytest.raises(UserError, match=r"ADE_train_00000003\.jpg is an image without map \(2 such files\)"):
        take(root)


def test_maps_without_images_are_told(root):
    file_of(root, "images", "ADE_val_00000001").unlink()
    with pytest.raises(UserError, match=r"ADE_val_00000001\.png is a map without image \(1 such files\)"):
        take(root, "test")


def test_what_is_absent_is_said_with_its_path(tmp_path):
    data = Ade20k({}, tmp_path)
    assert f"{tmp_path / FOLDER / 'images'} is absent; get it from http" in data.missing()
    assert (data.num_classes, data.counts()) == (150, {"train": 20_210, "test": 2_000})
    with pytest.raises(UserError, match="ADE20K is not complete"):
        data.fingerprint()
    write(tmp_path, "", "ADE_val_", 2)
    with pytest.raises(UserError, match="There are no train images in"):
        Ade20k({}, tmp_path).load_dense("train", seed=0, select=False)


def test_names_come_from_the_table_where_there_is_one(root):
    assert ade(root).map_names == ("class 1", "class 2", "class 3", "class 4")
    table = root / FOLDER / "objectInfo150.txt"
    table.write_text("Idx\tRatio\tName\n" + "".join(f"{k}\t0.1\tthing {k}, it\n" for k in range(1, 5)))
    assert ade(root).map_names == tuple(f"thing {k}, it" for k in range(1, 5))
    with pytest.raises(UserError, match="must have a column 'Name' with 5 classes"):
        _ = ade(root, classes=5).map_names
    table.write_bytes(b"Idx\tName\n1\tcaf\xe9\n")
    with pytest.raises(UserError, match="is no table of text"):
        _ = ade(root).map_names


def test_the_fingerprint_is_of_files_and_options(root):
    before = ade(root).fingerprint()
    assert before == ade(root).fingerprint()
    assert before != ade(root, n_train=3).fingerprint()
    file_of(root, "images", "ADE_val_00000001").write_bytes(b"nothing")
    assert before != ade(root).fingerprint()


@pytest.mark.parametrize(
    "options", [{"folder": "/x"}, {"classes": 255}, {"classes": None}, {"n_test": 0}, {"max_size": 9}]
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Ade20k(options, Path("nowhere"))


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"the real sample is not at {ARCHIVE}")
def test_the_real_sample_is_read_whole(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / FOLDER, filter="data")
    split = Ade20k({}, tmp_path).load_dense("test", seed=0, select=False)
    assert len(split) == 3
    assert split.map_names[0] == "wall"
    assert len(split.map_names) == 150
    seen = set()
    for index in range(3):
        found = split.maps[index]
        assert found.shape == split.image(index).shape[1:]
        with Image.open(tmp_path / FOLDER / "annotations" / f"ADE_val_{index + 1:08d}.png") as file:
            raw = np.asarray(file).astype(int)
        assert (found[raw > 0] == raw[raw > 0] - 1).all()
        assert (found[raw == 0] == IGNORE).all()
        seen |= set(np.unique(found).tolist())
    assert max(seen - {IGNORE}) == 102


def test_a_map_that_was_packed_with_loss_is_refused(root):
    path = file_of(root, "annotations", "ADE_train_")
    Image.fromarray(values(1).astype(np.uint8)).save(path.with_suffix(".jpg"))
    path.unlink()
    with pytest.raises(UserError, match=r"\.jpg is no map"):
        take(root).maps[0]
