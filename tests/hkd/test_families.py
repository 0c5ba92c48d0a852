"""Every architecture of timm trains or is refused in a sentence, as student and as teacher (docs/families.md)."""

import re

import pytest
from timm.models import _registry

from tests.hkd.families import BROKEN, EVERYWHERE, MEMBERS, PAGE, ROLES, Row, architectures, page, survey

TELLING = ("cait", "hiera", "levit", "mobilevit", "regnet", "swin_transformer_v2", "volo", "xcit")
LONG = [pytest.mark.slow, pytest.mark.long]
MARKS = {"regnet": [], "levit": [pytest.mark.slow], "swin_transformer_v2": [pytest.mark.slow]}  # the quickest


def check(row: Row) -> None:
    """Nothing but training and sentences."""
    for where, sentence in row.cells.items():
        assert not sentence.startswith(BROKEN), (row.family, where, sentence)
        assert not sentence or (sentence.endswith(".") and "\n" not in sentence), (row.family, where, sentence)


@pytest.mark.parametrize("family", [pytest.param(name, marks=MARKS.get(name, LONG)) for name in TELLING])
def test_a_telling_family_serves_in_both_roles(family):
    row = survey(family)
    check(row)
    assert row.serves
    assert not row.cells["student", "ofa"]
    assert not row.cells["teacher", "ofa"]
    assert re.search(r"takes tokens: take one of the family|last map is 1x1", row.cells["teacher", "scalekd"])


def test_every_file_of_timm_is_listed_by_a_model_of_its_own():
    assert set(MEMBERS) <= set(architectures())
    for family, (name, _) in MEMBERS.items():
        assert name in _registry._module_to_models[family], family


def test_the_page_says_what_it_lists():
    text = PAGE.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| timm file")][1:]
    numbers = {int(number) for row in rows for number in re.findall(r"\[(\d+)\]", row)}
    listed = {int(number) for number in re.findall(r"^(\d+)\. ", text, flags=re.M)}
    assert numbers == listed
    marks = [[cell.strip() for cell in row.strip("|").split("|")][3:] for row in rows]
    places = [
        ROLES.index(role) * 6 + ("kd", "fitnet", "ofa", "hcd", "scalekd", "crd").index(method)
        for role in ROLES
        for method in EVERYWHERE
    ]
    serving = sum(all(cells[place] == "+" for place in places) for cells in marks)
    assert f"**{serving} of {len(rows)}** serve kd, fitnet, hcd and crd in both roles" in text
    assert serving >= 0.9 * len(rows)


@pytest.mark.slow
@pytest.mark.long
def test_every_family_of_timm_trains_or_is_refused_and_the_page_says_so():
    rows = [survey(family) for family in architectures()]
    for row in rows:
        check(row)
    assert sum(row.serves for row in rows) >= 0.9 * len(rows)
    assert PAGE.read_text() == page(rows)
