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
    """State of the global generators as tensors and plain values, which load without running code."""
    kind, words, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, words.tolist(), *rest),
        "random": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, np.array(words, dtype=np.uint32), *rest))
    random.setstate(state["random"])
