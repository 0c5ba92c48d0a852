"""What README.md and docs/ promise: their commands parse, their links lead somewhere, their code runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import CycloptsError
from ruamel.yaml import YAML

from experiments import cli
from experiments.planning import schema
from experiments.results.compare import compare
from experiments.results.render import write_table
from tests.experiments.conftest import Synthetic

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def fenced(page, language):
    """The contents of the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def commands(page, name):
    """Words after `name` of every command line on a page: in sh blocks, with or without ./run, and in `code` spans."""
    lines = [line for block in fenced(page, "sh") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    spans = [span.split() for span in re.findall(r"`([^`]+)`", prose)]
    lines += [" ".join(words) for words in spans if len(words) > 2]  # `hkd run` alone is a name in a sentence
    for line in lines:
        if re.match(rf"(\./run )?{name} ", line):
            words = shlex.split(line, comments=True)
            yield words[words.index(name) + 1 :]


def pages_with(kind, find):
    return [pytest.param(page, item, id=f"{page.name}: {kind(item)}") for page in PAGES for item in find(page)]


def links(page):
    """Targets of links and pictures that are files of the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    return sorted({target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)})


def test_the_first_two_shell_blocks_are_the_two_commands():
    assert fenced(README, "sh")[:2] == ["./run scalekd_table3\n", "./run tests\n"]


@pytest.mark.parametrize(("page", "words"), pages_with(" ".join, lambda page: commands(page, "hkd")))
def test_every_hkd_command_parses(page, words):
    _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    tables = bound.arguments.get("table", ())
    named = {name for name in ([tables] if isinstance(tables, str) else tables) if not name.endswith(".yaml")}
    assert named <= {"TABLE", "FOLDER", *schema.table_ids()}  # files of the user's own have any name


@pytest.mark.parametrize("line", ["frobnicate", "plan scalekd_table3 --profle paper", "runs lst", "show"])
def test_a_wrong_hkd_command_would_be_noticed(line):
    with pytest.raises(CycloptsError):
        cli.app.parse_args(shlex.split(line), exit_on_error=False, print_error=False)


def test_every_dvc_command_names_stages_and_parameters_that_exist():
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    seen = 0
    for page in PAGES:
        for words in commands(page, "dvc"):
            if words[0] != "repro" and words[:2] != ["exp", "run"]:
                continue
            settings = [words[i + 1] for i, word in enumerate(words) if word == "-S"]
            names = [word for word in words[1:] if word not in (*settings, "run") and not word.startswith("-")]
            assert {setting.partition("=")[0].partition(".")[0] for setting in settings} <= set(params)
            assert {name for name in names if not name.isupper()} <= set(stages)  # NAME, TABLE: a reader fills them in
            seen += 1
    assert seen


def test_every_profile_in_the_readme_exists():
    table = README.read_text().partition("| profile |")[2].partition("\n\n")[0]
    names = re.findall(r"^\| `(\w+)`", table, flags=re.M)
    assert names
    for name in names:
        assert schema.load_profile(name).name == name


def test_every_table_is_on_the_page_of_its_paper_which_the_readme_links():
    readme = README.read_text()
    for name in schema.table_ids():
        page = f"docs/results-{schema.load_table(name).paper}.md"
        assert f"]({page})" in readme
        assert f"`./run {name}`" in (ROOT / page).read_text() or f"`{name}`" in (ROOT / page).read_text()


@pytest.mark.parametrize(("page", "target"), pages_with(str, links))
def test_every_link_leads_to_a_file(page, target):
    assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_python_block_runs():
    blocks = fenced(README, "python")
    assert blocks
    for block in blocks:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block], capture_output=True, text=True, cwd=ROOT, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert "torch.Size([2, 10])" in done.stdout


def test_the_files_of_a_table_are_those_the_readme_lists(tmp_path):
    listed = README.read_text().partition("| file |")[2].partition("\n\n")[0]
    names = {name for line in listed.splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])}
    plan = Synthetic.plan(2, 2)
    records = Synthetic.records(plan)
    write_table(plan, records, compare(plan, records), tmp_path / "table")
    assert {path.name for path in (tmp_path / "table").iterdir()} == names
