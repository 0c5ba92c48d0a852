"""The queue of embeddings: order, wrap-around, unit length, checkpoints, several processes."""

import copy
import socket
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing

from hkd.methods.parts.embedding_queue import EmbeddingQueue
from hkd.methods.parts.masks import active_mean, random_visible, visible_cells

BASIS = torch.eye(6)  # row i stands for embedding i


def numbers(queue: EmbeddingQueue) -> list[int]:
    return queue.rows.argmax(dim=1).tolist()


def test_the_oldest_entries_make_room_for_the_newest():
    queue = EmbeddingQueue(4, 6)
    queue.enqueue(BASIS[1:4])
    assert (int(queue.pointer), int(queue.fill)) == (3, 3)
    queue.enqueue(BASIS[4:6])
    assert numbers(queue) == [5, 2, 3, 4]
    assert (int(queue.pointer), int(queue.fill)) == (1, 4)


def test_only_the_filled_part_is_read():
    queue = EmbeddingQueue(4, 6)
    assert [len(part) for part in queue.filled()] == [0, 0]
    queue.enqueue(BASIS[1:3], torch.tensor([7, 9]))
    rows, samples = queue.filled()
    assert torch.equal(rows, BASIS[1:3])
    assert samples.tolist() == [7, 9]


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 7), batches=st.lists(st.integers(1, 17), max_size=6))
def test_it_holds_what_a_deque_holds_also_for_batches_larger_than_itself(size, batches):
    queue, expected, next_ = EmbeddingQueue(size, 2), deque(maxlen=size), 0
    for count in batches:
        angles = torch.arange(next_, next_ + count) / 100
        queue.enqueue(torch.stack([angles.cos(), angles.sin()], dim=1), torch.arange(next_, next_ + count))
        expected.extend(range(next_, next_ + count))
        next_ += count
    rows, samples = queue.filled()
    assert sorted(samples.tolist()) == sorted(expected)
    torch.testing.assert_close(torch.atan2(rows[:, 1], rows[:, 0]), samples / 100)
    assert int(queue.pointer) == next_ % size
    assert all(samples[number % size] == number for number in expected)


def test_rows_have_unit_length_and_carry_no_gradient():
    queue, leaf = EmbeddingQueue(8, 5), (1e3 * torch.randn(3, 5)).requires_grad_()
    queue.enqueue(leaf)
    torch.testing.assert_close(queue.rows[:3].norm(dim=1), torch.ones(3))
    assert not queue.rows.requires_grad
    assert leaf.grad is None


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e18])
def test_extreme_embeddings_are_finite(value):
    queue = EmbeddingQueue(4, 3)
    queue.enqueue(torch.full((2, 3), value))
    assert queue.rows.isfinite().all()


def test_mixed_precision_does_not_round_the_rows():
    rows = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    plain, mixed = EmbeddingQueue(4, 5), EmbeddingQueue(4, 5)
    plain.enqueue(rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed.enqueue(rows)
        mixed.enqueue(rows[:1].bfloat16())
    assert torch.equal(mixed.rows[:3], plain.rows[:3])
    assert mixed.rows.dtype == torch.float32


def test_the_queue_survives_a_checkpoint():
    queue = EmbeddingQueue(4, 6)
    queue.enqueue(BASIS, torch.arange(6))
    resumed = EmbeddingQueue(4, 6)
    resumed.load_state_dict(copy.deepcopy(queue.state_dict()), strict=True)
    for each in (queue, resumed):
        each.enqueue(BASIS[:1], torch.tensor([10]))
    assert set(queue.state_dict()) == {"rows", "samples", "pointer", "fill"}
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in queue.state_dict().items())


# --- several processes


def part_of_a_batch(rank, port, folder):
    """Three batches of one of two processes, each with its half."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    queue = EmbeddingQueue(5, 6)
    for step in range(3):
        mine = torch.tensor([4 * step, 4 * step + 1]) + 2 * rank
        queue.enqueue(BASIS[mine % 6], mine)
    torch.save(queue.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_have_the_queue_of_the_whole_batch(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(part_of_a_batch, args=(port, tmp_path), nprocs=2)
    alone = EmbeddingQueue(5, 6)
    for step in range(3):
        whole = torch.arange(4 * step, 4 * step + 4)
        alone.enqueue(BASIS[whole % 6], whole)
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items())


# --- masks


@pytest.mark.parametrize(
    ("grid", "ratio", "shown"), [(7, 0.6, 20), (4, 0.6, 6), (7, 0.0, 49), (7, 0.9, 5), (1, 0.4, 1)]
)
def test_every_image_shows_exactly_the_rounded_number_of_cells(grid, ratio, shown):
    assert visible_cells("hgkd", grid, ratio, whole=True) == shown
    visible = random_visible(50, grid, shown, torch.device("cpu"))
    assert visible.shape == (50, 1, grid, grid)
    assert (visible.flatten(1).sum(1) == shown).all()


def test_masks_are_drawn_for_each_image_or_for_the_batch_and_follow_the_seed():
    torch.manual_seed(0)
    each = random_visible(9, 7, 20, torch.device("cpu"))
    shared = random_visible(9, 7, 20, torch.device("cpu"), per="batch")
    torch.manual_seed(0)
    assert torch.equal(random_visible(9, 7, 20, torch.device("cpu")), each)
    assert len(each.flatten(1).unique(dim=0)) == 9
    assert len(shared.flatten(1).unique(dim=0)) == 1
    assert shared.shape == each.shape


def test_every_cell_is_visible_equally_often():
    torch.manual_seed(0)
    share = random_visible(20_000, 4, 6, torch.device("cpu")).float().mean(0)
    assert (share - 6 / 16).abs().max() < 5 * (0.375 * 0.625 / 20_000) ** 0.5


def test_the_mean_is_over_active_positions():
    generator = torch.Generator().manual_seed(0)
    visible = random_visible(2, 7, 20, torch.device("cpu"))
    map_ = (0.4 + 0.05 * torch.randn(2, 3, 7, 7, generator=generator)) * visible
    found = active_mean(map_, visible)
    expected = torch.stack([m[:, v[0]].mean(1) for m, v in zip(map_, visible, strict=True)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(active_mean(map_, None), found * 20 / 49)
