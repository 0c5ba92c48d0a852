"""Loss weights by one rule: the sequence, the choice, what the planner makes of it, and what is refused."""

import shutil

import pytest

from experiments import tune
from experiments.planning import schema, tuning
from experiments.planning.plan import plan_with
from experiments.planning.tuning import Tuned, Tuning
from experiments.records.store import Record, Store
from hkd.errors import UserError
from hkd.methods import METHODS

TABLE = "ofa_cifar100_controlled"
ROWS = ("swin_t-resnet18", "convnext_t-resmlp_s12")
# Pre-training, another task, several teachers.
NO_CLASSIFIER = {"unic", "beit", "cae", "hgkd", "hybrid", "mae", "masked_pixels", "moco", "simclr"}


def tuned(**factors):
    return Tuned(trials=3, seeds=1, rows=ROWS[:1], factors=factors, log={})


@pytest.fixture
def chosen(monkeypatch):
    """The table as if KD had taken 3.162 times its weight, and DKD its defaults."""
    found = tuning.load(TABLE)
    made = found.model_copy(update={"profiles": {"laptop": tuned(kd=3.162, dkd=1.0)}})
    monkeypatch.setattr(tuning, "load", lambda table: made if table == TABLE else None)
    return made


def part(rows=ROWS[:1], columns=("kd", "dkd")):
    return tune.part(schema.load_table(TABLE), rows, columns), schema.load_profile("laptop")


def test_trials_begin_with_the_defaults_and_a_larger_budget_with_a_smaller_one():
    assert tuning.factors(5) == [1.0, 0.3162, 3.162, 0.1778, 1.778]
    assert tuning.factors(64)[:5] == tuning.factors(5)
    assert all(0.1 < factor < 10 for factor in tuning.factors(64))
    assert len(set(tuning.factors(64))) == 64


@pytest.mark.parametrize("trials", [0, -1, 65])
def test_a_search_budget_of_nothing_is_one_sentence(trials):
    with pytest.raises(UserError, match=f"A search budget is 1 to 64 trials a method, got {trials}"):
        tuning.factors(trials)


def test_the_highest_mean_over_pairs_is_taken_and_of_equal_ones_the_first():
    order = [1.0, 0.3, 3.0]
    assert tuning.best({"a": (80.0, 82.0, 70.0), "b": (50.0, 49.0, 70.0)}, order) == 3.0
    assert tuning.best({"a": (80.0, 82.0, 70.0), "b": (50.0, 48.0, 60.0)}, order) == 1.0  # 130 each
    assert tuning.best({"a": (80.0, None, 90.0), "b": (50.0, 99.0, None)}, order) == 1.0  # what diverged counts as 0


def test_the_stated_defaults_are_those_of_the_methods():
    found = tuning.load(TABLE)
    tuning.check(found, TABLE)
    wrong = found.model_copy(update={"weights": {"kd": {"w_kd": 2.0}}})
    with pytest.raises(UserError, match=r"weights.kd.w_kd: the default is 1, not 2"):
        tuning.check(wrong, TABLE)


def test_every_method_that_can_train_a_classifier_from_one_teacher_is_a_column_and_the_pairs_are_ofa_kds():
    table = schema.load_table(TABLE)
    assert {column.method for column in table.columns} == set(METHODS) - NO_CLASSIFIER
    pairs = [(row.teacher, row.student) for row in schema.load_table("hcd_cifar100").rows]
    assert [(row.teacher, row.student) for row in table.rows] == pairs


def test_a_tuned_column_has_its_weight_and_one_that_kept_its_default_shares_the_runs_of_other_tables(chosen):
    made = plan_with(*part(), (0,))
    options = {run.spec.method.name: run.spec.method.options for run in made.runs.values()}
    assert options["kd"] == {"w_kd": 3.162}
    assert options["dkd"] == {}
    table, laptop = schema.load_table("hcd_cifar100"), schema.load_profile("laptop")
    other = plan_with(tune.part(table, ROWS[:1], ("kd", "dkd")), laptop, (0,)).runs
    shared = {run.spec.method.name for key, run in made.runs.items() if key in other}
    assert shared == {"dkd", "supervised"}  # the teacher's training is supervised
    assert "Moved: KD 3.16" in " ".join(made.captions)


