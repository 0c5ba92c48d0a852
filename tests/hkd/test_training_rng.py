"""Named streams of random numbers, and their state in a checkpoint."""

import random

import numpy as np
import torch

from hkd.training.rng import rng_state, seed_all, set_rng_state, stream_seed


def draw():
    return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.random()


def test_a_state_that_went_through_a_file_gives_the_same_numbers_again(tmp_path):
    seed_all(3, "train")
    draw()
    torch.save(rng_state(), tmp_path / "state.pt")
    numbers = draw()
    draw()
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == numbers


def test_streams_differ_by_seed_and_by_name():
    seeds = {stream_seed(*words) for words in [(0, "init"), (0, "train"), (1, "init"), (0, "train", 1), (10, "train")]}
    assert len(seeds) == 5


def test_a_seed_gives_the_same_numbers_in_every_process():
    assert stream_seed(0, "init") == 7797302695267191734
