"""mIoU over a data set: values by hand, plain loops, ignored pixels, classes that are absent, merging."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hkd.downstream.miou import Confusion


def score(predicted, target, classes):
    confusion = Confusion(classes)
    confusion.add(torch.tensor(predicted), torch.tensor(target))
    return confusion.compute()


def plain(pairs, classes):
    """mIoU, mAcc and IoU of each class by loops over pixels; None for what cannot be told."""
    iou, acc = [], []
    for label in range(classes):
        both = sum(p == t == label for p, t in pairs)
        either = sum(label in (p, t) for p, t in pairs)
        true = sum(t == label for _, t in pairs)
        iou.append(both / either if either else None)
        acc.append(both / true if true else None)
    told = [[value for value in values if value is not None] for values in (iou, acc)]
    return [100 * sum(values) / len(values) if values else math.nan for values in told], iou


def test_values_by_hand():
    found = score([[0, 0, 1], [1, 1, 2]], [[0, 1, 1], [1, 255, 2]], 4)
    assert found.iou[:3].tolist() == pytest.approx([50, 200 / 3, 100])
    assert math.isnan(found.iou[3])
    assert found.acc[:3].tolist() == pytest.approx([100, 200 / 3, 100])
    assert found.miou == pytest.approx((50 + 200 / 3 + 100) / 3)
    assert found.macc == pytest.approx((100 + 200 / 3 + 100) / 3)
    assert found.foreground == pytest.approx((200 / 3 + 100) / 2)
    assert found.pixels == pytest.approx(80)
    names = {"miou": found.miou, "macc": found.macc, "pixel_acc": found.pixels, "miou_foreground": found.foreground}
    assert found.named() == names


def test_rows_are_the_truth_and_columns_the_predictions():
    confusion = Confusion(3)
    confusion.add(torch.tensor([[2, 2, 0]]), torch.tensor([[1, 1, 0]]))
    assert confusion.matrix.tolist() == [[1, 0, 0], [0, 0, 2], [0, 0, 0]]


def test_a_class_predicted_but_never_true_counts_as_zero_in_miou_and_not_in_macc():
    found = score([[0, 1]], [[0, 0]], 3)
    assert found.miou == pytest.approx(25)
    assert found.macc == pytest.approx(50)


def test_the_data_set_is_counted_and_not_the_mean_over_images():
    confusion = Confusion(2)
    confusion.add(torch.tensor([[1, 1, 1, 1]]), torch.tensor([[1, 1, 1, 1]]))
    confusion.add(torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 0, 0, 1]]))
    assert confusion.compute().iou.tolist() == pytest.approx([75, 80])  # a mean over images would say 50 for class 1


def test_ignored_pixels_count_nowhere_whatever_was_predicted_there():
    found = score([[0, 7, -1]], [[0, 255, 255]], 2)
    assert found.miou == pytest.approx(100)
    nothing = score([[0, 1]], [[255, 255]], 2)
    assert all(math.isnan(value) for value in nothing.named().values())


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_the_metrics_are_those_of_plain_loops(seed, classes, images):
    generator = torch.Generator().manual_seed(seed)
    confusion = Confusion(classes)
    pairs = []
    for _ in range(images):
        predicted = torch.randint(classes, (2, 3, 4), generator=generator)
        target = torch.randint(classes, (2, 3, 4), generator=generator)
        target[torch.rand(target.shape, generator=generator) < 0.3] = 255
        confusion.add(predicted, target.to(torch.uint8))
        flat = zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True)
        pairs += [(p, t) for p, t in flat if t != 255]
    (miou, macc), iou = plain(pairs, classes)
    found = confusion.compute()
    assert (found.miou, found.macc) == pytest.approx((miou, macc), nan_ok=True)
    expected = [math.nan if value is None else 100 * value for value in iou]
    assert found.iou.tolist() == pytest.approx(expected, nan_ok=True)


def test_counts_of_processes_add_up():
    torch.manual_seed(0)
    predicted, target = torch.randint(3, (4, 5, 5)), torch.randint(3, (4, 5, 5))
    whole, parts = Confusion(3), [Confusion(3), Confusion(3)]
    whole.add(predicted, target)
    for image in range(4):
        parts[image % 2].add(predicted[image], target[image])
    parts[0].merge(parts[1].matrix)
    assert parts[0].matrix.tolist() == whole.matrix.tolist()
    assert parts[0].compute().named() == whole.compute().named()


@pytest.mark.parametrize(
    ("predicted", "target", "why"),
    [
        ([[0, 1]], [[0, 3]], "a target must be 0 to 2, got 0 to 3"),
        ([[0, 3]], [[0, 1]], "a prediction must be 0 to 2, got 0 to 3"),
        ([[0, -1]], [[0, 1]], "a prediction must be 0 to 2, got -1 to 0"),
        ([[0, 1, 2]], [[0, 1]], "prediction and target differ"),
    ],
)
def test_values_that_are_no_class_are_refused(predicted, target, why):
    with pytest.raises(ValueError, match=why):
        score(predicted, target, 3)


def test_counts_larger_than_what_a_float_holds_stay_exact():
    confusion = Confusion(2)
    confusion.matrix += 2**31
    confusion.add(torch.tensor([[1]]), torch.tensor([[1]]))
    assert confusion.matrix.tolist() == [[2**31, 2**31], [2**31, 2**31 + 1]]
    assert confusion.compute().miou == pytest.approx(100 / 3)


@pytest.mark.slow  # the package takes seconds to import
def test_the_matrix_is_that_of_torchmetrics():
    package = pytest.importorskip("torchmetrics.classification")
    torch.manual_seed(0)
    predicted, target = torch.randint(5, (3, 20, 20)), torch.randint(5, (3, 20, 20))
    target[:, :4] = 255
    theirs = package.MulticlassConfusionMatrix(5, ignore_index=255)
    theirs.update(predicted, target)
    confusion = Confusion(5)
    confusion.add(predicted, target)
    assert confusion.matrix.tolist() == theirs.compute().tolist()
