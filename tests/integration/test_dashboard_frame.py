"""What holds for every page: who gets in, what is refused, what browsers are told, what is live."""

from __future__ import annotations

import re
from collections.abc import Iterator
from threading import Thread

import httpx2
import pytest

from ai_worker.store.tokens import SESSION_SECONDS, Scope, Tokens
from ai_worker.web.access import COOKIE
from ai_worker.web.pages import live as live_module
from ai_worker.web.pages.rendering import STATIC, static
from tests.conftest import Sql
from tests.dashboard import Dashboard
from tests.marks import ON_ONE_SERVER

pytestmark = ON_ONE_SERVER

PAGES = ("/", "/ui/models", "/ui/workers", "/ui/schedules")


# ----- who gets in


@pytest.mark.parametrize("path", PAGES)
def test_nobody_sees_a_page_without_logging_in(dashboard: Dashboard, path: str) -> None:
    answer = dashboard.browser(anonymous=True).get(path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/ui/login?next={path}")


def test_a_token_opens_a_session_and_logging_out_ends_it_everywhere(dashboard: Dashboard, sql: Sql) -> None:
    browser = dashboard.browser(anonymous=True)
    form = {"token": f" {dashboard.token()}\n", "next": "/ui/models?a=b"}
    answer = browser.post("/ui/login", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/ui/models?a=b")
    cookie = answer.headers["set-cookie"].lower()
    assert all(part in cookie for part in ("httponly", "samesite=strict", f"max-age={SESSION_SECONDS}", "path=/"))
    assert "secure" not in cookie  # over plain HTTP, the browser would not send it back
    assert browser.get("/").status_code == 200
    (row,) = sql("SELECT session_hash FROM web_session")
    assert browser.cookies[COOKIE].encode() not in row["session_hash"]
    secret = browser.cookies[COOKIE]
    assert browser.post("/ui/logout").headers["location"] == "/ui/login"
    assert not sql("SELECT session_hash FROM web_session")
    assert dashboard.browser(session=secret).get("/").status_code == 303


def test_a_wrong_token_opens_nothing_and_is_not_shown_again(dashboard: Dashboard) -> None:
    answer = dashboard.browser(anonymous=True).post("/ui/login", data={"token": "aiw_guessed", "next": "/"})
    assert answer.status_code == 401
    assert "not valid" in answer.text
    assert "guessed" not in answer.text
    assert "set-cookie" not in answer.headers


def test_a_revoked_token_ends_its_sessions(dashboard: Dashboard) -> None:
    browser = dashboard.browser()
    assert browser.get("/").status_code == 200
    tokens = Tokens(dashboard.database)
    tokens.revoke(tokens.all()[-1].name)
    assert browser.get("/").status_code == 303


@pytest.mark.parametrize(
    "address", ["https://evil.example/", "//evil.example/", "/\\evil.example", "javascript:alert(1)", "/task/1", "/ui/a\nb"]
)  # fmt: skip
def test_the_login_leads_to_pages_of_ours_alone(dashboard: Dashboard, address: str) -> None:
    answer = dashboard.browser(anonymous=True).post("/ui/login", data={"token": dashboard.token(), "next": address})
    assert answer.status_code == 303
    assert re.fullmatch(r"/|/ui/[^/\\].*", answer.headers["location"])


def test_a_link_from_another_site_is_asked_for_again_before_the_login(dashboard: Dashboard) -> None:
    """A strict cookie does not come along with such a request, but does with the page's own."""
    answer = dashboard.browser(anonymous=True).get("/ui/models", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert 'http-equiv="refresh"' in answer.text


def test_who_may_only_read_is_not_offered_what_needs_more(dashboard: Dashboard) -> None:
    assert 'href="/ui/submit"' not in dashboard.browser(Scope.READ).get("/").text
    assert 'href="/ui/submit"' in dashboard.browser(Scope.RUN).get("/").text


# ----- what is refused


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://{host}"}, True),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"}, True),  # a proxy has changed the host
        ({}, True),  # no browser
    ],
)
def test_what_another_site_sends_is_refused(dashboard: Dashboard, headers: dict[str, str], is_let_in: bool) -> None:
    browser = dashboard.browser()
    host = dashboard.url.removeprefix("http://")
    answer = browser.post("/ui/logout", headers={name: value.format(host=host) for name, value in headers.items()})
    assert answer.status_code == (303 if is_let_in else 403)
    assert (browser.get("/").status_code == 303) is is_let_in


def test_the_api_is_guarded_in_the_same_way_where_a_cookie_is_used(dashboard: Dashboard) -> None:
    """A bearer token is brought by hand: whoever has it may use it from anywhere."""
    forged = {"Sec-Fetch-Site": "cross-site"}
    answer = dashboard.browser(Scope.RUN).post("/task", json={}, headers=forged)
    assert (answer.status_code, answer.headers["content-type"]) == (403, "application/problem+json")
    bearer = {"Authorization": f"Bearer {dashboard.token(Scope.RUN)}"}
    assert dashboard.browser(anonymous=True).post("/task", json={}, headers=forged | bearer).status_code != 403


def test_errors_are_pages_where_pages_are_and_notices_in_parts_of_them(dashboard: Dashboard) -> None:
    browser = dashboard.browser()
    page = browser.get("/ui/nothing")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<h1>Not found</h1>" in page.text
    part = browser.get("/ui/nothing", headers={"HX-Request": "true"})
    assert part.status_code == 404
    assert part.text.startswith('<hx-partial hx-target="#notices"')
    lost = dashboard.browser(anonymous=True).get(
        "/ui/models", headers={"HX-Request": "true", "HX-Current-URL": dashboard.url + "/ui/models"}
    )
    assert lost.headers["hx-redirect"] == "/ui/login?next=/ui/models"


# ----- what browsers are told


@pytest.mark.parametrize("path", ["/", "/ui/login", "/ui/nothing", "/static/app.css", "/health/live"])
def test_every_answer_has_the_headers_that_fence_it_in(dashboard: Dashboard, path: str) -> None:
    headers = dashboard.browser().get(path).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize("path", [*PAGES, "/ui/login", "/ui/nothing"])
def test_pages_hold_no_inline_code_and_nothing_from_elsewhere(dashboard: Dashboard, path: str) -> None:
    answer = dashboard.browser(Scope.ADMIN).get(path)
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)|https?://", answer.text)


