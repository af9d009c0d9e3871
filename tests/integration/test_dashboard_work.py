"""The pages about tasks and items: what they show, what a form does, and who may send it."""

from __future__ import annotations

import html
import re
import time
from typing import Any

import httpx2
import pytest

from ai_worker.models import ItemStatus
from ai_worker.store import browsing
from ai_worker.store.tokens import Scope
from ai_worker.web.options import WebOptions
from ai_worker.web.pages import asking
from tests.conftest import Sql
from tests.dashboard import Dashboard, serving
from tests.integration.worker_runs import Run, add_model, add_task
from tests.marks import ON_ONE_SERVER

pytestmark = ON_ONE_SERVER

HOSTILE = '</td><script>window.hacked = 1</script>" onload="x" \u202e\u2066abc \x01\x1b[31m & ' + "długie" * 40


@pytest.fixture
def task(sql: Sql) -> int:
    """Three processed items, two failed ones for two reasons, and a pending one."""
    id_task = add_task(sql, add_model(sql, None, "echo", "korektor"), ["Dzis", HOSTILE, "ladnie", "a", "b", "c"])
    first = sql("SELECT MIN(id_task_item) AS id FROM task_item")[0]["id"]
    done = "UPDATE task_item SET attempt = 1, finished_at = NOW(6), status_id"
    sql(f"{done} = 1, text_corrected = CONCAT(text_original, '!') WHERE id_task_item < %s", [first + 3])
    sql(f"{done} = 3, error_kind = 'network', error_message = 'weg' WHERE id_task_item = %s", [first + 3])
    sql(f"{done} = 3, error_kind = 'bad_answer', error_message = %s WHERE id_task_item = %s", [HOSTILE, first + 4])
    sql("UPDATE task SET status_id = 1, started_at = NOW(6), records_processed = 3, records_failed = 2")
    return id_task


def items_of(sql: Sql) -> list[dict[str, Any]]:
    return sql("SELECT * FROM task_item ORDER BY id_task_item")


def place(answer: httpx2.Response) -> str:
    assert answer.status_code == 303, re.sub("<[^>]*>", "", answer.text)[-500:]
    address: str = answer.headers["location"]
    return address


def test_pages_show_what_is_there_and_no_text_does_anything(dashboard: Dashboard, task: int, sql: Sql) -> None:
    browser = dashboard.browser(Scope.ADMIN)
    item = items_of(sql)[1]["id_task_item"]
    failed = items_of(sql)[4]["id_task_item"]
    for path, shown in {
        "/ui/tasks": "Popraw tekst.",
        "/ui/tasks?text=popraw&status=in_progress&type=correction&model=korektor": f">{task}</a>",
        "/ui/tasks?text=nothing": "No task fits",
        f"/ui/tasks/{task}": "bad answer",
        f"/ui/tasks/{task}?status=error&kind=network": "weg",
        f"/ui/tasks/{task}?review=unreviewed&order=risk": "ladnie!",
        f"/ui/tasks/{task}?review=accepted": "No item fits",
        f"/ui/items/{item}": "<ins",
        f"/ui/items/{failed}": "bad answer",
        "/ui/submit": "Check and preview",
    }.items():
        answer = browser.get(path)
        assert answer.status_code == 200, path
        assert shown in answer.text, path
        assert "<script>window" not in answer.text
        seen = re.sub("<textarea.*?</textarea>", "", answer.text, flags=re.DOTALL)  # what is edited stays as it is
        assert "\x1b" not in seen, path
    assert html.escape(HOSTILE[:40]).replace("&quot;", "&#34;") in browser.get(f"/ui/items/{failed}").text
    assert "␛[31m" in browser.get(f"/ui/items/{item}").text
    assert browser.get(f"/ui/tasks/{task + 1000}").status_code == 404
    assert browser.get(f"/ui/items/{failed + 1000}").status_code == 404
    assert browser.get("/ui/tasks?status=nonsense").status_code == 422


