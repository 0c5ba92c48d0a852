"""Whole runs on a few digits: what they leave, that resumed equals uninterrupted, and what cannot change a number."""

import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import hkd.training.checkpoint as checkpoint_module
import hkd.training.journal as journal_module
from experiments.planning.keys import spec_identity
from hkd.data.digits import Digits
from hkd.data.loading.loader import Loader
from hkd.errors import Diverged, Refused, UserError
from hkd.methods.supervised import Supervised
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights
from hkd.tasks.evaluate import evaluate, top1
from hkd.tasks.launch import decode, encode
from hkd.tasks.train import build, train
from hkd.training.checkpoint import Checkpoints
from hkd.training.cost import Meter, gpu_seconds
from hkd.training.distributed import make_fabric
from hkd.training.job import Job, Runtime
from hkd.training.rng import seed_all
from hkd.training.session import train_run

DATA = DataSpec(name="digits", options={"n_train": 20})
RECIPE = Recipe(epochs=3, batch_size=8, lr=1e-3, warmup_epochs=1.0, shift=2)  # 2 steps an epoch
STUDENT, TEACHER = ZOO["swin_t_mini"], ZOO["swin_s_mini"]  # the student has stochastic depth
RUNTIME = Runtime(accelerator="cpu", report_every_s=0.0)

LOAD, RENDERED = Digits.load, {}


class KilledError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def _rendered_once(monkeypatch):
    """Composing the 510 test digits anew for each of the runs here would take half of the time."""
    monkeypatch.setattr(Digits, "load", rendered)


def rendered(self, split, *, seed, select, on_corrupt="stop"):
    key = (split, seed, str(self.options))
    if key not in RENDERED:
        RENDERED[key] = LOAD(self, split, seed=seed, select=select)
    return RENDERED[key]


def silent(news):
    pass


def run_spec(method="supervised", **changes):
    options = changes.pop("options", {})
    teachers = {}
    if method != "supervised":
        teachers["teacher"] = TeacherSpec(model=TEACHER, weights=Weights(kind="random", id="7"))
    facts = {"task": "train", "data": DATA, "student": STUDENT, "recipe": RECIPE, "teachers": teachers} | changes
    return RunSpec(method=MethodSpec(name=method, options=options), **facts)


def timeless(curves):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in curves]


def left_in(folder):
    """The bytes of all weights, and the predictions, that a run left."""
    weights = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    return weights, np.load(folder / "predictions.npz")["prediction"].tolist()


def kill_at(step):
    def report(news):
        if news["step"] == step:
            raise KilledError

    return report


# --- what a run leaves


def test_a_run_leaves_weights_predictions_and_curves_and_no_checkpoint(tmp_path):
    told = []
    outcome = train(Job(run_spec("fd"), {}, tmp_path, RUNTIME, told.append))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapters.safetensors",
        "curves.jsonl",
        "predictions.npz",
        "student.safetensors",
    ]
    net = TapModel(STUDENT, 10).net
    assert load_file(tmp_path / "student.safetensors").keys() == net.state_dict().keys()
    found = np.load(tmp_path / "predictions.npz")
    assert sorted(found) == ["label", "prediction", "row"]
    assert len(found["row"]) == 510
    assert outcome.metrics == {"top1": pytest.approx(100 * (found["label"] == found["prediction"]).mean())}
    lines = [json.loads(line) for line in (tmp_path / "curves.jsonl").read_text().splitlines()]
    assert lines == outcome.curves
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss/task"] + lines[0]["loss/feat_s4"])
    assert {"lr", "train_top1", "seconds", "grad_norm/task", "grad_norm/feat_s4"} < lines[0].keys()
    assert [news["step"] for news in told] == [1, 2, 3, 4, 5, 6]
    assert told[-1].keys() == {"epoch", "epochs", "step", "steps", "loss", "top1"}


