"""Transformers under a mask: the whole image is timm's own pass, a part of it is timm's pass over fewer tokens."""

import math
import threading

import pytest
import torch
from timm.layers import LayerNorm

from hkd.errors import Refused, UserError
from hkd.models.families.beit import bias_between
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want
from hkd.spec import ModelCard

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
VIT = ("mim_vit", "timm.models.vision_transformer:VisionTransformer")
BEIT = ("beit", "timm.models.beit:Beit")
PLAIN = {"use_abs_pos_emb": False, "init_values": 0.1, "use_fc_norm": False}


def make_card(name, kind, **kwargs):
    family, arch = kind
    return ModelCard(
        name=name, family=family, arch=arch, kwargs=SIZES | kwargs, image_size=32, stages=(0, 1, 1, 2), mean=(0.5,) * 3
    )


CARDS = {
    card.name: card
    for card in (
        make_card("vit", VIT),
        make_card("no_class", VIT, class_token=False, global_pool="avg", fc_norm=False),
        make_card("registers", VIT, reg_tokens=2, no_embed_class=True),
        make_card("pre_norm", VIT, pre_norm=True, global_pool="avg"),
        make_card("dynamic", VIT, dynamic_img_size=True),
        make_card("distilled", ("mim_vit", "timm.models.deit:VisionTransformerDistilled")),
        make_card("shared", BEIT, use_shared_rel_pos_bias=True, **PLAIN),
        make_card("per_block", BEIT, use_rel_pos_bias=True, **PLAIN),
        make_card("both", BEIT, use_rel_pos_bias=True, use_shared_rel_pos_bias=True),
        make_card("cae", BEIT, init_values=0.1, use_fc_norm=False, global_pool="token"),
    )
}
STAGES = Want(stages=(1, 2, 3, 4))
ALL = pytest.mark.parametrize("name", CARDS)


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(name):
    """With biases that timm starts at zero drawn, so that they matter."""
    torch.manual_seed(0)
    model = TapModel(CARDS[name], 5)
    for key, parameter in model.net.named_parameters():
        if "bias" in key or "gamma" in key or "head" in key:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in CARDS}


def mask(hidden, cells=4, count=3, seed=1):
    """`hidden` cells of every image."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.ones(count, cells * cells, dtype=torch.bool)
    for row in visible:
        row[torch.randperm(cells * cells, generator=generator)[:hidden]] = False
    return visible.view(count, 1, cells, cells)


def normalised(model, x):
    return model.prepare(x)


@ALL
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_without_a_mask_logits_and_taps_are_timms_bit_for_bit(images, name, mode):
    torch.manual_seed(1)
    model = TapModel(CARDS[name], 5, drop_path=0.3).train(mode == "train")
    x = normalised(model, images)
    torch.manual_seed(2)
    plain = model.net(x)
    torch.manual_seed(2)
    features, maps = model.net.forward_intermediates(x, indices=[0, 1, 2])
    torch.manual_seed(2)
    taps = model(images, STAGES)
    assert torch.equal(taps.logits, plain)
    assert torch.equal(taps.final.flatten(2).transpose(1, 2), features[:, model.net.num_prefix_tokens :])
    for stage, index in ((1, 0), (2, 1), (3, 1), (4, 2)):
        assert torch.equal(taps.stages[stage], maps[index])


@ALL
@pytest.mark.parametrize("token", [False, True], ids=["visible alone", "mask token"])
def test_a_mask_that_hides_nothing_changes_nothing(models, images, name, token):
    model = models[name]
    given = {"mask_token": torch.randn(24)} if token else {}
    full, masked = model(images, STAGES), model(images, STAGES, visible=mask(0), **given)
    for one, other in (
        (full.logits, masked.logits),
        (full.pooled, masked.pooled),
        (full.final, masked.final),
        *((full.stages[stage], masked.stages[stage]) for stage in (1, 2, 3, 4)),
        *((full.prefix[stage], masked.prefix[stage]) for stage in full.prefix),
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert sorted(full.prefix) == sorted(masked.prefix)


def plain_attention(attn, x, bias):
    """Softmax attention of one image [M, D] by loops over heads, with a bias [H, M, M] or None."""
    heads, width = attn.num_heads, x.shape[1] // attn.num_heads
    qkv = x @ attn.qkv.weight.T
    if getattr(attn, "q_bias", None) is not None:
        qkv = qkv + torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    elif attn.qkv.bias is not None:
        qkv = qkv + attn.qkv.bias
    out = []
    for head in range(heads):
        q, k, v = (qkv[:, (part * heads + head) * width :][:, :width] for part in range(3))
        scores = q @ k.T / math.sqrt(width)
        out.append((scores if bias is None else scores + bias[head]).softmax(1) @ v)
    return torch.cat(out, 1) @ attn.proj.weight.T + attn.proj.bias


def distance_row(source, target, side):
    """Row of BEiT's table for attention from one place to another; place 0 is the class token."""
    rows = (2 * side - 1) ** 2 + 3
    if source == target == 0:
        return rows - 1
    if source == 0:
        return rows - 3
    if target == 0:
        return rows - 2
    (y, x), (v, u) = divmod(source - 1, side), divmod(target - 1, side)
    return (y - v + side - 1) * (2 * side - 1) + x - u + side - 1


