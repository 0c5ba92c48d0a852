"""One rank of a run that takes several processes: `torchrun ... -m hkd.tasks.worker FOLDER`.

Reads FOLDER/launch.json; rank 0 keeps FOLDER/report.json up to date and leaves FOLDER/outcome.json, which any rank
leaves that meets a user's mistake.
"""

import json
import os
import sys
import typing
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from hkd import registry
from hkd.errors import Diverged, UserError
from hkd.files import atomic_write
from hkd.spec import RunSpec
from hkd.tasks import TASKS
from hkd.training.distributed import LAUNCH, REPORT, write_outcome
from hkd.training.runtime import Runtime
from hkd.worker_errors import sentence_of


def main(folder: Path) -> None:
    """Take part in the run that launch.json describes."""
    order = json.loads((folder / LAUNCH).read_text())
    spec, runtime = decode(RunSpec, order["spec"]), decode(Runtime, order["runtime"])
    weights = {name: Path(path) for name, path in order["weights"].items()}
    task = registry.load(registry.lookup("task", spec.task, TASKS))
    try:
        outcome = task(spec, weights, folder, runtime, reporter(folder, order["parent"]))
    except Diverged as error:  # agreed on: all ranks are here
        outcome = error
    except UserError as error:
        # This may be the only rank whose images are bad. The others wait for it; torchrun ends them when it fails.
        write_outcome(folder, type(error)(sentence_of(error)))
        sys.exit(1)
    if os.environ["RANK"] == "0":
        write_outcome(folder, outcome)


def reporter(folder: Path, parent: int | None) -> Callable[[dict[str, Any]], None]:
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


def decode(kind: Any, value: Any) -> Any:
    """A value of the annotated type from what JSON made of it (dataclasses, tuples, paths, optional ones)."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (UnionType, typing.Union):
        return None if value is None else decode(next(a for a in arguments if a is not type(None)), value)
    if isinstance(kind, type) and is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: decode(hints[name], item) for name, item in value.items()})
    if origin is tuple:
        return tuple(value)
    if origin is dict:
        return {name: decode(arguments[1], item) for name, item in value.items()}
    return Path(value) if kind is Path else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
