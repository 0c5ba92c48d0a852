"""Tables that measure again what another table has trained."""

import pytest

from experiments.planning import again, schema
from experiments.planning.plan import plan
from experiments.results.caption import setting
from hkd.errors import UserError


@pytest.fixture(scope="module")
def plans():
    return {name: plan(name, "laptop", 2) for name in ("hcd_cifar100_core", "hcd_robustness")}


def test_each_cell_measures_the_run_of_the_same_cell_which_has_the_same_key(plans):
    trained = {cell.id: cell.runs for cell in plans["hcd_cifar100_core"].cells}
    measured = {cell.id: cell.runs for cell in plans["hcd_robustness"].cells}
    assert measured.keys() == trained.keys()
    runs = plans["hcd_robustness"].runs
    for cell, keys in measured.items():
        assert tuple(runs[key].spec.init.id for key in keys) == trained[cell]
        assert all(runs[key].spec.task == "robustness" and runs[key].spec.recipe is None for key in keys)
    own = [key for key, run in runs.items() if run.spec.task != "robustness"]
    assert set(own) == set(plans["hcd_cifar100_core"].runs)
    assert {runs[key].label for key in own} == {run.label for run in plans["hcd_cifar100_core"].runs.values()}


def test_it_has_the_metrics_of_the_task_and_gains_over_the_same_column(plans):
    table = plans["hcd_robustness"]
    assert table.metrics == again.METRICS
    gains = {cell.id: cell.baseline for cell in table.cells}
    assert gains == {cell.id: cell.baseline for cell in plans["hcd_cifar100_core"].cells}
    assert {cell.published for cell in table.cells} == {None}
    assert "epochs per student" in setting(table)
    assert "; 0 epochs" not in setting(table)
    assert "in percent, gains in points; negative log-likelihood (lower is better);" in setting(table)


def test_a_set_up_is_not_asked_for_gains_of_what_is_better_when_lower(plans):
    assert plans["hcd_cifar100_core"].assay is not None
    assert plans["hcd_robustness"].assay is None


def test_every_table_with_classifiers_has_one_without_a_file():
    without = plan("hcd_cifar100_core_robustness", "laptop", 1)
    assert set(without.runs) == set(plan("hcd_robustness", "laptop", 1).runs)
    assert "hcd_cifar100_core_robustness" not in schema.table_ids()
    tuned = plan("hgkd_resnet50_robustness", "laptop", 1)  # whose students are pre-trained, and then tuned
    assert {run.spec.task for run in tuned.runs.values()} > {"pretrain", "train", "robustness"}
    assert plan("hcd_cub200_robustness", "laptop").seeds == plan("hcd_cub200", "laptop").seeds


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hcd_cub20_robustness", "Unknown table 'hcd_cub20_robustness'"),
        ("hcd_robustness_robustness", "'hcd_robustness' measures again itself"),
        ("hybrid_fig1_robustness", "^Table 'hybrid_fig1' trains no classifier"),
    ],
)
def test_what_cannot_be_measured_again_is_one_sentence(name, sentence):
    with pytest.raises(UserError, match=sentence):
        schema.load_table(name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("again: {of: hcd_cub20}", r"mine\.yaml:1: again\.of: Unknown table 'hcd_cub20'"),
        ("again: {off: hcd_cub200}", r"mine\.yaml:1: again\.of"),
        ("again: {of: hcd_cub200}\nrows: []", r"mine\.yaml:2: rows: rows and columns are those of 'hcd_cub200'"),
        ("again: {of: hcd_cub200}\nmetrics: [top1, top1_fog]", r"unknown metric 'top1_fog'"),
        ("again: {of: hcd_cub200, task_options: {corruptions: [fog]}}", r"must be 'noise', 'blur' or 'contrast'"),
        ("again: {of: hcd_cub200, task: robustnes}", "unknown task 'robustnes'"),
    ],
)
def test_a_mistake_in_a_users_own_is_one_sentence(tmp_path, monkeypatch, text, sentence):
    monkeypatch.setattr("experiments.planning.own.OWN", own := {})
    monkeypatch.setattr("experiments.planning.schema.OWN", own)
    schema.read.cache_clear()
    schema.document.cache_clear()
    path = tmp_path / "mine.yaml"
    path.write_text(text + "\n")
    with pytest.raises(UserError, match=sentence) as error:
        schema.load_table(str(path))
    assert "\n" not in str(error.value)
    schema.read.cache_clear()
    schema.document.cache_clear()