def test_trials_see_nothing_of_what_was_chosen(chosen):
    made = plan_with(*part(), (1000,), select=True)
    assert all(not run.spec.method.options for run in made.runs.values())
    assert {run.spec.evaluate_on for run in made.runs.values()} == {"val"}


def test_a_caption_says_what_was_tuned():
    found = tuning.load(TABLE).model_copy(update={"profiles": {"laptop": tuned(kd=3.162, dkd=1.0)}})
    text = tuning.sentence(found, "laptop", {"kd": "KD", "dkd": "DKD", "fd": "FD"})
    assert "3 trials each: 1, 0.316, 3.16 times the default, on validation rows of one pair, one seed" in text
    assert text.endswith("Moved: KD 3.16 (1 to an end of what was tried: the best may lie beyond); not tuned: FD.")
    assert tuning.sentence(found, "paper", {}).startswith("No loss weight was tuned at this profile")
    assert tuning.sentence(None, "laptop", {}) is None


def records_of(plans, value):
    """A record of every run of trials; value: of a factor's number, row and method."""
    found = {}
    for number, each in enumerate(plans):
        for cell in each.cells:
            top1 = value(number, cell.row, cell.method)
            for key in cell.runs:
                status = "refused" if top1 is None else "done"
                found[key] = Record(
                    key=key, label="", status=status, spec={}, metrics={} if top1 is None else {"top1": top1}
                )
    return found


def test_a_method_takes_what_its_trials_say_and_a_row_that_it_does_not_serve_counts_for_nothing():
    found = tuning.load(TABLE).model_copy(update={"weights": {"kd": {"w_kd": 1.0}, "at": {"weight": 1000.0}}})
    plans = tune.plans(schema.load_table(TABLE), schema.load_profile("laptop"), found, ROWS, 3, 1)
    assert [len(each.cells) for each in plans] == [4, 4, 4]

    def value(number, row, method):
        if method == "at":
            return None if row == ROWS[1] else [60.0, 61.0, 59.0][number]
        return [70.0, 40.0, 71.0][number]

    done = tune.outcome(plans, records_of(plans, value), ROWS, 1)
    assert done.factors == {"kd": 3.162, "at": 0.3162}
    assert done.log["at"] == {ROWS[0]: (60.0, 61.0, 59.0)}
    assert set(done.log["kd"]) == set(ROWS)


def test_a_pair_that_no_method_serves_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "run_plan", lambda *args, **kwargs: type("Report", (), {"failed": {}})())
    table = schema.load_table(TABLE)
    with pytest.raises(UserError, match=r"No method of 'ofa_cifar100_controlled' serves mixer_b-deit_t at profile"):
        tune.search(table, schema.load_profile("cifar_subset"), ["mixer_b-deit_t"], 1, 1, Store(tmp_path))


def test_what_has_no_weights_to_tune_is_one_sentence():
    with pytest.raises(UserError, match="Table 'hcd_cifar100' has no weights to tune"):
        tune.listed(schema.load_table("hcd_cifar100"))


def test_a_choice_is_written_beside_the_others_and_comments_stay(tmp_path, monkeypatch):
    folder = tmp_path / tuning.FOLDER
    folder.mkdir()
    shutil.copy(schema.HERE / tuning.FOLDER / f"{TABLE}.yaml", folder)
    table, laptop, paper = schema.load_table(TABLE), schema.load_profile("laptop"), schema.load_profile("paper")
    monkeypatch.setattr(schema, "HERE", tmp_path)
    tune.write(table, paper, tuned(kd=0.3162))
    tune.write(table, laptop, tuned(kd=1.0))
    text = (folder / f"{TABLE}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Which loss weights")
    found = Tuning.model_validate(schema.plain(schema.parsed(folder / f"{TABLE}.yaml", "")))
    assert found.profiles["paper"].factors == {"kd": 0.3162}
    assert found.profiles["laptop"].factors == {"kd": 1.0}
    monkeypatch.undo()
    schema.read.cache_clear()
    schema.document.cache_clear()
