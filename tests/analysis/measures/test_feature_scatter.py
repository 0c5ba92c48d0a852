import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.measures.feature_scatter import SKETCH, FeatureScatter, difference, draws, gaussian, principal_points
from analysis.measures.parts.moments import NotFinite
from hkd.errors import UserError


def pair(count=6, positions=9, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, positions, width, generator=generator) for _ in range(2)]


def scatter_of(tokens, tokens_t, **options):
    scatter = FeatureScatter(**options)
    scatter.update(tokens, tokens_t)
    return scatter


def test_equal_features_lie_at_the_origin():
    tokens, _ = pair()
    result = scatter_of(tokens, tokens).compute()
    assert np.abs(result.points).max() == 0
    assert result.mean == result.median == 0


def test_a_constant_added_to_a_channel_changes_nothing():
    tokens, tokens_t = pair()
    moved = tokens + torch.randn(6, 1, 5)
    torch.testing.assert_close(difference(moved, tokens_t), difference(tokens, tokens_t), rtol=0, atol=1e-5)


def test_norms_are_bounded_and_near_the_root_of_twice_the_positions_for_unrelated_features():
    tokens, tokens_t = pair(200, 49, 64)
    far = scatter_of(tokens, -tokens).compute()
    assert far.norm**2 == pytest.approx(np.full(200, 4 * 49), rel=1e-5)
    assert far.per_position == pytest.approx(np.full(200, 4), rel=1e-5)
    apart = scatter_of(tokens, tokens_t).compute()
    assert (apart.norm**2).mean() == pytest.approx(2 * 49, rel=0.02)


def test_squared_norms_over_positions_are_two_minus_twice_the_mean_cosine():
    tokens, tokens_t = pair()
    centred = [value - value.mean(dim=1, keepdim=True) for value in (tokens, tokens_t)]
    expected = (2 - 2 * F.cosine_similarity(*centred, dim=2)).mean(dim=1)
    assert scatter_of(tokens, tokens_t).compute().per_position == pytest.approx(expected.numpy(), rel=1e-5)


def test_points_are_the_projected_differences_and_keep_the_mean_squared_norm():
    tokens, tokens_t = pair(2000, 9, 20)
    result = scatter_of(tokens, tokens_t, seed=3).compute()
    delta = difference(tokens, tokens_t).numpy()
    assert result.points == pytest.approx(delta @ gaussian(180, 2, 3).numpy(), abs=1e-5)
    assert (result.points**2).sum(1).mean() / (delta**2).sum(1).mean() == pytest.approx(1, rel=0.25)


def test_identical_students_share_their_scatter_whatever_the_batches():
    tokens, tokens_t = pair()
    whole, parts = scatter_of(tokens, tokens_t), FeatureScatter()
    for part in zip(tokens.split(4), tokens_t.split(4), strict=True):
        parts.update(*part)
    assert parts.compute().points == pytest.approx(whole.compute().points, abs=1e-6)
    assert not np.allclose(scatter_of(tokens, tokens_t, seed=1).compute().points, whole.compute().points)


def test_parts_merge_in_order_and_travel_without_their_projection():
    tokens, tokens_t = pair(100, 16, 64)
    whole, left = scatter_of(tokens, tokens_t), scatter_of(tokens[:30], tokens_t[:30])
    sent = pickle.dumps(scatter_of(tokens[30:], tokens_t[30:]))
    assert len(sent) < 4 * 16 * 64 * 2  # bytes of the projection alone
    left.merge(pickle.loads(sent))
    left.update(tokens[:1], tokens_t[:1])  # the seed brings the projection back
    assert left.compute().points[:100] == pytest.approx(whole.compute().points, abs=1e-6)
    result = whole.compute()
    assert result.mean == pytest.approx(result.norm.mean())
    assert result.quantiles == pytest.approx(np.quantile(result.norm, [0.05, 0.25, 0.5, 0.75, 0.95]))
    assert result.quantiles[2] == pytest.approx(result.median)


def test_principal_directions_of_the_union_are_those_of_its_second_moments():
    tokens, tokens_t = pair(50)
    students = [scatter_of(tokens, tokens_t, width=SKETCH), scatter_of(tokens * 0.1 + tokens_t, tokens_t, width=SKETCH)]
    points = principal_points(students)
    union = np.concatenate([student.sketch() for student in students])
    _, values, axes = np.linalg.svd(union, full_matrices=False)
    assert np.abs(np.concatenate(points)) == pytest.approx(np.abs(union @ axes[:2].T), abs=1e-4)
    assert (np.concatenate(points) ** 2).sum(0) == pytest.approx(values[:2] ** 2, rel=1e-4)
    result = students[1].compute(points[1])
    assert result.points is points[1]
    with pytest.raises(ValueError, match="no points of its own"):
        students[0].compute()
    with pytest.raises(ValueError, match="only if their seed and width"):
        principal_points([students[0], scatter_of(tokens, tokens_t)])


def test_draws_come_back_from_their_seed_without_repeats():
    first = draws(64_000)
    assert first.shape == (8, 6400)
    assert (first == draws(64_000)).all()
    assert (first != draws(64_000, seed=1)).any()
    assert all(len(set(draw.tolist())) == 6400 for draw in first)
    assert draws(10).shape == (8, 10)


def test_bad_input_is_named():
    tokens, tokens_t = pair()
    scatter = FeatureScatter()
    with pytest.raises(UserError, match="No samples were compared"):
        scatter.compute()
    with pytest.raises(UserError, match="No samples to draw from"):
        draws(0)
    with pytest.raises(ValueError, match="student and teacher differ"):
        scatter.update(tokens, tokens_t[:, :4])
    with pytest.raises(NotFinite, match="not finite"):
        scatter.update(torch.full_like(tokens, torch.nan), tokens_t)
    scatter.update(tokens, tokens_t)
    with pytest.raises(ValueError, match="had 45 before"):
        scatter.update(tokens[:, :4], tokens_t[:, :4])
    with pytest.raises(ValueError, match="different projections"):
        scatter.merge(FeatureScatter(seed=1))
    with pytest.raises(ValueError, match="9 and 4 positions"):
        scatter.merge(scatter_of(tokens[:, :4], tokens_t[:, :4]))


@pytest.mark.long
def test_64000_samples_of_75264_values_take_less_than_a_gibibyte_and_a_half():
    code = """
import torch
from analysis.measures.feature_scatter import FeatureScatter
torch.set_num_threads(1)
scatter, batch = FeatureScatter(), torch.randn(2, 64, 49, 1536)
for _ in range(1000):
    scatter.update(batch[0], batch[1])
assert scatter.compute().points.shape == (64_000, 2)
print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 2**20 < 1.5
