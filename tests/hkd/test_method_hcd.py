"""HCD: sub-logits of student and teacher together as targets."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.hcd import HCD, HCDConfig, orthogonality_loss, repeated, target_figures, target_kl
from hkd.methods.supervised import Supervised
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import TapInfo, Taps
from hkd.options import NoOptions

INFO = TapInfo(
    classes=3, pooled=12, final=(12, 2, 2), stages={1: (6, 8, 8), 2: (6, 8, 8), 3: (10, 4, 4), 4: (12, 2, 2)}
)
Y = torch.tensor([0])
SMOOTH = partial(F.cross_entropy, label_smoothing=0.1)


class Stub(Teacher):
    """A teacher of given shapes without weights."""

    def __init__(self, classes: int = 3, pooled: int = 7) -> None:
        nn.Module.__init__(self)
        self.info = TapInfo(classes=classes, pooled=pooled, final=(pooled, 1, 1), stages={})


def taps(logits: torch.Tensor) -> Taps:
    return Taps(logits=logits, pooled=torch.zeros(len(logits), 7), final=torch.zeros(len(logits), 7, 1, 1))


def taps_s(batch: int = 4, scale: float = 1.0) -> Taps:
    torch.manual_seed(0)
    maps = {stage: scale * torch.randn(batch, *shape) for stage, shape in INFO.stages.items()}
    return Taps(logits=scale * torch.randn(batch, 3), pooled=maps[4].mean((2, 3)), final=maps[4], stages=maps)


def taps_t(batch: int = 4, scale: float = 1.0) -> dict[str, Taps]:
    torch.manual_seed(1)
    pooled = scale * torch.randn(batch, 7)
    return {"teacher": Taps(logits=scale * torch.randn(batch, 3), pooled=pooled, final=pooled[..., None, None])}


def batch(y: torch.Tensor) -> Batch:
    return Batch(x=torch.zeros(len(y), 3, 8, 8), y=y, index=torch.arange(len(y)))


def method(criterion=F.cross_entropy, **options) -> HCD:
    torch.manual_seed(2)
    return HCD(HCDConfig(**options), INFO, {"teacher": Stub()}, criterion)


def pair(*rows: tuple[float, ...]) -> torch.Tensor:
    """Sub-logits of one sample and one stage, [1, 1, n, C]."""
    return torch.tensor(rows, dtype=torch.float64)[None, None]


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        (((5.0, 1.0, 0.0), (7.0, 0.0, 1.0)), 0.0),
        (((5.0, 1.0, 0.0), (-3.0, 2.0, 0.0)), 0.25),
        (((0.0, 1.0, 0.0), (0.0, 1.0, 1.0)), 0.042893),
        (((0.0, 1.0, 0.0), (0.0, -1.0, 0.0)), 0.0),  # opposite
        (((0.0, 1.0, 0.0), (0.0, 0.5, math.sqrt(0.75))), 0.0),  # 60 degrees
        (((0.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0), (0.0, -1.0, 0.0)), 0.083333),  # two identical pairs
        (((3.0, 0.0, 0.0), (5.0, 0.0, 0.0)), 0.0),  # nothing beside the true class
    ],
)
def test_the_orthogonality_loss_has_its_hand_values(rows, value):
    sub = pair(*rows).requires_grad_()
    loss = orthogonality_loss(sub, Y, theta=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert sub.grad.isfinite().all()


def test_without_masking_the_orthogonality_loss_would_see_the_true_class():
    sub = pair((0.0, 5.0, 1.0, 0.0), (0.0, 7.0, 0.0, 1.0))  # the first pair above with a masked class in front
    assert orthogonality_loss(sub, Y, theta=0.5).item() == pytest.approx(0.221582, abs=1e-6)


def test_the_orthogonality_loss_agrees_with_loops_over_ordered_pairs_of_vectors_without_the_true_class():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 2, 4, 6)) + 1, [0, 5, 2]
    expected = 0.0
    for b in range(3):
        for i in range(2):
            vectors = [np.delete(logits[b, i, j], y[b]) for j in range(4)]
            for j in range(4):
                for k in range(4):
                    if j != k:
                        cosine = vectors[j] @ vectors[k] / np.linalg.norm(vectors[j]) / np.linalg.norm(vectors[k])
                        expected += max(0.0, cosine - 0.3) ** 2 / (3 * 2 * 12)
    for mask in ("zero", "drop"):
        ours = orthogonality_loss(torch.tensor(logits), torch.tensor(y), theta=0.3, mask=mask)
        assert ours.item() == pytest.approx(expected)


def test_a_mask_of_minus_a_million_switches_the_orthogonality_loss_off():
    """A known defect: all masked vectors are almost the same, so the loss is (1 - theta)^2 whatever they are."""
    torch.manual_seed(0)
    sub = torch.randn(8, 1, 4, 100, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 100, (8,))
    loss = orthogonality_loss(sub, y, theta=0.5, mask="neg1e6")
    loss.backward()
    assert loss.item() == pytest.approx(0.25, abs=1e-9)
    assert sub.grad.norm() < 1e-10


def test_on_fused_logits_the_teacher_keeps_the_orthogonality_loss_active_and_on_sub_logits_it_idles():
    torch.manual_seed(0)
    sub, logits_t, y = torch.randn(16, 1, 4, 100), 3 * torch.randn(16, 100), torch.randint(0, 100, (16,))
    assert orthogonality_loss(sub, y, theta=0.5) == 0
    assert orthogonality_loss(sub + logits_t[:, None, None], y, theta=0.5) > 0.05


@given(seed=st.integers(0, 10**6), theta=st.floats(0, 1), scale=st.floats(1e-3, 1e4))
def test_the_orthogonality_loss_lies_between_0_and_its_bound_and_knows_no_scale(seed, theta, scale):
    sub = torch.randn(2, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = torch.tensor([0, 3])
    loss = orthogonality_loss(sub, y, theta=theta).item()
    assert -1e-12 <= loss <= (1 - theta) ** 2 + 1e-12
    assert orthogonality_loss(scale * sub, y, theta=theta).item() == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize(("tau", "value"), [(1.0, 1.782394), (4.0, 2.295382)])
def test_the_divergence_from_target_to_student_has_its_hand_values(tau, value):
    targets, logits_s = torch.tensor([[[0.0, 0.0, 3.0]]]), torch.tensor([[2.0, 0.0, 0.0]])
    assert target_kl(targets, logits_s, tau=tau).item() == pytest.approx(value, abs=2e-6)


def test_the_divergence_agrees_with_torch_over_every_target():
    torch.manual_seed(0)
    targets, logits_s = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    each = [
        4 * F.kl_div((logits_s / 2).log_softmax(1), (targets[:, m] / 2).softmax(1), reduction="batchmean")
        for m in range(5)
    ]
    torch.testing.assert_close(target_kl(targets, logits_s, tau=2.0), torch.stack(each).mean())


def test_gradients_agree_with_finite_differences_for_targets_and_student():
    torch.manual_seed(0)
    targets = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    logits_s = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(partial(target_kl, tau=2.0), (targets, logits_s))
    sub = (torch.randn(2, 2, 3, 4, dtype=torch.float64) + 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda u: orthogonality_loss(u, torch.tensor([0, 3]), theta=0.1), sub)


@pytest.mark.parametrize(
    ("criterion", "options", "task", "sub", "total"),
    [
        (F.cross_entropy, {}, 0.861995, 0.251264, 3.397116),
        (SMOOTH, {}, 0.895328, 0.401264, 3.580449),
        (F.cross_entropy, {"label_smoothing": 0.1}, 0.861995, 0.401264, 3.547116),
    ],
)
def test_all_terms_have_their_hand_values(criterion, options, task, sub, total):
    ours = method(criterion, stages=(4,), n=2, **options)
    student, teacher = taps(torch.tensor([[1.0, 1.0, 0.0]])), taps(torch.tensor([[2.0, 0.0, 0.0]]))
    z = pair((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)).float()
    plain = HCD(HCDConfig(stages=()), INFO, {"teacher": Stub()}, criterion)
    losses = plain(batch(Y), student, {"teacher": teacher}) | ours.target_losses(z, batch(Y), student, teacher)
    values = {name: loss.item() for name, loss in losses.items()}
    expected = {"task": task, "kd": 0.302929, "sub": sub, "hcd": 6 * 0.330155, "ol": 0.0}
    assert values == pytest.approx(expected, abs=6e-6)
    assert sum(values.values()) == pytest.approx(total, abs=6e-6)


def test_zero_sub_logits_make_the_target_loss_plain_distillation():
    ours, student, teacher = method(stages=(4,), w_hcd=1.0), taps_s(), taps_t()
    losses = ours.target_losses(torch.zeros(4, 1, 4, 3), batch(torch.tensor([0, 1, 2, 0])), student, teacher["teacher"])
    plain = ours(batch(torch.tensor([0, 1, 2, 0])), student, teacher)["kd"]
    torch.testing.assert_close(losses["hcd"], plain)


def test_without_fusing_only_plain_distillation_depends_on_the_teachers_logits():
    ours, student, y = method(fuse_teacher=False), taps_s(), torch.tensor([0, 1, 2, 0])
    first, second = taps_t(), taps_t()
    second["teacher"].logits = second["teacher"].logits.flip(1)
    losses, others = (ours(batch(y), student, teacher) for teacher in (first, second))
    assert [name for name in losses if not torch.equal(losses[name], others[name])] == ["kd"]


def test_the_whole_method_agrees_with_loops_over_stages_and_sub_logits():
    ours, student, teacher, y = method(SMOOTH, tau=2.0), taps_s(), taps_t(), torch.tensor([0, 1, 2, 0])
    losses = ours(batch(y), student, teacher)
    z, logits_t = ours.sub_logits(student, teacher["teacher"]), teacher["teacher"].logits
    sub = hcd = ol = 0
    for i in range(4):
        for j in range(4):
            u = z[:, i, j] + logits_t
            sub += SMOOTH(u, y) / 4
            log_p_s = (student.logits / 2).log_softmax(1)
            hcd += 4 * F.kl_div(log_p_s, (u / 2).softmax(1), reduction="batchmean") / 4
        ol += orthogonality_loss(z[:, i : i + 1] + logits_t[:, None, None], y, theta=0.5)
    torch.testing.assert_close(losses["sub"], sub)
    torch.testing.assert_close(losses["hcd"], 6 * hcd)
    torch.testing.assert_close(losses["ol"], ol)


def test_the_mean_over_stages_is_a_quarter_of_the_sum():
    y, student, teacher = torch.tensor([0, 1, 2, 0]), taps_s(), taps_t()
    total = method()(batch(y), student, teacher)
    mean = method(stage_reduce="mean")(batch(y), student, teacher)
    for name in ("sub", "hcd", "ol"):
        torch.testing.assert_close(4 * mean[name], total[name])
    assert torch.equal(mean["kd"], total["kd"])


def test_class_k_of_sub_logit_j_is_entry_j_times_classes_plus_k():
    ours = method(stages=(4,), n=4, cfm_hidden="none")
    nn.init.zeros_(ours.mappers[0].weight)
    with torch.no_grad():
        ours.mappers[0].bias.copy_(torch.arange(12.0))
    sub = ours.sub_logits(taps_s(), taps_t()["teacher"])
    assert sub.shape == (4, 1, 4, 3)
    assert all(sub[2, 0, j, k] == 3 * j + k for j in range(4) for k in range(3))


def test_the_order_of_the_sub_logits_does_not_matter():
    ours, student, teacher = method(ol_on="sub"), taps_s(), taps_t()["teacher"]
    sub, y = torch.randn(4, 4, 4, 3), torch.tensor([0, 1, 2, 0])
    losses = ours.target_losses(sub, batch(y), student, teacher)
    permuted = ours.target_losses(sub[:, :, [2, 0, 3, 1]], batch(y), student, teacher)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, permuted[name])


def test_the_student_gets_a_gradient_from_all_five_terms_and_the_teacher_none():
    source = torch.randn(4, 12, 2, 2, requires_grad=True)
    head = torch.randn(12, 3)
    student = Taps(logits=source.mean((2, 3)) @ head, pooled=source.mean((2, 3)), final=source, stages={4: source})
    teacher = taps_t(scale=3.0)
    for tensor in (teacher["teacher"].logits, teacher["teacher"].pooled):
        tensor.requires_grad_()
    losses = method(stages=(4,))(batch(torch.tensor([0, 1, 2, 0])), student, teacher)
    assert list(losses) == ["task", "kd", "sub", "hcd", "ol"]
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss, source, retain_graph=True)
        assert gradient.any()
    sum(losses.values()).backward()
    assert teacher["teacher"].logits.grad is None
    assert teacher["teacher"].pooled.grad is None


@pytest.mark.parametrize("detach", [False, True])
def test_the_mapper_is_pulled_by_the_target_loss_unless_targets_are_detached(detach):
    ours = method(detach_target=detach)
    loss = ours(batch(torch.tensor([0, 1, 2, 0])), taps_s(), taps_t())["hcd"]
    assert loss.requires_grad is not detach  # these taps are leaves: only the mapper could have a gradient


def train(kind, config, steps: int = 3) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    student = TapModel(ZOO["resnet18_mini"], 5)
    needs = kind.needs(config)
    method = kind(config, student.info, {}, SMOOTH)
    optimizer = torch.optim.SGD([*student.parameters(), *method.parameters()], lr=0.1)
    for _ in range(steps):
        x = torch.rand(4, 3, 32, 32)
        losses = method(Batch(x=x, y=torch.arange(4), index=torch.arange(4)), student(x, needs.student), {})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    return copy.deepcopy(student.net.state_dict())


def test_without_stages_and_weights_training_is_supervised_to_the_bit():
    config = HCDConfig(stages=(), w_kd=0.0, w_hcd=0.0, w_ol=0.0)
    ours, supervised = train(HCD, config), train(Supervised, NoOptions())
    assert all(torch.equal(value, supervised[name]) for name, value in ours.items())


def test_a_resnet18_from_a_swin_t_needs_the_parameters_of_the_specification():
    stages = {1: (64, 56, 56), 2: (128, 28, 28), 3: (256, 14, 14), 4: (512, 7, 7)}
    student = TapInfo(classes=100, pooled=512, final=(512, 7, 7), stages=stages)
    ours = HCD(HCDConfig(), student, {"teacher": Stub(classes=100, pooled=768)}, F.cross_entropy)
    for mapper in ours.mappers:
        counts = [sum(parameter.numel() for parameter in mapper[index].parameters()) for index in (0, 2)]
        assert counts == [1536 * 768 + 768, 768 * 400 + 400]
        assert [round(count / 1e6, 2) for count in counts] == [1.18, 0.31]


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, [(19, 7), (7, 12)]),
        ({"cfm_hidden": "none"}, [(19, 12)]),
        ({"concat": "student"}, [(12, 7), (7, 12)]),
        ({"concat": "teacher"}, [(7, 7), (7, 12)]),
        ({"cfm": False}, [(12, 12)]),
        ({"sdd": False}, [(19, 7), (7, 3)]),
        ({"n": 8}, [(19, 7), (7, 24)]),
    ],
)
def test_the_mapper_follows_its_options(options, layers):
    ours = method(stages=(4,), **options)
    linear = [module for module in ours.mappers.modules() if isinstance(module, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == layers
    losses = ours(batch(torch.tensor([0, 1, 2, 0])), taps_s(), taps_t())
    assert ("ol" in losses) is (ours.config.parts > 1)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def test_a_mapper_of_the_teacher_alone_needs_no_stage():
    config = HCDConfig(concat="teacher")
    assert HCD.needs(config).student.stages == ()
    assert not hasattr(method(concat="teacher"), "projectors")
    assert len(method(concat="teacher").mappers) == 4


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({"kd_term": False}, ["task", "sub", "hcd", "ol"]),
        ({"ol": False}, ["task", "kd", "sub", "hcd"]),
        ({"n": 1}, ["task", "kd", "sub", "hcd"]),
        ({"w_hcd": 0.0}, ["task", "kd", "sub", "ol"]),
        ({"w_gt": 0.0}, ["task", "kd", "hcd", "ol"]),
        ({"stages": ()}, ["task", "kd"]),
        ({"stages": (), "w_kd": 0.0}, ["task"]),
        ({"w_gt": 0.0, "w_hcd": 0.0, "w_ol": 0.0}, ["task", "kd"]),
    ],
)
def test_terms_that_are_off_are_left_out(options, terms):
    ours = method(**options)
    assert list(ours(batch(torch.tensor([0, 1, 2, 0])), taps_s(), taps_t())) == terms
    assert any(True for _ in ours.parameters()) is (len(terms) > 2)


def test_losses_look_at_fused_or_at_sub_logits_as_asked():
    sub, y, student, teacher = torch.randn(4, 4, 4, 3), torch.tensor([0, 1, 2, 0]), taps_s(), taps_t()["teacher"]
    losses = method(ce_on="sub", ol_on="sub").target_losses(sub, batch(y), student, teacher)
    torch.testing.assert_close(losses["sub"], 4 * F.cross_entropy(sub.flatten(0, 2), y.repeat_interleave(16)))
    torch.testing.assert_close(losses["ol"], 4 * orthogonality_loss(sub, y, theta=0.5))


def test_soft_targets_are_taken_as_they_are_and_mask_by_their_largest_class():
    soft = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    ours, sub, student, teacher = method(), torch.randn(4, 4, 4, 3), taps_s(), taps_t()["teacher"]
    losses = ours.target_losses(sub, batch(soft), student, teacher)
    hard = ours.target_losses(sub, batch(soft.argmax(1)), student, teacher)
    assert torch.equal(losses["ol"], hard["ol"])
    assert not torch.equal(losses["sub"], hard["sub"])
    smoothed = method(label_smoothing=0.1).target_losses(sub, batch(soft), student, teacher)
    assert torch.equal(losses["sub"], smoothed["sub"])


def test_targets_are_repeated_beside_their_sample():
    logits, y = torch.randn(3, 2, 5), torch.tensor([0, 4, 2])
    expected = sum(F.cross_entropy(logits[b : b + 1, m], y[b : b + 1]) for b in range(3) for m in range(2)) / 6
    torch.testing.assert_close(repeated(F.cross_entropy, logits, y), expected)


@pytest.mark.parametrize("options", [{}, {"ol_mask": "neg1e6"}, {"cfm_hidden": "none", "ol_on": "sub"}])
@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_extreme_and_constant_features_stay_finite(options, scale):
    ours, student = method(**options), taps_s(scale=scale)
    student.logits.requires_grad_()
    losses = ours(batch(torch.tensor([0, 1, 2, 0])), student, taps_t(scale=scale))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert student.logits.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())


def test_half_precision_logits_are_compared_in_single_precision():
    sub = torch.randn(4, 1, 4, 50).half()
    y = torch.zeros(4, dtype=torch.long)
    loss = orthogonality_loss(sub + 1, y, theta=0.5, mask="neg1e6")  # infinite in half precision
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(Refused, match=r"Method 'hcd' compares logits, but the teacher has 10 classes and the data 3\."):
        HCD(HCDConfig(), INFO, {"teacher": Stub(classes=10)}, F.cross_entropy)


# What becomes of the teacher in the targets


def test_figures_of_targets_have_their_hand_values():
    """Two classes and z_t = (ln 3, 0), so (.75, .25): u = z_t, u = 0 (the teacher taken back), u = (0, ln 3)."""
    a = math.log(3)
    z_t = torch.tensor([[a, 0.0]], dtype=torch.float64)
    entropy, norm = 2 * math.log(2) - 0.75 * a, a / math.sqrt(2)
    for u, size, cosine, spread, kl in (
        ((a, 0.0), 0.0, 0.0, entropy, 0.0),
        ((0.0, 0.0), norm, -1.0, math.log(2), math.log(2) - entropy),
        ((0.0, a), 2 * norm, -1.0, entropy, 0.5 * a),
        (
            (2 * a, 0.0),
            norm,
            1.0,
            0.9 * math.log(10 / 9) + 0.1 * math.log(10),
            0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(2.5),
        ),
    ):
        found = target_figures(torch.tensor([[u]], dtype=torch.float64), z_t)
        expected = {"sub_norm": size, "teacher_norm": norm, "sub_cosine": cosine}
        expected |= {"target_entropy": spread, "teacher_entropy": entropy, "target_kl": kl}
        assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 2**31 - 1), st.floats(-50, 50))
def test_figures_of_targets_know_no_constant(seed, constant):
    rng = torch.Generator().manual_seed(seed)
    u, z_t = (torch.randn(*shape, 5, generator=rng, dtype=torch.float64) for shape in ((3, 2), (3,)))
    shifted = target_figures(u - constant, z_t + constant)
    for name, value in target_figures(u, z_t).items():
        assert value.item() == pytest.approx(shifted[name].item(), abs=1e-6), name


def test_diagnostics_are_means_of_the_training_batches_and_survive_a_checkpoint():
    ours, y = method(diagnose=True), torch.tensor([0, 1, 2, 0])
    assert ours.diagnostics() == {}
    pairs = [(taps_s(scale=scale), taps_t(scale=scale)) for scale in (1.0, 3.0)]
    expected = []
    for student, teacher in pairs:
        ours(batch(y), student, teacher)
        fused = ours.sub_logits(student, teacher["teacher"]) + teacher["teacher"].logits[:, None, None]
        expected.append(target_figures(fused.flatten(1, 2), teacher["teacher"].logits))
    ours.eval()
    ours(batch(y), *pairs[0])  # held-out images are not counted
    resumed = method(diagnose=True)
    resumed.load_state_dict(ours.state_dict())
    found = ours.diagnostics()
    assert found == resumed.diagnostics()
    assert found == pytest.approx({name: (expected[0][name] + expected[1][name]).item() / 2 for name in expected[0]})
    assert ours.diagnostics() == {}


def test_diagnosing_changes_no_loss_and_is_off_unless_asked():
    y, student, teacher = torch.tensor([0, 1, 2, 0]), taps_s(), taps_t()
    plain, watched = method(), method(diagnose=True)
    losses, others = plain(batch(y), student, teacher), watched(batch(y), student, teacher)
    assert all(torch.equal(losses[name], others[name]) for name in losses)
    assert plain.diagnostics() == {}
    assert method(diagnose=True, stages=()).diagnostics() == {}
    assert {"sums", "passes"}.isdisjoint(plain.state_dict())


def test_a_warm_up_raises_the_weight_of_the_target_loss_in_a_straight_line_from_0():
    y, student, teacher = torch.tensor([0, 1, 2, 0]), taps_s(), taps_t()
    full = method()(batch(y), student, teacher)
    warm = method(warmup=4)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0):
        losses = warm(batch(y), student, teacher)
        torch.testing.assert_close(losses["hcd"], share * full["hcd"])
        assert all(torch.equal(losses[name], full[name]) for name in ("task", "kd", "sub", "ol"))


def test_a_warm_up_goes_on_where_a_checkpoint_stood_and_stands_still_in_evaluation():
    y, student, teacher = torch.tensor([0, 1, 2, 0]), taps_s(), taps_t()
    warm, resumed = method(warmup=4), method(warmup=4)
    warm(batch(y), student, teacher)
    warm.eval()
    held_out = [warm(batch(y), student, teacher)["hcd"] for _ in range(2)]
    assert torch.equal(*held_out)
    resumed.load_state_dict(warm.state_dict())
    assert resumed.w_hcd == warm.w_hcd == 6.0 / 4
