"""Sparse convolution layer by layer: masks per map size, each converted layer on every backend, what is refused."""

import copy
import sys
import threading

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, Conv2dSame, DropPath, LayerNorm2d
from torch import nn

from hkd.errors import UserError
from hkd.models.masks import mask_at
from hkd.models.sparse import rows as sparse_rows
from hkd.models.sparse.maps import Level, active_in, gather, scatter
from hkd.models.sparse.modules import sparse_batch_norm, sparsify

ROWS = ["rows", "spconv"]


def random_mask(batch: int, g: int, ratio: float, seed: int = 0) -> torch.Tensor:
    """Exactly round(g * g * (1 - ratio)) visible cells per image, at least one."""
    order = torch.rand(batch, g * g, generator=torch.Generator().manual_seed(seed)).argsort(1)
    count = max(1, round(g * g * (1 - ratio)))
    return torch.zeros(batch, g * g, dtype=torch.bool).scatter_(1, order[:, :count], True).view(batch, 1, g, g)


def run(net, x, visible, backend, autocast=False):
    """The net's masked output as a map, and gradients of a fixed projection of it to the input and the parameters."""
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    half = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with half, active_in(visible, (x.shape[2], x.shape[3]), backend) as active:
        y = active.leave(net(active.enter(x)))
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return y.detach(), [x.grad, *(p.grad for p in net.parameters())], dict(net.named_buffers())


LAYERS = {
    "convolution": nn.Conv2d(4, 6, 3, padding=1),
    "large_kernel": nn.Conv2d(4, 6, (5, 3), padding=(2, 1), bias=False),
    "pointwise": nn.Conv2d(4, 6, 1),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    # Eight channels: on CPUs with AVX2 alone, torch writes beyond its memory in the gradient of one of fewer.
    "strided_pointwise": nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 6, 1, stride=2, bias=False)),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "unpadded": nn.Conv2d(4, 6, 3),
    "patches": nn.Conv2d(4, 6, 2, stride=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "strided_depthwise": nn.Conv2d(4, 8, 5, stride=2, padding=2, groups=4),
    "padded_by_input": Conv2dSame(4, 6, 3, stride=2),
    "max_pool": nn.MaxPool2d(3, 2, 1),
    "average_pool": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "batch_norm": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
    "norm_with_activation": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), BatchNormAct2d(6, act_layer=nn.Sigmoid)),
    "layer_norm": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), LayerNorm2d(6)),
    "drop_path": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), DropPath(0.5)),
}


@pytest.mark.parametrize(("side", "ratio"), [(12, 0.0), (12, 0.6), (15, 0.4), (15, 0.9)])
@pytest.mark.parametrize("name", LAYERS)
def test_rows_give_the_numbers_of_masked_maps(name, side, ratio):
    torch.manual_seed(0)
    net = sparsify(copy.deepcopy(nn.Sequential(LAYERS[name])))
    x, visible = torch.randn(5, 4, side, side), random_mask(5, 3, ratio)
    torch.manual_seed(2)
    y, grads, buffers = run(net, x, visible, "masked")
    for backend in ROWS:
        torch.manual_seed(2)
        y_rows, grads_rows, buffers_rows = run(net, x, visible, backend)
        torch.testing.assert_close(y_rows, y, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grads_rows, grads, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(buffers_rows, buffers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["convolution", "strided", "dilated", "depthwise", "max_pool", "average_pool", "pointwise"]
)
@pytest.mark.parametrize("backend", ["masked", *ROWS])
def test_a_layer_is_the_dense_one_on_hidden_zeros_times_the_mask(name, backend):
    torch.manual_seed(0)
    x, visible = torch.randn(5, 4, 12, 12), random_mask(5, 3, 0.6)
    dense = LAYERS[name](x * mask_at(visible, (12, 12)))
    expected = dense * mask_at(visible, tuple(dense.shape[2:]) if dense.shape[2] % 3 == 0 else (12, 12))
    y, _, _ = run(sparsify(copy.deepcopy(nn.Sequential(LAYERS[name]))), x, visible, backend)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["masked", *ROWS])
def test_channels_last_layers_zero_hidden_positions(backend):
    torch.manual_seed(0)
    block = timm.models.convnext.ConvNeXtBlock(8, kernel_size=3, ls_init_value=1.0)
    nn.init.normal_(block.mlp.fc2.bias)
    nn.init.normal_(block.norm.bias)
    net, x, visible = sparsify(nn.Sequential(block)), torch.randn(3, 8, 6, 6), random_mask(3, 3, 0.6)
    y, grads, _ = run(net, x, visible, backend)
    assert not y.masked_select(~mask_at(visible, (6, 6))).any()
    y_masked, grads_masked, _ = run(net, x, visible, "masked")
    torch.testing.assert_close(y, y_masked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grads, grads_masked, rtol=1e-4, atol=1e-4)


