"""The report in a real browser: nothing is fetched, nothing runs, nothing sticks out of a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from evidence import classified, everything, measured

from luthier.release.evidence import Evidence
from luthier.release.report import report_html

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


BESIDE_AXES = """
[...document.querySelectorAll('.axisrow svg')].map(axis => {
  const plot = axis.closest('tr').previousElementSibling.querySelector('svg');
  return [plot, axis].map(svg => svg.getBoundingClientRect()).map(box => [box.left, box.width]);
})
"""


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("made", [measured(), classified()], ids=["measured", "classified"])
def test_an_axis_lies_under_the_plots_that_it_measures(
    browser: object, tmp_path: Path, width: int, made: Evidence
) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_html(made), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})  # type: ignore[attr-defined]
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    axes = page.evaluate(BESIDE_AXES)
    assert axes and all(plot == pytest.approx(axis, abs=0.5) for plot, axis in axes)
    page.close()


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("made", everything().values(), ids=list(everything()))
def test_the_page_is_whole(browser: object, tmp_path: Path, width: int, scheme: str, made: Evidence) -> None:
    path = tmp_path / "report.html"
    path.write_text(report_html(made), encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[attr-defined]
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.goto(path.as_uri())
    assert page.locator("h1").first.is_visible() and page.locator("svg").first.is_visible()
    assert page.locator("body").inner_text().find(made.verdict.outcome) >= 0
    assert asked == [path.as_uri()] and said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
