"""Charts are written, byte-stable, and leave matplotlib as they found it."""

import math

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from analysis import charts
from analysis.charts import (
    FEW_SEEDS,
    MAP,
    MAP_LIMIT,
    MAP_RANGE,
    PAGE,
    Dot,
    GainRow,
    MapCell,
    RankRow,
    SweepPoint,
    by_panel,
    comparison_figure,
    dots_figure,
    drawn_seeds,
    gain_map,
    legend_columns,
    legend_handles,
    ranking_figure,
    shares_figure,
    span,
    sweep_figure,
)
from analysis.style import INK


def gain(pair, method, *, published=math.nan, measured=1.0, pooled=False, panel="", seeds=(), verdict=""):
    return GainRow(
        pair=pair,
        method=method,
        published=published,
        measured=measured,
        low=measured - 0.5,
        high=measured + 0.5,
        pooled=pooled,
        panel=panel,
        seeds=seeds,
        verdict=verdict,
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


def test_panels_of_other_baselines_are_kept_apart_and_go_on_in_further_files(tmp_path):
    rows = [gain(f"pair {i}", "measured", panel=f"Gain over baseline {i % 3}") for i in range(3 * PAGE)]
    found = by_panel(rows)
    assert list(found) == [f"Gain over baseline {i}" for i in range(3)]
    assert [len(group) for group in found.values()] == [PAGE] * 3
    comparison_figure(rows, tmp_path / "figure.png", title="A table")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure_2.png", "figure_3.png"]


def test_few_seeds_are_drawn_one_by_one_and_many_are_not(tmp_path):
    assert drawn_seeds(gain("a", "KD", seeds=(1.0, 2.0, 9.0))) == (1.0, 2.0, 9.0)
    assert drawn_seeds(gain("a", "KD", seeds=tuple(range(FEW_SEEDS + 1)))) == ()
    assert max(span(gain("a", "KD", measured=2.0, seeds=(1.0, 9.0)))[1:]) == 9.0


def test_a_verdict_stands_at_the_right_edge(tmp_path):
    for name, verdict in (("with.png", "holds"), ("without.png", "")):
        comparison_figure([gain("a → b", "KD", verdict=verdict)], tmp_path / name, title="A table")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_all_maps_have_one_scale(tmp_path):
    """Equal gains have equal colours, whatever else is on the map."""
    pixels = []
    for name, other in (("a.png", 1.0), ("b.png", 90.0)):
        gain_map([cell("a → b", "KD", 5.0), cell("a → b", "X", other)], tmp_path / name, title="A table")
        with Image.open(tmp_path / name) as image:
            pixels.append(np.asarray(image.convert("RGB")).reshape(-1, 3))
    five = np.round(255 * np.array(mpl.colormaps[MAP]((5.0 / MAP_LIMIT / MAP_RANGE + 1) / 2)[:3]))
    assert all((np.abs(found - five).max(axis=1) <= 1).sum() > 1000 for found in pixels)


@pytest.mark.parametrize("rows", [[], [gain("a", "KD", measured=math.nan)], ROWS[:1]])
def test_empty_unmeasured_and_single_rows_draw_without_complaint(tmp_path, rows):
    comparison_figure(rows, tmp_path / "figure.png", title="A table")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_many_methods_and_pairs_draw_without_complaint(tmp_path):
    rows = [gain(f"pair {i}", f"method {j}", measured=float(j)) for i in range(3) for j in range(9)]
    comparison_figure(rows, tmp_path / "figure.png", title="A title " * 20, caption="Words " * 60)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == 1440


def test_a_legend_of_long_names_takes_more_lines_and_stays_within_the_figure(tmp_path):
    names = [f"stand-in for the data set number {i}" for i in range(4)]
    assert legend_columns(legend_handles(names, True)) == 1
    assert legend_columns(legend_handles(["KD", "ScaleKD"], True)) == 3
    assert legend_columns([]) == 1
    comparison_figure([gain("a → b", name) for name in names], tmp_path / "figure.png", title="A table")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.convert("L").crop((image.width - 12, 0, image.width, image.height)).getextrema() == (255, 255)


def test_settings_of_the_caller_stay_as_they_were(tmp_path):
    with mpl.rc_context({"font.size": 3.0}):
        comparison_figure(ROWS, tmp_path / "figure.png", title="A table")
        assert mpl.rcParams["font.size"] == 3.0


def rank(method, mean, *, own=False, half=0.5):
    return RankRow(method=method, rank=mean, low=mean - half, high=mean + half, own=own)


def cell(pair, method, gain=1.0, *, sure=False, refused=False):
    return MapCell(pair=pair, method=method, gain=gain, sure=sure, refused=refused)


def test_the_best_rank_stands_on_top_whatever_the_order(tmp_path):
    rows = [rank("KD", 2.0), rank("HCD", 1.0, own=True), rank("From scratch", 3.0)]
    ranking_figure(rows, tmp_path / "a.png", title="A table", caption="Five seeds.")
    ranking_figure(rows[::-1], tmp_path / "b.png", title="A table", caption="Five seeds.")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    "rows", [[], [rank("KD", 1.0, half=math.nan)], [rank(f"method {i}", float(i)) for i in range(1, 15)]]
)
def test_rankings_of_any_size_draw_without_complaint(tmp_path, rows):
    ranking_figure(rows, tmp_path / "figure.png", title="A title " * 20, caption="Words " * 60)
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == 1440


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [cell("a → b", "KD", math.nan)],
        [cell("a → b", "KD", math.nan, refused=True), cell("a → b", "HCD", -0.04)],
        [cell(f"ConvNeXt-T → model {i}", f"method {j}", (i - 3) * 5.0) for i in range(12) for j in range(10)],
        [cell(f"ConvNeXt-T → model {i}", f"method {j}", (i - 3) * 5.0) for i in range(12) for j in range(23)],
    ],
)
def test_maps_of_any_size_draw_without_complaint_and_equal_bytes(tmp_path, cells):
    for name in ("a.png", "b.png"):
        gain_map(cells, tmp_path / name, title="A table", caption="Five seeds.")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_more_methods_than_fit_side_by_side_stand_below_each_other(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "draw_map_cell", lambda axes, x, y, cell, size: drawn.append((x, y, cell["method"])))
    for count in (charts.MOST_ACROSS, charts.MOST_ACROSS + 1):
        drawn.clear()
        cells = [cell(pair, f"method {j}") for pair in ("a → b", "c → d") for j in range(count)]
        gain_map(cells, tmp_path / "a.png", title="A table")
        turned = count > charts.MOST_ACROSS
        assert [(y, x) if turned else (x, y) for x, y, _ in drawn] == [(j, i) for i in range(2) for j in range(count)]


