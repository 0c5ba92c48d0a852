"""Relational knowledge distillation, against the form with all pairwise differences."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hkd.methods.rkd as rkd
from hkd.data.batch import Batch
from hkd.errors import UserError
from hkd.methods.rkd import RKD, RKDConfig, distances, gram, rkd_losses
from hkd.models.taps import TapInfo, Taps

S = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
T = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
INFO = TapInfo(classes=2, pooled=2, final=(4, 1, 1), stages={})


def by_differences(features_s, features_t):
    """Both losses from [B, B, D] differences; a pair of equal samples is 1e-6 apart and has no direction."""

    def relations(features):
        apart = features[None] - features[:, None]
        squared = apart.square().sum(2)
        same = squared <= 1e-12
        length = squared.masked_fill(same, 1e-12).sqrt()
        distance = length * (1 - torch.eye(len(features), dtype=features.dtype))
        unit = (apart / length[..., None]).masked_fill(same[..., None], 0)
        return distance / distance[distance > 0].mean(), unit @ unit.transpose(1, 2)

    (d_s, a_s), (d_t, a_t) = relations(features_s), relations(features_t)
    return F.smooth_l1_loss(d_s, d_t), F.smooth_l1_loss(a_s, a_t)


def both(features_s, features_t, function):
    """Losses and the student's gradient of their weighted sum."""
    leaf = features_s.clone().requires_grad_()
    distance, angle = function(leaf, features_t)
    (25 * distance + 50 * angle).backward()
    return distance.item(), angle.item(), leaf.grad


def run(features_s, features_t, **options):
    taps_s, taps_t = (
        Taps(logits=torch.zeros(len(f), 2), pooled=f, final=torch.zeros(len(f), 4, 1, 1))
        for f in (features_s, features_t)
    )
    count = len(features_s)
    batch = Batch(x=torch.zeros(count, 3, 8, 8), y=torch.full((count, 2), 0.5), index=torch.arange(count))
    return RKD(RKDConfig(**options), INFO, {}, F.cross_entropy)(batch, taps_s, {"teacher": taps_t})


def test_both_losses_have_their_hand_values():
    distance, angle = rkd_losses(S, T)
    assert distance.item() == pytest.approx(0.071699, abs=1e-6)
    assert angle.item() == pytest.approx(0.129630, abs=1e-6)


def test_the_weighted_sum_has_its_hand_value():
    losses = run(S, T)
    assert list(losses) == ["task", "distance", "angle"]
    assert (losses["distance"] + losses["angle"]).item() == pytest.approx(8.273960, abs=1e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10), shift=st.floats(-100, 100))
def test_rotation_scale_and_shift_cost_nothing(seed, scale, shift):
    torch.manual_seed(seed)
    features = torch.randn(5, 3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    found = rkd_losses(features, scale * features @ rotation + shift)
    assert [value.item() for value in found] == pytest.approx([0, 0], abs=1e-12)


def near(distance):
    """A few samples that are `distance` from each other among others, far from the origin."""
    torch.manual_seed(3)
    features = torch.randn(8, 16) + 5
    features[1:4] = features[:1] + distance * torch.randn(3, 16)
    return features


@pytest.mark.parametrize(
    "features",
    [
        pytest.param(torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), id="any"),
        pytest.param(100 + 0.01 * torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), id="far"),
        pytest.param(1e4 * torch.randn(7, 12, generator=torch.Generator().manual_seed(1)), id="large"),
        pytest.param(near(1e-2), id="near"),
        pytest.param(near(1e-4), id="nearer"),
        pytest.param(near(0.0), id="duplicates"),
        pytest.param(1e5 * near(0.0), id="large duplicates"),
        pytest.param(torch.full((6, 4), 3.3), id="constant"),
        pytest.param(torch.randn(2, 5, generator=torch.Generator().manual_seed(1)), id="two samples"),
    ],
)
def test_inner_products_give_what_pairwise_differences_give(features):
    other = torch.randn(len(features), 9, generator=torch.Generator().manual_seed(2))
    for pair in ((features, other), (other, features)):
        expected = both(pair[0].double(), pair[1].double(), by_differences)
        found = both(*pair, rkd_losses)
        assert found[:2] == pytest.approx(expected[:2], abs=1e-5)
        scale = expected[2].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(found[2].double() / scale, expected[2] / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 4 * 36, 10**6])
def test_the_result_does_not_depend_on_how_anchors_are_taken_together(monkeypatch, block):
    torch.manual_seed(0)
    features_s, features_t = torch.randn(6, 4), torch.randn(6, 3)
    expected = both(features_s, features_t, rkd_losses)
    monkeypatch.setattr(rkd, "CPU_BLOCK", block)
    found = both(features_s, features_t, rkd_losses)
    assert found[:2] == pytest.approx(expected[:2], rel=1e-5)
    torch.testing.assert_close(found[2], expected[2])


def test_the_angle_agrees_with_a_loop_over_triples():
    torch.manual_seed(0)
    features_s, features_t = torch.randn(2, 4, 3, dtype=torch.float64)

    def cosine(features, i, j, k):
        if i in (j, k):
            return 0.0
        return F.cosine_similarity(features[j] - features[i], features[k] - features[i], dim=0).item()

    expected = 0.0
    for i in range(4):
        for j in range(4):
            for k in range(4):
                error = abs(cosine(features_s, i, j, k) - cosine(features_t, i, j, k))
                expected += (error**2 / 2 if error < 1 else error - 0.5) / 64
    assert rkd_losses(features_s, features_t)[1].item() == pytest.approx(expected)


def test_gradients_agree_with_finite_differences_and_spare_the_teacher():
    torch.manual_seed(0)
    features_s, features_t = (torch.randn(4, n, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    assert torch.autograd.gradcheck(lambda s: rkd_losses(s, features_t), features_s)
    sum(rkd_losses(features_s, features_t)).backward()
    assert features_t.grad is None


def test_identical_samples_are_a_millionth_apart_and_not_absent():
    found, same = distances(gram(torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0]])))
    expected = [[0, 1e-6, 5], [1e-6, 0, 5], [5, 5, 0]]
    assert found.flatten().tolist() == pytest.approx([value for row in expected for value in row], abs=1e-12)
    assert same.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    features_t = torch.tensor([[0.0], [1.0], [2.0]])
    distance = rkd_losses(torch.tensor([[0.0], [0.0], [1.0]]), features_t)[0].item()
    mean = (2 * 1e-6 + 4) / 6
    unlike = [(1e-6 / mean, 3 / 4), (1 / mean, 3 / 2), (1 / mean, 3 / 4)]
    assert distance == pytest.approx(sum(2 * (a - b) ** 2 / 2 for a, b in unlike) / 9, abs=1e-6)


def test_equal_samples_give_no_gradient_and_no_nan():
    features = torch.ones(4, 3, requires_grad=True)
    sum(rkd_losses(features, torch.randn(4, 2))).backward()
    assert torch.equal(features.grad, torch.zeros(4, 3))


def test_mixed_precision_does_not_round_the_relations():
    torch.manual_seed(0)
    features_s, features_t = torch.randn(5, 4), torch.randn(5, 3)
    expected = both(features_s, features_t, rkd_losses)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = both(features_s, features_t, rkd_losses)
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])
    assert all(value.dtype == torch.float32 for value in rkd_losses(features_s.bfloat16(), features_t))


def test_a_batch_of_one_is_refused():
    with pytest.raises(UserError, match="'rkd' compares samples"):
        run(S[:1], T[:1])
