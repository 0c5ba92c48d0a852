"""Pictures of detections and segmentations: what is drawn where."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.drawings import hybrid_pictures
from experiments.drawings.hybrid_pictures import (
    AREA,
    ENLARGED,
    MISSED,
    RIGHT,
    WRONG,
    draw_detections,
    matched,
    segmentations,
    with_map,
    with_objects,
)

NAMES = tuple("0123456789")


def objects(score=None, *, left=4.0, label=3):
    found = {"boxes": torch.tensor([[left, 4.0, left + 4.0, 8.0]]), "labels": torch.tensor([label])}
    return found if score is None else found | {"scores": torch.tensor([score])}


def both(one, other):
    return {part: torch.cat([one[part], other[part]]) for part in one}


def test_an_object_is_found_once_by_a_box_of_its_class_that_overlaps_by_half():
    truth = both(objects(), objects(left=20.0))
    assert matched(objects(left=5.0), truth) == ([True], [True, False])  # 3 of 5 columns
    assert matched(objects(left=6.0), truth) == ([False], [False, False])  # 2 of 6
    assert matched(objects(label=4), truth) == ([False], [False, False])
    assert matched(both(objects(left=5.0), objects()), truth) == ([True, False], [True, False])  # the surest first


def test_boxes_are_blue_if_right_orange_if_wrong_and_yellow_where_missed():
    image, truth = torch.zeros(3, 64, 64), both(objects(left=30.0), objects(left=50.0, label=5))
    found = both(objects(left=30.0), objects(left=10.0))
    picture = (255 * with_objects(image, found, truth, NAMES)).round().astype(int)
    edges = {left: tuple(picture[6 * ENLARGED, left * ENLARGED + 1]) for left in (30, 10, 50)}
    assert edges == {30: RIGHT, 10: WRONG, 50: MISSED}


def test_a_name_stands_in_white_on_black_outside_of_its_box():
    image = torch.full((3, 64, 64), 0.5)
    found = {"boxes": torch.tensor([[20.0, 30.0, 40.0, 50.0]]), "labels": torch.tensor([8])}
    picture = with_objects(image, found, found, NAMES)
    inside = picture[31 * ENLARGED + 1 : 49 * ENLARGED, 21 * ENLARGED + 1 : 39 * ENLARGED]
    np.testing.assert_allclose(inside, round(0.5 * 255) / 255)
    above = picture[: 30 * ENLARGED, 20 * ENLARGED : 30 * ENLARGED]
    assert (above == 0).all(axis=2).any()
    assert (above == 1).all(axis=2).any()


def test_an_image_without_objects_stays_as_it_is():
    image, nothing = torch.rand(3, 8, 8), {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    picture = with_objects(image, nothing, nothing, NAMES)
    expected = image.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2).movedim(0, -1).numpy()
    np.testing.assert_allclose(picture, expected, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("called", "truth", "tint"),
    [(4, 4, RIGHT), (5, 4, WRONG), (4, 0, WRONG), (0, 4, MISSED), (0, 0, None), (4, 255, None), (0, 255, None)],
)
def test_pixels_of_a_map_are_right_wrong_missed_or_bare(called, truth, tint):
    image = torch.full((3, 2, 2), 0.5)
    labels, true = torch.full((2, 2), called), torch.full((2, 2), truth)
    picture = 255 * with_map(image, labels, true, background=0)
    expected = np.array([128.0] * 3) if tint is None else AREA * np.array(tint) + (1 - AREA) * 128
    np.testing.assert_allclose(picture, np.broadcast_to(expected, picture.shape), atol=2)


def test_a_map_without_a_background_class_has_nothing_missed():
    image, labels = torch.full((3, 2, 2), 0.5), torch.zeros(2, 2, dtype=torch.long)
    picture = 255 * with_map(image, labels, labels + 1, background=None)
    np.testing.assert_allclose(picture[0, 0], AREA * np.array(WRONG) + (1 - AREA) * 128, atol=2)


def test_as_many_of_the_surest_detections_are_drawn_as_there_are_objects(tmp_path):
    images, sure, other = [torch.zeros(3, 16, 16)], objects(0.3), objects(0.1, left=10.0)
    for name, found in {"one": sure, "two": both(other, sure), "other": other}.items():
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