def test_who_may_only_read_has_no_buttons_and_gets_nothing_done(dashboard: Dashboard, task: int, sql: Sql) -> None:
    reader, runner, reviewer = (dashboard.browser(scope) for scope in (Scope.READ, Scope.RUN, Scope.REVIEW))
    item = items_of(sql)[0]["id_task_item"]
    before = sql("SELECT * FROM task"), items_of(sql)
    for path in (f"/ui/tasks/{task}", f"/ui/items/{item}"):
        forms = re.findall(r'<form method="post" action="([^"]*)', reader.get(path).text)
        assert forms == ["/ui/logout"], path
    verbs = [f"/ui/tasks/{task}/{verb}" for verb in ("pause", "resume", "cancel", "retry", "priority")]
    verbs += [f"/ui/items/{item}/retry", "/ui/submit", f"/ui/submit/{task}/start", f"/ui/submit/{task}/discard"]
    reviews = [f"/ui/tasks/{task}/review", f"/ui/items/{item}/review"]
    form = {"verdict": "accept", "number": "5", "which": "all"}
    for path in (*verbs, *reviews):
        assert reader.post(path, data=form).status_code == 403, path
        assert dashboard.browser(anonymous=True).post(path, data=form).headers["location"].startswith("/ui/login"), path
    assert [reviewer.post(path, data=form).status_code for path in verbs] == [403] * len(verbs)
    assert [runner.post(path, data=form).status_code for path in reviews] == [403, 403]
    assert reader.get("/ui/submit").status_code == 403
    assert (sql("SELECT * FROM task"), items_of(sql)) == before


def test_a_person_handles_a_task(dashboard: Dashboard, task: int, sql: Sql) -> None:
    browser = dashboard.browser(Scope.RUN)

    def post(verb: str, **form: str) -> str:
        answer = browser.post(f"/ui/tasks/{task}/{verb}", data=form)
        assert browser.get(place(answer)).status_code == 200
        return place(answer)

    def status() -> int:
        found: int = sql("SELECT status_id FROM task")[0]["status_id"]
        return found

    post("pause")
    assert (status(), sql("SELECT status_reason FROM task")[0]["status_reason"]) == (4, "paused by a person")
    assert "goes on" in browser.get(post("resume")).text
    assert status() == 1
    post("priority", number="-7")
    assert sql("SELECT priority FROM task")[0]["priority"] == -7
    assert browser.post(f"/ui/tasks/{task}/priority", data={"number": "99999"}).status_code == 422
    assert "1 item brought back" in browser.get(post("retry", kind="network")).text
    assert [row["status_id"] for row in items_of(sql)] == [1, 1, 1, 0, 3, 0]
    post("retry")
    assert sql("SELECT records_failed FROM task")[0]["records_failed"] == 0
    post("cancel")
    assert status() == 5
    assert browser.post(f"/ui/tasks/{task}/retry").status_code == 422


