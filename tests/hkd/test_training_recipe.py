"""Recipes as objects: task losses, parameter groups, schedules, moving average."""

import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from experiments.planning import schema
from hkd.errors import UserError
from hkd.options import configured
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


def test_lamb_clips_where_the_recipe_says_and_others_do_not_clip_themselves():
    net, none = tiny_vit(), nn.Module()
    assert make_optimizer(recipe(optimizer="lamb"), net, none).defaults["max_grad_norm"] == 1.0  # timm's own
    told = make_optimizer(recipe(optimizer="lamb", max_grad_norm=5.0), net, none)
    assert {group["max_grad_norm"] for group in told.param_groups} == {5.0}
    with pytest.raises(UserError, match="Optimiser 'adamw' does not clip gradients itself: set clip_grad"):
        make_optimizer(recipe(optimizer="adamw", max_grad_norm=5.0), net, none)


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


# --- weight decay


def decays(chosen, steps, net=None, *, continued_at=None):
    """Weight decay of every group at every update; optionally continued at one, as a run is from a checkpoint."""
    net = net or nn.Linear(2, 2)
    optimizer = make_optimizer(chosen, net, nn.Identity())
    schedule = make_schedule(chosen, optimizer, steps)
    found = []
    for update in range(chosen.epochs * steps):
        if update == continued_at:
            state, optimizer = optimizer.state_dict(), make_optimizer(chosen, net, nn.Identity())
            schedule = make_schedule(chosen, optimizer, steps)
            optimizer.load_state_dict(state)
        schedule.step_update(update)
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    return found


def test_a_rising_weight_decay_goes_from_one_value_to_the_other_along_half_a_cosine():
    found = [sorted(groups) for groups in decays(recipe(weight_decay=0.04, weight_decay_end=0.2), steps=4)]
    exempt, decayed = zip(*found, strict=True)
    assert set(exempt) == {0.0}
    # Written down from SparK's formula by hand: start, a quarter, end.
    assert decayed[0] == pytest.approx(0.04)
    assert decayed[13] == pytest.approx(0.2 - 0.16 * (0.5 + 0.5 * math.cos(math.pi / 3)))
    assert decayed[-1] == pytest.approx(0.2)
    assert list(decayed) == sorted(decayed)


def test_a_continued_run_decays_as_one_that_was_not_interrupted():
    chosen = recipe(weight_decay=0.04, weight_decay_end=0.2, layer_decay=0.7)
    assert decays(chosen, 3, tiny_vit()) == decays(chosen, 3, tiny_vit(), continued_at=11)


def test_the_rates_beside_a_rising_weight_decay_are_what_they_are_without():
    assert rates(recipe(weight_decay_end=0.2, warmup_epochs=2.0), 3) == rates(recipe(warmup_epochs=2.0), 3)


def test_without_an_end_nothing_touches_the_weight_decay():
    assert {tuple(sorted(groups)) for groups in decays(recipe(), steps=2)} == {(0.0, 0.05)}


def test_a_weight_decay_that_rises_from_nothing_is_refused():
    with pytest.raises(UserError, match="weight_decay above 0"):
        configured(Recipe, "Recipe", {"epochs": 1, "batch_size": 1, "weight_decay": 0.0, "weight_decay_end": 0.2})


# --- fine-tuning of sparse ResNets, which exploded for users of SparK's default recipe (docs/hgkd.md)


def followed(chosen=None, **options):
    """Cosine between the update ten steps after a gradient that was 1,000 times as large and that one's direction."""
    torch.manual_seed(0)
    net = nn.Linear(40, 40, bias=False)
    if chosen is None:
        optimizer = timm.optim.Lamb(net.parameters(), lr=0.016, weight_decay=0.02, **options)
    else:
        optimizer = make_optimizer(chosen, net, nn.Identity())
    outlier = None
    for step in range(40):
        gradient = torch.randn(40, 40) * (1000 if step == 20 else 1)
        outlier = gradient if step == 20 else outlier
        before, net.weight.grad = net.weight.detach().clone(), gradient
        optimizer.step()
        if step == 30:
            return F.cosine_similarity((before - net.weight.detach()).flatten(), outlier.flatten(), dim=0).item()
    raise AssertionError


def test_one_outlier_does_not_steer_fine_tuning_of_the_paper_profile_as_it_does_in_sparks():
    chosen = schema.load_profile("paper").recipes["masked_tune"]
    assert followed(max_grad_norm=1e7, always_adapt=True, bias_correction=False) > 0.8
    assert followed(replace(chosen, layer_decay=None)) < 0.3


def test_the_paper_profile_fine_tunes_at_most_at_half_the_rate_that_exploded():
    profile = schema.load_profile("paper")
    for name in ("masked_tune", "masked_tune_long"):
        chosen = profile.recipes[name]
        assert peak_lr(chosen) <= 0.008
        assert chosen.layer_decay == 0.7


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