def bias_by_loops(table, places, side=4):
    return torch.stack([torch.stack([table[distance_row(a, b, side)] for b in places]) for a in places]).permute(
        2, 0, 1
    )


@pytest.mark.parametrize("name", ["vit", "no_class", "shared", "per_block", "both", "cae"])
@torch.no_grad()
def test_visible_tokens_alone_are_a_transformer_over_that_shorter_sequence(models, images, name):
    """By hand, one image at a time, from the weights."""
    model = models[name]
    net, visible = model.net, mask(11)
    taps = model(images, Want(stages=(1, 4)), visible=visible)
    prefix = net.num_prefix_tokens
    for image, shown, final, first in zip(normalised(model, images), visible, taps.final, taps.stages[1], strict=True):
        kept = [index for index, is_shown in enumerate(shown.flatten().tolist()) if is_shown]
        places = [*range(prefix), *(index + prefix for index in kept)]
        tokens = net.patch_embed(image[None])[0]
        if prefix:
            tokens = torch.cat([net.cls_token[0], tokens])
        if net.pos_embed is not None:
            tokens = tokens + net.pos_embed[0]
        tokens, after = tokens[places], []
        for block in net.blocks:
            tables = [getattr(net, "rel_pos_bias", None), block.attn]
            tables = [getattr(owner, "relative_position_bias_table", None) for owner in tables]
            biases = [bias_by_loops(table, places) for table in tables if table is not None]
            scale = getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)
            change = plain_attention(block.attn, block.norm1(tokens), sum(biases) if biases else None)
            tokens = tokens + (change if scale[0] is None else scale[0] * change)
            change = block.mlp(block.norm2(tokens))
            tokens = tokens + (change if scale[1] is None else scale[1] * change)
            after.append(tokens)
        for found, expected in ((first, after[0]), (final, net.norm(after[-1]))):
            flat = found.flatten(1).T
            torch.testing.assert_close(flat[kept], expected[prefix:], atol=2e-5, rtol=2e-5)
            hidden = [index for index in range(16) if index not in kept]
            assert torch.equal(flat[hidden], torch.zeros(11, 24))


@pytest.mark.parametrize("name", ["shared", "per_block"])
def test_the_bias_between_kept_tokens_is_the_tables_entry_for_their_distance(models, name):
    net = models[name].net
    owner = net.rel_pos_bias if name == "shared" else net.blocks[1].attn
    places = torch.tensor([[0, 1, 6, 16], [0, 3, 4, 9]])
    found = bias_between(owner, places)
    for image, row in zip(found, places.tolist(), strict=True):
        assert torch.equal(image, bias_by_loops(owner.relative_position_bias_table, row))


@ALL
def test_hidden_pixels_have_no_influence_on_what_is_visible(models, images, name):
    model, visible = models[name], mask(6)
    changed = torch.where(visible.repeat_interleave(8, 2).repeat_interleave(8, 3), images, torch.rand_like(images))
    for given in ({}, {"mask_token": torch.ones(24)}):
        taps, other = (model(x, STAGES, visible=visible, **given) for x in (images, changed))
        assert torch.equal(taps.final, other.final)
        assert torch.equal(taps.logits, other.logits)


@ALL
def test_maps_of_visible_tokens_are_zero_where_hidden_at_every_stage(models, images, name):
    model, visible = models[name], mask(6)
    taps = model(images, STAGES, visible=visible)
    for feature in (taps.final, *taps.stages.values()):
        assert feature.shape == (3, 24, 4, 4)
        assert torch.equal(feature.abs().sum(1, keepdim=True) > 0, visible)


@pytest.mark.parametrize("name", ["vit", "no_class", "registers", "dynamic", "shared", "per_block", "cae"])
def test_a_mask_token_takes_the_hidden_patches_place_before_positions(models, images, name):
    """As if the patch embedding itself gave the token there: timm's own pass."""
    model, visible, token = models[name], mask(6), torch.randn(24)

    def replace(module, args, output):
        return torch.where(visible.view(*output.shape[:-1], 1), output, token)

    masked = model(images, Want(stages=(2,), attention=(1,)), visible=visible, mask_token=token)
    handle = model.net.patch_embed.register_forward_hook(replace)
    plain = model(images, Want(stages=(2,), attention=(1,)))
    handle.remove()
    for one, other in (
        (masked.logits, plain.logits),
        (masked.final, plain.final),
        (masked.stages[2], plain.stages[2]),
        (masked.attention[1], plain.attention[1]),
    ):
        assert torch.equal(one, other)


