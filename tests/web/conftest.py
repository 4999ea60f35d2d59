"""A real browser, and a page of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from reviewed import BROWSER, FLAGS


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    opened.set_default_timeout(10_000)
    yield opened
    opened.close()
