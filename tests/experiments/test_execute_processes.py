"""What is left when processes are killed or interrupted, and a scheduler of one's own: with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from experiments.records.store import Store

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
import dask, distributed
from experiments.execution.schedule import run_plan
from experiments.records.store import Store
from hkd.errors import UserError
from hkd.training.job import Runtime
from tests.experiments import fake_tasks
from tests.experiments.fake_tasks import fake_plan, fake_run

if __name__ == "__main__":
    fake_tasks.register()
    seconds = float(sys.argv[2])
    runs = fake_run("short"), fake_run("long0", seconds=seconds), fake_run("long1", seconds=seconds)
    scheduler_file = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    with dask.config.set({"distributed.worker.preload": ["tests.experiments.fake_tasks"]}):
        try:
            report = run_plan(
                fake_plan(*runs), Store(Path(sys.argv[1])), workers=2, scheduler_file=scheduler_file,
                runtime=Runtime(accelerator="cpu"), on_event=lambda event: print(event.kind, event.key, flush=True),
            )
        except UserError as error:
            sys.exit(f"user error: {error}")
        except KeyboardInterrupt:
            sys.exit(130)
    print("executed", sorted(report.trained))
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def driver(tmp_path):
    """Starts the driver in a process group of its own, as a shell does; ends what is left of it afterwards."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    started = []

    def start(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "runs"), *map(str, arguments)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell without job control starts background jobs, and so perhaps this test, with Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, seconds=180.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


def begun(store, key):
    """How often a run was begun: its attempts file has one line per process."""
    path = store.folder(key) / "attempts"
    return len(path.read_text().split()) if path.exists() else 0


def cluster(scheduler_file):
    """Commands of a scheduler and of a worker that knows the fake tasks, and how to start them quietly."""
    options = ["--scheduler-file", str(scheduler_file), "--no-dashboard"]
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options, "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", *options, "--nthreads", "1", "--no-nanny"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    quiet = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return dask, [*worker, "--preload", "tests.experiments.fake_tasks"], quiet


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def interrupt(process, store, send):
    """Let the short run finish and a long one begin, then send a signal; the processes that were there before it."""
    wait_for(lambda: store.load("short") is not None and begun(store, "long0") + begun(store, "long1") > 0)
    children = descendants(process)
    assert len(children) >= 2
    send(process)
    return children


@pytest.mark.parametrize("who", ["driver", "group"])
def test_ctrl_c_ends_all_processes_and_keeps_what_is_finished(driver, tmp_path, who):
    store = Store(tmp_path / "runs")
    process = driver(60)
    send = {
        "driver": lambda process: process.send_signal(signal.SIGINT),
        "group": lambda process: os.killpg(process.pid, signal.SIGINT),  # what a terminal does
    }[who]
    children = interrupt(process, store, send)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 130, output
    wait_for(lambda: not any(child.is_running() for child in children), 10)
    assert list(store.keys()) == ["short"]
    assert "Traceback" not in output


def test_a_killed_driver_leaves_no_process_and_the_next_command_does_the_rest(driver, tmp_path):
    store = Store(tmp_path / "runs")
    process = driver(60)
    children = interrupt(process, store, lambda process: process.kill())
    wait_for(lambda: not any(alive(child) for child in children), 15)
    assert list(store.keys()) == ["short"]
    again = driver(0)
    output, _ = again.communicate(timeout=180)
    assert again.returncode == 0, output
    assert "executed ['long0', 'long1']" in output


def alive(child):
    try:
        return child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
@pytest.mark.long
def test_two_drivers_of_the_same_runs_do_each_run_once(driver, tmp_path):
    store = Store(tmp_path / "runs")
    both = [driver(1.0), driver(1.0)]
    for process in both:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
    assert [begun(store, key) for key in ("short", "long0", "long1")] == [1, 1, 1]


def test_a_running_scheduler_is_joined_and_its_workers_do_the_runs(driver, tmp_path):
    scheduler_file = tmp_path / "scheduler.json"
    dask, worker, quiet = cluster(scheduler_file)
    started = [subprocess.Popen(dask, **quiet)]
    try:
        wait_for(scheduler_file.is_file)
        process = driver(0, scheduler_file)  # before any worker has joined
        started.append(subprocess.Popen(worker, **quiet))
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
        assert "executed ['long0', 'long1', 'short']" in output
        assert Store(tmp_path / "runs").load("short").status == "done"
        pids = {(tmp_path / "runs" / key / "attempts").read_text() for key in ("short", "long0", "long1")}
        assert pids == {f"{started[1].pid}\n"}
    finally:
        for each in reversed(started):
            each.terminate()
            each.wait(timeout=180)


@pytest.mark.long
def test_a_scheduler_that_is_started_again_is_gone_on_with(driver, tmp_path):
    store, scheduler_file = Store(tmp_path / "runs"), tmp_path / "scheduler.json"
    dask, worker, quiet = cluster(scheduler_file)
    started = [subprocess.Popen(dask, **quiet)]
    try:
        wait_for(scheduler_file.is_file)
        process = driver(3, scheduler_file)
        started.append(subprocess.Popen(worker, **quiet))
        wait_for(lambda: begun(store, "long0") or begun(store, "long1"))
        for each in started:
            each.kill()
            each.wait()
        scheduler_file.unlink()
        started += [subprocess.Popen(dask, **quiet), subprocess.Popen(worker, **quiet)]
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
        assert "\nlost " in output
        assert "executed ['long0', 'long1', 'short']" in output
        assert {store.load(key).status for key in ("short", "long0", "long1")} == {"done"}
    finally:
        for each in reversed(started):
            each.kill()
            each.wait(timeout=180)


def test_a_scheduler_file_that_is_not_there_is_one_sentence(driver, tmp_path):
    process = driver(0, tmp_path / "none.json")
    output, _ = process.communicate(timeout=180)
    assert f"user error: There is no scheduler file {tmp_path / 'none.json'}" in output
