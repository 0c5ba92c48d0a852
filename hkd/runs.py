"""A run in plain values: what another process, in whatever checkout of the library, is asked to carry out."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hkd.registry import load, lookup
from hkd.tasks import TASKS
from hkd.tasks.launch import decode


def run_document(
    spec: Mapping[str, Any],
    weights: Mapping[str, str],
    folder: str,
    runtime: Mapping[str, Any],
    report: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Carry out a run in this process and give its metrics, cost and curves.

    Args:
        spec: a `RunSpec` as JSON holds it.
        weights: file of every teacher and of `init`, by the id of its `Weights`.
        folder: of the run; made if needed.
        runtime: fields of `Runtime`.
        report: called with progress.
    """
    job = decode({"spec": spec, "weights": weights, "runtime": runtime}, Path(folder), report)
    return asdict(load(lookup("task", job.spec.task, TASKS))(job))
