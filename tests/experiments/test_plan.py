"""Plans: which runs a table needs, and that they are shared, ordered and typed."""

import os
import subprocess
import sys

import pytest

from experiments.planning import plan as planning
from experiments.planning import schema
from experiments.planning.declared import settled
from experiments.planning.plan import plan
from hkd.errors import UserError


@pytest.fixture(scope="module")
def table3():
    return plan("scalekd_table3", "laptop", 5)


def test_table3_has_33_cells_and_shares_its_runs(table3):
    assert len(table3.cells) == 33
    trained = [run for run in table3.runs.values() if run.spec.method.name == "supervised"]
    students = {run.label for run in trained if "teacher" not in run.label}
    # Ten different students: ResNet-50 serves both teachers with the same baseline runs.
    assert len(students) == 10 * 5
    assert sum(run.label.startswith("teacher") for run in table3.runs.values()) == 2
    assert len(table3.runs) == 10 * 5 + 2 * 11 * 5 + 2


def test_dependencies_come_before_what_needs_them(table3):
    seen = set()
    for key, run in table3.runs.items():
        assert set(run.needs) <= seen
        seen.add(key)


def test_a_teacher_that_a_refused_row_asked_for_first_is_there_for_the_next(table3):
    table, profile = schema.load_table("scalekd_table3"), schema.load_profile("laptop")
    first = table.rows[0].student  # its row plans the teacher before it finds that nothing stands for the student
    others = {slug: name for slug, name in profile.models.items() if slug != first}
    found = planning.plan_with(table, profile.model_copy(update={"models": others}), (0,))
    refused = {cell.row for cell in found.cells if cell.refused}
    assert refused == {row.row for row in table.rows if row.student == first}
    assert all(set(run.needs) <= found.runs.keys() for run in found.runs.values())
    assert found.teachers == table3.teachers
    assert all(found.runs[key] == table3.runs[key] for key in found.runs)


def test_every_seed_of_a_cell_has_its_own_run_and_methods_of_a_pair_share_all_but_the_method(table3):
    by_id = {cell.id: cell for cell in table3.cells}
    base = by_id["swin_l-vit_s16", "supervised", ""]
    distilled = by_id["swin_l-vit_s16", "scalekd", ""]
    assert len(set(distilled.runs)) == 5
    for seed, (a, b) in enumerate(zip(base.runs, distilled.runs, strict=True)):
        one, other = table3.runs[a].spec, table3.runs[b].spec
        assert one.seed == other.seed == seed
        assert (one.student, one.recipe, one.data) == (other.student, other.recipe, other.data)


def test_gains_are_over_the_baseline_of_the_same_row(table3):
    for cell in table3.cells:
        expected = None if cell.method == "supervised" else (cell.row, "supervised", "")
        assert cell.baseline == expected


def test_published_values_stand_where_the_paper_has_them_and_nowhere_else(table3):
    for cell in table3.cells:
        assert (cell.published is None) == (cell.method == "kd")
    by_id = {cell.id: cell for cell in table3.cells}
    assert by_id["eva_l14-vit_b14", "scalekd", ""].published.value == 86.43
    assert by_id["swin_l-mobilenet_v1", "supervised", ""].published.value == 72.1


def test_a_teacher_sees_other_data_options_than_its_student(table3):
    student = next(run for run in table3.runs.values() if run.label.startswith("scalekd"))
    teacher = table3.runs[student.needs[0]]
    assert teacher.spec.data.options["n_train"] is None
    assert student.spec.data.options["n_train"] == 100
    assert student.spec.teachers["teacher"].weights.id == teacher.key


def test_rows_without_a_mapping_are_refused_with_the_reason():
    smoke = plan("scalekd_table3", "smoke")
    refused = {cell.row for cell in smoke.cells if cell.refused}
    assert len(smoke.cells) == 33
    assert len({cell.row for cell in smoke.cells} - refused) == 2
    assert "no model for 'mobilenet_v1'" in next(c.refused for c in smoke.cells if c.student == "mobilenet_v1")


def test_whole_numbers_and_floats_are_one_option_value():
    found = settled("method", "kd", {"tau": 4})
    assert found == {"tau": 4.0}
    assert isinstance(found["tau"], float)


def test_settings_are_chosen_on_other_seeds_and_on_validation_rows():
    chosen = plan("scalekd_table3", "laptop", 2, select=True)
    assert chosen.seeds == (1000, 1001)
    assert {run.spec.evaluate_on for run in chosen.runs.values()} == {"val"}
    assert not set(chosen.runs) & set(plan("scalekd_table3", "laptop", 2).runs)


def test_recipe_overrides_reach_students_and_not_teachers():
    changed = plan("scalekd_table3", "laptop", 1, recipe={"epochs": 7, "lr": None})
    for run in changed.runs.values():
        assert (run.spec.recipe.epochs == 7) != run.label.startswith("teacher")


def test_only_the_papers_own_recipes_are_compared_by_value():
    whole = plan("scalekd_table3", "paper", recipe={"epochs": None})
    assert (whole.by_value, whole.overridden) == (True, ())
    cut = plan("scalekd_table3", "paper", recipe={"epochs": 1, "lr": None, "batch_size": 64})
    assert (cut.by_value, cut.overridden) == (False, ("epochs 1", "batch_size 64"))
    assert cut.title == f"{whole.title} (overridden: epochs 1, batch_size 64)"
    assert not plan("scalekd_table3", "paper", select=True).by_value


def test_a_profile_that_overrides_the_papers_recipes_is_not_compared_by_value(monkeypatch):
    paper, load = planning.schema.load_profile("paper"), planning.schema.load_profile
    own = {"paper": paper.model_copy(update={"override": {"epochs": 2}})}
    monkeypatch.setattr(planning.schema, "load_profile", lambda name: own.get(name) or load(name))
    cut = plan("scalekd_table3", "paper", recipe={"lr": 0.5})
    assert (cut.by_value, cut.overridden) == (False, ("epochs 2", "lr 0.5"))
    smoke = plan("scalekd_table3", "smoke")  # never by value, so its own recipes are what it stands for
    assert (smoke.by_value, smoke.overridden) == (False, ())
    assert "overridden" not in smoke.title


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"seeds": 10**9}, "at most 1000"),
        ({"recipe": {"epoch": 3}}, "has no option 'epoch'. Did you mean 'epochs'"),
        (
            {"recipe": {"epochs": 0}},
            "Recipe '.*' of profile 'laptop' with .*: epochs must be greater than or equal to 1, got 0",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        plan("scalekd_table3", "laptop", **arguments)


def test_weights_that_are_not_there_are_named_with_the_step_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HKD_WEIGHTS", str(tmp_path / "w"))
    monkeypatch.setenv("HKD_DATA", str(tmp_path / "d"))
    missing = {run.missing for run in plan("scalekd_table3", "paper").runs.values()}
    assert None not in missing
    assert any("hkd weights fetch swin_l" in reason or "imagenet" in reason.lower() for reason in missing)


def test_planning_imports_no_torch(tmp_path):
    code = "import sys; from experiments.planning.plan import plan; plan('scalekd_table3', 'laptop')\n"
    code += "print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}, timeout=300
    )
    assert done.stdout.strip() == "False"
