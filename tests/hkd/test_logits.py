"""What methods that compare logits or samples share."""

import pytest
import torch

from hkd.errors import Refused, UserError
from hkd.methods.parts.logits import class_index, exact, same_classes, several_samples
from hkd.models.taps import TapInfo


def info(classes: int) -> TapInfo:
    return TapInfo(classes=classes, pooled=4, final=(4, 2, 2), stages={})


def test_a_teacher_with_other_classes_is_refused_with_both_numbers():
    same_classes("dkd", info(100), info(100))
    with pytest.raises(Refused, match="'dkd' compares logits, but the teacher has 10 classes and the data 100"):
        same_classes("dkd", info(100), info(10))


def test_one_sample_has_no_relations():
    several_samples("rkd", 2)
    with pytest.raises(UserError, match=r"Method 'rkd' compares samples .* at least 2 images, got 1"):
        several_samples("rkd", 1)


def test_the_class_of_a_soft_target_is_its_most_probable_one():
    assert class_index(torch.tensor([2, 0])).tolist() == [2, 0]
    assert class_index(torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.4, 0.2]])).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_sixteen_bits_become_thirty_two_and_nothing_is_rounded(given, kept):
    assert exact(torch.ones(1, dtype=given)).dtype == kept
