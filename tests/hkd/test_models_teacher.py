"""Frozen teachers and their tails."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from hkd.errors import Refused
from hkd.models.cards.zoo import ZOO
from hkd.models.hooks import recorded_inputs
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want

TAILED = ["swin_t_mini", "swin_s_mini", "swin_b_mini", "swin_l_mini", "eva_l14_mini", "vit_s16_mini", "vit_b14_mini"]
FAMILIES = ["resnet50_mini", "mobilenet_v1_mini", "convnext_t_mini", "mixer_s16_mini", "swin_l_mini", "eva_l14_mini"]


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def state(teacher):
    return {name: value.clone() for name, value in teacher.net.state_dict().items()}


def unchanged(teacher, before):
    return all(torch.equal(value, before[name]) for name, value in teacher.net.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_teacher_stays_in_eval_whatever_train_is_called(images, name):
    teacher = Teacher(ZOO[name], 10)
    expected, before = teacher(images).logits, state(teacher)
    assert teacher.train() is teacher
    torch.nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert torch.equal(teacher(images).logits, expected)
    assert unchanged(teacher, before)  # batch-norm statistics among them


@pytest.mark.parametrize("name", FAMILIES)
def test_teacher_taps_carry_no_gradient(images, name):
    taps = Teacher(ZOO[name], 10)(images, Want(stages=(3, 4)))
    tensors = [taps.logits, taps.pooled, taps.final, *taps.stages.values()]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_teacher_in_training_mode_draws_stochastic_depth(images):
    card = replace(ZOO["swin_l_mini"], kwargs=ZOO["swin_l_mini"].kwargs | {"drop_path_rate": 0.9})
    teacher = Teacher(card, 10, train_mode=True)
    assert not torch.equal(teacher(images).logits, teacher(images).logits)
    assert not teacher(images).logits.requires_grad
    teacher.eval()
    assert teacher.training


@pytest.mark.parametrize("name", ["swin_t_mini", "swin_l_mini"])
def test_swin_tail_on_stage_3_gives_the_final_features(images, name):
    teacher = Teacher(ZOO[name], 10)
    taps = teacher(images, Want(stages=(3,)))
    tokens = taps.stages[3].flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher.tail()(tokens), taps.final, rtol=1e-5, atol=1e-5)


def test_swin_tail_is_norm_of_the_last_layer(images):
    teacher = Teacher(ZOO["swin_s_mini"], 10)
    net, x = teacher.net, torch.randn(2, 3, 32, 32)
    stage3 = net.layers[:-1](net.patch_embed(x))
    torch.testing.assert_close(net.norm(net.layers[-1](stage3)), net.forward_features(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.tail()(stage3.flatten(1, 2)).movedim(1, -1), net.forward_features(x))


@pytest.mark.parametrize("name", ["vit_s16_mini", "vit_b14_mini"])
@pytest.mark.parametrize("blocks", [None, 1])
def test_vit_tail_without_class_token_gives_the_final_features(images, name, blocks):
    teacher = Teacher(replace(ZOO[name], stages=(0, 0, 2 - (blocks or 2), 2)), 10)
    taps = teacher(images, Want(stages=(3,)))
    tokens = taps.stages[3].flatten(2).transpose(1, 2)
    torch.testing.assert_close(teacher.tail(blocks)(tokens), taps.final, rtol=1e-5, atol=1e-5)


def test_eva_tail_runs_the_last_two_blocks_on_patch_tokens_only(images):
    teacher = Teacher(ZOO["eva_l14_mini"], 10)
    taps = teacher(images, Want(stages=(3,)))
    tokens = taps.stages[3].flatten(2).transpose(1, 2)
    by_hand = teacher.net.blocks[3](teacher.net.blocks[2](tokens))
    torch.testing.assert_close(teacher.tail()(tokens), by_hand.transpose(1, 2).unflatten(2, (5, 5)))


def test_eva_tail_needs_the_class_token_to_reproduce_the_final_features(images):
    teacher = Teacher(ZOO["eva_l14_mini"], 10)
    taps = teacher(images, Want(stages=(3,)))
    tokens = torch.cat([taps.prefix[3], taps.stages[3].flatten(2).transpose(1, 2)], dim=1)
    with_class = teacher.net.blocks[3](teacher.net.blocks[2](tokens))[:, 1:]
    final = taps.final.flatten(2).transpose(1, 2)
    torch.testing.assert_close(with_class, final, rtol=1e-5, atol=1e-5)
    assert not torch.equal(teacher.tail()(tokens[:, 1:]).flatten(2).transpose(1, 2), final)


@pytest.mark.parametrize("name", TAILED)
def test_tail_takes_stage_3_and_gives_the_final_shape(name):
    teacher = Teacher(ZOO[name], 10)
    tail, info = teacher.tail(), teacher.info
    assert (tail.in_width, *tail.in_grid) == info.stages[3]
    assert (tail.out_width, *tail.out_grid) == info.final
    tokens = torch.randn(2, tail.in_grid[0] * tail.in_grid[1], tail.in_width)
    assert tail(tokens).shape == (2, *info.final)


@pytest.mark.parametrize("name", TAILED)
def test_gradients_pass_through_the_tail_and_leave_the_teacher_untouched(images, name):
    teacher = Teacher(ZOO[name], 10)
    tail, before = teacher.tail(), state(teacher)
    tokens = torch.randn(2, tail.in_grid[0] * tail.in_grid[1], tail.in_width, requires_grad=True)
    optimizer = torch.optim.SGD([tokens], lr=0.1)
    (tail(tokens) * torch.randn(2, tail.out_width, *tail.out_grid)).sum().backward()
    assert tokens.grad.abs().sum() > 0
    optimizer.step()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert unchanged(teacher, before)


def test_tail_of_a_step_registers_nothing_in_a_module_that_holds_it():
    module = torch.nn.Module()
    module.tail = Teacher(ZOO["swin_s_mini"], 10).tail()
    assert not list(module.parameters())
    assert module.state_dict() == {}


@pytest.mark.parametrize("name", ["resnet50_mini", "mobilenet_v1_mini", "convnext_t_mini", "mixer_s16_mini"])
def test_family_without_a_tail_says_so(name):
    teacher = Teacher(ZOO[name], 10)
    assert "tail" not in teacher.family.accepts
    with pytest.raises(Refused, match=f"family '{ZOO[name].family}' has no tail"):
        teacher.tail()


@pytest.mark.parametrize("blocks", [0, 5])
def test_tail_of_an_impossible_length_is_refused(blocks):
    with pytest.raises(Refused, match=f"tail of {blocks} blocks .* model with 3"):
        Teacher(ZOO["vit_s16_mini"], 10).tail(blocks)


def test_number_of_blocks_for_a_swin_tail_is_refused():
    with pytest.raises(Refused, match="whole last stage"):
        Teacher(ZOO["swin_s_mini"], 10).tail(2)


def test_rotary_eva_has_no_tail():
    card = ZOO["eva_l14_mini"]
    card = replace(card, arch="timm.models.eva:Eva", kwargs=card.kwargs | {"use_rot_pos_emb": True})
    with pytest.raises(Refused, match="EVA-02"):
        Teacher(card, 10).tail()


def test_teacher_and_student_of_one_seed_are_one_model(images):
    torch.manual_seed(0)
    student = TapModel(ZOO["resnet18_mini"], 10).eval()
    torch.manual_seed(0)
    assert torch.equal(Teacher(ZOO["resnet18_mini"], 10)(images).logits, student(images).logits)


ENTERED = {card.family: name for name, card in reversed(ZOO.items()) if name.endswith("_mini")}


@pytest.mark.parametrize("name", ENTERED.values())
def test_prompts_that_change_nothing_change_no_bit_of_any_family(images, name):
    teacher = Teacher(ZOO[name], 10)
    want, seen = Want(stages=(1, 2, 3, 4)), {}

    def prompt(stage, map_):
        seen[stage] = tuple(map_.shape[1:])
        return map_ + 0

    plain = teacher(images, want)
    taps = teacher.prompted(images, {stage: partial(prompt, stage) for stage in (1, 2, 3, 4)}, want)
    assert torch.equal(taps.logits, plain.logits)
    assert all(torch.equal(taps.stages[stage], map_) for stage, map_ in plain.stages.items())
    assert list(seen) == [1, 2, 3, 4]
    assert seen == teacher.entry_shapes()
    assert not any(module._forward_pre_hooks for module in teacher.net.modules())


def test_a_prompt_acts_from_its_stage_on_and_is_reached_by_gradients(images):
    teacher = Teacher(ZOO["swin_s_mini"], 10)
    want, shift = Want(stages=(1, 2, 3, 4)), torch.zeros((), requires_grad=True)
    taps = teacher.prompted(images, {3: lambda map_: map_ + 1 + shift}, want)
    plain = teacher(images, want)
    assert [torch.equal(taps.stages[stage], plain.stages[stage]) for stage in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    (grad,) = torch.autograd.grad(taps.stages[4].square().sum(), shift)
    assert grad.abs() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_prompts_leave_prefix_tokens_as_they_are(images):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "reg_tokens": 3}
    teacher = Teacher(replace(ZOO["vit_s16_mini"], kwargs=kwargs), 10)
    with recorded_inputs({"x": teacher.net.blocks[0].norm1}) as tokens:
        teacher.prompted(images, {1: torch.zeros_like})
    assert teacher.info.prefix == 4
    assert tokens["x"][:, : teacher.info.prefix].any()
    assert not tokens["x"][:, teacher.info.prefix :].any()
