"""Alternative components of students: norms are those of the tokens that are compared, files equal byte for byte."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from analysis.measures.feature_scatter import difference
from experiments.drawings.scalekd_fig6 import STATISTICS, scatter_figure, scatter_of
from hkd.methods.scalekd import ScaleKD, ScaleKDConfig
from hkd.models.cards.zoo import ZOO
from hkd.models.tap_model import TapModel, Teacher
from hkd.models.taps import to_tokens
from hkd.training.step import TapStep


def step(**options):
    torch.manual_seed(0)
    student, teacher = TapModel(ZOO["resnet18_mini"], 10), Teacher(ZOO["swin_s_mini"], 10)
    config = ScaleKDConfig(heads_s3=4, heads_s4=4, **options)
    method = ScaleKD(config, student.info, {"teacher": teacher}, functional.cross_entropy)
    return TapStep(student, method, ScaleKD.needs(config)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.long
def test_the_alternative_view_is_compared_and_without_it_the_only_one(images):
    for options, view in (({}, "alt"), ({"dfm": "off"}, "orig")):
        each = step(**options)
        found = scatter_of(each, images.split(7))
        with torch.no_grad():
            mimics = each.method.mimics(each.student(images, each.want))
            target = to_tokens(each.method.teachers["teacher"](images).final)
        norms = difference(mimics["s4", view], target).norm(dim=1)
        np.testing.assert_allclose(found.norm, norms, rtol=5e-3)  # a channel almost flat amplifies rounding
        assert STATISTICS["norm_mean"](found) == pytest.approx(norms.mean().item(), rel=1e-3)


def test_pictures_are_equal_byte_for_byte(tmp_path, images):
    scattered = {"with DFM": scatter_of(step(), [images]), "without DFM": scatter_of(step(dfm="off"), [images])}
    for name in ("one", "two"):
        scatter_figure(scattered, tmp_path / name, title="Two students", caption="A sentence.")
    for ending in ("png", "svg"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
