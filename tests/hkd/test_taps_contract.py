"""The taps contract, over every miniature and small-image card and over the token layouts the zoo does not hold."""

import threading
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hkd.errors import UserError
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import ModelCard

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
TOKENS = {"family": "vit", "image_size": 32, "stages": (0, 1, 2, 3)}
EXTRA = [
    ModelCard(name="class_token", arch="timm.models.vision_transformer:VisionTransformer", kwargs=VIT, **TOKENS),
    ModelCard(
        name="registers",
        arch="timm.models.vision_transformer:VisionTransformer",
        kwargs=VIT | {"reg_tokens": 3},
        **TOKENS,
    ),
    ModelCard(name="distilled", arch="timm.models.deit:VisionTransformerDistilled", kwargs=VIT, **TOKENS),
    ModelCard(name="eva_class", arch="timm.models.eva:Eva", kwargs=VIT, **(TOKENS | {"family": "eva"})),
    ModelCard(
        name="eva_02",
        arch="timm.models.eva:Eva",
        kwargs=VIT | {"use_rot_pos_emb": True},
        **(TOKENS | {"family": "eva"}),
    ),
    ModelCard(
        name="no_prefix_eva",
        arch="timm.models.eva:Eva",
        kwargs=VIT | {"class_token": False},
        **(TOKENS | {"family": "eva"}),
    ),
]
# Named by hand, so that a card for large images cannot slow the suite down.
CARDS = {card.name: card for card in EXTRA} | {name: card for name, card in ZOO.items() if card.params_m < 1}
PREFIX = {
    "class_token": 1,
    "eva_class": 1,
    "eva_02": 1,
    "registers": 4,
    "distilled": 2,
    "eva_l14_mini": 1,
    "beit_b16_mini": 1,
    "cae_b16_mini": 1,
    "hybrid_fd_b16_mini": 1,
}
STAGES = Want(stages=(1, 2, 3, 4))
ATTENTION = sorted(name for name, card in CARDS.items() if card.family in ("vit", "eva", "swin"))


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {name: TapModel(card, 10).eval() for name, card in CARDS.items()}


@pytest.mark.parametrize("name", CARDS)
def test_taps_have_the_shapes_that_info_states(models, images, name):
    model, taps = models[name], models[name](images, STAGES)
    info, batch = model.info, len(images)
    assert taps.logits.shape == (batch, 10) == (batch, info.classes)
    assert taps.pooled.shape == (batch, info.pooled)
    assert taps.final.shape == (batch, *info.final)
    assert {stage: tuple(x.shape[1:]) for stage, x in taps.stages.items()} == info.stages
    assert sorted(taps.stages) == [1, 2, 3, 4]


@pytest.mark.parametrize("name", CARDS)
def test_prefix_tokens_are_kept_apart(models, images, name):
    model, taps = models[name], models[name](images, STAGES)
    assert model.info.prefix == PREFIX.get(name, 0)
    if name in PREFIX:
        assert {x.shape for x in taps.prefix.values()} == {(len(images), PREFIX[name], model.info.stages[4][0])}
        assert sorted(taps.prefix) == [1, 2, 3, 4]
    else:
        assert taps.prefix == {}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("want", [Want(), STAGES], ids=["nothing", "all stages"])
@pytest.mark.parametrize("name", CARDS)
def test_logits_are_those_of_the_plain_model_bit_for_bit(images, name, want, mode):
    card = replace(CARDS[name], kwargs=CARDS[name].kwargs | {"drop_rate": 0.1})
    torch.manual_seed(1)
    model = TapModel(card, 10, drop_path=0.2).train(mode == "train")
    x = F.interpolate(images, size=(card.image_size,) * 2, mode="bilinear", align_corners=False)
    torch.manual_seed(2)
    plain = model.net(x)
    torch.manual_seed(2)
    taps = model.family.forward(model.net, card, x, want)
    assert torch.equal(taps.logits, plain)


@pytest.mark.parametrize("name", CARDS)
def test_pooled_is_timms_penultimate_feature(models, images, name):
    model = models[name]
    features = model.net.forward_features(model.prepare(images))
    assert torch.equal(model(images).pooled, model.net.forward_head(features, pre_logits=True))


@pytest.mark.parametrize("name", CARDS)
def test_final_is_forward_features_as_a_map(models, images, name):
    model, prefix = models[name], PREFIX.get(name, 0)
    features = model.net.forward_features(model.prepare(images))
    final = model(images).final
    if features.ndim == 3:  # tokens, row by row
        assert torch.equal(final.flatten(2).transpose(1, 2), features[:, prefix:])
    elif model.card.family == "swin":
        assert torch.equal(final, features.movedim(-1, 1))
    else:
        assert torch.equal(final, features)


@pytest.mark.parametrize("name", ["vit_s16_mini", "mixer_s16_mini", "swin_l_mini", "class_token"])
def test_stage_4_is_final_before_the_norm(models, images, name):
    model, taps = models[name], models[name](images, STAGES)
    normed = model.net.norm(taps.stages[4].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(normed, taps.final)
    assert not torch.allclose(taps.stages[4], taps.final)


@pytest.mark.parametrize("name", CARDS)
def test_a_loss_on_any_stage_reaches_the_first_weights(models, images, name):
    model = models[name]
    taps = model(images, STAGES)
    first = next(p for key, p in model.net.named_parameters() if key.endswith("weight"))
    for feature in taps.stages.values():
        (gradient,) = torch.autograd.grad(feature.square().sum(), first, retain_graph=True)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in ATTENTION if name != "eva_02"])  # its attention also takes angles
