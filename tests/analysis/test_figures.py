"""Figures are written, byte-stable, and leave matplotlib as they found it."""

import math

import matplotlib as mpl
import pytest
from PIL import Image

from analysis.figures import COLOURS, MARKERS, GainRow, comparison_figure


def gain(pair, method, *, published=math.nan, measured=1.0, pooled=False):
    return GainRow(
        pair=pair,
        method=method,
        published=published,
        measured=measured,
        low=measured - 0.5,
        high=measured + 0.5,
        pooled=pooled,
    )


ROWS = [
    gain("Swin-L → ResNet-50", "KD"),
    gain("Swin-L → ResNet-50", "ScaleKD", published=3.39, measured=2.0),
    gain("mean of 1 pair", "ScaleKD", published=3.39, measured=2.0, pooled=True),
]


def test_equal_rows_give_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        comparison_figure(ROWS, tmp_path / name, title="A table", caption="Five seeds.")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1440  # 7.2 inches at 200 dpi
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_the_published_gain_is_drawn(tmp_path):
    comparison_figure(ROWS, tmp_path / "with.png", title="A table")
    without = [GainRow(**{**row, "published": math.nan}) for row in ROWS]
    comparison_figure(without, tmp_path / "without.png", title="A table")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


@pytest.mark.parametrize("rows", [[], [gain("a", "KD", measured=math.nan)], ROWS[:1]])
def test_empty_unmeasured_and_single_rows_draw_without_complaint(tmp_path, rows):
    comparison_figure(rows, tmp_path / "figure.png", title="A table")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_many_methods_and_pairs_draw_without_complaint(tmp_path):
    rows = [gain(f"pair {i}", f"method {j}", measured=float(j)) for i in range(3) for j in range(9)]
    comparison_figure(rows, tmp_path / "figure.png", title="A title " * 20, caption="Words " * 60)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == 1440


def test_settings_of_the_caller_stay_as_they_were(tmp_path):
    with mpl.rc_context({"font.size": 3.0}):
        comparison_figure(ROWS, tmp_path / "figure.png", title="A table")
        assert mpl.rcParams["font.size"] == 3.0


def test_each_colour_comes_with_its_own_marker():
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(COLOURS)
