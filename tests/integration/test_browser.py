"""Reports in a real browser: wide and narrow, light and dark. Chromium is Playwright's own or one of this machine."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

from inril_ray.report import write_run_report, write_sweep_report, write_verdict_report
from tests.unit.test_report import write_run, write_verdict
from tests.unit.test_sweep import confirmed

INSTALLED = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
SCREENSHOTS = "INRIL_SCREENSHOTS"
"""Environment variable: a directory where the screenshots are kept, to be looked at."""

FAINT = """
() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
  const over = (colour, under) => {
    canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = canvas.getImageData(0, 0, 1, 1).data;
    return `rgb(${r}, ${g}, ${b})`;
  };
  const luminance = colour => colour.match(/[0-9]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    if (!element) return 'white';
    return over(getComputedStyle(element).backgroundColor, behind(element.parentElement));
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const words = [...element.childNodes].filter(n => n.nodeType === 3 && n.data.trim()).map(n => n.data.trim());
    if (!words.length || element.closest('style, title')) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = over(element.closest('svg') ? style.fill : style.color, ground);
    const [light, dark] = [luminance(ink), luminance(ground)].sort((a, b) => b - a);
    const contrast = (light + 0.05) / (dark + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(1)}: ${words.join(' ').slice(0, 60)}`);
  }
  return found;
}
"""
"""Texts whose contrast is below the 4.5 of WCAG 2.2, level AA."""

CUT_OFF = """
() => [...document.querySelectorAll('main h1, main h2, main p, main figure, main svg, main summary, main .legend')]
  .filter(e => { const b = e.getBoundingClientRect(); return b.width && (b.left < 0 || b.right > innerWidth + 1); })
  .map(e => e.outerHTML.slice(0, 80))
"""
"""What sticks out of the window. Tables and code may be wider, in boxes that scroll."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        try:
            # Chromium's own sandbox is not for root, which is what containers and CI run as.
            browser = playwright.chromium.launch(executable_path=INSTALLED, chromium_sandbox=os.geteuid() != 0)
        except Error as error:
            if INSTALLED is None:
                pytest.skip(f"There is no browser; playwright install chromium gets one. {error}")
            raise
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("reports")
    sweep = root / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps(confirmed(sweep)))
    write_verdict(root / "verdict")
    return {
        "sweep": write_sweep_report(sweep),
        "verdict": write_verdict_report(root / "verdict"),
        "run": write_run_report(write_run(root / "run")),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380])
@pytest.mark.parametrize("kind", ["sweep", "verdict", "run"])
def test_reports_are_readable(browser: Browser, reports: dict[str, Path], kind: str, width: int, scheme: Any) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(reports[kind].as_uri())
        if SCREENSHOTS in os.environ:
            page.screenshot(path=f"{os.environ[SCREENSHOTS]}/{kind}-{width}-{scheme}.png", full_page=True)
        # Only now: an opened part must fit as well, but is not what a reader sees first.
        page.evaluate("() => document.querySelectorAll('details').forEach(part => part.open = true)")
        assert said == []
        assert [url for url in asked if not url.startswith("data:")] == [reports[kind].as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(CUT_OFF) == []
        assert page.evaluate(FAINT) == []
        drawn = page.evaluate("[...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().height)")
        assert drawn and min(drawn) > 60
    finally:
        page.close()


SIDEWAYS = """
() => [...document.querySelectorAll('.scroll')].filter(box => box.querySelector('.number')).map(box => {
  box.scrollLeft = box.scrollWidth;
  const name = box.querySelector('tbody th'), cells = box.querySelectorAll('tbody tr:first-child td');
  const edges = [name, cells[cells.length - 1]].map(e => e.getBoundingClientRect());
  return {wider: box.scrollWidth > box.clientWidth, focus: box.tabIndex, left: edges[0].left, width: edges[0].width,
          right: edges[1].right, over: edges[1].left < edges[0].left + edges[0].width - 1};
})
"""
"""Scrolls each table of numbers to its end, and measures where the name of its first row and its last cell then are."""


@pytest.mark.parametrize("kind", ["sweep", "verdict"])
def test_tables_scroll_on_narrow_windows_and_keep_their_names(
    browser: Browser, reports: dict[str, Path], kind: str
) -> None:
    page = browser.new_page(viewport={"width": 380, "height": 900})
    try:
        page.goto(reports[kind].as_uri())
        tables = page.evaluate(SIDEWAYS)
        assert len(tables) == 2
        for table in tables:
            assert table["focus"] == 0, "keys scroll it"
            assert 0 <= table["left"] < 20 and table["right"] <= 380, "the name is still there beside the last cell"
            assert table["width"] >= 100 and not table["over"]
        assert kind != "sweep" or all(table["wider"] for table in tables)
    finally:
        page.close()


def test_the_measures_of_readability_find_what_is_not(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<main style='background: #fff'><p style='width: 2000px; color: #000'>wide</p>"
        "<p style='color: #ccc'>faint</p><p style='color: #0002'>pale</p></main>"
    )
    page = browser.new_page(viewport={"width": 380, "height": 600})
    page.goto(bad.as_uri())
    assert ["wide" in text for text in page.evaluate(CUT_OFF)] == [True]
    assert [text.split(": ")[1] for text in page.evaluate(FAINT)] == ["faint", "pale"]
    page.close()
