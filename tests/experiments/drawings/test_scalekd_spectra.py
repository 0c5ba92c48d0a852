"""Spectra of teachers: shares are those of the measure, files are equal byte for byte."""

import numpy as np
import torch

from analysis.measures.dct_spectrum import DCTSpectrum
from experiments.drawings.scalekd_spectra import numbers, spectra_figure, spectrum_figure


def spectrum():
    measure = DCTSpectrum()
    measure.final(1 + torch.rand(5, 6, 4, 4, generator=torch.Generator().manual_seed(0)))
    return measure.compute()


def test_pictures_are_equal_byte_for_byte(tmp_path):
    result = spectrum()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        spectrum_figure(result, tmp_path / name / "spectrum", title="A teacher", caption="A sentence.")
        results = {"A": result, "B": result, "C": result}
        spectra_figure(results, tmp_path / name / "spectra", title="Three", caption="A sentence.")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"spectrum.png", "spectrum.svg", "spectra.png", "spectra.svg"}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_numbers_are_the_shares_of_all_three_forms():
    result = spectrum()
    found = numbers({"a": result})
    assert set(found) == {"dct_energy/a", "dct_unscaled/a", "dct_orthonormal/a"}
    assert (found["dct_energy/a"].value, found["dct_energy/a"].half) == (result.share_energy, result.share_energy_half)
    assert found["dct_unscaled/a"].value == result.share_unscaled
    assert found["dct_orthonormal/a"].images == 5
    assert np.isfinite(found["dct_orthonormal/a"].half)
