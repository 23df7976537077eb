"""The page as a reader meets it: opened in a real Chromium, wide and on a phone, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.report.build import build_report
from rl.report.figures import BEHAVIOUR
from rl.rundir import RunDir
from tests.rl.report.test_panels import contrast

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path: install Debian's package"),
]

SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
STEP_PANELS = {"Reward", "Length", "Entropy", "Status", "Mismatch KL", "Approximate KL", "Throughput", "Gradient norm"}
OTHER_PANELS = {"Accuracy against training compute", "Accuracy against thinking compute", "difficulty 1"}

BOXES = """() => [...document.querySelectorAll('[data-panel]')].map(panel => {
  const drawn = panel.querySelector('svg') ?? panel, box = drawn.getBoundingClientRect();
  return {name: panel.dataset.panel, width: box.width, height: box.height,
          marks: drawn.querySelectorAll('path, text, td').length, text: panel.textContent.trim()};
})"""
COLOURS = """() => {
  const hex = text => '#' + text.match(/\\d+/g).slice(0, 3).map(n => (+n).toString(16).padStart(2, '0')).join('');
  const style = selector => getComputedStyle(document.querySelector(selector));
  return {ground: hex(style('body').backgroundColor), ink: hex(style('body').color),
          muted: hex(style('.note').color), tick: hex(style('figure svg text').fill)};
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page with everything that went wrong in it."""

    def __init__(self, browser: Any, path: Path, size: str = "desktop", scheme: str = "light") -> None:
        self.page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())


@pytest.fixture(scope="module")
def report(finished_page: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(finished_page)
    return path


@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_quiet_complete_and_fits(browser: Any, report: Path, size: str) -> None:
    opened = Opened(browser, report, size)
    boxes = opened.page.evaluate(BOXES)
    names = {box["name"] for box in boxes}
    assert names >= STEP_PANELS | OTHER_PANELS | {panel.title for panel in BEHAVIOUR} | {"traits", "controls"}
    assert len(names) == len(boxes)
    for box in boxes:
        assert box["width"] > 100, box
        assert box["height"] > 60, box
        assert box["marks"] > 2, box
        assert box["text"], box
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert opened.complaints == []
    assert opened.requests == [report.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader(browser: Any, report: Path, scheme: str) -> None:
    colours = Opened(browser, report, scheme=scheme).page.evaluate(COLOURS)
    ground_is_dark = contrast(colours["ground"], "#000000") < contrast(colours["ground"], "#ffffff")
    assert ground_is_dark == (scheme == "dark")
    assert contrast(colours["ink"], colours["ground"]) > 10
    assert contrast(colours["muted"], colours["ground"]) > 4.5
    assert contrast(colours["tick"], colours["ground"]) > 4.5


def test_every_link_of_the_contents_leads_somewhere(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    targets = page.eval_on_selector_all("nav a", "links => links.map(link => link.getAttribute('href'))")
    assert len(targets) == 9
    assert all(page.query_selector(target) for target in targets)


def test_folded_parts_open_without_a_script(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    table = page.locator("#evaluations table")
    assert not table.is_visible()
    page.locator("#evaluations summary").click()
    assert table.is_visible()


def test_hostile_text_does_nothing(browser: Any, hostile: RunDir, tmp_path: Path) -> None:
    path = build_report(hostile.path, tmp_path / "report.html")
    opened = Opened(browser, path)
    assert opened.page.title() == "letters \u00b7 Ponder"
    assert opened.page.locator("#chains script, #chains img").count() == 0
    assert "<script>document.title = 'run'</script>" in opened.page.locator("pre.answer").first.inner_text()
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]