def test_a_refused_cell_looks_other_than_one_that_was_not_run(tmp_path):
    for name, refused in (("refused.png", True), ("empty.png", False)):
        gain_map([cell("a → b", "KD"), cell("a → b", "X", math.nan, refused=refused)], tmp_path / name, title="A table")
    assert (tmp_path / "refused.png").read_bytes() != (tmp_path / "empty.png").read_bytes()


def test_every_number_of_a_map_can_be_read_on_its_colour():
    colours = mpl.colormaps[MAP]((np.array([-1.0, 0.0, 1.0]) / MAP_RANGE + 1) / 2)[:, :3]
    assert min(contrast(colour, mpl.colors.to_rgb(INK)) for colour in colours) > 4.5  # WCAG 2.1, level AA


def test_dots_and_shares_are_equal_byte_for_byte(tmp_path):
    for name in ("one", "two"):
        panels = {"NMI of attention": {"A": Dot(0.5, 0.4, 0.6), "B": Dot(-0.2)}, "share": {"A": Dot(1.0)}}
        dots_figure(["A", "B"], panels, tmp_path / f"{name}_dots", title="T", caption="S.")
        shares = {"kd": {"task": 0.7, "kd": 0.3}}
        kinds = {"task": "labels", "kd": "logits"}
        shares_figure(shares, tmp_path / f"{name}_shares", kinds=kinds, label="share", title="T", caption="S.")
    for kind in ("dots.png", "dots.svg", "shares.png", "shares.svg"):
        assert (tmp_path / f"one_{kind}").read_bytes() == (tmp_path / f"two_{kind}").read_bytes()


