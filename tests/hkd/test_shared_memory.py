"""Batches of loader workers go through /dev/shm: what does not fit there is said before it is waited for."""

import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from hkd.data.base import Split
from hkd.data.batch import Batch
from hkd.data.loading import shared_memory
from hkd.data.loading.loader import Loader
from hkd.data.loading.shared_memory import bytes_of, check_room
from hkd.errors import UserError
from hkd.spec import Recipe

Usage = namedtuple("Usage", "total used free")
ONE = Batch(torch.zeros(8, 3, 224, 224), torch.zeros(8, dtype=torch.int64), torch.zeros(8, dtype=torch.int64))
SIZE = 8 * 3 * 224 * 224 * 4 + 2 * 8 * 8  # bytes


@pytest.fixture
def room(monkeypatch, tmp_path):
    """Says how much is free."""
    monkeypatch.setattr(shared_memory, "PLACE", tmp_path)
    return lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, free))


def test_all_tensors_of_a_batch_count_however_they_are_held():
    assert bytes_of(ONE) == SIZE
    assert bytes_of([ONE, {"boxes": (torch.zeros(3, 4), None, "name")}]) == SIZE + 48


def test_a_batch_for_every_worker_must_find_room(room):
    room(2 * SIZE)
    check_room(ONE, 2)
    room(2 * SIZE - 1)
    with pytest.raises(UserError, match=r"9\.2 MiB free of 64.*batches of 4\.6 MiB from 2 loader .*at least 23 MiB"):
        check_room(ONE, 2)
    check_room(ONE, 0)


def test_a_worker_without_room_says_so_instead_of_its_batch(room, tmp_path):
    paths = []
    for number in range(4):
        paths.append(tmp_path / f"{number}.jpg")
        Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(paths[-1])
    split = Split(None, paths, np.arange(4) % 2, np.arange(4), image_size=32)
    loader = Loader(split, Recipe(epochs=1, batch_size=2), num_classes=2, seed=0, workers=1)
    room(0)
    with pytest.raises(UserError, match=r"0\.0 MiB free"):
        list(loader.epoch(0))
