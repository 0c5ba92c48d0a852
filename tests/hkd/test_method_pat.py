"""PAT: attention among regions, aligners, and prompts at the entries of a frozen teacher's stages."""

import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.distiller.module import Distiller
from hkd.errors import Refused, UserError
from hkd.methods.kd import kd_loss
from hkd.methods.parts.hierarchical_context import hierarchical_context_loss
from hkd.methods.parts.prompts import Prompt, SqueezeExcite
from hkd.methods.parts.region_attention import MapAligner, RegionAttention, TokenAligner, sinusoid
from hkd.methods.pat import PAT, PATConfig
from hkd.models.cards.zoo import ZOO
from hkd.models.hooks import recorded_inputs
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want

SMALL = {"width": 16, "heads": 2}
STAGES = Want(stages=(1, 2, 3, 4))


def images(count=2):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def batch_of(count=2):
    return Batch(x=images(count), y=torch.arange(count), index=torch.arange(count))


def pair(name="swin_t_mini", student="resnet18_mini", classes=5, **options):
    torch.manual_seed(1)
    taught, learning = Teacher(ZOO[name], classes), TapModel(ZOO[student], 5)
    method = PAT(PATConfig(**SMALL, **options), learning.info, {"teacher": taught}, F.cross_entropy)
    return method, learning, taught


def losses_of(method, student, teacher, batch):
    needs = method.needs(method.config)
    return method(batch, student(batch.x, needs.student), {"teacher": teacher(batch.x, needs.teachers["teacher"])})


def value(s, t=None):
    s = torch.tensor(s)[None, None]
    return hierarchical_context_loss(s, torch.zeros_like(s) if t is None else t).item()


def board(side):
    return [[float((-1) ** (i + j)) for j in range(side)] for i in range(side)]


def test_the_context_loss_has_its_hand_values():
    assert value([[1.0, 2.0], [3.0, 4.0]]) == pytest.approx(7.083333, abs=1e-6)
    assert value(board(8)) == pytest.approx(0.533333, abs=1e-6)
    assert value(board(4)) == pytest.approx(0.571429, abs=1e-6)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 8])
def test_a_constant_difference_costs_its_square_on_any_grid(side):
    assert value([[2.0] * side] * side) == pytest.approx(4)