def test_what_takes_long_goes_on_behind_the_page(
    dashboard: Dashboard, task: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE_SECONDS", 0.0)
    browser = dashboard.browser(Scope.RUN)
    assert "goes on by itself" in browser.get(place(browser.post(f"/ui/tasks/{task}/retry"))).text
    deadline = time.monotonic() + 10
    while any(row["status_id"] == 3 for row in items_of(sql)):
        assert time.monotonic() < deadline


def test_reviewing_goes_from_item_to_item(dashboard: Dashboard, task: int, sql: Sql) -> None:
    browser = dashboard.browser(Scope.REVIEW)
    first, second, third = (row["id_task_item"] for row in items_of(sql)[:3])
    assert place(browser.get(f"/ui/tasks/{task}/review")) == f"/ui/items/{first}"
    after = place(browser.post(f"/ui/items/{first}/review", data={"verdict": "accept", "note": " dobrze "}))
    after = place(browser.get(after))
    assert after.startswith(f"/ui/items/{second}?")
    page = browser.get(after).text
    assert f"Item {first} accepted." in page
    assert f'action="/ui/items/{first}/review"' in page, "undo is there"
    edited = browser.post(f"/ui/items/{second}/review", data={"verdict": "edit", "text": "moje\r\nsłowa"})
    assert place(browser.get(place(edited))).startswith(f"/ui/items/{third}?")
    assert place(browser.get(f"/ui/items/{third}/previous")) == f"/ui/items/{third}"
    last = browser.post(f"/ui/items/{third}/review", data={"verdict": "reject"})
    assert place(browser.get(place(last))) == f"/ui/tasks/{task}?did=reviewed"
    rows = items_of(sql)[:3]
    assert [row["review_status_id"] for row in rows] == [1, 1, 2]
    assert [row["text_reviewed"] for row in rows] == [None, "moje\nsłowa", None]
    assert {row["reviewed_by"] for row in rows} == {sql("SELECT name FROM api_token")[0]["name"]}
    assert place(browser.post(f"/ui/items/{first}/review", data={"verdict": "reset"})) == f"/ui/items/{first}?did=reset"
    assert items_of(sql)[0]["review_status_id"] == 0
    assert "dobrze" in browser.get(f"/ui/items/{first}").text, "every review is kept"
    assert place(browser.get(f"/ui/items/{third}/previous")) == f"/ui/items/{first}"
    assert browser.post(f"/ui/items/{first}/review", data={"verdict": "maybe"}).status_code == 422
    assert browser.post(f"/ui/items/{items_of(sql)[5]['id_task_item']}/review", data={"verdict": "accept"}).status_code == 422


def test_many_are_reviewed_at_once(dashboard: Dashboard, task: int, sql: Sql) -> None:
    browser = dashboard.browser(Scope.REVIEW)
    first, second, _ = (row["id_task_item"] for row in items_of(sql)[:3])
    address = f"/ui/tasks/{task}/review"
    assert browser.post(address, data={"verdict": "reject"}).status_code == 422
    chosen = {"verdict": "reject", "items": [str(first), str(second)], "back": "review=unreviewed&nonsense=1"}
    assert place(browser.post(address, data=chosen)) == f"/ui/tasks/{task}?review=unreviewed&did=reject&items=2"
    assert "did=accept&items=1" in place(browser.post(address, data={"verdict": "accept", "which": "all"}))
    assert [row["review_status_id"] for row in items_of(sql)] == [2, 2, 1, 0, 0, 0]


def test_the_overview_shows_tasks_that_wait_too(dashboard: Dashboard, task: int, sql: Sql) -> None:
    waiting = add_task(sql, sql("SELECT id_ai_model FROM task")[0]["id_ai_model"], ["Jutro"])
    page = dashboard.browser().get("/").text
    assert page.index(f'href="/ui/tasks/{task}"') < page.index(f'href="/ui/tasks/{waiting}"') < page.index("waits to begin")


def test_rows_are_submitted_in_two_steps(dashboard: Dashboard, sql: Sql, database_url: str) -> None:
    add_model(sql, None, "echo", "korektor")
    browser = dashboard.browser(Scope.RUN)
    form = {"key": "k1", "type": "correction", "model": "korektor", "description": "Popraw", "key_column": "id", "budget": "5"}
    table = {"file": ("wiersze.csv", "id,text\n7,Zażółć\n8,\n9,gęślą\n".encode(), "text/csv")}
    preview = place(browser.post("/ui/submit", data=form, files=table))
    id_task = int(re.findall(r"\d+", preview)[0])
    assert place(browser.post("/ui/submit", data=form, files=table)).split("?")[0] == preview.split("?")[0], "sent twice"
    (row,) = sql("SELECT * FROM task")
    assert (row["status_id"], row["description"], row["budget"]) == (4, "Popraw", 5)
    page = browser.get(preview).text
    assert "Zażółć" in page
    assert "cost, about" in page
    assert "1 row without text skipped" in page
    assert place(browser.get(f"/ui/tasks/{id_task}")) == f"/ui/submit/{id_task}", "until it is confirmed"
    assert Run(database_url).summary.processed == 0, "nobody works on it before"
    started = place(browser.post(f"/ui/submit/{id_task}/start"))
    assert "Started: the items wait for a worker." in browser.get(started).text
    assert Run(database_url).summary.processed == 2
    assert [row["external_key"] for row in items_of(sql)] == ["7", "9"]
    lines = browser.get(f"/ui/tasks/{id_task}/results.jsonl").text.splitlines()
    assert len(lines) == 2
    assert "Zażółć" in browser.get(f"/ui/tasks/{id_task}/results.csv?only=processed").text
    assert "gęślą" in browser.get(f"/ui/tasks/{id_task}/results.html").text
    assert browser.get(f"/ui/tasks/{id_task + 1000}/results.csv").status_code == 404


def test_a_submission_says_when_and_after_what_it_begins(dashboard: Dashboard, sql: Sql) -> None:
    first, *others = (add_model(sql, None, "echo", name) for name in ("korektor", "drugi", "trzeci"))
    before = add_task(sql, first, ["a"])
    sql("INSERT INTO task_group (name) VALUES ('noc')")
    group = sql("SELECT id_task_group FROM task_group")[0]["id_task_group"]
    form = {"pasted": "a", "model": "korektor", "fallback": "drugi", "fallback_2": "trzeci", "group": "noc", "after": str(before)}
    preview = place(dashboard.browser(Scope.RUN).post("/ui/submit", data={**form, "scheduled": "2040-01-31T04:00"}))
    id_task = int(re.findall(r"\d+", preview)[0])
    (row,) = sql("SELECT scheduled_at, id_task_group FROM task WHERE id_task = %s", [id_task])
    assert (str(row["scheduled_at"]), row["id_task_group"]) == ("2040-01-31 04:00:00", group)
    assert [row["after_id_task"] for row in sql("SELECT after_id_task FROM task_dependency")] == [before]
    assert [row["id_ai_model"] for row in sql("SELECT id_ai_model FROM task_fallback ORDER BY position")] == others


def test_pasted_rows_and_what_is_discarded(dashboard: Dashboard, sql: Sql) -> None:
    add_model(sql, None, "echo", "korektor")
    browser = dashboard.browser(Scope.RUN)
    form = {"pasted": "jeden\r\n\r\ndwa <b>\r\n", "type": "translation", "parameters": "target_language=en\r\n", "pack": "3"}
    preview = place(browser.post("/ui/submit", data=form)).split("?")[0]
    assert [row["text_original"] for row in items_of(sql)] == ["jeden", "dwa <b>"]
    assert sql("SELECT pack FROM task")[0]["pack"] == 3
    assert "dwa &lt;b&gt;" in browser.get(preview).text
    assert "Discarded" in browser.get(place(browser.post(f"{preview}/discard"))).text
    assert {row["status_id"] for row in items_of(sql)} == {ItemStatus.CANCELLED}


@pytest.mark.parametrize(
    ("form", "file", "said"),
    [
        ({}, None, "choose a file, or paste rows"),
        ({"pasted": "a"}, ("b.txt", b"b"), "not both"),
        ({}, ("wiersze.csv", b"id,text\n1,a,b\n"), "wiersze.csv, line 2: 3 fields where the header has 2"),
        ({}, ("wiersze.jsonl", b'{"text": "a"}\n{"text": 1}\n'), "wiersze.jsonl, line 2: the text must be a JSON string"),
        ({}, ("wiersze.txt", b"dobrze\nza\xbf\xf3\xb3\xe6\n"), "line 2: byte 0xbf at offset 9 is not utf-8"),
        ({}, ("wiersze.xlsx", b"PK"), "cannot tell the format"),
        ({"column": "brak"}, ("wiersze.csv", b"text\na\n"), "no column 'brak'"),
        ({"type": "brak", "pasted": "a"}, None, "unknown task type"),
        ({"model": "brak", "pasted": "a"}, None, "unknown model"),
        ({"parameters": "nonsense", "pasted": "a"}, None, "is not KEY=VALUE"),
        ({"type": "translation", "pasted": "a"}, None, "target_language"),
        ({"budget": "dużo", "pasted": "a"}, None, "no amount of US dollars"),
        ({"scheduled": "jutro", "pasted": "a"}, None, "is no moment"),
        ({"after": "7, b", "pasted": "a"}, None, "'b' is no task's number"),
        ({"after": "7", "pasted": "a"}, None, "there is no task 7"),
        ({"group": "brak", "pasted": "a"}, None, "brak"),
        ({"fallback": "korektor", "pasted": "a"}, None, "stands before it already"),
        ({"pack": "0", "pasted": "a"}, None, "no whole number from 1 to 100"),
        ({"lane": "batch", "pasted": "a"}, None, "takes no batches"),
        ({"queue": "a b", "pasted": "a"}, None, "cannot be a queue"),
        ({"encoding": "klingon"}, ("a.txt", b"a"), "unknown --encoding"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_submission_is_said(
    dashboard: Dashboard, sql: Sql, form: dict[str, str], file: tuple[str, bytes] | None, said: str
) -> None:
    add_model(sql, None, "echo", "korektor")
    files = None if file is None else {"file": file}
    answer = dashboard.browser(Scope.RUN).post("/ui/submit", data={"description": "zostaje <b>", **form}, files=files)
    assert answer.status_code == 422
    assert said in html.unescape(answer.text)
    assert "zostaje &lt;b&gt;" in answer.text, "what was written is there still"
    assert ("Choose the file" in answer.text) == (file is not None), "which browsers do not give back"
    assert not sql("SELECT id_task FROM task")


def test_an_upload_is_bounded(database_url: str, sql: Sql) -> None:
    add_model(sql, None, "echo", "korektor")
    with serving(database_url, WebOptions(upload_bytes=100_000, body_bytes=10_000)) as dashboard:
        browser = dashboard.browser(Scope.RUN)
        fitting = {"file": ("a.txt", b"a\n" * 20_000)}
        assert browser.post("/ui/submit", files=fitting).status_code == 303
        too_large = {"file": ("a.txt", b"a\n" * 100_000)}
        assert browser.post("/ui/submit", files=too_large).status_code == 413


def test_a_task_too_large_to_be_counted_is_counted_behind_the_page(
    dashboard: Dashboard, task: int, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browsing, "COUNTED", 2)
    monkeypatch.setattr(browsing, "COUNTED_OF_ONE", 2)
    for number in range(5):
        sql("INSERT INTO task_item (id_task, text_original) VALUES (%s, %s)", [task, str(number)])
    browser = dashboard.browser()
    assert "5 of more than 7" in browser.get(f"/ui/tasks/{task}").text
    deadline = time.monotonic() + 10
    while "5 of 11" not in browser.get(f"/ui/tasks/{task}").text:
        assert time.monotonic() < deadline
    assert "5 of 11" in browser.get("/ui/tasks").text


def test_pages_are_kept_up_to_date(dashboard: Dashboard, task: int, sql: Sql) -> None:
    browser = dashboard.browser()
    for page, topic in ((f"/ui/tasks/{task}", "task"), ("/ui/tasks", "tasks")):
        (live,) = re.findall(rf'data-live="{topic}\?([^"]*)"', browser.get(page).text)
        with browser.stream("GET", f"/ui/events/{topic}", params={"key": html.unescape(live)}) as stream:
            seen = ""
            for text in stream.iter_text():
                seen += text
                if "Popraw tekst." in seen or "bad answer" in seen:
                    break
        assert "hx-partial" in seen
