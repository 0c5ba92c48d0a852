"""The task of segmentation: what it leaves, windows, sizes, resumption, and data that cannot serve."""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from hkd.data.dense import IGNORE, DenseSplit
from hkd.data.scenes import Scenes
from hkd.downstream.backbone import Backbone
from hkd.downstream.miou import Confusion
from hkd.downstream.segmenter import Linear, Segmenter, resized
from hkd.errors import Refused, UserError
from hkd.models.cards.zoo import ZOO
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec
from hkd.tasks.dense import DenseStep, restore_dense
from hkd.tasks.segment import (
    SegmentOptions,
    check_maps,
    make_head,
    named,
    pixel_counts,
    predict,
    predicted_maps,
    segment,
    share_statistics,
    true_map,
    windows,
)
from hkd.training.job import Job, Runtime
from hkd.training.rng import seed_all

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "ade20k" / "ade20k_val3.tar.xz"
FOLDER = "ADEChallengeData2016"
OPTIONS = {
    "head": "fpn",
    "width": 16,
    "loss": "sqrt",
    "auxiliary": 0.0,
    "dropout": 0.1,
    "crop": None,
    "scale": (1.0, 1.0),
}
SPEC = RunSpec(
    task="segment",
    data=DataSpec(name="scenes", options={"pool": 8, "n_test": 5}),
    student=ZOO["resnet18_mini"],
    method=MethodSpec(name="supervised"),
    recipe=Recipe(epochs=2, batch_size=4, lr=1e-3),
    evaluate_on="val",
    task_options=OPTIONS,
)
RUNTIME = Runtime(accelerator="cpu", report_every_s=0.0)


class KilledError(Exception):
    """Stands for whatever ends a process."""


def silent(news):
    pass


def run(spec, folder, **runtime):
    return segment(Job(spec, {}, folder, replace(RUNTIME, **runtime), silent))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return run(SPEC, folder), folder


# --- what a run leaves


def test_a_run_leaves_backbone_head_curves_and_predicted_maps(finished):
    outcome, folder = finished
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapters.safetensors",
        "curves.jsonl",
        "maps.npz",
        "student.safetensors",
    ]
    assert set(outcome.metrics) == {"miou", "macc", "pixel_acc", "foreground_miou"}
    assert outcome.cost["steps"] == 4
    assert load_file(folder / "student.safetensors").keys() == Backbone(SPEC.student).net.state_dict().keys()
    assert "class_weights" not in load_file(folder / "adapters.safetensors")


def test_the_metrics_are_those_of_the_maps_that_were_left(finished):
    outcome, folder = finished
    split = Scenes(SPEC.data.options, Path()).load_dense("val", seed=0, select=True)
    confusion = Confusion(11)
    for row, map_ in predicted_maps(folder / "maps.npz").items():
        assert map_.dtype == np.uint8
        confusion.add(torch.from_numpy(map_), torch.from_numpy(split.maps[row]))
    assert named(confusion.compute(), split.map_names) == outcome.metrics


def test_a_finished_run_is_restored_to_the_same_predictions(finished):
    _, folder = finished
    options = SegmentOptions(**OPTIONS)
    step = restore_dense(
        SPEC, folder, RUNTIME, wants="maps", options=options, make_head=lambda *parts: make_head(SPEC, *parts)
    )
    split = Scenes(SPEC.data.options, Path()).load_dense("val", seed=0, select=True)
    with torch.no_grad():
        found = predict(step, torch.from_numpy(split.images) / 255, options).argmax(dim=1)
    left = predicted_maps(folder / "maps.npz")
    assert all((found[index].numpy() == left[index]).all() for index in range(len(split)))


def test_the_moving_average_of_backbone_and_head_is_what_is_kept_and_evaluated(finished, tmp_path):
    """An average that never moves is the beginning; one that keeps nothing of the past is the last weights."""
    first = replace(SPEC.recipe, ema_decay=0.9999999)
    run(replace(SPEC, recipe=first), tmp_path / "still")
    run(replace(SPEC, recipe=replace(first, epochs=1)), tmp_path / "shorter")
    last = run(replace(SPEC, recipe=replace(SPEC.recipe, ema_decay=0.0)), tmp_path / "last")
    assert last.metrics == finished[0].metrics
    for name in ("student.safetensors", "adapters.safetensors"):
        kept = load_file(finished[1] / name)
        still, shorter, end = (load_file(tmp_path / folder / name) for folder in ("still", "shorter", "last"))
        weights = [key for key in kept if kept[key].is_floating_point()]  # not the counters of batch norms
        assert all(torch.equal(kept[key], end[key]) for key in kept)
        assert any((kept[key] - still[key]).abs().max() > 1e-3 for key in weights)
        assert all(torch.allclose(still[key], shorter[key], rtol=0, atol=1e-5) for key in weights)


