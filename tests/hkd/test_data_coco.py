"""COCO's files: gaps in ids, crowds, boxes that stick out, masks in three formats, files that cannot be."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coding
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hkd.data.coco import Coco, clip, decode_mask, read_annotations
from hkd.data.dense import run_lengths
from hkd.errors import UserError

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "coco" / "coco100_320px.tar.xz"
WIDTH, HEIGHT = 20, 12
KINDS = [{"id": 3, "name": "ant"}, {"id": 17, "name": "bee"}, {"id": 90, "name": "cat"}]


def square(number, image, box, category=17, **more):
    x, y, w, h = box
    ring = [x, y, x + w, y, x + w, y + h, x, y + h]
    entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": w * h, "iscrowd": 0}
    return {**entry, "segmentation": [ring], **more}


def write(root, part, annotations, images=10, kinds=KINDS, **more):
    """Images with ids 1, 2, ..., listed backwards; image k has the colour 10 k."""
    folder = root / "coco" / part
    folder.mkdir(parents=True, exist_ok=True)
    (root / "coco" / "annotations").mkdir(exist_ok=True)
    listed = []
    for number in range(images, 0, -1):
        name = f"{number:03d}.png"
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * number, dtype=np.uint8)).save(folder / name)
        listed.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
    content = {"images": listed, "annotations": annotations, "categories": kinds, **more}
    (root / "coco" / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


CROWD = square(5, 2, [0, 0, 10, 6], category=3, iscrowd=1)
CROWD["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [0, 6, HEIGHT * WIDTH - 6]}
GOOD = [
    square(1, 1, [2, 3, 5, 4]),
    square(2, 1, [1, 1, 4, 4], category=90),
    square(4, 2, [3, 3, 6, 6], category=3),
    CROWD,
]


@pytest.fixture
def root(tmp_path) -> Path:
    write(tmp_path, "train2017", GOOD)
    write(tmp_path, "val2017", GOOD, images=3)
    return tmp_path


def take(root, split="train", seed=0, select=False, **options):
    return Coco(options, root).load_dense(split, seed=seed, select=select)


def refused(root, annotations, match, part="train2017", **more):
    write(root, part, annotations, **more)
    with pytest.raises(UserError, match=match):
        take(root, "train" if part == "train2017" else "test")


def test_category_ids_with_gaps_become_labels_in_their_order(root):
    split = take(root)
    assert Coco({}, root).num_classes == 3
    assert split.object_names == ("ant", "bee", "cat")
    assert split.rows.tolist() == list(range(1, 11))
    assert split.objects[0].labels.tolist() == [1, 2]
    assert split.objects[0].boxes.tolist() == [[2, 3, 7, 7], [1, 1, 5, 5]]
    assert [int(split.image(k)[0, 0, 0]) for k in range(3)] == [10, 20, 30]
    assert split.image(0).shape == (3, HEIGHT, WIDTH)


def test_polygons_become_masks(root):
    mask = take(root).objects[0].masks[0]
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[3:7, 2:7] = True
    assert mask.tolist() == expected.tolist()


def test_crowds_are_kept_for_evaluation_and_not_for_training(root):
    train, test = take(root), take(root, "test")
    assert train.objects[1].crowd.tolist() == [False]
    assert train.repairs == {"crowd regions not trained on": 1}
    assert test.objects[1].crowd.tolist() == [False, True]
    assert test.objects[1].labels.tolist() == [0, 0]
    assert np.argwhere(test.objects[1].masks[1]).tolist() == [[row, 0] for row in range(6)]
    assert [entry["iscrowd"] for entry in test.coco()["annotations"]] == [0, 0, 0, 1]


def test_images_without_objects_are_empty_or_left_out_as_asked(root):
    split = take(root)
    assert len(split) == 10
    assert split.objects[5].boxes.shape == (0, 4)
    assert split.objects[5].masks.shape == (0, HEIGHT, WIDTH)
    without = take(root, empty=False)
    assert without.rows.tolist() == [1, 2]
    assert without.repairs["images without objects not trained on"] == 8
    assert len(take(root, "test", empty=False)) == 3


def test_boxes_are_clipped_and_those_without_area_left_out_and_counted(root):
    write(
        root,
        "train2017",
        [
            square(1, 1, [-3, 2, 8, 30]),
            square(2, 1, [25, 2, 5, 5]),
            square(3, 1, [4, 4, 0, 5]),
            square(4, 1, [4, 4, 5, -2]),
            square(6, 2, [15, 4, 5.4, 3]),
        ],
    )
    split = take(root)
    assert split.objects[0].boxes.tolist() == [[0, 2, 5, 12]]
    assert split.objects[1].boxes.tolist() == [[15, 4, 20, 7]]  # the rounding of the files is not worth a word
    assert split.repairs == {"boxes clipped to their images": 1, "boxes without area left out": 3}


@given(st.lists(st.tuples(*[st.floats(-50, 50)] * 4), max_size=5))
@settings(deadline=None, max_examples=50)
def test_clipped_boxes_lie_within_the_image(boxes):
    for (x, y, w, h), found in zip(boxes, clip([list(box) for box in boxes], 12, 20).tolist(), strict=True):
        expected = [min(max(x, 0), 20), min(max(y, 0), 12), min(max(x + w, 0), 20), min(max(y + h, 0), 12)]
        assert found == pytest.approx(expected, abs=1e-5)


def test_the_evaluators_truth_is_the_files_own_with_new_ids(root):
    truth = take(root, "test").coco()
    assert [image["id"] for image in truth["images"]] == [1, 2, 3]
    assert truth["images"][0] == {"id": 1, "file_name": "001.png", "height": HEIGHT, "width": WIDTH}
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4]
    assert [entry["category_id"] for entry in truth["annotations"]] == [2, 3, 1, 1]
    assert truth["annotations"][0]["bbox"] == [2, 3, 5, 4]
    assert [kind["id"] for kind in truth["categories"]] == [1, 2, 3]


def test_validation_is_the_last_tenth_of_train_while_settings_are_chosen(root):
    assert take(root, "val", select=True).rows.tolist() == [10]
    assert take(root, "train", select=True).rows.tolist() == list(range(1, 10))
    with pytest.raises(UserError, match="only while settings are chosen"):
        take(root, "val")


def test_options_take_some_images(root):
    some = take(root, n_train=4)
    assert len(some) == 4
    assert some.rows.tolist() == sorted(some.rows.tolist())
    assert any(some.rows.tolist() != take(root, n_train=4, seed=seed).rows.tolist() for seed in range(1, 4))
    assert take(root, "test", n_test=2).rows.tolist() == [1, 2]
    with pytest.raises(UserError, match="n_train asks for 11"):
        take(root, n_train=11)
    with pytest.raises(UserError, match="n_test asks for 4"):
        take(root, "test", n_test=4)


@pytest.mark.parametrize(
    "options", [{"folder": "../x"}, {"image_size": 0}, {"max_size": 100}, {"n_train": 0}, {"empty": 1}, {"emty": True}]
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Coco(options, Path("nowhere"))


def test_what_is_absent_is_said_with_its_path(tmp_path):
    data = Coco({}, tmp_path)
    assert f"{tmp_path / 'coco' / 'train2017'} is absent; get it from https://cocodataset.org" in data.missing()
    assert data.num_classes == 80
    assert data.counts() == {"train": 118_287, "test": 5_000}
    with pytest.raises(UserError, match="COCO is not complete"):
        data.fingerprint()
    write(tmp_path, "train2017", GOOD)
    (tmp_path / "coco" / "val2017").mkdir()
    assert "instances_val2017.json is absent" in data.missing()


def test_missing_images_are_told_with_the_first_and_their_number(root):
    for number in (4, 7):
        (root / "coco" / "train2017" / f"{number:03d}.png").unlink()
    with pytest.raises(UserError, match=r"004\.png is annotated .* but not there \(2 of 10 images are absent\)"):
        take(root)


def test_files_that_cannot_be_are_refused_with_a_sentence(root):
    refused(root, [square(1, 99, [1, 1, 2, 2])], "annotation 1 is of image 99, which is not listed")
    refused(root, [square(1, 1, [1, 1, 2, 2], category=4)], "category 4, which is not among the 3 categories")
    refused(root, [square(1, 1, [1, 1, 2, 2], bbox=[1, 2, 3])], r"has the box \[1, 2, 3\]; it must be x, y, width")
    refused(root, [square(1, 1, [1, 1, 2, 2], bbox=[1, 2, 3, float("nan")])], "it must be x, y, width")
    refused(root, [{"image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}], "annotation number 1 has no 'area'")
    refused(root, ["none"], "annotation number 1 is 'none'; it must be an object")
    refused(root, GOOD, "category number 2 has the id 3", kinds=[KINDS[0], KINDS[0]])
    refused(root, GOOD, "have different categories", kinds=[*KINDS, {"id": 91, "name": "dog"}])
    path = root / "coco" / "annotations" / "instances_train2017.json"
    path.write_text('{"images": []}')
    with pytest.raises(UserError, match="has no list 'annotations'"):
        take(root)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        take(root)


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        ([], "each polygon needs at least three points"),
        ([[1, 2, 3, 4]], "each polygon needs at least three points"),
        ({"size": [5, 5], "counts": [25]}, r"its size is \[5, 5\], that of the image \[12, 20\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "its runs sum to 7 px"),
        (None, "it must be polygons, or run lengths"),
        ({"size": None, "counts": [240]}, "its size is None"),
        ({"size": [float(HEIGHT), WIDTH], "counts": "0"}, r"its size is \[12.0, 20\]"),
        ({"size": [HEIGHT, WIDTH], "counts": ["a"]}, "its counts must be whole numbers"),
        ([None], "each polygon needs at least three points"),
        ([["a"] * 6], "the points of a polygon must be numbers of px"),
        ([[1, 1, 5, 5, 9, float("nan")]], "the points of a polygon must be numbers of px"),
        ([[1, 1, 5, 5, 9, 1e9]], "the points of a polygon must be numbers of px, from -100000 to 100000"),
        ([[1, 1, 5, 5, float("-inf"), 9]], "the points of a polygon must be numbers of px"),
        ({"size": [HEIGHT, WIDTH], "counts": "garbage!!"}, "no compressed run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": "é☃"}, "no compressed run lengths"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "its runs sum to 0 px"),
    ],
)
@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_masks_that_cannot_be_are_told_before_anything_is_trained(root, part, segmentation, why):
    write(root, part, [square(8, 1, [1, 1, 2, 2], segmentation=segmentation)])
    with pytest.raises(UserError, match=rf"annotation 8 of image 1 has no mask that can be decoded: .*{why}"):
        take(root)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"area": float("nan")}, "has the area nan; it must be a number of px, from 0 to 1e[+]10"),
        ({"area": -5}, "has the area -5; it must be a number"),
        ({"area": 1e300}, "has the area 1e[+]300; it must be a number"),
        ({"area": 10**400}, "has the area 1000"),
        ({"bbox": [1, 1, 10**400, 2]}, r"has the box \[1, 1, 1000"),
        ({"area": "12"}, "has the area '12'; it must be a number"),
        ({"iscrowd": None}, "has 'iscrowd' None; it must be 0 or 1"),
        ({"iscrowd": [0]}, r"has 'iscrowd' \[0\]; it must be 0 or 1"),
        ({"category_id": "17"}, "has category '17', which is not among the 3"),
        ({"category_id": [17]}, r"has category \[17\], which is not among the 3"),
        ({"image_id": "1"}, "is of image '1', which is not listed"),
        ({"image_id": {}}, "is of image {}, which is not listed"),
    ],
)
def test_fields_that_cannot_be_are_refused_with_a_sentence(root, change, why):
    refused(root, [{**square(8, 1, [1, 1, 2, 2]), **change}], f"annotation 8 {why}")


def test_test_images_without_any_object_are_refused_before_training(root):
    write(root, "val2017", [CROWD], images=3)
    with pytest.raises(UserError, match=r"instances_val2017\.json has no objects in its 3 images"):
        take(root, "test")


@pytest.mark.parametrize("name", [5, None, ["001.png"]])
def test_a_file_name_that_is_no_text_is_refused(root, name):
    path = root / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][-1]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"image 1 has the file name .*; it must be a text"):
        take(root)


def test_an_image_of_another_size_than_announced_is_told(root):
    Image.new("RGB", (7, 9)).save(root / "coco" / "train2017" / "001.png")
    with pytest.raises(UserError, match=r"001\.png has 7 x 9 px, but its annotations are for 20 x 12"):
        take(root).image(0)
    (root / "coco" / "train2017" / "001.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"Cannot read image .*001\.png"):
        take(root).image(0)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(deadline=None, max_examples=60)
def test_run_lengths_of_both_kinds_give_the_mask_back(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    counts = run_lengths(mask)
    assert sum(counts) == mask.size
    assert decode_mask({"size": [height, width], "counts": counts}, height, width).tolist() == mask.tolist()
    packed = coding.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert decode_mask(packed, height, width).tolist() == mask.tolist()


def test_runs_go_down_the_columns_and_begin_with_background():
    assert run_lengths(np.array([[True, False], [True, True]])) == [0, 2, 1, 1]
    assert run_lengths(np.array([[False, False], [False, True]])) == [3, 1]
    assert run_lengths(np.zeros((2, 3), dtype=bool)) == [6]


def test_the_fingerprint_is_of_annotations_images_and_options(root):
    before = Coco({}, root).fingerprint()
    assert before == Coco({}, root).fingerprint()
    assert before != Coco({"n_train": 3}, root).fingerprint()
    write(root, "train2017", GOOD[:3])
    changed = Coco({}, root).fingerprint()
    assert changed != before
    (root / "coco" / "val2017" / "001.png").write_bytes(b"other")
    assert Coco({}, root).fingerprint() != changed


@pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"the real sample is not at {ARCHIVE}")
def test_the_real_sample_is_read_whole(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "coco", filter="data")
    data = Coco({"image_size": 320, "max_size": 320}, tmp_path)
    assert data.num_classes == 80
    train, test = (data.load_dense(split, seed=0, select=False) for split in ("train", "test"))
    assert (len(train), len(test)) == (50, 50)
    assert sum(map(len, train.objects)) == 470 - 5
    assert sum(map(len, test.objects)) == 382
    assert sum(int(objects.crowd.sum()) for objects in test.objects) == 5
    assert sum(len(objects) == 0 for objects in test.objects) == 2
    assert len({label for objects in test.objects for label in objects.labels.tolist()}) == 48
    raw = json.loads((tmp_path / "coco" / "annotations" / "instances_val2017.json").read_text())
    areas = {entry["id"]: entry["area"] for entry in raw["annotations"] if not entry["iscrowd"]}
    big = [area for area in areas.values() if area > 1000]
    found = [
        (mask.sum(), entry["area"])
        for objects, group in zip(test.objects, test.objects.entries, strict=True)
        for mask, entry in zip(objects.masks, group, strict=True)
        if entry["area"] > 1000 and not entry["iscrowd"]
    ]
    assert len(found) == len(big)
    assert np.median([abs(mask / area - 1) for mask, area in found]) < 0.02
    for index in range(0, 50, 10):
        assert test.image(index).shape[1:] == tuple(test.sizes[index])


def test_listing_keeps_annotations_with_their_images(root):
    listing = read_annotations(root / "coco" / "annotations" / "instances_train2017.json")
    assert [image["id"] for image in listing.images] == list(range(1, 11))
    groups = [listing.entries[index] for index in range(3)]
    assert [[entry["id"] for entry in group] for group in groups] == [[1, 2], [4, 5], []]
    assert listing.categories == {3: 0, 17: 1, 90: 2}


@pytest.mark.parametrize(
    ("name", "place"),
    [("cam/001.png", "cam/001.png"), ("train2017/001.png", "001.png"), ("./001.png", "001.png")],
)
def test_images_are_found_by_paths_below_their_folder_or_the_data_set(root, name, place):
    path = root / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    next(image for image in content["images"] if image["id"] == 1)["file_name"] = name
    path.write_text(json.dumps(content))
    folder = root / "coco/train2017"
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / "001.png").rename(folder / place)
    assert take(root).paths[0] == folder / place
    assert take(root).image(0).max() == 10


@pytest.mark.parametrize("name", ["../val2017/001.png", "/etc/hostname", "\ud800.png", "a\0.png"])
def test_paths_that_leave_the_folder_are_not_followed(root, name):
    path = root / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotated in .* but not there") as caught:
        take(root)
    str(caught.value).encode()


@pytest.mark.parametrize(("height", "id_"), [(10**400, 1), (10**9, 1), (5, 10**30)])
def test_numbers_that_no_image_has_are_refused(root, height, id_):
    path = root / "coco/annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0].update(height=height, id=id_)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"an image may have|ids must be different numbers") as caught:
        take(root)
    assert len(str(caught.value)) < 400


@settings(deadline=None)
@given(st.lists(st.integers(0, 2), min_size=240, max_size=240))
def test_compressed_run_lengths_are_read_as_cocos_own_code_reads_them(values):
    mask = np.array(values, dtype=np.uint8).reshape(HEIGHT, WIDTH) > 0
    text = coding.encode(np.asfortranarray(mask))["counts"]
    for counts in (text, text.decode()):
        assert np.array_equal(decode_mask({"size": [HEIGHT, WIDTH], "counts": counts}, HEIGHT, WIDTH), mask)


@pytest.mark.parametrize(
    "counts", ["0" * 7 + "o", "ooooooooooo0", "f", [10**4299] * 12], ids=lambda counts: str(counts)[:9]
)
def test_run_lengths_beyond_any_image_are_refused_without_being_added(root, counts):
    refused(
        root, [square(8, 1, [1, 1, 2, 2], segmentation={"size": [HEIGHT, WIDTH], "counts": counts})], "annotation 8"
    )


def test_an_outline_that_would_take_minutes_to_draw_is_refused(root):
    rings = [[0, 0, 99_999, 0, 99_999, 99_999, 0, 99_999]] * 3
    refused(
        root, [square(8, 1, [1, 1, 2, 2], segmentation=rings)], "the outline of its polygons is longer than 1000000 px"
    )


def test_a_name_that_is_not_utf8_and_a_value_as_deep_as_it_likes(root):
    write(root, "train2017", GOOD, deep=json.loads("[" * 500 + "]" * 500))
    assert len(take(root)) == 10
    folder = root / "coco" / "train2017"
    (folder / "\udcff.png").write_bytes((folder / "001.png").read_bytes())
    path = root / "coco" / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text().replace('"001.png"', '"\\udcff.png"'))
    with pytest.raises(UserError, match="has a name that is not UTF-8"):
        take(root)
