"""Masked CNN students: whole networks on every backend, what leaks and what does not, export into timm."""

import copy
import threading
from importlib.util import find_spec

import pytest
import timm
import torch
from torch import nn

from hkd.errors import UserError
from hkd.models.masks import mask_at
from hkd.models.sparse.maps import active_in
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import ModelCard

STAGES = Want(stages=(1, 2, 3, 4))
SMALL_RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_type": "deep", "stem_width": 8}
SMALL_CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "drop_path_rate": 0.3, "ls_init_value": 1.0}
CONVNEXT = "timm.models.convnext:ConvNeXt"
CARDS = {
    "resnet18": ("resnet", "resnet18", {}, 64, (1, 2, 3, 4)),
    "resnet50": ("resnet", "resnet50", {}, 64, (1, 2, 3, 4)),
    "resnet_twin": ("resnet", "resnet18", {**SMALL_RESNET, "output_stride": 8, "maxpool": False}, 32, (1, 2, 3, 4)),
    "resnet_d": ("resnet", "resnet26d", SMALL_RESNET, 64, (1, 2, 3, 4)),
    "resnet_odd": ("resnet", "resnet18", SMALL_RESNET, 72, (1, 2, 3, 4)),
    "convnext": ("convnext", CONVNEXT, {**SMALL_CONVNEXT, "head_norm_first": True}, 64, (0, 1, 2, 3)),
    "convnext_conv_mlp": ("convnext", CONVNEXT, {**SMALL_CONVNEXT, "conv_mlp": True}, 64, (0, 1, 2, 3)),
    "mobilenet_v2": ("mobilenet_v2", "mobilenetv2_050", {"drop_path_rate": 0.2}, 64, (1, 2, 3, 5)),
}
SMALL = [name for name in CARDS if name not in ("resnet18", "resnet50")]
GRID = {"resnet_twin": 4}  # cells a side; 2 elsewhere
LONG = pytest.mark.long


def card(name: str, sparse: bool = True) -> ModelCard:
    family, arch, kwargs, side, stages = CARDS[name]
    family = f"sparse_{family}" if sparse else family
    return ModelCard(name=name, family=family, arch=arch, kwargs=dict(kwargs), image_size=side, stages=stages)


def model(name: str, sparse: bool = True, classes: int = 5) -> TapModel:
    torch.manual_seed(0)
    return TapModel(card(name, sparse), classes)


def random_mask(batch: int, g: int, ratio: float, seed: int = 0) -> torch.Tensor:
    order = torch.rand(batch, g * g, generator=torch.Generator().manual_seed(seed)).argsort(1)
    count = max(1, round(g * g * (1 - ratio)))
    return torch.zeros(batch, g * g, dtype=torch.bool).scatter_(1, order[:, :count], True).view(batch, 1, g, g)


def images(name: str, batch: int = 8) -> torch.Tensor:
    side = CARDS[name][3]
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(3))


def maps(taps):
    return [*taps.stages.values(), taps.final, taps.pooled, taps.logits]


def projected(features):
    generator = torch.Generator().manual_seed(4)
    return sum((x * torch.randn(x.shape, generator=generator)).mean() for x in features)


def agree(found, expected, tolerance):
    """Largest difference at most `tolerance`, or that part of the largest entry, tensor by tensor."""
    worst = [
        float((a - b).detach().abs().max() / max(b.detach().abs().max(), 1))
        for a, b in zip(found, expected, strict=True)
    ]
    assert max(worst) <= tolerance


def on_all_backends(name, ratio, batch, kind, training):
    """Taps, buffers and gradients of a fixed projection of the taps, backend by backend."""
    x, visible = images(name, batch).to(kind), random_mask(batch, GRID.get(name, 2), ratio)
    results = []
    for backend in ("masked", "rows", "spconv"):
        net = model(name).to(kind).train(training)
        torch.manual_seed(5)  # stochastic depth
        taps = net(x, STAGES, visible=visible, backend=backend)
        grads = torch.autograd.grad(projected(maps(taps)), list(net.parameters()))
        results.append(([value.detach() for value in (*maps(taps), *net.buffers())], grads))
    return results


@pytest.mark.parametrize(
    ("name", "ratio"),
    [(name, 0.6) for name in SMALL]
    + [pytest.param(name, ratio, marks=LONG) for name in ("resnet_twin", "convnext") for ratio in (0.0, 0.4, 0.9)],
)
def test_all_backends_train_alike(name, ratio):
    """In float64, where a rounding cannot flip an activation; batch statistics and stochastic depth included."""
    (values, grads), *others = on_all_backends(name, ratio, 6, torch.float64, True)
    for values_rows, grads_rows in others:
        agree(values_rows, values, 1e-9)
        agree(grads_rows, grads, 1e-7)


