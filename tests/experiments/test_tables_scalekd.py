"""ScaleKD's tables: one stage for everything its summaries name, shared runs, and recipes beside the released ones."""

import re
from dataclasses import replace

import pytest

from experiments.planning import schema
from experiments.planning.plan import plan
from experiments.results import recipe_page

SETTINGS = {"table10", "table11"}  # of the paper's training: docs/scalekd-recipes.md
NAMED = (  # by summaries of the paper, with a subject
    *(f"table{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9, 15, 16)),
    *(f"fig{number}" for number in (2, 4, 5, 6)),
)


@pytest.mark.parametrize("name", NAMED)
def test_every_table_and_figure_that_the_summaries_name_has_a_stage_that_plans_at_the_papers_scale(name):
    found = plan(f"scalekd_{name}", "paper")
    assert any(cell.runs for cell in found.cells)
    assert found.by_value


def test_what_is_known_of_the_paper_is_all_named_above():
    published = schema.load_published("scalekd")
    missing = {each["id"]: each["known_from"] for each in published.missing_tables}
    known = {name for name, source in missing.items() if source is not None}
    known |= {table.id for table in published.tables if re.fullmatch(r"table\d+", table.id)}
    assert {name.replace("figure", "fig") for name in known} - SETTINGS == {*NAMED} - {"fig2", "fig5", "fig6"}
    assert missing.keys() - known == {"table8", "table12-14"}  # of which no source says anything


@pytest.fixture(scope="module")
def plans():
    names = ("table1", "table2", "table3", "table4", "table7", "table9", "table15", "table16", "fig4")
    return {name: plan(f"scalekd_{name}", "laptop", 2) for name in names}


def cells(plans, name):
    return {cell.id: cell.runs for cell in plans[name].cells}


def test_what_tables_have_in_common_is_run_once(plans):
    whole, teachers, recent = (cells(plans, name) for name in ("table3", "table2", "table7"))
    pair = "swin_l-resnet50"
    for column in (("supervised", ""), ("scalekd", "")):
        assert whole[pair, *column] == teachers[pair, *column] == recent[pair, *column]
    ablation, cost, pilot = (cells(plans, name) for name in ("table9", "table15", "table1"))
    small = "swin_s-resnet50"
    for variant in ("cap", "cap_dfm", "cap_tpp", "all"):
        assert ablation[small, "scalekd", variant] == cost[small, "scalekd", variant]
    assert pilot[small, "scalekd", "s3_s4"] == cost[small, "scalekd", "all"]
    assert pilot[small, "fd", ""] == cost[small, "fd", ""]
    inherited = cells(plans, "table4")
    assert inherited["jft", "scalekd", ""] == inherited["ibot", "scalekd", ""] == whole["swin_l-vit_b16", "scalekd", ""]


def test_one_supervised_run_a_seed_stands_beside_all_teachers_and_balances(plans):
    for name in ("table2", "table15", "fig4"):
        assert (
            len(
                {
                    runs
                    for (_, method, variant), runs in cells(plans, name).items()
                    if (method, variant) == ("supervised", "")
                }
            )
            == 1
        )


def test_the_ends_of_the_balance_are_one_view_alone(plans):
    runs = plans["fig4"].runs
    keys = cells(plans, "fig4")
    betas = [runs[keys[row, "scalekd", ""][0]].spec.method.options["beta"] for row in
             ("beta_00", "beta_02", "beta_04", "beta_06", "beta_08", "beta_10")]  # fmt: skip
    assert betas == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_teacher_without_pre_training_has_as_many_updates_and_sees_what_a_student_sees(plans):
    found = plans["table4"]
    keys = cells(plans, "table4")
    taught = {variant: found.runs[keys["in22k", "scalekd", variant][0]].spec for variant in ("", "same_data")}
    by_variant = {name: found.runs[spec.teachers["teacher"].weights.id].spec for name, spec in taught.items()}
    student, small, large = taught[""], by_variant["same_data"], by_variant[""]
    assert small.data.options["n_train"] == student.data.options["n_train"] == 100
    updates = [
        -(-images // spec.recipe.batch_size) * spec.recipe.epochs for images, spec in ((100, small), (1029, large))
    ]
    assert updates[0] == pytest.approx(updates[1], rel=0.02)


def test_recipes_that_differ_from_the_released_ones_are_marked_and_no_others():
    marked = re.findall(r"^\| (\w+) \| .*\*\*differs\*\*", recipe_page.page(), flags=re.M)
    assert marked == ["sync_bn", "ema_momentum", "mixup_mixer_b14"]


@pytest.mark.parametrize(
    ("key", "released", "field", "value"),
    [("lr", 0.1, "lr", 0.2), ("lr_schedule", "step, x0.1 at epochs 30, 60, 90", "milestones", (30.0, 60.0)),
     ("augmentation", "random resized crop 224, horizontal flip", "flip", False), ("epochs", 100, "epochs", 90)],
)  # fmt: skip
def test_a_setting_that_is_changed_would_be_marked(key, released, field, value):
    recipe = schema.load_profile("paper").recipes["traditional"]
    student = {"traditional": "ResNet-50"}
    assert recipe_page.beside(key, released, {"traditional": recipe}, student)[1] == ""
    changed = replace(recipe, **{field: value})
    assert recipe_page.beside(key, released, {"traditional": changed}, student)[1] == "**differs**"


@pytest.mark.parametrize(
    ("released", "ours", "equal"),
    [("magnitude 7 std 0.5", "rand-m8.75-n2", True), ("magnitude 12 (level scale 15)", "rand-m8-n2", True),
     ("magnitude 9", "rand-m9-n2", True), ("magnitude 7", "rand-m7-n2", False), ("magnitude 9", None, False)],
)  # fmt: skip
def test_magnitudes_are_compared_as_shares(released, ours, equal):
    assert recipe_page.same(released, ours) is equal
