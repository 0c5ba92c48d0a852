"""Stages in pairs on the coarser grid."""

import pytest
import torch

from hkd.errors import Refused
from hkd.methods.parts.pairs import coarser, meet, stage_grids, unit
from hkd.models.taps import TapInfo


def info(**stages) -> TapInfo:
    shapes = {int(name.removeprefix("s")): (3, *grid) for name, grid in stages.items()}
    return TapInfo(classes=2, pooled=4, final=(4, 1, 1), stages=shapes)


def test_the_coarser_grid_is_nowhere_finer_than_either():
    assert coarser((7, 7), (4, 4)) == (4, 4)
    assert coarser((5, 2), (3, 4)) == (3, 2)


def test_number_i_meets_number_i_in_the_order_asked():
    student, teacher = info(s1=(8, 8), s2=(4, 4), s4=(2, 2)), info(s1=(4, 4), s2=(4, 4), s4=(4, 4))
    assert list(stage_grids("at", (4, 1), student, teacher).items()) == [(4, (2, 2)), (1, (4, 4))]


def test_the_finer_map_is_averaged_and_the_coarser_left_alone():
    fine, coarse = torch.arange(16.0).view(1, 1, 4, 4), torch.rand(1, 2, 2, 2)
    pooled, same = meet(fine, coarse, (2, 2))
    assert pooled.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert same.data_ptr() == coarse.data_ptr()
    same, pooled = meet(coarse, fine, (2, 2))
    assert same is coarse
    assert pooled.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_no_gradient_reaches_the_teacher():
    map_s, map_t = torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4, requires_grad=True)
    met_s, met_t = meet(map_s, map_t, (2, 2))
    assert met_s.requires_grad
    assert not met_t.requires_grad


def test_a_zero_vector_stays_zero_and_its_gradient_is_finite():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    found = unit(x, dim=1)
    assert found.flatten().tolist() == pytest.approx([0.6, 0.8, 0, 0])
    found[0].sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("grid_s", "grid_t", "sentence"),
    [((2, 2), (0, 0), "stage 4, where the teacher's map is 0x0"), ((1, 1), (7, 7), "stage 4 the maps meet on .* 1x1")],
)
def test_stages_that_cannot_be_compared_are_refused_in_one_sentence(grid_s, grid_t, sentence):
    with pytest.raises(Refused, match=sentence) as caught:
        stage_grids("at", (4,), info(s4=grid_s), info(s4=grid_t), positions=2)
    assert str(caught.value).endswith(".")
    assert str(caught.value).count(". ") == 0
