"""A piece of a data set does not pass for the whole where values are compared with the paper's."""

import os

import numpy as np
import pytest
from PIL import Image

from experiments.planning.plan import plan
from experiments.planning.whole import piece
from hkd.data.ade20k import Ade20k
from hkd.data.cifar100 import OFFICIAL, PIXELS, Cifar100
from hkd.data.coco import Coco
from hkd.data.unlabelled import UnlabelledCifar100


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            image(tmp_path / "cifar100" / split / "apple" / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("kind", [Cifar100, UnlabelledCifar100])
def test_class_folders_of_cifar100_are_counted(folders, kind):
    assert "has 3 train images, and the paper's has 50000: complete it, or take a profile" in piece(kind({}, folders))
    assert "has 2 test images, and the paper's has 10000" in piece(kind({"n_train": 1}, folders))
    assert piece(kind({"n_train": 1, "n_test": 1}, folders)) is None
    assert piece(kind({"classes": 1}, folders)) is None


def test_a_file_of_cifar100_is_measured(tmp_path):
    for split, count in OFFICIAL.items():
        path = tmp_path / "cifar-100-python" / split
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.truncate(path, count * PIXELS + 90_000)
    assert piece(Cifar100({}, tmp_path)) is None
    os.truncate(path, 400 * PIXELS)
    assert "has 400 test images, and the paper's has 10000" in piece(Cifar100({}, tmp_path))


def test_images_of_coco_and_ade20k_are_counted(tmp_path):
    for part in ("train2017", "val2017"):
        image(tmp_path / "coco" / part / "1.jpg")
        image(tmp_path / "coco" / part / "more" / "2.jpg")
    for part in ("training", "validation"):
        image(tmp_path / "ADEChallengeData2016" / "images" / part / "1.jpg")
    assert "has 2 train images, and the paper's has 118287" in piece(Coco({}, tmp_path))
    assert "has 1 train images, and the paper's has 20210" in piece(Ade20k({}, tmp_path))
    assert piece(Ade20k({"classes": 3}, tmp_path)) is None
    assert piece(Coco({"n_train": 1, "n_test": 1}, tmp_path)) is None


@pytest.mark.parametrize(("profile", "told"), [("paper", True), ("cifar_subset", False)])
def test_a_piece_is_missing_data_where_values_are_compared(folders, monkeypatch, profile, told):
    monkeypatch.setenv("HKD_DATA", str(folders))
    missing = {run.missing for run in plan("hcd_cifar100_core", profile).runs.values()}
    assert any("has 3 train images" in (each or "") for each in missing) == told
