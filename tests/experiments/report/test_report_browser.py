"""The report in a real browser: Chromium, no network, by keyboard, in both colour schemes, on paper and on 320 px.

Skipped where there is no Chromium or no Playwright: `apt-get install chromium`, `pip install '.[dev]'`.
"""

import csv
import io
import shutil

import pytest

from experiments.records.store import Store
from experiments.report.build import build

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: pip install '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]

TABLE, CELL = "t/scalekd_table3.html", "c/scalekd_table3/swin_l-resnet50.html"
KINDS = (
    "index.html",
    TABLE,
    CELL,
    "claims.html",
    "m/scalekd.html",
    "teachers.html",
    "figures.html",
    "compare.html",
    "about.html",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table of gains, one with pictures, and a figure; from committed records alone."""
    found = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HKD_RUNS", str(found / "runs"))
        patch.setenv("HKD_RESULTS", str(found / "results"))
        build(found / "pages", Store(found / "runs"), tables=["scalekd_table3", "scalekd_fig5"], profile="laptop")
    return found / "pages"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser, folder):
    """Opens a page of the report; fails at the end if anything but files was asked for, or a script failed."""
    contexts, complaints = [], []

    def opened(file, **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        context.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort()
        )
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
        )
        page.goto(f"{folder.as_uri()}/{file}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def shown(page, selector="#cells-top1 tbody tr"):
    """Texts of the lines that can be seen."""
    return [line.inner_text() for line in page.locator(selector).all() if line.is_visible()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("file", KINDS)
def test_axe_finds_nothing_to_complain_of(visit, file, scheme):
    page = visit(file, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found] == []


@pytest.mark.parametrize("file", KINDS)
def test_a_page_of_320_px_does_not_scroll_sideways(visit, file):
    page = visit(file, viewport={"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_a_table_is_sorted_by_keyboard_and_the_address_keeps_it(visit):
    page = visit(TABLE)
    gain = page.locator("#cells-top1 thead th").nth(4)
    gain.locator("button").focus()
    page.keyboard.press("Enter")
    assert gain.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert gain.get_attribute("aria-sort") == "descending"
    values = page.eval_on_selector_all("#cells-top1 tbody tr", "rows => rows.map(row => row.cells[4].dataset.v)")
    numbers = [float(value) for value in values if value]
    assert numbers == sorted(numbers, reverse=True)
    assert values == [value for value in values if value] + [value for value in values if not value]
    page.reload()
    assert (
        page.eval_on_selector_all("#cells-top1 tbody tr", "rows => rows.map(row => row.cells[4].dataset.v)") == values
    )
    assert page.locator("#cells-top1 thead th").nth(4).get_attribute("aria-sort") == "descending"


def test_a_table_is_filtered_by_keyboard_and_the_address_keeps_it(visit):
    page = visit(TABLE)
    whole = shown(page)
    assert len(whole) == 33
    page.locator("select[name=method]").focus()
    page.keyboard.type("Sc")
    filtered = shown(page)
    assert len(filtered) == 11
    assert all("ScaleKD" in line for line in filtered)
    assert "11 of 33 lines" in page.locator("form[data-for=cells-top1] output").inner_text()
    page.reload()
    assert shown(page) == filtered
    page.locator("select[name=method]").select_option("")
    assert shown(page) == whole


def test_the_address_of_a_cell_leads_to_it(visit):
    page = visit(f"{TABLE}#eva_l14-vit_b14.scalekd..top1")
    target = page.locator(":target")
    assert target.get_attribute("id") == "eva_l14-vit_b14.scalekd..top1"
    box = target.bounding_box()
    assert 0 <= box["y"] <= 900
    target.locator("a").click()
    assert page.url.endswith("c/scalekd_table3/eva_l14-vit_b14.html#scalekd..top1")


@pytest.mark.parametrize("how", ["focus", "hover"])
def test_focus_and_hover_show_the_interval(visit, how):
    page = visit(TABLE)
    link = page.locator("[id='swin_l-resnet50.scalekd..top1'] a")
    if how == "focus":
        page.locator("[id='swin_l-resnet50.kd..top1'] a").focus()
        page.keyboard.press("Tab")
    else:
        link.hover()
    box = link.locator(".tip").bounding_box()
    assert box["width"] > 300
    assert "87.90 [85.62, 90.18], 5 seeds" in link.locator(".tip").inner_text()
    assert "official repo" in link.locator(".tip").inner_text()


def test_what_is_copied_is_what_the_csv_says(visit, folder):
    page = visit(TABLE, permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as CSV").click()
    page.wait_for_function("document.querySelector('output').value.includes('copied')")
    copied = list(csv.DictReader(io.StringIO(page.evaluate("navigator.clipboard.readText()"))))
    written = list(csv.DictReader((folder / "t/scalekd_table3.csv").read_text().splitlines()))
    names = {
        "measured": "measured",
        "measured low": "ci_low",
        "measured high": "ci_high",
        "published": "published",
        "gain": "judged_gain",
    }
    assert len(copied) == len(written) == 33
    for ours, theirs in zip(copied, written, strict=True):
        for name, column in names.items():
            assert ours[name] == theirs[column] == "" or float(ours[name]) == float(theirs[column])
    page.get_by_role("button", name="Copy as Markdown").click()
    page.wait_for_function("document.querySelector('output').value.includes('Markdown')")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert len(lines) == 35
    assert len({line.count("|") for line in lines}) == 1
    page.get_by_role("button", name="Copy as LaTeX").click()
    page.wait_for_function("document.querySelector('output').value.includes('LaTeX')")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("\\begin{tabular}")
    assert "swin\\_" not in text or "&" in text


def test_without_script_all_can_be_read(visit):
    page = visit(TABLE, java_script_enabled=False)
    assert page.locator("#cells-top1 tbody tr").count() == 33
    assert page.locator("form.tools").first.is_hidden()
    assert page.locator("th button").count() == 0


def test_print_shows_all_lines_and_opens_details(visit):
    page = visit(TABLE)
    page.locator("select[name=verdict]").select_option("baseline")
    assert len(shown(page)) < 33
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(shown(page)) == 33
    assert all(each.evaluate("each => each.open") for each in page.locator("details").all())
    assert page.locator("details li").first.is_visible()
    assert page.locator("nav").is_hidden()
    assert page.locator("thead").first.evaluate("head => getComputedStyle(head).display") == "table-header-group"


def test_the_first_stop_of_the_keyboard_skips_to_the_content(visit):
    page = visit("index.html")
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.inner_text() == "To the content"
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.wait_for_url("**#main")
