"""The routes of the HTTP API: what each does, who may use it, and that a request sent twice is done once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIRoute

from ai_worker.store.tokens import Scope
from ai_worker.web.app import create_app
from ai_worker.web.once import Once
from ai_worker.web.options import WebOptions
from tests.conftest import Sql
from tests.integration.webs import Web, problem, serving
from tests.marks import ON_ONE_SERVER
from tests.servers import Programs

SCOPES: dict[tuple[str, str], Scope | None] = {
    ("GET", "/health/live"): None,
    ("GET", "/health/ready"): None,
    ("GET", "/openapi.json"): Scope.READ,
    ("GET", "/docs"): Scope.READ,
    ("GET", "/task"): Scope.READ,
    ("GET", "/task/{id_task}"): Scope.READ,
    ("GET", "/task/{id_task}/items"): Scope.READ,
    ("GET", "/task/run/{id_run_request}"): Scope.READ,
    ("GET", "/task-item/{id_task_item}"): Scope.READ,
    ("GET", "/task-item/{id_task_item}/file/{position}"): Scope.READ,
    ("GET", "/model"): Scope.READ,
    ("GET", "/worker"): Scope.READ,
    ("GET", "/schedule"): Scope.READ,
    ("GET", "/token"): Scope.ADMIN,
    ("POST", "/task"): Scope.RUN,
    ("POST", "/task/run"): Scope.RUN,
    ("POST", "/task/{id_task}/retry"): Scope.RUN,
    ("POST", "/task/{id_task}/pause"): Scope.RUN,
    ("POST", "/task/{id_task}/resume"): Scope.RUN,
    ("POST", "/task/{id_task}/cancel"): Scope.RUN,
    ("POST", "/task-item/{id_task_item}/review"): Scope.REVIEW,
}
"""Which scope opens what; None: nobody is asked for a token. The pages have rules and tests of their own."""


@pytest.fixture
def web(database_url: str, sql: Sql) -> Iterator[Web]:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    with serving(database_url) as web:
        yield web


def submit(client: httpx2.Client, *texts: str, **more: Any) -> int:
    made = client.post("/task", json={"model": "echo", "items": list(texts) or ["Poszłem do domu."], **more})
    assert made.status_code == 201, made.text
    number: int = made.json()["id_task"]
    return number


def items_of(client: httpx2.Client, id_task: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/task/{id_task}/items").json()["items"]
    return found


def finish(sql: Sql, id_task: int, text: str = "Poszedłem do domu.") -> None:
    """Its items, as a worker leaves them."""
    values = "status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = %s, cost = 0.0012"
    sql(f"UPDATE task_item SET {values} WHERE id_task = %s", [text, id_task])


def routes(web: Web) -> list[tuple[str, str]]:
    """All routes of the API, as the application has them; what lives under / and /ui are pages."""
    return [key for key in api_routes(create_app(web.database)) if not (key[1] == "/" or key[1].startswith("/ui/"))]


def api_routes(app: Any) -> Iterator[tuple[str, str]]:
    for route in flat(app.routes):
        yield from ((method, route.path) for method in sorted(route.methods))


def flat(routes: Any) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            inner = getattr(route, "original_router", None)
            yield from flat(inner.routes if inner is not None else [])


def test_every_route_is_opened_by_its_scope_and_by_no_lesser_one(web: Web) -> None:
    assert set(routes(web)) - {("GET", "/metrics")} == SCOPES.keys()
    clients = {scope: web.client(scope) for scope in Scope}
    stranger = web.client(token="")
    for (method, path), wanted in SCOPES.items():
        address = path.replace("{id_task}", "1").replace("{id_task_item}", "1").replace("{position}", "1")
        address = address.replace("{id_run_request}", "1")
        refused = {303} if path == "/docs" else {401}  # a person is shown to the login
        assert (stranger.request(method, address).status_code in refused) == (wanted is not None), path
        for scope, client in clients.items():
            may = wanted in {None, scope} or scope is Scope.ADMIN or wanted is Scope.READ
            assert (client.request(method, address).status_code == 403) == (not may), (path, scope)


def test_every_post_can_be_sent_again(web: Web) -> None:
    for route in flat(create_app(web.database).routes):
        if "POST" in route.methods and not route.path.startswith("/ui/"):
            assert Once in {each.call for each in route.dependant.dependencies}, route.path


def test_a_task_from_its_submission_to_its_review(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN, Scope.REVIEW)
    made = client.post(
        "/task",
        json={
            "items": ["Poszłem do domu.", {"text": "Ide tam", "key": "a-7", "context": {"title": "Spacer"}, "context_key": "ja"}],
            "model": "echo",
            "description": "Popraw błędy",
            "priority": 3,
            "budget": None,
        },
    )
    assert made.status_code == 201
    id_task = made.json()["id_task"]
    assert made.json() == {"id_task": id_task, "items": 2, "is_new": True, "note": None}
    assert made.headers["location"] == f"/task/{id_task}"
    task = client.get(f"/task/{id_task}").json()
    assert (task["status"], task["items"]["pending"], task["priority"], task["model"]) == ("NEW", 2, 3, "echo")
    first, second = items_of(client, id_task)
    assert (second["external_key"], second["context"], second["context_key"]) == ("a-7", {"title": "Spacer"}, "ja")
    waiting = client.get(f"/task-item/{first['id_task_item']}")
    assert (waiting.status_code, waiting.json()["status"]) == (202, "PENDING")
    problem(client.post(f"/task-item/{first['id_task_item']}/review", json={"verdict": "accept"}), 422)
    finish(sql, id_task)
    done = client.get(f"/task-item/{first['id_task_item']}")
    assert done.status_code == 200
    assert (done.json()["text_corrected"], done.json()["cost"]) == ("Poszedłem do domu.", "0.0012")
    assert done.json()["finished_at"].endswith("Z")
    reviewed = client.post(
        f"/task-item/{first['id_task_item']}/review", json={"verdict": "accept", "text": "Wróciłem do domu.", "note": "styl"}
    )
    assert reviewed.json()["review"] == "ACCEPTED"
    item = client.get(f"/task-item/{first['id_task_item']}").json()
    assert (item["text_reviewed"], item["reviewed_by"]) == ("Wróciłem do domu.", reviewed.json()["by"])
    assert [each["id_task"] for each in client.get("/task").json()["tasks"]] == [id_task]
    assert client.get("/model").json()[0]["name"] == "echo"
    assert client.get("/worker").json() == client.get("/schedule").json() == []


def test_pause_resume_cancel_and_retry(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    id_task = submit(client, "a", "b")
    assert client.post(f"/task/{id_task}/pause").json() == {"id_task": id_task, "status": "PAUSED", "items": 0}
    assert client.post(f"/task/{id_task}/resume", json={"budget": "5.00"}).json()["status"] == "NEW"
    assert client.get(f"/task/{id_task}").json()["budget"] == "5"
    assert client.post(f"/task/{id_task}/cancel").json() == {"id_task": id_task, "status": "CANCELLED", "items": 2}
    problem(client.post(f"/task/{id_task}/retry"), 422)
    assert client.post(f"/task/{id_task}/resume").json()["items"] == 2
    sql("UPDATE task_item SET status_id = 3, attempt = 1, finished_at = NOW(6), error_kind = 'x' WHERE id_task = %s", [id_task])
    sql("UPDATE task SET status_id = 3, records_failed = 2, finished_at = NOW(6) WHERE id_task = %s", [id_task])
    one = items_of(client, id_task)[0]["id_task_item"]
    assert client.post(f"/task/{id_task}/retry", json={"id_task_item": one}).json()["items"] == 1
    assert client.post(f"/task/{id_task}/retry").json()["items"] == 1
    for verb in ("retry", "pause", "resume", "cancel"):
        problem(client.post(f"/task/{2**62}/{verb}"), 404)


def test_lists_go_on_by_key(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    tasks = [submit(client, *"abcde") for _ in range(3)]
    page = client.get("/task", params={"limit": 2, "model": "echo"})
    assert [each["id_task"] for each in page.json()["tasks"]] == tasks[:0:-1]
    assert page.headers["link"] == f'<{page.json()["next"]}>; rel="next"'
    rest = client.get(page.json()["next"])
    assert [each["id_task"] for each in rest.json()["tasks"]] == tasks[:1]
    assert rest.json()["next"] is None
    assert "link" not in rest.headers
    assert client.get("/task", params={"status": "PAUSED"}).json()["tasks"] == []
    seen: list[str] = []
    address: str | None = f"/task/{tasks[0]}/items?limit=2&status=PENDING"
    while address:
        items = client.get(address).json()
        seen += [each["text_original"] for each in items["items"]]
        address = items["next"]
    assert seen == list("abcde")
    assert client.get(f"/task/{tasks[0]}/items?status=ERROR").json() == {"items": [], "next": None}
    problem(client.get(f"/task/{2**62}/items"), 404)


def test_a_request_that_is_not_understood_is_told_plainly(web: Web) -> None:
    client = web.client(Scope.RUN)

    def said(**request: Any) -> list[tuple[str, str]]:
        return [(each["field"], each["message"]) for each in problem(client.post("/task", **request), 422)["errors"]]

    assert said(json={"items": ["x", ""]}) == [("body.items.1", "String should have at least 1 character")]
    assert said(json={"items": ["x", 7]}) == [("body.items.1", "An item is a text, or an object with a field `text`")]
    assert said(json={"items": [{"txt": "x"}]}) == [
        ("body.items.0.text", "This field is missing"),
        ("body.items.0.txt", "There is no such field"),
    ]
    ((field, message),) = said(content='{"items": ["x"', headers={"Content-Type": "application/json"})
    assert (field, message) == ("body", "No JSON: Expecting ',' delimiter, at character 14")
    assert said(json=["x"]) == [("body", "A JSON object is expected")]
    ((field, message),) = said(content='{"items": ["x"]}')
    assert field == "body"
    assert "`Content-Type: application/json`" in message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"items": []}, "items"),
        ({"items": ["  "]}, "no text"),
        ({"items": ["a"], "model": "nobody"}, "nobody"),
        ({"items": ["a"], "type": "no such type"}, "no such type"),
        ({"items": ["a"], "parameters": {"tagret_language": "pl"}}, "tagret_language"),
        ({"items": ["a"], "lane": "batch"}, "takes no batches"),
        ({"items": ["a"], "after": [{"id_task": 2**62}]}, "there is no task"),
        ({"items": ["a"], "group": "no such group"}, "no such group"),
        ({"items": ["a"], "scheduled_at": "2026-12-24T18:00:00"}, "zone"),
        ({"items": ["a"], "budget": "0"}, "above zero"),
        ({"items": ["a"], "unknown": 1}, "unknown"),
    ],
)
def test_a_task_that_cannot_be_is_refused_with_the_reason(web: Web, sql: Sql, body: dict[str, Any], says: str) -> None:
    assert says in problem(web.client(Scope.RUN).post("/task", json={"model": "echo", **body}), 422)["detail"]
    assert sql("SELECT COUNT(*) AS tasks FROM task") == [{"tasks": 0}]


def test_a_body_that_is_too_long_is_not_read(database_url: str) -> None:
    with serving(database_url, WebOptions(body_bytes=1000)) as web:
        client = web.client()
        problem(client.post("/task", json={"items": ["x" * 2000]}), 413)
        problem(client.post("/task", content=iter([b"x" * 600, b"x" * 600]), headers={"Content-Type": "application/json"}), 413)


# ----- once


def test_a_request_sent_twice_is_done_once_by_whichever_instance(web: Web, database_url: str, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    key = {"Idempotency-Key": "order-7"}
    body = {"model": "echo", "items": ["a"]}
    first = client.post("/task", json=body, headers=key)
    with serving(database_url) as other:
        second = other.client(token=client.headers["authorization"].removeprefix("Bearer "))
        again = second.post("/task", json=body, headers=key)
        assert again.json() == first.json()
        assert (again.status_code, again.headers["location"]) == (201, first.headers["location"])
        assert again.headers["idempotency-replayed"] == "true"
        problem(second.post("/task", json={**body, "items": ["b"]}, headers=key), 422)
        problem(second.post("/task/run", json={}, headers=key), 422)
        assert second.get(f"/task/{first.json()['id_task']}").json()["items"]["pending"] == 1
        # Another token's key is another key.
        assert other.client(Scope.RUN).post("/task", json=body, headers=key).json()["is_new"]
    assert sql("SELECT COUNT(*) AS tasks FROM task") == [{"tasks": 2}]


def test_a_refused_request_may_be_sent_again(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    key = {"Idempotency-Key": "order-8"}
    problem(client.post("/task", json={"model": "later", "items": ["a"]}, headers=key), 422)
    sql("INSERT INTO ai_model (name, provider) VALUES ('later', 'echo')")
    assert client.post("/task", json={"model": "later", "items": ["a"]}, headers=key).status_code == 201


def test_a_request_whose_process_died_is_made_anew_and_a_task_made_once(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    key = {"Idempotency-Key": "order-9"}
    body = {"model": "echo", "items": ["a"]}
    made = client.post("/task", json=body, headers=key).json()
    sql("UPDATE web_request SET status = NULL, held_until = NOW(6) + INTERVAL 60 SECOND")
    busy = client.post("/task", json=body, headers=key)
    problem(busy, 409)
    assert busy.headers["retry-after"] == "1"
    sql("UPDATE web_request SET held_until = NOW(6)")
    again = client.post("/task", json=body, headers=key)
    assert (again.status_code, again.json()) == (201, {**made, "is_new": False})


def test_of_many_at_once_one_does_it(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    answers: list[httpx2.Response] = []

    def send() -> None:
        answers.append(client.post("/task", json={"model": "echo", "items": ["a"]}, headers={"Idempotency-Key": "race"}))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert {each.status_code for each in answers} <= {201, 409}
    assert sql("SELECT COUNT(*) AS tasks FROM task") == [{"tasks": 1}]


# ----- waiting


def test_a_result_is_answered_as_soon_as_it_is_there(web: Web, sql: Sql) -> None:
    client = web.client(Scope.RUN)
    id_task = submit(client)
    number = items_of(client, id_task)[0]["id_task_item"]
    begun = time.monotonic()
    early = client.get(f"/task-item/{number}", params={"wait": 0.2})
    assert (early.status_code, early.json()["status"]) == (202, "PENDING")
    assert time.monotonic() - begun >= 0.2
    timer = threading.Timer(0.1, finish, [sql, id_task])
    timer.start()
    answer = client.get(f"/task-item/{number}", params={"wait": 30})
    timer.join()
    assert (answer.status_code, answer.json()["text_corrected"]) == (200, "Poszedłem do domu.")
    assert time.monotonic() - begun < 5
    problem(client.get(f"/task-item/{2**62}", params={"wait": 30}), 404)
    problem(client.get(f"/task-item/{number}", params={"wait": 61}), 422)


def test_who_hangs_up_is_not_waited_for_and_a_stop_answers_at_once(database_url: str, sql: Sql) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    with serving(database_url) as web:
        client = web.client(Scope.RUN)
        number = items_of(client, submit(client))[0]["id_task_item"]
        with pytest.raises(httpx2.ReadTimeout):
            client.get(f"/task-item/{number}", params={"wait": 60}, timeout=0.3)
        waiters = web.app.state.services.waiting._waiters
        deadline = time.monotonic() + 5
        while waiters and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not waiters
        answers: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: answers.append(client.get(f"/task-item/{number}", params={"wait": 60})))
        thread.start()
        while not waiters and time.monotonic() < deadline:
            time.sleep(0.01)
        web.server.should_exit = True
        thread.join(5)
        assert [each.status_code for each in answers] == [202]


# ----- runs


def ended(client: httpx2.Client, address: str, states: tuple[str, ...] = ("ended", "died")) -> dict[str, Any]:
    """The run in one of these states."""
    deadline = time.monotonic() + 30
    while (run := client.get(address).json())["state"] not in states:
        assert time.monotonic() < deadline, run
        time.sleep(0.05)
    return dict(run)


def test_a_run_is_previewed_and_done_by_a_process_of_its_own(
    database_url: str, sql: Sql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    file = tmp_path / "workers.env"
    file.write_text(f'AI_WORKER_DB_URL="{database_url}"\n')
    monkeypatch.setenv("AI_WORKER_DB_URL", "mysql://nobody@127.0.0.1:1/nowhere")  # the run has the settings of the file alone
    with serving(database_url, WebOptions(run_env_file=file, runs=1)) as web:
        client = web.client(Scope.RUN)
        id_task = submit(client, "a", "b", "c")
        preview = client.post("/task/run", json={"task": id_task, "max_item": 2, "dry_run": True})
        assert (preview.status_code, preview.json()["items"], preview.json()["is_cut"]) == (200, 2, True)
        assert preview.json()["prompts"][0]["user"]
        problem(client.post("/task/run", json={"task": 2**62}), 404)
        problem(client.post("/task/run", json={"task_item": 2**62}), 404)
        assert sql("SELECT COUNT(*) AS runs FROM run_request") == [{"runs": 0}]
        started = client.post("/task/run", json={"task": id_task, "max_item": 2})
        assert started.status_code == 202
        assert "without this server" in started.json()["note"]
        busy = client.post("/task/run", json={})
        problem(busy, 503)
        assert busy.headers["retry-after"]
        run = ended(client, started.headers["location"])
        assert (run["state"], run["exit_code"], run["summary"]["processed"]) == ("ended", 0, 2)
        assert run["id_worker"]
        assert client.get(f"/task/{id_task}").json()["records_processed"] == 2
        problem(client.get(f"/task/run/{2**62}"), 404)


@ON_ONE_SERVER  # what is killed is a process, and what it leaves the tests of claims look at
@pytest.mark.parametrize("also_the_run", [False, True], ids=["web", "web-and-run"])
def test_a_killed_web_loses_nothing(programs: Programs, database_url: str, sql: Sql, also_the_run: bool) -> None:
    sql("INSERT INTO ai_model (name, provider, options) VALUES ('slow', 'echo', '{\"delay_ms\": 1000}')")
    token = programs.run("token", "add", "panel", "--scope", "run").stdout.strip()
    background = programs.start("web", "--port", "0", env={"AI_WORKER_LOG_FORMAT": "json", "AI_WORKER_LEASE_SECONDS": "5"})
    background.wait_for("WEB_START")
    base = background.text().split('"address":"')[1].split('"')[0]
    with serving(database_url) as other:
        second = other.client(token=token)
        with httpx2.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=20) as client:
            made = client.post("/task", json={"model": "slow", "items": ["a", "b"]})
            id_task = made.json()["id_task"]
            address = client.post("/task/run", json={"task": id_task}).headers["location"]
        run = ended(second, address, ("running", "ended"))
        background.process.kill()
        background.wait()
        if also_the_run:
            import os
            import signal

            os.kill(run["pid"], signal.SIGKILL)
            sql("UPDATE worker SET lease_until = NOW(6) - INTERVAL 1 HOUR WHERE id_worker = %s", [run["id_worker"]])
            assert ended(second, address)["state"] == "died"
            assert programs.run("run", "--task", str(id_task)).returncode == 0
        else:
            assert ended(second, address)["exit_code"] == 0
        assert second.get(f"/task/{id_task}").json()["status"] == "COMPLETED"
