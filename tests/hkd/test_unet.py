"""The U-Net decoder: what is filled, which scales are added, sizes of the paper's student, and maps that do not fit."""

import math

import pytest
import torch
from torch import nn

from hkd.errors import Refused
from hkd.methods.parts.initialisers import as_spark
from hkd.methods.parts.unet import Densify, UNetDecoder, scales

RESNET50 = {1: (256, 56, 56), 2: (512, 28, 28), 3: (1024, 14, 14), 4: (2048, 7, 7)}
TWIN = {1: (8, 16, 16), 2: (12, 8, 8), 3: (16, 4, 4), 4: (20, 4, 4)}  # stages 3 and 4 share a scale


def mask(*rows: str) -> torch.Tensor:
    """One mask per argument, its cells as 0 and 1."""
    return torch.tensor([[[[c == "1" for c in line] for line in row.split()]] for row in rows])


def sparse_maps(shapes, visible, seed=0) -> dict[int, torch.Tensor]:
    """Stage maps that are zero where nothing is visible."""
    generator, grid = torch.Generator().manual_seed(seed), visible.shape[-1]
    maps = {}
    for stage, (width, side, _) in shapes.items():
        seen = visible.repeat_interleave(side // grid, 2).repeat_interleave(side // grid, 3)
        maps[stage] = torch.randn(len(visible), width, side, side, generator=generator) * seen
    return maps


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


# --- densify


def test_active_positions_are_normalised_and_all_others_hold_the_token():
    densify = Densify(1, 1, 1)
    x = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]])
    out = densify(x, mask("11 00"))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([-0.999995, 0.999995]))
    assert (out[0, 0, 1] == densify.mask_token.item()).all()
    assert densify.norm.running_mean.item() == pytest.approx(0.2)
    assert densify.norm.running_var.item() == pytest.approx(1.1)


def test_the_token_gets_its_gradient_from_inactive_positions_only():
    densify, visible = Densify(3, 3, 1), mask("10 01", "11 00")
    x = sparse_maps({1: (3, 4, 4)}, visible)[1]
    weight = torch.randn(2, 3, 4, 4)
    (densify(x, visible) * weight).sum().backward()
    inactive = ~visible.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(densify.mask_token.grad[0, :, 0, 0], (weight * inactive).sum((0, 2, 3)))


def test_the_token_of_a_map_without_inactive_positions_has_gradient_zero():
    densify, visible = Densify(3, 3, 1), mask("11 11")
    densify(sparse_maps({1: (3, 4, 4)}, visible)[1], visible).square().sum().backward()
    assert densify.mask_token.grad.abs().sum() == 0


def test_hidden_values_of_a_map_change_nothing():
    densify, visible = Densify(3, 5, 3).eval(), mask("10 01")
    x = sparse_maps({1: (3, 4, 4)}, visible)[1]
    hidden = ~visible.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(densify(x, visible), densify(x + 7 * hidden, visible))


def test_a_dense_map_is_normalised_as_a_whole_and_has_no_token():
    densify = Densify(3, 3, 1, masked=False)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(densify(x, None), nn.BatchNorm2d(3)(x))
    assert all("token" not in name for name, _ in densify.named_parameters())


def test_a_token_is_cut_at_one_sigma():
    token = Densify(100_000, 1, 1).mask_token
    assert token.abs().max() <= 0.02
    assert token.std().item() == pytest.approx(0.0108, abs=1e-4)


@pytest.mark.parametrize(("width", "kernel", "identity"), [(4, 1, True), (4, 3, False), (6, 1, False)])
def test_only_a_1x1_projection_between_equal_widths_is_left_out(width, kernel, identity):
    projection = Densify(4, width, kernel).projection
    assert isinstance(projection, nn.Identity) == identity
    if not identity:
        assert projection.kernel_size == (kernel, kernel)


# --- decoder


