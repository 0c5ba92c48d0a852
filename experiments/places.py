"""Where things are: the repository, and the folders that an environment variable may move."""

import os
from pathlib import Path


def repository() -> Path:
    """The checkout this command works in: the nearest folder upwards with dvc.yaml and params.yaml, else this one's."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    return Path(__file__).resolve().parent.parent


def main_checkout() -> Path:
    """The repository itself where this one is a copy that `dvc exp run --temp` or `--queue` made inside it."""
    here = repository()
    return next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)


def place(variable: str, default: Path) -> Path:
    """The folder an environment variable names, or the default."""
    given = os.environ.get(variable)
    return Path(given).expanduser().resolve() if given else default


def runs() -> Path:
    """The store of run records and checkpoints: $HKD_RUNS, or results/runs of the main checkout."""
    return place("HKD_RUNS", main_checkout() / "results" / "runs")


def results() -> Path:
    """Where results are written: $HKD_RESULTS or results."""
    return place("HKD_RESULTS", repository() / "results")


def tables(profile: str) -> Path:
    """Where the tables of a profile are written, a folder each."""
    return results() / profile


def references() -> Path:
    """Committed records: results/reference of the repository, wherever results are written."""
    return repository() / "results" / "reference"


def data() -> Path:
    """Where data sets are looked for: $HKD_DATA, or data/ of the main checkout."""
    return place("HKD_DATA", main_checkout() / "data")


def weights() -> Path:
    """Where weight files are looked for: $HKD_WEIGHTS, or weights/ of the main checkout."""
    return place("HKD_WEIGHTS", main_checkout() / "weights")
