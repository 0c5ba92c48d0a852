"""The report: pages say what records say, no link leads nowhere, and bad input is told on a page, not a traceback."""

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from scipy import stats as distributions

from experiments import places
from experiments.planning import schema
from experiments.planning.asked import planned
from experiments.planning.plan import plan as plan_of
from experiments.records.committed import path_of, read
from experiments.records.store import Record, Store
from experiments.report import facts, svg, words
from experiments.report.build import LISTED, build, keep_live
from experiments.report.checks import checked_claims
from experiments.report.gather import Entry, Findings, last_epoch
from experiments.report.pages import Site
from experiments.results import compare as comparing
from experiments.results.claims.check import Profile, check
from experiments.results.claims.documents import VERDICTS as OF_CLAIMS
from experiments.results.claims.documents import load_claims
from experiments.results.compare import compare
from experiments.results.judging import Judged
from experiments.results.moderated import Spread
from experiments.results.pages import HEADLINE
from experiments.results.render import costs
from experiments.results.stats import Estimate
from tests.experiments.report.reading import ids, page
from tests.experiments.report.reading import read as tree

ROOT = Path(__file__).parents[3]
TABLES = ["scalekd_table3", "hgkd_open_questions", "scalekd_fig5"]  # gains; reasons why not; a figure


@pytest.fixture(autouse=True)
def nothing_of_this_machine(tmp_path, monkeypatch):
    """No runs and results but those of a test."""
    monkeypatch.setenv("HKD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HKD_RESULTS", str(tmp_path / "results"))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Three tables from committed records alone."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HKD_RUNS", str(folder / "runs"))
        patch.setenv("HKD_RESULTS", str(folder / "results"))
        return build(folder / "pages", Store(folder / "runs"), tables=TABLES)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def synthetic_entry(synthetic, **changes):
    plan = synthetic.plan(pairs=2, seeds=3)
    records = synthetic.records(plan)
    comparison = compare(plan, records)
    facts = {"name": plan.table, "page": plan.table, "profile": plan.profile, "table": schema.load_table(plan.table)}
    facts |= {"plan": plan, "comparison": comparison, "records": records, "costs": costs(plan, records, comparison)}
    return Entry(**{**facts, **changes})


def site(entry, folder):
    return Site(Findings(main="laptop", profiles=("laptop",), entries=(entry,)), folder)


# -- what pages say ----------------------------------------------------------------------------------------------------


def test_numbers_of_a_table_are_those_of_its_csv(report):
    folder = report.start.parent
    lines = list(csv.DictReader((folder / "t/scalekd_table3.csv").read_text().splitlines()))
    assert len(lines) == 33
    rows = {
        row.attributes["id"]: row for row in page(folder / "t/scalekd_table3.html").all("tr") if "id" in row.attributes
    }
    for line in lines:
        row = rows[f"{line['row']}.{line['method']}.{line['variant']}.{line['metric']}"]
        shown = row.all("td")
        for cell, names in (
            (1, ("published",)),
            (2, ("measured", "ci_low", "ci_high")),
            (3, ("judged_gain", "judged_ci_low", "judged_ci_high")),
        ):
            for name, attribute in zip(names, ("data-v", "data-l", "data-h"), strict=False):
                written = line[name]
                there = shown[cell].attributes[attribute]
                assert (written == there == "") or float(written) == float(there), (line["row"], name)
        assert line["verdict"] in row.text
        assert line["n_seeds"] == shown[6].attributes["data-v"]


def test_the_csv_of_the_report_is_the_one_that_a_run_writes(report):
    found = pd.read_csv(report.start.parent / "t/scalekd_table3.csv", keep_default_na=False)
    entry = next(entry for entry in report.findings.entries if entry.name == "scalekd_table3")
    assert list(found["verdict"]) == [result.verdict for result in entry.cells]


