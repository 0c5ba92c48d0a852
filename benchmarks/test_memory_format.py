"""Memory format of each miniature family: a training step in the card's format against the other one.

The number that matters is `ratio` in the extra info: seconds of a step (forward, cross-entropy, backward; one thread)
in the card's format divided by seconds in the other format, median over interleaved pairs in the same process. The
cards were set by these ratios; a card may not be clearly slower than the alternative.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel

CARDS = [
    "resnet18_mini",
    "resnet50_mini",
    "resnet50d_mini",
    "mobilenet_v1_mini",
    "convnext_t_mini",
    "mixer_s16_mini",
    "vit_s16_mini",
    "swin_t_mini",
    "eva_l14_mini",
]
PAIRS = 15


def training_step(name: str, batch: int, channels_last: bool) -> Callable[[], None]:
    """Forward and backward of a batch of random images, gradients dropped."""
    torch.manual_seed(0)
    model = TapModel(replace(ZOO[name], channels_last=channels_last), 10)
    x, y = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))

    def step() -> None:
        F.cross_entropy(model(x).logits, y).backward()
        model.zero_grad(set_to_none=True)

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


@pytest.mark.parametrize("batch", [50, 128])
@pytest.mark.parametrize("name", CARDS)
def test_the_format_of_the_card_is_not_the_slower_one(benchmark, name, batch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = training_step(name, batch, ZOO[name].channels_last)
        other = training_step(name, batch, not ZOO[name].channels_last)
        for _ in range(3):
            chosen(), other()
        ratio = statistics.median(seconds(chosen) / seconds(other) for _ in range(PAIRS))
        benchmark.extra_info.update(batch=batch, channels_last=ZOO[name].channels_last, ratio=round(ratio, 3))
        benchmark.pedantic(chosen, rounds=5)
    finally:
        torch.set_num_threads(threads)
    assert ratio < 1.15, f"{name}: the other memory format is {ratio:.2f} times faster at batch {batch}"
