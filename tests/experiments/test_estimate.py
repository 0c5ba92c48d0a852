"""Costs before anything runs, against figures worked out by hand."""

from dataclasses import replace

import pytest

from experiments.planning.estimate import cost, counts, total
from experiments.planning.plan import plan
from hkd.spec import DataSpec
from tests.experiments.fake_tasks import STUDENT, fake_run

# digits: 100 labelled images drawn from 1,029, and 510 test images. The student has 0.001 GMACs, 0.01 M parameters.
DATA = DataSpec(name="digits", options={"n_train": 100})


def run(teacher=None, **recipe):
    planned = fake_run("a", teacher=teacher)
    return replace(planned, spec=replace(planned.spec, data=DATA, recipe=replace(planned.spec.recipe, **recipe)))


def test_training_is_three_forward_passes_per_image_and_epoch_and_one_per_test_image():
    found = cost(run(epochs=2))
    assert found.flops == pytest.approx(2e6 * (3 * 2 * 100 + 510))
    assert (found.runs, found.epochs) == (1, 2)


def test_a_teacher_adds_a_pass_per_image_and_epoch_or_per_fixed_view():
    plain = cost(run(epochs=4)).flops
    assert cost(run("t", epochs=4)).flops - plain == pytest.approx(2e6 * 4 * 100)
    assert cost(run("t", epochs=4, views=1)).flops - plain == pytest.approx(2e6 * 100)


def test_gpu_hours_depend_on_the_precision():
    full, mixed = cost(run(epochs=2)), cost(run(epochs=2, precision="bf16-mixed"))
    assert full.gpu_hours == pytest.approx(full.flops / 12e12 / 3600)
    assert mixed.gpu_hours == pytest.approx(full.flops / 60e12 / 3600)


def test_disk_holds_weights_predictions_and_curves():
    assert cost(run(epochs=2)).disk == pytest.approx(4e6 * 0.01 + 24 * 510 + 1024 * 2)
    assert cost(run("t", epochs=2)).disk == pytest.approx(2 * 4e6 * 0.01 + 24 * 510 + 1024 * 2)


def test_an_evaluation_trains_nothing():
    planned = fake_run("a")
    found = cost(replace(planned, spec=replace(planned.spec, task="evaluate", data=DATA, recipe=None)))
    assert found.flops == pytest.approx(2e6 * 510)
    assert found.epochs == 0


def test_costs_add_up():
    one = cost(run(epochs=2))
    assert total([run(epochs=2), run(epochs=2)]) == one + one


def test_counts_follow_the_options_of_a_data_set():
    assert counts(DataSpec(name="digits")) == (1029, 510)
    assert counts(DataSpec(name="digits", options={"n_train": 100, "copies": 3, "test_copies": 2})) == (300, 1020)


def test_counts_per_class_are_times_the_classes():
    assert counts(DataSpec(name="cifar100", options={"n_train": 40, "n_test": 10})) == (4000, 1000)
    assert counts(DataSpec(name="cifar100", options={"classes": 20})) == (10_000, 2000)
    assert counts(DataSpec(name="folder")) == (0, 0)


def test_the_fake_student_is_what_the_figures_assume():
    assert (STUDENT.gmacs, STUDENT.params_m) == (0.001, 0.01)


def test_dense_tasks_are_counted_at_the_size_of_their_images():
    runs = plan("hybrid_table3", "paper").runs.values()
    (first, *_) = (run for run in runs if run.spec.task == "detect")
    card, images, epochs = first.spec.student, 118_287, first.spec.recipe.epochs
    forward = card.gmacs * (800 / card.image_size) ** 2
    assert cost(first).flops == pytest.approx(2e9 * forward * (3 * epochs * images + 5000))