def test_every_link_leads_to_a_page_and_to_an_id_on_it_and_ids_are_unique(report):
    folder = report.start.parent
    known = {path: ids(page(path)) for path in folder.rglob("*.html")}
    seen = 0
    for path, here in known.items():
        assert len(here) == len({*here}), path
        found = page(path)
        for link in found.all("a"):
            target, _, anchor = link.attributes["href"].partition("#")
            there = (path.parent / target).resolve() if target else path
            assert there.is_file(), (path.name, link.attributes["href"])
            assert not anchor or anchor in known[there], (path.name, link.attributes["href"])
            seen += 1
        for name, attribute in (("img", "src"), ("script", "src"), ("link", "href")):
            for each in found.all(name):
                target = each.attributes[attribute]
                assert target == "data:," or (path.parent / target).is_file()
    assert seen > 500


def test_every_page_is_reached_from_the_first_and_a_cell_is_two_clicks_from_its_runs(report):
    reached, left, folder = {report.start.resolve()}, [(report.start.resolve(), 0)], report.start.parent
    depth = {}
    while left:
        path, clicks = left.pop(0)
        depth[path] = clicks
        for link in page(path).all("a"):
            target = (path.parent / link.attributes["href"].partition("#")[0]).resolve()
            if target.suffix == ".html" and target not in reached:
                reached.add(target)
                left.append((target, clicks + 1))
    assert reached == {path.resolve() for path in folder.rglob("*.html")}
    assert max(clicks for path, clicks in depth.items() if "/c/" in path.as_posix()) <= 2


def test_the_first_page_says_papers_scale_and_what_held(report):
    text = page(report.start).text
    assert "Nothing here was run at a paper’s scale." in text
    assert "real digits, miniature models" in text
    assert re.search(r"\d+ holds, \d+ contradicted", text)
    assert "ScaleKD: Strong Vision Transformers Could Be Excellent Teachers" in text
    assert text.index("were measured") < text.index("Nothing here") < text.index("ScaleKD: Strong")


def test_the_first_page_says_of_a_paper_what_the_readme_says(report):
    (line,) = (each.text for each in page(report.start).all("li") if "Excellent Teachers" in each.text)
    sentence = schema.load_table(HEADLINE["scalekd"]).finding["laptop"]
    assert sentence in line
    assert sentence in (ROOT / "README.md").read_text()


def test_the_finding_stands_first_on_a_tables_page_and_only_at_its_profile(report):
    found = page(report.start.parent / "t/scalekd_table3.html")
    finding = schema.load_table("scalekd_table3").finding
    assert found.text.index(finding["laptop"]) < found.text.index("Nothing here was run")
    assert finding["cifar_subset"] not in found.text
    assert {name for entry in map(schema.load_table, schema.table_ids()) for name in entry.finding} <= {
        *schema.names("profiles")
    }


def test_a_cell_is_explained_in_words_and_its_runs_have_key_curves_and_configuration(report):
    found = page(report.start.parent / "c/scalekd_table3/swin_l-vit_s16.html")
    section = next(each for each in found.all("section") if each.attributes["id"] == "scalekd")
    assert re.search(r"includes 0; the published gain is \+4\.03: (undecided|too noisy), that is", section.text)
    keys = read(path_of(places.references(), "laptop", "scalekd_table3"))
    cell = next(c for c in keys.cells if (c.row, c.method) == ("swin_l-vit_s16", "scalekd"))
    assert all(key in section.text for key in cell.runs.values())
    assert any("loss over epochs" in each.attributes["aria-label"] for each in section.all("svg"))
    assert "method.name" in section.text
    assert "scalekd (Baseline: supervised)" in section.text


def own_runs(tmp_path, change, table="scalekd_table6"):
    """A store with the committed records of a table's runs as if this machine had made them, each changed or left out.

    Args:
        change: from a cell's row and method (none of a teacher's run) and a record to the new record, or None.
    """
    plan, store = planned(table, "laptop"), Store(tmp_path / "runs")
    kept = read(path_of(places.references(), "laptop", table))
    places_of = {key: (cell.row, cell.method) for cell in plan.cells for key in cell.runs}
    for key in kept.by_key:
        changed = change(places_of.get(key), replace(kept.record(key), committed=None))
        if changed is not None:
            store.write(changed)
    return store


