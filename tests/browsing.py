"""Chromium on the dashboard: for tests of what people see, and for the screenshots of the documentation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from ai_worker.store.tokens import Scope
from ai_worker.web.access import COOKIE
from tests.dashboard import Dashboard

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BARRIERS = {"serious", "critical"}


@contextmanager
def chromium() -> Iterator[Any]:
    """The installed Chromium. Without one the test is skipped, or in CI fails."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium found; `make prepare` installs one")
        pytest.skip("no Chromium found; `make prepare` installs one")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """A browser window on the dashboard that notes what went wrong, and what it asked for elsewhere."""

    def __init__(self, browser: Any, dashboard: Dashboard, *scopes: Scope, anonymous: bool = False, **options: Any) -> None:
        self.dashboard = dashboard
        self.context = browser.new_context(base_url=dashboard.url, **options)
        self.context.set_default_timeout(15_000)
        if not anonymous:
            self.context.add_cookies([{"name": COOKIE, "value": dashboard.cookie(*scopes), "url": dashboard.url}])
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self.page = self.context.new_page()
        self.page.on("console", lambda each: self.errors.append(each.text) if each.type in {"error", "warning"} else None)
        self.page.on("pageerror", lambda each: self.errors.append(str(each)))
        self.page.on("request", self._note)

    def _note(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"http", "https", "ws", "wss"} and not request.url.startswith(self.dashboard.url + "/"):
            self.strangers.append(request.url)

    def open(self, path: str) -> Any:
        """The page at a path, loaded, and live where it is a live one."""
        self.page.goto(path)
        if self.page.locator("body[data-live]").count():
            self.page.locator("#live[data-state=on]").wait_for()
        return self.page

    def barriers(self, *rules: str) -> list[str]:
        """What axe finds on the page as it is that keeps people out, by all of its rules or these."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
        found = axe.Axe().run(self.page, options=options).response["violations"]
        return [
            f"{each['id']} ({each['impact']}): {node['html'][:200]} {node['failureSummary']}"
            for each in found
            if each["impact"] in BARRIERS
            for node in each["nodes"]
        ]

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        wide: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return wide

    def close(self) -> None:
        """Closes the window; nothing may have gone wrong in it, and nothing may have been asked for elsewhere."""
        self.context.close()
        assert self.errors == [], self.errors
        assert self.strangers == [], self.strangers
