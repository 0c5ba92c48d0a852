"""Trials of settings: validation rows, seeds from 1000 on, any value of a profile changed."""

import json

import pytest

from experiments import trials
from experiments.planning import schema
from experiments.planning.plan import plan_with
from experiments.records.store import Record, Store
from hkd.errors import UserError

ARGUMENTS = ["hcd_cifar100_core", "--row", "swin_t-resnet18", "--column", "supervised", "--seeds", "2"]


def plan_of(*more: str):
    given = trials.parser().parse_args([*ARGUMENTS, *more])
    profile = trials.changed(schema.load_profile(given.profile), trials.settings_of(given.set))
    table = trials.part(schema.load_table(given.table), given.row, given.column)
    return plan_with(table, profile, trials.seeds_of(given.seeds), select=True)


def test_a_trial_sees_validation_rows_and_seeds_from_1000_on_only():
    runs = plan_of().runs.values()
    assert [run.spec.seed for run in runs] == [1000, 1001]
    assert {run.spec.evaluate_on for run in runs} == {"val"}


def test_any_value_of_the_profile_can_be_changed_and_nothing_else_changes():
    plain = [run.spec for run in plan_of().runs.values()]
    places = "recipes.numbers_cnn.epochs=30", "data.cifar100.options={n_train: 1000, noise: 0.1}"
    changed = [run.spec for run in plan_of(*(word for place in places for word in ("--set", place))).runs.values()]
    for one, other in zip(plain, changed, strict=True):
        assert other.recipe.epochs == 30
        assert other.recipe.lr == one.recipe.lr
        assert other.data.options == {"n_train": 1000, "noise": 0.1}
        assert other.student == one.student
    assert [run.spec for run in plan_of().runs.values()] == plain  # the profile itself is as it was


def test_the_teachers_of_a_cell_can_be_tried_alone():
    plan = trials.only_teachers(plan_of("--column", "kd"))
    assert [run.label for run in plan.runs.values()] == ["teacher swin_t_ofa"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "recipes.numbers_cnn.epoch=30"], "unknown key 'epoch'"),
        (["--set", "recipes.numbers_cnn.epochs=many"], "recipes.numbers_cnn.epochs"),
        (["--set", "name.first=1"], "'name.first' cannot be set"),
        (["--set", "recipes.numbers_cnn.epochs"], "is no PLACE=VALUE"),
        (["--set", "recipes.numbers_cnn.epochs={"], "is no PLACE=VALUE"),
        (["--row", "swin_t-resnet81"], "Did you mean"),
        (["--column", "hdc"], "Did you mean"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_a_mistake_is_told_in_one_sentence(words, sentence):
    with pytest.raises(UserError) as told:
        plan_of(*words)
    assert sentence in str(told.value)
    assert "\n" not in str(told.value)


def test_the_rule_takes_the_shortest_schedule_near_one_three_times_as_long():
    """10 epochs are 5 points behind 30, 20 are 1.6 behind 60, 30 are 1.5 behind 90."""
    top1, asked = {10: 60.0, 30: 65.0, 20: 65.0, 60: 66.6, 90: 66.5, 40: 66.0}, []

    def of(epochs):
        asked.append(epochs)
        return top1[epochs]

    assert trials.shortest(of, (40, 10, 20, 30)) == 30
    assert set(asked) == {10, 20, 30, 60, 90}  # the longest are not trained once the rule has chosen
    assert trials.shortest(of, (10, 20)) is None


def test_lengths_are_tried_on_the_recipe_that_is_named_and_the_choice_is_said(monkeypatch):
    plans, said = [], []

    def trained(plan, store):
        plans.append(plan)
        run = next(iter(plan.runs.values()))
        value = {10: 50.0, 30: 70.0, 90: 71.0}[run.spec.recipe.epochs]
        return {"cell": [Record(key="none", label="", status="done", spec={}, metrics={"top1": value})]}

    monkeypatch.setattr(trials, "trial", trained)
    trials.carry_out(trials.parser().parse_args([*ARGUMENTS, "--lengths", "numbers_cnn=10,30"]), said.append)
    assert said[-1] == "numbers_cnn: 30 epochs, 70.0 %"
    assert [plan.runs.keys() for plan in plans].count(plans[0].runs.keys()) == 1  # 30 epochs serve twice
    assert len(plans) == len(said) - 1 == 3


@pytest.mark.parametrize("text", ["numbers_cnn", "=10", "numbers_cnn=", "numbers_cnn=10,", "numbers_cnn=ten"])
def test_lengths_that_are_none_are_refused(text):
    with pytest.raises(UserError, match="is no RECIPE=EPOCHS"):
        trials.lengths_of(text)


def test_a_line_holds_validation_and_training_accuracy_by_seed_and_mean_seconds(tmp_path):
    store, records = Store(tmp_path), []
    for key, top1, train, seconds in (("a" * 16, 61.2, 90.04, 10.0), ("b" * 16, 63.0, 91.0, 14.0)):
        store.folder(key).mkdir(parents=True)
        curves = [{"epoch": 1, "train_top1": 5.0}, {"epoch": 2, "train_top1": train}]
        (store.folder(key) / "curves.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in curves))
        record = {"key": key, "label": "", "status": "done", "spec": {}, "metrics": {"top1": top1}}
        records.append(Record(**record, cost={"cpu_s": seconds}))
    records.append(Record(key="c" * 16, label="", status="diverged", spec={}, cost={"cpu_s": 3.0}))
    line = trials.line("row, KD", "recipes.x.epochs=3", records, store)
    assert line == "| row, KD | recipes.x.epochs=3 | 61.2 63.0 diverged | 90.0 91.0 | 9 |"
