"""What a set-up must show of itself before its cells are judged."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.planning.schema import Assay
from experiments.results import assay
from experiments.results.assay import Control
from experiments.results.caption import sensitivity
from experiments.results.compare import compare
from experiments.results.stats import Estimate

ASSAY = Assay(controls=("kd",), floors={"ap_box": 10.0})
ROW = "swin_l-mobilenet_v1"
SEEDS = {"supervised": [80.0, 81.0, 82.0], "kd": [83.0, 84.5, 85.0], "scalekd": [82.0, 84.0, 84.0]}


@pytest.fixture
def plan(synthetic):
    found = synthetic.plan(pairs=2, seeds=3)
    return replace(found, assay=ASSAY, cells=tuple(replace(cell, chance=10.0) for cell in found.cells))


def told(plan, records, method="scalekd"):
    return next(r for r in compare(plan, records).cells if (r.cell.row, r.cell.method) == (ROW, method))


def test_methods_that_copy_outputs_are_those_whose_loss_reads_the_teachers():
    folder = Path(assay.__file__).parents[2] / "hkd" / "methods"
    reads = {
        p.stem for p in folder.glob("*.py") if re.search(r'(taps_t\["teacher"\]|teacher|plain)\.logits', p.read_text())
    }
    assert reads - {"rsd"} == assay.COPIES_OUTPUTS  # of RSD's own options none reads them unless it is asked to


@pytest.mark.parametrize(
    ("student", "chance", "teacher", "copies", "expected"),
    [
        (30.0, 10.0, 95.0, True, "chance"),
        (30.1, 10.0, 95.0, True, ""),
        (97.1, 10.0, 99.5, True, "ceiling"),
        (97.0, 10.0, 99.5, True, ""),
        (80.0, 10.0, 81.9, True, "teacher not better"),
        (80.0, 10.0, 82.0, True, ""),
        (80.0, 10.0, 70.0, False, ""),
        (80.0, 10.0, float("nan"), True, ""),
        (float("nan"), 10.0, 90.0, True, ""),
        (3.0, 1.0, 95.0, True, "chance"),
        (3.1, 1.0, 95.0, True, ""),
        (61.0, 50.0, 95.0, True, "chance"),  # of two classes 50 + 2 * 50 / 9
        (61.2, 50.0, 95.0, True, ""),
        (48.1, 100 / 3, 95.0, True, "chance"),
        (48.2, 100 / 3, 95.0, True, ""),
    ],
)
def test_a_student_needs_room_and_a_better_teacher(plan, student, chance, teacher, copies, expected):
    cell = replace(plan.cells[2], chance=chance)
    found = assay.cannot_tell(cell, student, teacher, ASSAY, copies=copies)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_dense_head_needs_to_reach_its_floor(plan):
    cell = replace(plan.cells[2], metric="ap_box", chance=None)
    assert assay.cannot_tell(cell, 9.0, 0.0, ASSAY, copies=False).startswith("floor")
    assert assay.cannot_tell(cell, 10.0, 0.0, ASSAY, copies=False) == ""


def test_a_set_up_that_passes_is_judged(plan, synthetic):
    assert told(plan, synthetic.with_values(plan, SEEDS)).verdict == "holds"


def test_students_at_chance_have_no_verdict_whatever_the_gain(plan, synthetic):
    records = synthetic.with_values(plan, {**SEEDS, "supervised": [11.0, 10.5, 12.0]})
    found = told(plan, records)
    assert found.verdict == "cannot tell here"
    assert found.judged.cannot_tell == "chance: the student alone has 11.2 %, and guessing 10 %"


def test_a_teacher_that_is_no_better_is_measured_on_its_own_run(plan, synthetic):
    records = synthetic.with_values(plan, SEEDS)
    teacher = records["teacher/swin_l"]
    records["teacher/swin_l"] = replace(teacher, metrics={"top1": 82.5})
    assert told(plan, records).judged.cannot_tell.startswith("teacher not better: it has 82.5 %")
    kd_off = {"method": replace(plan.runs[f"{ROW}/scalekd/0"].spec.method, options={"kd": False})}
    run = plan.runs[f"{ROW}/scalekd/0"]
    plan.runs[f"{ROW}/scalekd/0"] = replace(run, spec=replace(run.spec, **kd_off))
    assert told(plan, records).judged.cannot_tell == ""  # ScaleKD without its KD term copies no outputs


def test_without_a_decided_control_nothing_is_judged(plan, synthetic):
    records = synthetic.with_values(plan, {**SEEDS, "kd": [79.0, 81.0, 83.5]})
    comparison = compare(plan, records)
    assert {r.verdict for r in comparison.cells if r.cell.method == "scalekd"} == {"cannot tell here"}
    assert comparison.judgement.controls[0].label == "KD"
    assert not comparison.judgement.controls[0].decided
    none = replace(plan, assay=ASSAY.model_copy(update={"controls": ("fitnet",)}))  # no column: not asked
    assert told(none, records).verdict == "holds"


@pytest.mark.parametrize(("chance", "said"), [(10.0, "3 × chance"), (1.0, "3 × chance"), (50.0, "61.1 %")])
def test_the_caption_says_what_a_student_must_be_above(plan, synthetic, chance, said):
    found = replace(plan, cells=tuple(replace(cell, chance=chance) for cell in plan.cells))
    records = synthetic.with_values(found, SEEDS)
    text = sensitivity(found, records, compare(found, records))[0]
    assert f"(the student alone lies between {said} and 97 %;" in text


def test_one_decided_control_is_enough():
    decided, open_ = (
        Control(label=name, metric="top1", data="", gain=Estimate(mean=1.0, low=low, high=2.0, n=3))
        for name, low in (("KD", 0.5), ("DKD", -0.5))
    )
    assert assay.no_control([decided, open_]) == ""
    assert assay.no_control([open_]).startswith("no positive control")
    assert assay.no_control([]) == ""


def test_a_collapsed_seed_is_named_stays_in_the_mean_and_keeps_its_cells_own_variance(synthetic):
    plan = synthetic.plan(pairs=11, seeds=3)
    plan = replace(plan, assay=ASSAY, cells=tuple(replace(cell, chance=10.0) for cell in plan.cells))
    records = synthetic.records(plan)
    key = f"{ROW}/scalekd/1"
    records[key] = replace(records[key], metrics={"top1": 12.0})
    found = told(plan, records)
    assert found.judged.collapsed == (1,)
    assert "seed 1: collapsed to near chance" in found.reasons
    assert found.judged.by == "plain t"
    assert found.measured.n == 3
    assert {r.judged.by for r in compare(plan, records).cells if r.judged.by and r is not found} >= {"moderated t"}