@pytest.mark.parametrize("step", [2, 3])
def test_a_run_killed_in_the_middle_ends_as_if_it_had_not_been(finished, tmp_path, step):
    def report(news):
        if news["step"] == step:
            raise KilledError

    whole, folder = finished
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        segment(Job(SPEC, {}, tmp_path, often, report))
    assert (tmp_path / "checkpoint.pt").exists()
    resumed = segment(Job(SPEC, {}, tmp_path, often, silent))
    assert resumed.metrics == whole.metrics
    assert [line["loss"] for line in resumed.curves] == [line["loss"] for line in whole.curves]
    for name in ("student.safetensors", "adapters.safetensors", "maps.npz"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("student", "options"),
    [
        ("hybrid_b16_mini", {"head": "upernet", "pool_scales": (1, 2), "pyramid": (2.0, 2.0, 1.0, 0.5)}),
        ("swin_t_mini", {"auxiliary": 0.4, "crop": 48, "scale": (0.5, 1.5)}),
    ],
)
def test_transformers_train_too(tmp_path, student, options):
    outcome = run(
        replace(
            SPEC, student=ZOO[student], task_options=OPTIONS | options, recipe=replace(SPEC.recipe, epochs=1, flip=True)
        ),
        tmp_path,
    )
    assert 0 <= outcome.metrics["miou"] <= 100
    assert ("loss/auxiliary" in outcome.curves[0]) == bool(options.get("auxiliary"))


@pytest.mark.parametrize("student", ["resnet18_mini", "hybrid_b16_mini"])
def test_batch_norms_are_shared_among_gpus_and_only_there(student, monkeypatch):
    backbone = Backbone(ZOO[student])
    options = {"width": 16, "pool_scales": (1, 2), "pyramid": (4.0, 2.0, 1.0, 0.5), "auxiliary": 0.4, "dropout": 0.1}
    head = Segmenter(backbone, 5, head="upernet", **options)
    step = DenseStep(backbone, head).eval()
    x = torch.rand(2, 3, 64, 64)
    logits, names = head.logits(backbone(x)), list(step.state_dict())
    norms = [name for name, module in step.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def shared():
        return [name for name, module in step.named_modules() if isinstance(module, nn.SyncBatchNorm)]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    share_statistics(backbone, head)
    assert norms
    assert not shared()
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    share_statistics(backbone, head)
    assert shared() == norms
    assert list(step.state_dict()) == names
    torch.testing.assert_close(head.logits(backbone(x)), logits, rtol=0, atol=0)


@pytest.mark.slow
def test_a_segmenter_over_fits_two_scenes(tmp_path, monkeypatch):
    load = Scenes.load_dense
    monkeypatch.setattr(Scenes, "load_dense", lambda self, split, **how: load(self, "train", **how))
    outcome = run(
        replace(
            SPEC,
            data=DataSpec(name="scenes", options={"pool": 2, "n_test": 2}),
            recipe=Recipe(epochs=200, batch_size=2, lr=3e-3, warmup_epochs=10.0),
            task_options=OPTIONS | {"dropout": 0.0, "width": 32},
        ),
        tmp_path,
    )
    assert outcome.metrics["foreground_miou"] > 60
    assert outcome.curves[-1]["loss"] < 0.1 * outcome.curves[0]["loss"]


# --- prediction


class Seen(nn.Module):
    """A backbone that shows its images, or what `function` makes of them, as its only map."""

    multiple = 8

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return [self.function(x)]


class Pointwise(nn.Conv2d):
    """A head that is linear in each position of the only map."""

    def forward(self, maps):
        return super().forward(maps[0])


def step_of(function):
    """A step with that backbone and that head."""
    torch.manual_seed(0)
    step, head = DenseStep.__new__(DenseStep), Segmenter.__new__(Segmenter)
    nn.Module.__init__(step)
    nn.Module.__init__(head)
    head.rescale, head.head = nn.Identity(), Pointwise(3, 3, kernel_size=1)
    head.register_buffer("class_weights", torch.ones(3))
    step.student, step.method = Seen(function), head
    return step


@pytest.mark.parametrize("side", [13, 16, 40])
@torch.no_grad()
def test_a_window_that_holds_the_image_is_the_whole_image(side):
    step = step_of(lambda x: nn.functional.avg_pool2d(x, 4))
    x = torch.rand(2, 3, 13, 11)
    slide = predict(step, x, SegmentOptions(evaluation="slide", window=side, stride=side))
    assert torch.equal(slide, predict(step, x, SegmentOptions()))
    assert slide.shape == (2, 3, 13, 11)


@torch.no_grad()
def test_logits_of_overlapping_windows_are_averaged():
    step = step_of(lambda x: x - x.mean(dim=(2, 3), keepdim=True))  # a pixel's logits depend on its window
    x, options = torch.rand(1, 3, 24, 40), SegmentOptions(evaluation="slide", window=16, stride=8)
    total, times = torch.zeros(1, 3, 24, 40), torch.zeros(24, 40)
    for top in (0, 8):
        for left in (0, 8, 16, 24):
            part = x[:, :, top : top + 16, left : left + 16]
            total[:, :, top : top + 16, left : left + 16] += step.method.logits(step.student(part))
            times[top : top + 16, left : left + 16] += 1
    torch.testing.assert_close(predict(step, x, options), total / times)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30), st.data())
