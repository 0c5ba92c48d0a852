"""Recipes as objects: task losses, parameter groups, schedules, moving average."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hkd.errors import UserError
from hkd.spec import Recipe
from hkd.training.recipe import make_criterion, make_ema, make_optimizer, make_schedule, peak_lr


def recipe(**changes):
    return Recipe(**({"epochs": 10, "batch_size": 8, "lr": 0.1, "weight_decay": 0.05} | changes))


def tiny_vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=3
    )


def rates(chosen, steps):
    """Rate at every update, as the loop asks for it."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=peak_lr(chosen))
    schedule = make_schedule(chosen, optimizer, steps)
    found = []
    for update in range(chosen.epochs * steps):
        schedule.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


# --- task losses


def test_cross_entropy_of_uniform_logits_is_the_log_of_the_classes():
    loss = make_criterion(recipe())(torch.zeros(4, 10), torch.tensor([0, 3, 9, 1]))
    assert loss.item() == pytest.approx(math.log(10))


def test_label_smoothing_mixes_the_target_with_the_mean_over_classes():
    logits, targets = torch.randn(5, 7), torch.tensor([0, 6, 2, 2, 5])
    log_p = F.log_softmax(logits, 1)
    by_hand = -(0.9 * log_p[torch.arange(5), targets] + 0.1 * log_p.mean(1)).mean()
    torch.testing.assert_close(make_criterion(recipe(label_smoothing=0.1))(logits, targets), by_hand)


def test_soft_targets_are_not_smoothed_a_second_time():
    logits, targets = torch.randn(5, 7), torch.randn(5, 7).softmax(1)
    by_hand = -(targets * F.log_softmax(logits, 1)).sum(1).mean()
    torch.testing.assert_close(make_criterion(recipe(label_smoothing=0.1))(logits, targets), by_hand)


def test_bce_is_summed_over_classes_and_averaged_over_the_batch():
    loss = make_criterion(recipe(loss="bce"))(torch.zeros(4, 10), torch.tensor([0, 3, 9, 1]))
    assert loss.item() == pytest.approx(10 * math.log(2))


# --- optimiser


def test_norms_biases_and_what_the_backbone_exempts_are_not_decayed():
    net = tiny_vit()
    optimizer = make_optimizer(recipe(), net, nn.Identity())
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    exempt = {name for name, p in net.named_parameters() if id(p) not in decayed}
    assert {"pos_embed", "cls_token"} <= exempt
    assert exempt == {name for name, p in net.named_parameters() if p.ndim == 1} | {"pos_embed", "cls_token"}


def test_decay_1d_decays_norms_and_biases_too():
    net = timm.create_model("resnet18", num_classes=3)
    optimizer = make_optimizer(recipe(optimizer="momentum", decay_1d=True), net, nn.Identity())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}


def test_every_parameter_of_student_and_adapters_is_in_one_group():
    net, adapters = tiny_vit(), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    for layer_decay in (None, 0.5):
        optimizer = make_optimizer(recipe(layer_decay=layer_decay), net, adapters)
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(held) == sorted(id(p) for p in [*net.parameters(), *adapters.parameters()])


def test_layer_decay_scales_rates_by_depth_and_leaves_adapters_at_the_full_rate():
    net, adapters = tiny_vit(), nn.Linear(4, 4)
    chosen = recipe(layer_decay=0.5, schedule="constant")
    optimizer = make_optimizer(chosen, net, adapters)
    make_schedule(chosen, optimizer, 2).step_update(0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(adapters.weight)] == pytest.approx(0.1)
    assert rate[id(net.head.weight)] == pytest.approx(0.1)
    ratio = rate[id(net.blocks[1].attn.qkv.weight)] / rate[id(net.blocks[2].attn.qkv.weight)]
    assert ratio == pytest.approx(0.5)
    assert rate[id(net.pos_embed)] == min(rate.values())


def test_the_rate_is_derived_from_the_global_batch():
    optimizer = make_optimizer(recipe(lr_batch=4), tiny_vit(), nn.Identity())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_betas_reach_the_optimiser():
    optimizer = make_optimizer(recipe(betas=(0.8, 0.95)), tiny_vit(), nn.Identity())
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


@pytest.mark.parametrize("name", ["adamw", "momentum", "sgd", "lamb"])
def test_optimisers_of_the_papers_can_be_built_and_step(name):
    net = nn.Linear(3, 2)
    optimizer = make_optimizer(recipe(optimizer=name), net, nn.Identity())
    net(torch.ones(1, 3)).sum().backward()
    before = net.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, net.weight)


def test_an_unknown_optimiser_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"no optimiser 'adamww'\. Did you mean 'adamw'"):
        make_optimizer(recipe(optimizer="adamww"), tiny_vit(), nn.Identity())


# --- schedule


def test_the_cosine_starts_at_the_peak_and_ends_at_the_minimum():
    found = rates(recipe(min_lr=0.01), steps=4)
    by_hand = [0.01 + 0.5 * 0.09 * (1 + math.cos(math.pi * i / 40)) for i in range(40)]
    assert found == pytest.approx(by_hand)


def test_the_warm_up_is_linear_per_update_from_its_first_rate():
    found = rates(recipe(warmup_epochs=2.0, warmup_lr=0.02, schedule="constant"), steps=4)
    assert found[:8] == pytest.approx([0.02 + i * 0.08 / 8 for i in range(8)])
    assert found[8:] == pytest.approx([0.1] * 32)


def test_the_step_schedule_drops_exactly_at_its_milestones():
    found = rates(recipe(schedule="step", milestones=(3.0, 6.5)), steps=4)
    assert found == pytest.approx([0.1] * 12 + [0.01] * 14 + [0.001] * 14)


# --- moving average


def test_the_moving_average_follows_the_weights_with_its_decay():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    ema = make_ema(recipe(ema_decay=0.9), net)
    nn.init.constant_(net.weight, 2.0)
    ema.update(net)
    ema.update(net)
    assert ema.module.weight.item() == pytest.approx(2 - 0.9**2)


def test_no_moving_average_unless_asked_for():
    assert make_ema(recipe(), nn.Linear(1, 1)) is None


def test_an_impossible_decay_of_the_moving_average_is_refused():
    with pytest.raises(UserError, match="ema_decay"):
        make_ema(recipe(ema_decay=1.5), nn.Linear(1, 1))
