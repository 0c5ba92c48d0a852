"""Parameters that stay in params.yaml from an earlier command are told; experiments are shown with few columns."""

import io
import subprocess

import pytest
from rich.console import Console

from experiments import places
from experiments.planning import overrides
from experiments.tracking.exp_show import tables, told


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "repository", lambda: tmp_path)
    (tmp_path / "params.yaml").write_text("profile: laptop\nseeds: null\nrecipe:\n  epochs: null\n  lr: null\n")
    return tmp_path


def commit(folder):
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)


def test_an_override_that_an_earlier_command_left_is_marked(checkout):
    commit(checkout)
    assert overrides.sentence() == "params.yaml: profile laptop."
    (checkout / "params.yaml").write_text("profile: smoke\nseeds:\nrecipe:\n  epochs: 2\n  lr:\n")  # as DVC writes it
    assert overrides.sentence() == (
        "params.yaml: profile smoke (committed: laptop), recipe.epochs 2 (committed: null)."
        " `git checkout params.yaml` takes back what differs."
    )
    assert "profile" not in overrides.sentence(["profile", "seeds"])


def test_a_committed_override_that_is_gone_is_marked_too(checkout):
    (checkout / "params.yaml").write_text("profile: laptop\nseeds: 3\n")
    commit(checkout)
    (checkout / "params.yaml").write_text("profile: laptop\n")
    assert "seeds null (committed: 3)" in overrides.sentence()


def test_without_a_commit_the_parameters_are_told_unmarked(checkout):
    assert overrides.sentence() == "params.yaml: profile laptop."
    (checkout / "params.yaml").unlink()
    assert overrides.sentence() == "params.yaml: profile laptop."  # the default
    assert overrides.sentence(["profile", "seeds"]) == ""


def revision(rev, gain, epochs, name=None):
    metrics = {"pairs": {"a-b": {"kd": 1.0}}, "pooled_gain": {"kd": gain}, "verdicts": {"too_noisy": 3}}
    params = {"profile": "laptop", "recipe": {"epochs": epochs, "lr": None}}
    files = {
        "results/laptop/scalekd_table3/metrics.json": {"data": metrics},
        "results/claims/metrics.json": {"data": {}},
    }
    return {"rev": rev, "name": name, "data": {"metrics": files, "params": {"params.yaml": {"data": params}}}}


def test_experiments_are_shown_metrics_first_and_of_parameters_what_differs():
    tried = {"revs": [revision("b" * 40, 1.25, 2, "brisk-owl")]}
    failed = {"rev": "c" * 40, "data": None}
    document = [
        revision("workspace", -0.5, None) | {"experiments": None},
        revision("a" * 40, -0.5, None, "master") | {"experiments": [tried, {"revs": [failed]}]},
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    (shown,) = tables(list(told(document)))
    console.print(shown)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[1] == ["experiment", "kd", "verdicts", "recipe.epochs"]
    assert lines[2:] == [
        ["workspace", "-0.50", "3", "too", "noisy", "null"],
        ["aaaaaaa", "master", "-0.50", "3", "too", "noisy", "null"],
        ["└", "bbbbbbb", "brisk-owl", "+1.25", "3", "too", "noisy", "2"],
    ]
    assert not list(tables(list(told(document)), ["hcd_cub200"]))
