"""The dashboard in a real Chromium: what people see, and what they can do with a keyboard, in the dark and on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from ai_worker.store.models import Models
from ai_worker.store.tokens import Scope
from tests import sample
from tests.browsing import Visit, chromium
from tests.dashboard import Dashboard, serving
from tests.marks import ON_ONE_SERVER
from tests.servers import TestDatabase, TestServer

pytestmark = ON_ONE_SERVER

PAGES = ("/", "/ui/tasks", "/ui/models", "/ui/workers", "/ui/schedules")
NOTHING = "/ui/nothing"
PHONE = {"width": 360, "height": 740}
HIDDEN = "[...document.querySelectorAll('.stack')].filter(({parentElement: e}) => e.scrollWidth > e.clientWidth).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def filled(server: TestServer) -> Iterator[Dashboard]:
    """A sample day in a database of its own: its keys begin with 1."""
    with server.new_database() as name:
        database = TestDatabase(server, name)
        database.migrate()
        with server.connect(name) as connection:
            sample.fill(connection)
        with serving(database.url) as dashboard:
            yield dashboard


def test_log_in_and_watch_the_overview_change(browser: Any, filled: Dashboard) -> None:
    visit = Visit(browser, filled, anonymous=True)
    page = visit.page
    page.goto("/ui/workers")
    page.get_by_label("Token").fill(filled.token(Scope.READ))
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Workers").wait_for()
    page.keyboard.press("g")
    page.keyboard.press("o")
    page.locator("#live[data-state=on]").wait_for()
    page.get_by_text("The same as a table").click()
    filled.database.transaction(lambda tx: tx.raw("UPDATE worker SET host = 'worker-9.example' WHERE pid = 811"))
    page.locator("#workers").get_by_text("worker-9.example").wait_for()
    assert page.locator("#charts details[open]").count() == 1  # what was opened stays open
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("heading", name="Log in").wait_for()
    visit.close()


def test_keys_move_through_lists_show_help_and_change_the_theme(browser: Any, filled: Dashboard) -> None:
    visit = Visit(browser, filled)
    page = visit.open("/")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "/ui/tasks/3"
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "/ui/tasks/3"
    page.keyboard.press("?")
    page.get_by_role("dialog", name="Keys").wait_for()
    page.keyboard.press("Escape")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.keyboard.press("t")
    assert page.evaluate(colour) != light, "the first press is seen"
    visit.close()


def test_pages_keep_nobody_out_fit_a_phone_and_ask_for_nothing_elsewhere(browser: Any, filled: Dashboard) -> None:
    """Each page at 360 pixels: by all rules in the light, and again for its colours in the dark."""
    model = next(each.name for each in Models(filled.database).all() if each.is_active)
    answer = filled.browser(Scope.RUN).post("/ui/submit", data={"pasted": "Dzisiaj poszedlem.\nZrobic kawe.", "model": model})
    preview = answer.headers["location"]
    visit = Visit(browser, filled, Scope.ADMIN, color_scheme="light", viewport=PHONE)
    for path in (*PAGES, "/ui/tasks/1", "/ui/items/1", "/ui/submit", preview, NOTHING):
        visit.open(path)
        look(visit, path)
    assert len(visit.errors) == 1  # the browser tells of the page that is not there
    visit.errors.clear()
    visit.close()
    anonymous = Visit(browser, filled, anonymous=True, color_scheme="light", viewport=PHONE)
    anonymous.open("/ui/login")
    look(anonymous, "/ui/login")
    anonymous.close()


def look(visit: Visit, path: str) -> None:
    """Nothing on the page as it is may be wrong."""
    assert visit.overflow() == 0, path
    assert visit.page.evaluate(HIDDEN) == 0, f"{path}: of these tables nothing is cut off on a phone"
    assert visit.barriers() == [], path
    visit.page.emulate_media(color_scheme="dark")
    assert visit.barriers("color-contrast") == [], path
    visit.page.emulate_media(color_scheme="light")


def test_pages_are_useful_without_a_script(browser: Any, filled: Dashboard) -> None:
    visit = Visit(browser, filled, java_script_enabled=False)
    visit.page.goto("/?span=day")
    assert re.search(r"\d+ of [\d,]+", visit.page.locator("#under-way").inner_text())
    visit.page.get_by_role("link", name="Last hour").click()
    visit.page.get_by_role("heading", name="Throughput").wait_for()
    visit.close()
