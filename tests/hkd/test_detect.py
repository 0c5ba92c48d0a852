"""Whole detection runs on a few scenes: what they leave, resumption, several processes, bad input, COCO's files."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hkd.data.loading.dense import DenseLoader, ViewOptions
from hkd.data.scenes import Scenes
from hkd.downstream.coco_ap import CocoAP
from hkd.downstream.detector import Detector
from hkd.errors import Diverged, Refused, UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.convert.files import read_weights
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.detect import detect, read_detections, restore_detector
from hkd.training.job import Job, Runtime

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "coco" / "coco100_320px.tar.xz"
RUNTIME = Runtime(accelerator="cpu", report_every_s=0.0)
# The small setting: scenes of 64 px, two levels of the pyramid, heads of an eighth of the usual width.
SMALL = {
    "width": 48,
    "strides": [4, 8],
    "pooled_levels": 2,
    "anchors": [14.0, 22.0],
    "rpn_pre_nms": [200, 200],
    "rpn_post_nms": [100, 100],
    "rpn_samples": 64,
    "box_samples": 32,
    "box_roi": 5,
    "box_width": 128,
    "mask_roi": 7,
    "mask_layers": 2,
    "mask_width": 32,
    "canonical_scale": 28,
    "canonical_level": 3,
}
SPEC = RunSpec(
    task="detect",
    data=DataSpec(name="scenes", options={"pool": 20, "n_train": 8, "n_test": 6}),
    student=ZOO["resnet18_mini"],
    method=MethodSpec(name="supervised"),
    recipe=Recipe(epochs=2, batch_size=4, lr=2e-3, flip=False),
    task_options=SMALL,
    seed=1,
)


class KilledError(Exception):
    pass


def silent(news):
    pass


def killing(step):
    def report(news):
        if news["step"] == step:
            raise KilledError

    return report


def timeless(curves):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in curves]


def left(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, detect(Job(SPEC, {}, folder, RUNTIME, silent))


def test_a_run_leaves_backbone_head_curves_and_detections(done):
    folder, outcome = done
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapters.safetensors",
        "curves.jsonl",
        "detections.npz",
        "student.safetensors",
    ]
    assert {"ap_box", "ap_box_50", "ap_box_75", "ap_mask", "ap_mask_50", "ap_mask_75"} <= set(outcome.metrics)
    assert {"ap_box_small", "ap_mask_large"} <= set(outcome.metrics)
    assert all(0 <= value <= 100 for value in outcome.metrics.values())
    terms = {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask"}
    assert {f"loss/{term}" for term in terms} | {f"grad_norm/{term}" for term in terms} <= set(outcome.curves[0])
    assert "train_top1" not in outcome.curves[0]
    assert outcome.cost["steps"] == 4


def test_an_interrupted_run_goes_on_to_the_same_bytes(done, tmp_path):
    folder, whole = done
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        detect(Job(SPEC, {}, tmp_path, often, killing(3)))
    assert (tmp_path / "checkpoint.pt").exists()
    resumed = detect(Job(SPEC, {}, tmp_path, often, silent))
    assert resumed.metrics == whole.metrics
    assert timeless(resumed.curves) == timeless(whole.curves)
    assert left(tmp_path) == left(folder)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_restored_detector_finds_what_the_run_found(done):
    folder, _ = done
    step = restore_detector(SPEC, folder, RUNTIME)
    assert isinstance(step.method, Detector)
    assert not step.training
    split = Scenes(SPEC.data.options, Path()).load_dense("test", seed=1, select=False)
    loader = DenseLoader(split, SPEC.recipe, options=ViewOptions(), seed=1, train=False, multiple=step.multiple)
    held = list(read_detections(folder))
    with torch.no_grad():
        for batch in loader.epoch(0):
            for position, one in zip(
                batch.index.tolist(), step.method.detect(step.student(batch.x), batch), strict=True
            ):
                told = held[position]
                assert told.row == split.rows[position]
                np.testing.assert_allclose(told.boxes, one.boxes, atol=1e-4)
                np.testing.assert_allclose(told.scores, one.scores, atol=1e-6)
                assert np.array_equal(told.labels, one.labels)
                assert np.array_equal(told.masks, one.pasted(64, 64))


def test_the_detections_of_the_file_have_the_average_precision_of_the_run(done):
    folder, outcome = done
    split = Scenes(SPEC.data.options, Path()).load_dense("test", seed=1, select=False)
    judge = CocoAP(split.coco(), borders=split.size_borders)
    for position, one in enumerate(read_detections(folder)):
        judge.add(position, one.boxes, one.scores, one.labels, one.masks)
    found = judge.compute()
    assert found["box"].ap == pytest.approx(outcome.metrics["ap_box"])
    assert found["mask"].ap50 == pytest.approx(outcome.metrics["ap_mask_50"])


def test_a_run_that_finds_nothing_has_no_precision_and_an_empty_file(tmp_path):
    spec = replace(SPEC, recipe=replace(SPEC.recipe, epochs=1), task_options=SMALL | {"score_threshold": 1.0})
    outcome = detect(Job(spec, {}, tmp_path, RUNTIME, silent))
    assert outcome.metrics["ap_box"] == outcome.metrics["ap_mask"] == 0
    assert [len(one.boxes) for one in read_detections(tmp_path)] == [0] * 6


def test_a_run_starts_from_the_backbone_of_another(done, tmp_path):
    folder, _ = done
    spec = replace(SPEC, init=Weights(kind="run", id="before"), recipe=replace(SPEC.recipe, epochs=1, lr=1e-12))
    detect(Job(spec, {"before": folder / "student.safetensors"}, tmp_path, RUNTIME, silent))
    before, after = (read_weights(place / "student.safetensors") for place in (folder, tmp_path))
    for name, value in before.items():
        if name.endswith("weight"):
            torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.long
def test_a_plain_transformer_with_a_cascade_layer_decay_and_augmentation_trains(tmp_path):
    recipe = replace(SPEC.recipe, epochs=1, layer_decay=0.8, flip=True, clip_grad=1.0, precision="bf16-mixed")
    options = SMALL | {"cascade": True, "scale": [0.8, 1.5], "crop": 64}
    spec = replace(SPEC, student=ZOO["hybrid_b16_mini"], recipe=recipe, task_options=options)
    outcome = detect(Job(spec, {}, tmp_path, RUNTIME, silent))
    assert {"loss/classifier_1", "loss/classifier_3", "loss/mask"} <= set(outcome.curves[0])
    assert restore_detector(spec, tmp_path, RUNTIME).method.roi_heads.coders[0].weights == (10.0, 10.0, 5.0, 5.0)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_train_and_evaluate_every_image(tmp_path):
    outcome = detect(Job(SPEC, {}, tmp_path, replace(RUNTIME, devices=2), silent))
    assert outcome.cost["steps"] == 4
    assert len(list(read_detections(tmp_path))) == 6


@pytest.mark.slow
def test_a_detector_learns_two_scenes_by_heart(tmp_path, monkeypatch):
    load = Scenes.load_dense
    monkeypatch.setattr(Scenes, "load_dense", lambda self, split, **rest: load(self, "train", **rest))
    spec = replace(
        SPEC,
        data=DataSpec(name="scenes", options={"pool": 2, "n_test": 2}),
        recipe=Recipe(epochs=120, batch_size=2, lr=2e-3, warmup_epochs=5.0),
    )
    outcome = detect(Job(spec, {}, tmp_path, RUNTIME, silent))
    assert outcome.metrics["ap_box"] > 80
    assert outcome.metrics["ap_mask"] > 50


def test_a_loss_that_diverges_stops_the_run(tmp_path):
    recipe = replace(SPEC.recipe, lr=1e6, optimizer="sgd")
    with pytest.raises(Diverged):
        detect(Job(replace(SPEC, recipe=recipe), {}, tmp_path, RUNTIME, silent))


# --- bad input


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": None}, "needs a recipe"),
        ({"data": DataSpec(name="digits")}, "needs boxes and masks of objects, and the data set 'digits' has none"),
        ({"task_options": {"widht": 3}}, "has no option 'widht'. Did you mean 'width'"),
        ({"task_options": {"strides": [4, 16]}}, "strides must double"),
        ({"task_options": SMALL | {"strides": [1, 2]}}, "the option 'strides' asks for 1"),
        ({"method": MethodSpec(name="kd")}, "take the method 'supervised'"),
        (
            {"teachers": {"teacher": TeacherSpec(model=ZOO["swin_t_mini"], weights=Weights(kind="random", id="0"))}},
            "no teachers",
        ),
        ({"recipe": replace(SPEC.recipe, mixup=0.2)}, "mixup is 0.2, which the task 'detect' cannot do"),
        ({"recipe": replace(SPEC.recipe, crop="resized")}, "task options scale and crop"),
        ({"recipe": replace(SPEC.recipe, batch_size=9)}, "larger than the 8 training images"),
        ({"init": Weights(kind="run", id="gone")}, "No file was given for the weights 'gone'"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(changes, sentence, tmp_path):
    with pytest.raises(UserError) as told:
        detect(Job(replace(SPEC, **changes), {}, tmp_path, RUNTIME, silent))
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_a_batch_can_be_taken_in_parts(tmp_path):
    outcome = detect(Job(SPEC, {}, tmp_path, replace(RUNTIME, micro_batch=2), silent))
    assert outcome.cost["device_batch"] == 2
    assert outcome.metrics.keys() >= {"ap_box", "ap_mask"}


def test_a_backbone_of_one_image_size_is_refused(tmp_path):
    with pytest.raises(Refused, match="mixer_s16_mini"):
        detect(Job(replace(SPEC, student=ZOO["mixer_s16_mini"]), {}, tmp_path, RUNTIME, silent))


# --- COCO's own files


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the sample of COCO is not there")
def test_the_sample_of_coco_trains_and_is_evaluated_at_the_size_of_its_files(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "data" / "coco", filter="data")
    spec = replace(
        SPEC,
        data=DataSpec(name="coco", options={"image_size": 96, "max_size": 160, "n_train": 2, "n_test": 3}),
        recipe=replace(SPEC.recipe, epochs=1, batch_size=2, flip=True),
        task_options=SMALL | {"score_threshold": 0.0, "detections": 5},
    )
    runtime = replace(RUNTIME, data_root=tmp_path / "data")
    outcome = detect(Job(spec, {}, tmp_path / "run", runtime, silent))
    assert outcome.metrics["ap_box"] >= 0
    content = json.loads((tmp_path / "data" / "coco" / "annotations" / "instances_val2017.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    held = list(read_detections(tmp_path / "run"))
    assert len(held) == 3
    for one in held:
        assert one.masks.shape[1:] == sizes[one.row]
        assert len(one.boxes) == 5
        assert one.boxes[:, 2].max() <= sizes[one.row][1] + 1e-3