def newer(record):
    return replace(
        record, environment={**record.environment, "versions": {**record.environment["versions"], "torch": "9.9"}}
    )


ROW, METHOD = "swin_t_top1", "scalekd"


@pytest.mark.slow
@pytest.mark.long
def test_own_runs_are_marked_and_take_precedence(tmp_path):
    def better(place, record):
        if place == (ROW, METHOD):
            return replace(record, metrics={name: value + 5 for name, value in record.metrics.items()})

    store = own_runs(tmp_path, better)
    build(tmp_path / "pages", store, tables=["scalekd_table6"], profile="laptop")
    found = page(tmp_path / "pages/t/scalekd_table6.html")
    assert re.search(r"\d+ of the 36 runs were made on this machine", found.text)
    (cell,) = [cell for cell in compared_cells() if cell.cell.id == (ROW, METHOD, "") and cell.cell.metric == "top1"]
    row = next(r for r in found.all("tr") if r.attributes.get("id") == f"{ROW}.{METHOD}..top1")
    assert "here" in row.text.split()
    assert float(row.all("td")[2].attributes["data-v"]) == pytest.approx(cell.measured.mean + 5, abs=1e-4)
    compared = page(tmp_path / "pages/compare.html")
    assert "Committed against this machine:" in compared.text
    changed = compared.all("table")[-1].all("tr")[1:]
    assert all(float(line.all("td")[3].attributes["data-v"]) == pytest.approx(5) for line in changed)


def compared_cells():
    from experiments.reproduce import compared

    plan = planned("scalekd_table6", "laptop")
    return compared(plan, Store(Path("nowhere"))).comparison.cells


@pytest.mark.slow
@pytest.mark.long
def test_two_sets_show_the_gain_that_changed_sides_and_the_versions(tmp_path):
    def worse(place, record):
        shift = -20 if place == (ROW, METHOD) else 0
        return newer(replace(record, metrics={name: value + shift for name, value in record.metrics.items()}))

    store = own_runs(tmp_path, worse)
    build(tmp_path / "pages", store, tables=["scalekd_table6"], profile="laptop")
    found = page(tmp_path / "pages/compare.html")
    assert re.search(r"12 cells are in both, 1 differ, and the gain of 1 changed its place beside 0", found.text)
    assert re.search(r"(above|includes) 0 → below 0", found.text)
    assert "torch: 2.15.0 → 9.9" in found.text


@pytest.mark.slow
@pytest.mark.long
def test_cells_that_mix_versions_say_so(tmp_path):
    store = own_runs(
        tmp_path, lambda place, record: newer(record) if place == (ROW, METHOD) and record.spec["seed"] == 0 else None
    )
    build(tmp_path / "pages", store, tables=["scalekd_table6"], profile="laptop")
    assert "mixes torch 2.15.0 and 9.9" in page(tmp_path / f"pages/c/scalekd_table6/{ROW}.html").text


# -- equal bytes, no torch, small --------------------------------------------------------------------------------------


def test_equal_records_give_equal_bytes_and_what_is_gone_is_removed(report, tmp_path):
    again = tmp_path / "again"
    (again / "t").mkdir(parents=True)
    (again / "t" / "old.html").write_text("of an earlier report")
    (again / "mine.html").write_text("somebody's own")
    (tmp_path / "outside.html").write_text("elsewhere")
    (again / LISTED).write_text("t/old.html\n../outside.html\n")
    build(again, Store(tmp_path / "runs"), tables=TABLES)
    assert (tmp_path / "outside.html").is_file()
    assert (again / "mine.html").is_file()
    (again / "mine.html").unlink()
    assert files(again) == files(report.start.parent)


