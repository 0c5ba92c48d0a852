"""`torch.compile` of a distiller changes no loss and no gradient, but of the methods that the docs name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hkd.contract.checks import LABEL_FREE, Subject, build, fresh_student, teacher
from hkd.methods import METHODS
from hkd.training.compiled import compile_models
from hkd.training.step import TapStep

ROOT = Path(__file__).parents[2]


def compared(*methods: str) -> dict[str, str]:
    """What `tests.hkd.compiled` says of each method."""
    command = [sys.executable, "-m", "tests.hkd.compiled", *methods]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_distiller_gives_equal_bits():
    assert compared("kd") == {"kd": "equal"}


@pytest.mark.slow
@pytest.mark.long
def test_all_methods_but_those_that_the_docs_name_are_compiled_to_equal_bits():
    line = next(x for x in (ROOT / "docs" / "library.md").read_text().split("\n- ") if x.startswith("Compilation:"))
    exceptions = set(re.findall(r"`(\w+)`", line)) & set(METHODS)
    found = compared(*(method for method in METHODS if method not in exceptions))
    assert set(found.values()) == {"equal"}, found


def both_runs(folder: Path, backend: str, method: str) -> dict:
    """What `tests.hkd.compiled_run` says."""
    command = [sys.executable, "-m", "tests.hkd.compiled_run", backend, str(folder), method]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_a_machine_that_compiles_changes_no_bit_where_the_compiler_changes_none(tmp_path):
    found = both_runs(tmp_path, "eager", "kd")
    assert found["equal"]
    assert found["compiled"] == ["TapModel", "Teacher"]


@pytest.mark.slow
@pytest.mark.long
def test_a_machine_that_compiles_gives_the_losses_of_one_that_does_not(tmp_path):
    found = both_runs(tmp_path, "inductor", "fd")
    assert found["losses"]["True"] == pytest.approx(found["losses"]["False"], rel=1e-5)


def test_models_that_a_method_gives_masks_to_are_not_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append(type(module).__name__))
    for method in ("mae", "fd"):
        options, family = LABEL_FREE.get(method, ({}, "resnet"))
        subject = Subject(name=method, options=options, family=family)
        student, teachers = fresh_student(family), {role: teacher("swin") for role in subject.needs.teachers}
        compile_models(TapStep(student, build(subject.kind, subject.config, student, teachers), subject.needs))
    assert asked == ["TapModel", "Teacher"]
