"""What goes to a loader's worker processes: it can be pickled whole, and however they start they show the same images.

Forked workers inherit what they are given; those of a run on a worker process of `hkd run` are spawned, as that process
was, and get it pickled.
"""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hkd.data.ade20k import Ade20k
from hkd.data.base import Split
from hkd.data.coco import Coco
from hkd.data.dense import write_coco
from hkd.data.folder import ClassFolder
from hkd.data.imagenet1k import ImageNet1k
from hkd.data.loading.dense import DenseLoader, ViewOptions
from hkd.data.loading.loader import Item, Loader
from hkd.data.loading.randaugment import INCREASING, OPERATIONS
from hkd.data.scenes import Scenes
from hkd.data.unlabelled import UnlabelledImageNet1k
from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec
from hkd.tasks.train import train
from hkd.training.job import Job, Runtime

SIDE = 32
CHANGED = {"crop": "resized", "flip": True, "shift": 2, "randaugment": "rand-m9-n2-mstd0.5-inc1", "erasing": 0.25}
MIXED = {"mixup": 0.8, "cutmix": 1.0}
BIRDS = {"folder": "birds", "classes": 2, "image_size": SIDE}  # options of the class folder below
# How worker processes start. All but the first import torch anew, which takes long.
FORK = "fork"
SPAWN, FORKSERVER = (pytest.param(way, marks=[pytest.mark.slow, pytest.mark.long]) for way in ("spawn", "forkserver"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A class folder of 12 + 4 JPEG files of two classes, ten scenes in COCO's layout, and four in ADE20K's."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("finch", "wren")):
            folder = root / "birds" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(80 * label, 160 + 80 * label, (40, 48 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    scenes = Scenes({"n_train": 10, "n_test": 4}, root)
    train, test = (scenes.load_dense(part, seed=0, select=False) for part in ("train", "test"))
    write_coco(train, root / "coco", "train2017")
    write_coco(test, root / "coco", "val2017")
    for kind in ("images", "annotations"):
        for part in ("training", "validation"):
            (root / "ADEChallengeData2016" / kind / part).mkdir(parents=True)
    for number in range(4):
        for part, split, prefix in (("training", train, "ADE_train_"), ("validation", test, "ADE_val_")):
            name = f"{part}/{prefix}{number:08d}"
            image, label = split.images[number].transpose(1, 2, 0), split.maps[number]
            Image.fromarray(image).save(root / "ADEChallengeData2016" / "images" / f"{name}.jpg")
            Image.fromarray(label + np.uint8(1)).save(root / "ADEChallengeData2016" / "annotations" / f"{name}.png")
    return root


@pytest.fixture
def start(request):
    """How processes of this one start, as if it had been started like that itself."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def recipe(**fields):
    return Recipe(epochs=2, batch_size=4, lr=1e-3, **fields)


def loader(data, used, **options):
    split = data.load("train", seed=0, select=False)
    return Loader(split, used, num_classes=2, seed=3, train=used is not None, **options)


def dense(kind, root, *, train=True, workers=0):
    """Of a data set for dense tasks, with everything that its training images can be shown with."""
    options = {Coco: {"folder": "coco"}, Ade20k: {"classes": 11}}[kind]
    data = kind({"image_size": 48, "max_size": 64, **options}, root)
    return DenseLoader(
        data.load_dense("train", seed=0, select=False),
        Recipe(epochs=1, batch_size=2, flip=True),
        options=ViewOptions(scale=(0.5, 2.0), crop=40),
        seed=3,
        train=train,
        multiple=8,
        workers=workers,
    )


def leaves(value):
    """All tensors of a batch, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [] if value is None else leaves(list(vars(value).values()))


def same(one, other):
    assert len(leaves(one)) == len(leaves(other)) >= 3
    assert all(map(torch.equal, leaves(one), leaves(other)))
    return True


def copied(thing):
    """What another process makes of what it is sent."""
    return pickle.loads(pickle.dumps(thing))


# -- pickled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OPERATIONS, *(f"{name}Increasing" for name in INCREASING)])
def test_every_operation_of_randaugment_does_the_same_where_it_is_sent(name):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (16, 3, 24, 20), dtype=np.uint8))
    levels, signs = torch.from_numpy(rng.uniform(0, 10, 16)), torch.from_numpy(rng.choice([-1.0, 1.0], 16))
    operation = INCREASING[name.removesuffix("Increasing")] if name.endswith("Increasing") else OPERATIONS[name]
    assert torch.equal(copied(operation)(images, levels, signs), operation(images, levels, signs))


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        *((ClassFolder, {name: value}) for name, value in (CHANGED | MIXED).items()),
        (ClassFolder, {}),
        (ClassFolder, CHANGED | {"views": 2}),
        (ImageNet1k, CHANGED | MIXED),
        (UnlabelledImageNet1k, CHANGED),  # soft targets need labels
    ],
)
def test_a_loader_shows_the_same_images_where_it_is_sent(root, kind, fields):
    shown = loader(kind(BIRDS, root), recipe(**fields))
    sent = copied(shown)
    for item in (Item(0, 0), Item(1, 1), *([Item(0, 1, whole_view=1)] if "views" in fields else [])):
        assert same(sent.load(item).batch, shown.load(item).batch)


