"""Asymmetric students of Hybrid Distill: a BEiT that gives tokens, also of kept patches alone, and learns features."""

import math

import pytest
import timm
import torch

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.hybrid import Hybrid, HybridConfig
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import Want
from hkd.spec import MethodSpec, ModelCard, Recipe
from hkd.tasks.train import TapStep, make_method

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2}
SHARED = {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_fc_norm": False}
VIT = "timm.models.vision_transformer:VisionTransformer"
RECIPE = Recipe(epochs=1, batch_size=3)
ASYMMETRIC = {"encoder": "asymmetric", "depth": 3, "targets": "c"}


def card(family="hybrid_beit", **kwargs):
    arch, more = ("timm.models.beit:Beit", SHARED) if family in ("hybrid_beit", "beit") else (VIT, {})
    return ModelCard(
        name="small", family=family, arch=arch, kwargs=SIZES | more | kwargs, image_size=16, stages=(0, 1, 1, 2)
    )


def build(family="hybrid_beit", classes=0, **kwargs):
    torch.manual_seed(0)
    model = TapModel(card(family, **kwargs), classes).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():  # tables of relative positions and biases start at zero
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def images(count=3):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def mask(count=3, shown=5):
    places = torch.rand(count, 16, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :shown]
    return torch.zeros(count, 16, dtype=torch.bool).scatter_(1, places, True).view(count, 1, 4, 4)


def step_of(student=None, tc=None, **options):
    torch.manual_seed(3)
    teachers = {"features": Teacher(tc or card("vit"), 5), "relations": Teacher(card("mim_vit"), 0)}
    spec = MethodSpec(name="hybrid", options=ASYMMETRIC | {"decoder_width": 16, "decoder_heads": 2} | options)
    model = build() if student is None else TapModel(student, 0)
    method, needs = make_method(spec, model, teachers, RECIPE)
    return TapStep(model, method, needs).train()


def losses_of(step):
    batch = Batch(x=images(), y=torch.zeros(3, 0), index=torch.arange(3))
    needs = step.method.needs(step.method.config)
    return step(batch, {role: step.method.teachers[role](batch.x, want) for role, want in needs.teachers.items()})


def test_a_fresh_one_is_drawn_as_the_plain_student_is():
    torch.manual_seed(0)
    net = TapModel(card(), 0).net
    attention = net.blocks[1].attn
    bound = math.sqrt(6 / (24 + 72))
    assert 0.95 * bound < attention.qkv.weight.abs().max() <= bound
    assert not attention.q_bias.any()
    assert not attention.v_bias.any()
    assert not net.patch_embed.proj.bias.any()
    assert net.pos_embed is None


def test_keys_have_no_bias_and_all_blocks_share_one_table():
    names = [name for name, _ in build().net.named_parameters()]
    assert "blocks.0.attn.q_bias" in names
    assert "blocks.0.attn.k_bias" not in names
    assert [name for name in names if "relative" in name] == ["rel_pos_bias.relative_position_bias_table"]


def test_its_weights_are_a_timm_models():
    model = build(classes=5)
    plain = timm.models.beit.Beit(**SIZES, **SHARED, num_classes=5).eval()
    plain.load_state_dict(model.net.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images()).logits, plain(model.prepare(images())))


