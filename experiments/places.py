"""Where things are: the repository, and the folders that an environment variable may move."""

import os
from pathlib import Path


def repository() -> Path:
    """The checkout this command works in: the nearest folder upwards with dvc.yaml and params.yaml, else this one's."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    return Path(__file__).resolve().parent.parent


def place(variable: str, default: str) -> Path:
    """The folder an environment variable names, or a folder of the repository."""
    given = os.environ.get(variable)
    return Path(given).expanduser().resolve() if given else repository() / default


def runs() -> Path:
    """The store of run records and checkpoints: $HKD_RUNS or results/runs."""
    return place("HKD_RUNS", "results/runs")


def results() -> Path:
    """Where tables are written: $HKD_RESULTS or results."""
    return place("HKD_RESULTS", "results")


def references() -> Path:
    """Committed measured values: results/reference of the repository, wherever results are written."""
    return repository() / "results" / "reference"


def data() -> Path:
    """Where data sets are looked for: $HKD_DATA or data."""
    return place("HKD_DATA", "data")


def weights() -> Path:
    """Where weight files are looked for: $HKD_WEIGHTS or weights."""
    return place("HKD_WEIGHTS", "weights")
