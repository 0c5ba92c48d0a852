"""Several processes: the same gradients as one at the same global batch, and failures that arrive where they belong."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file

import hkd.tasks.launch as launching
import hkd.tasks.worker as worker
from hkd.data.batch import Batch
from hkd.data.loading.loader import BatchLoader
from hkd.errors import Diverged, Refused, UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.launch import launch, write_outcome
from hkd.tasks.train import train
from hkd.training.distributed import make_fabric, of_all
from hkd.training.job import Job, Outcome, Runtime
from hkd.training.rng import seed_all

# No batch norm and no stochastic depth: a process normalises by its own share, and draws its own masks.
STUDENT = ZOO["mixer_s16_mini"]
# One update of plain gradient descent at rate 1: what the weights lose is the gradient.
ONE_UPDATE = Recipe(epochs=1, batch_size=20, optimizer="momentum", momentum=0.0, lr=1.0, weight_decay=0.0)
SPEC = RunSpec(
    task="train",
    data=DataSpec(name="digits", options={"n_train": 20}),
    student=STUDENT,
    method=MethodSpec(name="kd"),
    recipe=ONE_UPDATE,
    teachers={"teacher": TeacherSpec(model=ZOO["swin_s_mini"], weights=Weights(kind="random", id="7"))},
)
ONE, TWO = Runtime(accelerator="cpu"), Runtime(accelerator="cpu", devices=2)


def silent(news):
    pass


def gradients(folder):
    seed_all(0, "init")
    start = TapModel(STUDENT, 10).net.state_dict()
    end = load_file(folder / "student.safetensors")
    return {name: start[name] - end[name] for name in start}


@pytest.mark.slow
def test_two_processes_give_the_gradients_of_one_at_the_same_global_batch(tmp_path):
    told = []
    one = train(Job(SPEC, {}, tmp_path / "one", ONE, silent))
    two = train(Job(SPEC, {}, tmp_path / "two", TWO, told.append))
    first, second = gradients(tmp_path / "one"), gradients(tmp_path / "two")
    for name, gradient in first.items():
        torch.testing.assert_close(second[name], gradient, rtol=1e-4, atol=1e-6)
    assert max(gradient.abs().max() for gradient in first.values()) > 1e-2
    assert two.curves[0]["loss"] == pytest.approx(one.curves[0]["loss"], rel=1e-5)
    assert two.curves[0]["train_top1"] == one.curves[0]["train_top1"]
    assert two.metrics == one.metrics
    predictions = [np.load(tmp_path / name / "predictions.npz")["prediction"] for name in ("one", "two")]
    assert len(predictions[1]) == 510
    assert (predictions[0] == predictions[1]).mean() > 0.99
    assert not [path for path in (tmp_path / "two").iterdir() if path.suffix == ".json"]


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_resume_and_end_as_if_never_killed(tmp_path):
    spec = replace(SPEC, recipe=replace(ONE_UPDATE, epochs=6, lr=0.01, views=2))
    often = replace(TWO, checkpoint_every_s=0.0, report_every_s=0.0)

    def kill(news):
        raise KeyboardInterrupt

    train(Job(spec, {}, tmp_path / "whole", TWO, silent))
    with pytest.raises(KeyboardInterrupt):
        train(Job(spec, {}, tmp_path / "parts", often, kill))
    train(Job(spec, {}, tmp_path / "parts", often, silent))
    whole, parts = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(parts[name], tensor), name


@pytest.mark.slow
@pytest.mark.long
def test_a_divergence_in_two_processes_is_one_divergence_here(tmp_path):
    wild = replace(ONE_UPDATE, epochs=50, lr=1e6)
    with pytest.raises(Diverged) as caught:
        train(Job(replace(SPEC, recipe=wild), {}, tmp_path, TWO, silent))
    assert set(caught.value.terms) == {"task", "kd"}


@pytest.mark.slow
@pytest.mark.long
def test_what_losses_read_of_earlier_batches_is_equal_in_all_processes_without_being_sent_around(tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run([*run, "-m", "tests.hkd.ranks", str(tmp_path)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert all(f"'{method}': " in ended.stdout for method in ("crd", "unic", "reviewkd", "hgkd"))


# --- the way to the workers and back, without workers


def pretend_torchrun(monkeypatch, folder, result):
    """A command that leaves a result where torchrun's workers would."""
    document = folder / "prepared.json"
    folder.mkdir(exist_ok=True)
    write_outcome(folder, result)
    (folder / "outcome.json").rename(document)
    copy = "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", copy, str(document), str(folder / "outcome.json")]
    monkeypatch.setattr(launching, "_torchrun", lambda runtime, folder: command)


def test_an_outcome_comes_back_as_it_was(tmp_path, monkeypatch):
    sent = Outcome(metrics={"top1": 1 / 3}, cost={"steps": 2.0}, curves=[{"epoch": 1, "loss": 0.1}])
    pretend_torchrun(monkeypatch, tmp_path, sent)
    assert launch(Job(SPEC, {}, tmp_path, TWO, silent)) == sent