def test_the_context_loss_agrees_with_loops_and_neither_side_is_detached():
    torch.manual_seed(0)
    s, t = (torch.randn(2, 3, 7, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    terms = [((s - t) ** 2).mean()]
    for side in (4, 2, 1):
        cells = []
        for i in range(side):
            for j in range(side):
                rows = slice(7 * i // side, -(-7 * (i + 1) // side))
                columns = slice(7 * j // side, -(-7 * (j + 1) // side))
                cells.append((s - t)[:, :, rows, columns].mean(dim=(2, 3)) ** 2)
        terms.append(torch.stack(cells).mean())
    expected = (terms[0] + terms[1] / 2 + terms[2] / 4 + terms[3] / 8) / 1.875
    found = hierarchical_context_loss(s, t)
    torch.testing.assert_close(found, expected)
    assert all(grad.any() for grad in torch.autograd.grad(found, (s, t)))


def test_the_sinusoid_has_its_hand_values():
    expected = torch.tensor([0.841471, 0.540302, 0.010000, 0.999950])
    torch.testing.assert_close(sinusoid(2, 4)[1], expected, atol=1e-6, rtol=0)


def test_a_gate_with_zero_weights_is_one_half():
    gate = SqueezeExcite(32, "gate")
    for parameter in gate.parameters():
        parameter.data.zero_()
    assert torch.equal(gate(torch.randn(2, 32, 5, 5)), torch.full((2, 32, 1, 1), 0.5))
    gate.form, x = "scale", torch.randn(2, 32, 5, 5)
    assert torch.equal(gate(x), x / 2)


def test_without_queries_keys_and_positions_all_regions_are_the_mean_value():
    attention = RegionAttention({1: (3, 8, 8), 2: (5, 2, 2)}, 16, 2, "none")
    for linear in (attention.to_q, attention.to_kv):
        linear.weight.data[:16].zero_()
        linear.bias.data[:16].zero_()
    maps = {1: torch.randn(2, 3, 8, 8), 2: torch.randn(2, 5, 2, 2)}
    tokens = torch.cat([attention.regions[str(stage)](maps[stage]) for stage in (1, 2)], dim=1)
    mean = attention.to_kv(attention.norm(tokens))[:, :, 16:].mean(dim=1, keepdim=True)
    for found in attention(maps).values():
        torch.testing.assert_close(found, mean.expand(2, 16, 16))


@pytest.mark.parametrize("positions", ["token", "sample", "none"])
def test_the_attention_agrees_with_loops_over_heads_and_tokens(positions):
    torch.manual_seed(0)
    attention = RegionAttention({1: (3, 7, 7)}, 8, 2, positions).double()
    map_ = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    resized = F.interpolate(map_, (8, 8), mode="nearest")
    conv = attention.regions["1"].project.requires_grad_(False)
    attention.requires_grad_(False)
    expected = torch.zeros(2, 16, 8, dtype=torch.float64)
    for b in range(2):
        patches = [resized[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] for i in range(4) for j in range(4)]
        rows = torch.stack([(conv.weight * patch).sum(dim=(1, 2, 3)) + conv.bias for patch in patches])
        rows = F.layer_norm(rows, (8,), attention.norm.weight, attention.norm.bias)
        q, (k, v) = attention.to_q(rows), attention.to_kv(rows).split(8, dim=1)
        for n in range(16):
            place = {"token": n, "sample": b}.get(positions)
            for i in range(8) if place is not None else ():
                angle = place / 10_000 ** (2 * (i // 2) / 8)
                extra = math.sin(angle) if i % 2 == 0 else math.cos(angle)
                q[n, i], k[n, i] = q[n, i] + extra, k[n, i] + extra
        for head in (slice(0, 4), slice(4, 8)):
            for n in range(16):
                weights = torch.stack([q[n, head] @ k[m, head] / 2 for m in range(16)]).softmax(dim=0)
                expected[b, n, head] = sum(weights[m] * v[m, head] for m in range(16))
    torch.testing.assert_close(attention({1: map_})[1], expected, rtol=1e-5, atol=1e-6)


def test_a_map_of_few_positions_is_resized_to_the_nearest():
    attention = RegionAttention({1: (3, 2, 2)}, 8, 2, "none")
    map_ = torch.randn(1, 3, 2, 2)
    conv = attention.regions["1"].project
    assert conv.kernel_size == (1, 1)
    torch.testing.assert_close(attention.regions["1"](map_)[0, 5], conv(map_)[0, :, 0, 0])


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_as_many_as_the_paper_tells():
    """ConvNeXt-T teaches DeiT-T at 224 px: 7.08 M in the attention, 6.65 M in prompts, .74 M in aligners."""
    attention = RegionAttention(dict.fromkeys((1, 2, 3, 4), (192, 14, 14)), 512, 8, "token")
    maps = [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]
    prompts = [Prompt(x, t, "gate", feedback=True) for x, t in zip([maps[0], *maps[:3]], maps, strict=True)]
    aligners = [MapAligner(512, shape) for shape in maps]
    found = [round(sum(map(count, part)) / 1e6, 2) for part in ([attention], prompts, aligners)]
    assert found == [7.08, 6.65, 0.74]


@pytest.mark.parametrize(
    "name", ["swin_t_mini", "deit_t_mini", "mixer_b16_mini", "convnext_t_mini", "resnet18_mini", "mobilenet_v2_mini"]
)
def test_prompts_that_add_nothing_leave_the_teacher_bit_for_bit(name):
    method, student, teacher = pair(name)
    method.train()
    frozen = copy.deepcopy(teacher.state_dict())
    plain = teacher(images(), STAGES)
    prompted = teacher.prompted(images(), {int(s): p for s, p in method.prompts.items()}, STAGES)
    assert torch.equal(plain.logits, prompted.logits)
    assert all(torch.equal(map_, prompted.stages[stage]) for stage, map_ in plain.stages.items())
    losses = losses_of(method, student, teacher, batch_of())
    assert list(losses) == ["task", "kd", "reg", "feat"]
    assert losses["reg"].abs() < 1e-6
    sum(losses.values()).backward()
    for name, parameter in method.prompts.named_parameters():
        assert bool(parameter.grad.any()) == name.endswith("beta"), name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in teacher.state_dict().items())


def test_the_released_order_mixes_tokens_with_channels_also_where_prompts_add_nothing():
    method, _, teacher = pair()
    block = teacher.family.entries(teacher.net, teacher.card)[4]
    with recorded_inputs({"x": block.norm1}) as seen:
        plain = teacher(images())
        before = seen["x"]
        mixed = teacher.prompted(images(), {4: method.prompts["4"]}, mixed=True)
    assert torch.equal(seen["x"], before.permute(0, 3, 1, 2).reshape(before.shape))
    assert not torch.equal(mixed.logits, plain.logits)
    cnn = pair("resnet18_mini")[0]
    prompts = {int(stage): prompt for stage, prompt in cnn.prompts.items()}
    taught = cnn.teachers["teacher"]
    assert torch.equal(taught.prompted(images(), prompts, mixed=True).logits, taught(images()).logits)


def test_the_whole_loss_is_made_of_its_parts():
    method, student, teacher = pair("resnet18_mini", w_task=2.0, w_kd=3.0, w_feat=0.5, w_reg=4.0)
    for prompt in method.prompts.values():
        prompt.beta.data.fill_(0.1)
    batch = batch_of()
    method.eval()
    student.eval()
    losses = losses_of(method, student, teacher, batch)
    taps, plain = student(batch.x, STAGES), teacher(batch.x, STAGES)
    prompts = {int(stage): prompt for stage, prompt in method.prompts.items()}
    prompted = teacher.prompted(batch.x, prompts, STAGES)
    aligned = method.attention(taps.stages)
    feat = sum(hierarchical_context_loss(method.aligners[str(i)](aligned[i]), prompted.stages[i]) for i in (1, 2, 3, 4))
    expected = {
        "task": 2 * F.cross_entropy(taps.logits, batch.y),
        "kd": 3 * kd_loss(taps.logits, plain.logits, tau=1.0),
        "reg": 4 * kd_loss(prompted.logits, plain.logits, tau=1.0),
        "feat": feat / 2,
    }
    torch.testing.assert_close(losses, expected)


def test_feedback_is_of_the_step_before_and_is_dropped_when_sizes_differ():
    method, student, teacher = pair()
    method.train()
    for prompt in method.prompts.values():
        prompt.beta.data.fill_(0.5)
    first = losses_of(method, student, teacher, batch_of())["reg"]
    kept = {stage: prompt.last.value for stage, prompt in method.prompts.items()}
    assert all(not error.requires_grad and error.any() for error in kept.values())
    assert {stage: tuple(error.shape[1:]) for stage, error in kept.items()} == {
        str(stage): shape for stage, shape in teacher.info.stages.items()
    }
    second = losses_of(method, student, teacher, batch_of())["reg"]
    assert not torch.equal(first, second)
    other = losses_of(method, student, teacher, batch_of(3))["reg"]
    method.load_state_dict(method.state_dict())
    for prompt in method.prompts.values():
        prompt.last.value = torch.empty(0)
    torch.testing.assert_close(losses_of(method, student, teacher, batch_of(3))["reg"], other)


def test_the_step_before_is_part_of_the_state():
    method, student, teacher = pair()
    losses_of(method.train(), student, teacher, batch_of())
    fresh = pair()[0]
    fresh.load_state_dict(method.state_dict())
    assert all(torch.equal(fresh.prompts[s].last.value, prompt.last.value) for s, prompt in method.prompts.items())


def test_without_prompts_the_plain_maps_are_the_targets_and_the_teacher_can_be_cached():
    method, student, teacher = pair(afp_stages=())
    assert method.needs(method.config).teachers["teacher"] == STAGES
    assert PAT.needs(PATConfig()).teachers["teacher"] == Want()
    assert PAT.teacher_inputs is PAT.__mro__[1].teacher_inputs
    assert list(losses_of(method, student, teacher, batch_of())) == ["task", "kd", "feat"]
    assert not list(method.prompts)


def test_token_teachers_have_token_aligners():
    assert isinstance(pair("deit_t_mini")[0].aligners["1"], TokenAligner)
    assert isinstance(pair("convnext_t_mini")[0].aligners["1"], MapAligner)


def test_the_entry_is_behind_the_patch_merging_of_swin_and_before_the_down_sampling_of_cnns():
    swin, cnn = Teacher(ZOO["swin_t_ofa"], 5), Teacher(ZOO["convnext_t_mini"], 5)
    assert swin.entry_shapes() == swin.info.stages
    shapes = cnn.info.stages
    assert cnn.entry_shapes() == {1: shapes[1], 2: shapes[1], 3: shapes[2], 4: shapes[3]}


def test_what_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="width must be divisible by twice heads, got 20 and 8"):
        PATConfig(width=20)
    with pytest.raises(Refused, match="a stage of the teacher begins with 6 channels: leave that stage out of afp_sta"):
        Prompt((6, 4, 4), (6, 4, 4), "gate", feedback=False)
    with pytest.raises(Refused, match="the teacher has 7 classes and the data 5"):
        pair(classes=7)
    method, student, teacher = pair()
    method.single = True  # as with teachers whose maps have one position
    with pytest.raises(UserError, match="every batch needs at least 2 images, got 1"):
        losses_of(method.train(), student.eval(), teacher, batch_of(1))


def test_teachers_of_somebody_elses_modules_cannot_be_prompted():
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    names = {"stages": dict.fromkeys((1, 2, 3, 4), "0")}
    make = partial(
        Distiller, TapModel(ZOO["resnet18_mini"], 8), other, "pat", image_size=32, teacher_taps=names, **SMALL
    )
    with pytest.raises(Refused, match="does not say where its stages begin; a teacher that takes prompts there must"):
        make(normalize={"teacher": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))})


def test_a_teacher_of_16_bits_is_prompted_in_its_own_precision():
    losses = {}
    for kind in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        taught = TapModel(ZOO["swin_t_mini"], 5)
        distiller = Distiller(TapModel(ZOO["resnet18_mini"], 5), taught.to(kind), "pat", **SMALL).eval()
        losses[kind] = distiller(images(), torch.arange(2))
    assert all(loss.dtype == torch.float32 for loss in losses[torch.bfloat16].values())
    torch.testing.assert_close(losses[torch.bfloat16], losses[torch.float32], rtol=0.1, atol=0.1)
