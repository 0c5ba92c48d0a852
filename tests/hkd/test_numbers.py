"""numbers100 and numbers200: what their images show, where their digits come from, and what a seed changes."""

from pathlib import Path

import numpy as np
import pytest

from hkd.data.digits import CUT, source_digits, source_file
from hkd.data.numbers import ROWS, Numbers, Numbers100, Numbers200
from hkd.errors import UserError

SMALL = {"pool": 3, "n_test": 1}


def numbers(kind: type[Numbers] = Numbers100, **options) -> Numbers:
    return kind({**SMALL, **options}, Path("."))


@pytest.mark.parametrize("kind", [Numbers100, Numbers200])
def test_an_images_class_is_what_its_two_source_digits_say_and_every_class_is_there(kind):
    data = numbers(kind)
    split = data.load("test", seed=0, select=False)
    _, digits = source_digits(source_file())
    left, right = np.divmod(split.rows, ROWS)
    assert ((10 * digits[left] + digits[right]) == split.labels % 100).all()
    assert np.bincount(split.labels).tolist() == [1] * data.num_classes


@pytest.mark.parametrize("kind", [Numbers100, Numbers200])
def test_no_writer_of_one_split_appears_in_another(kind):
    for name, (first, last) in CUT.items():
        rows = numbers(kind).load(name, seed=0, select=False).rows
        sources = np.concatenate(np.divmod(rows, ROWS))
        assert sources.min() >= first
        assert sources.max() < last


def test_the_arrangement_of_numbers200_says_which_digit_stands_higher():
    split = numbers(Numbers200, noise=0.0, jitter=0).load("test", seed=0, select=False)
    ink = split.images.mean(1).astype(float)
    ink = np.where(ink > 140, 1.0, 0.0)  # the darkest ink is 178 before resampling, the lightest background 64
    heights = np.arange(32)[:, None]
    left, right = (
        (ink[:, :, half] * heights).sum((1, 2)) / ink[:, :, half].sum((1, 2)) for half in (slice(16), slice(16, 32))
    )
    assert ((right > left) == (split.labels < 100)).all()


def test_only_the_labelled_subset_depends_on_the_seed_and_it_is_balanced():
    data = numbers(n_train=150)
    first, second = (data.load("train", seed=seed, select=False) for seed in (0, 1))
    again = data.load("train", seed=0, select=False)
    assert np.array_equal(first.images, again.images)
    assert not np.array_equal(first.rows, second.rows)
    assert set(np.bincount(first.labels)) == {1, 2}
    tests = [data.load("test", seed=seed, select=False).images for seed in (0, 1)]
    assert np.array_equal(*tests)


def test_a_students_images_are_among_those_its_teacher_sees():
    whole = numbers().load("train", seed=0, select=False)
    part = numbers(n_train=100).load("train", seed=5, select=False)
    known = {image.tobytes() for image in whole.images}
    assert all(image.tobytes() in known for image in part.images)
    assert len(whole) == numbers().counts()["train"] == 300


def test_the_fingerprint_follows_the_options_and_the_composition():
    assert numbers().fingerprint() == numbers().fingerprint()
    assert len({numbers().fingerprint(), numbers(noise=0.0).fingerprint(), numbers(Numbers200).fingerprint()}) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_train": 50}, "n_train"),
        ({"pool": 0}, "pool"),
        ({"jitter": 9}, "jitter"),
        ({"n_tests": 3}, "Did you mean 'n_test'"),
    ],
)
def test_an_impossible_option_is_refused_in_a_sentence(options, words):
    with pytest.raises(UserError, match=words):
        numbers(**options)


def test_more_labelled_images_than_the_pool_holds_are_refused():
    with pytest.raises(UserError, match="ask for fewer"):
        numbers(n_train=900).load("train", seed=0, select=False)