@pytest.mark.slow
@pytest.mark.long
def test_pages_are_made_without_torch(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom experiments.records.store import Store\n"
        "from experiments.report.build import build\n"
        f"build(Path({str(tmp_path / 'pages')!r}), Store(Path({str(tmp_path)!r})), tables=['scalekd_table6'])\n"
        "print([name for name in ('torch', 'timm', 'sklearn.datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert "torch" not in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr


def test_pages_ask_for_nothing_and_the_script_is_small(report):
    script = (report.start.parent / "report.js").read_text()
    assert len(script.encode()) < 8192
    assert not re.search(r"\b(fetch|XMLHttpRequest|import|export|WebSocket)\b", script)
    assert "url(" not in (report.start.parent / "report.css").read_text()
    for path in report.start.parent.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r'(src|href)="(https?:)?//', text)
        assert 'type="module"' not in text
        assert "<style" not in text


def test_tables_have_captions_scopes_and_pictures_labels(report):
    for path in report.start.parent.rglob("*.html"):
        found = page(path)
        for table in found.all("table"):
            assert table.all("caption"), path
            assert all(head.attributes.get("scope") in ("row", "col") for head in table.all("th")), path
        assert all(each.attributes["role"] == "img" and each.attributes["aria-label"] for each in found.all("svg"))
        assert all(each.attributes["alt"] for each in found.all("img"))
        assert len(found.all("h1")) == 1
        assert "Nothing here was run at a paper’s scale." in found.text, path
        assert found.all("a")[0].attributes["href"] == "#main"


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_report_of_the_laptop_profile_is_small_and_quick(tmp_path):
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom experiments.records.store import Store\n"
        "from experiments.report.build import build\n"
        f"done = build(Path({str(tmp_path / 'pages')!r}), Store(Path({str(tmp_path / 'runs')!r})), profile='laptop')\n"
        "print(done.size, resource.getrusage(resource.RUSAGE_SELF).ru_utime)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr
    size, seconds = map(float, done.stdout.split())
    pages = tmp_path / "pages/t"
    cells = sum(len(each.read_text(encoding="utf-8").splitlines()) - 1 for each in pages.glob("*.csv"))
    assert size < 6e3 * cells
    assert seconds < 40  # twenty on a quiet machine; a busy one takes more seconds for the same work
    assert {each.stem for each in pages.glob("*.html") if "@" not in each.stem} == {*schema.table_ids()}


def test_claims_of_the_report_are_those_of_the_command(report):
    level = Profile("laptop", Store(Path("none")), Path("none"), places.references())
    wanted = [check(c, "scalekd", level) for c in load_claims("scalekd").claims if facts.subject(c) == "scalekd_table3"]
    assert len(wanted) > 5
    found, problems = checked_claims(report.findings)
    assert not problems
    here = [each for each in found if each.profile == "laptop"]
    assert max(len(each.rows) for each in here) == 11  # bought seeds, unequal over rows, leave no row out
    assert [each for each in here if facts.subject(each.claim) == "scalekd_table3"] == wanted
    assert {facts.subject(each.claim) for each in found} <= {*TABLES}


# -- words and pictures ------------------------------------------------------------------------------------------------


def test_every_word_that_results_use_has_a_mark_and_a_meaning():
    used = {*comparing.VERDICTS, *comparing.STATUSES, *OF_CLAIMS} - {""}
    assert used <= {*words.WORDS}
    assert all(word.mark and word.meaning and word.tone in words.TONES for word in words.WORDS.values())


@pytest.mark.slow
@pytest.mark.long
def test_a_word_of_another_version_is_shown_with_a_neutral_mark(synthetic, tmp_path):
    entry = synthetic_entry(synthetic)
    cells = tuple(replace(result, verdict="brand new") if result.verdict else result for result in entry.cells)
    entry = replace(entry, comparison=replace(entry.comparison, cells=cells))
    found = site(entry, tmp_path)
    text = tree(found.text(found.table(entry))).text
    assert "• brand new 2" in text
    assert words.in_order({"brand new": 2, "holds": 1}) == {"holds": 1, "brand new": 2}


