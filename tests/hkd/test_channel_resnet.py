"""ResNets with a mask channel: an ordinary ResNet without a mask, and by hand what the channel adds."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hkd.errors import UserError
from hkd.methods.hgkd import HGKD, HGKDConfig
from hkd.methods.masked_pixels import MaskedPixels, MaskedPixelsConfig
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import Want
from hkd.spec import Recipe

CARD = ZOO["channel_resnet50_mini"]
STEM = "conv1.0.weight"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TapModel(CARD, 0).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def half():
    visible = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    visible[..., :2] = True
    return visible


def ordinary(model):
    """timm's three-channel ResNet of the same weights."""
    net = TapModel(replace(CARD, family="resnet"), 0).net.eval()
    state = dict(model.net.state_dict())
    net.load_state_dict(state | {STEM: state[STEM][:, :3]})
    return net


def test_without_a_mask_it_is_a_resnet_of_the_first_three_channels(model, images):
    torch.testing.assert_close(model(images).pooled, ordinary(model)(model.prepare(images)), atol=1e-5, rtol=1e-5)


def test_under_a_mask_the_stem_adds_a_convolution_of_where_the_image_is_hidden(model, images):
    net, stem = ordinary(model), model.net.conv1[0]
    x = model.prepare(images)
    x[..., 16:] = 0
    hidden = torch.zeros(2, 1, 32, 32)
    hidden[..., 16:] = 1
    places = {name: getattr(stem, name) for name in ("stride", "padding")}
    summed = F.conv2d(x, stem.weight[:, :3], **places) + F.conv2d(hidden, stem.weight[:, 3:], **places)
    net.conv1[0] = torch.nn.Identity()
    expected = net(summed)
    torch.testing.assert_close(model(images, visible=half()).pooled, expected, atol=1e-5, rtol=1e-5)


def test_hidden_pixels_influence_nothing_and_black_ones_are_told_from_them(model, images):
    other = images.clone()
    other[..., 16:] = torch.rand(2, 3, 32, 16)
    maps = [model(each, Want(stages=(1, 4)), visible=half()).stages for each in (images, other)]
    assert all(torch.equal(maps[0][stage], maps[1][stage]) for stage in (1, 4))
    blackened = images.clone()
    blackened[..., 16:] = torch.tensor(CARD.mean)[:, None, None]  # zero once normalised
    assert not torch.allclose(model(blackened).pooled, model(images, visible=half()).pooled, atol=1e-3)


@pytest.mark.parametrize(("method", "config"), [(HGKD, HGKDConfig), (MaskedPixels, MaskedPixelsConfig)])
def test_methods_that_would_leave_hidden_positions_out_refuse_it_and_dense_ones_do_not(method, config):
    size = {"image_size": 32} if method is MaskedPixels else {}
    teachers = {"teacher": ZOO["mae_b16_mini"]}
    asked = [
        method.refuse(config(conv=conv, **size), CARD, teachers, Recipe(epochs=1, batch_size=2))
        for conv in ("sparse", "dense")
    ]
    assert "'channel_resnet' cannot: set conv to dense." in asked[0]
    assert asked[1] is None


def test_it_cannot_leave_hidden_positions_out(model, images):
    with pytest.raises(UserError, match="set the method's option conv to dense"):
        model(images, visible=half(), backend="auto")
    with pytest.raises(UserError, match="stem"):
        TapModel(replace(CARD, kwargs=CARD.kwargs | {"stem": "3x3"}), 0)
    with pytest.raises(UserError, match="does not divide"):
        model(images, visible=torch.ones(2, 1, 5, 5, dtype=torch.bool))
