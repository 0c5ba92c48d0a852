"""For all tests: one thread, as runs have it; two threads beside another busy process are many times slower."""

import os

for library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import pytest

pytest.register_assert_rewrite("hkd.contract.checks")  # asserts of the contract that say what they compared
