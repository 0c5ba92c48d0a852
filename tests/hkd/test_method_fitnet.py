"""Our FitNet: stage maps in the mean square."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.fitnet import FitNet, FitNetConfig
from hkd.methods.parts.feature_mimicking import to_grid
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from tests.hkd.sides import method_of, run


def build(shapes_s, shapes_t, **options) -> FitNet:
    torch.manual_seed(0)
    return method_of(FitNet, FitNetConfig(**options), shapes_s, shapes_t)


def test_the_mean_square_has_its_hand_value():
    method = build({4: (1, 2, 2)}, {4: (1, 2, 2)}, stages=(4,))
    method.projectors["4"].weight.data.fill_(1)
    map_s, map_t = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 4.0]]]])
    losses = run(method, {4: map_s}, {4: map_t})
    assert list(losses) == ["task", "feat_s4"]
    assert losses["feat_s4"].item() == pytest.approx(3.25)


@pytest.mark.parametrize(("grid_s", "grid_t"), [((4, 4), (2, 2)), ((2, 2), (4, 4)), ((3, 3), (3, 3)), ((5, 2), (3, 4))])
def test_a_stage_agrees_with_loops_over_positions_on_the_coarser_grid(grid_s, grid_t):
    method = build({2: (3, *grid_s)}, {2: (5, *grid_t)}, stages=(2,), weight=0.5)
    torch.manual_seed(1)
    map_s, map_t = torch.randn(2, 3, *grid_s), torch.randn(2, 5, *grid_t)

    def coarse(map_, height, width):
        found = np.zeros((*map_.shape[:2], height, width))
        for i in range(height):
            for j in range(width):
                rows = slice(i * map_.shape[2] // height, -(-(i + 1) * map_.shape[2] // height))
                columns = slice(j * map_.shape[3] // width, -(-(j + 1) * map_.shape[3] // width))
                found[:, :, i, j] = map_[:, :, rows, columns].mean(dim=(2, 3))
        return found

    grid = min(grid_s[0], grid_t[0]), min(grid_s[1], grid_t[1])
    weight = method.projectors["2"].weight.detach().numpy()[:, :, 0, 0]
    projected = np.einsum("dc,bchw->bdhw", weight, coarse(map_s, *grid))
    expected = 0.5 * np.mean((projected - coarse(map_t, *grid)) ** 2)
    assert run(method, {2: map_s}, {2: map_t})["feat_s2"].item() == pytest.approx(expected, rel=1e-4)


def test_each_chosen_stage_has_a_convolution_without_bias():
    shapes_s = {stage: (stage, 2, 2) for stage in (1, 2, 3, 4)}
    shapes_t = dict.fromkeys((1, 2, 3, 4), (7, 2, 2))
    found = {name: tuple(p.shape) for name, p in build(shapes_s, shapes_t).named_parameters()}
    assert found == {f"projectors.{stage}.weight": (7, stage, 1, 1) for stage in (1, 2, 3, 4)}
    assert set(dict(build(shapes_s, shapes_t, stages=[3]).named_parameters())) == {"projectors.3.weight"}
    needs = FitNet.needs(FitNetConfig(stages=(4, 2)))
    assert needs.student.stages == needs.teachers["teacher"].stages == (2, 4)


def test_tokens_of_a_distilled_transformer_are_compared_without_their_prefix():
    teacher = Teacher(ZOO["swin_s_mini"], 5)
    student = TapModel(ZOO["deit_t_mini"], 5)
    method = FitNet(FitNetConfig(), student.info, {"teacher": teacher}, F.cross_entropy)
    x = torch.rand(2, 3, 32, 32)
    batch = Batch(x=x, y=torch.tensor([0, 1]), index=torch.arange(2))
    needs = method.needs(method.config)
    before = copy.deepcopy(teacher.state_dict())
    losses = method(batch, student(x, needs.student), {"teacher": teacher(x, needs.teachers["teacher"])})
    sum(losses.values()).backward()
    assert list(losses) == ["task", "feat_s1", "feat_s2", "feat_s3", "feat_s4"]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_gradients_agree_with_finite_differences():
    method = build({1: (2, 4, 4)}, {1: (3, 2, 2)}, stages=(1,)).double()
    torch.manual_seed(1)
    map_s, map_t = torch.randn(2, 2, 4, 4).double().requires_grad_(), torch.randn(2, 3, 2, 2).double().requires_grad_()
    loss = lambda tap: F.mse_loss(method.projectors["1"](to_grid(tap, (2, 2))), map_t.detach())  # noqa: E731
    assert torch.autograd.gradcheck(loss, map_s)
    run(method, {1: map_s}, {1: map_t})["feat_s1"].backward()
    torch.testing.assert_close(map_s.grad, torch.autograd.grad(loss(map_s), map_s)[0])
    assert map_t.grad is None


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_constant_and_large_maps_are_finite_also_for_a_batch_of_one(size):
    method = build({1: (2, 4, 4)}, {1: (3, 2, 2)}, stages=(1,))
    loss = run(method, {1: torch.full((1, 2, 4, 4), size)}, {1: torch.full((1, 3, 2, 2), -size)})["feat_s1"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize(("side", "shapes"), [("student", ((2, 0, 0), (3, 2, 2))), ("teacher", ((2, 2, 2), (3, 0, 0)))])
def test_a_map_that_vanished_is_refused(side, shapes):
    with pytest.raises(Refused, match=f"stage 4, where the {side}'s map is 0x0"):
        build({4: shapes[0]}, {4: shapes[1]}, stages=(4,))
