"""A person's way through the dashboard, in a real browser: submit, watch, review by keys, retry; readable by everybody."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest

from ai_worker.store.tokens import Scope
from tests.conftest import Sql
from tests.dashboard import Dashboard
from tests.integration.worker_runs import Run, add_model, add_task
from tests.marks import ON_ONE_SERVER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [ON_ONE_SERVER, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

TABLE = "id,text\n1,Dzisiaj poszedlem do sklepu.\n2,Zrobic kawe.\n3,To jest dobre.\n4,<img src=x onerror=alert(1)> zolw\n"
HOSTILE = '</td><script>window.hacked = 1</script>"><img src=x onerror="window.hacked = 2"> \u202eabc\u2066 \x01\x1b[31m'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(chromium: Any, dashboard: Dashboard) -> Iterator[Any]:
    """A page of a browser that has logged in as one who may do everything; nothing may be complained of."""
    context = chromium.new_context(base_url=dashboard.url, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto("/ui/tasks")
    page.get_by_label("Token").fill(dashboard.token(Scope.ADMIN))
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Tasks", exact=True).wait_for()
    yield page
    context.close()
    assert complaints == []


def barriers(page: Any) -> list[str]:
    """What axe-core finds that is serious or worse."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in {"serious", "critical"}]


def test_from_a_file_to_reviewed_results(page: Any, sql: Sql, database_url: str) -> None:
    add_model(sql, None, "offline", "korektor")
    page.keyboard.press("g")
    page.keyboard.press("n")
    page.get_by_role("heading", name="Submit a task").wait_for()
    page.get_by_label("A file").set_input_files({"name": "wiersze.csv", "mimeType": "text/csv", "buffer": TABLE.encode()})
    page.get_by_text("More: format").click()
    page.get_by_label("Column with your key").fill("id")
    page.get_by_role("button", name="Check and preview").click()
    page.get_by_role("heading", name="is ready").wait_for()
    assert page.get_by_text("Dzisiaj poszedlem do sklepu.").count() >= 1
    page.get_by_role("button", name="Start").click()
    page.get_by_text("No worker is running").wait_for()

    # It finishes before one's eyes, without a reload.
    page.evaluate("window.same = true")
    worker = Thread(target=Run, args=(database_url,))
    worker.start()
    page.locator("#status", has_text="completed").wait_for()
    page.get_by_text("4 of 4 · 100.0 %").wait_for()
    worker.join(30)
    assert page.evaluate("window.same"), "it was not loaded anew"

    # Reviewed by keys alone.
    first = sql("SELECT MIN(id_task_item) AS id FROM task_item")[0]["id"]

    def at(number: int) -> None:
        page.get_by_role("heading", name=f"Item {first + number - 1}", exact=True).wait_for()

    page.keyboard.press("v")
    page.locator("ins", has_text="poszedłem").wait_for()
    assert barriers(page) == []
    page.keyboard.press("a")
    page.get_by_text("accepted.").wait_for()
    page.locator("ins", has_text="Zrobić").wait_for()
    page.keyboard.press("e")
    own = page.get_by_label("Your text")
    own.wait_for()
    own.fill("Zrobić\nkawę!")
    page.keyboard.press("Control+Enter")
    at(3)
    with page.expect_navigation():
        page.keyboard.press("k")
    at(3)  # nothing before it waits
    page.keyboard.press("r")
    at(4)
    page.keyboard.press("u")
    at(3)
    page.get_by_text("The review is taken back").wait_for()
    page.keyboard.press("n")
    at(4)
    page.keyboard.press("a")
    at(3)  # from the start: it waits again
    page.keyboard.press("r")
    page.get_by_text("Nothing more waits for review").wait_for()
    rows = sql("SELECT review_status_id AS r, text_reviewed AS t FROM task_item ORDER BY id_task_item")
    assert [(row["r"], row["t"]) for row in rows] == [(1, None), (1, "Zrobić\nkawę!"), (2, None), (1, None)]


def test_a_failed_group_is_retried(page: Any, sql: Sql, database_url: str) -> None:
    id_task = add_task(sql, add_model(sql, None, "echo", "korektor"), [f"tekst {number}" for number in range(6)])
    error = "UPDATE task_item SET status_id = 3, attempt = 1, finished_at = NOW(6), error_message = %s, error_kind"
    sql(f"{error} = 'bad_answer' WHERE id_task_item %% 2 = 0", ["nie JSON"])
    sql(f"{error} = 'content_refused' WHERE id_task_item %% 2 = 1", ["nie wolno"])
    sql("UPDATE task SET records_failed = 6, status_id = 3, started_at = NOW(6), finished_at = NOW(6)")
    page.goto(f"/ui/tasks/{id_task}")
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name="bad answer"))
    row.get_by_role("button", name="Retry").click()
    page.get_by_text("3 items brought back").wait_for()
    assert page.get_by_role("link", name="content refused").count() == 1
    assert page.get_by_role("link", name="bad answer").count() == 0
    worker = Thread(target=Run, args=(database_url,))  # the browser has this thread
    worker.start()
    worker.join(60)
    page.locator("#status", has_text="error").wait_for()
    page.get_by_text("6 of 6 · 100.0 %").wait_for()
    assert [row["status_id"] for row in sql("SELECT status_id FROM task_item ORDER BY error_kind")].count(1) == 3


def test_on_a_phone_with_hostile_texts(page: Any, sql: Sql) -> None:
    id_task = add_task(
        sql, add_model(sql, None, "echo", "korektor"), [HOSTILE, "długie" * 17_000, "אני הולך"], description=HOSTILE
    )
    sql(
        "UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = CONCAT(text_original, '!'),"
        " external_key = %s, context = %s", [HOSTILE[:190], json.dumps({HOSTILE[:40]: HOSTILE})]
    )  # fmt: skip
    sql("UPDATE task SET records_processed = 3, status_id = 1, started_at = NOW(6)")
    page.set_viewport_size({"width": 360, "height": 740})
    items = [row["id_task_item"] for row in sql("SELECT id_task_item FROM task_item ORDER BY 1")]
    for path in ("/ui/tasks", f"/ui/tasks/{id_task}", "/ui/submit", *(f"/ui/items/{each}" for each in items)):
        page.goto(path)
        page.locator("h1").wait_for()
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} is wider than the screen"
    assert barriers(page) == [], "also with such texts"