def test_the_curves_so_far_can_be_read_while_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("hkd.training.session.LIVE_S", 0.0)
    seen = []

    def report(news):
        path = tmp_path / "curves.jsonl"
        seen.append(len(path.read_text().splitlines()) if path.exists() else 0)

    train(Job(run_spec(), {}, tmp_path, RUNTIME, report))
    assert seen == [0, 0, 1, 1, 2, 2]  # 2 steps an epoch


@pytest.mark.parametrize("ema", [None, 0.5])
def test_accuracy_on_validation_rows_is_read_between_epochs_and_moves_no_digit(ema, tmp_path):
    recipe = replace(RECIPE, ema_decay=ema)
    plain = train(Job(run_spec("fd", recipe=recipe), {}, tmp_path / "plain", RUNTIME, silent))
    asked = run_spec("fd", recipe=replace(recipe, validate_every=2))
    read = train(Job(asked, {}, tmp_path / "read", RUNTIME, silent))
    assert [("val_top1" in line) for line in read.curves] == [False, True, True]  # each second one, and the last
    without = [{name: value for name, value in line.items() if name != "val_top1"} for line in read.curves]
    assert timeless(without) == timeless(plain.curves)
    assert left_in(tmp_path / "read") == left_in(tmp_path / "plain")
    assert read.metrics == plain.metrics
    kept = TapModel(STUDENT, 10)  # digits have a cut of their own: rows 1029 to 1286 are never trained on
    kept.net.load_state_dict(load_file(tmp_path / "read" / "student.safetensors"))
    job = Job(asked, {}, tmp_path, RUNTIME, silent)
    fabric = make_fabric(RUNTIME, "32-true")
    data = Digits(DATA.options, Path())
    assert read.curves[-1]["val_top1"] == top1(kept, data.load("val", seed=0, select=True), job, data, fabric)


def test_asking_for_validation_makes_another_run_that_trains_on_other_rows_only():
    asked = run_spec(recipe=replace(RECIPE, validate_every=1))
    assert asked.holds_out
    assert not run_spec().holds_out
    assert "validate_every" not in spec_identity(run_spec())["recipe"]
    assert spec_identity(asked)["recipe"]["validate_every"] == 1


def test_a_task_without_accuracy_refuses_to_validate(tmp_path):
    spec = run_spec(recipe=replace(RECIPE, validate_every=1))
    made = lambda job, fabric: build(job, fabric, Digits(DATA.options, Path()), "", dict)  # noqa: E731
    with pytest.raises(Refused, match="no accuracy to read between epochs: leave validate_every out"):
        train_run(Job(spec, {}, tmp_path, RUNTIME, silent), made)


def test_costs_are_counted(tmp_path):
    cost = train(Job(run_spec("fd"), {}, tmp_path, RUNTIME, silent)).cost
    student = TapModel(STUDENT, 10)
    widths = student.info.final[0], TapModel(TEACHER, 10).info.final[0]
    assert cost["steps"] == 6
    assert cost["student_params_m"] == pytest.approx(sum(p.numel() for p in student.net.parameters()) / 1e6)
    assert cost["extra_params_m"] == pytest.approx((widths[0] + 1) * widths[1] / 1e6)
    assert cost["gpu_s"] == 0.0
    assert 0 < cost["step_ms"] / 1e3 < cost["wall_s"]
    assert cost["cpu_s"] > 0
    assert 50 < cost["peak_memory_mib"] < 4096


def test_a_step_on_a_cpu_takes_its_own_time_not_that_of_what_else_runs_there():
    steps = 4
    journal = journal_module.Journal(
        make_fabric(RUNTIME, "32-true"), epochs=1, steps=steps, report=lambda told: None, every_s=9.0, norms=False
    )
    for _ in range(steps):
        time.sleep(0.05)  # another process has the core
        journal.note({"task": torch.zeros(())}, None, images=1, epoch=0)
    journal.close_epoch(0, lr=0.1)
    assert 0 < journal.step_ms < 25
    assert journal.curves[0]["seconds"] > steps * 0.05


