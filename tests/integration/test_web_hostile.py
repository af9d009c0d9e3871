"""What strangers and clumsy programs may send: no mistake of theirs is one of ours, and what is for the log is told to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from threading import Event, Thread
from typing import Any

import httpx2
import pytest

from ai_worker.database_url import parse_database_url
from ai_worker.db import Database, Transaction
from ai_worker.errors import DatabaseAway, DatabaseError
from ai_worker.store.run_requests import RunRequests
from ai_worker.store.tokens import Scope
from ai_worker.web import services as services_module
from ai_worker.web.access import Guarded
from ai_worker.web.app import create_app
from ai_worker.web.options import WebOptions
from ai_worker.web.pages.live import Topic
from ai_worker.web.requests import LOGIN, LOGIN_BYTES
from ai_worker.web.runs import Runs
from ai_worker.web.services import Services
from tests.conftest import Sql
from tests.integration.test_web_api import flat
from tests.integration.webs import Web, problem, serving


@pytest.fixture
def web(database_url: str, sql: Sql) -> Iterator[Web]:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    with serving(database_url) as web:
        assert web.client(token="").get("/health/live").status_code == 200  # it has begun
        yield web


def test_addresses_that_are_none_lead_nowhere(web: Web) -> None:
    stranger = web.client(token="")
    assert stranger.get("/ui/login", params={"next": "http://["}).status_code == 200
    assert stranger.post("/task", headers={"Origin": "http://["}).status_code == 403
    part = stranger.get("/ui/tasks", headers={"HX-Request": "true", "HX-Current-URL": "http://["})
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/ui/login?next=/")
    own = {"HX-Request": "true", "HX-Current-URL": f"{web.base}/ui/tasks?status=new"}
    assert stranger.get("/ui/tasks", headers=own).headers["hx-redirect"] == "/ui/login?next=/ui/tasks%3Fstatus%3Dnew"


def test_words_that_no_column_can_hold_are_not_found(web: Web) -> None:
    client = web.client(Scope.RUN)
    id_task = client.post("/task", json={"model": "echo", "items": ["a"]}).json()["id_task"]
    for address in (
        "/ui/tasks?type=ż",
        "/ui/tasks?queue=ż",
        "/ui/tasks?model=ż&text=ż",
        f"/ui/tasks/{id_task}?status=error&kind=ż",
        f"/ui/tasks/{id_task}?after={10**30}",
        f"/ui/tasks?before={10**30}",
    ):
        assert client.get(address).status_code == 200, address
    assert client.post(f"/ui/tasks/{id_task}/retry", data={"kind": "ż"}).status_code == 303


def test_a_body_is_read_when_it_is_known_who_sends_it(database_url: str) -> None:
    nonsense: dict[str, Any] = {"content": b"{" * 101, "headers": {"Content-Type": "application/json"}}
    with serving(database_url, WebOptions(body_bytes=100)) as web:
        stranger = web.client(token="")
        problem(stranger.post("/task", **nonsense), 401)
        assert stranger.post("/ui/tasks/1/retry", data={"kind": "x" * 101}).status_code == 303
        problem(web.client(Scope.READ).post("/task", **nonsense), 413)
        assert stranger.post(LOGIN, data={"token": "x" * LOGIN_BYTES}).status_code == 413


def test_every_route_that_takes_a_body_knows_first_who_sends_it(web: Web) -> None:
    posts = [route for route in flat(create_app(web.database).routes) if "POST" in route.methods]
    unguarded = {route.path for route in posts if not isinstance(route, Guarded)}
    assert len(posts) > 15
    assert unguarded == {"/ui/login", "/ui/logout"}  # the one for strangers, and one that reads nothing


@pytest.mark.parametrize("error", [DatabaseError("Access denied to `secret`", 1142), DatabaseAway("no server at 10.0.0.7")])
def test_who_watches_is_not_told_what_the_database_said(web: Web, error: DatabaseError) -> None:
    async def fragments(*_: object) -> Mapping[str, str]:
        raise error

    web.app.state.live._topics["workers"] = Topic("workers", fragments)
    with web.client(Scope.READ).stream("GET", "/ui/events/workers") as answer:
        assert _away(answer) in {
            "the database cannot be reached; try again",
            "this page cannot be kept up to date; see the server's log",
        }


@pytest.mark.parametrize("key", ["", "id=x", "id=1&after=x", "id=²"])
def test_a_live_page_of_no_task_says_so(web: Web, key: str) -> None:
    with web.client(Scope.READ).stream("GET", "/ui/events/task", params={"key": key}) as answer:
        assert "is no number" in _away(answer)


def _away(answer: httpx2.Response) -> str:
    lines = answer.iter_lines()
    while next(lines) != "event: away":
        pass
    return next(lines).removeprefix("data: ")


def test_a_run_that_was_started_is_told_whatever_the_database_does_then(
    web: Web, sql: Sql, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who sends the request again would have two."""

    class Process:
        pid = 4711

        def wait(self) -> int:
            return 0

    class Away(RunRequests):
        def note_process(self, id_run_request: int, pid: int) -> None:
            raise DatabaseAway("gone")

    monkeypatch.setattr(Runs, "_process", lambda *_: Process())
    services = web.app.state.services
    services.runs = Runs(Away(web.database), services.options)
    client = web.client(Scope.RUN, **{"Idempotency-Key": "run-7"})
    first, second = (client.post("/task/run", json={}) for _ in range(2))
    assert (first.status_code, first.json()["pid"]) == (202, 4711)
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json() == first.json()
    assert sql("SELECT COUNT(*) AS runs FROM run_request") == [{"runs": 1}]


# ----- statements that do not end


def test_verbs_that_take_long_keep_nobody_else_waiting(database_url: str, sql: Sql) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    with serving(database_url, WebOptions(connections=1)) as web, ExitStack() as stack:
        client = web.client(Scope.RUN)
        id_task = client.post("/task", json={"model": "echo", "items": ["a"]}).json()["id_task"]
        asked = stack.enter_context(ThreadPoolExecutor(2))
        with locked(web.database, id_task):
            cancels = [asked.submit(client.post, f"/task/{id_task}/cancel") for _ in range(2)]
            assert not wait(cancels, 0.3).done
            assert client.get("/health/ready", timeout=2).status_code == 200
        assert [each.result().status_code for each in cancels] == [200, 200]


def test_the_end_waits_for_no_statement_that_does_not_end(database_url: str, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services_module, "LAST_SECONDS", 0.2)
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    sql("INSERT INTO task (id_task, id_ai_model) SELECT 1, id_ai_model FROM ai_model")

    async def end(db: Database) -> None:
        services = Services(db, WebOptions())
        pausing = asyncio.create_task(services.ask(services.tasks.pause, 1))
        await asyncio.sleep(0.2)
        await asyncio.wait_for(services.aclose(), 5)
        with pytest.raises(DatabaseAway):
            await pausing

    url = parse_database_url(database_url)
    with closing(Database(url)) as other, closing(Database(url)) as db, locked(other, 1):
        asyncio.run(end(db))
    assert sql("SELECT status_id FROM task") == [{"status_id": 0}]


@contextmanager
def locked(database: Database, id_task: int) -> Iterator[None]:
    """The task's row held by somebody else."""
    held, free = Event(), Event()

    def work(tx: Transaction) -> None:
        tx.query("lock_task", {"id_task": id_task})
        held.set()
        free.wait(20)

    thread = Thread(target=lambda: database.transaction(work))
    thread.start()
    try:
        assert held.wait(5)
        yield
    finally:
        free.set()
        thread.join()
