import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.measures.attention_nmi import AttentionNMI, attention_nmi


def nmi(attention):
    return attention_nmi(attention.double()[None, None]).item()


def test_a_permutation_tells_all_about_the_query():
    assert nmi(torch.eye(196)) == pytest.approx(1, abs=1e-12)
    assert nmi(torch.eye(196)[torch.randperm(196)]) == pytest.approx(1, abs=1e-12)


def test_equal_rows_tell_nothing():
    assert nmi(torch.full((196, 196), 1 / 196)) == pytest.approx(0, abs=1e-12)
    assert nmi(torch.rand(196).softmax(0).expand(196, 196)) == pytest.approx(0, abs=1e-6)


def test_all_queries_on_one_key_count_as_nothing():
    assert nmi(torch.eye(4)[:1].expand(4, 4)) == 0


def test_two_tokens():
    assert nmi(torch.tensor([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(0.531004, abs=1e-6)


@pytest.mark.parametrize(("count", "expected"), [(4, 0.5), (196, 0.131325)])
def test_two_blocks_uniform_inside(count, expected):
    block = torch.full((count // 2, count // 2), 2 / count, dtype=torch.float64)
    assert nmi(torch.block_diag(block, block)) == pytest.approx(expected, abs=1e-6)
    assert expected == pytest.approx(math.log(2) / math.log(count), abs=1e-6)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.225603), (0.1, 0.010207)])
def test_identity_mixed_with_uniform(share, expected):
    attention = share * torch.eye(4, dtype=torch.float64) + (1 - share) / 4
    assert nmi(attention) == pytest.approx(expected, abs=1e-6)


def by_loops(attention):
    count = len(attention)
    keys = [sum(attention[q][k].item() for q in range(count)) / count for k in range(count)]
    information = sum(
        a * math.log(a / keys[k]) / count for row in attention for k, a in enumerate(row.tolist()) if a > 0
    )
    entropy = -sum(p * math.log(p) for p in keys if p > 0)
    return information / math.sqrt(math.log(count) * entropy)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(0, 100), st.floats(0.1, 30.0))
def test_it_equals_the_definition_in_loops(count, seed, sharpness):
    scores = torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * sharpness
    attention = scores.softmax(-1)
    assert nmi(attention) == pytest.approx(by_loops(attention), abs=1e-7)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 100), st.floats(0.0, 1e4))
def test_it_stays_in_its_range_in_single_precision(seed, sharpness):
    scores = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * sharpness
    found = attention_nmi(scores.softmax(-1))
    assert ((found >= 0) & (found <= 1 + 1e-6)).all()


def test_images_are_averaged_after_the_ratio():
    maps = torch.stack([torch.eye(4), torch.eye(4).roll(1, 0)])[:, None]  # both 1, their mean map is not
    measure = AttentionNMI()
    measure.add(0, attention_nmi(maps))
    assert measure.compute().mean.item() == pytest.approx(1)
    assert nmi(maps.mean(0)[0]) == pytest.approx(0.5)


def test_one_patch_is_refused():
    with pytest.raises(ValueError, match="at least two patches"):
        attention_nmi(torch.ones(1, 1, 1, 1))
