"""Plain feature distillation."""

import copy

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.methods.fd import FD, FDConfig
from hkd.methods.parts.feature_mimicking import mimic_loss
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo, Taps, to_tokens


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Teacher(ZOO["swin_s_mini"], 10)  # final map 64 x 2 x 2


def build(teacher, final=(5, 2, 2), stage4=(6, 2, 2), **options) -> FD:
    torch.manual_seed(1)
    info = TapInfo(classes=10, pooled=4, final=final, stages={4: stage4})
    return FD(FDConfig(**options), info, {"teacher": teacher}, F.cross_entropy)


def run(method, teacher, map_s, name="final"):
    x = torch.rand(len(map_s), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    taps_s = Taps(
        logits=torch.zeros(len(x), 10),
        pooled=torch.zeros(len(x), 4),
        final=map_s if name == "final" else torch.zeros(len(x), 5, 2, 2),
        stages={4: map_s},
    )
    taps_t = teacher(x)
    batch = Batch(x=x, y=torch.zeros(len(x), dtype=torch.long), index=torch.arange(len(x)))
    return method(batch, taps_s, {"teacher": taps_t}), taps_t


def test_the_weight_follows_the_teachers_positions_unless_given(teacher):
    assert build(teacher).weight == 1.0  # 4 / (2 * 2)
    assert build(teacher, weight=0.08).weight == 0.08


def test_the_convolution_has_a_bias_and_is_left_out_when_widths_agree(teacher):
    shapes = {name: tuple(p.shape) for name, p in build(teacher).named_parameters()}
    assert shapes == {"projector.weight": (64, 5, 1, 1), "projector.bias": (64,)}
    assert not list(build(teacher, final=(64, 2, 2)).parameters())


def test_equal_widths_and_maps_cost_nothing(teacher):
    method = build(teacher, final=(64, 2, 2))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    losses, _ = run(method, teacher, teacher(x).final)
    assert list(losses) == ["task", "feat_s4"]
    assert losses["feat_s4"].item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 3), (1, 1)])
def test_the_projected_map_is_compared_on_the_teachers_grid(teacher, grid):
    method = build(teacher, weight=0.08, final=(5, *grid))
    map_s = torch.randn(3, 5, *grid)
    losses, taps_t = run(method, teacher, map_s)
    resize = F.adaptive_avg_pool2d if grid > (2, 2) else lambda m, g: F.interpolate(m, g, mode="bilinear")
    projected = torch.einsum("dc,bchw->bdhw", method.projector.weight[..., 0, 0], resize(map_s, (2, 2)))
    projected = projected + method.projector.bias[:, None, None]
    expected = 0.08 * mimic_loss(to_tokens(projected), to_tokens(taps_t.final))
    assert losses["feat_s4"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_raw_tap_is_stage_four_before_the_norm(teacher):
    method = build(teacher, s4_tap="raw")
    assert method.projector.in_channels == 6
    assert method.needs(method.config).student.stages == (4,)
    assert run(method, teacher, torch.randn(2, 6, 2, 2), name="stages")[0]["feat_s4"].isfinite()


def test_the_projector_learns_and_the_teacher_does_not(teacher):
    before = copy.deepcopy(teacher.state_dict())
    method = build(teacher)
    losses, _ = run(method, teacher, torch.randn(2, 5, 2, 2))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_one_batch_can_be_fitted(teacher):
    method, map_s = build(teacher, final=(32, 2, 2)), torch.randn(4, 32, 2, 2, requires_grad=True)
    target = to_tokens(teacher(torch.rand(4, 3, 32, 32)).final)
    optimizer = torch.optim.Adam([map_s, *method.parameters()], lr=0.05)
    curve = []
    for _ in range(60):
        loss = mimic_loss(to_tokens(method.projector(map_s)), target)
        curve.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert curve[-1] < 0.1 * curve[0]
