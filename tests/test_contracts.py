"""Promises of the whole house that no single file can keep."""

import ast
import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from dvc_render.vega_templates import TEMPLATES
from ruamel.yaml import YAML

from experiments.planning import schema
from hkd.data import DATASETS
from hkd.methods import METHODS
from hkd.models import FAMILIES
from hkd.registry import load
from hkd.tasks import TASKS

ROOT = Path(__file__).parent.parent
RESOLVE = """
import json, sys
from dvc.parsing import DataResolver
from dvc.repo import Repo
from ruamel.yaml import YAML

folder = sys.argv[1]
with open(folder + "/dvc.yaml") as file:
    found = DataResolver(Repo.init(folder, no_scm=True, force=True), folder, YAML(typ="safe").load(file))
outs = [path for stage in found.resolve()["stages"].values() for out in stage.get("outs", ()) for path in out]
print(json.dumps([outs, found.resolve_metrics(), found.resolve_plots()]))
"""
HEAVY = ("dvc", "dvclive", "pandas", "matplotlib", "seaborn", "sklearn", "distributed", "spconv")


@cache
def stages():
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())


def test_every_table_is_a_stage_named_as_its_file_and_every_table_stage_a_table():
    tables = {name for name, stage in stages()["stages"].items() if stage["cmd"].startswith("hkd run")}
    assert tables == set(schema.table_ids())


def test_every_table_stage_is_asked_by_code_and_params_and_keeps_its_folder():
    for name in schema.table_ids():
        stage = stages()["stages"][name]
        assert stage["cmd"] == f"hkd run {name}"
        assert stage["deps"] == ["hkd", "analysis", "experiments"]
        assert stage["params"] == ["profile", "seeds", "recipe"]
        assert stage["outs"] == [{f"results/${{profile}}/{name}": {"persist": True}}]  # replaced whole, never half
        assert f"results/${{profile}}/{name}/metrics.json" in stages()["metrics"]


def test_results_of_different_profiles_stand_in_different_folders(tmp_path):
    """As DVC reads dvc.yaml: a smoke run leaves alone what was measured at another profile."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    for profile in ("smoke", "laptop"):
        (tmp_path / "params.yaml").write_text(f"profile: {profile}\n")
        outs, metrics, plots = json.loads(run(RESOLVE, str(tmp_path)).splitlines()[-1])
        assert set(outs) == {f"results/{profile}/{name}" for name in schema.table_ids()}
        assert set(metrics) == {f"{out}/metrics.json" for out in outs} | {"results/claims/metrics.json"}
        files = [plot for plot in plots if isinstance(plot, str)]
        files += [file for plot in plots if not isinstance(plot, str) for each in plot.values() for file in each["y"]]
        assert {str(Path(file).parent) for file in files} == set(outs)  # every table and figure has one


def test_every_plot_shows_a_file_of_a_stage_by_a_template_that_exists():
    names = set()
    plots = stages()["plots"]
    pictures = [plot for plot in plots if isinstance(plot, str)]
    assert {picture.split("/")[2] for picture in pictures} <= set(schema.table_ids())
    for (name, plot), *rest in (list(each.items()) for each in plots if not isinstance(each, str)):
        assert not rest
        assert name not in names, f"two plots are named '{name}'"
        names.add(name)
        (file, _), *_ = plot["y"].items()
        assert file.split("/")[2] in schema.table_ids()
        builtin = {template.DEFAULT_NAME for template in TEMPLATES}
        assert plot["template"] in builtin or (ROOT / ".dvc" / "plots" / f"{plot['template']}.json").is_file()


@pytest.mark.parametrize("registry", [METHODS, FAMILIES, DATASETS, TASKS])
def test_every_registry_entry_can_be_loaded(registry):
    for path in registry.values():
        assert callable(load(path))


@pytest.mark.parametrize("path", sorted((ROOT / "hkd").rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_package_files_hold_registries_and_names_only_because_keys_do_not_see_them(path):
    for node in ast.parse(path.read_text()).body:
        allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
        if isinstance(node, ast.FunctionDef):
            assert node.name in ("__getattr__", "__dir__"), f"{path} has code that run keys would not see"
        else:
            assert isinstance(node, allowed), f"{path} has code that run keys would not see"


def test_importing_the_library_brings_no_torch_and_none_of_the_suites_packages():
    code = f"import sys, hkd; print([name for name in {('torch', *HEAVY)!r} if name in sys.modules])"
    assert run(code) == "[]"


def test_the_whole_library_works_without_the_suites_packages():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "hkd").rglob("*.py")
        if path.name != "__init__.py"
    ]
    code = (
        "import sys, importlib\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(code) == "[]"


def run(code, *arguments):
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
