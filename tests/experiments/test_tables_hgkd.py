"""H-GKD's tables: chains of runs that share their pre-training, teachers that are probed, refusals behind a chain."""

import pytest

from experiments.planning.plan import plan
from experiments.planning.refusals import refused_cells, with_needs

TABLES = ("hgkd_resnet50", "hgkd_ablations", "hgkd_open_questions", "hgkd_pictures")


@pytest.fixture(scope="module")
def plans():
    return {name: plan(name, "laptop", 2) for name in TABLES}


def cell(planned, row, variant):
    return next(c for c in planned.cells if (c.row, c.variant) == (row, variant))


def before(planned, key):
    """The run that a fine-tuning or a probe starts from."""
    return planned.runs[planned.runs[key].spec.init.id]


def test_label_budgets_and_the_probe_share_one_pretraining_per_seed(plans):
    table = plans["hgkd_resnet50"]
    for variant in ("pixels", "random", "mae", "beit"):
        rows = [cell(table, row, variant).runs for row in ("all_labels", "half_labels", "linear_probe")]
        assert len({*rows[0], *rows[1], *rows[2]}) == 6
        for seed in range(2):
            assert len({before(table, runs[seed]).key for runs in rows}) == 1
    assert cell(table, "all_labels", "mae").runs == cell(table, "all_labels", "mae_scratch").runs


def test_tables_share_the_default_pretraining(plans):
    keys = {
        before(plans[name], cell(plans[name], row, variant).runs[0]).key
        for name, row, variant in (
            ("hgkd_resnet50", "half_labels", "mae"),
            ("hgkd_ablations", "sparse_resnet50", "hgkd"),
            ("hgkd_open_questions", "sparse_resnet50", "hgkd"),
        )
    }
    assert keys == {cell(plans["hgkd_pictures"], "sparse_resnet50", "mae").runs[0]}


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_pretraining_reads_data_without_labels_and_everything_else_data_with(profile):
    planned = plan("hgkd_resnet50", profile, 1)
    for run in planned.runs.values():
        assert run.spec.data.name.endswith("_unlabelled") == (run.spec.task == "pretrain")


def test_a_teacher_is_probed_before_it_teaches(plans):
    table = plans["hgkd_resnet50"]
    assert set(table.teachers) >= {f"{name}_b16@imagenet1k_unlabelled" for name in ("mae", "beit", "random")}
    for key in table.teachers.values():
        assert table.runs[key].spec.task == "probe"
    taught = before(table, cell(table, "all_labels", "mae").runs[0])
    assert {table.runs[key].spec.task for key in taught.needs} == {"pretrain", "probe"}


def test_a_teacher_fine_tuned_itself_starts_from_the_run_that_teaches(plans):
    table = plans["hgkd_resnet50"]
    tuned = table.runs[cell(table, "mae_teacher", "tuned").runs[0]]
    taught = before(table, cell(table, "all_labels", "mae").runs[0])
    assert tuned.spec.init == taught.spec.teachers["teacher"].weights


def test_what_has_no_twin_is_refused_and_a_refusal_behind_a_chain_is_told(plans):
    assert "cae_b16" in cell(plans["hgkd_resnet50"], "all_labels", "cae").refused
    ((reason, pairs),) = refused_cells(plans["hgkd_open_questions"]).items()
    assert "decoder or regressor" in reason
    assert [row for row, _ in pairs] == ["sparse_resnet50"]


def test_all_that_a_run_needs_is_told_once_per_way_to_it(plans):
    table = plans["hgkd_resnet50"]
    last = cell(table, "all_labels", "mae").runs[0]
    tasks = [table.runs[key].spec.task for key in with_needs(table, last)]
    assert tasks[0] == "train"
    assert set(tasks) == {"train", "pretrain", "probe"}


def test_the_published_pair_stands_at_the_pixel_control_and_at_maes_student(plans):
    table = plans["hgkd_resnet50"]
    printed = {c.variant: c.published.value for c in table.cells if c.published is not None}
    assert printed == {"pixels": 76.98, "mae": 80.01}
    assert cell(table, "all_labels", "mae").baseline == ("all_labels", "supervised", "pixels")