def test_attention_input_gives_back_the_attention_output(models, images, name):
    model = models[name]
    module = model.family.attention_modules(model.net)[1]
    outputs = []
    handle = module.register_forward_hook(lambda module, args, output: outputs.append(output))
    taps = model(images, Want(attention=(1,)))
    handle.remove()
    assert torch.equal(module(taps.attention[1]), outputs[0])


@pytest.mark.parametrize("name", ["class_token", "eva_l14_mini", "vit_s16_mini"])
def test_attention_input_is_the_normed_input_of_its_block(models, images, name):
    model = models[name]
    index = model.card.stages[2]
    taps = model(images, Want(stages=(3,), attention=(index + 1,)))
    tokens = taps.stages[3].flatten(2).transpose(1, 2)
    if name in PREFIX:
        tokens = torch.cat([taps.prefix[3], tokens], dim=1)
    assert torch.equal(taps.attention[index + 1], model.net.blocks[index + 1].norm1(tokens))


@pytest.mark.parametrize("name", ATTENTION)
def test_recording_attention_leaves_no_hook_and_changes_no_digit(models, images, name):
    model = models[name]
    blocks = tuple(range(len(model.family.attention_modules(model.net))))
    taps = model(images, Want(stages=(4,), attention=blocks))
    assert sorted(taps.attention) == list(blocks)
    assert torch.equal(taps.logits, model(images).logits)
    assert not any(module._forward_pre_hooks for module in model.net.modules())


def test_hooks_are_removed_when_the_forward_pass_fails(monkeypatch, models, images):
    model = models["vit_s16_mini"]
    monkeypatch.setattr(model.net.blocks[1], "forward", lambda x: x / torch.zeros(5, 5, 5))
    with pytest.raises(RuntimeError, match="must match"):
        model(images, Want(attention=(0,)))
    assert not any(module._forward_pre_hooks for module in model.net.modules())


def test_overlapping_forward_passes_record_their_own_attention(models, images):
    model, want, found = models["vit_s16_mini"], Want(attention=(0, 2)), {}
    inputs = [images[i : i + 1] for i in range(3)] * 4

    def record(i):
        found[i] = model(inputs[i], want).attention[2]

    threads = [threading.Thread(target=record, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(inputs):
        torch.testing.assert_close(found[i], model(x, want).attention[2])


@pytest.mark.parametrize("name", CARDS)
def test_nothing_wanted_runs_timms_own_two_calls(monkeypatch, models, images, name):
    net = models[name].net
    monkeypatch.setattr(net, "forward_intermediates", None)
    taps = models[name](images)
    assert taps.stages == taps.prefix == taps.attention == {}


@pytest.mark.parametrize("name", CARDS)
def test_measuring_the_taps_leaves_no_trace(name):
    torch.manual_seed(0)
    model = TapModel(CARDS[name], 10)
    after_building = torch.rand(1)
    torch.manual_seed(0)
    net = model.family.build(CARDS[name], 10)
    assert torch.equal(torch.rand(1), after_building)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), model.net.buffers(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_each_model_sees_its_own_normalisation():
    card = replace(ZOO["vit_s16_mini"], mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    model, seen = TapModel(card, 10).eval(), []
    model.net.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.full((1, 3, 32, 32), 0.6))
    expected = torch.tensor([1.0, 1.6, 1.5]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(seen[0], expected)


def test_images_of_another_size_are_resized_bilinearly(models):
    model = models["vit_b14_mini"]
    x = torch.rand(2, 3, 32, 32)
    at_35 = F.interpolate(x, size=(35, 35), mode="bilinear", align_corners=False)
    assert torch.equal(model(x).logits, model(at_35).logits)


def test_memory_format_changes_no_result(images):
    torch.manual_seed(0)
    fast = TapModel(ZOO["resnet50_mini"], 10).eval()
    plain = TapModel(replace(ZOO["resnet50_mini"], channels_last=False), 10).eval()
    plain.net.load_state_dict(fast.net.state_dict())
    assert fast.net.conv1[3].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(images).logits, plain(images).logits)


def test_normalisation_constants_are_not_part_of_the_state():
    model = TapModel(ZOO["resnet18_mini"], 10)
    assert {name.removeprefix("net.") for name in model.state_dict()} == set(model.net.state_dict())


def test_no_classes_gives_the_pooled_feature_as_logits(images):
    taps = TapModel(ZOO["resnet18_mini"], 0).eval()(images)
    assert torch.equal(taps.logits, taps.pooled)


def test_wants_unite():
    both = Want(stages=(4, 2)) | Want(stages=(3, 4), attention=(1,))
    assert both == Want(stages=(2, 3, 4), attention=(1,))


@pytest.mark.parametrize("stage", [0, 5])
def test_unknown_stage_is_refused(models, images, stage):
    with pytest.raises(UserError, match=f"Stage {stage} was asked of vit_s16_mini; stages are 1, 2, 3 and 4"):
        models["vit_s16_mini"](images, Want(stages=(stage,)))


def test_unknown_attention_block_is_refused(models, images):
    with pytest.raises(UserError, match="Block 4 was asked of vit_s16_mini, which has blocks 0 to 2"):
        models["vit_s16_mini"](images, Want(attention=(0, 4)))


@pytest.mark.parametrize("name", ["resnet50_mini", "mobilenet_v1_mini", "convnext_t_mini", "mixer_s16_mini"])
def test_attention_of_a_model_without_it_is_refused(models, images, name):
    with pytest.raises(
        UserError, match=f"attention inputs of blocks were asked of {name}, a '{ZOO[name].family}' model without"
    ):
        models[name](images, Want(attention=(0,)))
