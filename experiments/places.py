"""Where things are: the repository, and the folders that an environment variable may move."""

import os
from pathlib import Path

from hkd.errors import UserError


def checkout() -> Path | None:
    """The checkout this command is called in: the nearest folder upwards with dvc.yaml and params.yaml."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if is_checkout(folder):
            return folder
    return None


def is_checkout(folder: Path) -> bool:
    """Whether a folder is the top of a checkout."""
    return (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file()


def repository() -> Path:
    """The checkout this command is called in, else the one that this package is of."""
    return checkout() or Path(__file__).resolve().parent.parent


def main_checkout() -> Path:
    """The repository itself where this one is a copy that `dvc exp run --temp` or `--queue` made inside it.

    The working folder, where this package is installed without a checkout: what is shared by all tables stays there.
    """
    here = repository()
    if not is_checkout(here):
        return Path.cwd()
    return next((folder.parent for folder in here.parents if folder.name == ".dvc"), here)


def place(variable: str, default: Path) -> Path:
    """The folder an environment variable names, or the default."""
    given = os.environ.get(variable)
    return folder(given, variable) if given else default


def file(given: str | Path, folder: Path | None = None) -> Path:
    """Where a file is that a user names; it may not be there, and links stay what they are.

    Args:
        given: as it was written; `~` is their home.
        folder: that a relative path starts from; None: the working folder.

    Raises:
        UserError: it begins with the home of a user whom there is not.
    """
    try:
        return ((folder or Path()) / Path(given).expanduser()).absolute()
    except RuntimeError:
        raise UserError(f"There is no {given}: this machine knows no home of {Path(given).parts[0]}.") from None


def output(given: str | Path, what: str) -> Path:
    """Where a file is to be written that a user names: a link is followed, a device or a pipe never replaced.

    Args:
        given: as it was written; `~` is their home.
        what: it is, for messages.

    Raises:
        UserError: something that is no file is there.
    """
    path = Path(os.path.realpath(file(given)))
    if path.exists() and not path.is_file():
        raise UserError(f"{what} is {given}, which is no file; give the path of one.")
    return path


def folder(given: str | Path, what: str) -> Path:
    """An absolute path of a folder that is there, or that can be made.

    Args:
        given: as a user wrote it; `~` is their home.
        what: it is, for messages.

    Raises:
        UserError: no folder can be there.
    """
    try:
        found = Path(given).expanduser().resolve()
        there = next(path for path in (found, *found.parents) if path.exists())
        if there.is_dir():
            return found
        why = f"{there} is no folder"
    except (OSError, RuntimeError, ValueError) as error:  # no such user, links in a circle, too long, a NUL
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
    raise UserError(f"{what} is {given}, where no folder can be ({why}); give the path of a folder.")


def runs() -> Path:
    """The store of run records and checkpoints: $HKD_RUNS, or results/runs of the main checkout."""
    return place("HKD_RUNS", main_checkout() / "results" / "runs")


def cache() -> Path:
    """What commands remember for those after them and can find again: $HKD_CACHE, or `hkd` in the user's cache folder.

    Where a user has no home, as in some containers, it is beside the runs.
    """
    home = os.path.expanduser("~")
    default = Path(home, ".cache", "hkd") if home != "~" else runs() / ".cache"
    return place("HKD_CACHE", Path(xdg, "hkd") if (xdg := os.environ.get("XDG_CACHE_HOME")) else default)


def results() -> Path:
    """Where results are written: $HKD_RESULTS, or results/ of the checkout, or of the working folder outside of one."""
    return place("HKD_RESULTS", (checkout() or Path.cwd()) / "results")


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