def test_a_loader_of_images_in_memory_or_for_evaluation_can_be_sent_too(root):
    data = ClassFolder(BIRDS, root)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 3, SIDE, SIDE), dtype=np.uint8)
    memory = Split(images, None, np.arange(8) % 2, np.arange(8))
    held = Loader(memory, recipe(**CHANGED, **MIXED), num_classes=2, seed=3)
    for shown in (held, loader(data, None)):
        assert same(copied(shown).load(Item(0, 0)).batch, shown.load(Item(0, 0)).batch)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("kind", [Coco, Ade20k])
def test_a_dense_loader_shows_the_same_images_and_targets_where_it_is_sent(root, kind, train):
    shown = dense(kind, root, train=train)
    for item in (Item(0, 0), Item(0, 1)):
        assert same(copied(shown).load(item).batch, shown.load(item).batch)


# -- in worker processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [FORK, SPAWN], indirect=True)
@pytest.mark.parametrize("kind", [Coco, Ade20k])
def test_workers_of_a_dense_loader_give_the_batches_of_one_process(root, kind, start):
    alone, helped = dense(kind, root).epoch(0), dense(kind, root, workers=2).epoch(0)
    assert all(map(same, alone, helped))


@pytest.mark.parametrize("start", [FORK, SPAWN, FORKSERVER], indirect=True)
def test_a_training_with_loader_workers_ends_with_the_digits_of_one_without(root, tmp_path, start):
    spec = RunSpec(
        task="train",
        data=DataSpec(name="folder", options=BIRDS),
        student=ZOO["resnet50_mini"],
        method=MethodSpec(name="supervised"),
        recipe=recipe(**CHANGED, **MIXED),
    )
    done = {}
    for workers in (0, 2):
        runtime = Runtime(accelerator="cpu", data_root=root, loader_workers=workers)
        done[workers] = train(Job(spec, {}, tmp_path / str(workers), runtime, lambda news: None))
    alone, helped = (load_file(tmp_path / str(workers) / "student.safetensors") for workers in (0, 2))
    assert alone.keys() == helped.keys()
    assert all(torch.equal(alone[name], helped[name]) for name in alone)
    assert done[0].metrics == done[2].metrics
    assert [line["loss"] for line in done[0].curves] == [line["loss"] for line in done[2].curves]


def test_images_mixed_on_the_device_are_those_that_a_worker_mixes(root, monkeypatch):
    early, late = (loader(ClassFolder(BIRDS, root), recipe(**CHANGED, **MIXED)) for _ in range(2))
    monkeypatch.setattr(type(late), "mixes_late", property(lambda self: self is late))
    first, second = next(early.epoch(0)), next(late.epoch(0))
    assert late.load(Item(0, 0)).batch.x.dtype == torch.uint8
    assert torch.equal(first.x, second.x)
    assert torch.equal(first.y, second.y)


def test_what_leaves_a_worker_are_bytes_and_what_arrives_are_numbers(root):
    shown = loader(ClassFolder(BIRDS, root), recipe(**CHANGED))
    sent = shown.load(Item(0, 0))
    assert sent.batch.x.dtype == torch.uint8
    arrived = next(shown.epoch(0))
    assert arrived.x.dtype == torch.float32
    untouched = torch.ones_like(arrived.x, dtype=torch.bool)
    for image, top, left, values in sent.patches:
        untouched[image, :, top : top + values.shape[1], left : left + values.shape[2]] = False
    assert torch.equal(arrived.x[untouched], (sent.batch.x / 255)[untouched])


@pytest.mark.parametrize("fields", [CHANGED, CHANGED | MIXED], ids=["changed", "mixed"])
def test_images_in_memory_are_augmented_ahead_for_a_gpu_and_are_the_same(fields, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 3, SIDE, SIDE), dtype=np.uint8)
    memory = Split(images, None, np.arange(16) % 2, np.arange(16))
    here, helped = (
        Loader(memory, recipe(**fields), num_classes=2, seed=3, workers=workers, device=torch.device("cpu"))
        for workers in (0, 2)
    )
    fixed = Loader(memory, recipe(**CHANGED, views=2), num_classes=2, seed=3, workers=2)
    plain = Loader(memory, None, num_classes=2, seed=3, workers=2, train=False)
    assert not helped.ahead  # on a CPU nobody would wait
    expected = list(here.epoch(1))
    monkeypatch.setattr(Loader, "on_gpu", property(lambda self: True))
    assert helped.ahead
    assert not here.ahead
    assert not fixed.ahead
    assert not plain.ahead
    arrived = list(helped.epoch(1))
    assert len(arrived) == len(expected) > 1
    assert all(map(same, arrived, expected))
    assert helped._pipeline is not None
    assert here._pipeline is None
