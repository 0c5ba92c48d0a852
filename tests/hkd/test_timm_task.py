"""A distiller as a task of the installed timm, used as timm's train.py uses one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.task import TrainingTask

import hkd
from hkd.distiller.module import Distiller
from tests.hkd.test_distiller import CLASSES, LABELS, images, resnet, total, vit


def task(method="fd", **options):
    torch.manual_seed(3)
    return hkd.TimmTask(Distiller(resnet(), vit(), method, image_size=32, **options), verbose=False)


def steps(given, count=3):
    """What train.py does with a task."""
    optimizer = torch.optim.SGD(given.get_trainable_module().parameters(), lr=0.1)
    given.train()
    seen = []
    for index in range(count):
        result = given(images(), LABELS)
        result["loss"].backward()
        torch.nn.utils.clip_grad_norm_(given.get_clip_parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        given.update_ema(step=index)
        seen.append(result["loss"].item())
    return seen


def test_a_task_gives_what_timms_loop_reads():
    given = task()
    assert isinstance(given, TrainingTask)
    result = given(images(), LABELS)
    assert set(result) == {"loss", "output", "task", "feat_s4"}
    torch.testing.assert_close(result["loss"], result["task"] + result["feat_s4"])
    assert result["output"].shape == (4, CLASSES)
    with torch.no_grad():
        given.eval()
        torch.testing.assert_close(given(images(), LABELS)["output"], given.distiller.student(images()))


def test_a_loop_of_timm_trains_student_and_adapters_as_ours_does():
    given, ours = task(), task().distiller
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    expected = []
    for _ in range(3):
        losses = ours(images(), LABELS)
        total(losses).backward()
        torch.nn.utils.clip_grad_norm_(ours.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total(losses).item())
    assert steps(given) == pytest.approx(expected, rel=1e-5)


def test_the_plain_student_is_evaluated_and_stored_and_adapters_beside_it():
    given = task()
    given.setup_ema(decay=0.5)
    steps(given)
    assert given.get_eval_model() is given.distiller.student
    state = given.get_checkpoint_state()
    assert state["state_dict"].keys() == resnet().state_dict().keys()
    assert set(state["task_state"]["method"]) == {"projector.weight", "projector.bias"}
    averaged = given.get_checkpoint_state(ema=True)["state_dict_ema"]
    assert averaged.keys() == state["state_dict"].keys()
    assert not torch.equal(averaged["conv1.weight"], state["state_dict"]["conv1.weight"])
    other = task()
    other.load_checkpoint_state(state["state_dict"], state["task_state"])
    assert torch.equal(other.eval()(images(), LABELS)["loss"], given.eval()(images(), LABELS)["loss"])


def test_a_task_is_evaluated_by_timms_evaluator_and_clips_all_that_learns():
    given = task()
    assert type(given.create_evaluator()).__name__ == "ClassificationEvaluator"
    everything = {id(x) for x in given.distiller.parameters()}
    assert {id(x) for x in given.get_clip_parameters()} == everything
    assert len(given.get_clip_parameters(exclude_head=True)) == len(everything) - 2
    given.double()
    assert given.dtype == torch.float64
    assert given(images(), LABELS)["loss"].dtype == torch.float64


def test_a_method_that_knows_samples_again_is_refused():
    with pytest.raises(hkd.UserError, match="timm's loops give no rows"):
        task("crd", samples=LABELS, negatives=2)


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_task_gives_the_same():
    script = (
        "import torch; from tests.hkd.test_timm_task import LABELS, images, task\n"
        "plain, compiled = task('kd'), task('kd')\n"
        "compiled.compile(backend='eager')\n"
        "assert torch.equal(plain(images(), LABELS)['loss'], compiled(images(), LABELS)['loss'])\n"
        "assert compiled.get_checkpoint_state()['state_dict'].keys() == plain.distiller.student.state_dict().keys()\n"
    )  # by itself: the checkers of annotations that tests have on cannot be compiled
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
