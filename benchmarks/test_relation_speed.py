"""What two methods gain by a product in place of a gather: RKD's relations, CRD's scores; one thread, CPU seconds.

The number that matters is `ratio` in the extra info: the reference's median time divided by ours, forward and backward,
the two interleaved in one process. Memory is what the tensors of one such pass take at their peak, as the allocator
reports it. The references build what the papers' formulas name: all pairwise differences [B, B, D], and a copy of
every sample's negatives [B, K, D]. Run without the type-checking hook of the tests:
`pytest -o addopts="" --benchmark-only benchmarks/test_relation_speed.py`.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hkd.methods.base import Samples
from hkd.methods.crd import CRD, CRDConfig, _Contrast, crd_loss
from hkd.methods.rkd import rkd_losses
from hkd.models.tap_model import Teacher
from hkd.models.taps import TapInfo

PAIRS = 5  # after one that is not counted
FASTER, SMALLER = 10.0, 0.25  # required


def step(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient."""
    leaf.grad = None
    value = loss(leaf)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad


def peak_mib(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> float:
    """Most memory that the tensors of one pass hold at a time, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step(loss, leaf)
    held = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def compare(
    benchmark, ours: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], leaf: Tensor
) -> tuple[float, float]:
    """Record ratios of time and memory, and check that both agree to 1e-5. Returns (time, memory)."""
    (value, grad), (expected, wanted) = step(ours, leaf), step(reference, leaf)
    assert value == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(grad / wanted.abs().max(), wanted / wanted.abs().max(), rtol=1e-5, atol=1e-5)
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for _ in range(PAIRS):
        for name, loss in (("ours", ours), ("reference", reference)):
            start = time.process_time()
            step(loss, leaf)
            times[name].append(time.process_time() - start)
    ratios = [slow / fast for fast, slow in zip(times["ours"], times["reference"], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    memory = {name: peak_mib(loss, leaf) for name, loss in (("ours", ours), ("reference", reference))}
    benchmark.extra_info.update(
        ratio=round(ratio, 1),
        quartiles=(round(low, 1), round(high, 1)),
        pairs=PAIRS,
        ms={name: round(1e3 * statistics.median(spent), 1) for name, spent in times.items()},
        mib={name: round(size, 1) for name, size in memory.items()},
    )
    benchmark.pedantic(lambda: step(ours, leaf), rounds=1)
    return ratio, memory["ours"] / memory["reference"]


def by_differences(features_s: Tensor, features_t: Tensor) -> tuple[Tensor, Tensor]:
    """RKD's two losses from all pairwise differences."""

    def distance(features: Tensor) -> Tensor:
        apart = (features[None] - features[:, None]).square().sum(2).clamp(min=1e-12).sqrt()
        apart = apart * (1 - torch.eye(len(features)))
        return apart / apart[apart > 0].mean()

    def angle(features: Tensor) -> Tensor:
        unit = F.normalize(features[None] - features[:, None], dim=2)
        return unit @ unit.transpose(1, 2)

    return (
        F.smooth_l1_loss(distance(features_s), distance(features_t)),
        F.smooth_l1_loss(angle(features_s), angle(features_t)),
    )


def test_relations_from_inner_products_are_ten_times_faster_than_from_differences(benchmark):
    torch.manual_seed(0)
    features_s, features_t = torch.randn(128, 512, requires_grad=True), torch.randn(128, 512)

    def weighted(function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
        def loss(features: Tensor) -> Tensor:
            distance, angle = function(features, features_t)
            return 25 * distance + 50 * angle

        return loss

    ratio, _ = compare(benchmark, weighted(rkd_losses), weighted(by_differences), features_s)
    assert ratio >= FASTER


class Side(Teacher):
    """What a method sees of a teacher: its shapes."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.info = TapInfo(classes=100, pooled=8, final=(8, 1, 1), stages={})


def test_scores_from_one_product_are_ten_times_faster_and_four_times_smaller_than_gathered_negatives(benchmark):
    """CIFAR-100's size: bank 50,000 x 128, K = 16,384, B = 128; one of the two banks, the draw of negatives apart."""
    torch.manual_seed(0)
    count, batch, tau = 50_000, 128, 0.07
    method = CRD(CRDConfig(), Side().info, {"teacher": Side()}, F.cross_entropy)
    method.prepare(Samples(labels=torch.arange(count) % 100, classes=100, epochs=1, steps=1))
    index = torch.randperm(count)[:batch]
    start = time.process_time()
    picks = torch.cat([index[:, None], method.negatives(index)], dim=1)
    benchmark.extra_info["draw_ms"] = round(1e3 * (time.process_time() - start), 1)
    bank, log_z = method.bank_s, torch.tensor(12.0)
    anchors = F.normalize(torch.randn(batch, 128), dim=1).requires_grad_()

    def ours(v: Tensor) -> Tensor:
        return _Contrast.apply(v, bank, picks, log_z, tau, True)[0]

    def gathered(v: Tensor) -> Tensor:
        entries = bank.index_select(0, picks.flatten()).view(*picks.shape, -1)
        return crd_loss((entries @ v[:, :, None]).squeeze(2) / tau - log_z, count)

    ratio, memory = compare(benchmark, ours, gathered, anchors)
    assert ratio >= FASTER
    assert memory <= SMALLER