def test_progress_is_told_no_more_often_than_asked(tmp_path):
    told = []
    train(Job(run_spec(), {}, tmp_path, replace(RUNTIME, report_every_s=1e6), told.append))
    assert [news["step"] for news in told] == [1]


def test_two_equal_runs_are_equal_to_the_bit(tmp_path):
    outcomes = [train(Job(run_spec("kd"), {}, tmp_path / name, RUNTIME, silent)) for name in "ab"]
    assert timeless(outcomes[0].curves) == timeless(outcomes[1].curves)
    assert left_in(tmp_path / "a") == left_in(tmp_path / "b")


# --- resumed equals uninterrupted


@pytest.mark.parametrize(("method", "step"), [("supervised", 1), ("kd", 3), ("scalekd", 4)])
def test_a_run_killed_in_the_middle_ends_as_if_it_had_not_been(tmp_path, method, step):
    recipe = replace(RECIPE, ema_decay=0.5, clip_grad=1.0, views=2 if method == "kd" else None)
    spec = run_spec(method, recipe=recipe)
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    whole = train(Job(spec, {}, tmp_path / "whole", RUNTIME, silent))
    with pytest.raises(KilledError):
        train(Job(spec, {}, tmp_path / "parts", often, kill_at(step)))
    assert (tmp_path / "parts" / "checkpoint.pt").exists() == (step > 1)
    resumed = train(Job(spec, {}, tmp_path / "parts", often, silent))
    assert timeless(resumed.curves) == timeless(whole.curves)
    assert resumed.metrics == whole.metrics
    assert resumed.cost["steps"] == 6
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


def test_only_what_the_checkpoint_lacks_is_trained_again(tmp_path):
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path, often, kill_at(4)))
    told = []
    train(Job(run_spec(), {}, tmp_path, often, told.append))
    assert [news["step"] for news in told] == [4, 5, 6]


def test_epochs_that_end_before_the_device_is_read_leave_checkpoints_too(tmp_path, monkeypatch):
    """On a GPU losses are read every 32 steps, and these epochs have two."""
    interval = property(lambda self: journal_module.GPU_INTERVAL, lambda self, value: None)
    monkeypatch.setattr(journal_module.Journal, "interval", interval, raising=False)
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path / "parts", often, kill_at(6)))
    told = []
    train(Job(run_spec(), {}, tmp_path / "parts", often, told.append))
    assert [news["step"] for news in told] == [6]  # of the last epoch alone
    train(Job(run_spec(), {}, tmp_path / "whole", RUNTIME, silent))
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


def test_a_run_killed_again_and_again_gets_there(tmp_path):
    spec, often = run_spec(), replace(RUNTIME, checkpoint_every_s=0.0)
    for step in (2, 3, 6):
        with pytest.raises(KilledError):
            train(Job(spec, {}, tmp_path / "parts", often, kill_at(step)))
    train(Job(spec, {}, tmp_path / "parts", often, silent))
    train(Job(spec, {}, tmp_path / "whole", RUNTIME, silent))
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


def test_a_resumed_run_counts_the_time_spent_before(tmp_path):
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    before = time.perf_counter()
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path, often, lambda news: (time.sleep(0.1), kill_at(5)(news))))
    train(Job(run_spec(), {}, tmp_path / "other", RUNTIME, silent))
    cost = train(Job(run_spec(), {}, tmp_path, often, silent)).cost
    assert 0.4 < cost["wall_s"] < time.perf_counter() - before


def test_losses_read_in_intervals_give_the_same_curves_and_checkpoints(tmp_path, monkeypatch):
    """As on a GPU, where every reading waits for the device."""
    whole = train(Job(run_spec(), {}, tmp_path / "whole", RUNTIME, silent))
    made = journal_module.Journal.__init__

    def slow_to_read(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.interval = 3

    monkeypatch.setattr(journal_module.Journal, "__init__", slow_to_read)
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path / "parts", often, kill_at(6)))
    resumed = train(Job(run_spec(), {}, tmp_path / "parts", often, silent))
    assert timeless(resumed.curves) == timeless(whole.curves)
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


