"""The pages for users of the library: their code runs, and following them to the letter works."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from hkd.methods import METHODS
from tests.test_readme import ROOT, fenced

LIBRARY, METHOD = ROOT / "docs" / "library.md", ROOT / "docs" / "adding-a-method.md"
COPIED = (
    "hkd",
    "analysis",
    "experiments",
    "tests/hkd",
    "tests/conftest.py",
    "pyproject.toml",
    "params.yaml",
    "dvc.yaml",
)


def run(*command, cwd, **environment):
    """What a Python command says, without the installed package in its way."""
    env = {**os.environ, "PYTHONPATH": str(cwd), **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_code_of_the_library_page_runs_in_its_order():
    printed = run("-W", "error", "-c", "".join(fenced(LIBRARY, "python")), cwd=ROOT).splitlines()
    assert "'task'" in printed[0]
    assert "'hcd'" in printed[0]
    assert all("'task'" in line for line in printed)
    assert len(printed) == 4


def test_the_loop_of_the_library_page_has_ten_lines():
    loop = fenced(LIBRARY, "python")[0].partition("distiller = ")[2].splitlines()
    assert len([line for line in loop if not line.startswith("print")]) <= 10


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the tree in which somebody did what the page on adding a method says, and nothing else."""
    clone = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, clone / name)
    text = METHOD.read_text()
    blocks = re.findall(r"`([\w/.]+\.(?:py|yaml))`:\n\n```(python|yaml)\n(.*?)^```$", text, flags=re.M | re.S)
    assert [language for _, language, _ in blocks] == ["python", "python", "yaml"]
    for name, language, block in blocks:
        path = clone / name
        if language == "python":
            assert not path.exists()
            path.write_text(block)
        else:
            assert len(block.splitlines()) == 1
            before, found, after = path.read_text().partition("columns:\n")
            assert found
            path.write_text(before + found + block + after)
    return clone


@pytest.mark.slow
@pytest.mark.long
def test_a_method_added_by_the_page_passes_its_test_and_is_planned(followed):
    run("-m", "pytest", "-q", "tests/hkd/test_method_logit_mse.py", cwd=followed)
    planned = run("-m", "experiments.cli", "plan", "scalekd_table1", "--profile", "laptop", cwd=followed)
    assert "logit_mse-resnet50_from_" in planned
    assert "not applicable" not in planned


@pytest.mark.long
def test_a_method_added_by_the_page_meets_the_contract_of_all_methods(followed):
    said = run("-m", "pytest", "-q", "-m", "", "tests/hkd/test_method_contract.py", "-k", "logit_mse", cwd=followed)
    assert int(re.search(r"(\d+) passed", said)[1]) > 20


def test_a_method_added_by_the_page_changes_no_key_of_another(followed):
    script = "from experiments.planning.plan import plan; print(*plan('scalekd_table1', 'laptop', 1).runs)"
    before, after = (set(run("-c", script, cwd=folder).split()) for folder in (ROOT, followed))
    assert before < after


def test_every_file_with_options_of_a_method_is_registered_by_its_name():
    files = [path for path in (ROOT / "hkd" / "methods").glob("*.py") if "    Config = " in path.read_text()]
    assert {path.stem for path in files} == set(METHODS)
