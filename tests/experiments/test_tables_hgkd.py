"""H-GKD's tables: chains of runs that share their pre-training, teachers that are probed, refusals behind a chain."""

import pytest

from experiments.planning import schema
from experiments.planning.plan import plan
from experiments.planning.refusals import refused_cells, with_needs
from hkd.models.cards.zoo import ZOO

TABLES = (
    "hgkd_resnet50",
    "hgkd_ablations",
    "hgkd_open_questions",
    "hgkd_pictures",
    "hgkd_methods",
    "hgkd_teachers",
    "hgkd_coco",
    "hgkd_segmentation",
)


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
            ("hgkd_methods", "all_labels", "mae"),
            ("hgkd_methods", "every_image", "mae"),
            ("hgkd_teachers", "sparse_resnet50", "mae"),
            ("hgkd_coco", "mae", "frozen"),
            ("hgkd_segmentation", "mae", "linear"),
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


@pytest.mark.parametrize("profile", ["laptop", "paper"])
def test_methods_beside_h_gkd_have_its_compute(profile):
    """Passes of student (three a training image) and teacher (one), counted from the recipes and the cards."""
    chosen = schema.load_profile(profile)
    student, teacher = (ZOO[chosen.models[name]].gmacs for name in ("sparse_resnet50", "deit_b16"))
    epochs = {name: recipe.epochs for name, recipe in chosen.recipes.items()}
    names = chosen.students["sparse_resnet50"]
    taught = epochs[names["finetune_taught"]] * (3 * student + teacher)
    scratch = epochs[names["finetune_long"]] * 3 * student
    if profile == "laptop":  # with 100 labels; "scratch" counts a step of pre-training as two of the student's
        assert taught == pytest.approx(scratch, rel=0.03)
        assert (
            taught > epochs["masked"] * 1029 / 100 * (3 * student + teacher) + epochs[names["finetune"]] * 3 * student
        )
    else:
        chain = epochs["masked"] * (3 * student + teacher) + epochs[names["finetune"]] * 3 * student
        assert taught == pytest.approx(chain, rel=0.01)


def test_all_methods_of_a_row_see_the_same_labelled_images(plans):
    table = plans["hgkd_methods"]
    for row in ("all_labels", "every_image"):
        trained = [table.runs[c.runs[0]].spec for c in table.cells if c.row == row]
        assert len({(spec.data.name, str(spec.data.options)) for spec in trained}) == 1
        assert len({spec.student.name for spec in trained}) == 1


def test_every_backbone_of_a_dense_table_serves_both_its_heads(plans):
    for name, second in (("hgkd_coco", "frozen"), ("hgkd_segmentation", "linear")):
        table = plans[name]
        for row in ("supervised", "pixels", "random", "mae"):
            first, other = (table.runs[cell(table, row, variant).runs[0]].spec for variant in ("tuned", second))
            assert first.init == other.init is not None
            assert other.task_options["frozen"] is True
        assert cell(table, "mae", "tuned").baseline[0] == "pixels"


def test_cae_teaches_at_the_laptop_as_it_was_pre_trained_there(plans):
    table = plans["hgkd_teachers"]
    taught = before(table, cell(table, "sparse_resnet50", "cae").runs[0])
    made = [table.runs[key] for key in taught.needs if table.runs[key].spec.task == "pretrain"]
    assert [run.spec.method.name for run in made] == ["cae"]
    assert not refused_cells(table)


LONG = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize(
    "name",
    [
        "hgkd_methods",
        *(pytest.param(f"hgkd_{rest}", marks=LONG) for rest in ("teachers", "coco", "segmentation", "grids")),
    ],
)
def test_nothing_of_the_newer_tables_is_refused_at_the_papers_scale(name):
    assert not refused_cells(plan(name, "paper", 1))