def test_a_strip_has_zero_in_its_middle_and_an_arrow_where_the_axis_ends():
    drawn = str(svg.strip(5, -5, 20, limit=10, tone="good", published=-10, label="x"))
    assert 'd="M85 1v18"' in drawn  # 170 px wide
    assert 'cx="124.5"' in drawn  # half of 79 px to the right
    assert 'd="M45.5 10H164"' in drawn  # from the left half to the edge
    assert drawn.count("l5 4 -5 4") == 1
    assert 'class="p" d="M1 10l5-5' in drawn


def test_an_axis_ends_at_a_round_number_beyond_all_values():
    assert [svg.symmetric([value]) for value in (0.2, 1.2, 7.3, 18, 61)] == [1, 1.5, 8, 20, 80]
    assert svg.symmetric([0.013], least=0.001) == 0.015
    assert svg.symmetric([math.nan]) == 1


def test_a_stacked_bar_has_shares_of_its_counts():
    drawn = str(svg.bar({"undecided": 1, "direction holds": 3}))
    assert re.findall(r'class="f (\w+)" x="([\d.]*)" width="(\d+)"', drawn) == [
        ("good", "0", "119"),
        ("open", "120", "39"),
    ]
    assert 'aria-label="direction holds 3, undecided 1"' in drawn


def test_a_curve_keeps_its_ends_and_at_most_so_many_points():
    drawn = str(svg.curves("loss", {0: [(epoch, 100.0 - epoch) for epoch in range(1, 101)]}))
    start, steps = re.search(r'class="c" d="M(\d+ \d+)l([^"]*)"', drawn).groups()
    numbers = [int(x) for x in re.findall(r"-?\d+", steps)]
    assert start == "4 18"
    assert len(numbers) == 2 * (svg.POINTS - 1)
    assert sum(numbers[::2]) == 292
    assert sum(numbers[1::2]) == 94
    assert "seed 0 ends at 0" in drawn


def test_how_many_more_seeds_would_exclude_zero(synthetic):
    """With the spread that judges the cell, whose degrees of freedom grow by one a seed."""
    result = next(r for r in synthetic_entry(synthetic).cells if r.verdict)
    variance, df, n = 4.0, 7.5, 4

    def judged(mean):
        half = distributions.t.ppf(0.975, df) * math.sqrt(variance / n)
        estimate = Estimate(mean=mean, low=mean - half, high=mean + half, n=n)
        return replace(result, judged=Judged(estimate=estimate, spread=Spread(variance=variance, df=df, own=False)))

    def reach(more):
        return distributions.t.ppf(0.975, df + more) * math.sqrt(variance / (n + more))

    more = int(re.search(r"about (\d+) more", facts.more_seeds(judged(1.0)))[1])
    assert reach(more) < 1.0 <= reach(more - 1)
    assert facts.more_seeds(judged(9.0)) == ""
    assert "not even" in facts.more_seeds(judged(0.01))


def test_configurations_differ_where_they_do():
    ours, theirs = (
        {"method": {"name": "kd", "options": {"tau": 4.0}}, "seed": 0},
        {"method": {"name": "supervised"}, "seed": 1},
    )
    found = facts.different(facts.flat(ours), facts.flat({**theirs, "seed": 0}))
    assert found == [("method.name", "kd", "supervised"), ("method.options.tau", "4.0", "–")]
    assert facts.flow({"b": [1, None, True], "a": {}}) == "{a: {}, b: [1, null, true]}"


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_markup_in_labels_reasons_and_sources_is_text(synthetic, tmp_path):
    evil = "<script>alert('x')</script>\"'>&<b"
    entry = synthetic_entry(synthetic)
    cells = [
        replace(
            result,
            cell=replace(result.cell, label=evil, row_label=(evil, evil)),
            reasons=(evil,),
            source=evil,
            marks=(evil,),
            verdict=evil,
        )
        for result in entry.cells
    ]
    records = {key: replace(record, reason=evil, committed=evil) for key, record in entry.records.items()}
    plan = replace(entry.plan, title=evil, here=evil, captions=(evil,))
    entry = replace(entry, comparison=replace(entry.comparison, cells=tuple(cells)), records=records, plan=plan)
    found = site(entry, tmp_path)
    for each in found.pages():
        text = found.text(each)
        tree(text)
        assert "<script>alert" not in text, each.file
        assert "<b" not in re.sub(r"<(body|br|button)\b", "", text), each.file
    assert "&lt;script&gt;" in found.text(found.table(entry))


