"""The projectors of ScaleKD, above all the cross attention projector (CAP)."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from hkd.errors import Refused
from hkd.methods.parts.cross_attention import ConvolutionProjector, CrossAttentionProjector


def cap(in_width=6, grid=(2, 3), out_width=8, queries: int | None = 4, **options) -> CrossAttentionProjector:
    torch.manual_seed(0)
    options = {"heads": 2, "scale": 5.0} | options
    return CrossAttentionProjector(in_width, grid, out_width, queries, **options).double()


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def attention_weight(scale: float) -> float:
    """Weight of the first of two keys whose products with the query are 2 and 0, through the module (head width 4)."""
    projector = cap(in_width=2, grid=(1, 2), out_width=4, queries=1, heads=1, scale=scale)
    for layer in (projector.q, projector.k, projector.v, projector.out):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        projector.q.bias[0] = 2
        projector.k.weight[0, 0] = projector.v.weight[0, 0] = projector.out.weight[0, 0] = 1
    projector.norm, projector.ffn = nn.Identity(), nn.Linear(4, 4, bias=False).double()
    nn.init.zeros_(projector.ffn.weight)
    keys = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    return projector.attend(keys, projector.query)[0, 0, 0].item()


@pytest.mark.parametrize(("scale", "weight"), [(5.0, 0.993307), (1.0, 0.731059)])
def test_the_softmax_has_its_hand_values(scale, weight):
    assert attention_weight(scale) == pytest.approx(weight, abs=1e-6)


def test_the_projector_agrees_with_loops_over_heads_and_queries():
    projector, x = cap().eval(), maps(2, 6, 2, 3)
    with torch.no_grad():
        projector.proj_student[1].running_mean.normal_()
        projector.proj_student[1].running_var.uniform_(0.5, 2)
        ours = projector(x).numpy()
    p = {name: value.numpy() for name, value in projector.state_dict().items()}
    for b in range(2):
        padded = np.pad(x[b].numpy(), ((0, 0), (1, 1), (1, 1)))
        keys = np.zeros((6, 6))
        for row in range(2):
            for column in range(3):
                patch = padded[:, row : row + 3, column : column + 3]
                keys[row * 3 + column] = np.einsum("oihw,ihw->o", p["proj_student.0.weight"], patch)
        keys = keys + p["proj_student.0.bias"] - p["proj_student.1.running_mean"]
        keys = keys / np.sqrt(p["proj_student.1.running_var"] + 1e-5)
        keys = np.maximum(keys * p["proj_student.1.weight"] + p["proj_student.1.bias"], 0)
        keys = keys + p["position"][0].reshape(6, 6).T
        query = np.maximum(p["query"][0] @ p["proj_query.0.weight"].T + p["proj_query.0.bias"], 0)
        q, k, v = (t @ p[f"{n}.weight"].T + p[f"{n}.bias"] for t, n in ((query, "q"), (keys, "k"), (keys, "v")))
        attended = np.zeros((4, 8))
        for head in range(2):
            for i in range(4):
                cut = slice(4 * head, 4 * head + 4)
                scores = np.array([5.0 / math.sqrt(4) * (q[i, cut] @ k[j, cut]) for j in range(6)])
                weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                attended[i, cut] = sum(weights[j] * v[j, cut] for j in range(6))
        tokens = attended @ p["out.weight"].T + p["out.bias"]
        tokens = (tokens - tokens.mean(1, keepdims=True)) / np.sqrt(tokens.var(1, keepdims=True) + 1e-5)
        tokens = tokens * p["norm.weight"] + p["norm.bias"]
        hidden = np.maximum(tokens @ p["ffn.0.weight"].T + p["ffn.0.bias"], 0)
        expected = tokens + hidden @ p["ffn.2.weight"].T + p["ffn.2.bias"]
        np.testing.assert_allclose(ours[b], expected, atol=1e-10)


def test_the_order_of_the_keys_does_not_matter():
    projector = cap()
    keys = projector.memory(maps(2, 6, 2, 3))
    shuffled = keys[:, torch.tensor([3, 5, 0, 1, 4, 2])]
    torch.testing.assert_close(projector.attend(shuffled, projector.query), projector.attend(keys, projector.query))


@pytest.mark.parametrize("layer", ["q", "k"])
def test_without_query_or_key_weights_all_tokens_are_equal(layer):
    projector = cap()
    nn.init.zeros_(getattr(projector, layer).weight)
    nn.init.zeros_(getattr(projector, layer).bias)
    tokens = projector(maps(2, 6, 2, 3))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))


def test_the_scale_equals_a_factor_on_the_query_layer():
    scaled, plain, x = cap(scale=5.0), cap(scale=1.0), maps(2, 6, 2, 3)
    with torch.no_grad():
        plain.q.weight *= 5
        plain.q.bias *= 5
    torch.testing.assert_close(scaled(x), plain(x))


def test_no_content_of_the_query_reaches_the_output():
    projector, x = cap(queries=None), maps(2, 6, 2, 3)
    nn.init.zeros_(projector.v.weight)
    torch.testing.assert_close(projector(x, maps(2, 4, 8)), projector(x, 100 * maps(2, 4, 8).flip(1)))


def test_learned_queries_are_projected_once_as_if_given_to_every_sample():
    projector, x = cap(), maps(3, 6, 2, 3)
    torch.testing.assert_close(projector.attend(projector.memory(x), projector.query.expand(3, -1, -1)), projector(x))


def test_grids_of_student_and_teacher_may_differ():
    assert cap(grid=(7, 7), queries=256)(maps(1, 6, 7, 7)).shape == (1, 256, 8)
    assert cap(grid=(4, 4), queries=9)(maps(1, 6, 4, 4)).shape == (1, 9, 8)


def test_a_projector_for_given_queries_has_none_of_its_own():
    assert "query" not in dict(cap(queries=None).named_parameters())


def test_the_map_of_positions_can_be_left_out():
    with_positions, without = dict(cap().named_parameters()), dict(cap(positional=False).named_parameters())
    assert set(with_positions) - set(without) == {"position"}
    assert with_positions["position"].shape == (1, 6, 2, 3)


def test_positions_start_small_and_queries_at_unit_scale():
    torch.manual_seed(0)
    projector = CrossAttentionProjector(64, (14, 14), 64, 196, heads=8, scale=1.0)
    assert projector.position.std().item() == pytest.approx(0.02, rel=0.05)
    assert projector.query.std().item() == pytest.approx(1, rel=0.05)


def test_a_layer_norm_keeps_samples_apart_and_a_batch_norm_does_not():
    x = maps(3, 6, 2, 3)
    alone, together = (cap(norm="layer")(x[:1]), cap(norm="layer")(x)[:1])
    torch.testing.assert_close(alone, together)
    assert not torch.allclose(cap()(x[:1]), cap()(x)[:1])


def test_gradients_agree_with_finite_differences():
    projector = cap(in_width=2, grid=(1, 2), out_width=4, queries=None)
    x, query = maps(2, 2, 1, 2).requires_grad_(), maps(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: projector(a, b), (x, query))


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_maps_give_finite_tokens_and_gradients(value):
    projector = cap().float()
    x = torch.full((2, 6, 2, 3), value, requires_grad=True)
    tokens = projector(x)
    tokens.square().sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (x, *projector.parameters()))


@pytest.mark.parametrize(
    ("tail_width", "width", "heads", "millions"),
    [(384, 768, (3, 6), 119.3), (768, 1536, (16, 24), 176.0)],
    ids=["swin_s", "swin_l"],
)
def test_four_projectors_of_a_resnet_50_have_the_published_size(tail_width, width, heads, millions):
    with torch.device("meta"):
        s3 = CrossAttentionProjector(1024, (14, 14), tail_width, 196, heads=heads[0], scale=5.0)
        s4 = CrossAttentionProjector(2048, (7, 7), width, None, heads=heads[1], scale=5.0)
    count = 2 * sum(p.numel() for module in (s3, s4) for p in module.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(Refused, match="3 attention heads do not divide the teacher's width 8"):
        cap(heads=3)


@pytest.mark.parametrize("kind", ["conv1x1", "conv3x3_bn_relu"])
@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (3, 3)])
def test_convolutions_put_the_student_on_the_teachers_grid(kind, grid):
    projector = ConvolutionProjector(kind, 6, 8, (3, 3))
    assert projector(torch.randn(2, 6, *grid)).shape == (2, 9, 8)
    assert ("bias" in dict(projector.projector.named_parameters())) == (kind == "conv1x1")


def test_a_1x1_convolution_is_one_linear_map_per_position():
    projector, x = ConvolutionProjector("conv1x1", 6, 8, (2, 2)), torch.randn(2, 6, 2, 2)
    weight, bias = projector.projector.weight[..., 0, 0], projector.projector.bias
    torch.testing.assert_close(projector(x), x.flatten(2).transpose(1, 2) @ weight.T + bias)
