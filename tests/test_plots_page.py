"""What `dvc plots show` writes: bars and lines drawn by the page itself, without a network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / ".dvc" / "page.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "google-chrome"))), None)
PLOTS = """
plots:
  - gains of t: {template: bar_horizontal, x: gain, y: {gains.csv: row}}
  - curves: {template: linear, x: epoch, y: {curves.tsv: [a_loss, b_loss]}}
  - layers: {template: by_model, x: layer, y: {layers.csv: distance}}
  - not there: {template: bar_horizontal, x: gain, y: {missing.csv: row}}
"""
FILES = {
    "dvc.yaml": PLOTS,
    "gains.csv": 'row,gain\n"Swin-L → ResNet, published",3.1\n"<b>measured</b>",-1.2\n',
    "curves.tsv": "epoch\ta_loss\tb_loss\n1\t3\t2\n2\t1.5\t1\n3\t1\t\n",
    "layers.csv": "model,layer,distance\nA,1,3\nA,2,4\nB,1,2\n",
}


def test_dvc_uses_our_page_which_asks_for_nothing_outside_itself():
    assert "html_template = page.html" in (ROOT / ".dvc" / "config").read_text()
    text = PAGE.read_text()
    assert text.count("{plot_divs}") == 1
    assert "{scripts}" not in text  # where DVC would put those that load Vega
    assert set(re.findall(r"https?://[^\"]+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # the name of SVG, not an address


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")
def test_every_kind_of_plot_is_drawn_offline_and_what_is_not_there_is_named(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    shutil.copy(PAGE, tmp_path / ".dvc")
    shutil.copytree(ROOT / ".dvc" / "plots", tmp_path / ".dvc" / "plots", dirs_exist_ok=True)
    with open(tmp_path / ".dvc" / "config", "a") as config:
        config.write("[plots]\n    html_template = page.html\n")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    subprocess.run([*dvc, "plots", "show"], cwd=tmp_path, check=True, capture_output=True)
    asked, wrong = [], []
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "dvc_plots" / "index.html").as_uri())
        headings = page.locator("h2").all_inner_texts()
        bars = page.locator("rect").count()
        lines = page.locator("path.line").count()
        text = page.locator("body").inner_text()
        bold = page.locator("svg b").count()
        browser.close()
    assert wrong == []
    assert all(url.startswith("file:") for url in asked)
    assert headings == ["gains of t", "curves", "layers"]
    assert (bars, lines) == (2, 4)  # two gains; two losses and two models
    assert bold == 0  # labels are text, never markup
    assert "Nothing to draw yet for 1 plots: not there." in text