@pytest.mark.long
def test_a_process_killed_with_sigkill_resumes_to_the_same_bytes(tmp_path):
    spec = run_spec("scalekd", recipe=replace(RECIPE, epochs=60))
    train(Job(spec, {}, tmp_path / "whole", RUNTIME, silent))
    folder = tmp_path / "killed"
    folder.mkdir()
    order = encode(Job(spec, {}, folder, replace(RUNTIME, checkpoint_every_s=0.0), silent), parent=None)
    (folder / "launch.json").write_text(json.dumps(order))
    command = [sys.executable, "-m", "hkd.tasks.worker", str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"RANK": "0"})
    while not (folder / "report.json").exists() or json.loads((folder / "report.json").read_text())["step"] < 20:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "student.safetensors").exists()
    train(Job(spec, {}, folder, RUNTIME, silent))
    assert left_in(folder) == left_in(tmp_path / "whole")


# --- checkpoints that do not fit


def test_a_checkpoint_of_another_spec_is_set_aside_and_the_run_starts_over(tmp_path, caplog):
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path / "parts", often, kill_at(3)))
    train(Job(run_spec(seed=1), {}, tmp_path / "parts", often, silent))
    assert "it is of another run" in caplog.text
    train(Job(run_spec(seed=1), {}, tmp_path / "whole", RUNTIME, silent))
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_what_lies_in_the_place_of_a_checkpoint_is_set_aside(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    for name in ("checkpoint.pt", "checkpoint.pt.damaged"):  # a name that is taken is left alone
        (tmp_path / name).mkdir()
        (tmp_path / name / "inside").touch()
    if kind != "folder":
        os.rename(path, tmp_path / "elsewhere")
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("nowhere")
    run = Checkpoints(path, run_spec(), 0.0, Meter())
    assert run._read() is None
    assert sorted(p.name for p in tmp_path.glob("checkpoint*")) == ["checkpoint.pt.damaged", "checkpoint.pt.damaged.2"]


@pytest.mark.parametrize("size", [0, 200_000])
def test_a_truncated_checkpoint_is_set_aside_and_the_run_starts_over(tmp_path, caplog, size):
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path / "parts", often, kill_at(3)))
    path = tmp_path / "parts" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:size])
    train(Job(run_spec(), {}, tmp_path / "parts", RUNTIME, silent))
    assert "the run starts over" in caplog.text
    assert (tmp_path / "parts" / "checkpoint.pt.damaged").exists()
    train(Job(run_spec(), {}, tmp_path / "whole", RUNTIME, silent))
    assert left_in(tmp_path / "parts") == left_in(tmp_path / "whole")


