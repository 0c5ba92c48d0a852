"""Sentences of errors that were raised in another process."""

import re

# torch raises an error of a DataLoader's worker again with that process's whole traceback for its text.
CAUGHT = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\n.*\n[\w.]*\w+: (?P<sentence>[^\n]+)\s*", re.DOTALL)


def sentence_of(error: Exception) -> str:
    """What an error says, without the traceback of the worker in which it was raised."""
    found = CAUGHT.fullmatch(str(error))
    return found["sentence"] if found else str(error)