def test_batch_norm_over_active_positions_has_the_values_of_the_specification():
    x = torch.tensor([[1.0, 3.0], [0.0, 0.0]])[None, None]
    active = torch.tensor([[True, True], [False, False]])[None, None]
    norm = nn.BatchNorm2d(1)
    y = sparse_batch_norm(x, active, norm)
    torch.testing.assert_close(y[0, 0], torch.tensor([[-0.999995, 0.999995], [0, 0]]), rtol=0, atol=1e-6)
    assert norm.running_mean.item() == pytest.approx(0.2)
    assert norm.running_var.item() == pytest.approx(1.1)
    dense = nn.BatchNorm2d(1)(x)[0, 0]
    torch.testing.assert_close(dense, torch.tensor([[0, 1.633], [-0.816, -0.816]]), rtol=0, atol=1e-3)


def test_batch_norm_in_evaluation_mode_uses_running_statistics_and_leaves_them():
    norm = nn.BatchNorm2d(1).eval()
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0 - norm.eps)
    y = sparse_batch_norm(torch.full((1, 1, 1, 2), 5.0), torch.tensor([True, False]).view(1, 1, 1, 2), norm)
    torch.testing.assert_close(y.flatten(), torch.tensor([2.0, 0.0]))
    assert norm.num_batches_tracked == 0


def test_scatter_and_gather_are_each_others_gradients():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([1, 7, 8, 30, 39])
    assert torch.autograd.gradcheck(lambda x: gather(x, index), x)
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: scatter(rows, index, (2, 3, 4, 5)), rows)
    assert torch.autograd.gradgradcheck(lambda x: gather(x, index).square(), x)
    assert torch.equal(gather(scatter(rows, index, (2, 3, 4, 5)), index), rows)


@settings(deadline=None, max_examples=15)
@given(
    side=st.integers(5, 12),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_pairs_are_those_of_a_plain_loop(side, kernel, stride, dilation, padding, seed):
    after_side = (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if after_side < 1:
        return
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(2, 1, s, s, generator=generator) < 0.6 for s in (side, after_side)]
    before, after = (Level(mask) for mask in masks)
    found = sparse_rows.kernel_pairs(before, after, *((n, n) for n in (kernel, stride, padding, dilation)))
    inputs, outputs = (mask[:, 0].nonzero().tolist() for mask in masks)
    for k in range(kernel * kernel):
        expected = []
        for row, (b, y, x) in enumerate(outputs):
            at = [b, y * stride - padding + dilation * (k // kernel), x * stride - padding + dilation * (k % kernel)]
            if at in inputs:
                expected.append((inputs.index(at), row))
        assert found.pairs[:, k, : found.counts[k]].T.tolist() == [list(item) for item in expected]


def test_a_mask_repeats_its_cells():
    visible = torch.tensor([[True, False], [False, True]])[None, None]
    expected = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1]]).bool()
    assert torch.equal(mask_at(visible, (4, 6))[0, 0], expected)
    with pytest.raises(UserError, match="2x2 cells does not fit a 4x5 map"):
        mask_at(visible, (4, 5))


@pytest.mark.parametrize("backend", ["masked", *ROWS])
def test_a_map_of_odd_size_takes_the_mask_at_its_kernel_centres(backend):
    """Cells of 3 px on 9 px: a stride-2 map of 5 has its centres at px 0, 2, 4, 6, 8; the next, of 3, at 0, 4, 8."""
    visible = torch.tensor([[True, False, False], [False, True, True], [False, False, True]])[None, None]
    cells = mask_at(visible, (9, 9))
    first, second = nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.MaxPool2d(3, 2, 1)
    nn.init.ones_(first.weight)
    nn.init.ones_(first.bias)
    y, _, _ = run(sparsify(nn.Sequential(first)), torch.rand(1, 1, 9, 9), visible, backend)
    assert torch.equal(y != 0, cells[..., ::2, ::2])
    y, _, _ = run(sparsify(nn.Sequential(first, second)), torch.rand(1, 1, 9, 9), visible, backend)
    assert torch.equal(y != 0, visible)  # 3 divides into cells again: repetition


def test_levels_that_rows_cannot_tell_apart_are_refused():
    refused = pytest.raises(UserError, match="4x4 and 2x4 both have 8 active positions")
    with active_in(torch.eye(2, dtype=torch.bool)[None, None], (4, 4), "rows") as active, refused:
        active.add(Level(torch.ones(1, 1, 2, 4, dtype=torch.bool)))


def test_without_a_mask_a_converted_layer_is_the_dense_one():
    torch.manual_seed(0)
    for layer in LAYERS.values():
        x, dense = torch.randn(2, 4, 9, 9), nn.Sequential(copy.deepcopy(layer))
        net = sparsify(copy.deepcopy(dense))
        torch.manual_seed(1)
        expected = dense(x)
        torch.manual_seed(1)
        assert torch.equal(net(x), expected)
        assert list(net.state_dict()) == list(dense.state_dict())


def test_conversion_is_idempotent_and_readable():
    net = sparsify(sparsify(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))))
    assert repr(net[0]) == "SparseConv2d(1, 2, kernel_size=(3, 3), stride=(1, 1))"
    assert isinstance(net[0], nn.Conv2d)