@pytest.mark.parametrize("name", [*SMALL, "resnet18"])
def test_all_backends_give_the_same_taps_in_single_precision(name):
    (values, _), *others = on_all_backends(name, 0.6, 4, torch.float32, False)
    for values_rows, _ in others:
        agree(values_rows, values, 1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("ratio", [0.6, *(pytest.param(ratio, marks=LONG) for ratio in (0.0, 0.4, 0.9))])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_all_backends_train_papers_networks_alike(name, ratio):
    (values, grads), *others = on_all_backends(name, ratio, 4, torch.float64, True)
    for values_rows, grads_rows in others:
        agree(values_rows, values, 1e-9)
        agree(grads_rows, grads, 1e-7)


@pytest.mark.parametrize("backend", ["masked", "rows", "spconv"])
def test_an_all_active_resnet50_equals_the_dense_one_in_training_mode(backend):
    dense, sparse = model("resnet50", sparse=False).train(), model("resnet50").train()
    expected, x = dense(images("resnet50"), STAGES), images("resnet50")
    found = sparse(x, STAGES, visible=torch.ones(8, 1, 2, 2, dtype=torch.bool), backend=backend)
    torch.testing.assert_close(maps(found), maps(expected), rtol=0, atol=2e-5)
    torch.testing.assert_close(list(sparse.buffers()), list(dense.buffers()), rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ["masked", "rows", "spconv"])
@pytest.mark.parametrize("name", ["resnet_twin", "convnext"])
def test_all_active_residual_branches_equal_dense_ones_in_double_precision(name, backend):
    """timm starts them at zero; here they take part."""
    dense, sparse = (model(name, sparse=sparse).double().train() for sparse in (False, True))
    for net in (dense, sparse):
        for parameter in net.parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, 0.7)
    g = GRID.get(name, 2)
    x, visible = images(name, 4).double(), torch.ones(4, 1, g, g, dtype=torch.bool)
    torch.manual_seed(0)
    expected = dense(x, STAGES)
    torch.manual_seed(0)
    found = sparse(x, STAGES, visible=visible, backend=backend)
    torch.testing.assert_close(maps(found), maps(expected), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(list(sparse.buffers()), list(dense.buffers()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [*SMALL, "resnet18"])
def test_without_a_mask_the_family_is_the_dense_one(name):
    dense, sparse = model(name, sparse=False), model(name)
    assert list(sparse.state_dict()) == list(dense.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(sparse.state_dict().values(), dense.state_dict().values(), strict=True)
    )
    for net in (dense, sparse):
        net.train()
    torch.manual_seed(0)
    expected = dense(images(name, 2), STAGES)
    torch.manual_seed(0)
    found = sparse(images(name, 2), STAGES)
    assert all(torch.equal(a, b) for a, b in zip(maps(found), maps(expected), strict=True))


@pytest.mark.parametrize("backend", ["masked", "rows", "spconv"])
@pytest.mark.parametrize("name", [*SMALL, "resnet50"])
def test_hidden_pixels_change_nothing_and_hidden_positions_are_zero(name, backend):
    net = model(name).train()
    for parameter in net.parameters():  # biases and gains that would show
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5)
    g = GRID.get(name, 2)
    x, visible = images(name, 4), random_mask(4, g, 0.6)
    other = torch.where(mask_at(visible, tuple(x.shape[2:])), x, torch.full_like(x, float("nan")))
    torch.manual_seed(1)
    first = copy.deepcopy(net)(x, STAGES, visible=visible, backend=backend)
    torch.manual_seed(1)
    second = net(other, STAGES, visible=visible, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(maps(first), maps(second), strict=True))
    for feature in (*first.stages.values(), first.final):
        size = tuple(feature.shape[2:])
        if size[0] % g == 0:
            active = mask_at(visible, size).expand_as(feature)
        else:  # 9, 5 and 3: cells of 36 px seen at every 8th, 16th and 32nd px
            step = {9: 8, 5: 16, 3: 32}[size[0]]
            active = mask_at(visible, (72, 72))[..., ::step, ::step].expand_as(feature)
        assert not feature[~active].any()
        assert feature[active].any()


def test_an_ordinary_network_leaks_into_hidden_positions():
    net, x, visible = model("resnet50").train(), images("resnet50"), random_mask(8, 2, 0.6)
    taps = net(x, STAGES, visible=visible, backend="dense")
    for feature in taps.stages.values():
        hidden = ~mask_at(visible, tuple(feature.shape[2:]))[:, 0]
        assert (feature != 0).any(1)[hidden].float().mean() == 1.0
    torch.testing.assert_close(taps.pooled, taps.final.mean((2, 3)))


def test_the_pooled_feature_is_the_mean_over_active_cells():
    """20 of 49 cells: the mean over all cells is 20 / 49 of it (.399 against .163 in the specification)."""
    kwargs = {**SMALL_RESNET, "output_stride": 8, "maxpool": False}
    small = ModelCard(name="x", family="sparse_resnet", arch="resnet18", kwargs=kwargs, image_size=56)
    net, visible = TapModel(small, 5).eval(), random_mask(3, 7, 0.6)
    assert visible.sum((1, 2, 3)).tolist() == [20, 20, 20]
    taps = net(torch.rand(3, 3, 56, 56), visible=visible)
    torch.testing.assert_close(taps.pooled * 20 / 49, taps.final.mean((2, 3)))
    torch.testing.assert_close(taps.logits, net.net.fc(taps.pooled))
    assert pytest.approx(0.163, abs=1e-3) == 0.399 * 20 / 49


def test_a_headless_student_loads_strictly_into_timm():
    student = model("resnet50", classes=0)
    student(images("resnet50", 2), visible=random_mask(2, 2, 0.6))
    plain = timm.create_model("resnet50", num_classes=0).eval()
    plain.load_state_dict(student.net.state_dict(), strict=True)
    student.eval()
    x = images("resnet50", 2)
    normalised = (x - torch.tensor(student.card.mean).view(3, 1, 1)) / torch.tensor(student.card.std).view(3, 1, 1)
    torch.testing.assert_close(student(x).pooled, plain(normalised), rtol=1e-4, atol=1e-5)


def test_copies_of_a_student_are_sparse_and_independent():
    net, x, visible = model("resnet_twin").train(), images("resnet_twin"), random_mask(8, 4, 0.6)
    twin = copy.deepcopy(net)
    before = copy.deepcopy(net.state_dict())
    expected = net(x, visible=visible)
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed
    assert all("running" in name or "batches" in name for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())
    assert torch.equal(twin(x, visible=visible).final, expected.final)


def test_two_threads_with_one_model_see_their_own_masks():
    net, x = model("resnet_twin").eval(), images("resnet_twin")
    masks = [random_mask(8, 4, 0.6, seed) for seed in range(2)]
    alone = [net(x, visible=mask).final for mask in masks]
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(i: int) -> None:
        found[i] = [net(x, visible=masks[i]).final for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(final, alone[i]) for i in range(2) for final in found[i])
    assert len(found[0]) == len(found[1]) == 5


def test_a_forward_pass_without_a_mask_inside_a_masked_one_is_dense():
    net, x, visible = model("resnet_twin").eval(), images("resnet_twin"), random_mask(8, 4, 0.6)
    plain, leaking = net(x).final, net(x, visible=visible, backend="dense").final
    with active_in(random_mask(8, 2, 0.5), (32, 32)):
        assert torch.equal(net(x).final, plain)
        assert torch.equal(net(x, visible=visible, backend="dense").final, leaking)


def test_a_card_in_channels_last_gives_the_same_taps():
    x, visible = images("resnet_twin"), random_mask(8, 4, 0.6)
    expected = model("resnet_twin").train()(x, STAGES, visible=visible)
    torch.manual_seed(0)
    last = TapModel(ModelCard(**{**card("resnet_twin").__dict__, "channels_last": True}), 5).train()
    agree(maps(last(x, STAGES, visible=visible)), maps(expected), 1e-5)


def test_one_mask_for_many_images_is_refused():
    with pytest.raises(UserError, match="1 masks were given for 8 images"):
        model("resnet_twin")(images("resnet_twin"), visible=random_mask(1, 4, 0.6))


def test_a_grid_finer_than_the_last_map_is_refused():
    message = "4x4 cells of 16 px are finer than a 2x2 map .* stride 32; take cells of at least 32 px, at most 2x2"
    with pytest.raises(UserError, match=message):
        model("resnet18")(images("resnet18", 2), visible=random_mask(2, 4, 0.6))


def test_gradient_checkpointing_is_refused():
    net = model("resnet_twin")
    net.net.set_grad_checkpointing(True)
    with pytest.raises(UserError, match="without their mask"):
        net(images("resnet_twin"), visible=random_mask(8, 4, 0.6))


@pytest.mark.parametrize(
    ("name", "ratio", "expected"),
    [("resnet_twin", 0.6, "spconv"), ("resnet_twin", 0.4, "rows"), ("convnext", 0.6, "rows")],
)
def test_auto_takes_what_was_measured_to_be_the_fastest(name, ratio, expected):
    net = model(name).eval()
    visible = random_mask(8, 4, ratio) if name == "resnet_twin" else random_mask(8, 2, ratio)
    assert net.family.fastest(visible, torch.device("cpu")) == (expected if find_spec("spconv") else "rows")
    with torch.no_grad():
        one, other = (net(images(name), visible=visible, backend=backend) for backend in ("auto", "masked"))
    agree(maps(one), maps(other), 1e-5)
    assert net.family.fastest(visible, torch.device("meta")) == "masked"
