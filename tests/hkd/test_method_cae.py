"""CAE: two looks of one encoder, the regressor against loops over heads, alignment, and what it must not see."""

import math

import pytest
import torch

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.cae import CAE, CAEConfig, RegressorBlock
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.spec import ModelCard, Recipe
from hkd.training.step import TapStep

CARD = ModelCard(
    name="tiny",
    family="beit",
    arch="timm.models.beit:Beit",
    kwargs={
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "use_abs_pos_emb": True,
        "use_fc_norm": False,
        "init_values": 0.1,
    },
    image_size=16,
    stages=(0, 0, 1, 1),
)
SMALL = {"image_size": 16, "codes": 12, "heads": 2, "regressor_depth": 2, "decoder_depth": 1}


def build(**options):
    torch.manual_seed(0)
    student = TapModel(CARD, 0)
    config = CAEConfig(**SMALL | options)
    method = CAE(config, student.info, {}, lambda *_: torch.zeros(()))
    return TapStep(student, method, method.needs(config)).train()


def images(count=4, seed=0):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch_of(x):
    return Batch(x=x, y=torch.zeros(len(x), 0), index=torch.arange(len(x)))


def halves(count=4):
    """Masks that show the left half."""
    visible = torch.zeros(count, 1, 4, 4, dtype=torch.bool)
    visible[..., :2] = True
    return visible


def test_the_second_look_is_a_pass_over_the_hidden_patches_alone_without_gradients():
    model = build().student.eval()
    taps = model(images(), aligned=halves())
    torch.testing.assert_close(taps.final, model(images(), visible=halves()).final)
    torch.testing.assert_close(taps.hidden, model(images(), visible=~halves()).final)
    assert taps.final.requires_grad
    assert not taps.hidden.requires_grad
    assert (taps.final != 0).any(1).logical_and((taps.hidden != 0).any(1)).sum() == 0


def test_the_loss_is_the_codes_entropy_plus_twice_the_distance_of_latents():
    step = build()
    batch = batch_of(images())
    losses = step(batch, {})
    visible = batch.extra["visible"]
    assert (~visible).flatten(1).sum(1).tolist() == [8] * 4
    step.eval()  # the codebook stands still; nothing of the network depends on the mode
    with torch.no_grad():
        taps = step.student(batch.x, aligned=visible)
        latents, at_hidden = step.method.regress(taps.final, visible)
    distance = 0.0
    for image in range(4):
        hidden = (~visible[image, 0]).flatten().nonzero().flatten().tolist()
        for place, cell in enumerate(hidden):
            distance += float((latents[image, place] - taps.hidden[image, :, cell // 4, cell % 4]).square().sum())
            torch.testing.assert_close(at_hidden[image, place], step.method.positions[cell])
    assert losses["align"].item() == pytest.approx(2 * distance / (32 * 24), rel=1e-4)
    assert losses["codes"].item() == pytest.approx(math.log(12), rel=0.2)  # nothing is known yet


def test_without_alignment_there_is_no_such_term():
    assert set(build(w_align=0.0)(batch_of(images()), {})) == {"codes"}


def test_the_regressor_sees_nothing_of_the_hidden_patches():
    step, x = build().eval(), images()
    other = x.clone()
    other[..., 8:] = torch.rand(4, 3, 16, 8)
    latents = [step.method.regress(step.student(each, aligned=halves()).final, halves())[0] for each in (x, other)]
    assert torch.equal(*latents)


def test_a_block_of_the_regressor_is_attention_from_hidden_places_to_all_by_loops():
    torch.manual_seed(1)
    block = RegressorBlock(8, 2)
    queries, context, at_queries, at_context = (torch.randn(1, n, 8) for n in (3, 5, 3, 5))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        q = block.q(block.norm_q(queries + at_queries))[0]
        k, v = block.k(block.norm_k(context + at_context))[0], block.v(block.norm_v(context))[0]
        attended = torch.zeros(3, 8)
        for head in (slice(0, 4), slice(4, 8)):
            for i in range(3):
                weights = torch.tensor([float(q[i, head] @ k[j, head]) / 2 for j in range(5)]).softmax(0)
                attended[i, head] = sum(weights[j] * v[j, head] for j in range(5))
        x = block.norm(queries[0] + block.scale_attention.gamma * block.out(attended))
        expected = x + block.scale_mlp.gamma * block.mlp(x)
        torch.testing.assert_close(block(queries, context, at_queries, at_context)[0], expected)


def test_alignment_pulls_the_regressor_and_the_seen_side_of_the_encoder_only():
    step = build()
    losses = step(batch_of(images()), {})
    losses["align"].backward()
    assert step.method.mask_token.grad.abs().sum() > 0
    assert step.student.net.patch_embed.proj.weight.grad.abs().sum() > 0
    assert step.method.head.weight.grad is None


def test_a_step_of_all_terms_reaches_every_parameter():
    step = build()
    for _ in range(2):
        sum(step(batch_of(images()), {}).values()).backward()
    assert not [name for name, parameter in step.named_parameters() if parameter.grad is None]


def test_students_without_a_second_look_and_heads_that_do_not_divide_are_refused():
    reason = CAE.refuse(CAEConfig(image_size=32), ZOO["mae_b16_mini"], {}, Recipe(epochs=1, batch_size=2))
    assert reason.startswith("Method 'cae' shows its student the two parts of an image apart")
    assert "not 'mim_vit'" in reason
    with pytest.raises(Refused, match="5 heads"):
        build(heads=5)