def test_the_papers_decoder_has_its_sizes():
    with torch.device("meta"):
        decoder = UNetDecoder(RESNET50, 768, 56)
        head = nn.Conv2d(96, 768, 4, 4)
    assert decoder.sides == [14, 28, 56]
    assert decoder.widths == [384, 192, 96]
    assert millions(decoder.blocks) == pytest.approx(22.8, abs=0.05)
    assert millions(decoder.densify) == pytest.approx(6.2, abs=0.05)
    assert millions(head) == pytest.approx(1.2, abs=0.05)
    kernels = {stage: part.projection.kernel_size[0] for stage, part in decoder.densify.items()}
    assert kernels == {"4": 1, "3": 3, "2": 3, "1": 3}


def test_the_decoder_is_its_equation_written_out():
    decoder, visible = UNetDecoder(TWIN, 32, 32), mask("1001 0110 0000 1111", "0001 1000 0110 1011")
    maps = sparse_maps(TWIN, visible)
    found = decoder.eval()(maps, visible)
    x = decoder.densify["4"](maps[4], visible)
    expected = []
    for up, stage in zip(decoder.blocks, ("2", "1", None), strict=True):
        conv, conv1, norm1, act, conv2, norm2 = up
        x = norm2(conv2(act(norm1(conv1(conv(x))))))
        if stage:
            x = x + decoder.densify[stage](maps[int(stage)], visible)
        expected.append(x)
    assert [tuple(map_.shape[1:]) for map_ in found] == [(16, 8, 8), (8, 16, 16), (4, 32, 32)]
    assert all(torch.equal(map_, other) for map_, other in zip(found, expected, strict=True))


def test_of_stages_that_share_a_scale_the_deepest_counts():
    assert scales(TWIN) == {4: (4, 20), 8: (2, 12), 16: (1, 8)}
    decoder, visible = UNetDecoder(TWIN, 32, 16).eval(), mask("1001 0110 0000 1111")
    maps = sparse_maps(TWIN, visible)
    before = decoder(maps, visible)[-1]
    assert torch.equal(decoder(maps | {3: maps[3] + 1}, visible)[-1], before)
    for stage in (1, 2, 4):
        assert not torch.equal(decoder(maps | {stage: maps[stage] * 2}, visible)[-1], before)


def test_a_short_decoder_leaves_finer_stages_aside():
    decoder = UNetDecoder(TWIN, 32, 8)
    assert list(decoder.densify) == ["4", "2"]
    assert len(decoder.blocks) == 1


def test_every_parameter_gets_a_gradient():
    decoder, visible = UNetDecoder(TWIN, 32, 32), mask("1001 0110 0000 1111", "0001 1000 0110 1011")
    decoder(sparse_maps(TWIN, visible), visible)[-1].pow(3).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("bias"), name


def test_weights_start_as_they_should():
    torch.manual_seed(0)
    up, conv = UNetDecoder({4: (4, 2, 2)}, 64, 4).blocks[0][:2]
    assert up.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 16)), rel=0.02)
    assert conv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert up.bias.abs().sum() == 0
    head = nn.Conv2d(64, 32, 2, 2).apply(as_spark)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.bias.abs().sum() == 0


# --- what does not fit


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ({3: (4, 6, 6), 4: (8, 4, 4)}, r"stage 3 has 6, its last 4"),
        ({3: (4, 12, 12), 4: (8, 4, 4)}, r"stage 3 has 12"),
        ({3: (4, 2, 2), 4: (8, 4, 4)}, r"stage 3 has 2"),
        ({4: (8, 4, 3)}, r"stage 4 is 4x3"),
        ({4: (8, 0, 0)}, r"stage 4 is 0x0"),
    ],
)
def test_maps_that_no_doubling_connects_are_a_sentence(shapes, sentence):
    with pytest.raises(Refused, match=sentence):
        UNetDecoder(shapes, 32, 8)


@pytest.mark.parametrize("target", [4, 2, 12, 20])
def test_a_target_that_no_doubling_reaches_is_a_sentence(target):
    with pytest.raises(Refused, match=f"cannot end at {target}x{target}"):
        UNetDecoder(TWIN, 32, target)


def test_a_width_that_cannot_be_halved_is_a_sentence():
    with pytest.raises(Refused, match="divisible by 8"):
        UNetDecoder(TWIN, 36, 32)
