"""Feature pyramids: shapes on every kind of backbone, what takes part in a level, strides that cannot be had."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hkd.downstream.backbone import Backbone
from hkd.downstream.pyramid import Simple, TopDown, make_pyramid
from hkd.errors import Refused
from hkd.models.cards.zoo import ZOO


@pytest.mark.parametrize(
    ("card", "wanted", "kind"),
    [
        ("resnet18_mini", (4, 8), TopDown),
        ("resnet50_mini", (2, 4, 8, 16, 32), TopDown),
        ("swin_t_mini", (4, 8, 16), TopDown),
        ("convnext_t_mini", (8, 16), TopDown),
        ("sparse_resnet18_mini", (4, 8), TopDown),
        ("hybrid_b16_mini", (4, 8), Simple),
        ("vit_s16_mini", (2, 4, 8, 16, 32), Simple),
        ("beit_b16_mini", (2, 4, 8, 16), Simple),
    ],
)
def test_levels_have_the_wanted_strides_and_width(card, wanted, kind):
    backbone = Backbone(ZOO[card])
    pyramid = make_pyramid(backbone, wanted, 12)
    assert isinstance(pyramid, kind)
    levels = pyramid(backbone(torch.rand(2, 3, 64, 96)))
    assert list(levels) == [str(place) for place in range(len(wanted))]
    for stride, level in zip(wanted, levels.values(), strict=True):
        assert level.shape == (2, 12, 64 // stride, 96 // stride)


def random_maps(channels, strides, side=32):
    return [
        torch.rand(1, width, side // stride, side // stride) for width, stride in zip(channels, strides, strict=True)
    ]


def test_the_fine_levels_of_an_fpn_see_maps_coarser_than_any_that_was_asked_for():
    maps = random_maps((2, 3, 4, 5), (2, 4, 8, 16))
    pyramid = TopDown((2, 3, 4, 5), (2, 4, 8, 16), (4, 8), 6)
    before = pyramid(maps)
    maps[3] = maps[3] + 1.0
    after = pyramid(maps)
    assert all(not torch.allclose(before[name], after[name]) for name in ("0", "1"))
    maps[0] = maps[0] + 1.0  # finer than the finest level
    assert all(torch.equal(after[name], level) for name, level in pyramid(maps).items())


def test_an_fpn_is_laterals_summed_from_coarse_to_fine_and_then_smoothed():
    maps = random_maps((2, 3), (4, 8))
    pyramid = TopDown((2, 3), (4, 8), (4, 8), 5)
    (fine, coarse), smooth = pyramid.network.inner_blocks, pyramid.network.layer_blocks
    top = coarse(maps[1])
    bottom = fine(maps[0]) + F.interpolate(top, scale_factor=2.0, mode="nearest")
    levels = pyramid(maps)
    torch.testing.assert_close(levels["1"], smooth[1](top))
    torch.testing.assert_close(levels["0"], smooth[0](bottom))


def test_of_several_maps_of_one_stride_the_deepest_takes_part():
    maps = random_maps((2, 3, 4), (4, 8, 8))
    pyramid = TopDown((2, 3, 4), (4, 8, 8), (4, 8), 5)
    before = pyramid(maps)
    maps[1] = maps[1] + 1.0
    assert all(torch.equal(before[name], level) for name, level in pyramid(maps).items())


def test_the_level_beyond_the_coarsest_is_every_other_position_of_it():
    for pyramid, maps in (
        (TopDown((2, 3), (4, 8), (4, 8, 16), 5), random_maps((2, 3), (4, 8))),
        (Simple(4, 4, (4, 8, 16), 5), random_maps((4,), (4,))),
    ):
        levels = pyramid(maps)
        torch.testing.assert_close(levels["2"], levels["1"][:, :, ::2, ::2])


def test_every_weight_of_a_pyramid_is_used():
    for pyramid, maps in (
        (TopDown((2, 3, 4), (4, 8, 16), (4, 8), 5), random_maps((2, 3, 4), (4, 8, 16))),
        (Simple(4, 4, (1, 2, 4, 8, 16), 5), random_maps((4,), (4,))),
    ):
        sum((level * torch.rand_like(level)).sum() for level in pyramid(maps).values()).backward()
        assert all(parameter.grad is not None for parameter in pyramid.parameters())


def test_the_simple_pyramid_of_a_constant_map_is_constant_within_its_edges():
    pyramid = Simple(4, 8, (8,), 6)
    level = pyramid([torch.full((1, 4, 6, 6), 0.3)])["0"][0, :, 1:-1, 1:-1]
    torch.testing.assert_close(level, level[:, :1, :1].expand_as(level))


@pytest.mark.parametrize(
    ("card", "wanted", "can"),
    [
        ("resnet18_mini", (1, 2), "4, 8, 16 px, and 32 after 16; the option 'strides' asks for 1"),
        ("hybrid_b16_mini", (8, 16, 32), "1, 2, 4, 8 px, and 16 after 8"),
        ("hybrid_b16_mini", (16,), "and 16 after 8; the option 'strides' asks for 16"),
    ],
)
def test_a_stride_that_a_backbone_cannot_give_is_refused(card, wanted, can):
    with pytest.raises(Refused, match=can):
        make_pyramid(Backbone(ZOO[card]), wanted, 8)


def test_at_paper_size_a_plain_transformer_gives_the_levels_of_a_resnet():
    tiny = {"embed_dim": 12, "depth": 4, "num_heads": 2}
    card = replace(ZOO["hybrid_b16"], kwargs={**ZOO["hybrid_b16"].kwargs, **tiny}, stages=(0, 1, 2, 3))
    pyramid = make_pyramid(Backbone(card), (4, 8, 16, 32, 64), 8)
    levels = pyramid([torch.rand(1, 12, 4, 8)] * 4)
    assert [tuple(level.shape[2:]) for level in levels.values()] == [(16, 32), (8, 16), (4, 8), (2, 4), (1, 2)]