def test_without_any_record_the_pages_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "references", lambda: tmp_path / "nowhere")
    done = build(
        tmp_path / "pages", Store(tmp_path / "runs"), tables=["scalekd_table3", "scalekd_fig5"], profile="laptop"
    )
    assert "Nothing was measured at profile laptop yet" in page(done.start).text
    assert "Nothing of it was measured" in page(tmp_path / "pages/t/scalekd_table3.html").text
    assert "not run" in page(tmp_path / "pages/c/scalekd_table3/swin_l-resnet50.html").text


@pytest.mark.slow
@pytest.mark.long
def test_records_of_a_table_and_a_profile_that_are_gone_are_named(tmp_path, monkeypatch):
    references = tmp_path / "reference"
    shutil.copytree(places.references() / "laptop", references / "laptop")
    shutil.copy(references / "laptop/scalekd_table6.json.xz", references / "laptop/scalekd_table99.json.xz")
    (references / "yesteryear").mkdir()
    monkeypatch.setattr(places, "references", lambda: references)
    done = build(tmp_path / "pages", Store(tmp_path / "runs"), tables=["scalekd_table6"], profile="laptop")
    text = page(done.start).text
    assert "Committed records of scalekd_table99 at profile laptop are not shown: there is no such table" in text
    assert "profile 'yesteryear'" in text


def test_runs_of_other_code_in_the_store_are_counted(tmp_path):
    store = Store(tmp_path / "runs")
    for key in ("feed", "beef"):
        store.write(Record(key=key, label="old", status="done", spec={}, metrics={"top1": 50.0}))
    entry = Entry(name="x", page="x", profile="laptop", plan=plan_of("scalekd_table6", "laptop"))
    from experiments.report.gather import astray

    found = astray(store, ["laptop"], [entry], None)
    assert any(line.startswith("2 records of this machine are not shown") for line in found)


def test_a_damaged_file_of_records_and_a_damaged_record_are_told_on_their_page(tmp_path, monkeypatch):
    references = tmp_path / "reference"
    (references / "laptop").mkdir(parents=True)
    (references / "laptop/scalekd_table6.json.xz").write_bytes(b"not a file of records")
    key = next(iter(plan_of("scalekd_table1", "laptop").runs))
    (tmp_path / "runs" / key).mkdir(parents=True)
    (tmp_path / "runs" / key / "record.json").write_text("{}")
    monkeypatch.setattr(places, "references", lambda: references)
    done = build(
        tmp_path / "pages", Store(tmp_path / "runs"), tables=["scalekd_table1", "scalekd_table6"], profile="laptop"
    )
    text = page(done.start.parent / "t/scalekd_table6.html").text
    assert "This page is not whole." in text
    assert "scalekd_table6.json.xz is no file of committed records" in text
    assert "is not a record of a run" in page(done.start.parent / "t/scalekd_table1.html").text
    assert "no file of committed records" in page(done.start).text


