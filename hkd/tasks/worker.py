"""One rank of a run that takes several processes: `torchrun ... -m hkd.tasks.worker FOLDER`.

Reads FOLDER/launch.json; rank 0 keeps FOLDER/report.json up to date and leaves FOLDER/outcome.json, which any rank
leaves that meets a user's mistake.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from hkd.errors import Diverged, UserError
from hkd.files import atomic_write
from hkd.registry import load, lookup
from hkd.tasks import TASKS
from hkd.tasks.launch import LAUNCH, REPORT, decode, write_outcome
from hkd.training.job import Report


def main(folder: Path) -> None:
    """Take part in the run that launch.json describes."""
    order = json.loads((folder / LAUNCH).read_text())
    job = decode(order, folder, reporter(folder, order["parent"]))
    task = load(lookup("task", job.spec.task, TASKS))
    try:
        outcome = task(job)
    except Diverged as error:  # agreed on: all ranks are here
        outcome = error
    except UserError as error:
        # This may be the only rank whose images are bad. The others wait for it; torchrun ends them when it fails.
        write_outcome(folder, error)
        sys.exit(1)
    if os.environ["RANK"] == "0":
        write_outcome(folder, outcome)


def reporter(folder: Path, parent: int | None) -> Report:
    """Write progress for the process that waits; stop when it is gone, so that nothing trains unseen."""

    def report(news: dict[str, Any]) -> None:
        if parent is not None:
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                sys.exit(f"process {parent}, which started this run, is gone")
        with atomic_write(folder / REPORT) as temporary:
            temporary.write_text(json.dumps(news))

    return report


if __name__ == "__main__":
    main(Path(sys.argv[1]))
