"""The controlled table and its companions: one protocol for all columns, one thing turned at a time."""

import json
from dataclasses import asdict

import pytest

from experiments.planning import schema
from experiments.planning.plan import plan, plan_with
from hkd.errors import UserError

CONTROLLED = "ofa_cifar100_controlled"


def specs(made, row):
    """Specs of a row's cells, by column."""
    cells = [cell for cell in made.cells if cell.row == row and cell.runs]
    return {f"{cell.method}/{cell.variant}".rstrip("/"): made.runs[cell.runs[0]].spec for cell in cells}


@pytest.fixture(scope="module")
def laptop():
    return plan(CONTROLLED, "laptop", 1)


def test_all_columns_of_a_pair_share_data_student_recipe_teacher_and_seed(laptop):
    for row in dict.fromkeys(cell.row for cell in laptop.cells):
        found = specs(laptop, row)
        assert len(found) == 24
        protocols = {
            json.dumps({key: value for key, value in asdict(spec).items() if key != "method"}, sort_keys=True)
            for name, spec in found.items()
            if name != "supervised"
        }
        assert len(protocols) == 1
        alone, taught = found["supervised"], found["kd"]
        assert (alone.data, alone.student, alone.recipe) == (taught.data, taught.student, taught.recipe)


def test_ofa_as_released_differs_from_ofa_by_one_weight(laptop):
    found = specs(laptop, "mixer_b-swin_p")
    assert found["ofa"].method.options == {"projector": "tokens"}
    assert found["ofa/released"].method.options == {"projector": "tokens", "w_ofa": 0.1}


def test_published_values_of_later_methods_stand_beside_those_of_ofa(laptop):
    of = {(cell.row, cell.label): cell for cell in laptop.cells}
    row = "swin_t-resnet18"
    values = {label: of[row, label].published.value for label in ("KD", "OFA", "RSD", "PAT", "HCD")}
    assert values == {"KD": 78.74, "OFA": 80.54, "RSD": 83.92, "PAT": 81.22, "HCD": 82.78}
    assert of[row, "FitNet"].replicated[0].value == 80.49
    assert of[row, "AT"].published is None


@pytest.mark.parametrize("profile", ["paper", "cifar", "cifar_subset"])
def test_the_controlled_table_plans_at_other_scales(profile):
    table = schema.load_table(CONTROLLED)
    pair = next(row for row in table.rows if row.row == "convnext_t-resmlp_s12")
    made = plan_with(table.model_copy(update={"rows": (pair,)}), schema.load_profile(profile), (0,))
    assert all(cell.runs for cell in made.cells)


def test_vanilla_kd_turns_data_schedule_and_augmentation_and_nothing_else():
    made = plan("vanilla_kd", "laptop", 1)
    assert (
        sum(run.label.startswith("teacher") for run in made.runs.values()) == 2
    )  # half the data has the same teachers
    for pair in ("swin_t-resnet18", "convnext_t-resmlp_s12"):
        found = {
            (d, s): specs(made, f"{pair}-{d}-{s}")["kd"] for d in ("half", "all") for s in ("short", "long", "strong")
        }
        images = {(d, spec.data.options["n_train"]) for (d, _), spec in found.items()}
        assert images == {("half", 750), ("all", 1500)}
        assert len({json.dumps(asdict(spec.student), sort_keys=True) for spec in found.values()}) == 1
        for s in ("short", "long", "strong"):
            assert found["half", s].recipe == found["all", s].recipe
        short, long, strong = (asdict(found["all", s].recipe) for s in ("short", "long", "strong"))
        assert {key for key in short if short[key] != long[key]} <= {"epochs", "lr"}
        assert {key for key in long if long[key] != strong[key]} == {"randaugment", "erasing", "views"}
        assert long["epochs"] >= 5 * short["epochs"]


def test_unic_learns_from_one_to_three_teachers_of_different_families():
    made = plan("unic_teachers", "laptop", 1)
    for student in ("resnet18", "resmlp_s12"):
        for count, name in enumerate(("one", "two", "three"), start=1):
            found = specs(made, f"{name}-{student}")
            teachers = found["unic"].teachers
            assert found["unic"].method.options["roles"] == list(teachers)
            assert len({teacher.model.family for teacher in teachers.values()}) == len(teachers) == count
            assert list(found["kd"].teachers) == ["teacher"]


def test_a_teacher_set_with_equal_roles_is_one_sentence():
    table = schema.load_table("unic_teachers")
    row = table.rows[1].model_copy(update={"settings": {"unic": {"roles": ["a", "a"]}}})
    with pytest.raises(UserError, match=r"'unic': roles must not name one twice, got \['a', 'a'\]"):
        plan_with(table.model_copy(update={"rows": (row,)}), schema.load_profile("laptop"), (0,))
