"""Pictures of detections and segmentations: what is drawn where."""

from types import SimpleNamespace

import numpy as np
import torch

from experiments.drawings import hybrid_pictures
from experiments.drawings.hybrid_pictures import (
    ENLARGED,
    colour,
    draw_detections,
    segmentations,
    with_map,
    with_objects,
)

NAMES = tuple("0123456789")


def objects(score=None):
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 4:8, 4:8] = True
    found = {"boxes": torch.tensor([[4.0, 4.0, 8.0, 8.0]]), "labels": torch.tensor([3]), "masks": masks}
    return found if score is None else found | {"scores": torch.tensor([score])}


def test_a_mask_is_tinted_in_the_colour_of_its_class_and_the_rest_stays():
    image = torch.zeros(3, 16, 16)
    found = objects()
    picture = with_objects(image, found["boxes"], found["labels"], found["masks"], NAMES)
    assert picture.shape == (16 * ENLARGED, 16 * ENLARGED, 3)
    inside = picture[7 * ENLARGED - 2, 7 * ENLARGED - 2]
    assert inside.argmax() == np.argmax(colour(3))
    assert (inside > 0).any()
    assert not picture[14 * ENLARGED :, 14 * ENLARGED :].any()


def test_an_image_without_objects_stays_as_it_is():
    image = torch.rand(3, 8, 8)
    picture = with_objects(
        image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 8, 8).bool(), NAMES
    )
    expected = image.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2).movedim(0, -1).numpy()
    np.testing.assert_allclose(picture, expected, atol=0.5 / 255 + 1e-6)


def test_background_and_ignored_pixels_of_a_map_stay_bare():
    image, labels = torch.full((3, 8, 8), 0.5), torch.zeros(8, 8, dtype=torch.long)
    labels[0, 0], labels[0, 1] = 4, 255
    picture = with_map(image, labels, background=0)
    bare = round(0.5 * 255) / 255
    assert not np.allclose(picture[0, 0], bare, atol=0.02)
    np.testing.assert_allclose(picture[0, ENLARGED:], bare, atol=1e-6)


def test_as_many_of_the_surest_detections_are_drawn_as_there_are_objects(tmp_path):
    images, sure, other = [torch.zeros(3, 16, 16)], objects(0.3), objects(0.1)
    other["masks"] = other["masks"].roll(6, dims=2)
    both = {part: torch.cat([other[part], sure[part]]) for part in sure}
    for name, found in {"one": sure, "two": both, "other": other}.items():
        columns = {"truth": [objects()], "model": [found]}
        draw_detections(images, columns, NAMES, tmp_path / f"{name}.png", title="t", caption="c")
    one, two, different = ((tmp_path / f"{name}.png").read_bytes() for name in ("one", "two", "other"))
    assert one == two != different


def test_segmentations_are_drawn_beside_the_truth(tmp_path, monkeypatch):
    image, labels = torch.rand(3, 16, 16).mul(255).byte().numpy(), np.zeros((16, 16), dtype=np.uint8)
    labels[4:8, 4:8] = 3
    split = SimpleNamespace(image=lambda i: image, maps=[labels], rows=[7], map_names=("background", *NAMES))
    drawn = {}
    monkeypatch.setattr(
        hybrid_pictures, "predicted_maps", lambda path: {7: labels if path.parent.name == "a" else 0 * labels}
    )
    monkeypatch.setattr(hybrid_pictures, "picture_grid", lambda columns, path, **texts: drawn.update(columns))
    folders = {"right": tmp_path / "a", "wrong": tmp_path / "b"}
    segmentations(split, 1, folders, tmp_path, title="t", caption="c")
    assert list(drawn) == ["truth", "right", "wrong"]
    assert np.array_equal(drawn["truth"][0], drawn["right"][0])
    assert not np.array_equal(drawn["truth"][0], drawn["wrong"][0])
