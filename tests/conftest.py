"""For all tests: one thread, as runs have it; two threads beside another busy process are many times slower."""

import os

import pytest

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")
pytest.register_assert_rewrite("hkd.contract.checks")  # whose asserts then say what they compared
