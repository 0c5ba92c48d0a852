"""The `hkd` command: the same calls that the DVC stages make, for people.

Exit codes: 0 done; 1 a run is missing that another attempt may bring, or a regression; 2 a mistake in what was asked,
or a stale reference; 130 interrupted.
"""

import io
import logging
import os
import sys
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError

from experiments import places
from experiments.commands import (
    bench,
    distill,
    experiments,
    looking,
    numerics,
    own,
    rank,
    robustness,
    runs,
    sharing,
    tables,
    tune,
    watch,
    weights,
)
from experiments.commands.app import app
from experiments.execution.storage import STORAGE_ERRORS
from hkd.errors import UserError

COMMANDS = (
    tables,
    distill,
    own,
    watch,
    runs,
    sharing,
    experiments,
    numerics,
    weights,
    looking,
    bench,
    rank,
    robustness,
    tune,
)  # importing them adds them to the app


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: a mistake is one line on stderr and exit code 2, never a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)
    for stream in (sys.stdout, sys.stderr):  # where a letter cannot be shown, as in an ASCII locale, stands a `?`
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        os.getcwd()
    except FileNotFoundError:  # it was deleted under this shell
        sys.exit(refuse("The working folder is not there any more: go to another one."))
    use_this_checkout()
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except CycloptsError as error:
        code = refuse(str(error))
    except UserError as error:
        code = refuse(str(error))
    except KeyboardInterrupt:
        print("\nInterrupted: finished runs are kept, and the same command continues with the others.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        discard_output()
        code = 141  # as a shell says of a process that a closed pipe ended
    except OSError as error:  # of files that commands were given or need; without a name it is not about a file
        if error.filename is None and error.errno not in STORAGE_ERRORS:
            raise
        name = error.filename
        if name is None:  # print and flush know none; whoever writes a file does
            discard_output()
            name = "What the output is sent to"
        code = refuse(f"{name} cannot be used ({error.strerror}); put that right, or name another place.")
    sys.exit(code)


def discard_output() -> None:
    """Let what is still to be printed go nowhere, or Python would complain when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def use_this_checkout() -> None:
    """Start again with the code of the checkout we are called in, if the installed command is of another one.

    A clone, and the copies that `dvc exp run --temp` makes, must not be measured with the main checkout's code.
    """
    here = places.repository()
    if here != Path(__file__).resolve().parents[1] and (here / "experiments" / "cli.py").is_file():
        path = os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))
        os.execve(
            sys.executable, [sys.executable, "-m", "experiments.cli", *sys.argv[1:]], {**os.environ, "PYTHONPATH": path}
        )


def refuse(sentence: str) -> int:
    """Say what was wrong, on one line."""
    print(" ".join(sentence.split()), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
