"""Commands that take several tables: a broken file of the user's own is said, and the others go on."""

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from experiments.planning.own import is_path
from hkd.errors import UserError

T = TypeVar("T")


def of_each(tables: Sequence[str], make: Callable[[str], T]) -> tuple[list[T], int]:
    """What is made of each table, and the exit code: 2 where a user's own file was left out, which is said on stderr.

    Args:
        tables: names, and paths of files.
        make: of one; raises UserError.

    Raises:
        UserError: a table of the suite cannot be, or the only one.
    """
    made, code = [], 0
    for table in tables:
        try:
            made.append(make(table))
        except UserError as error:
            if not is_path(table) or len(tables) == 1:
                raise
            print(" ".join(str(error).split()), file=sys.stderr)
            code = 2
    return made, code
