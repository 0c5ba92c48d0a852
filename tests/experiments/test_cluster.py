"""What docs/cluster.md says, done on this machine with its commands: a scheduler and a worker, several nodes."""

import csv
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.records.store import Store
from experiments.results.verdicts import BY_VALUE
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.weights import save_weights

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "cluster.md"
TABLE = "scalekd_table3"
RUNS = 4  # the teacher is measured; one pair x three methods x one seed

# The paper's profile but for its size: its recipes (RandAugment, erasing, resized crops) and weights from a file, on a
# class folder, with miniature models. One pair has models.
WALK = """\
name: walk
extends: paper
alone: [data, models, teachers, students, methods, tasks, machine]
title: the paper's profile with small images, small models and one epoch
by_value: false
model_kind: miniature
data: {imagenet1k: {name: folder, options: {folder: birds, classes: 2, image_size: 32}, stand_in: two kinds of birds}}
models: {swin_l: swin_l_mini, convnext_t: convnext_t_mini}
teachers: {swin_l: {weights: swin_l.safetensors}}
students: {convnext_t: {advanced: advanced_convnext}}
override: {epochs: 1, batch_size: 4, warmup_epochs: 0.0}
methods: {scalekd: {heads_s3: 4, heads_s4: 4}}
machine: MACHINE
"""

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def shared(tmp_path):
    """What the machines of a cluster share: data, weights, and a checkout of this code with one profile more."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("finch", "wren")):
            folder = tmp_path / "data" / "birds" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(80 * label, 160 + 80 * label, (40, 48 + number, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (tmp_path / "weights").mkdir()
    torch.manual_seed(0)
    teacher = TapModel(ZOO["swin_l_mini"], 2).net.state_dict()
    save_weights(teacher, tmp_path / "weights" / "swin_l.safetensors")
    checkout = tmp_path / "hkd" / "checkout"
    for package in ("hkd", "analysis", "experiments"):
        shutil.copytree(ROOT / package, checkout / package)
    (checkout / "dvc.yaml").write_text("stages: {}\n")
    (checkout / "params.yaml").write_text("profile: walk\n")
    return tmp_path


def walk(shared, machine):
    """Add the profile to the checkout."""
    folder = shared / "hkd" / "checkout" / "experiments" / "profiles"
    (folder / "walk.yaml").write_text(WALK.replace("MACHINE", machine))


@pytest.fixture
def environment(shared):
    """This Python's commands, the checkout's code, one thread, and none of a user's own folders."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HKD_", "DASK_"))}
    commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**own, "PATH": commands, "PYTHONPATH": str(shared / "hkd" / "checkout"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def shell(shared, environment):
    """Starts a command line in the checkout; what is still running ends with the test."""
    started = []

    def start(line, name):
        log = open(shared / f"{name}.log", "w")  # noqa: SIM115, it outlives this call
        process = subprocess.Popen(
            line,
            shell=True,
            executable="/bin/bash",
            cwd=shared / "hkd" / "checkout",
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started.append((process, log))
        return process

    yield start
    for process, log in reversed(started):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        log.close()


def said(shared, name):
    return (shared / f"{name}.log").read_text()


def commands_of_docs(shared):
    """The lines of the first block of commands: exports, scheduler, worker, run; their folders are the test's."""
    block = re.search(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    lines = [
        line.partition("  #")[0].strip().replace("/shared", shlex.quote(str(shared))) for line in block.splitlines()
    ]
    assert [line.split()[0] for line in lines] == ["export", "dask", "hkd", "hkd"]
    return lines


def statuses(shared):
    store = Store(shared / "hkd" / "runs")
    records = [store.load(key) for key in [*store.keys()]]
    return {record.label: (record.status, record.reason) for record in records}


def table(shared):
    with open(shared / "hkd" / "checkout" / "results" / "walk" / TABLE / "table.csv") as lines:
        return [
            line for line in csv.DictReader(lines) if line["status"] != "not in this profile"
        ]  # rows without models


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_the_commands_of_the_docs_bring_runs_with_loader_workers_through_a_scheduler(shared, shell):
    if not is_free(8786):
        pytest.skip("another dask scheduler has this machine's port 8786")
    walk(shared, "{accelerator: cpu, loader_workers: 2}")
    export, scheduler, worker, run = commands_of_docs(shared)
    began = [shell(f"{export}; exec {line}", name) for line, name in ((scheduler, "scheduler"), (worker, "worker"))]
    run = run.replace("--profile cifar", "--profile walk")  # the one change
    assert shell(f"{export}; {run}", "run").wait(timeout=600) == 0, said(shared, "run") + str(statuses(shared))
    assert f"{RUNS} of {RUNS} runs executed" in said(shared, "run")
    assert all(process.poll() is None for process in began)
    assert list(statuses(shared).values()) == [("done", None)] * RUNS
    assert [line["status"] for line in table(shared)] == ["done"] * 3
    assert "(overridden" not in said(shared, "run")  # of a profile that is not held against the paper's values
    assert not {line["verdict"] for line in table(shared)} & set(BY_VALUE)
    assert shell(f"{export}; hkd run {TABLE} --profile walk", "again").wait(timeout=100) == 0
    assert f"0 of {RUNS} runs executed" in said(shared, "again")


def test_a_worker_that_may_not_start_loader_workers_is_refused_in_a_sentence(shared, shell):
    walk(shared, "{accelerator: cpu, loader_workers: 2}")
    export = commands_of_docs(shared)[0]
    file = f"--scheduler-file {shlex.quote(str(shared / 'hkd' / 'scheduler.json'))}"
    shell(f"exec dask scheduler {file} --host 127.0.0.1 --port 0 --no-dashboard", "scheduler")
    shell(f"{export}; exec dask worker {file} --nthreads 1", "worker")
    assert shell(f"{export}; hkd run {TABLE} --profile walk {file}", "run").wait(timeout=200) == 2
    assert re.search(
        r"^Worker \S+ may not start the 2 loader workers of this profile; start workers with `hkd worker` .*\.$",
        said(shared, "run"),
        re.MULTILINE,
    )


def test_own_workers_train_with_loader_workers(shared, shell):
    walk(shared, "{accelerator: cpu, loader_workers: 2}")
    export = commands_of_docs(shared)[0]
    assert shell(f"{export}; hkd run {TABLE} --profile walk --workers 1", "run").wait(timeout=600) == 0, statuses(
        shared
    )
    assert list(statuses(shared).values()) == [("done", None)] * RUNS


def test_the_command_printed_for_several_nodes_is_run_on_each_and_the_next_run_takes_up_the_result(shared, shell):
    walk(shared, "{accelerator: cpu, num_nodes: 2}")
    export = commands_of_docs(shared)[0]
    port, done = free_port(), 0
    while done < RUNS:
        code = shell(f"{export}; hkd run {TABLE} --profile walk --workers 1", "run").wait(timeout=200)
        printed = re.findall(r"^missing: .*on each of them run `(.*)`, where HOST:PORT is", said(shared, "run"), re.M)
        before, done = done, sum(status == "done" for status, _ in statuses(shared).values())
        assert (code, bool(printed)) == ((0, False) if done == RUNS else (1, True)), said(shared, "run")
        assert done > before or not before, said(shared, "run")
        for command in printed:
            filled = command.replace("HOST:PORT", f"127.0.0.1:{port}")
            # As a user's shell on the node would have it: nothing but what the command itself says.
            nodes = [shell(f"unset PYTHONPATH; cd /; {filled}", f"node{number}") for number in range(2)]
            for number, node in enumerate(nodes):
                assert node.wait(timeout=200) == 0, said(shared, f"node{number}")
    assert [line["status"] for line in table(shared)] == ["done"] * 3
    left = [path.name for path in (shared / "hkd" / "runs").rglob("*.json") if path.name != "record.json"]
    assert not {"launch.json", "outcome.json", "report.json"} & set(left)
