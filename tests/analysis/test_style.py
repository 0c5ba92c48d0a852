"""One house style: headings, sheets, files of equal bytes, and no colour that is not named in it."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.style import COLOURS, MARKERS, Heading, canvas, lines_of, picture_grid, sheet, tint, wrapped, write_texts

ROOT = Path(__file__).parents[2]


def test_what_follows_a_line_break_in_a_title_stands_below_the_heading_and_fits():
    heading = wrapped("A bold title " * 9 + "\n" + "Stand-in for a data set, in plain type; " * 6, 7.2)
    assert (len(heading.bold), len(heading.plain), len(heading)) == (2, 3, 5)
    assert len(Heading(["A"], 7 * ["b"])) == 7  # seven lines of .2 inches are not higher than six of .24
    assert " ".join(heading.bold) == ("A bold title " * 9).strip()
    assert wrapped("A title", 7.2) == Heading(["A title"], [])
    figure = canvas(7.2, 3.0)
    write_texts(figure, heading, [])
    bold, plain = (text.get_window_extent() for text in figure.texts[:2])
    assert plain.y1 <= bold.y0
    assert max(bold.x1, plain.x1) <= 7.2 * figure.dpi
    assert figure.texts[1].get_fontweight() == "normal"


def test_wide_letters_do_not_leave_the_figure_and_narrow_ones_fill_it():
    for letters in ("MWMW WMWM ", "ilil lili ", "Measured gains are compared with published ones by direction only. "):
        lines = lines_of(letters * 40, 6.0, 10.5)
        figure = canvas(6.0, 3.0)
        write_texts(figure, Heading([]), lines)
        box = figure.texts[-1].get_window_extent()
        assert 0.85 * 6.0 * figure.dpi <= box.x1 <= 6.0 * figure.dpi
    assert lines_of("a" * 300, 2.0, 10.5) == ["a" * 300]  # a word is not cut


def test_each_colour_comes_with_its_own_marker():
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(COLOURS)


def test_a_tint_goes_to_white():
    assert tint("#000000", 0.25) == (0.25, 0.25, 0.25)
    assert tint("#0072B2", 1.0) == (1.0, 1.0, 1.0)


def test_a_sheet_makes_room_for_its_texts_and_places_panels_in_inches(tmp_path):
    texts = {"title": "A title " * 30 + "\nSetting", "caption": "Words " * 60}
    with sheet(tmp_path / "a.png", 7.2, 2.0, above=0.3, below=0.5, **texts) as page:
        axes = page.axes(1.0, page.bottom, 5.0, 2.0)
        assert page.top - page.bottom == pytest.approx(2.0)
        box = axes.get_position()
        assert (box.width * 7.2, box.height * page.height) == pytest.approx((5.0, 2.0))
    (heading, _, caption), dots = (text.get_window_extent() for text in page.figure.texts), page.figure.dpi
    assert caption.y1 / dots < page.bottom
    assert page.top < heading.y0 / dots
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.svg"}
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1440  # 7.2 inches at 200 dpi


def test_a_grid_has_a_column_for_each_heading_and_a_line_for_each_picture(tmp_path):
    columns = {"image": [np.ones((4, 4, 3)), np.zeros((4, 4, 3))], "grey": [np.eye(2), np.eye(2)]}
    for name in ("one.png", "two.png"):
        picture_grid(columns, tmp_path / name, title="T", caption="C")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert not (tmp_path / "one.svg").exists()


@pytest.mark.parametrize("folder", ["analysis", "experiments"])
def test_colours_are_named_in_the_style_alone(folder):
    home = ROOT / "analysis" / "style.py"
    for path in (ROOT / folder).rglob("*.py"):
        assert path == home or not re.search(r"\"#[0-9a-fA-F]{6}\"", path.read_text()), path
