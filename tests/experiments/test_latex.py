"""A table as LaTeX: every line has its columns, every mark its note, nothing of a text is taken for a command."""

import re

import pytest

from experiments.results.compare import compare
from experiments.results.latex import checklist, escaped, latex, letters, signed


@pytest.fixture(scope="module")
def text(synthetic):
    plan = synthetic.plan(pairs=2)
    records = synthetic.records(plan)
    return latex(plan, records, compare(plan, records))


def columns(line):
    """Columns that a line takes, those that an entry spans counted."""
    spanned = sum(int(number) - 1 for number in re.findall(r"\\multicolumn\{(\d+)\}", line))
    return len(re.findall(r"(?<!\\)&", line)) + 1 + spanned


def test_every_line_has_as_many_columns_as_the_table(text):
    [layout] = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 2 + 2  # heads, and a line per pair
    assert {columns(line) for line in lines} == {len(layout)}


def test_intervals_stand_in_the_cells_and_remarks_below(text):
    assert re.search(r"& \$\+\$\d\.\d\d \$\\pm\$ \d\.\d\d", text)
    assert r"KD\tnote{a}" in text
    assert r"\item[a] not in the paper." in text
    assert all(
        rf"\item[{mark}]" in text for marks in re.findall(r"\\tnote\{([a-z,]+)\}", text) for mark in marks.split(",")
    )
    assert r"\item Digits stand for ImageNet-1K." in text


def test_the_checklist_tells_seeds_data_settings_and_compute(text):
    facts = text.split(r"\paragraph{Reproducibility}")[1]
    for fact in (r"\textbf{Seeds.} 5 per cell (0--4)", "content fingerprint feed", "epochs 40", "CPU min", "adamw"):
        assert fact in facts


def test_the_checklist_says_what_is_missing_and_that_one_seed_has_no_bars(synthetic):
    plan = synthetic.plan(pairs=2)
    records = synthetic.records(plan)
    lost = next(key for cell in plan.cells for key in cell.runs)
    facts = dict(checklist(plan, {key: record for key, record in records.items() if key != lost}))
    runs = {key for cell in plan.cells for key in cell.runs}
    assert f"1 of {len(runs)} runs are not reported" in facts["Seeds"]
    assert "all runs" not in facts["Seeds"]
    assert "95 %" in facts["Error bars"]
    single = synthetic.plan(pairs=2, seeds=1)
    assert dict(checklist(single, synthetic.records(single)))["Error bars"] == "None: there is one seed per cell."


def test_environments_are_closed(text):
    assert re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(re.findall(r"\\begin\{(\w+)\}", text)) == sorted(re.findall(r"\\end\{(\w+)\}", text))


def test_texts_are_no_commands():
    assert escaped(r"5 % of a_b & {x} \ ~ #1 $") == (r"5 \% of a\_b \& \{x\} \textbackslash{} \textasciitilde{} \#1 \$")
    assert signed("-0.50 [-1.20, +0.20]") == "$-$0.50 [$-$1.20, $+$0.20]"
    assert signed("ViT-S/16") == "ViT-S/16"
    assert [letters(number) for number in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]
