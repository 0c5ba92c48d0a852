"""ScaleKD's adapters as they are planned, against what the real modules hold and what a real training step counts.

On torch's meta device: shapes and operators are the real ones at full size, and nothing is computed.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from experiments.planning.adapters import Adapters, adapters
from experiments.planning.estimate import cost
from experiments.planning.plan import PlannedRun
from hkd.data.batch import Batch
from hkd.methods.scalekd import ScaleKD, ScaleKDConfig
from hkd.models.cards.maps import MAPS
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.spec import DataSpec, MethodSpec, Recipe, RunSpec, TeacherSpec, Weights

IMAGES = 64  # in a batch: what is projected once a batch hardly counts
CLASSES = 1000


def planned(student, teacher, **options):
    return RunSpec(
        task="train",
        data=DataSpec(name="imagenet1k", options={"n_train": 1, "n_test": 1}),  # 1000 images each
        student=ZOO[student],
        method=MethodSpec(name="scalekd", options=options),
        recipe=Recipe(epochs=1, batch_size=IMAGES),
        teachers={"teacher": TeacherSpec(model=ZOO[teacher], weights=Weights(kind="random", id="0"))},
    )


def counted(student, teacher, **options):
    """GMACs of one image of a training step, and the bytes of what it leaves (student and adapters)."""
    with torch.device("meta"):
        model, frozen = TapModel(ZOO[student], CLASSES), Teacher(ZOO[teacher], CLASSES)
        config = ScaleKDConfig(**options)
        method = ScaleKD(config, model.info, {"teacher": frozen}, F.cross_entropy)
        side = ZOO[student].image_size
        labels = torch.zeros(IMAGES, dtype=torch.int64)
        batch = Batch(torch.zeros(IMAGES, 3, side, side), labels, labels)
        counter = FlopCounterMode(display=False)
        needs = method.needs(config)
        with counter:
            taps_s, taps_t = model(batch.x, needs.student), {"teacher": frozen(batch.x)}
            sum(method(batch, taps_s, taps_t).values()).backward()
    held = [*model.net.state_dict().values(), *method.state_dict().values()]
    return counter.get_total_flops() / 2e9 / IMAGES, sum(tensor.nbytes for tensor in held)


PAIRS = [
    ("swin_t_mini", "swin_l_mini", {}),
    pytest.param("resnet50", "swin_l", {}, marks=pytest.mark.slow),
    pytest.param("mixer_s16", "swin_l", {"s4_tap": "raw"}, marks=[pytest.mark.slow, pytest.mark.long]),
    ("vit_b14_mini", "eva_l14_mini", {"vit_tail": 1, "s4_tail": 1}),
    ("resnet50_mini", "swin_s_mini", {"tpp": "off", "stages": ["s4"], "dfm": "off", "norm": "layer"}),
    ("resnet50_mini", "swin_s_mini", {"projector": "conv3x3_bn_relu", "tpp": "mimic_only", "dfm": "two_orig"}),
    ("resnet50_mini", "swin_s_mini", {"projector": "conv1x1", "tpp": "mimic_only", "dfm": "orig_only"}),
]


@pytest.mark.parametrize(("student", "teacher", "options"), PAIRS, ids=lambda value: str(value)[:40])
def test_a_planned_step_is_within_a_tenth_of_the_counted_one(student, teacher, options):
    spec = planned(student, teacher, **options)
    found = cost(PlannedRun(key="a", spec=spec))
    gmacs, size = counted(student, teacher, **options)
    assert (found.flops / 2e9 / 1000 - ZOO[student].gmacs) == pytest.approx(gmacs, rel=0.1)
    assert found.disk == pytest.approx(size, rel=0.02, abs=30_000)  # predictions and curves of 1000 images


def test_the_paper_pair_is_more_than_twice_what_is_planned_without_its_adapters():
    found = adapters(planned("resnet50", "swin_l"))
    assert found.params_m * 4 > 2 * ZOO["resnet50"].params_m * 4
    assert found.macs / 1e3 > 3 * ZOO["resnet50"].gmacs


def test_other_methods_and_foreign_models_add_nothing():
    spec = planned("resnet50", "swin_l")
    object.__setattr__(spec, "method", MethodSpec(name="kd"))
    assert adapters(spec) == Adapters()
    assert set(MAPS) == set(ZOO)


@pytest.mark.slow
@pytest.mark.long
def test_the_maps_of_the_cards_are_those_of_their_models():
    for name, (stage3, final) in MAPS.items():
        with torch.device("meta"):
            info = TapModel(ZOO[name], CLASSES).info
        assert (info.stages[3], info.final) == ((*stage3, stage3[1]), (*final, final[1])), name
