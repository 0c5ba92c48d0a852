"""FGVC-Aircraft in its official layout, which the tests write: three lists, a hierarchy of classes, a banner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hkd.data.aircraft import Aircraft
from hkd.data.loading.loader import Loader
from hkd.errors import UserError

VARIANTS = ("F-16A/B", "Boeing 737-700", "Boeing 737-800")  # not sorted by name
FAMILIES = {"F-16A/B": "F-16", "Boeing 737-700": "Boeing 737", "Boeing 737-800": "Boeing 737"}
COUNTS = {"train": 4, "val": 3, "test": 2}  # images of each variant


def write_aircraft(root: Path) -> Path:
    """60 x 60 px: a grey that tells the class, over a white banner of 20 px."""
    data = root / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("\n".join(VARIANTS) + "\n")
    (data / "families.txt").write_text("F-16\nBoeing 737\n")
    number = 1_000_000
    for part, count in COUNTS.items():
        lines: dict[str, list[str]] = {"variant": [], "family": []}
        for place in range(count):
            for label, name in enumerate(VARIANTS):
                number += 7
                pixels = np.full((60, 60, 3), 60 * label + 10 * place + 5, dtype=np.uint8)
                pixels[-20:] = 255
                Image.fromarray(pixels).save(data / "images" / f"{number}.jpg", quality=95)
                lines["variant"].append(f"{number} {name}")
                lines["family"].append(f"{number} {FAMILIES[name]}")
        for level, text in lines.items():
            (data / f"images_{level}_{part}.txt").write_text("\n".join(text) + "\n")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return write_aircraft(tmp_path)


def aircraft(root: Path, **options) -> Aircraft:
    return Aircraft({"classes": 3, "image_size": 16, **options}, root)


def take(data, split, seed=0, select=False, on_corrupt="stop"):
    return data.load(split, seed=seed, select=select, on_corrupt=on_corrupt)


def rewrite(root: Path, name: str, change) -> None:
    path = root / "fgvc-aircraft-2013b" / "data" / name
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def test_the_official_counts_add_up_to_all_images():
    assert Aircraft.expected["train"] + Aircraft.expected["test"] == 10_000
    assert Aircraft({}, Path("nowhere")).num_classes == 100
    assert Aircraft({"level": "family"}, Path("nowhere")).num_classes == 70
    assert Aircraft({}, Path("nowhere")).counts() == {"train": 6667, "test": 3333}


def test_reported_runs_train_on_both_development_parts_and_classes_have_the_lists_order(root):
    train, test = take(aircraft(root), "train"), take(aircraft(root), "test")
    assert np.bincount(train.labels).tolist() == [7] * 3
    assert np.bincount(test.labels).tolist() == [2] * 3
    assert sorted([*train.rows.tolist(), *test.rows.tolist()]) == list(range(27))
    assert aircraft(root).class_names == list(VARIANTS)
    lines = (root / "fgvc-aircraft-2013b/data/images_variant_train.txt").read_text().splitlines()
    assert [path.stem for path in train.paths][:12] == [line.split()[0] for line in lines]
    assert [VARIANTS[label] for label in train.labels[:12]] == [line.partition(" ")[2] for line in lines]


def test_settings_are_chosen_on_the_official_validation_part(root):
    train, held = (take(aircraft(root), split, select=True) for split in ("train", "val"))
    assert np.bincount(train.labels).tolist() == [4] * 3
    assert np.bincount(held.labels).tolist() == [3] * 3
    assert sorted([*train.rows.tolist(), *held.rows.tolist()]) == take(aircraft(root), "train").rows.tolist()
    assert held.rows.min() > train.rows.max()
    few = take(aircraft(root, n_train=2), "train", seed=1, select=True)
    assert np.bincount(few.labels).tolist() == [2] * 3
    assert set(few.rows.tolist()) < set(train.rows.tolist())
    with pytest.raises(UserError, match="only while settings are chosen"):
        take(aircraft(root), "val")


def test_families_put_variants_together(root):
    data = aircraft(root, level="family", classes=None, expected={"classes": 2, "train": 21, "test": 6})
    assert data.num_classes == 2
    assert np.bincount(take(data, "train").labels).tolist() == [7, 14]
    assert data.fingerprint() != aircraft(root).fingerprint()


@pytest.mark.parametrize("memory", [False, True])
def test_the_banner_is_never_shown(root, memory):
    split = take(aircraft(root, memory=memory, crop_pct=1.0), "test")
    shown = torch.cat([batch.x for batch in Loader(split, None, num_classes=3, seed=0, train=False).epoch(0)])
    for x, label, place in zip(shown, split.labels.tolist(), [0, 0, 0, 1, 1, 1], strict=True):
        assert (x - (60 * label + 10 * place + 5) / 255).abs().max() < 0.02
    assert shown.max() < 0.7  # the banner is 1


def test_memory_holds_exactly_what_evaluation_shows_of_the_files(root):
    files, held = (take(aircraft(root, memory=memory), "train") for memory in (False, True))
    shown = [
        torch.cat([batch.x for batch in Loader(data, None, num_classes=3, seed=0, train=False).epoch(0)])
        for data in (files, held)
    ]
    assert torch.equal(*shown)
    assert np.array_equal(take(aircraft(root, memory=True), "train").images, held.images)


def test_missing_data_is_one_sentence_with_the_step(root, tmp_path):
    sentence = Aircraft({}, tmp_path / "no").missing()
    assert f"is not at {tmp_path / 'no' / 'fgvc-aircraft-2013b'}: unpack fgvc-aircraft-2013b.tar.gz of" in sentence
    (root / "fgvc-aircraft-2013b/data/images_variant_val.txt").unlink()
    with pytest.raises(UserError, match=r"has no file 'data/images_variant_val\.txt'"):
        take(aircraft(root), "train")


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("variants.txt", lambda lines: lines[:2], r"line 3, has the class 'Boeing 737-800', which variants\.txt"),
        ("variants.txt", lambda lines: [*lines, lines[0]], r"variants\.txt names a class twice"),
        ("images_variant_val.txt", lambda lines: ["1000007", *lines[1:]], r"line 1, is '1000007'; it must be"),
        ("images_variant_val.txt", lambda lines: ["../1 F-16A/B"], r"line 1, is '\.\./1 F-16A/B'; it must be"),
        ("images_variant_test.txt", lambda lines: ["1000007 F-16A/B", *lines[1:]], "lists data/images/1000007"),
        ("images_variant_test.txt", lambda lines: ["99 F-16A/B", *lines], r"99\.jpg is listed .* but not there"),
        ("images_variant_test.txt", lambda lines: lines[1::3], "Class 'F-16A/B' has no test images that can be read"),
    ],
)  # fmt: skip
def test_lists_that_do_not_match_the_images_are_refused_in_one_sentence(root, name, change, sentence):
    rewrite(root, name, change)
    with pytest.raises(UserError, match=sentence) as error:
        [take(aircraft(root), split) for split in ("train", "test")]
    assert "\n" not in str(error.value)


def test_fewer_classes_or_images_than_the_whole_data_set_are_told(root):
    with pytest.raises(UserError, match="has 3 classes, 100 are needed"):
        take(Aircraft({}, root), "train")
    with pytest.raises(UserError, match="has 21 train images, 22 are needed"):
        take(aircraft(root, classes=None, expected={"classes": 3, "train": 22}), "train")


@pytest.mark.parametrize("memory", [False, True])
def test_corrupt_images_and_those_that_are_no_more_than_a_banner_are_named_or_left_out(root, memory):
    paths = [take(aircraft(root), "train").paths[place] for place in (3, 17)]
    paths[0].write_bytes(b"nothing")
    Image.new("RGB", (60, 20)).save(paths[1])
    data = aircraft(root, memory=memory)
    with pytest.raises(UserError, match=f"Cannot read image {paths[0]}|{paths[0].name}"):
        [*Loader(take(data, "train"), None, num_classes=3, seed=0, train=False).epoch(0)]
    split = take(data, "train", on_corrupt="skip")
    loader = Loader(split, None, num_classes=3, seed=0, train=False, on_corrupt="skip")
    assert sum(len(batch.x) for batch in loader.epoch(0)) == 19
    assert loader.corrupt.keys() == set(map(str, paths))
    if not memory:  # else they were left out before
        assert loader.corrupt[str(paths[1])] == "it is 20 px high, of which 20 are a banner"


def test_the_fingerprint_is_of_the_content_and_the_options(root, tmp_path_factory):
    other = write_aircraft(tmp_path_factory.mktemp("other"))
    assert aircraft(root).fingerprint() == aircraft(other).fingerprint()
    assert aircraft(root).fingerprint() != aircraft(root, image_size=24).fingerprint()
    rewrite(other, "images_variant_val.txt", lambda lines: lines[:-1])
    assert aircraft(root).fingerprint() != aircraft(other).fingerprint()
