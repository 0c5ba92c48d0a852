"""A table through `hkd run --scheduler-file`, with dask's own commands on this machine, as docs/cluster.md says it."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.store import Store

ROOT = Path(__file__).parents[2]
TABLE = "scalekd_table3"
RUNS = 7  # one teacher, and two pairs x three methods x one seed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def place(tmp_path):
    """A folder that `hkd` takes for the repository: one seed, students of one epoch, nothing measured yet."""
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("profile: smoke\nseeds: 1\nrecipe: {epochs: 1}\n")
    return tmp_path


@pytest.fixture
def environment():
    """This checkout's code, one thread, and none of a user's own folders."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HKD_", "DASK_"))}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def scheduler_file(place, environment):
    """Of `dask scheduler` and one `dask worker` with one thread, which end with the test."""
    path = place / "scheduler.json"
    dask = str(Path(sys.executable).parent / "dask")
    common = ["--host", "127.0.0.1", "--scheduler-file", str(path), "--no-dashboard"]
    quiet = {"cwd": place, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen([dask, "scheduler", *common, "--port", "0"], **quiet)]
    try:
        until = time.monotonic() + 60
        while not path.is_file():
            assert started[0].poll() is None
            assert time.monotonic() < until, "the scheduler did not start"
            time.sleep(0.1)
        started.append(subprocess.Popen([dask, "worker", *common, "--nthreads", "1", "--no-nanny"], **quiet))
        yield path
    finally:
        for each in reversed(started):
            each.terminate()
            try:
                each.wait(timeout=20)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


def hkd(place, environment, *arguments):
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def test_a_table_finishes_on_the_workers_of_a_running_scheduler_and_needs_no_run_afterwards(
    place, environment, scheduler_file
):
    done = hkd(place, environment, "run", TABLE, "--profile", "smoke", "--scheduler-file", str(scheduler_file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RUNS} of {RUNS} runs executed" in done.stdout
    store = Store(place / "results" / "runs")
    keys = list(store.keys())
    assert [store.load(key).status for key in keys] == ["done"] * RUNS
    with open(place / "results" / "smoke" / TABLE / "table.csv") as table:
        assert {line["status"] for line in csv.DictReader(table)} == {"done", "refused"}  # rows without a mapping

    again = hkd(place, environment, "run", TABLE, "--profile", "smoke")
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"0 of {RUNS} runs executed" in again.stdout