def test_a_divergence_comes_back_with_its_terms(tmp_path, monkeypatch):
    pretend_torchrun(monkeypatch, tmp_path, Diverged(5, {"task": float("nan"), "kd": float("inf")}))
    with pytest.raises(Diverged, match="step 5: task=nan, kd=inf"):
        launch(Job(SPEC, {}, tmp_path, TWO, silent))


@pytest.mark.parametrize("kind", [UserError, Refused])
def test_a_failure_comes_back_as_the_kind_it_was(tmp_path, monkeypatch, kind):
    pretend_torchrun(monkeypatch, tmp_path, kind("No such thing."))
    with pytest.raises(UserError) as caught:
        launch(Job(SPEC, {}, tmp_path, TWO, silent))
    assert caught.type is kind


def test_a_users_mistake_comes_back_as_its_sentence(tmp_path, monkeypatch):
    pretend_torchrun(monkeypatch, tmp_path, UserError("No such thing."))
    with pytest.raises(UserError, match="No such thing"):
        launch(Job(SPEC, {}, tmp_path, TWO, silent))


class Bad(BatchLoader):
    """Its only image is refused, in the process that loads it."""

    in_memory = False

    def load(self, item):
        raise Refused(f"The map of image {item.step} has no such class.")


def from_a_loader(*ignored):
    next(Bad(1, 1, seed=0, workers=1).epoch(0))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_any_rank_tells_of_a_mistake_that_it_alone_meets_as_one_sentence(tmp_path, monkeypatch, rank):
    order = launching.encode(Job(SPEC, {}, tmp_path, TWO, silent), parent=None)
    (tmp_path / launching.LAUNCH).write_text(json.dumps(order))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(worker, "load", lambda name: from_a_loader)
    with pytest.raises(SystemExit) as ended:
        worker.main(tmp_path)
    assert ended.value.code == 1
    assert json.loads((tmp_path / launching.OUTCOME).read_text()) == {
        "refused": "The map of image 0 has no such class."
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_met_by_a_process_that_loads_images_is_raised_as_it_was(workers):
    with pytest.raises(Refused) as told:
        next(Bad(1, 1, seed=0, workers=workers).epoch(0))
    assert str(told.value) == "The map of image 0 has no such class."


def test_a_crash_of_the_workers_shows_the_end_of_their_log(tmp_path, monkeypatch):
    crash = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    monkeypatch.setattr(launching, "_torchrun", lambda runtime, folder: crash)
    with pytest.raises(RuntimeError, match=r"code 3[\s\S]*the reason"):
        launch(Job(SPEC, {}, tmp_path, TWO, silent))


def test_several_nodes_get_a_command_to_run_on_each_and_the_outcome_is_picked_up(tmp_path):
    nodes = Runtime(devices=8, num_nodes=2)
    whole = r"run `cd /\S+ && /\S+ -m torch\.distributed\.run --nnodes=2 .*=HOST:PORT .* -m hkd\.tasks\.worker /\S+`"
    with pytest.raises(UserError, match=whole):
        launch(Job(SPEC, {}, tmp_path, nodes, silent))
    assert json.loads((tmp_path / "launch.json").read_text())["runtime"]["devices"] == 8
    sent = Outcome(metrics={"top1": 80.0}, cost={})
    write_outcome(tmp_path, sent)
    assert launch(Job(SPEC, {}, tmp_path, nodes, silent)) == sent


# --- the engine


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="'16-mixed' needs a GPU"):
        make_fabric(ONE, "16-mixed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused():
    with pytest.raises(UserError, match="sees no GPU"):
        make_fabric(Runtime(accelerator="cuda"), "32-true")


def test_mixed_precision_hands_pixels_to_the_model_in_float32():
    fabric = make_fabric(ONE, "bf16-mixed")
    seen = []

    class Probe(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x):
            seen.append(x.dtype)
            return self.linear(x)

    assert fabric.setup(Probe())(torch.zeros(1, 2)).dtype == torch.bfloat16
    assert seen == [torch.float32]


def test_a_batch_that_is_on_the_device_is_not_copied():
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.parametrize("name", ["devices", "num_nodes", "micro_batch"])
def test_a_runtime_of_nothing_is_refused(name):
    with pytest.raises(UserError, match=f"{name} must be greater than or equal to 1, got 0"):
        Runtime(**{name: 0})


def test_a_crash_of_several_processes_begins_with_the_error_that_the_first_of_them_printed():
    log = """[rank1]: Traceback (most recent call last):
[rank1]:   File "x.py", line 3, in <module>
[rank1]: ValueError: ranks [3, 4]: odd
[rank0]: torch.distributed.DistBackendError: NCCL
W1130 torch/distributed/elastic: Sending process 7 closing signal SIGTERM
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
    said = launching.why(log, 1)
    assert said.startswith("ValueError: ranks [3, 4]: odd (torchrun ended with code 1)\n")
    assert said.endswith("ChildFailedError:")
    assert launching.why("", 9).startswith("no error was printed (torchrun ended with code 9)")


def test_names_that_any_process_holds_are_those_of_all(monkeypatch):
    def gather(held, names):
        held[:] = [["a", "c"], names]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    one, two = (object.__new__(type("Engine", (Fabric,), {"world_size": size})) for size in (1, 2))
    assert of_all(one, ["b"]) == ["b"]
    assert of_all(two, ["c", "b"]) == ["a", "c", "b"]
