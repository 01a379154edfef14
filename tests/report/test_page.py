"""The page: one file, well formed, that a browser shows whole on a phone."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_inputs import made_up

from kronos_qlib.report import contents
from kronos_qlib.report.page import NO_BACKTEST, NO_PATHS, render

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "img", "br", "hr", "link", "input"}
SECTIONS = [
    "In short", "Return above the benchmark, after cost", "Drawdown", "Rank IC over time", "Return by score",
    "Turnover", "Worst days", "Controls that must fail", "Calibration of the forecast paths",
]  # fmt: skip
MEASURE = """<script>window.addEventListener("load", () => {
  const images = [...document.images];
  document.documentElement.dataset.shown = images.filter(one => one.complete && one.naturalWidth > 0).length;
  document.documentElement.dataset.images = images.length;
  document.documentElement.dataset.wide = document.documentElement.scrollWidth;
  document.documentElement.dataset.window = window.innerWidth;
  document.documentElement.dataset.cut = [...document.querySelectorAll(".wide")]
    .filter(one => one.scrollWidth > one.clientWidth).length;
})</script>"""


class Checker(HTMLParser):
    """Collects tags, attributes and text, and notes what is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return render(made_up())


def test_it_is_well_formed_and_has_every_section(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert (checker.wrong, checker.open) == ([], [])
    assert checker.headings == SECTIONS
    assert "A made-up run &lt;&amp;&gt;" in page


def test_it_needs_no_other_file_and_no_script(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in checker.tags}
    sources = [attributes["src"] or "" for tag, attributes in checker.tags if tag == "img"]
    assert len(sources) == 7
    assert all(attributes.get("alt") for tag, attributes in checker.tags if tag == "img")
    for source in sources:
        picture = base64.b64decode(source.removeprefix("data:image/svg+xml;base64,"), validate=True)
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:|//)|url\(|@import""", page)
    assert len(page) < 2_000_000


def test_the_same_run_gives_the_same_page(page: str) -> None:
    assert render(made_up()) == page


def test_figures_on_the_page_are_those_of_the_tables(page: str) -> None:
    table = contents.headline(made_up())
    assert f"<td>{table.loc['Rank IC', 'value']:+.4f}</td>" in page
    assert f"<td>{table.loc['Rank IC', 't']:+.2f}</td>" in page
    assert f"<td>{table.loc['Net excess return a year', 'value']:+.2%}</td>" in page


def test_what_is_missing_is_said() -> None:
    short = render(made_up(backtest=None, pit=None))
    assert NO_PATHS in short
    assert NO_BACKTEST in short
    assert "Worst days" in short


def test_a_control_that_does_not_fail_is_shouted(monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    assert "DOES NOT FAIL" not in page
    monkeypatch.setattr(contents, "shuffle_within_date", lambda values, seed: values)
    assert "Believe no figure on this page" in render(made_up(strength=1.0))


def test_nothing_in_common_is_told() -> None:
    inputs = made_up()
    with pytest.raises(ValueError, match="share no day"):
        render(made_up(label=pd.Series(np.nan, inputs.label.index)))


@pytest.mark.parametrize("width", [360, 1000])
def test_a_real_browser_shows_it_whole(page: str, width: int, tmp_path: Path) -> None:
    """Every picture is decoded, nothing is wider than the screen; measured by the browser in a copy of the page."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser to open the page in: none of {', '.join(BROWSERS)} is installed")
    (tmp_path / "page.html").write_text(page.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    # headless Chromium has no window narrower than 500: a frame of the phone's width stands in for it
    frame = f'<!DOCTYPE html><iframe src="page.html" width="{width}" height="800" style="border:0"></iframe>'
    (tmp_path / "frame.html").write_text(
        frame
        + """<script>window.addEventListener("load", () => { document.body.textContent =
        JSON.stringify(document.querySelector("iframe").contentDocument.documentElement.dataset) })</script>"""
    )
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", "--virtual-time-budget=10000",
        "--dump-dom", (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = dict(re.findall(r'"(\w+)":"(\d+)"', done.stdout))
    assert found, f"the browser measured nothing: {done.stdout[-500:]} {done.stderr[-500:]}"
    assert (found["images"], found["shown"]) == ("7", "7")
    assert int(found["window"]) == width
    assert int(found["wide"]) <= width
    assert found["cut"] == "0"  # no table has to be scrolled sideways
