"""Random numbers of a run: named streams of one seed, and the state that a checkpoint keeps."""

import hashlib
import random
from typing import Any

import numpy as np
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """Seed of the stream `names` of a run's seed, in [0, 2^63): streams of different names are unrelated."""
    words = "/".join(str(word) for word in (seed, *names))
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) >> 1


def seed_all(seed: int, *names: str | int) -> None:
    """Seed every global generator (torch on all devices, numpy, random) with a stream."""
    value = stream_seed(seed, *names)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)


def rng_state() -> dict[str, Any]:
    """State of the generators that this process draws from, as tensors and plain values, loadable without code."""
    numbers: dict[str, Any] = np.random.get_state(legacy=False)
    numbers["state"]["key"] = numbers["state"]["key"].tolist()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,  # of this process's device
        "numpy": numbers,
        "random": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])
    numbers = state["numpy"]
    key = np.array(numbers["state"]["key"], dtype=np.uint32)
    np.random.set_state(numbers | {"state": numbers["state"] | {"key": key}})
    random.setstate(state["random"])
