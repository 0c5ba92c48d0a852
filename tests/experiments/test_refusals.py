"""Refusals before anything runs: a method's own word, the shapes of the taps, and only pairs that have them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import cli
from experiments.commands import tables
from experiments.kept import Kept
from experiments.planning import building, refusals
from experiments.planning.plan import Cell, PlannedRun, plan
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.spec import DataSpec, MethodSpec, ModelCard, Recipe, RunSpec, TeacherSpec, Weights
from tests.experiments.fake_tasks import fake_plan

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(epochs=1, batch_size=4)
SMALL = replace(ZOO["resnet18_mini"], image_size=16)  # its last map is 1x1


@pytest.fixture(autouse=True)
def asked(tmp_path, monkeypatch):
    """Nothing was asked before."""
    monkeypatch.setattr(refusals, "Kept", lambda folder, name, readers: Kept(tmp_path, name, readers))


def run(key="a", method="scalekd", student=SMALL, teacher="swin_t_mini", classes=None, seed=0, **changes):
    taught = TeacherSpec(model=ZOO[teacher], weights=Weights(kind="run", id="t"), classes=classes)
    facts = {"task": "train", "data": DataSpec(name="digits"), "student": student, "recipe": RECIPE} | changes
    return PlannedRun(
        key=key, spec=RunSpec(method=MethodSpec(name=method), teachers={"teacher": taught}, seed=seed, **facts)
    )


def cell(row, label, *keys):
    return Cell(
        row=row,
        teacher="t",
        student="s",
        method=label,
        variant="",
        metric="top1",
        label=label,
        row_label=("t", "s"),
        runs=keys,
    )


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (run(teacher="mixer_s16_mini"), "a mixer teacher has none that takes tokens"),
        (run(), "The student's s3 map is 1x1"),
        (run(method="scalekd", student=ZOO["resnet18_mini"]), None),
        (run(method="fd"), None),
        (run(method="kd", recipe=None), None),
        (replace(run(), spec=replace(run(method="kd").spec, teachers={})), "needs a teacher with the role 'teacher'"),
        (run(method="dkd", classes=7), "the teacher has 7 classes and the data 10"),
        (run(method="hcd", classes=7), "the teacher has 7 classes and the data 10"),
        (run(method="crd", recipe=replace(RECIPE, mixup=0.2)), "cannot have mixup"),
    ],
)
def test_a_run_is_refused_with_the_sentence_that_it_would_end_with(found, reason):
    reasons = refusals.refusals([found])
    assert reasons.keys() == ({"a"} if reason else set())
    assert reason is None or reason in reasons["a"]


def test_looking_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    refusals.refusals([run()])
    assert torch.equal(torch.get_rng_state(), before)


def test_only_tensors_without_numbers_stay_unfilled():
    with building.Unfilled():
        real, empty = torch.zeros(2).normal_(), torch.zeros(2, device="meta")
        assert real.abs().sum() > 0
        assert torch.equal(torch.tensor([-1.0, 2.0]).clamp_(0, 1), torch.tensor([0.0, 1.0]))
        assert empty.normal_().clamp_(min=0) is empty


@pytest.mark.parametrize("name", ["swin_t_mini", "vit_s16_mini", "resnet50_mini", "beit_b16_mini"])
def test_a_model_that_is_not_filled_has_the_shapes_of_one_that_is(name):
    filled = TapModel(ZOO[name], 10)
    with building.Unfilled(), torch.device("meta"):
        unfilled = TapModel(ZOO[name], 10)
    assert unfilled.info == filled.info
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (filled, unfilled)]
    assert shapes[0] == shapes[1]


def test_runs_that_differ_by_seed_are_asked_about_once(monkeypatch):
    asked = []
    monkeypatch.setattr(building, "refusal", lambda run, classes, models: asked.append(run.key) or "no.")
    assert refusals.refusals([run(key=str(seed), seed=seed) for seed in range(5)]) == dict.fromkeys("01234", "no.")
    assert asked == ["0"]


def test_what_was_answered_is_kept_until_the_run_its_data_or_code_change(monkeypatch):
    asked = []
    monkeypatch.setattr(building, "refusal", lambda run, classes, models: asked.append(classes))
    for _ in range(2):
        assert refusals.refusals([run()]) == {}  # that nothing is against it is an answer, too
    assert asked == [10]
    refusals.refusals([run(recipe=replace(RECIPE, mixup=0.2))])
    assert asked == [10, 10]
    monkeypatch.setattr(refusals, "class_count", lambda data: 7)
    refusals.refusals([run()])
    assert asked == [10, 10, 7]
    monkeypatch.setattr(refusals.code.Code, "digest", lambda self, entry: "edited")
    refusals.refusals([run()])
    monkeypatch.setattr(refusals, "versions", lambda: ("3.0", "2.0"))
    refusals.refusals([run()])
    assert asked == [10, 10, 7, 7, 7]


def test_a_method_is_asked_with_its_own_code_and_that_of_all_that_the_run_enters(monkeypatch):
    entered = []
    monkeypatch.setattr(refusals.code.Code, "digest", lambda self, entry: entered.append(set(entry)) or "0")
    refusals.question_of(run(), 10)
    units = {"tasks.train", "methods.scalekd", "data.digits", "models.families.resnet", "models.families.swin"}
    assert entered == [{f"hkd.{unit}" for unit in units} | {"hkd.models.tap_model"}]


def test_pairs_with_one_reason_stand_together(monkeypatch):
    monkeypatch.setattr(refusals, "refusals", lambda runs: {"a": "too small.", "b": "too small.", "c": "no tail."})
    table = fake_plan(*(run(key=key) for key in "abcd"))
    cells = cell("one", "X", "a"), cell("one", "Y", "c", "d"), cell("two", "X", "b"), cell("two", "Y", "d")
    found = refusals.refused_cells(replace(table, cells=(*cells, replace(cells[0], metric="top5"))))
    assert found == {"too small.": [("one", "X"), ("two", "X")], "no tail.": [("one", "Y")]}


def test_no_pair_of_scalekds_table_is_refused():
    assert refusals.refused_cells(plan("scalekd_table3", "laptop", 1)) == {}


def test_the_plan_command_shows_refused_pairs_and_why(monkeypatch, capsys):
    table = replace(fake_plan(run()), cells=(cell("swin_t-resnet18", "ScaleKD", "a"),))
    monkeypatch.setattr(tables, "planned", lambda table, profile=None, seeds=None, recipe=None: table_of)
    table_of = table
    with pytest.raises(SystemExit):
        cli.main(["plan", "fake_table"])
    output = " ".join(capsys.readouterr().out.split())
    assert "fake_table: not applicable: swin_t-resnet18, ScaleKD: The student's s3 map is 1x1" in output


def test_what_is_kept_is_told_without_torch():
    script = "import sys, experiments.planning.refusals; print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout == "False\n"


def test_the_overview_of_all_tables_asks_no_method():
    script = (
        "import sys; from experiments import cli\n"
        "try: cli.main(['plan', '--profile', 'smoke'])\n"
        "except SystemExit: print([name for name in ('torch', 'experiments.planning.refusals') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("look", [lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.numpy(), bool])
def test_a_method_that_looks_at_numbers_while_it_is_built_is_asked_when_its_run_starts(monkeypatch, look):
    monkeypatch.setattr(building, "make_method", lambda *_: look(torch.ones(1)))
    assert refusals.refusals([run(method="kd")]) == {}


def test_a_mistake_in_a_method_is_not_taken_for_that(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(building, "make_method", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        refusals.refusals([run(method="kd")])


@pytest.mark.parametrize(
    "kwargs",
    [{"block": "timm.models.resnet:BasicBlock", "layers": (1, 1, 1, 1)}, {"layers": 3}, {"depth": 3}, {"layers": ()}],
)
def test_a_card_that_its_class_cannot_be_built_with_is_a_sentence(kwargs):
    card = ModelCard(name="mine", family="resnet", arch="timm.models.resnet:ResNet", kwargs=kwargs, image_size=16)
    reason = refusals.refusals([run(method="kd", student=card)])["a"]
    assert reason.startswith("Model 'mine' cannot be built with the arch and kwargs of its card (")
    assert "\n" not in reason