def test_windows_cover_every_pixel_and_stay_within_the_image(height, width, side, data):
    stride = data.draw(st.integers(1, side))
    covered = np.zeros((height, width), dtype=int)
    for rows, columns in windows(height, width, side, stride):
        assert (rows.stop - rows.start, columns.stop - columns.start) == (min(side, height), min(side, width))
        assert 0 <= rows.start < rows.stop <= height
        assert 0 <= columns.start < columns.stop <= width
        covered[rows, columns] += 1
    assert covered.min() >= 1


def test_windows_of_ade20k_are_those_of_its_benchmark():
    rows = sorted({(row.start, row.stop) for row, _ in windows(512, 683, 512, 341)})
    columns = sorted({(column.start, column.stop) for _, column in windows(512, 683, 512, 341)})
    assert (rows, columns) == ([(0, 512)], [(0, 512), (171, 683)])


def test_foreground_is_all_classes_but_background_where_there_is_one():
    confusion = Confusion(3)
    confusion.add(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]))
    measured = confusion.compute()
    assert named(measured, ("background", "a", "b"))["foreground_miou"] == pytest.approx(50.0)
    assert named(measured, ("a", "background", "b"))["foreground_miou"] == pytest.approx(75.0)
    assert named(measured, ("a", "b", "c")) == pytest.approx({"miou": 200 / 3, "macc": 250 / 3, "pixel_acc": 75.0})


# --- options and data that cannot be


def test_an_option_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"^Task 'segment': head must be 'upernet', 'fpn' or 'linear', got 'fcn'\. Did you mean"
    ):
        run(replace(SPEC, task_options={"head": "fcn"}), tmp_path)


def test_a_backbone_of_one_image_size_is_refused(tmp_path):
    with pytest.raises(Refused, match="cannot be the backbone of a dense task"):
        run(replace(SPEC, student=ZOO["mixer_s16_mini"]), tmp_path)


def test_data_without_maps_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs semantic maps, and the data set 'digits' has none"):
        run(replace(SPEC, data=DataSpec(name="digits")), tmp_path)


def dense(maps, images=None):
    count = len(maps)
    images = np.zeros((count, 3, 4, 5), dtype=np.uint8) if images is None else images
    return DenseSplit(images=images, paths=None, rows=np.arange(count) + 7, maps=maps, map_names=("a", "b", "c"))


def test_a_value_that_is_no_class_is_named_with_its_map():
    maps = np.zeros((2, 4, 5), dtype=np.uint8)
    maps[1, 2, 3] = 3
    with pytest.raises(UserError, match=r"000000000008\.png \(row 8\) holds the value 3; .* may hold 0 to 2, or 255"):
        check_maps(dense(maps))


