"""Masked pixel reconstruction, the control: its loss, what it learns from, its pictures, students it cannot serve."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hkd.data.batch import Batch
from hkd.errors import Refused
from hkd.methods.base import Samples
from hkd.methods.masked_pixels import MaskedPixels, MaskedPixelsConfig
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel
from hkd.models.taps import TapInfo, Taps, Want
from hkd.spec import Recipe
from hkd.training.step import TapStep

RECIPE = Recipe(epochs=1, batch_size=4)
SHAPES = {1: (8, 16, 16), 2: (12, 8, 8), 3: (16, 4, 4), 4: (20, 4, 4)}
INFO = TapInfo(classes=0, pooled=20, final=(20, 4, 4), stages=SHAPES)


def build(info=INFO, **options) -> MaskedPixels:
    torch.manual_seed(0)
    return MaskedPixels(MaskedPixelsConfig(**{"image_size": 32, "width": 16} | options), info, {}, F.cross_entropy)


def inputs(method: MaskedPixels, side=32, count=3):
    """A batch with masks and sparse stage maps."""
    torch.manual_seed(1)
    batch = Batch(x=torch.rand(count, 3, side, side), y=torch.zeros(count, 0), index=torch.arange(count))
    visible = method.student_inputs(batch, {})["visible"]
    maps = {stage: torch.randn(count, *shape) * repeated(visible, shape[1]) for stage, shape in SHAPES.items()}
    nothing = torch.zeros(count, 0)
    return batch, Taps(logits=nothing, pooled=nothing, final=maps[4], stages=maps)


def repeated(visible: torch.Tensor, side: int) -> torch.Tensor:
    cell = side // visible.shape[-1]
    return visible.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def pixels(method: MaskedPixels, taps_s: Taps, visible: torch.Tensor) -> torch.Tensor:
    """The decoder's output before it is cut into cells."""
    return method.head(method.decoder(taps_s.stages, visible)[-1])


def test_the_loss_is_that_of_a_loop_over_hidden_cells():
    method = build()
    batch, taps_s = inputs(method)
    predicted, visible = pixels(method, taps_s, batch.extra["visible"]), batch.extra["visible"]
    errors = []
    for b in range(3):
        for row in range(4):
            for column in range(4):
                if not visible[b, 0, row, column]:
                    place = b, slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
                    true = batch.x[place]
                    errors.append(
                        (predicted[place] - (true - true.mean()) / (true.var() + 1e-6).sqrt()).square().mean()
                    )
    assert len(errors) == 3 * 10
    found = method(batch, taps_s, {})
    assert list(found) == ["pixels"]
    assert found["pixels"].item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_visible_pixels_are_no_target():
    method = build()
    batch, taps_s = inputs(method)
    seen = repeated(batch.extra["visible"], 32)
    other = replace(batch, x=torch.where(seen, torch.rand_like(batch.x), batch.x))
    assert method(other, taps_s, {})["pixels"] == method(batch, taps_s, {})["pixels"]


def test_images_of_another_size_are_resized_as_the_student_resizes_them():
    method = build().eval()
    batch, taps_s = inputs(method, side=40)
    resized = replace(batch, x=F.interpolate(batch.x, (32, 32), mode="bilinear", align_corners=False))
    assert torch.equal(method(batch, taps_s, {})["pixels"], method(resized, taps_s, {})["pixels"])


def test_a_picture_keeps_what_was_visible_and_paints_the_rest():
    method = build().eval()
    batch, taps_s = inputs(method)
    picture, seen = method.picture(batch, taps_s), repeated(batch.extra["visible"], 32).expand(-1, 3, -1, -1)
    assert torch.equal(picture[seen], batch.x[seen])
    assert not torch.equal(picture[~seen], batch.x[~seen])
    assert 0 <= picture.min() <= picture.max() <= 1
    row, column = (~batch.extra["visible"][0, 0]).nonzero()[0].tolist()
    place = 0, slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
    true, predicted = batch.x[place], pixels(method, taps_s, batch.extra["visible"])[place]
    expected = (predicted * (true.var() + 1e-6).sqrt() + true.mean()).clamp(0, 1)
    torch.testing.assert_close(picture[place], expected)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_without_contrast_are_finite(value):
    method = build()
    batch, taps_s = inputs(method)
    loss = method(replace(batch, x=torch.full_like(batch.x, value)), taps_s, {})["pixels"]
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in method.parameters())


@pytest.mark.parametrize("options", [{}, {"conv": "dense"}, {"mask_per": "batch", "grid": 2}])
def test_a_step_trains_every_tensor_and_needs_neither_labels_nor_a_teacher(options):
    torch.manual_seed(0)
    student = TapModel(ZOO["sparse_resnet50_mini"], 0)
    start = copy.deepcopy(student.state_dict())
    method = build(student.info, **options)
    method.prepare(Samples(labels=torch.zeros(8, 0), classes=0, epochs=1, steps=1))
    needs = method.needs(method.config)
    assert not needs.teachers
    assert needs.student == Want(stages=(1, 2, 3, 4))
    batch = Batch(x=torch.rand(4, 3, 32, 32), y=torch.zeros(4, 0), index=torch.arange(4))
    learning = [*student.parameters(), *method.parameters()]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    losses = TapStep(student, method, needs)(batch, {})
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in learning)
    optimizer.step()
    assert not torch.equal(student.state_dict()["net.conv1.0.weight"], start["net.conv1.0.weight"])
    assert bool(method.no_weight_decay()) == ("conv" not in options)


def test_mixed_precision_leaves_the_comparison_in_single_precision():
    method = build()
    batch, taps_s = inputs(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(batch, taps_s, {})["pixels"]
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_the_papers_student_fits_with_the_defaults():
    shapes = {1: (256, 56, 56), 2: (512, 28, 28), 3: (1024, 14, 14), 4: (2048, 7, 7)}
    with torch.device("meta"):
        method = MaskedPixels(
            MaskedPixelsConfig(), TapInfo(classes=0, pooled=2048, final=shapes[4], stages=shapes), {}, F.cross_entropy
        )
    assert method.grid == 7
    assert method.decoder.sides == [14, 28, 56, 112, 224]
    assert method.head.weight.shape == (3, 24, 1, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_size": 36}, "cannot end at 36x36"),
        ({"grid": 3}, "mask of 3x3 cells"),
        ({"mask_ratio": 0.98}, "would hide all"),
        ({"mask_ratio": 0.02}, "would hide none"),
        ({"width": 12}, "divisible by 8"),
    ],
)
def test_sizes_that_do_not_fit_are_a_sentence(options, sentence):
    with pytest.raises(Refused, match=sentence) as error:
        build(**options)
    assert ". " not in str(error.value)


@pytest.mark.parametrize(
    ("student", "image_size", "sentence"),
    [
        ("sparse_resnet50", 224, None),
        ("sparse_resnet50_mini", 32, None),
        ("sparse_resnet50_mini", 224, "image_size of 224 px, and the student sparse_resnet50_mini sees 32 px"),
        ("resnet50", 224, "'sparse_mobilenet_v2', not 'resnet'"),
    ],
)
def test_students_are_refused_when_a_table_is_planned(student, image_size, sentence):
    found = MaskedPixels.refuse(MaskedPixelsConfig(image_size=image_size), ZOO[student], {}, RECIPE)
    assert found is None if sentence is None else sentence in found