@pytest.mark.slow
@pytest.mark.long
def test_a_broken_picture_is_named_and_a_good_one_is_shown(tmp_path):
    drawn = tmp_path / "results/laptop/scalekd_fig5"
    drawn.mkdir(parents=True)
    (drawn / "spectra.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (drawn / "shares.png").write_bytes(b"")
    Image.new("RGB", (2000, 100), "red").save(drawn / "whole.png")
    build(tmp_path / "pages", Store(tmp_path / "runs"), tables=["scalekd_fig5"], profile="laptop")
    found = page(tmp_path / "pages/figures.html")
    assert "The picture spectra.png cannot be read" in found.text
    assert "The picture shares.png cannot be read" in found.text
    (shown,) = found.all("img")
    with Image.open(tmp_path / "pages" / shown.attributes["src"]) as picture:
        assert f"{picture.width}" == shown.attributes["width"] == "960"
        assert picture.mode == "P"


def test_an_unknown_profile_is_one_sentence(tmp_path):
    from hkd.errors import UserError

    with pytest.raises(UserError, match="laptop"):
        build(tmp_path / "pages", Store(tmp_path / "runs"), profile="labtop")


# -- while runs go on --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_pages_follow_runs_that_begin_and_end(tmp_path, monkeypatch):
    store = Store(tmp_path / "runs")
    cell = next(cell for cell in planned("scalekd_table6", "laptop").cells if cell.id == (ROW, METHOD, ""))
    key, place = cell.runs[0], f"c/scalekd_table6/{cell.row}.html"
    kept = read(path_of(places.references(), "laptop", "scalekd_table6")).record(key)
    folder, told = tmp_path / "pages", []
    done = build(folder, store, tables=["scalekd_table6", "scalekd_table1"], profile="laptop", live=1)
    assert '<meta http-equiv="refresh" content="1">' in (folder / "t/scalekd_table6.html").read_text()
    before = files(folder)
    happens = iter(
        [
            lambda: None,
            lambda: store.write(replace(kept, committed=None, metrics=dict.fromkeys(kept.metrics, 12.34))),
            lambda: None,
            lambda: (store.folder(key) / "record.json").write_text("{}"),
        ]
    )
    monkeypatch.setattr("time.sleep", lambda seconds: next(happens)())  # between two looks
    keep_live(folder, store, done, 1, tell=told.append, rounds=1)
    assert told == []
    assert files(folder) == before
    found = keep_live(folder, store, done, 1, tell=told.append, rounds=2)
    assert told == [["scalekd_table6"]]
    assert "12.34" in page(folder / place).text
    assert "measured here" in page(folder / place).text
    changed = {name for name, content in files(folder).items() if before[name] != content}
    assert {"index.html", "t/scalekd_table6.html", place} <= changed
    assert not any("scalekd_table1" in name for name in changed)
    keep_live(folder, store, replace(done, findings=found), 1, tell=told.append, rounds=1)
    assert "is not a record of a run" in page(folder / "t/scalekd_table6.html").text


def test_a_run_under_way_says_its_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "references", lambda: tmp_path / "nowhere")
    store, cell = Store(tmp_path / "runs"), planned("scalekd_table6", "laptop").cells[0]
    store.folder(cell.runs[0]).mkdir(parents=True)
    path = store.folder(cell.runs[0]) / "curves.jsonl"
    path.write_text('{"epoch": 1, "loss": 2.0}\n{"epoch": 2, "loss": 1.5}\n{"epoch": 3, "lo')
    assert last_epoch(path) == 2
    build(tmp_path / "pages", store, tables=["scalekd_table6"], profile="laptop")
    row = tmp_path / f"pages/c/scalekd_table6/{cell.row}.html"
    assert re.search(r"under way epoch 2", page(row).text)
    assert "loss over epochs: seed 0 ends at 1.5" in row.read_text()
    assert "1 run has begun and not ended yet." in page(tmp_path / "pages/t/scalekd_table6.html").text


def test_json_of_a_record_is_never_taken_for_a_curve(tmp_path):
    (tmp_path / "curves.jsonl").write_text(json.dumps({"loss": 1}) + "\n[1]\n")
    assert last_epoch(tmp_path / "curves.jsonl") == 0
