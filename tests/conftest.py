"""For all tests: one thread, as runs have it; two threads beside another busy process are many times slower.

Each test starts from the same random numbers of torch, so that none fails one time in many. What commands remember of
the sources stays in the checkout, for all the processes that tests start.
"""

import os
import sys
from pathlib import Path

import pytest

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("HKD_CACHE", str(Path(__file__).parent.parent / ".pytest_cache" / "hkd"))
pytest.register_assert_rewrite("hkd.contract.checks")  # whose asserts then say what they compared


@pytest.fixture(autouse=True)
def _seeded():
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)
