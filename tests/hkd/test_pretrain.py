"""Training without labels, and linear probes: what they leave, what they cannot see, independent oracles."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

from hkd.data.base import Split
from hkd.data.digits import Digits
from hkd.data.unlabelled import UnlabelledDigits
from hkd.errors import UserError
from hkd.methods.hgkd import HGKD
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.pretrain import pretrain
from hkd.tasks.probe import linear_probe, probe
from hkd.tasks.train import train
from hkd.training.job import Job, Runtime

LABELLED, UNLABELLED = (DataSpec(name=name, options={"n_train": 40}) for name in ("digits", "digits_unlabelled"))
STUDENT, TEACHER = ZOO["sparse_resnet18_mini"], ZOO["mae_b16_mini"]
SPEC = RunSpec(
    task="pretrain",
    data=UNLABELLED,
    student=STUDENT,
    method=MethodSpec(name="hgkd", options={"queue_size": 30, "width": 16}),
    recipe=Recipe(epochs=2, batch_size=10, lr=1e-3, shift=1, views=2),
    teachers={"teacher": TeacherSpec(model=TEACHER, weights=Weights(kind="random", id="3"), classes=0)},
)
RUNTIME = Runtime(accelerator="cpu", report_every_s=0.0)
LOAD = Digits.load


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    """Composing all 510 test digits for each run here would take most of the time."""

    def few(self, split, *, seed, select, on_corrupt="stop"):
        whole = LOAD(self, split, seed=seed, select=select)
        count = min(len(whole), 60)
        return Split(whole.images[:count], None, whole.labels[:count], whole.rows[:count])

    monkeypatch.setattr(Digits, "load", few)


def silent(news):
    pass


def test_pretraining_leaves_an_encoder_that_timm_loads_strictly_and_no_predictions(tmp_path):
    outcome = pretrain(Job(SPEC, {}, tmp_path, RUNTIME, silent))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["adapters.safetensors", "curves.jsonl", "student.safetensors"]
    kwargs = {**STUDENT.kwargs, "num_classes": 0}
    kwargs.pop("maxpool")
    net = timm.create_model(STUDENT.arch, **kwargs)
    net.load_state_dict(load_file(tmp_path / "student.safetensors"), strict=True)
    assert set(outcome.metrics) == {"heldout_loss", "heldout_sim", "heldout_feat"}
    assert outcome.metrics["heldout_loss"] == pytest.approx(
        outcome.metrics["heldout_sim"] + outcome.metrics["heldout_feat"]
    )


def test_curves_hold_the_methods_own_figures_and_no_accuracy(tmp_path):
    told = []
    outcome = pretrain(Job(SPEC, {}, tmp_path, RUNTIME, told.append))
    assert [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()] == outcome.curves
    for line in outcome.curves:
        assert {"loss/sim", "loss/feat", "queue_entries", "queue_fill"} <= set(line)
        assert "train_top1" not in line
    assert outcome.curves[-1]["queue_fill"] == 30
    assert all("top1" not in news for news in told)


def test_no_label_can_reach_a_method(tmp_path, monkeypatch):
    seen = []
    forward = HGKD.forward

    def spy(self, batch, taps_s, taps_t):
        seen.append(tuple(batch.y.shape))
        return forward(self, batch, taps_s, taps_t)

    monkeypatch.setattr(HGKD, "forward", spy)
    pretrain(Job(SPEC, {}, tmp_path, RUNTIME, silent))
    assert {shape[1:] for shape in seen} == {(0,)}


def test_other_labels_change_no_byte(tmp_path, monkeypatch):
    pretrain(Job(SPEC, {}, tmp_path / "one", RUNTIME, silent))
    load = Digits.load

    def mislabelled(self, *arguments, **options):
        split = load(self, *arguments, **options)
        return replace(split, labels=(split.labels + 3) % 10)

    monkeypatch.setattr(Digits, "load", mislabelled)
    pretrain(Job(SPEC, {}, tmp_path / "two", RUNTIME, silent))
    for name in ("student.safetensors", "adapters.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_fine_tuning_starts_from_what_was_pretrained_and_only_the_classifier_is_new(tmp_path, caplog):
    pretrain(Job(SPEC, {}, tmp_path / "pre", RUNTIME, silent))
    tuned = replace(
        SPEC,
        task="train",
        data=LABELLED,
        method=MethodSpec(name="supervised"),
        recipe=Recipe(epochs=1, batch_size=10, lr=1e-12, weight_decay=0.0),
        teachers={},
        init=Weights(kind="run", id="pre"),
    )
    with caplog.at_level("INFO"):
        train(Job(tuned, {"pre": tmp_path / "pre" / "student.safetensors"}, tmp_path / "tune", RUNTIME, silent))
    before, after = (load_file(tmp_path / name / "student.safetensors") for name in ("pre", "tune"))
    assert set(after) - set(before) == {"fc.weight", "fc.bias"}
    learned = [name for name in before if name.endswith(("weight", "bias"))]
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in learned)
    assert any("fc.weight, fc.bias is new" in record.message for record in caplog.records)


def test_labelled_data_are_refused_for_pretraining(tmp_path):
    with pytest.raises(UserError, match="take 'digits_unlabelled'"):
        pretrain(Job(replace(SPEC, data=LABELLED), {}, tmp_path, RUNTIME, silent))


def test_unlabelled_data_show_the_same_images_without_classes(tmp_path):
    bare, full = UnlabelledDigits({"n_train": 40}, tmp_path), Digits({"n_train": 40}, tmp_path)
    one, other = (data.load("train", seed=1, select=False) for data in (bare, full))
    assert np.array_equal(one.images, other.images)
    assert np.array_equal(one.rows, other.rows)
    assert set(one.labels.tolist()) == {-1}
    assert bare.num_classes == 0
    assert bare.counts() == full.counts()
    assert bare.fingerprint() != full.fingerprint()
    with pytest.raises(UserError, match="n_train"):
        UnlabelledDigits({"n_train": 3}, tmp_path)


def test_the_probe_is_scikit_learns_logistic_regression():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    labels = rng.integers(0, 4, 200)
    x = 5 * (centres[labels] + rng.normal(size=(200, 6))) + 3
    l2 = 0.02
    found = linear_probe(
        torch.tensor(x[:150], dtype=torch.float32),
        torch.tensor(labels[:150]),
        torch.tensor(x[150:], dtype=torch.float32),
        classes=4,
        l2=l2,
    )
    scaled = (x - x[:150].mean(axis=0)) / x[:150].std(axis=0)
    oracle = LogisticRegression(C=1 / (l2 * 150), max_iter=5000, tol=1e-8).fit(scaled[:150], labels[:150])
    assert np.array_equal(found.numpy(), oracle.predict(scaled[150:]))


def test_a_probe_reports_the_accuracy_of_the_predictions_it_leaves(tmp_path):
    spec = RunSpec(
        task="probe",
        data=LABELLED,
        student=TEACHER,
        method=MethodSpec(name="supervised"),
        init=Weights(kind="random", id="3"),
    )
    outcome = probe(Job(spec, {}, tmp_path, RUNTIME, silent))
    left = np.load(tmp_path / "predictions.npz")
    assert outcome.metrics == {"top1": pytest.approx(100 * (left["label"] == left["prediction"]).mean())}
    assert len(left["row"]) == 60
    again = probe(Job(spec, {}, tmp_path / "again", RUNTIME, silent))
    assert again.metrics == outcome.metrics


def test_a_probe_without_weights_labels_or_known_options_says_so(tmp_path):
    spec = RunSpec(task="probe", data=LABELLED, student=TEACHER, method=MethodSpec(name="supervised"))
    with pytest.raises(UserError, match="needs weights to probe"):
        probe(Job(spec, {}, tmp_path, RUNTIME, silent))
    given = replace(spec, init=Weights(kind="random", id="3"))
    with pytest.raises(UserError, match="needs labels"):
        probe(Job(replace(given, data=UNLABELLED), {}, tmp_path, RUNTIME, silent))
    with pytest.raises(UserError, match="Did you mean 'l2'"):
        probe(Job(replace(given, task_options={"l3": 1.0}), {}, tmp_path, RUNTIME, silent))


def test_a_headless_model_has_its_pooled_feature_for_logits():
    taps = TapModel(STUDENT, 0)(torch.rand(2, 3, 32, 32))
    assert torch.equal(taps.logits, taps.pooled)