def test_files_are_kept_for_ever_under_their_hash_and_asked_for_again_otherwise(dashboard: Dashboard) -> None:
    browser = dashboard.browser(anonymous=True)
    for path in STATIC.iterdir():
        lasting = browser.get(static(path.name))
        assert (lasting.status_code, lasting.content) == (200, path.read_bytes())
        assert lasting.headers["cache-control"] == "public, max-age=31536000, immutable"
    plain = browser.get("/static/app.js")
    assert plain.headers["cache-control"] == "no-cache"
    assert browser.get("/static/app.js", headers={"If-None-Match": plain.headers["etag"]}).status_code == 304
    assert browser.get("/static/../pages/door.py").status_code == 404
    assert browser.get("/static/%2e%2e/app.py").status_code == 404


# ----- what is live


def events(answer: httpx2.Response) -> Iterator[tuple[str, str]]:
    """(event, data) as they come; the event `message` where it has no name."""
    name, data = "message", []
    for line in answer.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data.append(line.removeprefix("data: "))
        elif not line and data:
            yield name, "\n".join(data)
            name, data = "message", []


def test_what_changes_is_sent_and_nothing_else(dashboard: Dashboard, sql: Sql) -> None:
    with dashboard.browser().stream("GET", "/ui/events/workers") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = events(answer)
        name, data = next(stream)
        assert (name, data[:37]) == ("message", '<hx-partial hx-target="#fleet" hx-swa')
        assert "No worker is running" in data
        sql(
            "INSERT INTO worker (host, pid, version, mode, concurrency, lease_until)"
            " VALUES ('<b>host</b>', 1, '0.1.0', 'daemon', 4, UTC_TIMESTAMP(6) + INTERVAL 1 HOUR)"
        )
        _, data = next(stream)
        assert "&lt;b&gt;host&lt;/b&gt;" in data


def test_all_who_watch_share_one_look_and_nobody_looks_when_they_have_left(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, other = dashboard.browser(), dashboard.browser()
    with browser.stream("GET", "/ui/events/models") as one, other.stream("GET", "/ui/events/models") as two:
        streams = [events(one), events(two)]  # kept: one that is forgotten is closed
        for stream in streams:
            next(stream)
        live = dashboard.live
        assert (live.watchers, live.looking) == (2, 1)
    dashboard.until(lambda: (live.watchers, live.looking) == (0, 0))


def test_a_session_that_ends_ends_the_stream(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_module, "HEARTBEAT_SECONDS", 0.05)
    browser = dashboard.browser()
    with browser.stream("GET", "/ui/events/schedules") as answer:
        stream = events(answer)
        next(stream)
        Thread(target=Tokens(dashboard.database).log_out, args=(browser.cookies[COOKIE],)).start()
        assert [name for name, _ in stream] == ["reload"]


def test_streams_are_bounded_and_topics_known(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = dashboard.browser()
    assert browser.get("/ui/events/nothing").status_code == 404
    monkeypatch.setattr(live_module, "STREAMS_AT_MOST", 0)
    assert browser.get("/ui/events/models").status_code == 429
    assert dashboard.browser(anonymous=True).get("/ui/events/models").status_code == 303
