"""Projectors from a student's stages to vectors, as OFA and HCD share them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hkd.errors import Refused, UserError
from hkd.methods.parts.stage_projector import PatchMerging, StageProjectors, is_isotropic, merges
from hkd.models.taps import TapInfo, Taps


def info(*shapes: tuple[int, int], pooled: int | None = None, final: int | None = None, prefix: int = 0) -> TapInfo:
    """Square maps (width, side) of stages 1 to 4."""
    stages = {stage: (width, side, side) for stage, (width, side) in enumerate(shapes, 1)}
    last = stages[4] if final is None else (final, *stages[4][1:])
    return TapInfo(classes=5, pooled=pooled or last[0], final=last, stages=stages, prefix=prefix)


RESNET18 = info((64, 56), (128, 28), (256, 14), (512, 7))
MOBILENET_V2 = info((24, 56), (32, 28), (96, 14), (320, 7), final=1280)
DEIT_T = info(*((192, 14),) * 4, prefix=1)
RESMLP_S12 = info(*((384, 14),) * 4)
SWIN_P = info((48, 56), (96, 28), (192, 14), (384, 7))
SMALL_CNN = info((6, 8), (6, 8), (10, 4), (12, 2))
SMALL_VIT = info(*((8, 4),) * 4, prefix=2)
SMALL_SWIN = info((6, 8), (6, 8), (12, 4), (24, 2))


def taps(student: TapInfo, batch: int = 2, dtype: torch.dtype = torch.float32) -> Taps:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=dtype)

    prefix = {stage: draw(student.prefix, shape[0]) for stage, shape in student.stages.items() if student.prefix}
    maps = {stage: draw(*shape) for stage, shape in student.stages.items()}
    return Taps(
        logits=draw(student.classes),
        pooled=draw(student.pooled),
        final=draw(*student.final),
        stages=maps,
        prefix=prefix,
    )


def build(student: TapInfo, stages=(1, 2, 3, 4), width_t: int = 8, kind="auto") -> StageProjectors:
    torch.manual_seed(0)
    return StageProjectors(student, stages, width_t, kind)


@pytest.mark.parametrize(
    ("student", "width_t", "kind", "width"),
    [
        (SMALL_CNN, 8, "auto", 12),
        (SMALL_CNN, 20, "auto", 20),
        (SMALL_SWIN, 30, "tokens", 24),
        (SMALL_SWIN, 30, "auto", 30),
        (SMALL_VIT, 30, "auto", 8),
    ],
)
def test_all_stages_end_in_vectors_of_one_width(student, width_t, kind, width):
    projectors = build(student, width_t=width_t, kind=kind)
    vectors = projectors(taps(student, batch=3))
    assert projectors.width == width
    assert [tuple(vector.shape) for vector in vectors] == [(3, width)] * 4


@pytest.mark.parametrize("student", [RESNET18, MOBILENET_V2, DEIT_T, RESMLP_S12])
def test_the_papers_students_are_projected(student):
    projectors = build(student, stages=(3, 4), width_t=768)
    assert {tuple(vector.shape) for vector in projectors(taps(student, batch=1))} == {(1, projectors.width)}


def test_convolutions_double_the_width_until_the_last_block():
    projectors = build(RESNET18, width_t=768).projectors
    pointwise = {
        stage: [m.out_channels for m in projector.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        for stage, projector in projectors.items()
    }
    assert pointwise == {"1": [64, 128, 128, 256, 256, 768], "2": [128, 256, 256, 768], "3": [256, 768], "4": [768]}


def test_only_the_convolution_of_stage_4_has_a_bias():
    for stage, projector in build(RESNET18).projectors.items():
        biased = {module.bias is not None for module in projector.modules() if isinstance(module, nn.Conv2d)}
        assert biased == {stage == "4"}


def test_pooling_before_the_1x1_convolution_of_stage_4_is_pooling_after_it():
    projectors, features = build(SMALL_CNN, stages=(4,)), taps(SMALL_CNN)
    after = projectors.projectors["4"].blocks[0](features.stages[4]).mean(dim=(2, 3))
    torch.testing.assert_close(projectors(features)[0], after)


def test_stage_4_of_a_model_that_ends_in_a_widening_convolution_is_its_output():
    projectors, features = build(MOBILENET_V2, stages=(4,)), taps(MOBILENET_V2, batch=1)
    expected = projectors.projectors["4"](features.final)
    assert torch.equal(projectors(features)[0], expected)
    assert projectors.projectors["4"].blocks[0].in_channels == 1280


def test_one_grid_in_all_stages_means_tokens():
    assert [is_isotropic(student) for student in (RESNET18, SWIN_P, DEIT_T, RESMLP_S12)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("student", "counts"),
    [
        (SWIN_P, [3, 2, 1, 0]),
        (DEIT_T, [1, 1, 1, 1]),
        (info(*((8, 16),) * 4), [1, 1, 1, 1]),  # patches of 14 px
        (info(*((8, 8),) * 4), [1, 1, 1, 1]),  # patches of 4 px on 32 px
        (SMALL_VIT, [1, 1, 1, 1]),
        (info(*((8, 5),) * 4), [1, 1, 1, 1]),
        (info(*((8, 2),) * 4), [0, 0, 0, 0]),
        (info((6, 8), (6, 8), (8, 4), (12, 2)), [2, 2, 1, 0]),
    ],
)
def test_patches_are_merged_to_7x7_or_to_half_of_a_small_last_grid(student, counts):
    assert [merges(student, stage) for stage in (1, 2, 3, 4)] == counts


def test_merging_joins_squares_by_row_first_and_normalises_them():
    merging = PatchMerging(1, 4, act=False)
    nn.init.eye_(merging.reduction.weight)
    patches = torch.arange(4.0).view(1, 2, 2, 1)  # (0, 0) 0, (0, 1) 1, (1, 0) 2, (1, 1) 3
    expected = (np.array([0, 2, 1, 3]) - 1.5) / math.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(merging(patches).detach().numpy().ravel(), expected, rtol=1e-5)


def test_merging_pads_an_odd_grid_with_zeros():
    merging, patches = PatchMerging(2, 3, act=True), torch.randn(1, 5, 3, 2)
    assert torch.equal(merging(patches), merging(F.pad(patches, (0, 0, 0, 1, 0, 1))))
    assert merging(patches).shape == (1, 3, 2, 3)


def test_one_merge_ends_in_gelu_and_the_last_of_several_does_not():
    projectors = build(SWIN_P, kind="tokens").projectors
    acts = {stage: [type(merge.act) for merge in projector.merging] for stage, projector in projectors.items()}
    assert acts == {"1": [nn.GELU, nn.GELU, nn.Identity], "2": [nn.GELU, nn.Identity], "3": [nn.GELU], "4": []}


def test_blocks_are_4_minus_stage_and_at_least_one_without_qkv_bias():
    projectors = build(DEIT_T).projectors
    assert [len(projector.blocks) for projector in projectors.values()] == [3, 2, 1, 1]
    attention = projectors["1"].blocks[0].attn
    assert attention.qkv.bias is None
    assert attention.num_heads == 4


@pytest.mark.parametrize(("width", "heads"), [(8, 4), (6, 3), (10, 5), (7, 1), (9, 3)])
def test_heads_are_four_or_the_nearest_divisor_of_the_width(width, heads):
    projector = build(info(*((width, 4),) * 4), stages=(4,)).projectors["4"]
    assert projector.blocks[0].attn.num_heads == heads


def test_the_class_token_is_read_where_there_is_one_and_else_the_mean():
    projector, features = build(SMALL_VIT, stages=(4,)).projectors["4"].eval(), taps(SMALL_VIT)
    patches = projector.merging(features.stages[4].permute(0, 2, 3, 1)).flatten(1, 2)
    tokens = torch.cat([features.prefix[4], patches], dim=1)
    torch.testing.assert_close(projector(features.stages[4], features.prefix[4]), projector.blocks(tokens)[:, 0])
    torch.testing.assert_close(projector(features.stages[4]), projector.blocks(patches).mean(dim=1))


def test_adapters_are_initialised_as_the_specification_says():
    projectors = build(RESNET18, width_t=768)
    for module in projectors.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2  # torch's, which does not divide by groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    linear = build(DEIT_T).projectors["1"].blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not linear.bias.any()


@pytest.mark.parametrize(("student", "kind"), [(SMALL_CNN, "auto"), (SMALL_SWIN, "tokens"), (SMALL_VIT, "auto")])
def test_every_parameter_and_every_stage_gets_a_gradient(student, kind):
    projectors, features = build(student, kind=kind), taps(student, batch=3)
    maps = {stage: map_.requires_grad_() for stage, map_ in features.stages.items()}
    sum((vector * torch.randn_like(vector)).sum() for vector in projectors(features)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in projectors.parameters())
    assert all(map_.grad is not None and map_.grad.any() for map_ in maps.values())


@pytest.mark.parametrize(("student", "kind"), [(SMALL_CNN, "auto"), (SMALL_SWIN, "tokens"), (SMALL_VIT, "auto")])
def test_large_and_constant_features_stay_finite(student, kind):
    projectors = build(student, kind=kind)
    for value in (1e4, 0.0):
        features = taps(student)
        for maps in (features.stages, features.prefix):
            maps.update({stage: torch.full_like(map_, value) for stage, map_ in maps.items()})
        assert all(vector.isfinite().all() for vector in projectors(features))


def test_a_vanished_map_is_refused_with_its_stage():
    with pytest.raises(Refused, match="map of stage 3 is 0x0"):
        build(info((4, 2), (4, 1), (4, 0), (8, 0)), stages=(3,))


def test_tokens_that_fit_no_block_are_refused():
    with pytest.raises(Refused, match="12 wide and its pooled feature 20"):
        build(info((6, 8), (6, 8), (10, 4), (12, 2), pooled=20), kind="tokens")


def test_training_on_one_image_is_refused_where_batch_norm_would_see_one_value():
    projectors = build(SMALL_CNN)  # 8x8 ends as 1x1
    with pytest.raises(UserError, match="at least two"):
        projectors(taps(SMALL_CNN, batch=1))
    assert all(vector.isfinite().all() for vector in projectors.eval()(taps(SMALL_CNN, batch=1)))
    assert all(vector.isfinite().all() for vector in build(SMALL_VIT)(taps(SMALL_VIT, batch=1)))
