"""The form of a table that 80 columns hold."""

import io

import pytest
from rich.console import Console

from experiments.commands.narrow import narrow, number
from experiments.commands.printed import show_table
from experiments.planning.asked import planned
from experiments.records.store import Store
from experiments.reproduce import compared


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("runs"))
    return compared(planned("scalekd_table3", "laptop", shown_from=store), store)


def printed(done, width):
    screen = io.StringIO()
    show_table(done, Console(file=screen, width=width, force_terminal=True, color_system=None))
    return screen.getvalue()


def test_nothing_is_wider_than_the_terminal_or_cut(done):
    text = printed(done, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_every_cell_stands_with_its_gain_interval_and_verdict(done):
    lines = printed(done, 80).splitlines()
    for result in done.comparison.cells:
        if result.cell.baseline is None or not result.verdict:
            continue
        gain = result.shown_gain
        mean, low, high = (f"{value:+.1f}" for value in (gain.mean, gain.low, gain.high))
        assert any(f"{mean}" in line and f"[{low}, {high}]" in line and result.verdict in line for line in lines)


def test_the_verdicts_are_counted_before_the_first_row(done):
    text = printed(done, 80)
    for word, count in done.comparison.counts("verdict").items():
        assert f"{count} {word}" in text[: text.index("→")]


def test_a_wide_terminal_gets_the_whole_table(done):
    assert len(printed(done, 200)) > 2 * sum(len(str(part)) for part in narrow(done))


def test_no_value_is_no_text():
    assert number(float("nan"), "+") == ""
    assert number(-0.04, "+") == "-0.0"
