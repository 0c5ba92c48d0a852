"""Pictures of ScaleKD: shares and norms are those of the measures, files are equal byte for byte."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from analysis.dct_spectrum import DCTSpectrum
from analysis.feature_scatter import difference
from analysis.scalekd_figures import (
    STATISTICS,
    draws,
    leave,
    scatter_figure,
    scatter_of,
    spectra_figure,
    spectrum_figure,
    tint,
)
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


@pytest.fixture(scope="module")
def result():
    spectrum = DCTSpectrum()
    spectrum.update(1 + torch.rand(5, 6, 4, 4, generator=torch.Generator().manual_seed(0)))
    return spectrum.compute()


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


def test_draws_are_a_tenth_without_repetition_and_the_same_every_time():
    first, again = draws(640), draws(640)
    assert len(first) == 8
    assert all(len(set(each)) == len(each) == 64 for each in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_pictures_and_numbers_are_equal_byte_for_byte(tmp_path, result, images):
    scattered = {"with DFM": scatter_of(step(), [images]), "without DFM": scatter_of(step(dfm="off"), [images])}
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        spectrum_figure(result, folder / "spectrum", title="A teacher", caption="A sentence.")
        spectra_figure(
            {"A": result, "B": result, "C": result}, folder / "spectra", title="Three", caption="A sentence."
        )
        scatter_figure(scattered, folder / "scatter", title="Two students", caption="A sentence.")
        leave({"a": result}, folder, profile="laptop", images="Five.", rows=np.arange(5))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(names) == 9
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    values = json.loads((tmp_path / "one" / "measures.json").read_text())["values"]
    assert values["dct_energy/a"]["value"] == result.share_energy
    assert values["dct_energy/a"]["half"] == result.share_energy_half


def test_a_tint_goes_to_white():
    assert tint("#000000", 0.25) == (0.25, 0.25, 0.25)
    assert tint("#0072B2", 1.0) == (1.0, 1.0, 1.0)
