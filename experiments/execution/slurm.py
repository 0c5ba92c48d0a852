"""Workers as one job array of Slurm, by submitit, which also queues again what was preempted or ran out of time."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.execution.pools import serve
from hkd.errors import UserError

OFTEN = 1000  # times that one worker may run out of time before it is not queued again


class Serve:
    """What a job does: be a worker of the scheduler until it is told to stop."""

    def __init__(self, scheduler_file: Path, options: Sequence[str]):
        self.scheduler_file, self.options = scheduler_file, tuple(options)

    def __call__(self) -> None:
        serve(self.scheduler_file, self.options)

    def checkpoint(self) -> Any:
        """What to queue when the job is about to end: the same again. Its run goes on from its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(count: int, scheduler_file: Path, parameters: Mapping[str, Any], options: Sequence[str], logs: Path) -> str:
    """Queue workers; returns the id of their job.

    Args:
        count: of workers.
        scheduler_file: on a file system that all nodes see; workers wait for it.
        parameters: of the job, as `sbatch` names them with underscores (partition, time in minutes, gpus_per_node).
        options: of `dask worker`.
        logs: folder for what workers print.

    Raises:
        UserError: submitit is not installed, there is no Slurm here, or a parameter that it does not know.
    """
    try:
        from submitit import SlurmExecutor
    except ImportError:
        raise UserError("--slurm needs submitit: pip install 'hkd[slurm]'.") from None
    if count < 1:
        raise UserError(f"--slurm takes the number of workers, 1 or more, got {count}.")
    try:
        executor = SlurmExecutor(logs, max_num_timeout=OFTEN)
    except RuntimeError:
        raise UserError("There is no Slurm here (no `srun`): start `hkd worker` on each machine.") from None
    try:
        executor.update_parameters(**{"job_name": "hkd-worker", "array_parallelism": count, **parameters})
    except ValueError as error:
        known = re.findall(r"^  - (\w+) ", str(error), re.MULTILINE)
        unknown = ", ".join(name for name in parameters if name not in known)
        raise UserError(f"Slurm has no parameter '{unknown}' here. Known: {', '.join(known)}.") from None
    work = Serve(scheduler_file.resolve(), options)
    with executor.batch():  # one array
        jobs = [executor.submit(work) for _ in range(count)]
    return jobs[0].job_id.partition("_")[0]


def parameters(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts as parameters; whole numbers are numbers.

    Raises:
        UserError: a text without `=`.
    """
    found = dict[str, Any]()
    for text in given:
        name, sign, value = text.partition("=")
        if not (name and sign):
            raise UserError(f"--slurm-set takes NAME=VALUE, such as time=1440, got '{text}'.")
        found[name] = int(value) if re.fullmatch("[0-9]{1,9}", value) else value
    return found
