import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hkd.data import digits
from hkd.data.base import balanced_subset
from hkd.data.compose import cubic_matrix, draw
from hkd.data.digits import CUT, Digits
from hkd.errors import UserError


def load(split: str, seed: int = 0, select: bool = False, **options):
    return Digits(options, Path("nowhere")).load(split, seed=seed, select=select)


def test_source_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    glyphs, labels = digits.source_digits(digits.source_file())
    assert np.array_equal(glyphs * 16, theirs.images)
    assert np.array_equal(labels, theirs.target)


@pytest.mark.parametrize(
    "options", [{}, {"n_train": 100}, {"copies": 2, "test_copies": 2}, {"noise": 0.0, "jitter": 4}]
)
@pytest.mark.parametrize("select", [False, True])
def test_no_source_row_serves_two_splits(options, select, monkeypatch):
    monkeypatch.setattr(Digits, "render", lambda *_: np.zeros((3, 32, 32), np.uint8))  # which rows, not how they look
    rows = {split: set(load(split, select=select, **options).rows.tolist()) for split in CUT}
    assert rows["train"].isdisjoint(rows["val"] | rows["test"])
    assert rows["val"].isdisjoint(rows["test"])
    for split, (start, end) in CUT.items():
        assert rows[split] <= set(range(start, end))
    assert rows["val"] == set(range(1029, 1287))
    assert rows["test"] == set(range(1287, 1797))


def test_the_whole_training_split_has_every_row_once():
    train = load("train")
    assert train.rows.tolist() == list(range(1029))
    assert train.images.shape == (1029, 3, 32, 32)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int64


def test_a_labelled_subset_is_balanced_and_drawn_by_the_seed():
    first, again, other = (
        load("train", seed=0, n_train=100),
        load("train", seed=0, n_train=100),
        load("train", 1, n_train=100),
    )
    assert np.bincount(first.labels).tolist() == [10] * 10
    assert np.array_equal(first.images, again.images)
    assert set(first.rows.tolist()) != set(other.rows.tolist())


def test_validation_and_test_do_not_depend_on_the_seed():
    for split in ("val", "test"):
        assert np.array_equal(load(split, seed=0, n_train=20).images, load(split, seed=7).images)


def test_an_image_is_a_function_of_split_row_and_copy():
    whole, part = load("train", copies=2), load("train", n_train=30)
    by_row = dict(zip(whole.rows[:1029].tolist(), whole.images[:1029], strict=True))
    assert all(np.array_equal(by_row[row], image) for row, image in zip(part.rows.tolist(), part.images, strict=True))
    assert np.array_equal(whole.rows[:1029], whole.rows[1029:])
    assert not np.array_equal(whole.images[:1029], whole.images[1029:])


def test_noise_and_jitter_can_be_switched_off():
    plain = load("val", noise=0.0, jitter=0)
    assert all(len(np.unique(image[0, :2])) == 1 for image in plain.images[:20])  # bare background above the digit


def test_more_noise_is_a_worse_picture():
    clean, noisy = load("val", noise=0.0).images.astype(float), load("val", noise=0.2).images.astype(float)
    mild = load("val", noise=0.04).images.astype(float)
    assert np.abs(mild - clean).mean() < np.abs(noisy - clean).mean() / 3


def test_the_fingerprint_covers_options_constants_and_the_source(monkeypatch):
    first = Digits({}, Path("a")).fingerprint()
    assert first == Digits({"copies": 1}, Path("b")).fingerprint()
    assert first != Digits({"noise": 0.1}, Path("a")).fingerprint()
    monkeypatch.setattr(digits, "RECIPE", "another composer")
    assert first != Digits({}, Path("a")).fingerprint()


def test_planning_with_digits_imports_neither_torch_nor_scikit_learn():
    code = (
        "import sys; from pathlib import Path; from hkd.data.digits import Digits; d = Digits({}, Path('x'));"
        "d.missing(); d.fingerprint(); assert not {'torch', 'sklearn', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n_trian": 100}, "Did you mean 'n_train'"),
        ({"n_train": 5000}, "only"),
        ({"jitter": 9}, "Data set 'digits': jitter must be less than or equal to 8, got 9"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        load("train", **options)


def test_another_file_of_digits_is_refused(tmp_path, monkeypatch):
    (tmp_path / "digits.csv.gz").write_bytes(b"something else")
    monkeypatch.setattr(digits, "source_file", lambda: tmp_path / "digits.csv.gz")
    with pytest.raises(UserError, match="sha256"):
        load("train")


def test_counts_follow_from_the_options_and_are_those_of_the_splits():
    data = Digits({"n_train": 20, "copies": 3, "test_copies": 2}, Path("x"))
    assert data.counts() == {"train": 60, "val": 516, "test": 1020}
    assert data.counts()["train"] == len(data.load("train", seed=0, select=False))


def test_scikit_learn_that_is_not_there_is_told_with_the_step(monkeypatch):
    monkeypatch.setattr(digits, "source_file", lambda: None)
    assert "pip install scikit-learn" in Digits({}, Path("x")).missing()


@pytest.mark.parametrize(("n_out", "n_in"), [(24, 8), (27, 8), (32, 8)])
def test_bicubic_up_scaling_equals_pillows_away_from_the_edges(n_out, n_in):
    glyph = np.random.default_rng(0).uniform(size=(n_in, n_in)).astype(np.float32)
    ours = cubic_matrix(n_out, n_in) @ glyph @ cubic_matrix(n_out, n_in).T
    theirs = np.asarray(Image.fromarray(glyph, mode=None).resize((n_out, n_out), Image.Resampling.BICUBIC))
    inner = slice(2 * n_out // n_in, -2 * n_out // n_in)  # Pillow drops taps outside, here the edge is repeated
    assert np.abs(ours - theirs)[inner, inner].max() < 1e-5


def test_later_glyphs_cover_earlier_ones_and_what_is_outside_is_cut():
    glyphs = np.ones((3, 4, 4))
    boxes = np.array([[0, 0, 8, 8], [4, 4, 8, 8], [-100, 0, 8, 8]])
    inks = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    canvas, coverage = draw(glyphs, boxes, inks, np.zeros(3), (10, 9))
    assert canvas.shape == (3, 10, 9)
    assert canvas[:, 2, 2].tolist() == [1.0, 0.0, 0.0]
    assert canvas[:, 5, 5].tolist() == [0.0, 1.0, 0.0]
    assert coverage.sum((1, 2)).tolist() == [64.0, 30.0, 0.0]


@given(total=st.integers(3, 60), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_balanced_subset_differs_by_at_most_one_image_between_classes(total, seed):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), 20))
    chosen = balanced_subset(labels, total, 3, np.random.default_rng(seed))
    counts = np.bincount(labels[chosen], minlength=3)
    assert len(set(chosen.tolist())) == total
    assert counts.max() - counts.min() <= 1
