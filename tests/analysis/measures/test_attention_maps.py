"""Rows of attention as images: of the patch and the layers that were asked for, of all images of all batches."""

import pickle

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from analysis.looking.attention import Layer, Seen, attention_layers, observed
from analysis.measure import attended, measure
from analysis.measures.attention_maps import AttentionMaps
from hkd.errors import Refused, UserError

LAYERS = [Layer(f"blocks.{i}.attn", torch.nn.Identity(), (2, 3), patch=16.0) for i in range(6)]
VIT = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 0}


def seen(layer, count=1):
    return Seen(layer, torch.arange(count * 2 * 6 * 6.0).view(count, 2, 6, 6), 1, 0)


def test_a_row_of_a_query_becomes_an_image():
    maps = AttentionMaps(query=(1, 2), layers=[1])
    maps.attention(seen(0), LAYERS)
    maps.end(torch.zeros(1, 3, 32, 48), (32, 48))
    result = maps.compute()
    assert result.maps[1].shape == (1, 2, 2, 3)
    assert result.maps[1][0, 1].tolist() == [[66, 67, 68], [69, 70, 71]]
    assert (result.query, result.patch, result.size, result.images.shape) == ((1, 2), 16, (32, 48), (1, 32, 48, 3))
    assert result.scaled()[1][0, 1, 2] == pytest.approx(6 * (35 + 71) / 2)


def test_the_central_patch_and_four_depths_unless_asked_otherwise():
    maps = AttentionMaps()
    for layer in range(6):
        maps.attention(seen(layer), LAYERS)
    maps.end(torch.zeros(1, 3, 32, 48), (32, 48))
    result = maps.compute()
    assert result.query == (1, 1)
    assert list(result.maps) == [2, 3, 5, 6]  # a quarter (1.5), half, five sixths and all of 6


def test_maps_are_rows_of_the_models_attention_in_the_order_of_the_images():
    torch.manual_seed(0)
    net, images = VisionTransformer(**VIT).eval(), torch.rand(5, 3, 32, 48)
    layers, whole = attention_layers(net, (32, 48)), AttentionMaps((3, 5), [2])
    for part in images.split(3):
        maps = AttentionMaps((3, 5), [2])
        with torch.no_grad(), attended([maps], layers, part, (32, 48)):
            net.forward_features(part)
        whole.merge(pickle.loads(pickle.dumps(maps)))
    expected = {}
    with torch.no_grad(), observed(layers, 5, lambda each: expected.update({each.layer: each.maps.clone()})):
        net.forward_features(images)
    result = whole.compute()
    torch.testing.assert_close(torch.from_numpy(result.maps[2]), expected[1][:, :, 23].unflatten(2, (4, 6)))
    assert torch.equal(torch.from_numpy(result.images).movedim(-1, 1), images)


def test_what_a_model_does_not_have_is_named():
    with pytest.raises(UserError, match="Layer 7 was asked of a model with layers 1 to 6"):
        AttentionMaps(layers=[7]).attention(seen(0), LAYERS)
    with pytest.raises(UserError, match=r"query \(2, 0\) lies outside the 2x3 grid"):
        AttentionMaps(query=(2, 0)).attention(seen(0), LAYERS)
    with pytest.raises(UserError, match="No images were measured"):
        AttentionMaps().compute()
    swin = SwinTransformer(img_size=32, patch_size=2, embed_dim=12, depths=(2,), num_heads=(2,), window_size=4)
    with pytest.raises(Refused, match="SwinTransformer attends within windows"):
        measure(swin, torch.rand(1, 3, 32, 32), "attention_maps")
