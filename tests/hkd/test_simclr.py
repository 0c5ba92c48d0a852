"""SimCLR: loss, views, head, refusals, training steps."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.data.batch import Batch
from hkd.methods.parts import views
from hkd.methods.parts.views import augmented, cropped, head, two_views
from hkd.methods.simclr import SimCLR, SimCLRConfig, nt_xent
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.spec import MethodSpec, ModelCard, Recipe
from hkd.tasks.train import TapStep, make_method

CARD = ModelCard(
    name="tiny",
    family="view_vit",
    arch="timm.models.vision_transformer:VisionTransformer",
    kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
    image_size=16,
    stages=(0, 0, 1, 1),
)
RECIPE = Recipe(epochs=1, batch_size=4)
STILL = {"crop": (1.0, 1.0), "jitter": 0.0, "colour": 0.0, "noise": 0.0, "erasing": 0.0}
ALL = {"crop": (0.3, 1.0), "jitter": 0.4, "colour": 0.3, "noise": 0.1, "erasing": 0.5, "flip": True}


def build(**options):
    torch.manual_seed(0)
    student = TapModel(CARD, 0)
    method, needs = make_method(MethodSpec(name="simclr", options={"width": 8} | options), student, {}, RECIPE)
    return TapStep(student, method, needs).train()


def images(count=4, side=16):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def batch_of(x):
    return Batch(x=x, y=torch.zeros(len(x), 0), index=torch.arange(len(x)))


def vectors(count, seed=0):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def by_loops(z, tau):
    """The loss from its definition."""
    z, count, terms = z / z.norm(dim=1, keepdim=True), len(z), []
    for i in range(count):
        scores = {k: math.exp(float(z[i] @ z[k]) / tau) for k in range(count) if k != i}
        terms.append(-math.log(scores[(i + count // 2) % count] / math.fsum(scores.values())))
    return math.fsum(terms) / count


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_the_loss_is_its_definition(tau):
    z = vectors(8)
    assert nt_xent(z, tau=tau).item() == pytest.approx(by_loops(z, tau), rel=1e-4)


def test_two_images_whose_views_agree_and_are_orthogonal_have_the_loss_by_hand():
    z = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    assert nt_xent(z, tau=1.0).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-6)


def test_equal_vectors_give_the_logarithm_of_the_number_of_candidates():
    assert nt_xent(torch.ones(6, 3), tau=0.1).item() == pytest.approx(math.log(5), rel=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 1e6]))
def test_length_and_order_of_the_images_do_not_matter(seed, scale):
    z = vectors(8, seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    shuffled = torch.cat([z[:4][order], z[4:][order]])
    torch.testing.assert_close(nt_xent(scale * shuffled, tau=0.5), nt_xent(z, tau=0.5))


def test_the_gradient_is_right():
    z = vectors(6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: nt_xent(x, tau=0.3), z)


@pytest.mark.parametrize("z", [torch.zeros(4, 3), torch.full((4, 3), 1e20), torch.eye(4)[:, :3] * 1e-30])
def test_extreme_features_stay_finite(z):
    z = z.requires_grad_()
    loss = nt_xent(z, tau=0.01)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_the_shares_of_two_processes_have_the_loss_of_the_whole_batch(monkeypatch):
    z = vectors(12)
    shares = [torch.cat([z[:3], z[6:9]]), torch.cat([z[3:6], z[9:]])]
    unit = [views.unit(share) for share in shares]
    losses = []
    for rank in range(2):
        monkeypatch.setattr(views, "gathered", lambda tensor: torch.cat(unit))
        monkeypatch.setattr(views.dist, "get_rank", lambda rank=rank: rank)
        mine = shares[rank].clone().requires_grad_()
        loss = nt_xent(mine, tau=0.5)
        loss.backward()
        assert mine.grad.abs().sum() > 0
        losses.append(loss.item())
    monkeypatch.undo()
    assert sum(losses) / 2 == pytest.approx(nt_xent(z, tau=0.5).item(), rel=1e-5)


def test_without_strength_views_are_the_images():
    x = images()
    assert torch.equal(two_views(x, SimCLRConfig(**STILL)), torch.cat([x, x]))


@pytest.mark.parametrize("name", ["crop", "jitter", "colour", "noise", "erasing", "flip"])
def test_every_switch_changes_images_each_by_its_own_draw(name):
    torch.manual_seed(0)
    x = images(1).expand(6, -1, -1, -1)
    made = augmented(x, SimCLRConfig(**STILL | {name: 1.0 if name == "erasing" else ALL[name]}))
    different = {tuple(image.flatten().mul(1e4).round().tolist()) for image in made}
    assert len(different) == (2 if name == "flip" else 6)
    assert made.min() >= 0
    assert made.max() <= 1


def test_half_of_the_images_are_mirrored_and_nothing_is_without_the_option():
    torch.manual_seed(0)
    x = images(1).expand(40, -1, -1, -1)
    made = cropped(x, (1.0, 1.0), flip=True)
    plain = [torch.allclose(image, x[0], atol=1e-5) for image in made]
    mirrored = [torch.allclose(image, x[0].flip(2), atol=1e-5) for image in made]
    assert all(a != b for a, b in zip(plain, mirrored, strict=True))
    assert 10 < sum(mirrored) < 30
    torch.testing.assert_close(cropped(x, (0.9999, 1.0), flip=False), x, atol=0.02, rtol=0.0)


def test_a_crop_shows_a_part_of_the_image():
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32).view(1, 1, 1, 32).expand(200, 3, 32, 32)
    made = cropped(ramp, (0.25, 0.25), flip=False)
    span = (made[:, 0, 0, -1] - made[:, 0, 0, 0]) / (ramp[0, 0, 0, -1] - ramp[0, 0, 0, 0])
    assert (
        span.min() > 0.40
    )  # half of the side, by up to the root of 4 / 3 narrower or wider, less half a pixel each side
    assert span.max() < 0.60
    assert made[:, 0, 0, 0].min() < 0.05
    assert made[:, 0, 0, -1].max() > 0.95


def test_views_are_drawn_from_the_seed():
    config = SimCLRConfig(**ALL)
    torch.manual_seed(3)
    first = two_views(images(), config)
    torch.manual_seed(3)
    assert torch.equal(two_views(images(), config), first)
    assert not torch.equal(first[:4], first[4:])


def test_a_head_norms_by_the_batch_also_in_evaluation():
    torch.manual_seed(0)
    layers = head([5, 7, 3], normed=True)
    x = vectors(9)
    assert torch.equal(layers.eval()(x), layers.train()(x))
    torch.testing.assert_close(layers(x).mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0.0)
    assert [tuple(p.shape) for p in layers.parameters()] == [(7, 5), (7,), (7,), (3, 7)]


def test_the_student_sees_two_views_and_its_pooled_features_make_the_loss(monkeypatch):
    step, batch = build(**STILL), batch_of(images())
    seen = []
    step.student.net.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses = step(batch, {})
    assert set(losses) == {"contrast"}
    once = step.student.prepare(batch.x)
    torch.testing.assert_close(seen[0], torch.cat([once, once]))
    pooled = step.student(batch.x).pooled
    torch.testing.assert_close(losses["contrast"], nt_xent(step.method.project(torch.cat([pooled, pooled])), tau=0.1))


def test_a_few_steps_bring_views_together():
    step, batch = build(**ALL), batch_of(images(16))
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = step(batch, {})["contrast"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_views_of_another_size_are_resized_as_the_student_does():
    model = TapModel(CARD, 0).eval()
    x = images(2, side=23)
    with torch.no_grad():
        torch.testing.assert_close(model(images(2), views=x).pooled, model(x).pooled)


def test_labels_are_not_touched():
    step, batch = build(), batch_of(images())
    batch.y = torch.full((4, 7), math.nan)
    assert step(batch, {})["contrast"].isfinite()


def test_the_same_weights_run_as_a_plain_vit():
    model = TapModel(CARD, 5).eval()
    plain = TapModel(replace(CARD, family="vit"), 5).eval()
    plain.net.load_state_dict(copy.deepcopy(model.net.state_dict()))
    assert torch.equal(model(images()).logits, plain(images()).logits)


def test_students_that_take_no_views_are_refused_when_planned():
    assert "family 'view_vit', not 'resnet'" in SimCLR.refuse(SimCLRConfig(), ZOO["resnet18_mini"], {}, RECIPE)
    assert SimCLR.refuse(SimCLRConfig(), CARD, {}, RECIPE) is None


def test_logits_stay_those_of_the_batch():
    model, x = TapModel(CARD, 5).eval(), images()
    taps = model(x, views=torch.cat([x, x.flip(3)]))
    assert len(taps.pooled) == 8
    torch.testing.assert_close(taps.logits, model(x).logits)


def test_vectors_of_other_processes_are_asked_for_in_training_alone(monkeypatch):
    """Held-out shares may differ in length: to gather them would wait for ever."""
    others = torch.randn(3, 2)
    monkeypatch.setattr(views, "gathered", lambda z: torch.cat([others, z]))
    monkeypatch.setattr(views.dist, "get_rank", lambda: 1)
    z = torch.randn(3, 2)
    found, start = views.everyone(z)
    assert start == 3
    assert torch.equal(found, torch.cat([others, z]))
    with torch.no_grad():
        found, start = views.everyone(z)
    assert start == 0
    assert found is z
