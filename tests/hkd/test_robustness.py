"""The task that measures finished classifiers on corrupted images, and how well calibrated they are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hkd.data.digits import Digits
from hkd.data.loading.augment import to_float
from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import load_weights, save_weights
from hkd.options import OptionError
from hkd.spec import DataSpec, MethodSpec, RunSpec, Weights
from hkd.tasks.evaluate import evaluate
from hkd.tasks.robustness import calibration_error, robustness, summary
from hkd.training.job import Job, Runtime
from hkd.training.rng import seed_all

CARD = ZOO["resnet18_mini"]
SPEC = RunSpec(
    task="robustness",
    data=DataSpec(name="digits", options={"n_train": 20}),
    student=CARD,
    method=MethodSpec(name="kd"),
    init=Weights(kind="run", id="before"),
    task_options={"corruptions": ["contrast", "noise"], "strengths": [5, 1]},
)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    """The first 40 test digits."""
    load = Digits.load

    def few(self, split, **how):
        whole = load(self, split, **how)
        return type(whole)(whole.images[:40], None, whole.labels[:40], whole.rows[:40])

    monkeypatch.setattr(Digits, "load", few)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    seed_all(0, "init")
    net = TapModel(CARD, 10).net
    path = tmp_path_factory.mktemp("before") / "student.safetensors"
    save_weights(net.state_dict(), path)
    return {"before": path}


def job(tmp_path, weights, **changes):
    runtime, spec = Runtime(accelerator="cpu"), replace(SPEC, **changes)
    return Job(spec=spec, weights=weights, folder=tmp_path / spec.task, runtime=runtime, report=lambda _: None)


def test_calibration_error_by_hand():
    confidence = torch.tensor([0.95, 0.94, 0.5, 0.55, 0.07])
    right = torch.tensor([True, False, True, False, False])
    # Bins of 1/15: (14/15, 1] holds 0.95 and 0.94, which are right once; 0.5 is in (7/15, 8/15], 0.55 in (8/15, 9/15],
    # 0.07 in (1/15, 2/15].
    wanted = 2 / 5 * abs(0.5 - 0.945) + 1 / 5 * (0.5 + 0.55 + 0.07)
    assert calibration_error(confidence, right) == pytest.approx(wanted, abs=1e-6)
    assert calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0
    assert calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1
    assert calibration_error(torch.tensor([1 / 15]), torch.tensor([True]), bins=15) == pytest.approx(14 / 15)


def test_of_one_bin_it_is_accuracy_less_mean_confidence():
    drawn = torch.rand(50, generator=torch.Generator().manual_seed(3))
    right = drawn > 0.3
    assert calibration_error(drawn, right, bins=1) == pytest.approx(abs(right.double().mean() - drawn.mean()).item())


def test_means_are_over_strengths_and_then_over_corruptions():
    found = summary({("noise", 1): 80.0, ("noise", 5): 40.0, ("blur", 1): 70.0, ("blur", 5): 30.0})
    assert found == {
        "top1_corrupted": 55.0,
        "top1_noise": 60.0,
        "top1_blur": 50.0,
        "top1_noise_1": 80.0,
        "top1_noise_5": 40.0,
        "top1_blur_1": 70.0,
        "top1_blur_5": 30.0,
    }


def test_the_task_measures_the_weights_it_is_given(tmp_path, weights):
    metrics = robustness(job(tmp_path, weights)).metrics
    assert metrics["top1"] == evaluate(job(tmp_path, weights, task="evaluate", task_options={})).metrics["top1"]
    split = Digits({"n_train": 20}, tmp_path).load("test", seed=0, select=False)
    model = TapModel(CARD, 10)
    load_weights(model.net, weights["before"])
    with torch.no_grad():
        x, labels = to_float(torch.from_numpy(split.images)), torch.from_numpy(split.labels)
        logits = model.eval()(x).logits
        washed = ((x - x.mean((2, 3), keepdim=True)) * 0.15 + x.mean((2, 3), keepdim=True)).mul(255).round().div(255)
        right = (model(washed).logits.argmax(1) == labels).double().mean().item()
    assert metrics["top1_contrast_5"] == pytest.approx(100 * right)
    assert metrics["nll"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    confidence, hit = logits.softmax(1).amax(1), logits.argmax(1) == labels
    assert metrics["ece"] == pytest.approx(100 * calibration_error(confidence, hit), abs=1e-4)
    assert set(metrics) == {
        *("top1", "ece", "nll", "top1_corrupted", "top1_noise", "top1_contrast"),
        *(f"top1_{name}_{strength}" for name in ("noise", "contrast") for strength in (1, 5)),
    }
    assert np.isfinite(list(metrics.values())).all()
    assert not list((tmp_path / "robustness").iterdir())


def test_the_seed_of_a_run_does_not_change_what_it_is_shown(tmp_path, weights):
    first, second = (robustness(job(tmp_path, weights, seed=seed)).metrics for seed in (0, 1))
    assert first == second


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"init": None}, "give the run an `init`"),
        ({"data": DataSpec(name="digits_unlabelled")}, "'digits_unlabelled' has no labels"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(tmp_path, weights, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        robustness(job(tmp_path, weights, **changes))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"corruptions": ["fog"]}, r"^Task 'robustness': corruptions\.0 must be 'noise', 'blur' or 'contrast'"),
        ({"corruptions": []}, "^Task 'robustness': corruptions"),
        ({"corruptions": ["blur", "blur"]}, "must not name one twice"),
        ({"strengths": [6]}, "^Task 'robustness': strengths"),
    ],
)
def test_a_corruption_of_unknown_name_is_one_sentence(tmp_path, weights, options, sentence):
    with pytest.raises(OptionError, match=sentence) as error:
        robustness(job(tmp_path, weights, task_options=options))
    assert "\n" not in str(error.value)