def test_the_mask_token_gets_a_gradient_only_from_hidden_patches(models, images):
    token = torch.zeros(24, requires_grad=True)
    for hidden in (0, 5):
        taps = models["shared"](images, visible=mask(hidden), mask_token=token)
        (grad,) = torch.autograd.grad(taps.final.square().sum(), token)
        assert bool(grad.any()) == (hidden > 0)


@ALL
def test_coarser_cells_hide_all_their_tokens(models, images, name):
    model, coarse = models[name], mask(1, cells=2)
    fine = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(model(images, visible=coarse).final, model(images, visible=fine).final)


@ALL
def test_a_masked_pass_trains_every_parameter_that_a_full_one_trains(images, name):
    trained = []
    for given in ({}, {"visible": mask(5)}):
        model = build(name).train()
        taps = model(images, **given)
        (taps.final.square().sum() + taps.logits.square().sum()).backward()
        trained.append([key for key, parameter in model.net.named_parameters() if parameter.grad is not None])
    assert trained[0] == trained[1]


def test_the_pooled_feature_is_of_the_visible_tokens(models, images):
    visible = mask(6)
    taps = models["no_class"](images, visible=visible)
    mean = (taps.final * visible).sum((2, 3)) / 10
    torch.testing.assert_close(taps.pooled, mean)


def test_overlapping_masked_passes_do_not_meet(models, images):
    model, masks, found = models["per_block"], [mask(hidden, seed=hidden) for hidden in (1, 5, 9, 12)], {}

    def run(index):
        found[index] = model(images, visible=masks[index]).final

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, visible in enumerate(masks):
        torch.testing.assert_close(found[index], model(images, visible=visible).final)


def test_a_view_without_bias_leaves_the_block_as_it_was(models, images):
    model = models["per_block"]
    before = model(images).logits
    model(images, visible=mask(6))
    assert torch.equal(model(images).logits, before)
    assert "blocks.0.attn.relative_position_bias_table" in model.net.state_dict()


@pytest.mark.parametrize("name", ["shared", "per_block", "cae"])
@torch.no_grad()
def test_the_tail_of_a_beit_runs_its_last_blocks_on_patch_tokens_alone(name):
    model = build(name)
    teacher = Teacher(CARDS[name], 5)
    teacher.net.load_state_dict(model.net.state_dict())
    tail = teacher.tail(1)
    tokens = torch.randn(2, 16, 24)
    block, places = model.net.blocks[2], list(range(1, 17))
    owner = model.net.rel_pos_bias if name == "shared" else block.attn
    table = getattr(owner, "relative_position_bias_table", None)
    for found, image in zip(tail(tokens), tokens, strict=True):
        bias = None if table is None else bias_by_loops(table, places)
        image = image + block.gamma_1 * plain_attention(block.attn, block.norm1(image), bias)
        image = image + block.gamma_2 * block.mlp(block.norm2(image))
        torch.testing.assert_close(found.flatten(1).T, model.net.norm(image), atol=2e-5, rtol=2e-5)


def test_beits_norms_have_the_eps_of_the_official_code(models):
    assert {m.eps for m in models["cae"].net.modules() if isinstance(m, LayerNorm)} == {1e-6}


@pytest.mark.parametrize("name", ["vit", "shared"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"visible": torch.zeros(3, 1, 4, 4, dtype=torch.bool)}, "hides every patch of an image"),
        ({"visible": torch.arange(48).view(3, 1, 4, 4) > 15}, "hides every patch of an image"),
        ({"visible": torch.arange(48).view(3, 1, 4, 4) % 5 > 0}, "shows 12 patches of one image and 13 of another"),
        ({"visible": torch.ones(3, 1, 3, 3, dtype=torch.bool)}, "3x3 cells does not fit a 4x4 map"),
        ({"visible": torch.ones(3, 1, 8, 8, dtype=torch.bool)}, "8x8 cells does not fit a 4x4 map"),
        ({"mask_token": torch.zeros(24)}, "without `visible`"),
    ],
)
def test_masks_that_cannot_be_are_refused_in_one_sentence(models, images, name, given, sentence):
    with pytest.raises(UserError, match=sentence):
        models[name](images, **given)


def test_attention_inputs_are_of_the_tokens_that_go_through(models, images):
    taps = models["vit"](images, Want(attention=(0,)), visible=mask(3))
    assert taps.attention[0].shape[1] == taps.tokens.shape[1] == models["vit"].info.prefix + 13
    with pytest.raises(Refused, match=r"Block 3 was asked of .*, which has blocks 0 to 2"):
        models["cae"](images, Want(attention=(3,)))


@ALL
def test_extreme_images_stay_finite(models, name):
    for x in (torch.zeros(2, 3, 32, 32), torch.full((2, 3, 32, 32), 1e4)):
        taps = models[name](x, STAGES, visible=mask(15, count=2))
        assert taps.final.isfinite().all()
        assert taps.logits.isfinite().all()