@pytest.mark.parametrize("kwargs", [{}, {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}])
def test_taps_are_those_of_the_masked_family_and_the_pass_is_the_plain_one(kwargs):
    model, other = build(**kwargs), build("beit", **kwargs)
    other.net.load_state_dict(model.net.state_dict())
    want, token = Want(stages=(1, 4)), torch.zeros(24)
    with torch.no_grad():
        for extra in ({}, {"visible": mask()}, {"visible": mask(), "mask_token": token}):
            found, expected = model(images(), want, **extra), other(images(), want, **extra)
            for name in ("logits", "pooled", "final", "stages", "prefix"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("kwargs", [{}, {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False}])
def test_kept_tokens_are_what_the_rest_of_the_attention_masked_away_leaves(kwargs):
    """All tokens go through with a bias of minus infinity towards dropped ones: kept ones see only each other."""
    model, visible = build(**kwargs), mask(1)
    net = model.net
    shown = torch.cat([torch.ones(1, dtype=torch.bool), visible.flatten()])
    closed = torch.zeros(17, 17).masked_fill(~shown[None], -math.inf)
    with torch.no_grad():
        tokens = net.patch_embed(model.prepare(images(1)))
        tokens = torch.cat([net.cls_token, tokens], dim=1)
        shared = closed if net.rel_pos_bias is None else net.rel_pos_bias() + closed
        outputs = []
        for block in net.blocks:
            tokens = block(tokens, shared_rel_pos_bias=shared)
            outputs.append(tokens[:, shown])
        found = model(images(1), Want(outputs=(0, 2)), visible=visible)
    torch.testing.assert_close(found.outputs[0], outputs[0])
    torch.testing.assert_close(found.outputs[2], outputs[2])
    torch.testing.assert_close(found.tokens, net.norm(outputs[2]))


def test_dropped_pixels_do_not_matter():
    model, visible = build(), mask()
    other = torch.where(visible.repeat_interleave(4, 2).repeat_interleave(4, 3), images(), 0.5)
    with torch.no_grad():
        assert torch.equal(model(images(), visible=visible).tokens, model(other, visible=visible).tokens)


def test_no_hook_stays_and_a_missing_block_is_refused_by_its_number():
    model = build()
    model(images(), Want(outputs=(1,)), visible=mask())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(Refused, match=r"Block 3 was asked of small, which has blocks 0 to 2\."):
        model(images(), Want(outputs=(3,)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"targets": "m"},
        {"mask": "random"},
        {"targets": "c+m", "late_target": "feature"},
        {"targets": "c+m", "late_target": "both_last", "mask": "direct"},
        {"targets": "c+m", "alpha": 0.0, "mask": "progressive", "mask_tokens": "normed"},
        {"task": "masked", "decoder": "linear"},
        {"task": "dbot", "decoder": "attn1"},
    ],
)
def test_it_learns_features_in_every_tensor(options):
    step = step_of(**options)
    losses = losses_of(step)
    sum(losses.values()).backward()
    assert set(losses) == ({"feat", "late"} if "late_target" in options else {"feat"})
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in step.parameters())


def test_a_student_without_prefix_in_its_teacher_compares_patches_alone():
    average = {"class_token": False, "global_pool": "avg", "fc_norm": False}
    with pytest.raises(Refused, match="set class_token to false"):
        step_of(tc=card("vit", **average))
    assert losses_of(step_of(tc=card("vit", **average), class_token=False))["feat"].isfinite()


@pytest.mark.parametrize("late_target", ["relation", "msa"])
def test_queries_and_keys_are_refused_in_one_sentence_with_what_would_do(late_target):
    with pytest.raises(ValueError, match="set late_target to feature or both_last") as caught:
        HybridConfig(encoder="asymmetric", late_target=late_target)
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize(
    ("student", "encoder", "sentence"),
    [
        (card("hybrid_vit"), "asymmetric", "small is of 'hybrid_vit': set encoder to plain"),
        (card(), "plain", "small is of 'hybrid_beit': set encoder to asymmetric"),
        (card("beit"), "plain", "small is of 'beit': set encoder to asymmetric"),
        (ZOO["resnet18_mini"], "asymmetric", "'beit', 'hybrid_beit', 'hybrid_vit' or 'mim_vit', not 'resnet'"),
    ],
)
def test_another_encoder_than_the_cards_is_refused(student, encoder, sentence):
    with pytest.raises(Refused, match=sentence) as caught:
        step_of(student=student, encoder=encoder)
    assert str(caught.value).endswith(".")
    assert str(caught.value).count(". ") == 0


def test_its_depth_must_be_the_one_that_was_told():
    with pytest.raises(Refused, match="set depth to it"):
        step_of(depth=4)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("student", "late", "features"),
    [("hybrid_b16", "mae_b16", "deit_b16"), ("hybrid_l16", "mae_l16", "deit_b16")],
)
def test_papers_cards_serve_its_method_and_its_mask(student, late, features):
    depth = 12 if student == "hybrid_b16" else 24
    config = HybridConfig(depth=depth, mask="progressive", targets="c+m")
    teachers = {"features": ZOO[features], "relations": ZOO[late]}
    assert Hybrid.refuse(config, ZOO[student], teachers, RECIPE) is None
    mini = HybridConfig(depth=4, mask="progressive")
    twins = {role: ZOO[f"{name}_mini"] for role, name in (("features", "deit_b16"), ("relations", "mae_b16"))}
    assert Hybrid.refuse(mini, ZOO["hybrid_b16_mini"], twins, RECIPE) is None


def test_the_papers_asymmetric_student_learns_the_features_of_its_cards():
    config = HybridConfig(encoder="asymmetric", targets="c")
    assert Hybrid.refuse(config, ZOO["hybrid_fd_b16"], {"features": ZOO["deit_b16"]}, RECIPE) is None
    twin = HybridConfig(encoder="asymmetric", targets="c", depth=4, class_token=False)
    assert Hybrid.refuse(twin, ZOO["hybrid_fd_b16_mini"], {"features": ZOO["deit_b16_mini"]}, RECIPE) is None