def test_a_map_of_another_size_than_its_image_is_named():
    maps = [np.zeros((4, 5), dtype=np.uint8), np.zeros((5, 4), dtype=np.uint8)]
    with pytest.raises(UserError, match=r"\(row 8\) has 4 x 5 px, its image 5 x 4: they must be of one size"):
        check_maps(dense(maps))


def test_pixels_are_counted_over_all_maps_without_the_ignored_ones():
    maps = np.full((2, 4, 5), IGNORE, dtype=np.uint8)
    maps[0, :2], maps[1, 0, :3] = 2, 0
    split = dense(maps)
    assert pixel_counts(split).tolist() == [3, 0, 10]
    assert (true_map(split, 0) == maps[0]).all()


def test_a_validation_map_with_a_wrong_value_stops_the_run(tmp_path, monkeypatch):
    load = Scenes.load_dense

    def broken(self, split, **how):
        found = load(self, split, **how)
        return found if split == "train" else replace(found, maps=np.full_like(found.maps, 11))

    monkeypatch.setattr(Scenes, "load_dense", broken)
    with pytest.raises(UserError, match="holds the value 11; with 11 classes it may hold 0 to 10, or 255"):
        run(replace(SPEC, recipe=replace(SPEC.recipe, epochs=1)), tmp_path)


# --- files


@pytest.fixture
def ade20k(tmp_path):
    """The real sample, twice: its three images train and are evaluated on."""
    root = tmp_path / "data"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(root / FOLDER, filter="data")
    for path in sorted((root / FOLDER).rglob("ADE_val_*")):
        shutil.copy(path, path.with_name(path.name.replace("val", "train")))
    return root


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"the real sample is not at {ARCHIVE}")
def test_ade20k_is_segmented_at_the_size_of_its_maps(ade20k, tmp_path):
    spec = replace(
        SPEC,
        data=DataSpec(name="ade20k", options={"image_size": 64, "max_size": 256}),
        evaluate_on="test",
        recipe=Recipe(epochs=1, batch_size=2, flip=True),
        task_options=OPTIONS
        | {"crop": 64, "scale": (0.5, 2.0), "auxiliary": 0.4, "evaluation": "slide", "window": 64, "stride": 43},
    )
    outcome = run(spec, tmp_path / "run", data_root=ade20k)
    assert set(outcome.metrics) == {"miou", "macc", "pixel_acc"}  # ADE20K has no class "background"
    for row, map_ in predicted_maps(tmp_path / "run" / "maps.npz").items():
        with Image.open(ade20k / FOLDER / "images" / f"ADE_val_{row + 1:08d}.jpg") as image:
            assert map_.shape == (image.height, image.width)


@pytest.mark.parametrize("student", ["resnet18_mini", "hybrid_b16_mini"])
@pytest.mark.parametrize("head", ["linear", "fpn"])
def test_a_frozen_backbone_keeps_weights_and_statistics_while_the_head_learns(tmp_path, student, head):
    spec = replace(SPEC, student=ZOO[student], task_options={**OPTIONS, "head": head, "frozen": True})
    outcome = run(spec, tmp_path)
    seed_all(spec.seed, "init")
    untouched = Backbone(spec.student).net.state_dict()
    kept = load_file(tmp_path / "student.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in untouched.items() if name in kept)
    assert outcome.curves[-1]["loss"] < outcome.curves[0]["loss"]
    assert outcome.cost["student_params_m"] == 0


def test_a_linear_head_is_one_classifier_of_the_concatenated_maps():
    torch.manual_seed(0)
    maps = [torch.randn(2, depth, side, side) for depth, side in ((3, 8), (5, 4), (7, 2), (2, 1))]
    head = Linear([3, 5, 7, 2], 4, dropout=0.0).eval()
    for norm in head.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    whole = torch.cat([resized(norm(map_), (8, 8)) for norm, map_ in zip(head.norms, maps, strict=True)], dim=1)
    weight = torch.cat([classifier.weight for classifier in head.classifiers], dim=1)
    expected = torch.nn.functional.conv2d(whole, weight, head.classifiers[0].bias)
    torch.testing.assert_close(head(maps), expected, rtol=1e-5, atol=1e-5)


def test_a_linear_head_beside_an_auxiliary_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="no auxiliary head"):
        run(replace(SPEC, task_options={**OPTIONS, "head": "linear", "auxiliary": 0.4}), tmp_path)
