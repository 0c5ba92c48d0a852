"""Workers as jobs of Slurm, where `sbatch` and `srun` are stand-ins that start what they are given."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.execution.slurm import parameters, submit
from hkd.errors import UserError

ROOT = Path(__file__).parents[2]
SBATCH = """#!/bin/sh
# Starts every task of the array at once, as an empty cluster would.
for last; do :; done
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$last")
for task in $(seq 0 ${count:-0}); do
  SLURM_JOB_ID=7$task SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$task SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
  SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here sh "$last" >/dev/null 2>&1 &
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do case "$1" in --output|--error) shift;; esac; shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    return tmp_path


def test_parameters_are_names_with_values():
    assert parameters(["time=60", "partition=gpu=x"]) == {"time": 60, "partition": "gpu=x"}
    with pytest.raises(UserError, match="NAME=VALUE, such as time=1440, got 'gpu'"):
        parameters(["gpu"])


def test_what_cannot_be_is_a_sentence(slurm, monkeypatch):
    with pytest.raises(UserError, match="no parameter 'partitoin' here\\. Known: account,"):
        submit(2, slurm / "s.json", {"partitoin": "gpu"}, [], slurm / "logs")
    with pytest.raises(UserError, match="1 or more, got 0"):
        submit(0, slurm / "s.json", {}, [], slurm / "logs")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no Slurm here"):
        submit(2, slurm / "s.json", {}, [], slurm / "logs")


@pytest.mark.slow
@pytest.mark.long
def test_jobs_of_slurm_are_workers_of_the_scheduler(slurm):
    from distributed import Client

    file = slurm / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0"]
    scheduler = subprocess.Popen([*command, "--no-dashboard"], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        assert submit(2, file, {"time": 60}, ["--no-nanny"], slurm / "logs") == "7"
        until = time.monotonic() + 180
        while not file.exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        with Client(scheduler_file=str(file)) as client:
            client.wait_for_workers(2, timeout=180)
            assert [worker["nthreads"] for worker in client.scheduler_info()["workers"].values()] == [1, 1]
            client.retire_workers()
    finally:
        scheduler.terminate()
        scheduler.wait(timeout=180)
