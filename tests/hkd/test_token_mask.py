"""Masks of redundant tokens: how many are dropped, which, and how kept ones are addressed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.methods.parts.token_mask import drop_redundant, dropped, kept_after, redundant_mask, share_kept
from hkd.models.masks import with_prefix

TOY = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [-1, 0]]])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("share", "counts"), [(0.5, [98, 49, 25]), (0.3, [138, 97, 68]), (0.1, [177, 160, 144]), (0.0, [196] * 3)]
)
def test_keep_counts_are_those_of_the_specification(share, counts):
    assert kept_after(196, share, 3) == counts


def test_a_share_is_the_decimal_number_that_was_written():
    assert math.floor(0.29 * 100) == 28
    assert dropped(100, 0.29) == 29
    assert share_kept(100, 0.29) == 29
    assert share_kept(196, 0.35) == 69
    assert share_kept(3, 1e-9) == 1


def test_the_toy_of_the_specification_keeps_the_first_and_the_last_token():
    similarity = torch.nn.functional.cosine_similarity(TOY, TOY.mean(1, keepdim=True), dim=2)
    torch.testing.assert_close(similarity, torch.tensor([[0.4472, 0.8944, 0.9487, -0.4472]]), atol=1e-4, rtol=0.0)
    assert drop_redundant(TOY, 1).tolist() == [[0, 1, 3]]
    assert drop_redundant(TOY[:, [0, 1, 3]], 1).tolist() == [[0, 2]]
    assert redundant_mask([TOY, TOY], [3, 2]).tolist() == [[True, False, False, True]]


def test_of_equally_similar_tokens_the_first_are_dropped():
    assert drop_redundant(torch.ones(2, 5, 3), 2).tolist() == [[2, 3, 4]] * 2
    assert drop_redundant(torch.zeros(1, 4, 3), 1).tolist() == [[1, 2, 3]]


def oracle(steps, counts):
    """By plain loops, of one image."""
    kept = list(range(len(steps[0])))
    for tokens, count in zip(steps, counts, strict=True):
        rows = [[float(value) for value in tokens[index]] for index in kept]
        mean = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        norm = math.hypot(*mean)
        cosine = [math.fsum(a * b for a, b in zip(r, mean, strict=True)) / (math.hypot(*r) * norm) for r in rows]
        order = sorted(range(len(kept)), key=lambda place: -cosine[place])
        gone = set(order[: len(kept) - count])
        kept = [index for place, index in enumerate(kept) if place not in gone]
    return kept


@settings(deadline=None, max_examples=12)
@given(count=st.integers(1, 30), share=st.floats(0.0, 0.95), seed=st.integers(0, 999))
def test_masks_are_those_of_plain_loops(count, share, seed):
    steps = [draw(2, count, width, seed=seed + width).double() for width in (5, 4, 7)]
    counts = kept_after(count, share, 3)
    mask = redundant_mask(steps, counts)
    assert counts[-1] >= 1
    for image in range(2):
        assert mask[image].nonzero()[:, 0].tolist() == oracle([step[image] for step in steps], counts)


def test_permuted_tokens_have_a_permuted_mask():
    steps, order = [draw(3, 16, 6, seed=seed) for seed in range(3)], torch.randperm(16)
    mask = redundant_mask(steps, kept_after(16, 0.3, 3))
    assert torch.equal(redundant_mask([step[:, order] for step in steps], kept_after(16, 0.3, 3)), mask[:, order])


def test_a_share_of_nothing_keeps_all_and_no_gradient_is_kept():
    tokens = draw(2, 9, 4).requires_grad_()
    mask = redundant_mask([tokens] * 3, kept_after(9, 0.0, 3))
    assert mask.all()
    assert not mask.requires_grad


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_extremes_keep_as_many(scale):
    assert redundant_mask([scale * draw(2, 9, 4)] * 2, [6, 4]).sum(1).tolist() == [4, 4]


def test_places_count_the_prefix_tokens():
    visible = torch.tensor([[True, False, True], [False, True, True]])
    assert with_prefix(visible, 2).tolist() == [[0, 1, 2, 4], [0, 1, 3, 4]]
    assert with_prefix(visible, 0).tolist() == [[0, 2], [1, 2]]
