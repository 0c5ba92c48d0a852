"""ReviewKD: levels of the teacher against fused levels of the student. Hand values of the loss: test_method_pat.py."""

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import Refused, UserError
from hkd.methods.base import Samples
from hkd.methods.parts.hierarchical_context import hierarchical_context_loss
from hkd.methods.reviewkd import ChannelNorm, Fusion, ReviewKD, ReviewKDConfig
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want

STAGES = Want(stages=(1, 2, 3, 4))


def pair(teacher="swin_t_mini", student="resnet18_mini", epochs=1, steps=1, **options):
    torch.manual_seed(1)
    taught, learning = Teacher(ZOO[teacher], 5), TapModel(ZOO[student], 5)
    method = ReviewKD(ReviewKDConfig(**options), learning.info, {"teacher": taught}, F.cross_entropy)
    method.prepare(Samples(labels=torch.arange(4), classes=5, epochs=epochs, steps=steps))
    return method, learning, taught


def losses_of(method, student, teacher, count=2):
    x = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    batch = Batch(x=x, y=torch.arange(count), index=torch.arange(count))
    return method(batch, student(x, STAGES), {"teacher": teacher(x, STAGES)})


def test_a_fusion_agrees_with_its_formula_by_positions():
    torch.manual_seed(0)
    fusion = Fusion(3, 4, (5, 4, 4), deepest=False).double()
    map_s, deeper = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 4, 1, 1, dtype=torch.float64)
    h = torch.einsum("mc,bchw->bmhw", fusion.enter[0].weight[:, :, 0, 0], map_s)
    h = (h - h.mean(dim=(0, 2, 3), keepdim=True)) / (h.var(dim=(0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    handed = torch.zeros(2, 4, 4, 4, dtype=torch.float64)
    weight, bias = fusion.attention.weight[:, :, 0, 0], fusion.attention.bias
    for b in range(2):
        for i in range(4):
            for j in range(4):
                own, other = h[b, :, i // 2, j // 2], deeper[b, :, 0, 0]
                a, c = (weight @ torch.cat([own, other]) + bias).sigmoid()
                handed[b, :, i, j] = a * own + c * other
    out = F.conv2d(handed, fusion.leave[0].weight, padding=1)
    out = F.batch_norm(out, None, None, training=True)
    found = fusion(map_s, deeper)
    torch.testing.assert_close(found[1], handed, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0], out, rtol=1e-5, atol=1e-6)


def test_levels_are_independent_where_the_attention_takes_the_own_one_alone():
    fusion = Fusion(3, 4, (5, 2, 2), deepest=False)
    fusion.attention.weight.data.zero_()
    fusion.attention.bias.data.copy_(torch.tensor([100.0, -200.0]))
    map_s = torch.randn(2, 3, 2, 2)
    one, other = (fusion(map_s, torch.randn(2, 4, 1, 1))[0] for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(("teacher", "student"), [("swin_t_mini", "resnet18_mini"), ("resnet18_mini", "deit_t_mini")])
def test_the_loss_is_made_of_its_levels_the_deepest_first(teacher, student):
    method, learning, taught = pair(teacher, student, weight=0.5, w_task=2.0)
    method.eval()
    learning.eval()
    losses = losses_of(method, learning, taught)
    assert list(losses) == ["task", *(f"review_s{level}" for level in (5, 4, 3, 2, 1))]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    taps_s, taps_t, deeper = learning(x, STAGES), taught(x, STAGES), None
    for level in (5, 4, 3, 2, 1):
        s, t = (taps.pooled[:, :, None, None] if level == 5 else taps.stages[level] for taps in (taps_s, taps_t))
        fused, deeper = method.fusions[str(level)](s, deeper)
        torch.testing.assert_close(losses[f"review_s{level}"], hierarchical_context_loss(fused, t) / 2)


def test_gradients_reach_deeper_levels_through_what_is_handed_on_and_never_the_teacher():
    method, student, teacher = pair()
    losses = losses_of(method, student, teacher)
    losses["review_s1"].backward()
    assert method.fusions["5"].enter[0].weight.grad.any()
    assert method.fusions["5"].leave[0].weight.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_weight_rises_by_epochs():
    method, student, teacher = pair(epochs=36, steps=2)
    method.train()
    found = []
    for _ in range(8):
        found.append(method.rise())
        losses_of(method, student, teacher)
    assert found == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1, 1, 1])
    assert pair(epochs=36, warmup=0)[0].rise() == 1
    assert pair(epochs=36, warmup=20)[0].rise() == 1 / 20
    assert int(method.state_dict()["passes"]) == 8


def test_the_width_of_fusions_is_the_students_pooled_one_up_to_512():
    method, student, _ = pair()
    assert method.fusions["1"].enter[0].out_channels == min(512, student.info.pooled)


def test_channel_norms_are_those_of_the_first_50_batches():
    torch.manual_seed(0)
    norm, batches = ChannelNorm(3), 2 + 3 * torch.randn(60, 4, 3, 2, 2)
    for batch in batches:
        found = norm(batch)
    first = batches[:50].double()
    mean = first.mean(dim=(0, 1, 3, 4)).float().view(3, 1, 1)
    std = first.var(dim=(0, 1, 3, 4), correction=0).sqrt().float().view(3, 1, 1)
    torch.testing.assert_close(found, (batches[-1] - mean) / (std + 1e-6))
    constant = ChannelNorm(1)(torch.full((2, 1, 2, 2), 7.0))
    assert torch.equal(constant, torch.zeros_like(constant))


def test_normed_teachers_make_the_loss_independent_of_their_scale():
    norm, map_ = ChannelNorm(3), torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(norm(map_), ChannelNorm(3)(100 * map_ + 5), rtol=1e-3, atol=1e-4)
    method, student, teacher = pair(teacher_norm="channel")
    assert all(loss.isfinite() for loss in losses_of(method, student, teacher).values())
    assert int(method.norms["5"].count) == 1


def test_what_cannot_be_is_refused_in_a_sentence():
    method, student, teacher = pair()
    with pytest.raises(UserError, match="every batch needs at least 2 images, got 1"):
        losses_of(method, student, teacher, 1)
    teacher.info.stages[4] = (3, 0, 0)
    with pytest.raises(Refused, match="the teacher's map of stage 4 has no positions: take larger images"):
        ReviewKD(ReviewKDConfig(), student.info, {"teacher": teacher}, F.cross_entropy)
