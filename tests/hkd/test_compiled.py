"""`torch.compile` of a distiller changes no loss and no gradient, but of the methods that the docs name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hkd.methods import METHODS

ROOT = Path(__file__).parents[2]


def compared(*methods: str) -> dict[str, str]:
    """What `tests.hkd.compiled` says of each method."""
    command = [sys.executable, "-m", "tests.hkd.compiled", *methods]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_compiled_distiller_gives_equal_bits():
    assert compared("kd") == {"kd": "equal"}


@pytest.mark.slow
@pytest.mark.long
def test_all_methods_but_those_that_the_docs_name_are_compiled_to_equal_bits():
    line = next(x for x in (ROOT / "docs" / "library.md").read_text().split("\n- ") if x.startswith("Compilation:"))
    exceptions = set(re.findall(r"`(\w+)`", line)) & set(METHODS)
    found = compared(*(method for method in METHODS if method not in exceptions))
    assert set(found.values()) == {"equal"}, found
