"""Several seeds of a miniature as one batched model (torch.func), tried against one step after another. Reported.

Three seeds, each with its own images: forward, cross-entropy, backward and AdamW, one thread. The ratio is seconds of
three single steps divided by those of the batched one, median over interleaved pairs in one process; above 1 the
batched model is the faster one. Losses of the first step must agree. ConvNeXt, ViT and Swin are left out: for some of
their operations, fused attention among them, vmap has no rule and runs them once a seed.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, replace_all_batch_norm_modules_, stack_module_state, vmap

from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel

SEEDS, BATCH, PAIRS = 3, 50, 15
Step = Callable[[], torch.Tensor]


def models_of(name: str, **changes: bool) -> list[TapModel]:
    """A student of each seed, its batch norm without running statistics, which vmap cannot update in place."""
    models = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        models.append(replace_all_batch_norm_modules_(TapModel(replace(ZOO[name], **changes), 10)))
    return models


def optimizer(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=True)


def one_by_one(models: list[TapModel], x: torch.Tensor, y: torch.Tensor) -> Step:
    """A step of each model on its own images; the losses."""
    optimizers = [optimizer(list(model.parameters())) for model in models]

    def step() -> torch.Tensor:
        losses = []
        for model, rule, images, labels in zip(models, optimizers, x, y, strict=True):
            loss = F.cross_entropy(model(images).logits, labels)
            loss.backward()
            rule.step()
            rule.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def batched(models: list[TapModel], x: torch.Tensor, y: torch.Tensor) -> Step:
    """The same step of all models in one pass."""
    parameters, buffers = stack_module_state(models)
    rule = optimizer(list(parameters.values()))

    def loss_of(parameters: dict, buffers: dict, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(models[0], (parameters, buffers), (images,)).logits, labels)

    def step() -> torch.Tensor:
        losses = vmap(loss_of, randomness="different")(parameters, buffers, x, y)
        losses.sum().backward()
        rule.step()
        rule.zero_grad()
        return losses.detach()

    return step


def seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


@pytest.mark.parametrize("name", ["resnet18_mini", "mobilenet_v2_mini", "resmlp_s12_mini"])
def test_seeds_in_one_batched_model(benchmark, name):
    x, y = torch.rand(SEEDS, BATCH, 3, 32, 32), torch.randint(10, (SEEDS, BATCH))
    single = one_by_one(models_of(name), x, y)
    whole = batched(models_of(name, channels_last=False), x, y)  # vmap knows no other format
    torch.testing.assert_close(whole(), single(), rtol=1e-3, atol=1e-3)
    pairs = [(seconds(single), seconds(whole)) for _ in range(PAIRS)]
    benchmark.pedantic(whole, rounds=3)
    ratio = statistics.median(one / other for one, other in pairs)
    alone = 1e3 * statistics.median(one for one, _ in pairs)
    benchmark.extra_info.update(ratio=round(ratio, 2), one_by_one_ms=round(alone))
    print(f"\n{name}: {SEEDS} seeds one by one {alone:.0f} ms, batched {ratio:.2f} times as fast")
