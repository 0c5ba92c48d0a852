"""Sparse convolution: a masked training step against a dense one, and spconv's kernels against masked dense ones.

The numbers that matter are the `ratio`s in the extra info: CPU seconds of a training step (forward, backward; one
thread) of each backend divided by those of the reference, median over interleaved rounds of one process. For whole
networks the reference is the same network dense. For stacks of four 3x3 convolutions with batch norm and ReLU it is
backend `masked`. Run without the type-checking hook of the tests:
`pytest -o addopts="" --benchmark-only benchmarks/test_sparse_speed.py`.
"""

import statistics
import time
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import nn

from hkd.models.sparse.maps import active_in
from hkd.models.sparse.modules import sparsify
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import ModelCard

ROUNDS = 5  # after one that is not counted
REQUIRED = 1.15  # of the masked step
BACKENDS = ("masked", "rows", "spconv")
RATIOS = [0.4, 0.6, 0.9]
TWIN = {
    "layers": (1, 1, 1, 1),
    "channels": (16, 32, 64, 128),
    "stem_type": "deep",
    "stem_width": 8,
    "maxpool": False,
    "output_stride": 8,
}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "kernel_sizes": 3, "output_stride": 8}
# family, architecture, kwargs, side in px, cells a side, batch
NETWORKS = {
    "resnet50_128px": ("sparse_resnet", "resnet50", {}, 128, 4, 8),
    "resnet_twin": ("sparse_resnet", "resnet18", TWIN, 32, 4, 128),
    "convnext_twin": ("sparse_convnext", "timm.models.convnext:ConvNeXt", CONVNEXT, 32, 4, 128),
}


def random_mask(batch: int, g: int, ratio: float) -> torch.Tensor:
    count = round(g * g * (1 - ratio))
    return (
        torch.zeros(batch, g * g, dtype=torch.bool)
        .scatter_(1, torch.rand(batch, g * g).argsort(1)[:, :count], True)
        .view(batch, 1, g, g)
    )


def compare(benchmark, steps: Mapping[str, Callable[[], None]], reference: str) -> dict[str, float]:
    """Record and return the median ratio of each step to the reference's in the same round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if turn:
                times[name].append(time.process_time() - start)
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(spent, times[reference], strict=True)), 3)
        for name, spent in times.items()
        if name != reference
    }
    ms = {name: round(1e3 * statistics.median(spent), 1) for name, spent in times.items()}
    benchmark.extra_info.update(reference=reference, ratio=ratios, ms=ms, rounds=ROUNDS, torch=torch.__version__)
    benchmark.pedantic(steps["masked"], rounds=1)
    return ratios


def network_steps(
    family: str, arch: str, kwargs: dict, side: int, g: int, batch: int, ratio: float, channels_last: bool
) -> dict[str, Callable[[], None]]:
    """One training step per backend and of the dense network."""
    torch.manual_seed(0)
    stages = (1, 2, 3, 4) if "resnet" in family else (0, 1, 2, 3)
    card = ModelCard(
        name="x",
        family=family,
        arch=arch,
        kwargs=dict(kwargs),
        image_size=side,
        stages=stages,
        channels_last=channels_last,
    )
    model = TapModel(card, 10).train()
    x, visible = torch.rand(batch, 3, side, side), random_mask(batch, g, ratio)

    def step_of(**masked) -> Callable[[], None]:
        def step() -> None:
            taps = model(x, Want(stages=(1, 2, 3, 4)), **masked)
            (taps.logits.square().mean() + sum(feature.mean() for feature in taps.stages.values())).backward()
            model.zero_grad(set_to_none=True)

        return step

    masked = {backend: step_of(visible=visible, backend=backend) for backend in BACKENDS}
    return {"dense": step_of()} | masked


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_masked_step_of_resnet50_takes_little_longer_than_a_dense_one(benchmark, channels_last):
    """64 px, batch 32, a mask of 2x2 cells of which two are visible (round(4 * .4))."""
    ratios = compare(benchmark, network_steps("sparse_resnet", "resnet50", {}, 64, 2, 32, 0.6, channels_last), "dense")
    assert ratios["masked"] <= REQUIRED


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_against_dense_networks(benchmark, name, ratio):
    """Recorded: which backend is the fastest where."""
    ratios = compare(benchmark, network_steps(*NETWORKS[name], ratio, "resnet" in name), "dense")
    benchmark.extra_info["fastest"] = min(ratios, key=lambda backend: ratios[backend])


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("width", "side"), [(64, 32), (128, 16), (256, 8)])
def test_spconv_against_masked_on_a_stack_of_convolutions(benchmark, width, side, ratio):
    torch.manual_seed(0)
    layers = [(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(4)]
    net = sparsify(nn.Sequential(*(layer for block in layers for layer in block)))
    net = net.to(memory_format=torch.channels_last)
    x = torch.randn(16, width, side, side).contiguous(memory_format=torch.channels_last)
    visible = random_mask(16, 4, ratio)

    def step_of(backend: str) -> Callable[[], None]:
        def step() -> None:
            with active_in(visible, (side, side), backend) as active:
                active.leave(net(active.enter(x))).square().mean().backward()
            net.zero_grad(set_to_none=True)

        return step

    compare(benchmark, {backend: step_of(backend) for backend in BACKENDS}, "masked")