def of_version_1(content):
    """A checkpoint as it was before it had a digest: what torch.save writes, alone."""
    return content[content.index(b"PK") :]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a run that was killed in its fifth step."""
    folder, often = tmp_path_factory.mktemp("run") / "parts", replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, folder, often, kill_at(5)))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of the same run, not interrupted."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    train(Job(run_spec(), {}, folder, RUNTIME, silent))
    return folder


def flipped(place):
    """Changes one bit at a share of the file."""

    def flip(content):
        at = min(len(content) - 1, int(place * len(content)))
        return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]

    return flip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        *((flipped(place), "") for place in (0, 1e-9, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1)),
        (lambda content: content + b"more", "digest does not match"),
        (lambda content: content[:-1], "digest does not match"),
        (lambda content: content[:30], "damaged"),
        (of_version_1, "of an earlier version"),
    ],
)
def test_a_damaged_checkpoint_never_moves_a_digit(killed, whole, tmp_path, caplog, change, why):
    """Each is set aside, told in one sentence, and the run ends as one that was not interrupted."""
    shutil.copytree(killed, tmp_path / "parts")
    path = tmp_path / "parts" / "checkpoint.pt"
    path.write_bytes(change(path.read_bytes()))
    train(Job(run_spec(), {}, tmp_path / "parts", RUNTIME, silent))
    (told,) = (record.message for record in caplog.records if "checkpoint" in record.message)
    assert why in told
    assert told.endswith("kept as checkpoint.pt.damaged, and the run starts over")
    assert left_in(tmp_path / "parts") == left_in(whole)


@pytest.mark.parametrize("part", ["student", "optimizer", "spent", "position"])
def test_a_checkpoint_of_other_code_leaves_nothing_in_the_run_that_starts_over(killed, whole, tmp_path, caplog, part):
    shutil.copytree(killed, tmp_path / "parts")
    path = tmp_path / "parts" / "checkpoint.pt"
    content = torch.load(io.BytesIO(of_version_1(path.read_bytes())), weights_only=True)
    content[part].popitem()
    content[part]["new"] = 1
    rest = io.BytesIO()
    torch.save(content, rest)
    path.write_bytes(checkpoint_module.head(hashlib.sha256(rest.getvalue()).hexdigest()) + rest.getvalue())
    train(Job(run_spec(), {}, tmp_path / "parts", replace(RUNTIME, checkpoint_every_s=0.0), silent))
    assert "it does not fit this run" in caplog.text
    assert left_in(tmp_path / "parts") == left_in(whole)


def test_a_checkpoint_is_loaded_without_running_code(tmp_path, monkeypatch):
    loaded = []
    load = torch.load
    monkeypatch.setattr(checkpoint_module.torch, "load", lambda *a, **k: (loaded.append(k), load(*a, **k))[1])
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path, often, kill_at(3)))
    train(Job(run_spec(), {}, tmp_path, often, silent))
    assert [options["weights_only"] for options in loaded] == [True]


def test_an_interrupted_write_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    often = replace(RUNTIME, checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(), {}, tmp_path, often, kill_at(3)))
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        train(Job(run_spec(), {}, tmp_path, often, silent))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


# --- what cannot change a number


def test_the_supervised_loop_is_a_plain_loop_to_the_bit(tmp_path):
    train(Job(run_spec(), {}, tmp_path, RUNTIME, silent))
    data = Digits(DATA.options, tmp_path)
    loader = Loader(data.load("train", seed=0, select=False), RECIPE, num_classes=10, seed=0)
    seed_all(0, "init")
    model = TapModel(STUDENT, 10)
    plain = [p for p in model.net.parameters() if p.ndim <= 1 or any(p is b for b in bias_tables(model.net))]
    rest = [p for p in model.net.parameters() if not any(p is q for q in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.05}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    seed_all(0, "train", 0)
    model.train()
    for step, batch in enumerate(batch for epoch in range(3) for batch in loader.epoch(epoch)):
        rate = 1e-3 * step / 2 if step < 2 else 0.5e-3 * (1 + math.cos(math.pi * step / 6))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        F.cross_entropy(model(batch.x).logits, batch.y).backward()
        optimizer.step()
    found = load_file(tmp_path / "student.safetensors")
    for name, tensor in model.net.state_dict().items():
        assert torch.equal(found[name], tensor), name


def bias_tables(net):
    """What timm's Swin exempts from weight decay beside norms and biases."""
    return [p for name, p in net.named_parameters() if "relative_position_bias_table" in name]


def test_measuring_gradient_norms_changes_nothing(tmp_path, monkeypatch):
    spec = run_spec("scalekd", recipe=replace(RECIPE, clip_grad=0.5))
    with_norms = train(Job(spec, {}, tmp_path / "with", RUNTIME, silent))
    monkeypatch.setattr(journal_module.Journal, "wants_norms", lambda self, epoch, step: False)
    train(Job(spec, {}, tmp_path / "without", RUNTIME, silent))
    assert any(name.startswith("grad_norm/") for name in with_norms.curves[0])
    assert left_in(tmp_path / "with") == left_in(tmp_path / "without")


