"""The web can do all of its work as the user that sql/grants.sql makes for it."""

from __future__ import annotations

from ai_worker.store.tokens import Scope, Tokens
from ai_worker.web.options import WebOptions
from tests.conftest import Sql
from tests.integration.test_grants import PASSWORD, Users, users  # noqa: F401 -- a fixture
from tests.integration.webs import problem, serving


def test_the_web_s_user_may_do_what_the_routes_do(users: Users, sql: Sql) -> None:  # noqa: F811 -- the fixture above
    sql("INSERT INTO ai_model (name, provider) VALUES ('echo', 'echo')")
    owner = users.database_of("web")
    owner.close()
    with serving(users.server.url(users.database)) as owned:
        token = Tokens(owned.database).add("panel", [Scope.ADMIN])
    with serving(users.server.url(users.database, f"{users.prefix}web", PASSWORD), WebOptions(runs=0)) as web:
        client = web.client(token=token)
        made = client.post("/task", json={"items": ["a", "b"]}, headers={"Idempotency-Key": "k"})
        assert made.status_code == 201, made.text
        task = made.headers["location"]
        item = client.get(f"{task}/items").json()["items"][0]["id_task_item"]
        for verb in ("pause", "resume", "cancel", "resume"):
            assert client.post(f"{task}/{verb}").status_code == 200
        assert client.get(f"/task-item/{item}", params={"wait": 0.1}).status_code == 202
        assert client.post("/task/run", json={"dry_run": True}).json()["items"] == 2
        problem(client.post("/task/run", json={}), 503)
        sql("UPDATE task_item SET status_id = 1, attempt = 1, finished_at = NOW(6), text_corrected = 'x'")
        assert client.post(f"/task-item/{item}/review", json={"verdict": "reject", "note": "nie"}).status_code == 200
        for path in ("/task", task, "/model", "/worker", "/schedule", "/token", "/docs", "/openapi.json", "/health/ready"):
            assert client.get(path).status_code == 200, path
        runs = web.app.state.services.run_requests
        number = runs.add(None, "h", None, None, None)
        runs.note_process(number, 1)
        runs.end(number, None, message="killed")
        assert client.get(f"/task/run/{number}").json()["state"] == "died"
        assert web.client(token="aiw_" + "x" * 43).get("/task").status_code == 401
    worker = users.database_of("worker")
    try:
        from ai_worker.store.run_requests import RunRequests

        requests = RunRequests(worker)
        assert requests.get(number).message == "killed"
        requests.begin(number, 7)
        requests.end(number, 0, {"processed": 1})
    finally:
        worker.close()
