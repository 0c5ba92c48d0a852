"""VID: the teacher's maps under Gaussians around the student's."""

import math

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.vid import VID, Gaussian, VIDConfig, vid_loss
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.spec import Recipe
from hkd.training.recipe import make_optimizer


def pair(teacher="swin_t_mini", student="resnet18_mini", **options):
    torch.manual_seed(1)
    taught, learning = Teacher(ZOO[teacher], 5), TapModel(ZOO[student], 5)
    return VID(VIDConfig(**options), learning.info, {"teacher": taught}, F.cross_entropy), learning, taught


def losses_of(method, student, teacher, count=2):
    x = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(x=x, y=torch.arange(count), index=torch.arange(count))
    needs = method.needs(method.config)
    return method(batch, student(x, needs.student), {"teacher": teacher(x, needs.teachers["teacher"])})


def value(variance):
    return vid_loss(torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 3.0), torch.tensor([variance])).item()


def test_the_loss_has_its_hand_values_and_is_least_where_the_variance_is_the_squared_error():
    assert value(5.0) == pytest.approx(1.204719, abs=1e-6)
    assert value(4.0) == pytest.approx(1.193147, abs=1e-6)
    assert all(value(4.0) < value(variance) for variance in (1.0, 3.9, 4.1, 9.0))


def test_the_loss_agrees_with_loops_over_elements():
    torch.manual_seed(0)
    mean, map_t = torch.randn(2, 2, 3, 4, 2, dtype=torch.float64)
    variance = torch.rand(3, dtype=torch.float64) + 0.1
    total = 0.0
    for b in range(2):
        for c in range(3):
            for i in range(4):
                for j in range(2):
                    error = float(mean[b, c, i, j] - map_t[b, c, i, j])
                    total += (error**2 / float(variance[c]) + math.log(variance[c])) / 2
    assert vid_loss(mean, map_t, variance).item() == pytest.approx(total / 48)


def test_gradients_agree_with_finite_differences_and_none_reaches_the_teacher():
    torch.manual_seed(0)
    mean, map_t = (torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    variance = (torch.rand(3, dtype=torch.float64) + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: vid_loss(m, map_t, v), (mean, variance))
    assert torch.autograd.grad(vid_loss(mean, map_t, variance), map_t, allow_unused=True) == (None,)


def test_variances_start_at_5_and_stay_where_the_squared_error_is_5():
    gaussian = Gaussian(2, 3, learned=True)
    assert gaussian.rho[0].item() == pytest.approx(4.993229, abs=1e-6)
    torch.testing.assert_close(gaussian.variance, torch.full((3,), 5.0))
    errors = torch.tensor([5.0, 4.0, 6.0]).sqrt().view(1, 3, 1, 1)
    vid_loss(errors, torch.zeros(1, 3, 1, 1), gaussian.variance).backward()
    assert gaussian.rho.grad[0].abs() < 1e-6
    assert gaussian.rho.grad[1] > 1e-3
    assert gaussian.rho.grad[2] < -1e-3


def test_large_and_small_rho_give_finite_variances():
    gaussian = Gaussian(1, 2, learned=True)
    gaussian.rho.data.copy_(torch.tensor([1e4, -1e4]))
    torch.testing.assert_close(gaussian.variance, torch.tensor([1e4, 1e-5]))


def test_parameters_are_a_regressor_without_biases_and_a_variance_a_channel():
    method, student, teacher = pair(stages=[3])
    wide, (width, *_) = teacher.info.stages[3][0], student.info.stages[3]
    found = {name: parameter.numel() for name, parameter in method.named_parameters()}
    assert sum(found.values()) == 2 * wide**2 + width * wide + wide
    assert found["gaussians.3.rho"] == wide
    assert all(name.endswith(("weight", "rho")) for name in found)
    fixed = pair(stages=[3], variance="fixed")[0]
    assert sum(p.numel() for p in fixed.parameters()) == sum(found.values()) - wide
    torch.testing.assert_close(fixed.gaussians["3"].variance, torch.full((wide,), 5.0))


def test_no_weight_decay_pulls_the_variances():
    method, student, _ = pair()
    recipe = Recipe(epochs=1, batch_size=2, weight_decay=0.1, decay_1d=True)
    optimizer = make_optimizer(recipe, student.net, method)
    held = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {id(gaussian.rho) for gaussian in method.gaussians.values()} <= held


@pytest.mark.parametrize(("teacher", "student"), [("deit_t_mini", "resnet18_mini"), ("resnet18_mini", "swin_p_mini")])
def test_maps_meet_on_the_coarser_grid_and_every_epoch_tells_the_variances(teacher, student):
    method, learning, taught = pair(teacher, student, weight=0.5, w_task=2.0)
    losses = losses_of(method, learning, taught)
    assert list(losses) == ["task", "vid_s1", "vid_s2", "vid_s3", "vid_s4"]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    needs = method.needs(method.config)
    taps_s, taps_t = learning.train()(x, needs.student), taught(x, needs.student)
    method, learning, taught = pair(teacher, student, weight=0.5)
    taps_s = learning(x, needs.student)
    for stage in (1, 2, 3, 4):
        grid = tuple(map(min, taps_s.stages[stage].shape[2:], taps_t.stages[stage].shape[2:]))
        s, t = (F.adaptive_avg_pool2d(taps.stages[stage], grid) for taps in (taps_s, taps_t))
        first, _, second, _, third = method.gaussians[str(stage)].regressor
        for weight in (first.weight, second.weight):
            s = torch.einsum("dc,bchw->bdhw", weight[:, :, 0, 0], s).clamp(min=0)
        s = torch.einsum("dc,bchw->bdhw", third.weight[:, :, 0, 0], s)
        expected = ((s - t) ** 2 / 5 + math.log(5)).mean() / 4
        torch.testing.assert_close(losses[f"vid_s{stage}"], expected, rtol=1e-4, atol=1e-5)
    assert method.diagnostics() == pytest.approx({f"variance_s{stage}": 5.0 for stage in (1, 2, 3, 4)})


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="variance"):
        VIDConfig(variance="none")
    _, student, teacher = pair()
    teacher.info.stages[4] = (3, 0, 0)
    with pytest.raises(Refused, match="'vid' compares stage 4, where the teacher's map is 0x0"):
        VID(VIDConfig(), student.info, {"teacher": teacher}, F.cross_entropy)