def test_gradient_norms_are_measured_in_five_epochs(tmp_path):
    outcome = train(Job(run_spec(recipe=replace(RECIPE, epochs=13)), {}, tmp_path, RUNTIME, silent))
    assert [line["epoch"] for line in outcome.curves if "grad_norm/task" in line] == [1, 4, 7, 10, 13]


def test_the_student_starts_equal_for_every_method(tmp_path):
    """With a vanishing rate, what is left is the initialisation."""
    frozen = replace(RECIPE, epochs=1, lr=1e-30, weight_decay=0.0)
    seed_all(0, "init")
    fresh = TapModel(STUDENT, 10).net.state_dict()
    for method in ("supervised", "kd", "fd", "scalekd"):
        train(Job(run_spec(method, recipe=frozen), {}, tmp_path / method, RUNTIME, silent))
        found = load_file(tmp_path / method / "student.safetensors")
        for name, tensor in fresh.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-20)


def test_micro_batches_give_the_gradients_of_the_whole_batch(tmp_path):
    """Without batch norm and stochastic depth, accumulation changes rounding only."""
    spec = run_spec("kd", student=replace(STUDENT, kwargs=STUDENT.kwargs | {"drop_path_rate": 0.0}))
    whole = train(Job(spec, {}, tmp_path / "whole", RUNTIME, silent))
    parts = train(Job(spec, {}, tmp_path / "parts", replace(RUNTIME, micro_batch=3), silent))
    for one, other in zip(whole.curves, parts.curves, strict=True):
        assert one["loss/kd"] == pytest.approx(other["loss/kd"], rel=1e-4)
        assert one["train_top1"] == other["train_top1"]
    first, second = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "parts"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=2e-4)


# --- failures with a meaning


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    """The last gradient may overflow without any loss to show it."""
    one = replace(RECIPE, epochs=1, batch_size=20)
    monkeypatch.setattr(
        Supervised,
        "forward",
        lambda self, batch, taps_s, taps_t: {"task": (taps_s.logits - taps_s.logits).sqrt().sum()},
    )
    with pytest.raises(Diverged, match="not finite at step 0: weights=nan"):
        train(Job(run_spec(recipe=replace(one, warmup_epochs=0.0)), {}, tmp_path, RUNTIME, silent))
    assert not (tmp_path / "student.safetensors").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_one_sentence(tmp_path, monkeypatch, error):
    def forward(self, batch, taps_s, taps_t):
        raise error

    monkeypatch.setattr(Supervised, "forward", forward)
    with pytest.raises(UserError, match="Out of memory with 4 images per forward pass; set micro_batch of the machine"):
        train(Job(run_spec(), {}, tmp_path, replace(RUNTIME, micro_batch=4), silent))