@pytest.mark.parametrize(
    ("arch", "kwargs", "path", "kind"),
    [
        ("resnet18", {"block_args": {"attn_layer": "se"}}, "layer1.0.se", "SEModule"),
        ("resnetblur18", {}, "maxpool.1", "BlurPool2d"),
        ("resnet18", {"norm_layer": "groupnorm"}, "bn1", "GroupNorm"),
        ("resnet18", {"drop_block_rate": 0.1}, "layer3.0.drop_block", "DropBlock2d"),
        ("convnextv2_atto", {}, "stages.0.blocks.0.mlp", "GlobalResponseNormMlp"),
        ("efficientnet_b0", {}, "blocks.0.0.se", "SqueezeExcite"),
        ("vit_tiny_patch16_224", {}, "network", "VisionTransformer"),
    ],
)
def test_an_unknown_layer_is_named_and_the_network_left_alone(arch, kwargs, path, kind):
    net = timm.create_model(arch, num_classes=2, **kwargs)
    with pytest.raises(UserError, match=rf"'{path}' is a timm\.\S+\.{kind}"):
        sparsify(net)
    assert not any(type(module).__name__.startswith("Sparse") for module in net.modules())


@pytest.mark.parametrize(
    ("visible", "size", "message"),
    [
        (torch.ones(2, 1, 4, 4), (32, 32), "Boolean of shape"),
        (torch.ones(2, 4, 4, dtype=torch.bool), (32, 32), "Boolean of shape"),
        (torch.ones(2, 1, 4, 4, dtype=torch.bool), (30, 30), "30x30 px does not divide into the mask's 4x4 cells"),
        (torch.tensor([True, False]).view(2, 1, 1, 1), (8, 8), "Image 1 of the batch .* no visible cell"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(visible, size, message):
    with pytest.raises(UserError, match=message), active_in(visible, size):
        pass


def test_cells_finer_than_a_map_are_refused_with_the_right_size():
    net = sparsify(nn.Sequential(nn.Conv2d(1, 1, 2, 2), nn.Conv2d(1, 1, 2, 2)))
    message = "4x4 cells of 2 px are finer than a 2x2 map .* stride 4; take cells of at least 4 px, at most 2x2"
    for backend in ("masked", *ROWS):
        with pytest.raises(UserError, match=message), active_in(random_mask(1, 4, 0.6), (8, 8), backend) as active:
            net(active.enter(torch.rand(1, 1, 8, 8)))


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match="Known: masked, rows, spconv"), active_in(random_mask(1, 2, 0.5), (4, 4), "x"):
        pass


def test_without_spconv_the_backend_says_what_else_there_is(monkeypatch):
    sparse_rows.spconv_kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "spconv.core", None)
    with (
        pytest.raises(UserError, match=r"Linux on x86-64 .* 'masked'"),
        active_in(random_mask(1, 2, 0.5), (4, 4), "spconv"),
    ):
        pass
    sparse_rows.spconv_kernels.cache_clear()


def test_the_mask_is_gone_after_an_exception():
    conv = sparsify(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)))
    x = torch.rand(1, 1, 4, 4)
    expected = conv(x)
    with pytest.raises(RuntimeError), active_in(random_mask(1, 2, 0.5), (4, 4)):
        raise RuntimeError
    assert torch.equal(conv(x), expected)


def test_nested_passes_and_threads_see_their_own_masks():
    torch.manual_seed(0)
    net = sparsify(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)))
    x = torch.randn(4, 2, 8, 8)
    masks = [random_mask(4, 4, ratio, seed) for seed, ratio in enumerate((0.4, 0.6, 0.6, 0.9))]
    alone = [run(net, x, mask, "masked")[0] for mask in masks]
    with active_in(masks[0], (8, 8)) as outer:
        inner = run(net, x, masks[1], "spconv")[0]
        assert torch.equal(copy.deepcopy(net)(outer.enter(x)), alone[0])
    torch.testing.assert_close(inner, alone[1], rtol=1e-5, atol=1e-5)

    found: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(len(masks))

    def work(i: int) -> None:
        mine = copy.deepcopy(net)
        with active_in(masks[i], (8, 8)) as active:
            barrier.wait()
            y = mine[0](active.enter(x))
            barrier.wait()
            found[i] = mine[1](y).detach()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(masks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], alone[i]) for i in range(len(masks)))


@pytest.mark.parametrize("backend", ["masked", *ROWS])
def test_bfloat16_autocast_keeps_inactive_positions_zero(backend):
    torch.manual_seed(0)
    net = sparsify(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1)))
    x, visible = torch.randn(3, 4, 8, 8), random_mask(3, 4, 0.6)
    exact, _, _ = run(net, x, visible, backend)
    y, grads, _ = run(net, x, visible, backend, autocast=True)
    assert y.dtype == torch.bfloat16
    assert not y.masked_select(~mask_at(visible, (8, 8))).any()
    assert all(torch.isfinite(grad).all() for grad in grads)
    torch.testing.assert_close(y.float(), exact, rtol=0.1, atol=0.1)
