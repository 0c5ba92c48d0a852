"""Pages that follow from findings and committed records are what they follow from."""

import re
from pathlib import Path

import pytest

from experiments import places
from experiments.planning import schema
from experiments.results import pages
from experiments.results.overview import Summary
from hkd.errors import UserError

DOCUMENTS = pages.documents()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_committed_pages_are_current(path):
    assert path.read_text(encoding="utf-8") == DOCUMENTS[path], "write them again with `hkd docs`"


def test_a_page_of_a_paper_is_short_and_names_every_table_of_it():
    for path, text in DOCUMENTS.items():
        if not path.name.startswith("results-"):
            continue
        assert text.count("\n") <= 150
        paper = path.stem.removeprefix("results-")
        tables = [name for name in schema.table_ids() if schema.load_table(name).paper == paper]
        assert all(f"{name}`" in text for name in tables)


def test_every_picture_that_a_page_shows_is_there_and_stands_on_one_page():
    shown = [name for text in DOCUMENTS.values() for name in re.findall(r"\((?:docs/)?pictures/([^)]+)\)", text)]
    folder = places.repository() / "docs" / "pictures"
    assert all((folder / name).is_file() for name in shown)
    on_papers = [name for path, text in DOCUMENTS.items() if path.name != "README.md"
                 for name in re.findall(r"\(pictures/([^)]+)\)", text)]  # fmt: skip
    assert len(on_papers) == len(set(on_papers))


def test_a_comparison_that_two_tables_print_is_counted_once():
    one = Summary(verdicts={"holds": 2, "too noisy": 1}, runs=3, seconds=0.0, counted=0)
    again = {"holds": 1, "too noisy": 2}
    same = Summary(verdicts=again, again=again, runs=5, seconds=0.0, counted=0)
    tables = [schema.load_table(name) for name in ("hcd_cifar100", "hcd_cifar100_core", *pages.HEADLINE.values())]
    lines = list(pages.came_out(tables, {"hcd_cifar100": one, "hcd_cifar100_core": same}))
    assert lines[1].startswith("- **HCD** (2 hold, 1 too noisy): ")
    assert "1 of 3 verdicts are open" in lines[-1]


def test_the_first_result_and_the_first_command_come_early():
    lines = (places.repository() / "README.md").read_text(encoding="utf-8").splitlines()
    assert next(i for i, line in enumerate(lines) if line.startswith("- **ScaleKD**")) < 25
    assert next(i for i, line in enumerate(lines) if line.startswith("./run ")) < 25


def test_a_readme_without_a_place_for_them_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("# hkd\n")
    monkeypatch.setattr(places, "repository", lambda: Path(tmp_path))
    with pytest.raises(UserError, match="has no place for what came out"):
        pages.documents()


def test_pictures_of_a_drawing_stand_with_the_figure_that_draws_them():
    tables = [schema.load_table(name) for name in schema.table_ids()]
    endings = {
        Path(name).stem.removeprefix(table.id).strip("_").split("_")[0]
        for table in tables
        if table.kind != "figure"
        for name in pages.pictures(table.id)
    }
    assert endings <= {"", "comparison", "gains", "ranking", "photographs", "real"}
