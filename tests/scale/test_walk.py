"""The paper's scale starts: each paper's pair trains, evaluates and resumes, in every way that runs are carried out.

Through the real commands, in a folder outside the checkout. The commands of the cluster are those of docs/cluster.md.
"""

import csv
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.records.store import Store
from hkd.data.imagenet1k import ImageNet1k
from hkd.data.sources import FileSource
from tests.scale import walk

ROOT = Path(__file__).parents[2]
LOADERS = "{accelerator: cpu, loader_workers: 2}"
WAYS = {  # how runs are carried out: the profile's machine
    "own workers": LOADERS,
    "two devices": "{accelerator: cpu, devices: 2, loader_workers: 1}",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """Data and weights, which runs only read."""
    root = tmp_path_factory.mktemp("walk")
    walk.write(root, machine=LOADERS)
    return root


@pytest.fixture
def place(tmp_path, things):
    """A working folder with the profile."""
    walk.write_profile(tmp_path, machine=LOADERS)
    return tmp_path


@pytest.fixture
def environment(place, things):
    """This Python's commands and this code, one thread, stores of the test's own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HKD_", "DASK_"))}
    return {
        **own,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HKD_DATA": str(things / "data"),
        "HKD_WEIGHTS": str(things / "weights"),
        "HKD_RUNS": str(place / "runs"),
        "HKD_RESULTS": str(place / "results"),
    }


@pytest.fixture
def start(place, environment):
    """Starts a command line in the working folder; what still runs ends with the test. `said`: what it printed."""
    started = []

    def begin(line, name="run"):
        with open(place / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                ["/bin/bash", "-c", line],
                cwd=place,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
        return process

    begin.said = lambda name="run": (place / f"{name}.log").read_text()
    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(table, more=""):
    return f"hkd run {table} --profile walk.yaml {more}"


def records(place):
    store = Store(place / "runs")
    return [store.load(key) for key in [*store.keys()]]


def done(place, table):
    """Whether every run of the pair is done and every cell that has runs says so, and trained what it should."""
    found = records(place)
    assert {(record.label, record.status, record.reason) for record in found if record.status != "done"} == set()
    assert len(found) == walk.PAIRS[table]
    with open(place / "results" / "walk" / table / "table.csv") as lines:
        states = {line["status"] for line in csv.DictReader(lines)}
    assert states <= {"done", "not in this profile", "quoted"}
    assert "done" in states
    trained = [record for record in found if record.spec["recipe"] is not None]
    assert all(record.cost["steps"] >= 1 for record in trained)
    assert all(record.metrics for record in found if record.spec["task"] != "pretrain")
    return True


def until(condition, seconds=600):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_odd_image_of_the_tree_is_read_as_a_colour_image(things):
    options = {"image_size": 32, "expected": {"classes": 1000, "train": 1000, "test": 1000}}
    data = ImageNet1k(options, things / "data")
    assert data.missing() is None
    assert data.num_classes == walk.CLASSES
    split = data.load("test", seed=0, select=False)
    assert len(split) == walk.CLASSES
    source = FileSource(split.paths, split.side, split.crop_pct, None, fill=False)
    shown = source(torch.arange(len(walk.odd_images())), None, None)
    assert shown.corrupt == {}
    assert shown.x.shape == (len(walk.odd_images()), 3, 32, 32)
    assert (shown.x[1, 0] == shown.x[1, 1]).all()  # the grey one, in three equal channels


def test_the_first_papers_pair_trains_and_evaluates_with_loader_workers(place, start):
    walk.write_profile(place, machine=LOADERS, batch=200)
    assert start(run("scalekd_table3", "--workers 0")).wait(timeout=300) == 0, start.said()
    assert done(place, "scalekd_table3")


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("table", walk.PAIRS)
def test_each_papers_pair_trains_evaluates_and_resumes_after_kill_9(place, start, table, way):
    walk.write_profile(place, machine=WAYS[way])
    process = start(run(table, "--workers 1"), "killed")
    until(lambda: process.poll() is not None or [*(place / "runs").glob("*/checkpoint.pt")] or records(place))
    assert process.poll() is None, start.said("killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # what torchrun started notices that it is alone
    assert start(run(table, "--workers 1")).wait(timeout=900) == 0, start.said()
    assert done(place, table)


@pytest.mark.long
def test_each_papers_pair_goes_through_the_scheduler_and_worker_of_the_docs(place, start):
    block = re.search(r"```sh\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)[1]
    lines = [line.partition("  #")[0].strip() for line in block.splitlines()]
    scheduler, worker, command = (
        line.replace("/shared/hkd", shlex.quote(str(place))) for line in lines if not line.startswith("export")
    )
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8786)) == 0:
            pytest.skip("another dask scheduler has this machine's port 8786")
    began = [start(f"exec {scheduler}", "scheduler"), start(f"exec {worker}", "worker")]
    total = 0
    for table, count in walk.PAIRS.items():
        asked = command.replace("scalekd_table3 --profile cifar", f"{table} --profile walk.yaml")
        assert asked != command
        assert start(asked, table).wait(timeout=900) == 0, start.said(table)
        total += count
        assert [record.status for record in records(place)] == ["done"] * total
    assert all(process.poll() is None for process in began)


@pytest.mark.long
@pytest.mark.parametrize("table", walk.PAIRS)
def test_each_papers_pair_runs_over_two_nodes_with_the_command_that_was_printed(place, start, table):
    walk.write_profile(place, machine="{accelerator: cpu, num_nodes: 2, loader_workers: 1}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code, before = 1, -1
    while code:
        code = start(run(table, "--workers 1")).wait(timeout=300)
        now = sum(record.status == "done" for record in records(place))
        printed = re.findall(r"^missing: .*on each of them run `(.*)`, where HOST:PORT is", start.said(), re.M)
        assert now > before, start.said()
        assert bool(printed) == bool(code), start.said()
        before = now
        for command in printed:
            nodes = [start(command.replace("HOST:PORT", f"127.0.0.1:{port}"), f"node{number}") for number in range(2)]
            for number, node in enumerate(nodes):
                assert node.wait(timeout=300) == 0, start.said(f"node{number}")
    assert done(place, table)
