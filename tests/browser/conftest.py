"""Pages in headless Chromium, the one of the system (Debian: `apt-get install chromium`); none is ever downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

REQUIRED = "SPAN_REQUIRE_BROWSER"
"""Environment variable: where it is set, a missing browser fails these tests instead of skipping them."""

AXE = Path(__file__).parent / "axe" / "axe.min.js"


def missing(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason}, and {REQUIRED} is set")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        missing("there is no Chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as driver:
        # the tests of CI run as root, where Chromium's own sandbox does not start; pages are ours
        browser = driver.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Any]]:
    """Opens a page; after the test: no error on its console, no dialog, no request to anywhere else."""
    complaints: list[str] = []
    contexts = []
    expected: list[str] = []

    def open_page(address: str, *, width: int = 1280, height: int = 860) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        origin = urlsplit(address)[:2]

        def complain_of_request(request: Any) -> None:
            if urlsplit(request.url)[:2] != origin and not request.url.startswith("data:"):
                complaints.append(f"request to {request.url[:200]}")

        def complain_of_dialog(dialog: Any) -> None:
            complaints.append(f"dialog {dialog.message}")
            dialog.dismiss()

        def complain_of_message(message: Any) -> None:
            if message.type in ("error", "warning") and not any(text in message.text for text in expected):
                complaints.append(f"{message.type}: {message.text}")

        page.on("request", complain_of_request)
        page.on("dialog", complain_of_dialog)
        page.on("console", complain_of_message)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        return page

    open_page.expected = expected  # texts on the console that a test provokes
    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def axe() -> Callable[[Any], list[str]]:
    """What axe-core finds against WCAG 2.2 AA in a page, contrast included."""

    def examine(page: Any) -> list[str]:
        page.evaluate(AXE.read_text(encoding="utf-8"))
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = page.evaluate("tags => axe.run({runOnly: tags})", tags)
        assert len(found["passes"]) > 10
        return [f"{one['id']}: {node['html'][:200]}" for one in found["violations"] for node in one["nodes"]]

    return examine
