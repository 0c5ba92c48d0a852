"""MoCo v3: loss, moving averages, schedule, refusals, training and resumption."""

import copy
import math

import pytest
import torch

from hkd.data.batch import Batch
from hkd.methods.base import Samples
from hkd.methods.moco import MoCo, MoCoConfig, info_nce
from hkd.methods.parts import views
from hkd.models.cards.zoo import ZOO
from hkd.models.families.view_vit import MovingAverage
from hkd.models.tap_model import TapModel
from hkd.spec import MethodSpec, ModelCard, Recipe
from hkd.tasks.train import TapStep, make_method
from hkd.training.recipe import make_optimizer

CARD = ModelCard(
    name="tiny",
    family="view_vit",
    arch="timm.models.vision_transformer:VisionTransformer",
    kwargs={"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2},
    image_size=16,
    stages=(0, 0, 1, 1),
)
RECIPE = Recipe(epochs=1, batch_size=4)
STILL = {"crop": (1.0, 1.0), "jitter": 0.0, "colour": 0.0}


def build(classes=0, **options):
    torch.manual_seed(0)
    student = TapModel(CARD, classes)
    spec = MethodSpec(name="moco", options={"hidden": 16, "width": 8} | options)
    method, needs = make_method(spec, student, {}, RECIPE)
    method.prepare(Samples(labels=torch.zeros(40, 0), classes=0, epochs=2, steps=5))
    return TapStep(student, method, needs).train()


def images(count=4):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def batch_of(x):
    return Batch(x=x, y=torch.zeros(len(x), 0), index=torch.arange(len(x)))


def vectors(count, seed=0):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


def flat(module):
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach()


def go(step, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        step(batch_of(images()), {})["contrast"].backward()
        optimizer.step()


@pytest.mark.parametrize("tau", [0.1, 0.2, 1.0])
def test_the_loss_is_its_definition(tau):
    q, k = vectors(4), vectors(4, 1)
    terms = []
    for i in range(4):
        each = [float(torch.cosine_similarity(q[i], k[j], dim=0)) / tau for j in range(4)]
        terms.append(math.log(math.fsum(math.exp(s) for s in each)) - each[i])
    assert info_nce(q, k, tau=tau).item() == pytest.approx(2 * tau * math.fsum(terms) / 4, rel=1e-4)


def test_orthogonal_images_whose_views_agree_have_the_loss_by_hand():
    assert info_nce(torch.eye(2), 3 * torch.eye(2), tau=1.0).item() == pytest.approx(2 * math.log(1 + 1 / math.e))


def test_gradients_reach_queries_and_not_keys():
    q, k = vectors(4).requires_grad_(), vectors(4, 1).requires_grad_()
    info_nce(q, k, tau=0.2).backward()
    assert q.grad.abs().sum() > 0
    assert k.grad is None
    assert torch.autograd.gradcheck(
        lambda x: info_nce(x, k.detach().double(), tau=0.5), q.detach().double().requires_grad_()
    )


@pytest.mark.parametrize("q", [torch.zeros(4, 3), torch.full((4, 3), 1e20)])
def test_extreme_features_stay_finite(q):
    q = q.requires_grad_()
    loss = info_nce(q, q, tau=0.01)
    loss.backward()
    assert loss.isfinite()
    assert q.grad.isfinite().all()


def test_keys_of_all_processes_are_candidates(monkeypatch):
    q, k = vectors(6), vectors(6, 1)
    whole = info_nce(q, k, tau=0.2)
    losses = []
    for rank, rows in enumerate((slice(0, 3), slice(3, 6))):
        monkeypatch.setattr(views, "gathered", lambda tensor: views.unit(k))
        monkeypatch.setattr(views.dist, "get_rank", lambda rank=rank: rank)
        losses.append(info_nce(q[rows], k[rows], tau=0.2).item())
    assert sum(losses) / 2 == pytest.approx(whole.item(), rel=1e-5)


def test_the_average_is_a_copy_first_and_then_follows():
    layer, average, x = torch.nn.Linear(5, 2), MovingAverage(), vectors(3)
    first = flat(layer).clone()
    average.follow(layer, 0.9)
    assert torch.equal(average.flat, first)
    with torch.no_grad():
        layer.weight.add_(1.0)
    assert not torch.equal(average(layer, x), layer(x))
    average.follow(layer, 0.9)
    torch.testing.assert_close(average.flat, 0.9 * first + 0.1 * flat(layer))
    other = copy.deepcopy(layer)
    torch.nn.utils.vector_to_parameters(average.flat, other.parameters())
    torch.testing.assert_close(average(layer, x), other(x).detach())
    assert not average(layer, x).requires_grad
    assert not list(average.parameters())


def test_the_average_travels_with_the_state():
    layer, average, other = torch.nn.Linear(5, 2), MovingAverage(), MovingAverage()
    other.load_state_dict(average.state_dict(), strict=True)
    assert torch.equal(other(layer, vectors(3)), layer(vectors(3)))
    average.follow(layer, 0.9)
    other.load_state_dict(average.state_dict(), strict=True)
    assert torch.equal(other.flat, average.flat)
    assert other.flat.data_ptr() != average.flat.data_ptr()


def test_the_loss_is_symmetric_and_keys_are_of_the_other_view():
    step, x = build(), images()
    torch.manual_seed(2)
    loss = step(batch_of(x), {})["contrast"]
    torch.manual_seed(2)
    both = views.two_views(x, step.method.config)
    pooled = step.student(both).pooled  # the averages are copies of what they follow
    q1, q2 = (step.method.predict(step.method.project(part)) for part in pooled.chunk(2))
    k1, k2 = (step.method.project(part) for part in pooled.chunk(2))
    torch.testing.assert_close(loss, info_nce(q1, k2, tau=0.2) + info_nce(q2, k1, tau=0.2))


def test_averages_step_once_per_pass_of_training_and_not_in_evaluation():
    step = build(momentum=0.5, rises=False)
    step(batch_of(images()), {})
    start = step.method.encoder.flat.clone()
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.add_(1.0)
    step.eval()(batch_of(images()), {})
    assert torch.equal(step.method.encoder.flat, start)
    step.train()(batch_of(images()), {})
    torch.testing.assert_close(step.method.encoder.flat, start + 0.5)
    assert step.method.passes == 2


def test_momentum_rises_to_one_by_a_cosine():
    method, found = build(momentum=0.9).method, []
    for passes in (0, 5, 10, 99):
        method.passes.fill_(passes)
        found.append(method.momentum())
    assert found == pytest.approx([0.9, 0.95, 1.0, 1.0])


def test_the_average_is_no_parameter_and_the_student_stays_a_plain_model():
    step = build()
    names = [name for name, _ in step.method.named_parameters()]
    assert all(name.startswith(("project.", "predict.")) for name in names)
    groups = make_optimizer(RECIPE, step.student.net, step.method).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(step.parameters()))
    step(batch_of(images()), {})
    assert len(step.method.encoder.flat) == sum(p.numel() for p in step.student.parameters())
    assert list(step.student.state_dict()) == [f"net.{name}" for name in step.student.net.state_dict()]


def test_keys_are_pooled_features_also_of_a_model_with_a_classifier():
    model, average = TapModel(CARD, 5).eval(), MovingAverage()
    with torch.no_grad():
        taps = model(images(), average=average, momentum=0.9)
    torch.testing.assert_close(taps.keys, taps.pooled)


def test_a_few_steps_bring_views_together():
    step = build(crop=(0.5, 1.0), momentum=0.9, rises=False)
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = step(batch_of(images(16)), {})["contrast"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_a_resumed_run_goes_on_bit_for_bit():
    whole = build()
    adam = torch.optim.AdamW(whole.parameters(), lr=1e-3)
    torch.manual_seed(5)
    go(whole, adam, 2)
    saved = copy.deepcopy((whole.student.net.state_dict(), whole.method.state_dict(), adam.state_dict()))
    rng = torch.get_rng_state()
    go(whole, adam, 2)
    resumed = build()
    again = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    resumed.student.net.load_state_dict(saved[0])
    resumed.method.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    torch.set_rng_state(rng)
    go(resumed, again, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert torch.equal(whole.method.encoder.flat, resumed.method.encoder.flat)
    assert torch.equal(whole.method.projection.flat, resumed.method.projection.flat)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tau": 0.0}, "tau must be positive"),
        ({"momentum": 1.5}, "momentum must be between 0 and 1"),
        ({"width": 0}, "at least 1"),
        ({"crop": (0.9, 0.5)}, "crop"),
    ],
)
def test_options_that_cannot_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        MoCoConfig(**options)


def test_students_that_take_no_views_are_refused_when_planned():
    assert "family 'view_vit', not 'vit'" in MoCo.refuse(MoCoConfig(), ZOO["vit_s16_mini"], {}, RECIPE)
    assert MoCo.refuse(MoCoConfig(), CARD, {}, RECIPE) is None