def test_a_sweep_draws_every_point_and_is_equal_byte_for_byte(tmp_path):
    def point(at, measured, published=math.nan):
        return SweepPoint(
            at=at, published=published, measured=measured, low=measured - 1, high=measured + 1, seeds=(measured,) * 3
        )

    series = {"DeiT": [point(0.5, 1.0), point(0.1, -1.0, 2.0)], "CLIP": [point(0.1, 0.0)]}
    texts = {"name": "alpha", "unit": "points", "title": "T", "caption": "S."}
    for name in ("a.png", "b.png"):
        sweep_figure(series, tmp_path / name, **texts)
    sweep_figure({**series, "CLIP": [point(0.1, 5.0)]}, tmp_path / "c.png", **texts)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != (tmp_path / "c.png").read_bytes()


def contrast(a, b):
    """Ratio of relative luminances, as WCAG defines it."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_long_names_of_pairs_leave_room_for_the_map(tmp_path):
    names = [f"Teacher → Student, half of the labels, long, strong augmentation {i}" for i in range(3)]
    cells = [
        {"pair": name, "method": method, "gain": 1.0, "sure": False, "refused": False}
        for name in names
        for method in ("KD", "FitNet", "ScaleKD")
    ]
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(charts, "draw_map_cell", lambda axes, *_: drawn.append(axes.get_position().width))
        charts.gain_map(cells, tmp_path / "map.png", title="Gains")
    assert min(drawn) > 0.4


@pytest.mark.parametrize("methods", [3, 9, 11, charts.MOST_ACROSS])
def test_numbers_of_a_map_stay_inside_their_cells(tmp_path, monkeypatch, methods):
    """The widest number there is, in bold, beside pairs with long names."""
    shares, drawn = [], charts.draw_map_cell

    def measured(axes, *rest):
        drawn(axes, *rest)
        width = axes.texts[-1].get_window_extent(axes.figure.canvas.get_renderer()).width
        shares.append(width * methods / axes.bbox.width)

    monkeypatch.setattr(charts, "draw_map_cell", measured)
    pairs = ("ConvNeXt-T → DeiT-T (other data)", "Swin-T → ResNet-18")
    cells = [cell(pair, f"method {j}", -6.8, sure=True) for pair in pairs for j in range(methods)]
    gain_map(cells, tmp_path / "map.png", title="Gains")
    assert max(shares) < 1.0


@pytest.mark.parametrize("last", ["H-GKD, labelled teacher", "KD"])
def test_names_above_a_map_stay_on_the_page(tmp_path, monkeypatch, last):
    """Tilted ones, of which the last or one before it leans out furthest."""
    drawn, ends, cell_drawn, key_drawn = [], [], charts.draw_map_cell, charts.draw_key

    def noted(axes, *rest):
        drawn.append(axes)
        cell_drawn(axes, *rest)

    def measured(axes):
        key_drawn(axes)
        labels = drawn[0].get_xticklabels()
        ends.extend(label.get_window_extent().x1 / axes.figure.bbox.x1 for label in labels)

    monkeypatch.setattr(charts, "draw_map_cell", noted)
    monkeypatch.setattr(charts, "draw_key", measured)
    names = [
        "KD",
        "DKD",
        "FitNet",
        "CRD",
        "OFA",
        "ScaleKD",
        "FitNet, MAE teacher",
        "Masked pixels",
        "H-GKD of MAE",
        last,
    ]
    gain_map([cell("ViT → CNN", name, 1.0) for name in names], tmp_path / "map.png", title="Gains")
    assert 0.8 < max(ends) <= 1.0


def test_what_a_set_up_cannot_tell_is_in_italics_and_never_bold(tmp_path, monkeypatch):
    said, drawn = {}, charts.draw_map_cell

    def looked_at(axes, x, y, cell, size):
        drawn(axes, x, y, cell, size)
        text = axes.texts[-1]
        said[cell["method"]] = (text.get_fontstyle(), text.get_fontweight())

    monkeypatch.setattr(charts, "draw_map_cell", looked_at)
    blind = {**cell("a → b", "X", 3.0, sure=True), "untold": True}
    gain_map([cell("a → b", "KD", 5.0, sure=True), blind], tmp_path / "map.png", title="A table")
    assert said == {"KD": ("normal", "bold"), "X": ("italic", "normal")}