@pytest.mark.parametrize("interval", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_terms(tmp_path, monkeypatch, interval):
    seen = []

    def forward(self, batch, taps_s, taps_t):
        seen.append(1)
        loss = self.criterion(taps_s.logits, batch.y)
        return {"task": loss, "other": loss * (math.nan if len(seen) == 3 else 1.0)}

    made = journal_module.Journal.__init__

    def reading(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.interval = interval

    monkeypatch.setattr(journal_module.Journal, "__init__", reading)
    monkeypatch.setattr(Supervised, "forward", forward)
    with pytest.raises(Diverged, match=r"not finite at step 2: task=.*, other=nan") as caught:
        train(Job(run_spec(), {}, tmp_path, RUNTIME, silent))
    assert caught.value.step == 2
    assert math.isfinite(caught.value.terms["task"])
    assert not (tmp_path / "student.safetensors").exists()


def test_a_rate_that_explodes_is_recorded_as_diverged(tmp_path):
    wild = replace(RECIPE, epochs=20, optimizer="momentum", lr=1e6, warmup_epochs=0.0)
    with pytest.raises(Diverged):
        train(Job(run_spec(recipe=wild), {}, tmp_path, RUNTIME, silent))
    assert (tmp_path / "curves.jsonl").exists()


def test_a_training_run_without_recipe_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs a recipe"):
        train(Job(run_spec(recipe=None), {}, tmp_path, RUNTIME, silent))


def test_changed_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the one this run was planned with"):
        train(Job(run_spec(data=replace(DATA, fingerprint="0" * 64)), {}, tmp_path, RUNTIME, silent))


def test_an_unknown_option_of_a_method_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'tau'"):
        train(Job(run_spec("kd", options={"tauu": 2.0}), {}, tmp_path, RUNTIME, silent))


def test_an_impossible_option_of_a_method_is_one_sentence_naming_it(tmp_path):
    with pytest.raises(UserError, match="Method 'kd': tau must be greater than 0, got -1"):
        train(Job(run_spec("kd", options={"tau": -1.0}), {}, tmp_path, RUNTIME, silent))


def test_a_method_without_its_teacher_is_refused(tmp_path):
    with pytest.raises(Refused, match="teacher"):
        train(Job(run_spec("kd", teachers={}), {}, tmp_path, RUNTIME, silent))


def test_a_teacher_without_a_file_is_refused(tmp_path):
    teachers = {"teacher": TeacherSpec(model=TEACHER, weights=Weights(kind="run", id="abc"))}
    with pytest.raises(UserError, match="No file was given for the weights 'abc'"):
        train(Job(run_spec("kd", teachers=teachers), {}, tmp_path, RUNTIME, silent))


# --- starting from weights, and evaluation


def test_an_evaluation_measures_the_weights_it_is_given(tmp_path):
    outcome = train(Job(run_spec(), {}, tmp_path / "trained", RUNTIME, silent))
    spec = run_spec(task="evaluate", recipe=None, init=Weights(kind="run", id="k"))
    weights = {"k": tmp_path / "trained" / "student.safetensors"}
    again = evaluate(Job(spec, weights, tmp_path / "measured", RUNTIME, silent))
    assert again.metrics == outcome.metrics
    assert left_in(tmp_path / "measured") == left_in(tmp_path / "trained")


def test_an_evaluation_without_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match="needs weights"):
        evaluate(Job(run_spec(task="evaluate", recipe=None), {}, tmp_path, RUNTIME, silent))


@pytest.mark.parametrize("classes", [0, 7, 10])
def test_fine_tuning_starts_from_the_weights_and_only_a_differing_classifier_is_new(tmp_path, caplog, classes):
    seed_all(5)
    given = TapModel(STUDENT, classes).net.state_dict()
    save_weights(given, tmp_path / "given.safetensors")
    frozen = replace(RECIPE, epochs=1, lr=1e-30, weight_decay=0.0)
    spec = run_spec(recipe=frozen, init=Weights(kind="run", id="k"))
    with caplog.at_level("INFO"):
        train(Job(spec, {"k": tmp_path / "given.safetensors"}, tmp_path / "tuned", RUNTIME, silent))
    found = load_file(tmp_path / "tuned" / "student.safetensors")
    same = [name for name in given if classes == 10 or not name.startswith("head.fc")]
    for name in same:
        torch.testing.assert_close(found[name], given[name], rtol=0, atol=1e-20)
    assert found["head.fc.weight"].shape[0] == 10
    assert ("head.fc.weight, head.fc.bias is new" in caplog.text) == (classes != 10)


def test_fine_tuning_refuses_weights_of_another_architecture(tmp_path):
    save_weights(TapModel(TEACHER, 7).net.state_dict(), tmp_path / "given.safetensors")
    with pytest.raises(UserError, match="another architecture"):
        train(
            Job(
                run_spec(init=Weights(kind="run", id="k")),
                {"k": tmp_path / "given.safetensors"},
                tmp_path / "run",
                RUNTIME,
                silent,
            ),
        )


def test_settings_are_chosen_on_validation_rows_only(tmp_path):
    train(Job(run_spec(evaluate_on="val"), {}, tmp_path, RUNTIME, silent))
    rows = np.load(tmp_path / "predictions.npz")["row"]
    assert rows.min() >= 1029
    assert rows.max() < 1287


def test_the_moving_average_is_what_is_kept_and_evaluated(tmp_path):
    still = replace(RECIPE, ema_decay=0.999999)
    train(Job(run_spec(recipe=still), {}, tmp_path, RUNTIME, silent))
    seed_all(0, "init")
    fresh = TapModel(STUDENT, 10).net.state_dict()
    found = load_file(tmp_path / "student.safetensors")
    for name, tensor in fresh.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


def test_mixed_precision_trains_and_keeps_float32_weights(tmp_path):
    outcome = train(Job(run_spec("kd", recipe=replace(RECIPE, precision="bf16-mixed")), {}, tmp_path, RUNTIME, silent))
    assert "grad_norm/kd" in outcome.curves[0]
    assert {t.dtype for t in load_file(tmp_path / "student.safetensors").values() if t.is_floating_point()} == {
        torch.float32
    }


def test_a_spec_survives_the_way_to_a_worker_and_back():
    spec = run_spec("scalekd", init=Weights(kind="file", id="f"), recipe=replace(RECIPE, milestones=(1.0, 2.0)))
    job = Job(spec, {"f": Path("weights.safetensors")}, Path("folder"), RUNTIME, silent)
    back = decode(json.loads(json.dumps(encode(job, parent=None))), job.folder, silent)
    assert back.runtime == replace(RUNTIME, data_root=RUNTIME.data_root.resolve())
    assert back.weights == {"f": Path("weights.safetensors").resolve()}
    back = back.spec
    assert checkpoint_module.spec_digest(back) == checkpoint_module.spec_digest(spec)
    assert back.recipe == spec.recipe


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("method", ["kd", "scalekd"])
def test_a_gpu_trains_and_resumes(tmp_path, precision, method):
    recipe = replace(RECIPE, epochs=40, precision=precision, views=2, clip_grad=1.0, ema_decay=0.9)
    cuda = replace(RUNTIME, accelerator="cuda", checkpoint_every_s=0.0)
    with pytest.raises(KilledError):
        train(Job(run_spec(method, recipe=recipe), {}, tmp_path, cuda, kill_at(64)))
    told = []
    outcome = train(Job(run_spec(method, recipe=recipe), {}, tmp_path, cuda, told.append))
    assert outcome.cost["steps"] == 80
    assert min(news["step"] for news in told) >= 64  # what was trained before is not trained again
    assert outcome.cost["gpu_s"] > 0
    assert outcome.curves[-1]["loss"] < outcome.curves[0]["loss"]


@pytest.mark.parametrize(("device", "processes", "expected"), [("cuda", 4, 40.0), ("cuda", 1, 10.0), ("cpu", 4, 0.0)])
def test_gpu_seconds_count_every_process(device, processes, expected):
    assert gpu_seconds(10.0, torch.device(device), processes) == expected


def test_a_checkpoint_that_takes_long_is_written_less_often(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(checkpoint_module.time, "perf_counter", lambda: now)
    kept = Checkpoints(tmp_path / "c.pt", run_spec(), 5.0, Meter())
    fabric = make_fabric(RUNTIME, "32-true")
    now = 5.0
    assert kept.due(fabric)
    kept.took = 2.0  # 2 % of 100 s
    now = 99.0
    assert not kept.due(fabric)
    now = 100.0
    assert kept.due(fabric)
    kept.took = 0.01  # cheap: the interval that was asked for
    assert kept.interval == 5.0
    often = Checkpoints(tmp_path / "c.pt", run_spec(), 0.0, Meter())
    often.took = 100.0  # 0 is always
    assert often.due(fabric)
